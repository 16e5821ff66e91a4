"""Both sides of the comparison of accuracies do the same work, trainings are kept, and differences are scipy's."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import nn

from twinbench.foundation.errors import InputError, RunFailure
from twinbench.pretraining.build import build_method, view_policies
from twinbench.pretraining.method import Progress
from twinbench.pretraining.optim import build_optimizer
from twinbench.pretraining.schedules import lr_factor

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
METHODS = ("barlow_twins", "simclr", "byol", "swav", "simsiam", "moco_v2")
needs_lightly = pytest.mark.skipif(
    importlib.util.find_spec("lightly") is None,
    reason="lightly is not installed (pip install -e '.[bench]')",
)


@pytest.fixture
def accuracy(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import accuracy

    return accuracy


def job(accuracy, method, side="twinbench", seed=0, **changes):
    budget = {"images": 64, "epochs": 2, "batch_size": 16, "precision": "fp32"}
    return accuracy.Job(method, side, seed, **{**budget, **changes})


def layers(module):
    return [each for each in module.modules() if isinstance(each, nn.Linear | nn.BatchNorm1d)]


@torch.no_grad()
def copy_head(ours, theirs):
    """Our weights into lightly's head. Biases, which one of the two may lack, become zero in both."""
    for mine, other in zip(layers(ours), layers(theirs), strict=True):
        assert type(mine) is type(other)
        if mine.weight is not None:
            other.weight.copy_(mine.weight)
        for bias in (mine.bias, other.bias):
            if bias is not None:
                bias.zero_()


def both_sides(accuracy, method):
    """Ours and lightly's with the same weights, in float64; in evaluation mode where batch statistics differ."""
    work = job(accuracy, method)
    ours = build_method(accuracy.recipe(work, work.image_set())).double()
    theirs = accuracy.build_peer(work).double()
    for mine, other in zip(ours.backbone.parameters(), theirs.backbone.parameters(), strict=True):
        assert torch.equal(mine, other)  # the same first weights
    copy_head(ours.projector, theirs.projection)
    if method in ("byol", "simsiam"):
        copy_head(ours.predictor, theirs.prediction)
    if method == "swav":
        copy_head(ours.prototypes, theirs.prototypes)
    if method == "byol":
        copy_head(ours.target_projector, theirs.slow[1])
    if method == "moco_v2":
        copy_head(ours.key_projector, theirs.slow[1])
        theirs.criterion.memory_bank.bank = ours.queue.clone()
    training = method not in ("simclr", "swav")
    return work, ours.train(training), theirs.train(training)


@needs_lightly
@pytest.mark.parametrize("method", METHODS)
def test_both_sides_have_the_same_gradient_and_take_the_same_first_step(accuracy, method, monkeypatch):
    work, ours, theirs = both_sides(accuracy, method)
    monkeypatch.setattr(type(theirs), "through", lambda self, batch, *parts: nn.Sequential(*parts)(batch))
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(16, 3, 32, 32, generator=generator, dtype=torch.float64) for _ in range(2)]
    progress = Progress(0, 8, 4)
    spec = accuracy.recipe(work, work.image_set()).optimizer
    optimizers = [
        build_optimizer(spec, ours.parameter_groups(spec.weight_decay), work.batch_size),
        accuracy.peer_optimizer(theirs, work)[0],
    ]
    ours.before_step(progress)
    theirs.before_step(0, 2)
    ours.loss(views, None, progress).total.backward()
    theirs.loss(*views).backward()
    scale = 4 if method == "byol" else 1
    compared = 0
    for (name, mine), other in zip(
        ours.backbone.named_parameters(), theirs.backbone.parameters(), strict=True
    ):
        # losses work in float32, whatever comes in
        error = (mine.grad - scale * other.grad).norm() / mine.grad.norm()
        assert error < 1e-4, name
        compared += 1
    assert compared > 20
    if method == "swav":
        return  # a first step of Adam follows the signs of a gradient, whose size may be nothing
    for optimizer in optimizers:
        optimizer.step()
    for mine, other in zip(ours.backbone.parameters(), theirs.backbone.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


@needs_lightly
@pytest.mark.parametrize("method", METHODS)
def test_the_rates_of_every_epoch_are_the_same(accuracy, method):
    work = job(accuracy, method, epochs=5)
    images = work.image_set()
    recipe = accuracy.recipe(work, images)
    optimizer, scheduler = accuracy.peer_optimizer(accuracy.build_peer(work), work)
    scale = 4 if method == "byol" else 1
    peak = recipe.optimizer.base_lr * work.batch_size / 256 * scale
    for epoch in range(5):
        rates = [group["lr"] for group in optimizer.param_groups]
        factor = lr_factor(recipe.schedule, 4 * epoch, 20, 4)
        assert rates[0] == pytest.approx(peak * factor)
        assert rates[1:] == ([pytest.approx(peak)] if method == "simsiam" else [])
        optimizer.step()
        scheduler.step()


@needs_lightly
@pytest.mark.parametrize("method", METHODS)
def test_both_sides_draw_the_same_views(accuracy, method):
    work = job(accuracy, method)
    images = work.image_set()
    transforms = accuracy.peer_loader(work, images).dataset._transform.transforms
    policies = view_policies(accuracy.recipe(work, images), images.image_size)
    assert len(policies) == len(transforms) == 2
    for policy, transform in zip(policies, transforms, strict=True):
        steps = {type(step).__name__: step for step in transform.transform.transforms}
        crop, jitter = steps["RandomResizedCrop"], steps["RandomApply"]
        assert (tuple(crop.size), crop.scale) == ((policy.size, policy.size), policy.crop_scale)
        assert getattr(crop.interpolation, "value", crop.interpolation) == policy.interpolation
        assert crop.ratio == pytest.approx(policy.crop_ratio)
        assert steps["RandomHorizontalFlip"].p == policy.flip
        assert jitter.p == policy.jitter
        for name in ("brightness", "contrast", "saturation"):
            strength = getattr(policy, name)
            assert getattr(jitter.transforms[0], name) == pytest.approx((1 - strength, 1 + strength))
        assert jitter.transforms[0].hue == pytest.approx((-policy.hue, policy.hue))
        assert steps["RandomGrayscale"].p == policy.grayscale
        assert steps["GaussianBlur"].prob == policy.blur == policy.solarize == 0
        assert tuple(steps["Normalize"].mean) == images.normalisation.mean


def row(job, **found):
    known = {"kNN": 40.0, "linear": 50.0, "seconds": 1.0, "device": "here", "commit": "abc"}
    return {**job.settings, **known, **found}


def test_finished_trainings_are_kept_and_only_the_others_are_made(accuracy, monkeypatch, tmp_path):
    jobs = [job(accuracy, method, side) for method in ("byol", "swav") for side in accuracy.SIDES]
    trained = []

    def run_fresh(script, document, environment):
        one = accuracy.Job(**document)
        trained.append(one)
        if one == jobs[2] and len(trained) == 3:
            raise RunFailure("the machine went away")
        return row(one, kNN=float(len(trained)))

    monkeypatch.setattr(accuracy, "run_fresh", run_fresh)
    with pytest.raises(RunFailure):
        accuracy.measure_all(jobs, tmp_path, at_once=1)
    assert trained == jobs[:3]
    rows = accuracy.measure_all(jobs, tmp_path, at_once=1)
    assert trained[3:] == jobs[2:]
    assert [each["kNN"] for each in rows] == [1.0, 2.0, 4.0, 5.0]
    assert accuracy.measure_all(jobs, tmp_path, at_once=2) == rows
    assert len(trained) == 5


@pytest.mark.parametrize(
    "change", [{"epochs": 3}, {"images": 128}, {"precision": "bf16"}, {"data_root": "x"}]
)
def test_trainings_of_another_budget_are_not_taken_for_these(accuracy, monkeypatch, tmp_path, change):
    monkeypatch.setattr(accuracy, "run_fresh", lambda script, document, _: row(accuracy.Job(**document)))
    accuracy.measure_all([job(accuracy, "byol")], tmp_path, at_once=1)
    with pytest.raises(InputError, match="this training had") as caught:
        accuracy.measure_all([job(accuracy, "byol", **change)], tmp_path, at_once=1)
    assert "--out another folder" in caught.value.next_step


def test_the_interval_is_scipys_of_the_paired_t_test(accuracy):
    ours, theirs = [50.0, 48.5, 51.0, 47.0], [49.0, 49.5, 49.2, 46.0]
    found = accuracy.Difference.of(ours, theirs)
    low, high = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))
    assert accuracy.Difference.of([1.0], [3.5]).text == "-2.5"


def test_the_table_has_differences_and_names_who_is_behind(accuracy):
    rows = [
        row(job(accuracy, method, side, seed), kNN=knn, linear=50.0 + seed)
        for method, side, values in (
            ("byol", "twinbench", (30.0, 31.0, 32.0)),
            ("byol", "lightly", (40.0, 41.1, 41.9)),
            ("simclr", "twinbench", (30.0, 31.0, 32.0)),
            ("simclr", "lightly", (20.0, 41.1, 41.9)),
        )
        for seed, knn in enumerate(values)
    ]
    known = dict.fromkeys(("machine", "python", "torch", "commit", "date", "command"), "")
    text = accuracy.render({"rows": rows, "device": "a processor", "facts": known})
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in text.splitlines()
        if line.startswith("| ")
    }
    # differences of -10, -10.1 and -9.9: the half width is 4.303 * 0.1 / sqrt(3)
    assert cells["byol"][:3] == ["31.0 ± 1.0", "41.0 ± 1.0", "-10.0 ± 0.2"]
    assert cells["byol"][5] == "+0.0 ± 0.0"
    assert "half width of the interval: byol by kNN." in text
    single = [each for each in rows if each["seed"] == 0]
    text = accuracy.render({"rows": single, "device": "a processor", "facts": known})
    assert "Behind" not in text
    assert "| -10.0 " in text


@pytest.mark.programs
@needs_lightly
def test_a_small_run_trains_both_sides_and_a_second_call_takes_what_is_there(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "accuracy.py"), "--methods", "simsiam", "--seeds", "1"]
    budget = ["--images", "64", "--epochs", "1", "--batch-size", "32", "--out", str(tmp_path)]
    first = subprocess.run([*command, *budget], capture_output=True, text=True, check=True)
    files = sorted(tmp_path.glob("*.json"))
    assert [file.name for file in files] == ["simsiam-lightly-0.json", "simsiam-twinbench-0.json"]
    for file in files:
        found = json.loads(file.read_text())
        assert 0 < found["kNN"] < 100
        assert 0 < found["linear"] < 100
        assert "data_root" not in found
    assert "| simsiam |" in first.stdout
    before = [file.stat().st_mtime_ns for file in files]
    second = subprocess.run([*command, *budget], capture_output=True, text=True, check=True)
    assert "2 of 2 trainings are in" in second.stderr
    assert [file.stat().st_mtime_ns for file in files] == before
    assert second.stdout.splitlines()[2:5] == first.stdout.splitlines()[2:5]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--methods", "simclr,byool"], ["'byool'", "nearest: byol"]),
        (["--seeds", "0"], ["must be 1 or more"]),
        (["--markdown", "no-such-file.md"], ["begin accuracy", "no-such-file.md"]),
        (["--data-root", "no-such-folder"], ["no-such-folder"]),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(accuracy, monkeypatch, capsys, arguments, expected):
    monkeypatch.setattr(accuracy, "run_fresh", lambda *_: pytest.fail("trained"))
    monkeypatch.setattr(accuracy, "require_lightly", lambda: None)
    monkeypatch.setattr(sys, "argv", ["accuracy.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        accuracy.run_script(accuracy.main)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    for text in expected:
        assert text in message
