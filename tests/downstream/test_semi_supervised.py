import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from twinbench.data.catalogue import load_image_set
from twinbench.data.image_sets import Split
from twinbench.downstream.features import FeatureStore
from twinbench.downstream.label_lists import LabelList
from twinbench.downstream.protocol import EvaluationContext, protocol
from twinbench.downstream.semi_supervised import (
    FineTuning,
    PublishedFineTuning,
    labelled_subset,
    lr_factor,
)
from twinbench.downstream.views import training_views
from twinbench.foundation.errors import InputError, RunFailure

SHORT = FineTuning("semi-test/finetune-v1", fraction=0.5, steps=30)
# half of 360 images are too few for the published 0.5
HALF = PublishedFineTuning("semi-test/paper-v1", fraction=0.5, epochs=25, head_lr=0.1)


def unbalanced_labels():
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate((1000, 250, 40, 1))])
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize(("fraction", "counts"), [(0.01, [10, 2, 1, 1]), (0.1, [100, 25, 4, 1])])
def test_every_class_gives_its_share_and_at_least_one(fraction, counts):
    labels = unbalanced_labels()
    chosen = labelled_subset(labels, fraction, seed=0)
    assert torch.bincount(labels[chosen]).tolist() == counts
    assert len(chosen.unique()) == len(chosen)


def test_the_small_list_is_part_of_the_large_one():
    labels = unbalanced_labels()
    small, large = labelled_subset(labels, 0.01, 0), labelled_subset(labels, 0.1, 0)
    assert set(small.tolist()) < set(large.tolist())


def test_the_lists_never_change():
    labels = unbalanced_labels()
    torch.manual_seed(123)
    assert torch.equal(labelled_subset(labels, 0.1, 0), labelled_subset(labels, 0.1, 0))
    # A different draw is a different protocol and needs a new version.
    assert labelled_subset(torch.arange(300) % 3, 0.01, 0).tolist() == [4, 65, 105]


def test_images_without_label_are_never_drawn():
    labels = unbalanced_labels()
    labels[::2] = -1
    for seed in (0, 1):
        assert (labels[labelled_subset(labels, 0.1, seed)] >= 0).all()


def test_every_seed_draws_a_share_of_its_own_of_the_same_size():
    labels = unbalanced_labels()
    drawn = {seed: labelled_subset(labels, 0.1, seed) for seed in (0, 1, 2)}
    for chosen in drawn.values():
        assert torch.bincount(labels[chosen]).tolist() == [100, 25, 4, 1]
    assert torch.equal(drawn[0], labelled_subset(labels, 0.1, 0))
    pairs = [(0, 1), (0, 2), (1, 2)]
    # two shares of a tenth have about a tenth of one of them in common: 13 of 130
    common = [len(set(drawn[a].tolist()) & set(drawn[b].tolist())) for a, b in pairs]
    assert all(count < 40 for count in common)
    assert set(labelled_subset(labels, 0.01, 1).tolist()) < set(drawn[1].tolist())


@pytest.mark.parametrize("chosen", [SHORT, HALF])
def test_the_labelled_images_are_those_that_the_seed_draws(encoder, image_set, monkeypatch, chosen):
    asked = []

    def spy(labels, fraction, seed):
        asked.append(seed)
        return labelled_subset(labels, fraction, seed)[:4]

    monkeypatch.setattr("twinbench.downstream.semi_supervised.labelled_subset", spy)
    short = {"epochs": 1} if chosen is HALF else {"steps": 1}
    for seed in (3, 4):
        context = EvaluationContext(image_set, FeatureStore(None), seed=seed)
        replace(chosen, **short).evaluate(encoder, context)
    assert asked == [3, 4]


def test_learning_rate_drops_after_three_and_four_fifths():
    factors = [lr_factor(step, 20) for step in range(20)]
    assert factors == pytest.approx([1.0] * 12 + [0.2] * 4 + [0.04] * 4)


@pytest.mark.numerics
@pytest.mark.parametrize("chosen", [SHORT, HALF])
def test_fine_tuning_learns_repeats_itself_and_leaves_the_encoder_alone(
    encoder, image_set, chosen, seed_offset, margin
):
    before = {name: tensor.clone() for name, tensor in encoder.backbone.state_dict().items()}
    results = []
    for _ in range(2):
        state = torch.get_rng_state()
        context = EvaluationContext(image_set, FeatureStore(None), seed=seed_offset + 3)
        results.append(chosen.evaluate(encoder, context))
        assert torch.equal(torch.get_rng_state(), state)
    assert results[0] == results[1]
    margin.at_least("top-1", results[0][0].value, 60, broken=32)
    assert results[0][0].n == 90
    assert not encoder.backbone.training
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_unlabelled_test_images_do_not_count(encoder, context, image_set):
    test = image_set.split("test")
    image_set.splits["test"] = Split(test.images, torch.where(torch.arange(90) < 30, test.labels, -1))
    context.progress = (fractions := []).append
    (top1,) = protocol("semi-1pct/finetune-v2").evaluate(encoder, context)
    assert top1.n == 30
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_estimate_counts_training_three_times(image_set):
    assert SHORT.forward_passes(image_set) == 3 * 30 * 150 + 90
    assert HALF.forward_passes(image_set) == 3 * 25 * 180 + 90


@pytest.mark.parametrize("name", ["semi-1pct/paper-v3", "semi-10pct/paper-v3"])
def test_the_published_recipe_drops_after_epochs_12_and_16(name):
    chosen = protocol(name)
    steps_per_epoch = 7
    factors = [lr_factor(epoch * steps_per_epoch, chosen.epochs * steps_per_epoch) for epoch in range(20)]
    assert [chosen.head_lr * f for f in factors] == pytest.approx([0.5] * 12 + [0.1] * 4 + [0.02] * 4)


def write_colours(root):
    rng = np.random.default_rng(0)
    for split, n in (("train", 40), ("test", 5)):
        for channel, name in enumerate(("red", "green")):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 160, (20, 24, 3), dtype=np.uint8)
                pixels[..., channel] += 60
                Image.fromarray(pixels).save(root / split / name / f"{name}_{i}.png")


def test_a_list_says_what_is_labelled_wherever_val_was_taken_from(encoder, tmp_path, monkeypatch):
    """The list names every fourth image, of which some are in val, since the set has no validation images."""
    write_colours(tmp_path / "set")
    image_set = load_image_set(f"folder:{tmp_path / 'set'}", image_size=16, stream=True)
    names = sorted(f"{name}_{i}.png" for name in ("red", "green") for i in range(0, 40, 4))
    held_out = image_set.split("val").images
    assert set(names) & {held_out.path(row).name for row in range(len(held_out))}
    (tmp_path / "list.txt").write_text("\n".join(names))
    seen = set()

    def spy(images, rows, steps, *others):
        seen.update(images.path(row).name for step in range(steps) for row in rows(step).tolist())
        return training_views(images, rows, steps, *others)

    monkeypatch.setattr("twinbench.downstream.semi_supervised.training_views", spy)
    context = EvaluationContext(
        image_set, FeatureStore(None), label_list=LabelList(tmp_path / "list.txt", own=True)
    )
    (top1,) = HALF.evaluate(encoder, context)
    assert seen == set(names)
    assert top1.n == 10
    digest = hashlib.sha256((tmp_path / "list.txt").read_bytes()).hexdigest()
    assert context.details["labels"] == {"source": f"own list, SHA-256 {digest}", "images": 20}


def test_without_a_list_the_labels_are_a_stratified_share_of_train_and_val(encoder, image_set):
    context = EvaluationContext(image_set, FeatureStore(None), seed=7)
    replace(HALF, epochs=1).evaluate(encoder, context)
    assert context.details["labels"] == {"source": "stratified, drawn by seed 7", "images": 180}


def test_an_image_set_without_labels_is_an_input_error(encoder, context, image_set):
    train = image_set.split("train")
    image_set.splits["train"] = replace(train, labels=torch.full_like(train.labels, -1))
    with pytest.raises(InputError, match="needs labelled"):
        SHORT.evaluate(encoder, context)


def test_a_loss_that_is_not_finite_is_a_failure(encoder, context):
    encoder.backbone.conv1.weight.fill_(float("nan"))
    with pytest.raises(RunFailure, match="step 0"):
        SHORT.evaluate(encoder, context)
