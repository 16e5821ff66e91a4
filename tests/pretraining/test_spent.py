"""What a training took: seconds of all its parts, energy from counters that start anew, and no number without one."""

import math
import sys
import types

import pytest
import torch

from twinbench.pretraining import spent
from twinbench.pretraining.spent import Counter, Spent, of_processors, spent_on

CPU = torch.device("cpu")


def powercap(folder, **domains):
    """Domains as Linux shows them: name and microjoules."""
    for place, (name, joules) in domains.items():
        below = folder / place.replace("_", ":")
        below.mkdir(parents=True)
        (below / "name").write_text(f"{name}\n")
        (below / "energy_uj").write_text(f"{joules}\n")
        (below / "max_energy_range_uj").write_text("999999\n")
    return folder


def test_the_packages_of_a_machine_are_summed_and_parts_of_them_left_out(tmp_path):
    folder = powercap(
        tmp_path,
        **{
            "intel-rapl_0": ("package-0", 100),
            "intel-rapl_1": ("package-1", 200),
            "intel-rapl_0_0": ("core", 50),
            "intel-rapl_2": ("psys", 70),
        },
    )
    counters = of_processors(folder)
    assert len(counters) == 2
    count = Spent(counters)
    (folder / "intel-rapl:0/energy_uj").write_text("3000100")
    (folder / "intel-rapl:1/energy_uj").write_text("500200")
    count.keep_count(at_once=True)
    assert count.joules == pytest.approx(3.5)


def test_a_counter_that_starts_anew_loses_nothing():
    readings = iter([999_990, 5, 5, 25])
    counter = Counter(lambda: next(readings), 1e-6, 999_999)
    assert counter.joules() == pytest.approx(15e-6)  # 999,990 to 999,999, then 0 to 5
    assert counter.joules() == 0
    assert counter.joules() == pytest.approx(20e-6)


def test_counters_are_not_read_at_every_step(monkeypatch):
    now, reads = [0.0], []
    monkeypatch.setattr(spent.time, "monotonic", lambda: now[0])
    count = Spent([Counter(lambda: reads.append(now[0]) or 0, 1.0)])
    for now[0] in (1.0, 5.0, 11.0, 12.0, 22.0):
        count.keep_count()
    assert reads == [0.0, 11.0, 22.0]
    assert count.seconds == 22.0


def test_without_a_counter_there_is_no_number_but_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(spent, "POWERCAP", tmp_path / "nowhere")
    count = spent_on(CPU, counts=True)
    assert math.isnan(count.joules)
    assert "the processor does not tell its energy: no counter of a processor package" in count.unknown
    assert spent_on(CPU, counts=False).joules == 0, "another process of this machine counts"


def test_a_counter_that_only_the_administrator_may_read_is_named(tmp_path, monkeypatch):
    folder = powercap(tmp_path, **{"intel-rapl_0": ("package-0", 1)})
    monkeypatch.setattr(spent, "POWERCAP", folder)
    file = folder / "intel-rapl:0/energy_uj"

    def refuse(self, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(spent.Path, "read_text", refuse)
    assert (
        spent_on(CPU, counts=True).unknown
        == f"the processor does not tell its energy: {file} may not be read"
    )


def test_a_counter_that_fails_later_leaves_no_number():
    readings = iter([1])

    def read():
        try:
            return next(readings)
        except StopIteration:
            raise OSError("gone") from None

    count = Spent([Counter(read, 1.0)])
    count.keep_count(at_once=True)
    assert math.isnan(count.joules)
    assert "gone" in count.unknown


def test_the_parts_of_an_interrupted_training_are_added(monkeypatch):
    monkeypatch.setattr(spent.time, "monotonic", lambda: 100.0)
    main, other = Spent(), Spent()
    for count, is_main in ((main, True), (other, False)):
        count.go_on({"seconds": 40.0, "joules": 7.0}, is_main)
    assert (main.seconds, main.joules, other.joules) == (40.0, 7.0, 0.0)
    main.go_on({"seconds": 1.0, "joules": math.nan}, is_main=True)
    assert math.isnan(main.joules)
    assert "before an interruption" in main.unknown


@pytest.fixture
def gpu(monkeypatch):
    """A GPU whose NVML says what it is told to."""
    joules = {"GPU-abc": [1000, 4000]}
    module = types.SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: joules[handle].pop(0),
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="abc"))
    return module


def test_a_gpu_is_found_by_its_uuid_and_counts_millijoules(gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", gpu)
    count = spent_on(torch.device("cuda", 0), counts=True)
    count.keep_count(at_once=True)
    assert (count.joules, count.unknown) == (3.0, "")


def test_a_gpu_without_nvml_has_no_number(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    count = spent_on(torch.device("cuda", 0), counts=True)
    assert count.unknown == "the GPU does not tell its energy: the package nvidia-ml-py is not installed"
