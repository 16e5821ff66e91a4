"""A GPU trains as the CPU does, in every precision, without waiting between two rows of the log."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import twinbench.pretraining.train
from tests.pretraining.test_train import OPTIONS, Killed, kill_after
from twinbench.data.views import RandomViews
from twinbench.encoders.encoder import Encoder
from twinbench.pretraining.build import build_method
from twinbench.pretraining.engine import Hardware, launch
from twinbench.pretraining.method import Progress
from twinbench.pretraining.optim import build_optimizer
from twinbench.pretraining.recipe import OptimizerSpec, Recipe
from twinbench.pretraining.train import pretrain

pytestmark = pytest.mark.gpu

METHODS = sorted(OPTIONS)
SGD = OptimizerSpec(name="sgd", base_lr=0.04)
OPTIMIZERS = {
    "barlow_twins": OptimizerSpec(name="lars", base_lr=0.2, weight_decay=1e-3),
    "swav": OptimizerSpec(name="adamw", base_lr=0.002, weight_decay=1e-3),
}


def recipe(method: str, **changes) -> Recipe:
    """Six steps of 64 images; small rates, so that rounding is not amplified much."""
    values = {
        "method": method,
        "image_set": "digit-scenes",
        "backbone": {"name": "resnet10", "width": 8, "stem": "stride2"},
        "epochs": 2,
        "batch_size": 64,
        "optimizer": SGD,
        "options": OPTIONS[method],
        **changes,
    }
    return Recipe(**values)


def trained(folder) -> dict[str, Tensor]:
    return Encoder.load(folder / "encoder").backbone.state_dict()


def losses(folder) -> list[float]:
    return [json.loads(row)["loss"] for row in (folder / "metrics.jsonl").read_text().splitlines()]


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Of two networks' parameters, as one vector each."""
    squares = [
        (a[name].double() - b[name].double()).square().sum() for name in a if "num_batches" not in name
    ]
    return float(torch.stack(squares).sum().sqrt())


@pytest.mark.parametrize("method", METHODS)
def test_losses_and_updates_are_those_of_the_cpu_in_double_precision(gpu, method):
    """Three steps with every hook, optimizers of all three kinds."""

    def three_steps(device: torch.device) -> tuple[list[float], Tensor]:
        made = build_method(recipe(method)).double().to(device).train()
        spec = OPTIMIZERS.get(method, SGD)
        optimizer = build_optimizer(spec, made.parameter_groups(spec.weight_decay), 64)
        generator, values = torch.Generator().manual_seed(0), []
        for step in range(3):
            views = [
                torch.randn(64, 3, 32, 32, dtype=torch.float64, generator=generator).to(device)
                for _ in range(1 if method == "supervised" else 2)
            ]
            labels, progress = torch.arange(64, device=device) % 10, Progress(step, 3, 1)
            made.before_step(progress)
            optimizer.zero_grad(set_to_none=True)
            loss = made(views, labels, progress).total
            loss.backward()
            made.before_optimizer(progress)
            optimizer.step()
            made.after_step(progress)
            values.append(loss.item())
        return values, torch.cat([p.detach().cpu().flatten() for p in made.parameters()])

    ours, theirs = three_steps(gpu), three_steps(torch.device("cpu"))
    assert ours[0] == pytest.approx(theirs[0], rel=1e-8)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("method", METHODS)
def test_a_training_ends_where_that_of_the_cpu_does(gpu, method, image_set, tmp_path, without_gpu):
    engine = launch(Hardware(), "fp32")
    assert engine.device.type == gpu.type
    pretrain(recipe(method), "hash", image_set, tmp_path / "gpu", engine=engine)
    with without_gpu():
        pretrain(recipe(method), "hash", image_set, tmp_path / "cpu")
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-2)
    start, end = build_method(recipe(method)).backbone.state_dict(), trained(tmp_path / "cpu")
    assert distance(trained(tmp_path / "gpu"), end) < 0.05 * distance(start, end)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_starts_with_the_loss_of_full_precision_and_trains(
    gpu, method, precision, image_set, tmp_path
):
    if gpu.type == "cpu" and precision == "fp16":
        pytest.skip("fp16 needs a GPU")
    for chosen in ("fp32", precision):
        pretrain(recipe(method, precision=chosen), "hash", image_set, tmp_path / chosen)
    full, half = losses(tmp_path / "fp32"), losses(tmp_path / precision)
    assert half[0] == pytest.approx(full[0], rel=0.05)
    start = build_method(recipe(method)).backbone.state_dict()
    assert distance(start, trained(tmp_path / precision)) > 0


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_training_goes_on_to_where_it_would_have_ended(gpu, method, image_set, tmp_path):
    pretrain(recipe(method), "hash", image_set, tmp_path / "whole")
    with pytest.raises(Killed):
        pretrain(recipe(method), "hash", image_set, tmp_path / "cut", kill_after(4), checkpoint_seconds=0.0)
    pretrain(recipe(method), "hash", image_set, tmp_path / "cut")
    start, end = build_method(recipe(method)).backbone.state_dict(), trained(tmp_path / "whole")
    assert distance(trained(tmp_path / "cut"), end) < 0.05 * distance(start, end)
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=1e-2)


@pytest.fixture
def forbid_waiting(gpu) -> Callable[[bool], None]:
    """Makes every operation that waits for the GPU an error; does nothing without one."""

    def forbid(on: bool) -> None:
        if gpu.type == "cuda":
            torch.cuda.set_sync_debug_mode("error" if on else "default")

    yield forbid
    forbid(False)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_no_step_between_two_rows_waits_for_the_gpu(
    gpu, method, precision, image_set, tmp_path, monkeypatch, forbid_waiting
):
    """Rows at the first and the last of twelve steps, views for two steps at a time.

    SwAV's queue begins at step 3 and is full from step 4 on.
    """
    long = recipe(method, epochs=4, precision=precision)
    monkeypatch.setattr(twinbench.pretraining.train, "wants_row", lambda step, total: step in (0, total - 1))
    monkeypatch.setattr(RandomViews, "_steps_at_once", lambda self, first: 2)
    seen = []

    def report(fraction: float, text: str) -> None:
        seen.append(round(12 * fraction))
        if seen[-1] == 4:
            forbid_waiting(True)
        if seen[-1] == 11:
            forbid_waiting(False)

    pretrain(long, "hash", image_set, tmp_path, report)
    assert seen == list(range(1, 13))
    assert len(losses(tmp_path)) == 2


@pytest.mark.usefixtures("full_precision")
def test_a_compiled_network_trains_as_it_does_uncompiled(gpu, image_set, tmp_path):
    if gpu.type == "cpu":
        pytest.skip("tests/pretraining compiles for the CPU")
    for side, hardware in (("plain", Hardware()), ("compiled", Hardware(compile=True))):
        engine = launch(hardware, "fp32")
        pretrain(recipe("simsiam"), "hash", image_set, tmp_path / side, engine=engine)
    start, end = build_method(recipe("simsiam")).backbone.state_dict(), trained(tmp_path / "plain")
    assert distance(trained(tmp_path / "compiled"), end) < 0.1 * distance(start, end)
