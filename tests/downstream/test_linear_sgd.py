from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from twinbench.data.augment import eval_view
from twinbench.data.catalogue import load_image_set
from twinbench.data.image_sets import Split
from twinbench.downstream.features import FeatureStore
from twinbench.downstream.linear_grid import LinearGrid, haiku_head
from twinbench.downstream.linear_sgd import LinearEvaluation, cosine
from twinbench.downstream.protocol import EvaluationContext, protocol
from twinbench.downstream.views import EpochOrder, training_views
from twinbench.foundation.errors import InputError, RunFailure

CPU = torch.device("cpu")


SHORT = replace(protocol("linear/sgd-v2"), name="linear-test/sgd-v1", epochs=6)
LONGER = replace(SHORT, epochs=60)
SHORT_TRANSFER = replace(protocol("linear/inat18-v2"), name="linear-test/transfer-v1", epochs=6)
SHORT_MOCO = replace(protocol("linear/moco-v1"), name="linear-test/moco-v1", epochs=5)
SHORT_SIMSIAM = replace(protocol("linear/simsiam-v1"), name="linear-test/simsiam-v1", epochs=6)
SHORT_SIMCLR = replace(protocol("linear/simclr-v1"), name="linear-test/simclr-v1", epochs=6, batch=256)
SHORT_BYOL = replace(protocol("linear/byol-v1"), name="linear-test/byol-v1", epochs=4)
GRID = LinearGrid(
    "linear-test/grid-v1", epochs=6, rates=(0.02, 0.3, 2.0), weight_decays=(0.0, 0.03), decay=cosine
)
ALL_LABELLED = replace(protocol("semi-10pct/paper-v3"), name="linear-test/paper-v1", fraction=1.0, epochs=1)


@pytest.fixture
def scores(monkeypatch):
    """The class scores of every evaluation, in order."""
    seen = []
    original = EvaluationContext.classified

    def spy(self, measured, labels, rows):
        seen.append(measured)
        return original(self, measured, labels, rows)

    monkeypatch.setattr(EvaluationContext, "classified", spy)
    return seen


@pytest.mark.parametrize(
    ("name", "rate", "epochs", "schedule"),
    [
        ("linear/sgd-v2", 0.3, 100, partial(CosineAnnealingLR, T_max=100)),
        ("linear/swav-v1", 0.3, 100, partial(CosineAnnealingLR, T_max=100)),
        ("linear/moco-v1", 30.0, 100, partial(MultiStepLR, milestones=[60, 80])),
        ("linear/simsiam-v1", 0.1 * 4096 / 256, 90, partial(CosineAnnealingLR, T_max=90)),
    ],
)
def test_the_learning_rate_is_that_of_torchs_scheduler_stepped_once_an_epoch(name, rate, epochs, schedule):
    chosen = protocol(name)
    assert chosen.epochs == epochs
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=rate)
    scheduler = schedule(optimizer)
    for epoch in range(epochs):
        for inside in (0, 0.5, 0.99):
            found = chosen.lr * chosen.decay(epoch + inside, chosen.epochs)
            assert found == pytest.approx(scheduler.get_last_lr()[0], abs=1e-9), epoch
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(("name", "epochs"), [("linear/simclr-v1", 90), ("linear/byol-v1", 80)])
def test_the_learning_rate_is_that_of_torchs_scheduler_stepped_at_every_step(name, epochs):
    chosen, steps = protocol(name), 7
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.6)
    scheduler = CosineAnnealingLR(optimizer, T_max=epochs * steps)
    assert chosen.epochs == epochs
    for step in range(epochs * steps):
        found = 1.6 * chosen.decay(step / steps, chosen.epochs)
        assert found == pytest.approx(scheduler.get_last_lr()[0], abs=1e-9), step
        optimizer.step()
        scheduler.step()


def test_byols_rates_are_the_papers_five_scaled_by_the_batch():
    chosen = protocol("linear/byol-v1")
    assert chosen.batch == 1024
    assert [rate / (1024 / 256) for rate in chosen.rates] == pytest.approx([0.05, 0.1, 0.2, 0.3, 0.4])
    assert (chosen.weight_decays, chosen.nesterov, chosen.refit, chosen.start) == (
        (0.0,),
        True,
        True,
        haiku_head,
    )


def test_a_head_of_haiku_is_a_normal_cut_off_at_two_deviations():
    torch.manual_seed(0)
    weight = haiku_head(400, 1000).weight.detach()
    # the deviation of a standard normal between -2 and 2
    assert weight.std().item() == pytest.approx(0.8796 / 20, rel=0.01)
    assert 0.0999 < weight.abs().max() <= 0.1


@pytest.mark.parametrize(
    ("name", "weight_decay", "batch", "larc"),
    [
        ("linear/simclr-v1", 0.0, 4096, False),
        ("linear/sgd-v2", 1e-6, 256, False),
        ("linear/swav-v1", 1e-6, 256, False),
        ("linear/moco-v1", 0.0, 256, False),
        ("linear/simsiam-v1", 0.0, 4096, True),
    ],
)
def test_the_other_settings_are_those_of_each_code(name, weight_decay, batch, larc):
    chosen = protocol(name)
    assert (chosen.weight_decay, chosen.batch, chosen.larc) == (weight_decay, batch, larc)
    assert not chosen.batch_norm
    assert chosen.metrics == ("top1", "top5")


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


def adapt_as_apex(parameters, weight_decay):
    """LARC as apex has it around SGD, without clipping: gradients are scaled and decayed, SGD then decays nothing."""
    for p in parameters:
        weight, gradient = p.detach().norm(), p.grad.norm()
        if weight != 0 and gradient != 0:
            p.grad += weight_decay * p.detach()
            p.grad *= 0.001 * weight / (gradient + weight * weight_decay + 1e-8)


@pytest.mark.numerics
@pytest.mark.parametrize(
    ("chosen", "rate", "weight_decay", "schedule"),
    [
        (SHORT, 0.3, 1e-6, partial(CosineAnnealingLR, T_max=6)),
        (SHORT_TRANSFER, 0.01, 5e-4, partial(MultiStepLR, milestones=[2, 4])),
        (SHORT_MOCO, 30.0, 0.0, partial(MultiStepLR, milestones=[3, 4])),
        (SHORT_SIMSIAM, 1.6, 0.0, partial(CosineAnnealingLR, T_max=6)),
    ],
    ids=["barlow_twins", "transfer", "moco", "simsiam"],
)
def test_scores_are_those_of_a_plain_loop_with_torchs_optimizer_and_scheduler(
    encoder, context, image_set, scores, chosen, rate, weight_decay, schedule, margin
):
    """The official recipes written out: all features at once, torch's SGD and schedulers, every epoch to the last."""
    chosen.evaluate(encoder, context)
    train, val, test = (image_set.split(name) for name in ("train", "val", "test"))
    images, labels = torch.cat([train.images, val.images]), torch.cat([train.labels, val.labels])
    torch.manual_seed(context.seed)
    head = nn.Linear(encoder.feature_dim, 3)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    norm = nn.BatchNorm1d(encoder.feature_dim) if chosen.batch_norm else nn.Identity()
    decayed = {"params": head.parameters(), "weight_decay": weight_decay}
    optimizer = torch.optim.SGD([decayed, {"params": norm.parameters()}], lr=rate, momentum=0.9)
    scheduler = schedule(optimizer)
    # 360 images: two steps an epoch at batch 256, one at 4096
    order = EpochOrder(torch.arange(360), context.seed, chosen.batch)
    steps_per_epoch = 1 if chosen.larc else 2
    views = training_views(images, order, chosen.epochs * steps_per_epoch, context.seed, encoder, CPU)
    for step, batch in enumerate(views):
        loss = cross_entropy(head(norm(encoder.backbone(batch))), labels[order(step)])
        optimizer.zero_grad()
        loss.backward()
        if chosen.larc:
            adapt_as_apex(head.parameters(), weight_decay)
        optimizer.step()
        if (step + 1) % steps_per_epoch == 0:
            scheduler.step()
    assert step + 1 == chosen.epochs * steps_per_epoch
    expected = head(norm.eval()(encoder.backbone(eval_view(test.images, 16, encoder.normalisation))))
    difference = (scores[0] - expected).abs().max() / expected.abs().max().clamp(min=1)
    margin.at_most("difference of scores", difference.item(), 1e-3)


def plain_heads(encoder, split, epochs, starts, optimizers, schedulers):
    """Linear heads trained one after the other by a loop of their own, on the views of the protocols."""
    order = EpochOrder(torch.arange(len(split)), 0, 256)
    steps = order.steps_per_epoch * epochs
    views = list(training_views(split.images, order, steps, 0, encoder, CPU))
    features = [encoder.backbone(batch) for batch in views]
    heads = []
    for start, optimizer_of, scheduler_of in zip(starts, optimizers, schedulers, strict=True):
        torch.manual_seed(0)
        head = nn.Linear(encoder.feature_dim, 3)
        start(head.weight)
        nn.init.zeros_(head.bias)
        optimizer = optimizer_of(head.parameters())
        scheduler = scheduler_of(optimizer, order.steps_per_epoch)
        for step, batch in enumerate(features):
            optimizer.zero_grad()
            cross_entropy(head(batch), split.labels[order(step)]).backward()
            optimizer.step()
            scheduler(step)
        heads.append(head)
    return heads


def every_epoch(optimizer, steps_per_epoch, epochs=6):
    scheduler = CosineAnnealingLR(optimizer, T_max=epochs)
    return lambda step: scheduler.step() if (step + 1) % steps_per_epoch == 0 else None


def every_step(optimizer, steps_per_epoch, epochs=6):
    scheduler = CosineAnnealingLR(optimizer, T_max=epochs * steps_per_epoch)
    return lambda step: scheduler.step()


def central_features(encoder, split):
    return encoder.backbone(eval_view(split.images, 16, encoder.normalisation))


@pytest.mark.numerics
def test_simclrs_evaluation_is_a_plain_loop_with_nesterovs_momentum(encoder, image_set, scores, margin):
    SHORT_SIMCLR.evaluate(encoder, EvaluationContext(image_set, FeatureStore(None), seed=0))
    train, val = image_set.split("train"), image_set.split("val")
    together = Split(torch.cat([train.images, val.images]), torch.cat([train.labels, val.labels]))
    nesterov = partial(torch.optim.SGD, lr=1.6, momentum=0.9, nesterov=True)
    (head,) = plain_heads(encoder, together, 6, [nn.init.zeros_], [nesterov], [every_step])
    expected = head(central_features(encoder, image_set.split("test")))
    difference = (scores[0] - expected).abs().max() / expected.abs().max().clamp(min=1)
    margin.at_most("difference of scores", difference.item(), 1e-3)


@pytest.mark.numerics
def test_every_head_of_the_grid_is_what_it_would_be_alone_and_the_best_on_val_is_measured(
    encoder, image_set, scores, margin
):
    context = EvaluationContext(image_set, FeatureStore(None), seed=0)
    (top1,) = GRID.evaluate(encoder, context)
    candidates = [(rate, decay) for rate in GRID.rates for decay in GRID.weight_decays]
    optimizers = [
        partial(torch.optim.SGD, lr=rate, momentum=0.9, weight_decay=decay) for rate, decay in candidates
    ]
    start = partial(nn.init.normal_, std=0.01)
    heads = plain_heads(
        encoder, image_set.split("train"), 6, [start] * 6, optimizers, [every_epoch] * len(candidates)
    )
    val = image_set.split("val")
    features = central_features(encoder, val)
    expected = [(head(features).argmax(dim=1) == val.labels).double().mean() * 100 for head in heads]
    found = [entry["val_top1"] for entry in context.details["grid"]]
    assert [(entry["lr"], entry["weight_decay"]) for entry in context.details["grid"]] == candidates
    assert len(set(found)) > 1
    margin.at_most(
        "difference on val", max(abs(a - b.item()) for a, b in zip(found, expected, strict=True)), 100 / 60
    )
    best = found.index(max(found))
    assert context.details["chosen"] == context.details["grid"][best]
    ours = heads[best](central_features(encoder, image_set.split("test")))
    difference = (scores[0] - ours).abs().max() / ours.abs().max().clamp(min=1)
    margin.at_most("difference of scores", difference.item(), 1e-3)
    assert len(scores) == 1
    assert top1.n == 90


def test_the_test_labels_play_no_part_in_the_choice(encoder, image_set, scores):
    details = []
    for _ in range(2):
        context = EvaluationContext(image_set, FeatureStore(None))
        GRID.evaluate(encoder, context)
        details.append(context.details)
        image_set.splits["test"].labels.copy_(image_set.splits["test"].labels.flip(0))
    assert details[0] == details[1]
    assert torch.equal(*scores)


def test_the_images_of_val_choose_and_do_not_train(encoder, image_set, scores):
    single = replace(GRID, rates=(0.3,), weight_decays=(0.0,))
    found = []
    for _ in range(2):
        context = EvaluationContext(image_set, FeatureStore(None))
        single.evaluate(encoder, context)
        found.append(context.details["chosen"]["val_top1"])
        image_set.splits["val"].labels.copy_((image_set.splits["val"].labels + 1) % 3)
    assert torch.equal(*scores)
    assert found[0] != found[1]


def test_a_head_that_diverges_is_never_chosen(encoder, context):
    replace(GRID, rates=(0.3, 1e38)).evaluate(encoder, context)
    found = {entry["lr"]: entry["val_top1"] for entry in context.details["grid"]}
    assert found[1e38] is None
    assert found[0.3] is not None
    assert context.details["chosen"]["lr"] == 0.3
    with pytest.raises(RunFailure, match=r"loss became|no head of the grid"):
        replace(GRID, rates=(1e38,)).evaluate(encoder, context)


def test_of_equals_the_smaller_rate_and_decay_are_chosen_and_the_edge_is_remarked_on(encoder, context):
    for parameter in encoder.backbone.parameters():
        parameter.zero_()  # all scores are those of the biases
    GRID.evaluate(encoder, context)
    assert context.details["chosen"]["lr"] == 0.02
    assert context.details["chosen"]["weight_decay"] == 0.0
    steps, edge = context.remarks
    assert "these had 150 of the 300 with a label" in steps
    assert "the smallest learning rate of its grid, 0.02" in edge


def test_a_refit_is_the_evaluation_with_the_chosen_rate_on_train_and_val(encoder, image_set, scores):
    context = EvaluationContext(image_set, FeatureStore(None), seed=5)
    SHORT_BYOL.evaluate(encoder, context)
    chosen = context.details["chosen"]["lr"]
    assert chosen in SHORT_BYOL.rates
    alone = LinearEvaluation(
        "linear-test/alone-v1",
        epochs=4,
        lr=chosen,
        weight_decay=0.0,
        decay=SHORT_BYOL.decay,
        batch=1024,
        nesterov=True,
        start=haiku_head,
    )
    alone.evaluate(encoder, EvaluationContext(image_set, FeatureStore(None), seed=5))
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-5, atol=1e-6)
    without = replace(SHORT_BYOL, refit=False)
    without.evaluate(encoder, EvaluationContext(image_set, FeatureStore(None), seed=5))
    assert not torch.allclose(scores[2], scores[0], rtol=1e-3)


def test_the_grid_leaves_the_encoder_and_randomness_alone_and_its_progress_ends_at_one(encoder, context):
    before = {name: tensor.clone() for name, tensor in encoder.backbone.state_dict().items()}
    state = torch.get_rng_state()
    context.progress = (fractions := []).append
    SHORT_BYOL.evaluate(encoder, context)
    assert torch.equal(torch.get_rng_state(), state)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_grid_without_labelled_val_is_an_input_error(encoder, context, image_set):
    val = image_set.split("val")
    image_set.splits["val"] = replace(val, labels=torch.full_like(val.labels, -1))
    with pytest.raises(InputError, match="needs labelled"):
        GRID.evaluate(encoder, context)


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


def test_steps_that_are_smaller_than_the_protocols_are_remarked_on(encoder, context, image_set):
    labels = image_set.splits["train"].labels
    labels[: 360 - 256] = -1
    SHORT.evaluate(encoder, context)
    assert context.remarks == []  # one full step
    labels[0] = 0
    SHORT.evaluate(encoder, context)
    replace(SHORT_SIMSIAM, epochs=1).evaluate(encoder, context)
    halves, all_at_once = context.remarks
    assert "has steps of 256 images, these had 129 of the 257 with a label" in halves
    assert "has steps of 4096 images, these had 257 of the 257 with a label" in all_at_once


def test_estimate_counts_every_epoch(image_set):
    assert protocol("linear/sgd-v2").forward_passes(image_set) == 100 * 360 + 90
    assert protocol("linear/places205-v2").forward_passes(image_set) == 14 * 360 + 90
    assert protocol("linear/grid-v1").forward_passes(image_set) == 100 * 300 + 60 + 90
    assert protocol("linear/byol-v1").forward_passes(image_set) == 80 * (300 + 360) + 60 + 90


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
