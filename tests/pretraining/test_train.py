"""The loop: resumable to the bit, guarded, and it learns."""

from __future__ import annotations

import json

import pytest
import torch

from data.errors import InputError, RunFailure
from data.image_sets import load_image_set
from pretraining.build import build_method, resolve, view_policies
from pretraining.checkpoint import load_latest
from pretraining.encoder import Encoder
from pretraining.method import Progress, method_class, method_names
from pretraining.recipe import OptimizerSpec, Recipe, ScheduleSpec
from pretraining.train import batch_rows, pretrain, steps_in_epoch

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


def test_training_with_labels_learns_them(image_set, tmp_path):
    long = recipe("supervised", epochs=12, optimizer=OptimizerSpec(name="adamw", base_lr=0.03))
    pretrain(long, "hash", image_set, tmp_path)
    losses = [json.loads(row)["loss"] for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_a_non_finite_loss_names_step_and_learning_rate(image_set, tmp_path):
    broken = recipe(
        "barlow_twins", optimizer=OptimizerSpec(name="sgd", base_lr=1e30), schedule=ScheduleSpec()
    )
    with pytest.raises(RunFailure, match=r"step \d+, learning rate \d\.\d+e\+29"):
        pretrain(broken, "hash", image_set, tmp_path)
    assert not (tmp_path / "encoder").exists()


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
    with pytest.raises(InputError, match="batch_size=64"):
        steps_in_epoch(recipe("simclr", batch_size=128), 100, "somewhere")


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
