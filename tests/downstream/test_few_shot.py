"""Few-shot classification against loops in float64, scikit-learn's nearest centroid and scipy's intervals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.neighbors import NearestCentroid

from twinbench.data.image_sets import Split
from twinbench.downstream.features import FeatureStore
from twinbench.downstream.few_shot import class_means, nearest_mean_scores
from twinbench.downstream.protocol import EvaluationContext, protocol
from twinbench.foundation.randomness import seeded_generator

FEW = replace(protocol("few-shot/5-v1"), name="few-shot-test/5-v1", draws=8)


def features(n, seed=0, d=6, classes=4):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    return torch.randn(n, d, generator=generator) + labels[:, None] * 0.4, labels


def members_of(labels, classes=4):
    return [torch.nonzero(labels == c).flatten() for c in range(classes)]


def test_the_nearest_mean_is_scikit_learns_nearest_centroid():
    support, labels = features(40)
    queries, _ = features(60, seed=1)
    members = members_of(labels)
    means = class_means(support, members, shots=10, generator=torch.Generator().manual_seed(0))
    reference = NearestCentroid().fit(support.double().numpy(), labels.numpy())
    np.testing.assert_allclose(means.numpy(), reference.centroids_, rtol=1e-4, atol=1e-6)
    scores = nearest_mean_scores(queries, means)
    assert scores.argmax(dim=1).tolist() == reference.predict(queries.double().numpy()).tolist()
    # the whole order, not the first alone
    distances = ((queries.double()[:, None] - means.double()[None]) ** 2).sum(dim=2)
    assert torch.equal(scores.argsort(dim=1, descending=True), distances.argsort(dim=1))


def test_a_draw_takes_different_images_of_the_class_and_more_shots_include_fewer():
    n = 400
    one_hot = torch.eye(n)  # the mean shows which rows were drawn
    members = members_of(torch.arange(n) % 4)
    drawn = {}
    for shots in (1, 5):
        means = class_means(one_hot, members, shots, torch.Generator().manual_seed(3))
        drawn[shots] = [set(torch.nonzero(mean).flatten().tolist()) for mean in means]
        assert [len(rows) for rows in drawn[shots]] == [shots] * 4
    for label in range(4):
        assert drawn[1][label] < drawn[5][label]
        assert drawn[5][label] <= set(members[label].tolist())


@pytest.mark.parametrize("shots", [1, 5, 10])
def test_the_registered_protocols_draw_a_hundred_times(shots):
    chosen = protocol(f"few-shot/{shots}-v1")
    assert (chosen.shots, chosen.draws) == (shots, 100)


def by_hand(encoder, image_set, seed, shots, draws):
    """Which test images are right in each draw, ``[draws, N]``, in float64 and one image at a time."""
    train, test = image_set.split("train"), image_set.split("test")
    known = encoder.features(train.images).double().numpy()
    centre = known.mean(axis=0)
    unit = lambda x: (x - centre) / np.linalg.norm(x - centre)  # noqa: E731
    queries = encoder.features(test.images).double().numpy()
    right = []
    for draw in range(draws):
        generator = seeded_generator(seed, "few-shot", draw)
        means = []
        for label in range(3):
            rows = np.flatnonzero(train.labels.numpy() == label)
            order = torch.randperm(len(rows), generator=generator).numpy()[:shots]
            means.append(np.mean([unit(known[row]) for row in rows[order]], axis=0))
        found = [int(np.argmin([np.sum((unit(x) - mean) ** 2) for mean in means])) for x in queries]
        right.append([f == t for f, t in zip(found, test.labels.tolist(), strict=True)])
    return np.array(right, dtype=float)


@pytest.mark.numerics
def test_value_error_and_interval_are_those_of_a_plain_loop(encoder, context, image_set, margin):
    (top1,) = FEW.evaluate(encoder, context)
    right = 100 * by_hand(encoder, image_set, context.seed, shots=5, draws=8)
    by_draw = right.mean(axis=1)
    # one of 90 images in one of 8 draws may round otherwise
    margin.at_most("difference", abs(top1.value - by_draw.mean()), 100 / 90 / 8)
    assert top1.n == 90
    found = context.details["draws"]
    assert (found["draws"], found["shots"]) == (8, 5)
    spread = found["top1"]
    assert spread["deviation"] == pytest.approx(by_draw.std(ddof=1), abs=0.3)
    assert (spread["lowest"], spread["highest"]) == pytest.approx((by_draw.min(), by_draw.max()), abs=1.2)
    assert spread["mean"] == top1.value
    error = spread["deviation"] / np.sqrt(8)
    interval = stats.t.interval(0.95, 7, loc=top1.value, scale=error)
    assert spread["interval_of_mean"] == pytest.approx(interval)
    items = right.mean(axis=0).std(ddof=1) / np.sqrt(90)
    assert top1.stderr == pytest.approx(np.sqrt(error**2 + items**2), rel=0.05)
    assert top1.stderr > error


def test_methods_see_the_same_images_and_seeds_others(encoder, make_encoder, image_set, monkeypatch):
    seen = []

    def spy(features, members, shots, generator):
        seen.append(
            [rows[torch.randperm(len(rows), generator=generator)[:shots]].tolist() for rows in members]
        )
        return torch.zeros(len(members), features.shape[1])

    monkeypatch.setattr("twinbench.downstream.few_shot.class_means", spy)
    once = replace(FEW, draws=2)
    for which, seed in ((encoder, 1), (make_encoder(1), 1), (encoder, 2)):
        once.evaluate(which, EvaluationContext(image_set, FeatureStore(None), seed=seed))
    first, other_encoder, other_seed = seen[:2], seen[2:4], seen[4:]
    assert first == other_encoder
    assert first != other_seed
    assert first[0] != first[1]


def test_small_and_empty_classes_are_said_and_an_empty_one_is_never_found(
    encoder, context, image_set, monkeypatch
):
    train = image_set.split("train")
    kept = torch.cat(
        [torch.nonzero(train.labels == 0).flatten()[:3], torch.nonzero(train.labels == 1).flatten()]
    )
    image_set.splits["train"] = Split(train.images[kept], train.labels[kept])
    predicted = []
    original = nearest_mean_scores

    def spy(queries, means):
        predicted.append(original(queries, means).argmax(dim=1))
        return original(queries, means)

    monkeypatch.setattr("twinbench.downstream.few_shot.nearest_mean_scores", spy)
    FEW.evaluate(encoder, context)
    few, none = context.remarks
    assert "1 of 3 classes have fewer than 5 labelled training images" in few
    assert "1 of 3 classes have no labelled training image" in none
    assert set(torch.cat(predicted).tolist()) <= {0, 1}


def test_top5_is_the_mean_over_draws_of_the_first_five(encoder, context, image_set):
    image_set.classes = tuple("abcdefg")
    for name, split in image_set.splits.items():
        image_set.splits[name] = Split(split.images, torch.arange(len(split)) % 7)
    top1, top5 = FEW.evaluate(encoder, context)
    assert (top1.metric, top5.metric) == ("top1", "top5")
    assert top1.value < top5.value <= 100
    assert {"top1", "top5"} < context.details["draws"].keys()
    assert FEW.forward_passes(image_set) == 390
