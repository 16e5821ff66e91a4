from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, precision_recall_curve
from sklearn.model_selection import StratifiedKFold

from twinbench.data.detection import DetectionSplit, PictureFiles
from twinbench.downstream import voc_svm
from twinbench.downstream.features import FeatureStore
from twinbench.downstream.protocol import EvaluationContext
from twinbench.downstream.voc_svm import (
    PENALTIES,
    VocSvm,
    average_precision_11point,
    average_precision_all_points,
    fit_class,
    linear_svm,
    multi_labels,
    unit_rows,
)
from twinbench.foundation.errors import InputError, RunFailure

BOTH = [average_precision_all_points, average_precision_11point]


@pytest.fixture(autouse=True)
def one_process():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rankings():
    """Scores with and without ties, for rare and frequent classes."""
    rng = np.random.default_rng(0)
    for n, share, levels in [(5, 0.4, 3), (30, 0.1, 1000), (30, 0.5, 4), (200, 0.03, 1000), (200, 0.9, 10)]:
        present = rng.random(n) < share
        present[rng.integers(n)] = True
        yield present, rng.integers(0, levels, n) / levels + 0.3 * present * rng.random()


@pytest.mark.parametrize("average_precision", BOTH)
def test_perfect_scores_give_one_and_constant_scores_the_share_of_positives(average_precision):
    present = np.array([False, True, False, True, False, False, False])
    assert average_precision(present, present.astype(float)) == 1.0
    assert average_precision(present, np.zeros(7)) == pytest.approx(2 / 7)
    assert average_precision(present, -present.astype(float)) == pytest.approx(2 / 7)


def brute_precision_recall(present, scores):
    """(recall, precision) as fractions for every threshold, by counting."""
    curve = []
    for threshold in sorted(set(scores), reverse=True):
        retrieved = [bool(p) for p, score in zip(present, scores, strict=True) if score >= threshold]
        curve.append((Fraction(sum(retrieved), int(present.sum())), Fraction(sum(retrieved), len(retrieved))))
    return curve


def test_11_points_equal_counting():
    for present, scores in rankings():
        curve = brute_precision_recall(present, scores)
        points = [max(p for recall, p in curve if recall >= Fraction(k, 10)) for k in range(11)]
        assert average_precision_11point(present, scores) == pytest.approx(float(sum(points) / 11), abs=1e-12)


def test_all_points_equal_the_area_under_scikit_learns_curve_made_monotone():
    for present, scores in rankings():
        precision, recall, _ = precision_recall_curve(present, scores)  # by falling recall
        envelope = np.maximum.accumulate(precision)
        area = np.sum((recall[:-1] - recall[1:]) * envelope[:-1])
        ours = average_precision_all_points(present, scores)
        assert ours == pytest.approx(area, abs=1e-12)
        assert ours >= average_precision_score(present, scores) - 1e-12


def test_a_positive_below_a_negative_by_hand():
    # precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1
    present, scores = np.array([True, False, True]), np.array([3.0, 2.0, 1.0])
    assert average_precision_all_points(present, scores) == pytest.approx(1 / 2 + 2 / 3 / 2)
    assert average_precision_11point(present, scores) == pytest.approx((6 + 5 * 2 / 3) / 11)


def test_the_order_of_images_is_of_no_consequence():
    for present, scores in rankings():
        shuffled = np.random.default_rng(1).permutation(len(scores))
        for average_precision in BOTH:
            assert average_precision(present, scores) == average_precision(
                present[shuffled], scores[shuffled]
            )


def test_an_image_with_only_difficult_objects_of_a_class_is_neither_with_nor_without_it():
    labels = [torch.tensor([0, 0, 2]), torch.tensor([1, 1]), torch.tensor([], dtype=torch.int64)]
    difficult = [
        torch.tensor([True, False, True]),
        torch.tensor([True, True]),
        torch.tensor([], dtype=torch.bool),
    ]
    assert multi_labels(labels, difficult, 3).tolist() == [[1, -1, 0], [-1, 0, -1], [-1, -1, -1]]
    assert multi_labels(labels, None, 3).tolist() == [[1, -1, 1], [-1, 1, -1], [-1, -1, -1]]


def test_features_have_unit_length_and_zeros_stay_zero():
    features = torch.randn(6, 20, generator=torch.Generator().manual_seed(0)) * 10
    features[2] = 0
    rows = unit_rows(features)
    assert rows.dtype == np.float64
    lengths = np.linalg.norm(features.double().numpy(), axis=1)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), lengths / (lengths + 1e-5), rtol=1e-12)


def noisy_class(seed, n=90, d=6):
    rng = np.random.default_rng(seed)
    targets = np.where(rng.random(n) < 0.3, 1, -1)
    features = rng.normal(size=(n, d)) + 0.7 * targets[:, None]
    return features / np.linalg.norm(features, axis=1, keepdims=True), targets


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_c_is_the_best_of_three_folds_counted_by_hand():
    features, targets = noisy_class(seed=3)
    means = []
    for penalty in PENALTIES:
        folds = []
        for fit, held_out in StratifiedKFold(3).split(features, targets):
            svm = linear_svm(penalty, seed=0).fit(features[fit], targets[fit])
            scores = svm.decision_function(features[held_out])
            folds.append(average_precision_score(targets[held_out] == 1, scores))
        means.append(np.mean(folds))
    chosen, svm = fit_class(features, targets, seed=0)
    assert chosen == PENALTIES[means.index(max(means))]
    assert len(set(means)) > 1
    refitted = linear_svm(chosen, seed=0).fit(features, targets)
    assert np.array_equal(svm.coef_, refitted.coef_)


@pytest.mark.numerics
def test_the_svm_minimises_the_published_objective(seed_offset, margin):
    """L2 penalty (bias included, as liblinear has it) and C times squared hinge, positives twice."""
    features, targets = noisy_class(seed_offset + 3)
    svm = linear_svm(1.0, seed=0).fit(features, targets)

    def objective(weights):
        margins = 1 - targets * (features @ weights[:-1] + weights[-1])
        return weights @ weights / 2 + np.where(targets == 1, 2, 1) @ np.maximum(margins, 0) ** 2

    found = np.append(svm.coef_[0], svm.intercept_[0])
    rng = np.random.default_rng(seed_offset)
    nearby = min(objective(found + rng.normal(scale=0.1, size=7)) for _ in range(200))
    margin.at_least("cost of the nearest others, relative", nearby / objective(found) - 1, 0, broken=-0.04)


@pytest.fixture
def evaluate(encoder, image_set, seed_offset):
    def evaluate(image_set=image_set):
        context = EvaluationContext(image_set, FeatureStore(None))
        return VocSvm().evaluate(encoder, context), context.details["classes"]

    image_set.scenes = {"train": scenes(60, seed_offset + 4), "test": scenes(30, seed_offset + 5)}
    return evaluate


def scenes(n, seed):
    """Images of one or two colours above noise; the third object of every fourth image is difficult."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 80, (n, 3, 16, 16), generator=generator)
    labels, difficult = [], []
    for i in range(n):
        present = torch.randperm(3, generator=generator)[: 1 + i % 2]
        images[i, present] += 95
        hard = (present[0] + 1) % 3 if i % 4 == 0 else present[0]
        labels.append(torch.cat([present, hard[None]]))
        difficult.append(torch.tensor([False] * len(present) + [True]))
    boxes = [torch.zeros(len(row), 4) for row in labels]
    return DetectionSplit(images.to(torch.uint8), boxes, labels, difficult=difficult)


@pytest.mark.numerics
def test_both_conventions_are_measured_and_what_was_chosen_is_reported(encoder, evaluate, margin):
    before = {name: tensor.clone() for name, tensor in encoder.backbone.state_dict().items()}
    state = torch.get_rng_state()
    measurements, details = evaluate()
    assert evaluate() == (measurements, details)
    assert torch.equal(torch.get_rng_state(), state)
    assert tuple(m.metric for m in measurements) == VocSvm.metrics == ("map_all_points", "map_11point")
    assert set(details) == {"red", "green", "blue"}
    assert all(row["C"] in PENALTIES for row in details.values())
    for measured in measurements:
        average = np.mean([row[measured.metric[1:]] for row in details.values()])
        assert measured.value == pytest.approx(average)
        margin.at_least(measured.metric, measured.value, 80, broken=72)
        assert measured.n == 30
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_processes_do_not_change_the_result(evaluate, monkeypatch):
    """Two processes; yet one thread, for the features would be rounded otherwise with two."""
    alone = evaluate()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert evaluate() == alone


def test_c_does_not_depend_on_the_test_images(evaluate, image_set):
    _, details = evaluate()
    test = image_set.scenes["test"]
    image_set.scenes["test"] = DetectionSplit(255 - test.images, test.boxes, test.labels[::-1])
    _, other = evaluate()
    assert [row["C"] for row in details.values()] == [row["C"] for row in other.values()]
    assert details != other


def test_difficult_images_count_in_training_as_negatives_and_in_testing_not_at_all(
    evaluate, image_set, monkeypatch
):
    fitted, measured = [], []
    original = voc_svm.average_precision_all_points

    def spy_fit(features, targets, seed):
        fitted.append(targets)
        return fit_class(features, targets, seed)

    def spy_measure(present, scores, weights):
        if weights is None:
            measured.append(present)
        return original(present, scores, weights)

    monkeypatch.setattr(voc_svm, "fit_class", spy_fit)
    monkeypatch.setitem(voc_svm._PRECISIONS, "ap_all_points", spy_measure)
    evaluate()
    train, test = image_set.scenes["train"], image_set.scenes["test"]
    for label in range(3):
        easy = [
            [
                bool(((row == label) & ~hard).any())
                for row, hard in zip(split.labels, split.difficult, strict=True)
            ]
            for split in (train, test)
        ]
        any_object = [bool((row == label).any()) for row in test.labels]
        assert (fitted[label] == 1).tolist() == easy[0]
        counted = [e for e, a in zip(easy[1], any_object, strict=True) if e or not a]
        assert measured[label].tolist() == counted
        assert len(counted) < 30


def test_pictures_on_disk_are_measured_as_images_in_memory(evaluate, image_set, tmp_path):
    """Pictures of 18 pixels, of which the encoder sees the central 16, and the same pictures in memory."""
    for name in ("train", "test"):
        split = image_set.scenes[name]
        framed = torch.nn.functional.pad(split.images, (1, 1, 1, 1), value=99)
        image_set.scenes[name] = DetectionSplit(framed, split.boxes, split.labels, difficult=split.difficult)
    in_memory = evaluate()
    for name in ("train", "test"):
        split = image_set.scenes[name]
        paths = [tmp_path / f"{name}{i}.png" for i in range(len(split))]
        for path, image in zip(paths, split.images, strict=True):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
        pictures = PictureFiles(paths, [(18, 18)] * len(paths))
        image_set.scenes[name] = DetectionSplit(
            pictures, split.boxes, split.labels, difficult=split.difficult
        )
    assert evaluate() == in_memory


@pytest.mark.parametrize("years", [(2007, 2012), (2012, 2012)])
def test_a_devkit_with_both_years_is_trained_on_2007_alone(evaluate, image_set, tmp_path, monkeypatch, years):
    train, fitted = image_set.scenes["train"], []
    paths = []
    for i, image in enumerate(train.images):
        # Only the folder of the year counts, not one further up, wherever below it the picture was found.
        folder = tmp_path / "VOC2012" / f"VOC{years[i % 5 == 0]}" / "JPEGImages"
        path = folder / ("part" if i % 3 else "") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
        paths.append(path)
    pictures = PictureFiles(paths, [(16, 16)] * len(paths))
    image_set.scenes["train"] = DetectionSplit(pictures, train.boxes, train.labels, difficult=train.difficult)

    def spy_fit(features, targets, seed):
        fitted.append(targets)
        return fit_class(features, targets, seed)

    monkeypatch.setattr(voc_svm, "fit_class", spy_fit)
    evaluate()
    table = multi_labels(train.labels, train.difficult, 3)
    for label, targets in enumerate(fitted):
        used = [i for i in range(60) if i % 5 or 2007 not in years]
        assert (targets == 1).tolist() == [table[i, label] == 1 for i in used]


def test_a_corrupt_picture_is_refused_by_name(evaluate, image_set, tmp_path):
    test = image_set.scenes["test"]
    paths = [tmp_path / f"{i}.png" for i in range(len(test))]
    for path, image in zip(paths, test.images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    paths[3].write_bytes(paths[3].read_bytes()[:-200])
    pictures = PictureFiles(paths, [(16, 16)] * len(paths))
    image_set.scenes["test"] = DetectionSplit(pictures, test.boxes, test.labels, difficult=test.difficult)
    with pytest.raises(InputError, match="cannot decode this image") as error:
        evaluate()
    assert error.value.where == paths[3]
    assert "skip" not in error.value.next_step


def test_a_class_that_is_too_rare_or_everywhere_is_an_input_error(evaluate, image_set):
    train, test = image_set.scenes["train"], image_set.scenes["test"]
    everywhere = [torch.tensor([0])] * 60
    image_set.scenes["train"] = DetectionSplit(train.images, train.boxes, everywhere)
    with pytest.raises(InputError, match="class 'red' is in 60 of 60 training"):
        evaluate()
    image_set.scenes["train"] = train
    image_set.scenes["test"] = DetectionSplit(test.images, test.boxes, [torch.tensor([0])] * 30)
    with pytest.raises(InputError, match=r"class 'green' is in .* and 0 test images"):
        evaluate()


def test_features_that_are_not_finite_are_a_failure(encoder, evaluate):
    encoder.backbone.conv1.weight.fill_(float("nan"))
    with pytest.raises(RunFailure, match="not all finite"):
        evaluate()


def test_estimate_counts_both_splits(evaluate, image_set):
    assert VocSvm().forward_passes(image_set) == 90
