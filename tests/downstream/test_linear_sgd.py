from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy

from twinbench.data.augment import eval_view
from twinbench.data.catalogue import load_image_set
from twinbench.data.image_sets import Split
from twinbench.downstream.features import FeatureStore
from twinbench.downstream.protocol import EvaluationContext, protocol
from twinbench.downstream.views import EpochOrder, training_views
from twinbench.foundation.errors import InputError, RunFailure

CPU = torch.device("cpu")


SHORT = replace(protocol("linear/sgd-v2"), name="linear-test/sgd-v1", epochs=6)
LONGER = replace(SHORT, epochs=60)
SHORT_TRANSFER = replace(protocol("linear/inat18-v2"), name="linear-test/transfer-v1", epochs=6)
ALL_LABELLED = replace(protocol("semi-10pct/paper-v2"), name="linear-test/paper-v1", fraction=1.0, epochs=1)


@pytest.fixture
def scores(monkeypatch):
    """The class scores of every evaluation, in order."""
    seen = []
    from twinbench.downstream import linear_sgd

    original = linear_sgd.accuracies

    def spy(measured, labels):
        seen.append(measured)
        return original(measured, labels)

    monkeypatch.setattr(linear_sgd, "accuracies", spy)
    return seen


def test_the_learning_rate_is_torchs_cosine_stepped_once_an_epoch():
    chosen = protocol("linear/sgd-v2")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    for epoch in range(100):
        for inside in (0, 0.5, 0.99):
            rate = chosen.lr * chosen.decay(epoch + inside, chosen.epochs)
            assert rate == pytest.approx(schedule.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("name", "epochs", "drops"),
    [("linear/places205-v2", 14, (14 / 3, 28 / 3)), ("linear/inat18-v2", 84, (28, 56))],
)
def test_the_transfer_protocols_drop_twice(name, epochs, drops):
    chosen = protocol(name)
    assert chosen.epochs == epochs
    first, second = drops
    moments = [0, first - 0.01, first + 0.01, second - 0.01, second + 0.01, epochs - 0.01]
    rates = [chosen.lr * chosen.decay(moment, epochs) for moment in moments]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])


@pytest.mark.numerics
@pytest.mark.parametrize("chosen", [SHORT, SHORT_TRANSFER])
def test_scores_are_those_of_a_plain_loop_with_torchs_optimizer_and_scheduler(
    encoder, context, image_set, scores, chosen, margin
):
    """The official recipes written out: all features at once, torch's SGD and schedulers, every epoch to the last."""
    transfer = chosen.batch_norm
    chosen.evaluate(encoder, context)
    train, val, test = (image_set.split(name) for name in ("train", "val", "test"))
    images, labels = torch.cat([train.images, val.images]), torch.cat([train.labels, val.labels])
    torch.manual_seed(context.seed)
    head = nn.Linear(encoder.feature_dim, 3)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    norm = nn.BatchNorm1d(encoder.feature_dim)
    if transfer:
        groups = [{"params": head.parameters(), "weight_decay": 5e-4}, {"params": norm.parameters()}]
        optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    else:
        optimizer = torch.optim.SGD(head.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-6)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    order = EpochOrder(torch.arange(360), context.seed)
    views = training_views(images, order, 12, context.seed, encoder, CPU)
    for step, batch in enumerate(views):
        features = encoder.backbone(batch)
        loss = cross_entropy(head(norm(features) if transfer else features), labels[order(step)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 2:
            schedule.step()
    features = encoder.backbone(eval_view(test.images, 16, encoder.normalisation))
    expected = head(norm.eval()(features) if transfer else features)
    margin.at_most("difference of scores", (scores[0] - expected).abs().max().item(), 1e-3)


@pytest.mark.numerics
def test_it_learns_repeats_itself_and_leaves_encoder_and_randomness_alone(
    encoder, image_set, seed_offset, margin
):
    before = {name: tensor.clone() for name, tensor in encoder.backbone.state_dict().items()}
    state = torch.get_rng_state()
    seed = seed_offset + 3
    results = [
        LONGER.evaluate(encoder, EvaluationContext(image_set, FeatureStore(None), seed=seed))
        for _ in range(2)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert results[0] == results[1]
    margin.at_least("top-1", results[0][0].value, 60, broken=36)
    assert results[0][0].n == 90
    assert not encoder.backbone.training
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_another_seed_is_another_training(encoder, image_set, scores):
    for seed in (3, 4):
        SHORT.evaluate(encoder, EvaluationContext(image_set, FeatureStore(None), seed=seed))
    assert not torch.equal(*scores)


def test_a_backbone_that_changes_is_a_failure(encoder, context):
    encoder.backbone.bn1.train()
    with pytest.raises(RunFailure, match=r"changed during the evaluation: bn1\.running_mean"):
        SHORT.evaluate(encoder, context)


def test_the_test_labels_play_no_part_in_training(encoder, context, image_set, scores):
    SHORT.evaluate(encoder, context)
    image_set.splits["test"].labels.copy_(image_set.splits["test"].labels.flip(0))
    SHORT.evaluate(encoder, context)
    assert torch.equal(*scores)


def test_images_without_label_are_neither_trained_on_nor_counted(encoder, context, image_set, scores):
    SHORT.evaluate(encoder, context)
    for name in ("train", "test"):
        split = image_set.split(name)
        junk = Split(torch.zeros_like(split.images[:40]), torch.full((40,), -1))
        image_set.splits[name] = Split(
            torch.cat([split.images, junk.images]), torch.cat([split.labels, junk.labels])
        )
    # behind train, val moves by 40 rows; its images are the same
    (top1,) = SHORT.evaluate(encoder, context)
    assert top1.n == 90
    assert torch.equal(*scores)


@pytest.mark.numerics
def test_the_images_held_out_for_selection_are_trained_on(encoder, context, image_set, margin):
    train = image_set.split("train")
    image_set.splits["train"] = replace(train, labels=torch.full_like(train.labels, -1))
    (top1,) = LONGER.evaluate(encoder, context)
    margin.at_least("top-1", top1.value, 50)


@pytest.mark.numerics
def test_a_streamed_set_is_evaluated(encoder, tmp_path, seed_offset, margin):
    rng = np.random.default_rng(seed_offset)
    for split, n in (("train", 30), ("test", 10)):
        for channel, name in enumerate(("red", "green")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 80, (20, 26, 3), dtype=np.uint8)
                pixels[..., channel] += 95
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    results = []
    for stream in (True, False):
        image_set = load_image_set(f"folder:{tmp_path}", image_size=16, stream=stream)
        context = EvaluationContext(image_set, FeatureStore(None), seed=seed_offset)
        (top1,) = LONGER.evaluate(encoder, context)
        results.append(top1)
    assert all(top1.n == 20 for top1 in results)
    margin.at_least("top-1", min(top1.value for top1 in results), 75)


def test_corrupt_pictures_of_the_test_split_do_not_count(encoder, tmp_path):
    rng = np.random.default_rng(0)
    for split, n in (("train", 20), ("test", 6)):
        for name in ("red", "green"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 160, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    for broken in ("train/red/3.png", "test/red/3.png", "test/green/5.png"):
        (tmp_path / broken).write_text("no picture")
    image_set = load_image_set(f"folder:{tmp_path}", image_size=16, stream=True, corrupt="skip")
    for chosen in (SHORT, ALL_LABELLED):
        context = EvaluationContext(image_set, FeatureStore(None))
        (top1,) = chosen.evaluate(encoder, context)
        assert top1.n == 10
        assert context.details["skipped_images"] == {"train": 1, "test": 2}


def test_estimate_counts_every_epoch(image_set):
    assert protocol("linear/sgd-v2").forward_passes(image_set) == 100 * 360 + 90
    assert protocol("linear/places205-v2").forward_passes(image_set) == 14 * 360 + 90


def test_progress_ends_at_one(encoder, context):
    context.progress = (fractions := []).append
    SHORT.evaluate(encoder, context)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_an_image_set_without_labels_is_an_input_error(encoder, context, image_set):
    test = image_set.split("test")
    image_set.splits["test"] = replace(test, labels=torch.full_like(test.labels, -1))
    with pytest.raises(InputError, match="needs labelled"):
        SHORT.evaluate(encoder, context)


def test_a_loss_that_is_not_finite_is_a_failure(encoder, context):
    encoder.backbone.conv1.weight.fill_(float("nan"))
    with pytest.raises(RunFailure, match="loss became nan"):
        SHORT.evaluate(encoder, context)
