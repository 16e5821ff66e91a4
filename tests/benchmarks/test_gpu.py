"""The one command for a GPU: everything in it runs at small size here, and an early end loses nothing measured."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    return gpu


def order(gpu, **changes):
    values = {
        "minutes": 8.0,
        "small": False,
        "parts": gpu.PARTS,
        "data_root": None,
        "commit": "abc",
        **changes,
    }
    return gpu.Order(**values)


def test_every_part_runs_at_small_size_and_is_written_as_it_is_known(gpu, monkeypatch, tmp_path):
    rows = gpu.throughput_measurements(small=True)[:2]
    assert [row.title for row in rows] == ["twinbench", "roof"]
    monkeypatch.setattr(gpu, "throughput_measurements", lambda small: rows)
    monkeypatch.setattr(
        gpu.Order,
        "comparison",
        lambda self, seconds: gpu.Comparison(self.data_root, seconds, self.small, methods=("moco_v2",)),
    )
    written = []

    def write(document):
        gpu.publish(document, tmp_path)
        written.append(sum(bool(document[key]) for key in ("tests", "throughput", "training")))

    document = gpu.carry_out(order(gpu, small=True, minutes=600), write, gpu.time.monotonic())
    assert written == [1, 2, 2, 3]
    assert document["left_out"] == []
    (on_disk,) = tmp_path.glob("*-small.json")
    assert json.loads(on_disk.read_text()) == document
    assert document["facts"]["commit"] == "abc"
    assert document["tests"]["passed"] >= 3
    assert document["tests"]["failed"] == []
    ours, roof = document["throughput"]
    assert ours["pairs_per_second"] > 0
    assert roof["flops_per_pair"] == pytest.approx(6.8e9, rel=0.01)  # as throughput.py counts it
    assert min(roof["bytes_per_pair"], roof["product_rate"], roof["copy_rate"]) > 0
    assert [row["method"] for row in document["training"]["rows"]] == ["random_init", "moco_v2"]
    assert all({"knn/cosine-v1", "linear/cached-v1"} <= row.keys() for row in document["training"]["rows"])
    text = on_disk.with_suffix(".md").read_text()
    assert "the numbers mean nothing" in text
    assert "| moco_v2 " in text


def test_what_a_process_printed_before_its_time_was_up_counts(gpu):
    endless = "import time\nprint('{\"a\": 1}', flush=True)\nprint('{\"b\"', flush=True)\ntime.sleep(600)"
    outcome = gpu.run_process([sys.executable, "-c", endless], 5)
    assert outcome.trouble == "ended after 5 s"
    assert outcome.documents() == [{"a": 1}]
    failing = gpu.run_process([sys.executable, "-c", "print('{}'); raise SystemExit('so')"], 60)
    assert failing.trouble == "exit code 1: so"
    assert failing.documents() == [{}]


def test_what_fails_or_has_no_time_left_is_said_and_the_rest_goes_on(gpu, monkeypatch):
    answer = {"pairs_per_second": 5.0, "peak_memory_mb": 1.0}
    job = gpu.Job("twinbench", "barlow_twins", "bf16", 512, 1, 1)

    def printing(title, code, seconds=1.0):
        command = [sys.executable, "-c", code]
        return gpu.Measurement("throughput", title, command, seconds, 600.0, job=job)

    measurements = [
        printing("broken", "raise SystemExit('no memory')"),
        printing("too long", "", seconds=60 * 60 * 10),
        printing("fine", f"print('''{json.dumps(answer)}''')"),
    ]
    monkeypatch.setattr(gpu, "throughput_measurements", lambda small: measurements)
    document = gpu.carry_out(
        order(gpu, parts=("throughput",), minutes=60.0), lambda so_far: None, gpu.time.monotonic()
    )
    assert [row["name"] for row in document["throughput"]] == ["fine"]
    broken, too_long = document["left_out"]
    assert broken == "broken: resnet18 at 32 px, batch 512, bf16: exit code 1: no memory"
    assert "36000 s expected" in too_long


def test_tests_are_counted_in_both_of_pytests_forms(gpu):
    found = gpu.tests_found(
        [
            "tests/gpu/test_a.py::test_one PASSED                     [ 10%]",
            "tests/gpu/test_a.py::test_two[a b-1] FAILED [ 20%]",
            "[gw1] [ 30%] PASSED tests/gpu/test_b.py::test_three[x] ",
            "tests/gpu/test_b.py::test_four SKIPPED (no GPU) [ 40%]",
            "[gw0] [ 50%] ERROR tests/gpu/test_b.py::test_five ",
            "[gw0] [ 60%] SKIPPED tests/gpu/test_b.py::test_six ",
            "FAILED tests/gpu/test_a.py::test_two[a b-1] - AssertionError",
            "tests/gpu/test_b.py::test_under_way ",
        ]
    )
    failed = ["tests/gpu/test_a.py::test_two[a b-1]", "tests/gpu/test_b.py::test_five"]
    assert found == {"passed": 2, "skipped": 2, "failed": failed}


def test_a_table_sets_rates_against_roofs_and_goals(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_report

    job = {"network": "resnet18", "size": 32, "batch_size": 512, "precision": "bf16"}
    ours = {**job, "name": "twinbench", "side": "twinbench", "peak_memory_mb": 9.0}
    rows = [
        {**ours, "pairs_per_second": 21_000.0},
        {**ours, "pairs_per_second": 6_000.0, "name": "lightly tuned", "side": "lightly"},
        {
            **job,
            "name": "roof",
            "side": "twinbench",
            "flops_per_pair": 7e9,
            "bytes_per_pair": 30e6,
            "product_rate": 700e12,
            "copy_rate": 3e12,
        },
    ]
    text = "\n".join(gpu_report._throughput(rows, small=False))
    assert "| 21,000  | 21%" in text  # of 700e12 / 7e9 = 100,000
    assert "| 21%                | 9 " in text  # 3e12 / 30e6 is the same roof
    assert "roofs of 100,000 and 100,000 pairs/s" in text
    assert "- resnet18 at 32 pixels, pairs/s: 21,000; goal 20,000: reached" in text
    assert "- resnet18 at 32 pixels, times the faster lightly: 3.50; goal 3: reached" in text
    assert "resnet50" not in text


def test_the_plan_fits_into_its_minutes_and_says_what_each_part_takes(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "has_lightly", lambda: True)
    table = gpu.plan_table(order(gpu, data_root="DIR"))
    for text in ("resnet50 at 224 px", "lightly as documented", "batch 1024", "CIFAR-10"):
        assert text in table
    wanted = order(gpu).measurements()
    first = [one for one in wanted if one.title in ("tests", "twinbench", "roof")]
    kept = order(gpu).kept_for_training
    assert sum(one.seconds for one in first) + kept <= 8 * 60
    short = order(gpu, minutes=4.0, parts=("training",))
    assert short.measurements() == []
    assert short.kept_for_training == 4 * 60


def test_a_training_ends_when_its_time_is_up(gpu, tmp_path):
    plan = gpu.Comparison(None, 60.0, small=True)
    images = plan.images()
    row = gpu.train_and_measure(plan.recipe("simclr", images, 2), images, tmp_path, ends=0.0)
    assert row["status"].startswith("the time was up after 12% of the training")
    assert "knn/cosine-v1" not in row


def test_unknown_parts_are_refused_with_the_known_ones(gpu):
    assert gpu._checked_parts("training,tests") == ("training", "tests")
    with pytest.raises(gpu.InputError, match="tests, throughput, training"):
        gpu._checked_parts("test")
