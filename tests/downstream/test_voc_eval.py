import itertools

import numpy as np
import pytest
import torch

from twinbench.data.detection import DetectionSplit
from twinbench.downstream.detection.coco_eval import Detections, average_precision
from twinbench.downstream.detection.voc_eval import THRESHOLDS, voc_average_precision
from twinbench.foundation.errors import InputError

SIDE = 200


def random_case(seed, images=25, classes=3, decimals=5):
    """Ground truth with difficult objects, and detections that are shifted objects or noise, with ties in scores."""
    draw = np.random.default_rng(seed)
    truth_boxes, truth_labels, difficult, found = [], [], [], []
    for _ in range(images):
        n = int(draw.integers(0, 5))
        low = draw.integers(0, 120, (n, 2))
        boxes = np.concatenate([low, low + draw.integers(20, 80, (n, 2))], axis=1)
        labels = draw.integers(0, classes, n)
        shifted = np.repeat(boxes, 2, axis=0) + draw.normal(0, 6, (2 * n, 4))
        noise = np.sort(draw.uniform(0, SIDE, (3, 2, 2)), axis=1).reshape(3, 4)
        found.append(
            Detections(
                boxes=torch.tensor(np.concatenate([shifted, noise]), dtype=torch.float32),
                scores=torch.tensor(np.round(draw.random(2 * n + 3), decimals), dtype=torch.float32),
                labels=torch.tensor(np.concatenate([np.repeat(labels, 2), draw.integers(0, classes, 3)])),
            )
        )
        truth_boxes.append(torch.tensor(boxes, dtype=torch.float32))
        truth_labels.append(torch.tensor(labels))
        difficult.append(torch.tensor(draw.random(n) < 0.2, dtype=torch.bool))
    pixels = torch.zeros(images, 3, 1, 1, dtype=torch.uint8).expand(-1, -1, SIDE, SIDE)
    return DetectionSplit(pixels, truth_boxes, truth_labels, difficult=difficult), found


def ranked_by_hand(found, label):
    """Score (negative), image and 1-based box of every detection of a class, best first."""
    ranked = []
    for image, each in enumerate(found):
        for box, score, mine in zip(
            each.boxes.numpy(), each.scores.tolist(), each.labels.tolist(), strict=True
        ):
            if mine == label:
                one_based = [float(x) + one for x, one in zip(box, (1, 1, 0, 0), strict=True)]
                ranked.append((-float(f"{score:.3f}"), image, [float(f"{x:.1f}") for x in one_based]))
    return sorted(ranked)


def brute_force(truth, found, label, iou, eleven_points):
    """The devkit's rules, one detection after the other, in plain Python."""
    ranked = ranked_by_hand(found, label)
    counts = [(labels == label) & ~hard for labels, hard in zip(truth.labels, truth.difficult, strict=True)]
    positives = sum(int(each.sum()) for each in counts)
    taken, curve, right, wrong = set(), [], 0, 0
    for _, image, (x1, y1, x2, y2) in ranked:
        best, best_iou = None, iou
        for i, (gx1, gy1, gx2, gy2) in enumerate(truth.boxes[image].tolist()):
            gx1, gy1 = gx1 + 1, gy1 + 1
            width = min(x2, gx2) - max(x1, gx1) + 1
            height = min(y2, gy2) - max(y1, gy1) + 1
            if truth.labels[image][i] != label or width <= 0 or height <= 0:
                continue
            union = (x2 - x1 + 1) * (y2 - y1 + 1) + (gx2 - gx1 + 1) * (gy2 - gy1 + 1) - width * height
            if width * height / union > best_iou:
                best, best_iou = i, width * height / union
        if best is None or (image, best) in taken:
            wrong += 1
        elif not truth.difficult[image][best]:
            taken.add((image, best))
            right += 1
        curve.append((right / positives, right / (right + wrong) if right + wrong else 0.0))
    if eleven_points:
        # As the reference has them: 3 * 0.1 and 6 * 0.1 are a little more than 0.3 and 0.6.
        points = [i * 0.1 for i in range(11)]
        return sum(max([p for r, p in curve if r >= point], default=0) for point in points) / 11
    recalls = sorted({r for r, _ in curve} | {0.0})
    return sum(
        (high - low) * max(p for r, p in curve if r >= high) for low, high in itertools.pairwise(recalls)
    )


@pytest.mark.parametrize("eleven_points", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_agrees_with_the_rules_done_by_hand(seed, eleven_points):
    truth, found = random_case(seed, decimals=9)
    # Without ties after rounding, for then any order is right.
    scores = torch.cat([each.scores for each in found])
    ranks = iter((scores.argsort().argsort() + 1).tolist())
    found = [
        Detections(f.boxes, torch.tensor([next(ranks) / 1000 for _ in f.scores]), f.labels) for f in found
    ]
    expected = [
        np.mean([brute_force(truth, found, label, iou, eleven_points) for label in range(3)])
        for iou in THRESHOLDS
    ]
    ours = voc_average_precision(truth, found, 3, eleven_points)
    assert ours["box_ap"] == pytest.approx(100 * np.mean(expected), abs=1e-6)
    assert ours["box_ap50"] == pytest.approx(100 * expected[0], abs=1e-6)
    assert ours["box_ap75"] == pytest.approx(100 * expected[5], abs=1e-6)
    assert 5 < ours["box_ap"] < 95


def write_devkit(folder, truth):
    """The ground truth as the files that Detectron2's evaluator reads."""
    (folder / "Annotations").mkdir()
    for i, (boxes, labels, flags) in enumerate(zip(truth.boxes, truth.labels, truth.difficult, strict=True)):
        objects = "".join(
            f"<object><name>class{label}</name><pose/><truncated>0</truncated><difficult>{int(hard)}</difficult>"
            f"<bndbox><xmin>{x1 + 1:.0f}</xmin><ymin>{y1 + 1:.0f}</ymin><xmax>{x2:.0f}</xmax><ymax>{y2:.0f}</ymax>"
            "</bndbox></object>"
            for (x1, y1, x2, y2), label, hard in zip(
                boxes.tolist(), labels.tolist(), flags.tolist(), strict=True
            )
        )
        xml = objects.replace("<pose/>", "<pose>Frontal</pose>")
        (folder / "Annotations" / f"{i}.xml").write_text(f"<annotation>{xml}</annotation>")
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "test.txt").write_text("\n".join(map(str, range(len(truth)))))


@pytest.mark.detectron2
@pytest.mark.parametrize("year", [2007, 2012])
@pytest.mark.parametrize("seed", [3, 4])
def test_agrees_with_detectron2s_evaluator(tmp_path, seed, year):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from detectron2.data import MetadataCatalog
    from detectron2.evaluation import PascalVOCDetectionEvaluator
    from detectron2.structures import Boxes, Instances

    # With two decimals there are many ties; an image without detections.
    truth, found = random_case(seed, decimals=5 if seed == 3 else 2)
    found[1] = Detections(found[1].boxes[:0], found[1].scores[:0], found[1].labels[:0])
    write_devkit(tmp_path, truth)
    name = f"twinbench-{seed}-{year}"
    classes = ["class0", "class1", "class2"]
    MetadataCatalog.get(name).set(thing_classes=classes, dirname=str(tmp_path), year=year, split="test")
    evaluator = PascalVOCDetectionEvaluator(name)
    evaluator.reset()
    for i, each in enumerate(found):
        instances = Instances((SIDE, SIDE))
        instances.pred_boxes = Boxes(each.boxes.clone())
        instances.scores, instances.pred_classes = each.scores, each.labels
        evaluator.process([{"image_id": i}], [{"instances": instances}])
    theirs = evaluator.evaluate()["bbox"]
    MetadataCatalog.remove(name)
    ours = voc_average_precision(truth, found, 3, eleven_points=year == 2007)
    assert ours["box_ap"] == pytest.approx(theirs["AP"], abs=1e-6)
    assert ours["box_ap50"] == pytest.approx(theirs["AP50"], abs=1e-6)
    assert ours["box_ap75"] == pytest.approx(theirs["AP75"], abs=1e-6)


def one_object(box, difficult=False):
    return DetectionSplit(
        torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8),
        [torch.tensor([box, [150.0, 150, 180, 180]])],
        [torch.tensor([0, 0])],
        difficult=[torch.tensor([difficult, False])],
    )


def found(*boxes, scores=None):
    n = len(boxes)
    return [Detections(torch.tensor(boxes).float(), torch.tensor(scores or [0.9] * n), torch.zeros(n).long())]


def test_a_difficult_object_neither_counts_nor_hurts():
    truth = one_object([10.0, 10, 50, 50], difficult=True)
    right = [150, 150, 180, 180]
    assert voc_average_precision(truth, found(right), 1)["box_ap"] == pytest.approx(100)
    excused = found([10, 10, 50, 50], [10, 10, 50, 50], right, scores=[0.9, 0.8, 0.7])
    assert voc_average_precision(truth, excused, 1)["box_ap"] == pytest.approx(100)
    # COCO's evaluator excuses the detections as well.
    assert average_precision(truth, excused, 1)["box_ap"] == pytest.approx(100)


def test_a_second_detection_of_an_object_is_wrong():
    truth = one_object([10.0, 10, 50, 50])
    twice = found([10, 10, 50, 50], [10, 10, 50, 50], [150, 150, 180, 180], scores=[0.9, 0.8, 0.7])
    # Precision 1 up to recall 0.5 (6 of 11 points), then 2/3.
    assert voc_average_precision(truth, twice, 1)["box_ap"] == pytest.approx(100 * (6 + 5 * 2 / 3) / 11)
    assert voc_average_precision(truth, twice, 1, eleven_points=False)["box_ap"] == pytest.approx(100 * 5 / 6)


def test_the_mean_is_over_classes_that_occur():
    truth = one_object([10.0, 10, 50, 50])
    perfect = found([10, 10, 50, 50], [150, 150, 180, 180])
    assert voc_average_precision(truth, perfect, 20)["box_ap"] == pytest.approx(100)


def test_ground_truth_without_objects_that_count_is_an_error():
    truth = DetectionSplit(
        torch.zeros(1, 3, 9, 9, dtype=torch.uint8),
        [torch.tensor([[1.0, 1, 5, 5]])],
        [torch.tensor([0])],
        difficult=[torch.tensor([True])],
    )
    with pytest.raises(InputError, match="no objects"):
        voc_average_precision(truth, found([1, 1, 5, 5]), 1)
    with pytest.raises(InputError, match="no objects"):
        average_precision(truth, found([1, 1, 5, 5]), 1)
    with pytest.raises(ValueError, match="0 images for 1 images"):
        voc_average_precision(truth, [], 1)
