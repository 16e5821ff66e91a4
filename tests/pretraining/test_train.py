"""The loop: resumable to the bit, guarded, and it learns."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import time
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

import twinbench.pretraining.train
from twinbench.data.catalogue import load_image_set
from twinbench.data.streaming import StreamedImages
from twinbench.encoders.encoder import Encoder
from twinbench.encoders.geometry import geometry
from twinbench.foundation.checkpoint import load_latest, save_checkpoint
from twinbench.foundation.documents import unsealed
from twinbench.foundation.errors import InputError, RunFailure
from twinbench.pretraining.batches import Batches, batch_rows, steps_in_epoch
from twinbench.pretraining.build import build_method, resolve, view_policies
from twinbench.pretraining.engine import Hardware, launch
from twinbench.pretraining.finite import LossWatch
from twinbench.pretraining.interrupt import Interrupted
from twinbench.pretraining.method import Progress, method_class, method_names
from twinbench.pretraining.recipe import OptimizerSpec, Recipe, ScheduleSpec
from twinbench.pretraining.train import pretrain, seconds_between_checkpoints, start_session

OPTIONS = {
    "barlow_twins": {"projector": [32, 32]},
    "simclr": {"projector": [32, 16]},
    "byol": {"projector": [32, 16], "predictor_hidden": 32, "tau_base": 0.9},
    "swav": {"projector": [32, 16], "prototypes": 12, "queue_length": 64, "queue_start_epoch": 1},
    "simsiam": {"projector": [32, 32], "predictor_hidden": 16},
    "moco_v2": {"projector": [32, 16], "queue_length": 128, "momentum": 0.9, "bn_splits": 2},
    "supervised": {"classes": 10},
}


@pytest.fixture(scope="module")
def image_set():
    return load_image_set("digit-scenes", limit={"train": 96, "val": 32, "test": 32})


def recipe(method: str, **changes) -> Recipe:
    values = {
        "method": method,
        "image_set": "digit-scenes",
        "backbone": {"name": "resnet10", "width": 8, "stem": "stride2"},
        "epochs": 2,
        "batch_size": 32,
        "optimizer": OptimizerSpec(name="sgd", base_lr=0.1),
        "schedule": ScheduleSpec(warmup_epochs=0.5),
        "options": OPTIONS.get(method, {}),
        **changes,
    }
    return Recipe(**values)


class Killed(Exception):
    pass


def kill_after(steps: int):
    calls = 0

    def report(fraction: float, text: str) -> None:
        nonlocal calls
        calls += 1
        if calls == steps:
            raise Killed

    return report


@pytest.mark.parametrize("method", sorted(OPTIONS))
def test_an_interrupted_run_ends_with_the_same_bits(method, image_set, tmp_path):
    whole = recipe(method)
    pretrain(whole, "hash", image_set, tmp_path / "whole")
    with pytest.raises(Killed):
        pretrain(whole, "hash", image_set, tmp_path / "killed", kill_after(4), checkpoint_seconds=0.0)
    state = load_latest(tmp_path / "killed" / "checkpoints")
    assert state is not None
    assert state["step"] == 4
    pretrain(whole, "hash", image_set, tmp_path / "killed")
    first, second = (Encoder.load(tmp_path / side / "encoder") for side in ("whole", "killed"))
    assert first.checksum == second.checksum
    for side in ("whole", "killed"):
        rows = [json.loads(row) for row in (tmp_path / side / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(6))
    diagnostics = [(tmp_path / side / "diagnostics.json").read_text() for side in ("whole", "killed")]
    assert diagnostics[0] == diagnostics[1]


def test_another_seed_gives_other_weights(image_set, tmp_path):
    for seed in (0, 1):
        pretrain(recipe("simclr", seed=seed), "hash", image_set, tmp_path / str(seed))
    assert Encoder.load(tmp_path / "0/encoder").checksum != Encoder.load(tmp_path / "1/encoder").checksum


@pytest.mark.numerics
def test_training_with_labels_learns_them(image_set, tmp_path, seed_offset, margin):
    """Of images that look the same in every epoch, so that few steps suffice to know them by heart."""
    long = recipe(
        "supervised",
        epochs=12,
        optimizer=OptimizerSpec(name="adamw", base_lr=0.03),
        views={"crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], "flip": 0.0},
        seed=seed_offset,
    )
    pretrain(long, "hash", image_set, tmp_path)
    losses = [json.loads(row)["loss"] for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    # Labels shuffled in every batch leave the loss where it was.
    margin.at_most("last losses, of the first", sum(losses[-3:]) / sum(losses[:3]), 0.5, broken=1.02)


def test_a_non_finite_loss_names_step_and_learning_rate(image_set, tmp_path):
    broken = recipe(
        "barlow_twins", optimizer=OptimizerSpec(name="sgd", base_lr=1e30), schedule=ScheduleSpec()
    )
    with pytest.raises(RunFailure) as stopped:
        pretrain(broken, "hash", image_set, tmp_path)
    assert re.fullmatch(r"step \d+, learning rate \d\.\d+e\+29", str(stopped.value.where))
    assert re.search(r"first tensor to go wrong: (output of|parameter) [a-z0-9_.]+$", stopped.value.what)
    assert not (tmp_path / "encoder").exists()


def nan_at(bad_step: int, monkeypatch):
    """SimSiam's loss is not a number at one step, and so are all its gradients."""
    plain = method_class("simsiam").loss

    def broken(self, views, labels, progress):
        loss = plain(self, views, labels, progress)
        return loss._replace(total=loss.total * (math.nan if progress.step == bad_step else 1.0))

    monkeypatch.setattr(method_class("simsiam"), "loss", broken)


@pytest.fixture
def deferred(monkeypatch):
    """Losses are read as on a GPU: before a row or a checkpoint is written."""
    watch = partial(LossWatch, each_step=False)
    monkeypatch.setattr(twinbench.pretraining.train, "LossWatch", watch)


@pytest.mark.parametrize("checkpoint_seconds", [None, 0.0])
def test_losses_that_wait_are_read_before_a_row_or_a_checkpoint(
    deferred, checkpoint_seconds, image_set, tmp_path, monkeypatch
):
    """Rows are due at steps 0, 3 and 5, the loss of step 2 is bad: a checkpoint that is due reads it in time."""
    nan_at(2, monkeypatch)
    monkeypatch.setattr(twinbench.pretraining.train, "wants_row", lambda step, total: step in (0, 3, 5))
    with pytest.raises(RunFailure) as stopped:
        pretrain(recipe("simsiam"), "hash", image_set, tmp_path, checkpoint_seconds=checkpoint_seconds)
    assert str(stopped.value.where).startswith("step 2, learning rate ")
    late = checkpoint_seconds is None
    found = ", looked for 1 step later: parameter backbone.conv1.weight" if late else ": the loss itself"
    assert stopped.value.what == f"the loss became nan; the first tensor to go wrong{found}"
    rows = [json.loads(row)["step"] for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [0]
    saved = load_latest(tmp_path / "checkpoints")
    assert (saved and saved["step"]) == (None if late else 2)
    assert not (tmp_path / "encoder").exists()


def test_a_signal_saves_nothing_that_a_loss_not_yet_read_has_damaged(
    deferred, image_set, tmp_path, monkeypatch
):
    nan_at(1, monkeypatch)
    monkeypatch.setattr(twinbench.pretraining.train, "wants_row", lambda step, total: step in (0, 5))

    def report(fraction, text):
        if fraction == 2 / 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(RunFailure, match=r"looked for 2 steps later") as stopped:
        pretrain(recipe("simsiam"), "hash", image_set, tmp_path, report)
    assert not isinstance(stopped.value, Interrupted)
    assert load_latest(tmp_path / "checkpoints") is None


def test_saving_takes_a_hundredth_of_the_time_at_most(image_set, tmp_path, monkeypatch):
    assert seconds_between_checkpoints(0.05) == 30
    assert seconds_between_checkpoints(2.8) == pytest.approx(280)
    assert seconds_between_checkpoints(2.8, least=0.0) == 0, "each step"
    saved = []
    monkeypatch.setattr(
        twinbench.pretraining.train,
        "_save",
        lambda folder, step, *state: saved.append(step) or time.sleep(0.5),
    )
    pretrain(recipe("simsiam"), "hash", image_set, tmp_path, checkpoint_seconds=1e-6)
    assert saved == [1], "half a second, and then none for fifty"


def test_a_last_update_that_breaks_parameters_leaves_no_checkpoint_and_no_encoder(
    image_set, tmp_path, monkeypatch
):
    """The loss of a step is computed before its update, so a finite one does not vouch for what is saved."""

    def broken(self, progress):
        if progress.step == 5:
            self.backbone.conv1.weight.data[0, 0, 0, 0] = math.inf

    monkeypatch.setattr(method_class("simsiam"), "after_step", broken)
    with pytest.raises(RunFailure, match=r"parameter backbone\.conv1\.weight is not finite") as stopped:
        pretrain(recipe("simsiam"), "hash", image_set, tmp_path, checkpoint_seconds=0.0)
    assert stopped.value.where == "after step 6"
    assert load_latest(tmp_path / "checkpoints")["step"] == 5
    assert not (tmp_path / "encoder").exists()


def test_losses_that_wait_give_the_same_run(deferred, image_set, tmp_path, monkeypatch):
    lines = []
    pretrain(recipe("simsiam"), "hash", image_set, tmp_path / "waited", lambda _, line: lines.append(line))
    monkeypatch.setattr(twinbench.pretraining.train, "LossWatch", LossWatch)
    pretrain(recipe("simsiam"), "hash", image_set, tmp_path / "read")
    waited, read = (tmp_path / side for side in ("waited", "read"))
    assert Encoder.load(waited / "encoder").checksum == Encoder.load(read / "encoder").checksum
    losses = [json.loads(row)["loss"] for row in (waited / "metrics.jsonl").read_text().splitlines()]
    assert [line.split("loss ")[1].split()[0] for line in lines] == [f"{loss:.4g}" for loss in losses]


def test_the_ranks_ask_each_other_once_a_step(deferred, image_set, tmp_path, monkeypatch):
    """With several of them the answer is waited for; whatever else is asked is asked at a row or a checkpoint."""
    engine = launch(Hardware(), "fp32")
    asked, plain = [], engine.any_rank_each
    monkeypatch.setattr(engine, "any_rank_each", lambda *flags: asked.append(len(flags)) or plain(*flags))
    monkeypatch.setattr(twinbench.pretraining.train, "wants_row", lambda step, total: step == 0)
    at = []
    pretrain(recipe("simsiam"), "hash", image_set, tmp_path, lambda *_: at.append(len(asked)), engine=engine)
    assert [after - before for before, after in pairwise(at)] == 5 * [1]


def test_a_loss_that_is_not_read_yet_is_not_shown(deferred, image_set, tmp_path, monkeypatch):
    with pytest.raises(Killed):
        pretrain(recipe("simsiam"), "hash", image_set, tmp_path, kill_after(2), checkpoint_seconds=0.0)
    monkeypatch.setattr(twinbench.pretraining.train, "wants_row", lambda step, total: step == 4)
    lines = []
    pretrain(recipe("simsiam"), "hash", image_set, tmp_path, lambda _, line: lines.append(line))
    shown = [line.split("loss ")[1].split()[0] for line in lines]
    assert shown[:2] == ["-", "-"]
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 4
    assert shown[2:] == 2 * [f"{last['loss']:.4g}"]


def test_constant_embeddings_end_as_collapsed(image_set, tmp_path, monkeypatch):
    def constant(self, view):
        return torch.ones(len(view), 8)

    monkeypatch.setattr(method_class("simsiam"), "embed", constant)
    summary = pretrain(recipe("simsiam"), "hash", image_set, tmp_path)
    assert summary.status == "collapsed"
    assert "1/sqrt(d)" in summary.reason


def test_random_init_is_the_backbone_as_built(image_set, tmp_path):
    untouched = recipe("random_init", epochs=0, optimizer=None)
    pretrain(untouched, "hash", image_set, tmp_path)
    expected = build_method(untouched).backbone.state_dict()
    for name, tensor in Encoder.load(tmp_path / "encoder").backbone.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_every_epoch_is_a_fresh_permutation_without_repeats():
    epochs = [
        torch.cat([batch_rows(96, 32, 0, Progress(step, 6, 3)) for step in range(first, first + 3)])
        for first in (0, 3)
    ]
    for rows in epochs:
        assert sorted(rows.tolist()) == list(range(96))
    assert not torch.equal(*epochs)


def test_a_batch_larger_than_the_set_names_one_that_works():
    with pytest.raises(InputError, match="set batch_size to 100 or less") as error:
        steps_in_epoch(recipe("simclr", batch_size=128), 100, "somewhere")
    assert error.value.option == "batch_size=64"


def test_changes_of_views_apply_to_each_or_one_by_one():
    defaults = method_class("byol").default_views(32)
    everywhere = view_policies(recipe("byol", views={"grayscale": 0.5}), 32)
    assert [p.grayscale for p in everywhere] == [0.5, 0.5]
    assert everywhere[1].solarize == defaults[1].solarize
    crops = view_policies(recipe("swav", views=[{}, {}, {"size": 16, "crop_scale": [0.1, 0.4]}]), 32)
    assert [p.size for p in crops] == [32, 32, 16]


def test_a_resolved_recipe_writes_out_every_default():
    resolved = resolve(recipe("barlow_twins"), 32, "print")
    assert resolved.options["lambd"] == 0.0051
    assert isinstance(resolved.views, list)
    assert resolved.views[1]["solarize"] == 0.2
    assert resolve(resolved, 32, "print") == resolved


def test_the_six_methods_and_both_reference_rows_are_registered():
    assert set(OPTIONS) | {"random_init"} <= set(method_names())


@pytest.mark.numerics
@pytest.mark.parametrize("method", ["byol", "simsiam", "supervised"])
def test_micro_batches_give_the_mean_of_their_gradients(method, image_set, seed_offset, margin):
    """Against the two halves of the batch, each on its own: what accumulation promises."""
    whole = recipe(method, accumulate=2, batch_size=32, seed=seed_offset)
    session = start_session(whole, build_method(whole), image_set, launch(Hardware(), "fp32"))
    batch = next(session.batches.from_step(0))
    assert [len(micro.labels) for micro in batch] == [16, 16]
    loss = session.gradients(batch, session.progress(0))

    halves, losses = [], []
    for micro in batch:
        alone = build_method(whole).to(memory_format=torch.channels_last).train()
        labels = micro.labels if alone.needs_labels else None
        part = alone.loss(micro.views, labels, session.progress(0)).total
        part.backward()
        losses.append(part.detach())
        halves.append({name: p.grad for name, p in alone.named_parameters() if p.grad is not None})
    torch.testing.assert_close(loss.total, torch.stack(losses).mean())
    apart = [
        (parameter.grad - (halves[0][name] + halves[1][name]) / 2).norm()
        / parameter.grad.norm().clamp_min(1e-6)
        for name, parameter in session.method.named_parameters()
        if parameter.grad is not None
    ]
    margin.at_most("relative difference of gradients", torch.stack(apart).max().item(), 1e-4)


def test_micro_batches_see_the_views_of_the_whole_batch(image_set):
    def batch(accumulate: int):
        chosen = recipe("byol", accumulate=accumulate)
        engine = launch(Hardware(), "fp32")
        return next(Batches(chosen, view_policies(chosen, 32), image_set, engine).from_step(1))

    (whole,), parts = batch(1), batch(4)
    assert len(parts) == 4
    for i, part in enumerate(parts):
        assert torch.equal(whole.labels[i::4], part.labels)
        for view, own in zip(whole.views, part.views, strict=True):
            torch.testing.assert_close(view[i::4], own)


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="torch's compiler needs vectors, which ATen has been told to leave unused",
)
@pytest.mark.numerics
def test_a_compiled_network_computes_the_same(image_set, tmp_path, seed_offset, margin):
    """One step through the real compiler."""
    small = recipe("simsiam", epochs=1, batch_size=96, schedule=ScheduleSpec(), seed=seed_offset)
    pretrain(small, "hash", image_set, tmp_path / "plain")
    engine = launch(Hardware(compile=True), "fp32")
    pretrain(small, "hash", image_set, tmp_path / "compiled", engine=engine)
    plain, compiled = (Encoder.load(tmp_path / side / "encoder") for side in ("plain", "compiled"))
    untrained, expected = build_method(small).backbone.state_dict(), plain.backbone.state_dict()
    margin.close("difference", compiled.backbone.state_dict(), expected, rtol=1e-3, atol=1e-4)
    moved = expected["conv1.weight"] - untrained["conv1.weight"]
    margin.at_least("largest move of a weight", moved.abs().max().item(), 1e-3)


@pytest.mark.numerics
def test_collapse_is_measured_during_training_and_announced(
    image_set, tmp_path, monkeypatch, seed_offset, margin
):
    said = []
    four = recipe("simclr", epochs=4, seed=seed_offset)
    pretrain(four, "hash", image_set, tmp_path / "healthy", say=said.append)
    rows = [json.loads(row) for row in (tmp_path / "healthy/metrics.jsonl").read_text().splitlines()]
    spreads = [row["spread"] for row in rows]
    margin.at_least("least spread", min(spreads), 0.1)
    margin.at_most("largest spread", max(spreads), 1.5)
    margin.at_least("least effective rank", min(row["effective_rank"] for row in rows), 2)
    assert not any("COLLAPSING" in line for line in said)

    monkeypatch.setattr(method_class("simclr"), "embed", lambda self, view: torch.ones(len(view), 8))
    pretrain(four, "hash", image_set, tmp_path / "constant", say=said.append)
    assert sum("COLLAPSING at step 0: embedding std" in line for line in said) == 1


def test_tensorboard_gets_what_the_log_gets(image_set, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pretrain(recipe("simclr"), "hash", image_set, tmp_path, tensorboard=True)
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, pytest.approx(event.value)) for event in events.Scalars("loss")] == [
        (row["step"], row["loss"]) for row in rows
    ]


def test_the_launch_line_states_the_resolved_learning_rates(image_set, tmp_path):
    said = []
    twins = recipe(
        "barlow_twins",
        optimizer=OptimizerSpec(name="lars", base_lr=0.2),
        options={**OPTIONS["barlow_twins"], "norm_lr_scale": 0.024},
    )
    pretrain(twins, "hash", image_set, tmp_path, say=said.append)
    assert "peak learning rate weights 0.025, norm_and_bias 0.0006" in said[0], (
        "0.2 * 32 / 256, and 0.024 of it"
    )


def test_method_randomness_is_a_function_of_the_step(image_set, tmp_path, monkeypatch):
    """A method that draws from the global generators also resumes to the same bits."""
    plain = method_class("simclr").loss

    def noisy(self, views, labels, progress):
        noise = torch.rand(1).item() + random.random() + np.random.rand()
        return plain(self, [view + 0.1 * noise for view in views], labels, progress)

    monkeypatch.setattr(method_class("simclr"), "loss", noisy)
    pretrain(recipe("simclr"), "hash", image_set, tmp_path / "whole")
    with pytest.raises(Killed):
        pretrain(recipe("simclr"), "hash", image_set, tmp_path / "cut", kill_after(4), checkpoint_seconds=0.0)
    torch.rand(7)
    pretrain(recipe("simclr"), "hash", image_set, tmp_path / "cut")
    whole, cut = (Encoder.load(tmp_path / side / "encoder") for side in ("whole", "cut"))
    assert whole.checksum == cut.checksum


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pictures of several sizes, as files."""
    root = tmp_path_factory.mktemp("photos")
    images = load_image_set("digit-scenes", limit={"train": 48}).split("train").images
    for index, image in enumerate(images):
        folder = root / "train" / str(index % 4)
        folder.mkdir(parents=True, exist_ok=True)
        side = (32 + index % 5, 40 - index % 7)
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize(side).save(folder / f"{index}.png")
    return root


def test_streamed_images_train_resume_and_count_what_is_corrupt(photos, tmp_path):
    def streamed(corrupt="refuse"):
        return load_image_set(f"folder:{photos}", image_size=32, stream=True, corrupt=corrupt)

    assert isinstance(streamed().split("train").images, StreamedImages)
    small = recipe("byol", image_set="photos", batch_size=16, epochs=3)
    pretrain(small, "hash", streamed(), tmp_path / "whole")
    with pytest.raises(Killed):
        pretrain(small, "hash", streamed(), tmp_path / "cut", kill_after(3), checkpoint_seconds=0.0)
    summary = pretrain(small, "hash", streamed(), tmp_path / "cut")
    whole, cut = (Encoder.load(tmp_path / side / "encoder") for side in ("whole", "cut"))
    assert whole.checksum == cut.checksum
    assert summary.skipped_images == 0
    (partial,) = (remark for remark in summary.remarks if "counted here" in remark)
    assert partial.endswith("as they were met from step 3 on")

    broken = sorted((photos / "train" / "2").iterdir())[-1]
    content = broken.read_bytes()
    try:
        broken.write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError, match="cannot decode") as refused:
            pretrain(small, "hash", streamed(), tmp_path / "refused")
        assert refused.value.where == broken
        assert pretrain(small, "hash", streamed("skip"), tmp_path / "skipped").skipped_images == 1
    finally:
        broken.write_bytes(content)


def test_measuring_collapse_leaves_the_training_alone(image_set, tmp_path, monkeypatch):
    pretrain(recipe("byol"), "hash", image_set, tmp_path / "probed")
    monkeypatch.setattr(twinbench.pretraining.train, "wants_probe", lambda step, total: False)
    pretrain(recipe("byol"), "hash", image_set, tmp_path / "alone")
    probed, alone = (Encoder.load(tmp_path / side / "encoder") for side in ("probed", "alone"))
    assert probed.checksum == alone.checksum
    assert "spread" not in (tmp_path / "alone/metrics.jsonl").read_text()


def test_comparing_embeddings_leaves_the_training_alone(image_set, tmp_path, monkeypatch):
    pretrain(recipe("moco_v2"), "hash", image_set, tmp_path / "compared")
    monkeypatch.setattr(twinbench.pretraining.train, "_compared", lambda *arguments: None)
    pretrain(recipe("moco_v2"), "hash", image_set, tmp_path / "alone")
    compared, alone = (Encoder.load(tmp_path / side / "encoder") for side in ("compared", "alone"))
    assert compared.checksum == alone.checksum
    rows = [
        [json.loads(row) for row in (tmp_path / side / "metrics.jsonl").read_text().splitlines()]
        for side in ("compared", "alone")
    ]
    assert [row | {"images_per_second": 0} for row in rows[0]] == [
        row | {"images_per_second": 0} for row in rows[1]
    ]
    documents = [
        unsealed((tmp_path / side / "diagnostics.json").read_text()) for side in ("compared", "alone")
    ]
    assert documents[0].pop("embeddings")["images"] == 32
    assert documents[1].pop("embeddings") is None
    assert documents[0] == documents[1]


def test_embeddings_are_compared_on_the_views_of_the_protocol(image_set, tmp_path):
    trained = recipe("simclr", seed=3)
    method = build_method(resolve(trained, image_set.image_size, image_set.fingerprint))
    method.eval()
    images, size = image_set.split("val").images, image_set.image_size
    expected = geometry(method.embed, images, size, image_set.normalisation, 3, torch.device("cpu"))
    found = twinbench.pretraining.train._compared(method, images, size, image_set, 3)
    assert found == expected
    for without in ("supervised", "random_init"):
        assert not build_method(recipe(without)).has_embeddings
    assert all(build_method(recipe(name)).has_embeddings for name in OPTIONS if name != "supervised")


def test_what_a_run_took_has_all_its_parts(image_set, tmp_path):
    with pytest.raises(Killed):
        pretrain(
            recipe("simclr"), "hash", image_set, tmp_path / "killed", kill_after(4), checkpoint_seconds=0.0
        )
    state = load_latest(tmp_path / "killed" / "checkpoints")
    assert state is not None
    assert state["spent"]["seconds"] > 0
    state["spent"]["seconds"] = 5000.0
    save_checkpoint(tmp_path / "killed" / "checkpoints", 5, state)
    summary = pretrain(recipe("simclr"), "hash", image_set, tmp_path / "killed")
    assert summary.seconds > 5000
    assert (summary.device_type, summary.ranks, summary.threads) == ("cpu", 1, torch.get_num_threads())
    assert (summary.energy_joules is None) == bool(summary.energy_unknown)


def test_a_signal_in_the_last_step_is_heeded_too(image_set, tmp_path, monkeypatch):
    plain = method_class("simsiam").after_step

    def signalled(self, progress):
        plain(self, progress)
        if progress.step == progress.total_steps - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(method_class("simsiam"), "after_step", signalled)
        with pytest.raises(Interrupted, match="SIGTERM after step 6"):
            pretrain(recipe("simsiam"), "hash", image_set, tmp_path / "stopped")
    assert not (tmp_path / "stopped/encoder").exists()
    for side in ("stopped", "whole"):
        pretrain(recipe("simsiam"), "hash", image_set, tmp_path / side)
    stopped, whole = (Encoder.load(tmp_path / side / "encoder") for side in ("stopped", "whole"))
    assert stopped.checksum == whole.checksum


def test_a_loss_that_micro_batches_would_change_is_refused(image_set, tmp_path):
    with pytest.raises(InputError, match="compares the images of a batch"):
        pretrain(recipe("simclr", accumulate=2), "hash", image_set, tmp_path)
