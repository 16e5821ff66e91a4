"""The benchmarks compare what they say they compare: the same network, views and losses, and honest floors."""

import importlib.util
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests import forks
from twinbench.pretraining.build import build_method, view_policies
from twinbench.pretraining.method import Progress

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LOSSES = ("barlow_twins", "simclr", "byol", "simsiam", "moco_v2", "swav")
needs_lightly = pytest.mark.skipif(
    importlib.util.find_spec("lightly") is None,
    reason="lightly is not installed (pip install -e '.[bench]')",
)


@pytest.fixture
def throughput(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import throughput

    return throughput


@pytest.fixture
def losses(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import losses

    return losses


def toy(throughput, side, method, **changes):
    return throughput.Job(side, method, "fp32", batch_size=4, warm_up=1, steps=1, **changes)


@needs_lightly
@pytest.mark.parametrize("method", ["barlow_twins", "simclr"])
def test_both_sides_compute_the_same_loss_with_the_same_weights(throughput, method):
    job = toy(throughput, "twinbench", method)
    ours = build_method(throughput.recipe(job, throughput.image_set(job))).eval()
    theirs = throughput.lightly_model(method).eval()
    weights = list(ours.state_dict().values())
    theirs.load_state_dict(dict(zip(theirs.state_dict(), weights, strict=True)))
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(8, 3, 32, 32, generator=generator) for _ in range(2)]
    with torch.no_grad():
        expected = throughput.lightly_loss(method)(theirs(views[0]), theirs(views[1]))
        actual = ours(views, None, Progress(0, 1, 1)).total
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=0)


@needs_lightly
@pytest.mark.parametrize("method", ["barlow_twins", "simclr"])
def test_both_sides_draw_the_same_views(throughput, method):
    job = toy(throughput, "twinbench", method)
    policies = view_policies(throughput.recipe(job, throughput.image_set(job)), 32)
    transforms = throughput.lightly_transform(method).transforms
    assert len(policies) == len(transforms) == 2
    for policy, transform in zip(policies, transforms, strict=True):
        steps = {type(step).__name__: step for step in transform.transform.transforms}
        crop, jitter = steps["RandomResizedCrop"], steps["RandomApply"]
        assert (tuple(crop.size), crop.scale) == ((32, 32), policy.crop_scale)
        assert getattr(crop.interpolation, "value", crop.interpolation) == policy.interpolation
        assert crop.ratio == pytest.approx(policy.crop_ratio)
        assert steps["RandomHorizontalFlip"].p == policy.flip
        assert jitter.p == policy.jitter
        for name in ("brightness", "contrast", "saturation"):
            strength = getattr(policy, name)
            assert getattr(jitter.transforms[0], name) == pytest.approx((1 - strength, 1 + strength))
        assert jitter.transforms[0].hue == pytest.approx((-policy.hue, policy.hue))
        assert steps["RandomGrayscale"].p == policy.grayscale
        assert steps["GaussianBlur"].prob == policy.blur == 0
        solarization = steps.get("RandomSolarization")
        assert (solarization.prob if solarization else 0) == policy.solarize


@needs_lightly
def test_every_side_runs_and_has_the_same_parameters(throughput):
    jobs = [
        toy(throughput, "twinbench", "simclr"),
        toy(throughput, "without data", "simclr"),
        toy(throughput, "lightly", "simclr", workers=1),
    ]
    answers = [throughput._SIDES[job.side](job) for job in jobs]
    assert len({answer["parameters"] for answer in answers}) == 1
    for answer in answers:
        assert 0 < answer["pairs_per_second"] < math.inf
        assert answer["peak_memory_mb"] > 50


def test_the_stopwatch_counts_only_the_timed_steps(throughput, monkeypatch):
    clock = iter([100.0, 104.0])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(clock))
    job = throughput.Job("without data", "simclr", "fp32", batch_size=10, warm_up=2, steps=6)
    watch = throughput.Stopwatch(job)
    for step in range(1, 9):
        watch.step_done(step)
    assert watch.pairs_per_second() == 15.0


def test_the_roof_is_three_forward_passes_of_each_view_at_the_rate_of_products(throughput, monkeypatch):
    monkeypatch.setattr(throughput, "matmul_rate", lambda where, precision: 1e12)
    job = toy(throughput, "roof", "simclr")
    method = build_method(throughput.recipe(job, throughput.image_set(job)))
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        method.embed(throughput.random_batch(job, 32).views[0])
    # 2 operations x 0.557 G multiply-adds is the known cost of this network
    assert forward.get_total_flops() / 4 == pytest.approx(2 * 0.557e9, rel=0.01)
    answer = throughput.measure_roof(job)
    assert answer["flops_per_pair"] == pytest.approx(2 * 3 * forward.get_total_flops() / 4, rel=0.02)
    assert answer["pairs_per_second"] == pytest.approx(1e12 / answer["flops_per_pair"])
    assert answer["copy_rate"] > 0
    # every parameter and its gradient in fp32 are read or written by the update alone three times
    assert answer["bytes_per_pair"] > 3 * 4 * answer["parameters"] / job.batch_size


@pytest.mark.parametrize("side", ["twinbench", "without data"])
def test_our_sides_run(throughput, side):
    assert 0 < throughput._SIDES[side](toy(throughput, side, "barlow_twins"))["pairs_per_second"] < math.inf


def test_a_compiled_row_trains_as_the_command_line_compiles(throughput, monkeypatch):
    compiled = []
    monkeypatch.setattr(throughput, "pretrain", lambda *_, engine: compiled.append(engine.hardware.compile))
    for wanted in (False, True):
        throughput.measure_twinbench(toy(throughput, "twinbench", "barlow_twins", compile=wanted))
    assert compiled == [False, True]


def row(name, precision, rates, **more):
    return {"name": name, "precision": precision, "pairs_per_second": rates, **more}


def test_ratios_are_of_medians_and_against_the_faster_side(throughput):
    rows = [
        row("twinbench", "fp32", [50.0, 10.0, 60.0]),
        row("twinbench", "bf16", [100.0]),
        row("lightly as documented", "fp32", [40.0]),
        row("lightly tuned", "fp32", [45.0, 20.0, 46.0]),
        row("lightly tuned", "bf16", [80.0]),
        row("lightly tuned + allocator", "bf16", [90.0]),
        row("twinbench without data", "fp32", [60.0]),
        row("twinbench without data", "bf16", [110.0]),
        row("roof: products alone", "fp32", [500.0]),
        row("roof: products alone", "bf16", [4000.0, 1000.0, 2000.0]),
    ]
    assert throughput.ratios(rows) == pytest.approx(
        {
            "twinbench / lightly as documented": 100 / 40,
            "fp32: twinbench / the faster lightly": 50 / 45,
            "bf16: twinbench / lightly tuned": 100 / 80,
            "each at its best, allocator included": 100 / 90,
            "fp32: twinbench / twinbench without data": 50 / 60,
            "bf16: twinbench / twinbench without data": 100 / 110,
            "fp32: twinbench / roof: products alone": 50 / 500,
            "bf16: twinbench / roof: products alone": 100 / 2000,
        }
    )


def test_the_table_says_how_many_times_the_roof_a_step_takes(throughput):
    work = {"method": "simclr", "precision": "bf16", "batch_size": 256, "parameters": 1234}
    rows = [
        {**work, "side": "twinbench", "pairs_per_second": [100.0]},
        {**work, "side": "roof", "pairs_per_second": [400.0], "flops_per_pair": 5e9, "product_rate": [2e12]},
    ]
    (text,) = throughput._operations(rows, "a CPU")
    assert text == (
        "- simclr in bf16: 1,234 parameters on every side, 5.00 GFLOP a pair. A step takes 2560.0 ms (0.500 TFLOP/s); "
        "its products alone at 2.000 TFLOP/s, as large ones have, 640.0 ms; the step takes 4.0 times that."
    )


@needs_lightly
@pytest.mark.parametrize("name", LOSSES)
def test_every_formulation_of_a_loss_has_the_same_value(losses, name):
    sizes = {key: size // 64 for key, size in losses.SIZES[name].items()}
    tensors = losses.inputs(name, **sizes)
    ours = losses.TWINBENCH[name](*tensors)
    torch.testing.assert_close(losses.TEXTBOOK[name](*tensors), ours, rtol=1e-4, atol=1e-5)
    if name == "moco_v2":
        return  # lightly fills its queue with numbers of its own
    theirs = losses.lightly_loss(name, tensors)(*tensors)
    theirs = 2 + 2 * theirs if name == "byol" else theirs
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_no_floor_does_more_products_than_the_loss(losses, name):
    sizes = {key: size // 64 for key, size in losses.SIZES[name].items()}
    counted = {}
    for side in ("twinbench", "floor"):
        with FlopCounterMode(display=False) as counter:
            losses.step_of(name, side, losses.inputs(name, **sizes))()
        counted[side] = counter.get_total_flops()
    assert counted["floor"] <= counted["twinbench"]
    n, d, k = (sizes.get(key, 0) for key in ("n", "d", "k"))
    expected = {
        "barlow_twins": 3 * 2 * n * d * d,
        "simclr": 2 * 2 * (2 * n) ** 2 * d,
        "moco_v2": 2 * 2 * n * k * d,
        "swav": 2 * 3 * 2 * n * k * d,
    }
    assert counted["floor"] == expected.get(name, 0)


@pytest.mark.programs
def test_a_measured_loss_becomes_a_table_between_the_markers(losses, tmp_path, capsys):
    readme = tmp_path / "README.md"
    shutil.copy(BENCHMARKS / "README.md", readme)
    sizes = {"n": 64, "d": 16}
    done = subprocess.run(
        [
            sys.executable,
            str(BENCHMARKS / "losses.py"),
            "--job",
            json.dumps({"name": "byol", "side": "twinbench", "sizes": sizes}),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    measured = {"twinbench": json.loads(done.stdout), "floor": losses.measure("byol", "floor", sizes)}
    rows = [
        {"name": "byol", "side": side, "sizes": sizes}
        | {key: [answer[key]] for key in ("milliseconds", "extra_mb")}
        for side, answer in measured.items()
    ]
    document = {"facts": losses.facts(), "device": "here", "repetitions": 1, "rows": rows}
    losses.publish(document, losses.render(document), "losses", tmp_path / "out.json", readme)
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == rows
    factor = measured["twinbench"]["milliseconds"] / measured["floor"]["milliseconds"]
    assert f"| {factor:.2f} " in readme.read_text().partition("<!-- begin losses -->")[2]
    assert "| byol | N=64, D=16 | twinbench |" in capsys.readouterr().out


def test_a_wrong_name_ends_with_code_2_and_the_right_ones():
    done = forks.run(BENCHMARKS / "losses.py", "--losses", "byol2", cwd=BENCHMARKS)
    assert done.returncode == 2
    assert "byol2" in done.stderr
    assert "nearest: byol\n" in done.stderr
    assert "barlow_twins, byol, moco_v2" in done.stderr
    assert "Traceback" not in done.stderr
