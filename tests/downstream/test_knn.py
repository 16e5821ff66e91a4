import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from twinbench.data.image_sets import Split
from twinbench.downstream.knn import CosineKnn, TunedKnn, knn_accuracies, knn_scores
from twinbench.downstream.protocol import EvaluationContext


def random_features(n, d=12, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator), torch.randint(0, classes, (n,), generator=generator)


@pytest.mark.parametrize("k", [1, 7, 40])
def test_scores_equal_a_float64_loop(k):
    bank, bank_labels = random_features(40)
    queries, _ = random_features(9, seed=1)
    scores = knn_scores(queries, bank, bank_labels, classes=4, k=k, temperature=0.1)

    b, q = bank.double().numpy(), queries.double().numpy()
    for row in range(9):
        similarity = [float(q[row] @ x / np.linalg.norm(q[row]) / np.linalg.norm(x)) for x in b]
        expected = [0.0] * 4
        for index in sorted(range(40), key=lambda i: -similarity[i])[:k]:
            expected[int(bank_labels[index])] += math.exp(similarity[index] / 0.1)
        np.testing.assert_allclose(scores[row].numpy(), expected, rtol=1e-4)


def test_predictions_equal_scikit_learn():
    bank, bank_labels = random_features(200)
    queries, _ = random_features(50, seed=1)
    reference = KNeighborsClassifier(
        n_neighbors=20,
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp((1 - distance) / 0.1),
    ).fit(bank.double().numpy(), bank_labels.numpy())
    scores = knn_scores(queries, bank, bank_labels, classes=4, k=20)
    assert scores.argmax(dim=1).tolist() == reference.predict(queries.double().numpy()).tolist()


def accuracies(scores, labels):
    context = EvaluationContext(image_set=None, features=None)
    return context.classified(scores, labels, torch.arange(len(labels)))


def test_one_neighbour_with_the_queries_as_bank_is_always_right():
    features, labels = random_features(60)
    top1 = accuracies(knn_scores(features, features, labels, classes=4, k=1), labels)[0]
    assert (top1.value, top1.stderr) == (100.0, 0.0)


def test_scores_do_not_depend_on_the_scale_of_features():
    bank, bank_labels = random_features(60)
    queries, _ = random_features(10, seed=1)
    scaled = knn_scores(queries * 1e-3, bank * 1e3, bank_labels, classes=4, k=10)
    torch.testing.assert_close(
        scaled, knn_scores(queries, bank, bank_labels, classes=4, k=10), rtol=1e-4, atol=0
    )


def test_chunks_do_not_change_the_scores(monkeypatch):
    bank, bank_labels = random_features(60)
    queries, _ = random_features(10, seed=1)
    whole = knn_scores(queries, bank, bank_labels, classes=4, k=10)
    monkeypatch.setattr("twinbench.downstream.knn._CHUNK", 3)
    torch.testing.assert_close(knn_scores(queries, bank, bank_labels, classes=4, k=10), whole)


def test_k_is_cut_to_the_size_of_the_bank():
    bank, bank_labels = random_features(5)
    assert torch.equal(
        knn_scores(bank, bank, bank_labels, classes=4, k=200),
        knn_scores(bank, bank, bank_labels, classes=4, k=5),
    )


def test_duplicates_of_a_neighbour_vote_as_often_as_they_occur():
    bank = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.9, 0.1]])
    scores = knn_scores(torch.tensor([[1.0, 0.0]]), bank, torch.tensor([0, 1, 1]), classes=2, k=3)
    assert scores.argmax().item() == 1


def test_accuracies_have_binomial_errors_and_rank_ties_by_class():
    scores = torch.zeros(4, 8)
    top1, top5 = accuracies(scores, torch.tensor([0, 4, 5, 7]))
    assert (top1.metric, top1.value, top1.n) == ("top1", 25.0, 4)
    assert top1.stderr == pytest.approx(100 * math.sqrt(0.25 * 0.75 / 4))
    assert (top5.metric, top5.value) == ("top5", 50.0)


def test_top5_of_five_classes_is_left_out():
    assert [m.metric for m in accuracies(torch.rand(6, 5), torch.zeros(6, dtype=torch.int64))] == ["top1"]


@pytest.mark.numerics
def test_protocol_measures_the_test_split(encoder, context, margin):
    fractions = []
    context.progress = fractions.append
    (top1,) = CosineKnn().evaluate(encoder, context)
    assert top1.n == 90
    margin.at_least("top-1", top1.value, 50, broken=28)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert CosineKnn().forward_passes(context.image_set) == 390


@pytest.mark.parametrize(("images", "said"), [(199, True), (200, False)])
def test_a_bank_smaller_than_the_neighbours_is_said(encoder, context, images, said):
    train = context.image_set.split("train")
    context.image_set.splits["train"] = Split(train.images[:images], train.labels[:images])
    CosineKnn().evaluate(encoder, context)
    assert context.remarks == ["the neighbours are all the 199 labelled training images, not 200"] * said


def by_scikit_learn(queries, bank, bank_labels, k, temperature):
    reference = KNeighborsClassifier(
        n_neighbors=k,
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp((1 - distance) / temperature),
    ).fit(bank.double().numpy(), bank_labels.numpy())
    return torch.from_numpy(reference.predict(queries.double().numpy()))


def test_the_accuracies_of_a_grid_are_scikit_learns_one_by_one(monkeypatch):
    bank, (queries, labels) = random_features(120), random_features(70, seed=1)
    monkeypatch.setattr("twinbench.downstream.knn._CHUNK", 32)
    found = knn_accuracies((queries, labels), bank, 4, (1, 5, 30), (0.02, 0.1, 1.0))
    assert len(found) == 9
    assert len(set(found.values())) > 3
    for (k, temperature), top1 in found.items():
        right = by_scikit_learn(queries, *bank, k, temperature) == labels
        assert top1 == pytest.approx(100 * right.double().mean().item()), (k, temperature)


@pytest.mark.numerics
def test_the_pair_that_is_best_on_val_is_measured_once_with_the_bank_of_train(encoder, context, margin):
    (top1,) = TunedKnn().evaluate(encoder, context)
    bank, val, test = (
        context.features.labelled(encoder, context.image_set, split) for split in ("train", "val", "test")
    )
    expected = {
        (k, temperature): (by_scikit_learn(val[0], *bank, k, temperature) == val[1]).double().mean().item()
        for k in (1, 5, 10, 20, 50, 100, 200)
        for temperature in (0.02, 0.05, 0.07, 0.1, 0.2, 0.5, 1.0)
    }
    grid = {(entry["k"], entry["temperature"]): entry["val_top1"] / 100 for entry in context.details["grid"]}
    assert grid.keys() == expected.keys()
    # float32 may order two neighbours of one similarity otherwise
    margin.at_most("difference on val", max(abs(grid[key] - expected[key]) for key in grid), 1 / 60)
    chosen = context.details["chosen"]
    assert chosen["val_top1"] / 100 == max(grid.values())
    # of equals the first
    assert next(key for key in grid if grid[key] == max(grid.values())) == (
        chosen["k"],
        chosen["temperature"],
    )
    measured = by_scikit_learn(test[0], *bank, chosen["k"], chosen["temperature"]) == test[1]
    margin.at_most("difference on test", abs(top1.value - 100 * measured.double().mean().item()), 100 / 90)
    assert context.details["bank"] == {"split": "train", "images": 300}
    assert TunedKnn().forward_passes(context.image_set) == 450


def test_the_test_labels_play_no_part_in_the_choice_of_neighbours(encoder, context, image_set):
    TunedKnn().evaluate(encoder, context)
    before = dict(context.details)
    test = image_set.splits["test"]
    image_set.splits["test"] = Split(test.images, test.labels.flip(0))
    context.features = type(context.features)(None)
    TunedKnn().evaluate(encoder, context)
    assert context.details == before


def test_no_k_beyond_the_bank_is_tried(encoder, context):
    train = context.image_set.split("train")
    context.image_set.splits["train"] = Split(train.images[:60], train.labels[:60])
    TunedKnn().evaluate(encoder, context)
    assert {entry["k"] for entry in context.details["grid"]} == {1, 5, 10, 20, 50}
    assert "tried no k above 50, for only 60 training images have a label" in context.remarks[0]
