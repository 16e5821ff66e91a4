"""COCO AP from a file on disk: our reader and evaluator against pycocotools on the same files."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as run_length
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from twinbench.data.catalogue import load_image_set
from twinbench.downstream.detection.coco_eval import Detections, average_precision

SIZE = 60
CATEGORIES = [3, 17, 90]


def polygon(x, y, width, height):
    """A diamond in the box."""
    return [x + width / 2, y, x + width, y + height / 2, x + width / 2, y + height, x, y + height / 2]


def random_folder(folder, draw, images=12):
    """A COCO folder with boxes of fractional pixels, polygons, and crowds as uncompressed run lengths."""
    annotations = []
    for split in ("train2017", "val2017"):
        (folder / split).mkdir()
    for image in range(images):
        Image.new("RGB", (SIZE, SIZE)).save(folder / "val2017" / f"{image}.png")
        for _ in range(draw.integers(1, 5)):
            x, y = draw.uniform(0, 30, 2).round(2).tolist()
            width, height = draw.uniform(8, 28, 2).round(2).tolist()
            crowd = bool(draw.random() < 0.25)
            segmentation = [polygon(x, y, width, height)]
            if crowd:
                start = int(x) * SIZE
                segmentation = {
                    "size": [SIZE, SIZE],
                    "counts": [start, 20 * SIZE, SIZE * SIZE - start - 20 * SIZE],
                }
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 + image,
                    "category_id": int(draw.choice(CATEGORIES)),
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": int(crowd),
                    "segmentation": segmentation,
                }
            )
    (folder / "annotations").mkdir()
    Image.new("RGB", (SIZE, SIZE)).save(folder / "train2017" / "t.png")
    for split, entries, names in (
        ("val2017", annotations, [f"{image}.png" for image in range(images)]),
        ("train2017", [], ["t.png"]),
    ):
        document = {
            "images": [
                {"id": 100 + i, "file_name": name, "height": SIZE, "width": SIZE}
                for i, name in enumerate(names)
            ],
            "categories": [{"id": identifier, "name": f"class {identifier}"} for identifier in CATEGORIES],
            "annotations": entries,
        }
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    return annotations


def random_results(annotations, draw):
    """Detections near the objects, in the format that pycocotools loads."""
    results = []
    for annotation in [a for a in annotations for _ in range(3)]:
        x, y, width, height = (np.array(annotation["bbox"]) + draw.normal(0, 2, 4)).round(1).tolist()
        (code,) = run_length.frPyObjects([polygon(x, y, width, height)], SIZE, SIZE)
        same = draw.random() < 0.8
        results.append(
            {
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"] if same else int(draw.choice(CATEGORIES)),
                "bbox": [x, y, width, height],
                "score": round(float(draw.random()), 2),
                "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
            }
        )
    return results


def reference(file, results):
    found = {}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        for kind, name in (("bbox", "box"), ("segm", "mask")):
            evaluation = COCOeval(truth, truth.loadRes([dict(r) for r in results]), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            found |= {f"{name}_{m}": 100 * evaluation.stats[i] for i, m in enumerate(("ap", "ap50", "ap75"))}
    return found


def as_detections(results, images):
    by_image = [[r for r in results if r["image_id"] == 100 + image] for image in range(images)]
    for mine in by_image:
        boxes = torch.tensor([r["bbox"] for r in mine]).float().view(-1, 4)
        yield Detections(
            boxes=torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1),
            scores=torch.tensor([r["score"] for r in mine], dtype=torch.float64),
            labels=torch.tensor([CATEGORIES.index(r["category_id"]) for r in mine]),
            masks=[r["segmentation"] for r in mine],
        )


@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_pycocotools_on_the_same_files(seed, tmp_path):
    draw = np.random.default_rng(seed)
    annotations = random_folder(tmp_path, draw)
    file = tmp_path / "annotations" / "instances_val2017.json"
    if seed == 1:  # a category of which there are detections alone
        annotations = [each for each in annotations if each["category_id"] != CATEGORIES[1]]
        file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": annotations}))
    results = [each for each in random_results(annotations, draw) if each["image_id"] != 104]
    expected = reference(file, results)
    split = load_image_set(f"coco:{tmp_path}").detection("test")
    ours = average_precision(split, list(as_detections(results, len(split))), len(CATEGORIES))
    assert ours == pytest.approx(expected, abs=1e-6)
    assert all(1 < value < 99 for value in ours.values())
    assert any(crowd.any() for crowd in split.crowd)
