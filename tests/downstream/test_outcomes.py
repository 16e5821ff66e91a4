"""What became of every test item: kept whole, enough to compute the numbers again, and resampled as by a loop."""

import gzip
import json
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from sklearn.metrics import top_k_accuracy_score

from twinbench.data.image_sets import DetectionSplit
from twinbench.downstream.detection.coco_eval import (
    Detections,
    average_precision,
    coco_results,
    from_coco_results,
    resampled_average_precision,
    run_lengths,
)
from twinbench.downstream.detection.outcomes import detected, precisions
from twinbench.downstream.detection.voc_eval import resampled_voc_average_precision, voc_average_precision
from twinbench.downstream.outcomes import REPLICATES, classified, replicates, resamples
from twinbench.downstream.protocol import EvaluationContext, accuracies
from twinbench.downstream.voc_svm import VocSvm, average_precision_11point, average_precision_all_points
from twinbench.foundation import outcomes as files
from twinbench.foundation.errors import InputError
from twinbench.foundation.outcomes import (
    Outcomes,
    detections_file,
    hits,
    is_outcomes,
    is_whole,
    read_outcomes,
    write_outcomes,
)

ABOUT = {"encoder_checksum": "abc", "protocol": "knn/cosine-v1", "image_set_fingerprint": "f", "seed": "0"}


def test_accuracies_are_those_of_sklearn_and_survive_the_file(tmp_path):
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(200, 9)).astype(np.float32), rng.integers(0, 9, 200)
    context = EvaluationContext(image_set=None, features=None)
    rows = torch.arange(200) * 3
    measured = context.classified(torch.from_numpy(scores), torch.from_numpy(labels), rows)
    for k, found in zip((1, 5), measured, strict=True):
        assert found.value == pytest.approx(100 * top_k_accuracy_score(labels, scores, k=k))
    path = tmp_path / "records" / "knn.safetensors"
    sha256 = write_outcomes(path, context.outcomes, ABOUT)
    kept = read_outcomes(path, sha256)
    assert accuracies(kept) == measured
    assert kept.about == ABOUT
    assert kept.arrays["rows"].tolist() == rows.tolist()


def test_fifty_thousand_images_of_a_thousand_classes_take_less_than_two_megabytes(tmp_path):
    rng = np.random.default_rng(0)
    scores = rng.random(size=(50_000, 1000), dtype=np.float32)
    path = tmp_path / "outcomes.safetensors"
    write_outcomes(path, classified(scores, rng.integers(0, 1000, 50_000), np.arange(50_000)), ABOUT)
    assert path.stat().st_size < 2e6


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-1])])
def test_a_lost_or_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "outcomes.safetensors"
    sha256 = write_outcomes(path, classified(np.eye(6), np.arange(6), np.arange(6)), ABOUT)
    damage(path)
    with pytest.raises(InputError, match="outcomes are not"):
        read_outcomes(path, sha256)


def test_hits_are_those_of_a_loop_and_leave_out_what_is_always_100():
    rng = np.random.default_rng(7)
    for classes in (5, 6):
        scores, labels = rng.normal(size=(50, classes)), rng.integers(0, classes, 50)
        found = hits(classified(scores, labels, np.arange(50)).arrays)
        assert list(found) == (["top1"] if classes == 5 else ["top1", "top5"])
        for name, right in found.items():
            k = int(name.removeprefix("top"))
            assert right.tolist() == [
                label in sorted(range(classes), key=lambda c: -row[c])[:k]
                for row, label in zip(scores, labels, strict=True)
            ]


def test_a_file_is_whole_until_a_byte_of_it_changes_also_of_the_detections(tmp_path):
    path = tmp_path / "detection.safetensors"
    sha256 = write_outcomes(path, Outcomes({"n": np.arange(3)}, [{"image_id": 0}]), ABOUT)
    assert is_whole(path, sha256)
    assert not is_whole(path, "0" * 64)
    assert not is_whole(tmp_path / "other.safetensors", sha256)
    for file in (path, detections_file(path)):
        content = file.read_bytes()
        file.write_bytes(bytes([*content[:-1], content[-1] ^ 1]))
        assert not is_whole(path, sha256)
        file.write_bytes(content)
        assert is_whole(path, sha256)
    detections_file(path).unlink()
    assert not is_whole(path, sha256)


def test_weights_are_no_outcomes(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(save({"conv1.weight": np.zeros(3)}, {"format": "pt"}))
    write_outcomes(
        tmp_path / "outcomes.safetensors", classified(np.eye(6), np.arange(6), np.arange(6)), ABOUT
    )
    assert is_outcomes(tmp_path / "outcomes.safetensors")
    assert not is_outcomes(tmp_path / "weights.safetensors")
    assert not is_outcomes(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (b"not gzip", "cannot be read"),
        (gzip.compress(b"[{}, {}]")[:-9], "cannot be read"),
        (gzip.compress(b"[{}, "), "cannot be read"),
        (gzip.compress(b'{"image_id": 0}'), "no list"),
        (gzip.compress(json.dumps([0] * 1000).encode()), "more than 100 bytes"),
    ],
    # packed bytes hold the time: workers of pytest-xdist would collect tests of other names
    ids=["not packed", "cut off", "no JSON", "no list", "too long"],
)
def test_detections_that_nobody_can_use_are_refused(tmp_path, monkeypatch, packed, message):
    monkeypatch.setattr(files, "_MOST_BYTES", 100)
    path, digest = tmp_path / "detection.safetensors", files.hashlib.sha256(packed).hexdigest()
    sha256 = write_outcomes(path, Outcomes({}), {**ABOUT, "detections_sha256": digest})
    detections_file(path).write_bytes(packed)
    assert read_outcomes(path, sha256, with_detections=False).detections is None
    with pytest.raises(InputError, match=message):
        read_outcomes(path, sha256)


@pytest.mark.parametrize("image", [-1, 2])
def test_a_detection_in_no_image_is_refused(image):
    found = {"image_id": image, "category_id": 0, "bbox": [0, 0, 1, 1], "score": 0.5}
    with pytest.raises(InputError, match=f"in image {image}, and there are 2"):
        from_coco_results([found], 2)


def test_resamples_are_the_same_for_all_and_keep_the_size():
    first, second = resamples(30), resamples(30)
    assert np.array_equal(first, second)
    assert first.shape == (REPLICATES, 30)
    assert (first.sum(axis=1) == 30).all()


def scenes(rng, images=12, classes=3, side=40):
    boxes, labels, difficult = [], [], []
    for _ in range(images):
        corners = rng.integers(0, 25, (rng.integers(0, 5), 2))
        boxes.append(torch.tensor(np.hstack([corners, corners + rng.integers(5, 15, corners.shape)])).float())
        labels.append(torch.tensor(rng.integers(0, classes, len(corners))))
        difficult.append(torch.tensor(rng.random(len(corners)) < 0.2))
    masks = [filled(each, side) for each in boxes]
    images_ = torch.zeros(images, 3, side, side, dtype=torch.uint8)
    return DetectionSplit(images_, boxes, labels, masks, difficult=difficult)


def filled(boxes, side):
    masks = torch.zeros(len(boxes), side, side, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    return masks


def guesses(rng, truth, side=40):
    """Detections near the objects, some of them wrong, some missing."""
    found = []
    for boxes, labels in zip(truth.boxes, truth.labels, strict=True):
        kept = torch.tensor(rng.random(len(boxes)) < 0.8)
        moved = (boxes[kept] + torch.tensor(rng.normal(0, 1.2, (int(kept.sum()), 4)))).float().clamp(0, side)
        moved[:, 2:] = torch.maximum(moved[:, 2:], moved[:, :2] + 1)
        guessed = torch.where(torch.tensor(rng.random(len(moved)) < 0.8), labels[kept], 0)
        scores = torch.tensor(rng.random(len(moved)).round(1), dtype=torch.float32)  # with ties
        found.append(Detections(moved, scores, guessed, run_lengths(filled(moved, side))))
    return found


def repeated(truth, detections, weights):
    """The test set in which every image is there so many times."""
    rows = np.repeat(np.arange(len(truth)), weights).tolist()
    split = DetectionSplit(
        truth.images[rows],
        [truth.boxes[i] for i in rows],
        [truth.labels[i] for i in rows],
        [truth.masks[i] for i in rows],
        difficult=[truth.difficult[i] for i in rows],
    )
    return split, [detections[i] for i in rows]


@pytest.mark.parametrize(
    ("whole", "resampled"),
    [
        (average_precision, resampled_average_precision),
        (voc_average_precision, resampled_voc_average_precision),
    ],
)
def test_resampled_precisions_are_those_of_the_resampled_images(whole, resampled):
    rng = np.random.default_rng(1)
    truth = scenes(rng)
    # Scores without ties: equal scores would be sorted by the place of their image, which a resample changes.
    detections = [
        Detections(d.boxes, d.scores + 0.001 * i + 0.0001 * torch.arange(len(d.scores)), d.labels, d.masks)
        for i, d in enumerate(guesses(rng, truth))
    ]
    # Subsets: an image that is there twice has its detections twice, one after the other or both at once.
    weights = np.vstack([np.ones((1, 12), np.int64), rng.integers(0, 2, (5, 12))])
    found = resampled(truth, detections, 3, weights)
    for place, often in enumerate(weights):
        expected = whole(*repeated(truth, detections, often), 3)
        assert {name: values[place] for name, values in found.items()} == pytest.approx(expected, abs=1e-9)
    twice = resampled(truth, detections, 3, 2 * weights[:1])
    assert {name: values[0] for name, values in twice.items()} == pytest.approx(
        {name: values[0] for name, values in found.items()}
    )


@pytest.mark.parametrize("resampled", [resampled_average_precision, resampled_voc_average_precision])
def test_resampled_precisions_take_little_memory_and_are_those_of_each_alone(resampled):
    rng = np.random.default_rng(8)
    truth = scenes(rng, images=40, classes=1)
    detections = [
        Detections(d.boxes.repeat(20, 1), torch.tensor(rng.random(20 * len(d.boxes))), d.labels.repeat(20))
        for d in guesses(rng, truth)
    ]
    weights, count = resamples(40), sum(len(d.boxes) for d in detections)
    tracemalloc.start()
    found = resampled(truth, detections, 1, weights)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 8 * count * REPLICATES, "as much as three numbers for each detection and resample"
    for place in (0, 21, 199):
        alone = resampled(truth, detections, 1, weights[place : place + 1])
        expected = {name: values[0] for name, values in alone.items()}
        assert {name: values[place] for name, values in found.items()} == pytest.approx(expected, rel=1e-12)


class Set:
    """As much of an image set as the measurement of detections needs."""

    def __init__(self, split):
        self.split, self.detection_classes = split, ("a", "b", "c")

    def detection(self, name):
        return self.split


@pytest.mark.parametrize("evaluator", ["coco", "voc2007"])
def test_detections_survive_the_file_and_give_the_same_numbers(tmp_path, evaluator):
    rng = np.random.default_rng(2)
    truth = scenes(rng)
    outcomes = detected(guesses(rng, truth), truth, 3, evaluator)
    measured = precisions(outcomes, Set(truth), evaluator)
    path = tmp_path / "detection.safetensors"
    kept = read_outcomes(path, write_outcomes(path, outcomes, ABOUT))
    assert precisions(kept, Set(truth), evaluator) == measured
    assert 0 < measured[0].value < 100
    assert kept.arrays["replicates/box_ap"].shape == (REPLICATES,)
    with pytest.raises(InputError, match="objects of the test images"):
        precisions(kept, None, evaluator)


def test_detections_that_were_exchanged_are_noticed(tmp_path):
    rng = np.random.default_rng(3)
    truth = scenes(rng)
    path = tmp_path / "detection.safetensors"
    sha256 = write_outcomes(path, detected(guesses(rng, truth), truth, 3, "coco"), ABOUT)
    other = tmp_path / "other.safetensors"
    write_outcomes(other, detected(guesses(rng, truth), truth, 3, "coco"), ABOUT)
    (tmp_path / "detection.coco.json.gz").write_bytes((tmp_path / "other.coco.json.gz").read_bytes())
    with pytest.raises(InputError, match="not those of their record"):
        read_outcomes(path, sha256)


def test_cocos_format_gives_the_detections_back():
    rng = np.random.default_rng(4)
    truth = scenes(rng)
    detections = guesses(rng, truth)
    for before, after in zip(detections, from_coco_results(coco_results(detections), 12), strict=True):
        torch.testing.assert_close(after.boxes.float(), before.boxes, rtol=0, atol=1e-5)
        assert torch.equal(after.scores, before.scores)
        assert torch.equal(after.labels, before.labels)
        assert [m["counts"] for m in after.masks] == [m["counts"] for m in before.masks]


@pytest.mark.parametrize("metric", [average_precision_all_points, average_precision_11point])
def test_weights_are_repetitions(metric):
    rng = np.random.default_rng(5)
    present, scores = rng.random(40) < 0.3, rng.integers(0, 12, 40) / 12
    for weights in rng.multinomial(40, np.full(40, 1 / 40), size=5):
        rows = np.repeat(np.arange(40), weights)
        assert metric(present, scores, weights) == pytest.approx(metric(present[rows], scores[rows]))
    assert np.isnan(metric(present, scores, np.where(present, 0, 1)))


def test_the_map_of_support_vector_machines_is_computed_again_from_its_scores():
    rng = np.random.default_rng(6)
    truth = np.where(rng.random((50, 4)) < 0.3, 1, -1).astype(np.int8)
    truth[3, 1] = 0
    scores = rng.normal(size=(50, 4)) + truth
    outcomes = Outcomes({"truth": truth, "scores": scores})
    counted = [truth[:, c] != 0 for c in range(4)]
    expected = np.mean(
        [average_precision_all_points(truth[k, c] == 1, scores[k, c]) for c, k in enumerate(counted)]
    )
    first, _ = VocSvm().measure_again(outcomes, None)
    assert (first.metric, first.value) == ("map_all_points", pytest.approx(100 * expected))


def test_replicates_are_named_after_their_metrics():
    found = replicates(10, lambda weights: {"share": weights[0] / weights.sum()})
    assert np.array_equal(found["replicates/share"], resamples(10)[:, 0] / 10)
