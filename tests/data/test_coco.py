import copy
import json
import logging
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as run_length

from twinbench.data.catalogue import load_image_set
from twinbench.data.coco import read_coco
from twinbench.foundation.errors import InputError

HEIGHT, WIDTH = 20, 30


def block(top, bottom, left, right):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def compressed(mask):
    code = run_length.encode(np.asfortranarray(mask))
    return {"size": code["size"], "counts": code["counts"].decode()}


def uncompressed(mask):
    """Run lengths in column order, beginning with zeros, written down independently of pycocotools."""
    counts, value = [0], 0
    for pixel in mask.flatten(order="F").tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": [HEIGHT, WIDTH], "counts": counts}


def annotation(identifier, box, **others):
    return {"id": identifier, "image_id": 7, "category_id": 90, "bbox": box, "iscrowd": 0, **others}


def document(image_id, name, annotations):
    return {
        "images": [{"id": image_id, "file_name": name, "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}],
        "annotations": annotations,
    }


TRAIN = [
    annotation(1, [2, 3, 10, 5], segmentation=[[2, 3, 12, 3, 12, 8, 2, 8]]),
    annotation(2, [0, 0, 30, 20], segmentation=uncompressed(block(4, 9, 1, 6)), iscrowd=1, category_id=1),
    annotation(3, [1, 4, 5, 5], segmentation=compressed(block(4, 9, 1, 6))),
]


@pytest.fixture
def write(tmp_path):
    """Writes a COCO folder with the given training annotations, or a changed document, and returns it."""

    def write(annotations=TRAIN, change=lambda document: None):
        (tmp_path / "annotations").mkdir(exist_ok=True)
        for split, identifier in (("train2017", 7), ("val2017", 8)):
            (tmp_path / split).mkdir(exist_ok=True)
            Image.new("RGB", (WIDTH, HEIGHT), (identifier, 0, 0)).save(tmp_path / split / f"{identifier}.png")
            content = document(identifier, f"{identifier}.png", [])
            if split == "train2017":
                content["annotations"] = copy.deepcopy(annotations)
                change(content)
            (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        return tmp_path

    return write


def test_boxes_labels_crowds_and_all_kinds_of_masks(write):
    image_set = load_image_set(f"coco:{write()}")
    split = image_set.detection("train")
    assert image_set.detection_classes == ("person", "toothbrush"), "in the order of the identifiers"
    assert split.boxes[0].tolist() == [[2, 3, 12, 8], [0, 0, 30, 20], [1, 4, 6, 9]]
    assert split.labels[0].tolist() == [1, 0, 1]
    assert split.crowd[0].tolist() == [False, True, False]
    assert split.ignored(0).tolist() == [False, True, False]
    expected = np.stack([block(3, 8, 2, 12), block(4, 9, 1, 6), block(4, 9, 1, 6)]).astype(bool)
    assert torch.equal(split.masks[0], torch.from_numpy(expected))
    assert split.images[0][0].unique().tolist() == [7]
    empty = image_set.detection("test")
    assert (len(empty), empty.boxes[0].shape, len(empty.labels[0])) == (1, (0, 4), 0)


def test_a_test_file_goes_before_the_validation_file(write):
    folder = write()
    (folder / "annotations" / "instances_val2017.json").rename(
        folder / "annotations" / "instances_test2017.json"
    )
    (folder / "val2017").rename(folder / "images")
    assert len(read_coco(folder).splits["test"]) == 1


def test_a_set_without_masks_has_boxes_alone(write):
    folder = write([annotation(1, [0, 0, 5, 5]), annotation(2, [0, 0, 5, 5], segmentation=[])])
    assert load_image_set(f"coco:{folder}").detection("train").masks is None


@pytest.mark.parametrize(
    ("box", "repaired", "message"),
    [
        ([-2, 3, 10, 5], [0, 3, 8, 8], "clipped a box"),
        ([25, 15, 10, 10], [25, 15, 30, 20], "clipped a box"),
        ([5, 5, 0, 4], None, "without area"),
        ([31, 5, 4, 4], None, "without area"),
    ],
)
def test_boxes_outside_or_without_area_are_repaired_and_named(write, caplog, box, repaired, message):
    with caplog.at_level(logging.WARNING):
        found = read_coco(write([annotation(1, [0, 0, 5, 5]), annotation(33, box)]))
    boxes = [list(o.box) for o in found.splits["train"][0].objects]
    assert boxes == [[0, 0, 5, 5]] + ([] if repaired is None else [repaired])
    named, counted = (record.getMessage() for record in caplog.records[:2])
    assert message in named
    assert "instances_train2017.json, annotation 33" in named
    remark = next(remark for remark in found.remarks if message in remark)
    assert remark.endswith("1 of 2 objects (annotations/instances_train2017.json, annotation 33 for one)")
    assert counted.endswith(remark)


def test_compressed_masks_of_any_shape_are_read(write):
    draw = np.random.default_rng(0)
    masks = [(draw.random((HEIGHT, WIDTH)) < share).astype(np.uint8) for share in (0, 0.02, 0.5, 0.98, 1)]
    folder = write([annotation(i, [0, 0, 9, 9], segmentation=compressed(m)) for i, m in enumerate(masks)])
    expected = torch.from_numpy(np.stack(masks).astype(bool))
    assert torch.equal(load_image_set(f"coco:{folder}").detection("train").masks[0], expected)


def test_a_polygon_of_two_corners_is_left_out_and_named(write, caplog):
    polygons = [[2, 3, 12, 3, 12, 8, 2, 8], [1, 1, 2, 2]]
    folder = write([annotation(33, [2, 3, 10, 5], segmentation=polygons)])
    with caplog.at_level(logging.WARNING):
        image_set = load_image_set(f"coco:{folder}")
    assert "annotation 33" in caplog.text
    assert torch.equal(
        image_set.detection("train").masks[0][0], torch.from_numpy(block(3, 8, 2, 12).astype(bool))
    )


BOX = [1, 4, 5, 5]
SQUARE = [[1, 4, 6, 4, 6, 9, 1, 9]]
SHIFTED = [[40, 30, 50, 30, 50, 40]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (annotation(33, [1, 4, -5, 5]), "not a box"),
        (annotation(33, [1, 4, float("nan"), 5]), "not a box"),
        (annotation(33, [1, 4, 5]), "bbox is not x, y, width, height"),
        (annotation(33, BOX, category_id=4), "there is no category 4"),
        (annotation(33, BOX, image_id=4), "there is no image 4"),
        (annotation(33, BOX, segmentation={"size": [WIDTH, HEIGHT], "counts": [600]}), "the mask is of size"),
        (annotation(33, BOX, segmentation={"size": [HEIGHT, WIDTH], "counts": [5, 5]}), "cover 10 of 600"),
        (annotation(33, BOX, segmentation={"size": [HEIGHT, WIDTH], "counts": "0"}), "cover 0 of 600"),
        (annotation(33, BOX, segmentation={"size": [HEIGHT, WIDTH], "counts": "~~"}), "cannot be decoded"),
        (annotation(33, BOX, segmentation={"size": [HEIGHT, WIDTH], "counts": "P"}), "cannot be decoded"),
        (annotation(33, BOX, segmentation={"size": [HEIGHT, WIDTH], "counts": 5}), "cannot be decoded"),
        (annotation(33, BOX, segmentation={"size": [HEIGHT, WIDTH]}), "cannot be decoded"),
        (annotation(33, BOX, segmentation=[[1, 2, 3, 4, 5]]), "not a list of points"),
        (annotation(33, BOX, segmentation=[["a", 2, 3, 4, 5, 6]]), "not a list of points"),
        (annotation(33, BOX, segmentation=7), "not a list of points"),
        (annotation(33, BOX, segmentation=SHIFTED), "no polygon of the mask lies inside"),
        # Beyond 32 bits pycocotools crashes.
        (annotation(33, BOX, segmentation=[[1, 1, 1e9, 1, 1e9, 1e9]]), "more than 30 pixels outside"),
        (annotation(33, BOX, segmentation=[[1, 1, -31, 1, 9, 9]]), "more than 30 pixels outside"),
        (annotation(33, BOX, segmentation=[["1", "2", "3", "4", "5", "6"]]), "not a list of points"),
        (annotation(33, BOX, segmentation=[[[1, 2], [3, 4], [5, 6]]]), "not a list of points"),
        (annotation(33, BOX, segmentation={}), "the mask is of size None"),
        (annotation(33, BOX, segmentation={"size": [20, 30], "counts": [100.5, 499.5]}), "list of integers"),
        (annotation(33, BOX, segmentation={"size": [20, 30], "counts": [-5, 605]}), "a run is negative"),
        (annotation(33, [1, 4, True, 5]), "bbox is not x, y, width, height"),
        (annotation(33, [1, 4, 10**400, 5]), "bbox is not x, y, width, height"),
        (annotation(33, BOX, iscrowd="0"), "iscrowd is '0', not 0 or 1"),
        (annotation(33, BOX, image_id=[7]), r"there is no image \[7\]"),
        (annotation(33, BOX, category_id=90.0), r"there is no category 90\.0"),
    ],
)
def test_wrong_annotations_are_refused_by_name(write, wrong, message):
    with pytest.raises(InputError, match=message) as error:
        read_coco(write([*TRAIN, wrong]))
    assert "instances_train2017.json, annotation 33" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["annotations"][1].pop("bbox"), r"missing key: bbox(.|\n)*annotations\[1\]"),
        (lambda d: d["annotations"].append(d["annotations"][0]), r"1 occurs twice(.|\n)*annotations\[3\]"),
        (lambda d: d["images"][0].pop("height"), r"missing key: height(.|\n)*images\[0\]"),
        (lambda d: d["images"][0].update(height="20"), r"not a size(.|\n)*image 7"),
        (lambda d: d.update(images=[], annotations=[]), "lists no image"),
        (lambda d: d.pop("categories"), "no list 'categories'"),
        (lambda d: d["images"][0].update(file_name="gone.png"), r"missing(.|\n)*gone.png"),
        (lambda d: d["images"][0].update(width=WIDTH + 1), "the mask is of size"),
        (lambda d: (d["images"][0].update(width=WIDTH + 1), d["annotations"].clear()), "30x20 pixels, its"),
        (lambda d: d["images"][0].update(file_name="../val2017/8.png"), r"leads out of(.|\n)*image 7"),
        (lambda d: d["images"][0].update(file_name=""), r"not a file name(.|\n)*image 7"),
        (lambda d: d["images"][0].update(file_name="..\\val2017\\8.png"), r"leads out of(.|\n)*image 7"),
        (lambda d: d["images"][0].update(file_name=None), r"not a file name(.|\n)*image 7"),
        (lambda d: d["images"][0].update(file_name="/"), r"not a file name(.|\n)*image 7"),
        (lambda d: d["images"].append({**d["images"][0], "id": 9}), r"2 images of(.|\n)*7\.png"),
        (lambda d: d["images"][0].update(id=[7]), r"not an integer: \[7\](.|\n)*images\[0\]"),
        (lambda d: d["annotations"][0].update(id=None), r"not an integer: None(.|\n)*annotations\[0\]"),
        (lambda d: d["categories"][0].update(id="90"), r"not an integer: '90'(.|\n)*categories\[0\]"),
        (lambda d: d["categories"][0].update(name=None), r"not a name: None(.|\n)*category 90"),
        (lambda d: d["categories"][0].update(name="person"), r"called 'person'(.|\n)*category 1"),
        (lambda d: d.update(categories=[], annotations=[]), "has no category"),
        (lambda d: d["categories"][0].update(name="comb"), r"'comb' in the training file(.|\n)*category 90"),
        (lambda d: d["images"][0].update(height=10**12), r"not a size(.|\n)*image 7"),
        (lambda d: d["images"].append(5), r"missing key(.|\n)*images\[1\]"),
    ],
)
def test_wrong_files_are_refused_by_name(write, change, message):
    with pytest.raises(InputError) as error:
        read_coco(write(change=change))
    assert re.search(message, str(error.value))


def test_an_image_in_both_splits_is_refused(write):
    folder = write()
    for file in (folder / "annotations").iterdir():
        file.write_text(file.read_text().replace("8.png", "7.png"))
    (folder / "images").mkdir()
    (folder / "train2017" / "7.png").rename(folder / "images" / "7.png")
    for name in ("train2017", "val2017"):
        for rest in (folder / name).iterdir():
            rest.unlink()
        (folder / name).rmdir()
    with pytest.raises(InputError, match="for training and for testing"):
        read_coco(folder)


@pytest.mark.parametrize("content", [b'{"images": [', b"", b"[" * 100_000, b"\xff\xfe", b"9" * 5000])
def test_malformed_json_is_refused_by_name(write, content):
    folder = write()
    (folder / "annotations" / "instances_val2017.json").write_bytes(content)
    with pytest.raises(InputError, match=r"malformed JSON(.|\n)*instances_val2017.json"):
        read_coco(folder)


def test_a_mask_without_a_pixel_is_kept_and_named(write, caplog):
    empty = [{"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}, [[1, 1, 5, 1, 9, 1]]]
    folder = write([annotation(33 + i, BOX, segmentation=mask) for i, mask in enumerate(empty)])
    with caplog.at_level(logging.WARNING):
        found = read_coco(folder)
    assert len(found.splits["train"][0].objects) == 2
    assert [record.getMessage().split(",")[-1] for record in caplog.records[:2]] == [
        f" annotation {33 + i}: kept a mask without a pixel" for i in range(2)
    ]
    assert found.remarks[0].startswith("kept a mask without a pixel: 2 of 2 objects")


def test_a_category_that_the_training_file_lacks_may_not_be_used(write):
    folder = write()
    file = folder / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["categories"].append({"id": 5, "name": "comb"})
    file.write_text(json.dumps(content))
    assert read_coco(folder).classes == ("person", "toothbrush")
    content["annotations"] = [annotation(1, BOX, image_id=8, category_id=5)]
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"there is no category 5(.|\n)*annotation 1"):
        read_coco(folder)


def test_missing_and_ambiguous_files_are_refused(write):
    folder = write()
    (folder / "annotations" / "instances_train2014.json").write_text("{}")
    with pytest.raises(InputError, match="more than one annotation file for train"):
        read_coco(folder)
    for file in (folder / "annotations").glob("*train*"):
        file.unlink()
    with pytest.raises(InputError, match="instances_train"):
        read_coco(folder)
    write()
    (folder / "train").mkdir()
    (folder / "train" / "_annotations.coco.json").write_text("{}")
    with pytest.raises(
        InputError, match=r"more than one annotation file for train: annotations/.*, train/_anno"
    ):
        read_coco(folder)


def test_boxes_written_as_edges_are_refused_when_there_are_many(write, caplog):
    edges = [annotation(i, [20, 10, 28, 18]) for i in range(1, 31)]
    with pytest.raises(InputError, match=r"30 of 3[0-9] objects are outside") as caught:
        read_coco(write(edges))
    assert "left, top, width, height" in str(caught.value.next_step)
    few = [annotation(i, [20, 10, 28, 18] if i < 6 else [2, 3, 4, 5]) for i in range(1, 31)]
    caplog.clear()
    found = read_coco(write(few))
    assert [record.getMessage().count("to the image of 30x20") for record in caplog.records[:6]] == [
        1
    ] * 5 + [0]
    assert found.remarks[0].startswith("clipped a box to the image: 5 of 30 objects")


@pytest.mark.parametrize("n", [1, 40])
@pytest.mark.parametrize(
    "share",
    [
        {"bbox": [0.1, 0.2, 0.5, 0.8]},
        {"bbox": [0.9, 0.9, 0.2, 0.2]},  # of the centre, as YOLO writes them: x + width is more than 1
        {"bbox": [0, 0, 1, 1]},
        {"segmentation": [[0.1, 0.1, 0.9, 0.1, 0.9, 0.8]]},
    ],
)
def test_shares_of_the_image_are_not_taken_for_pixels(write, n, share):
    shares = [annotation(i, **{"box": BOX, **({} if "bbox" in share else share)}) for i in range(n)]
    for each in shares:
        each.update(share)
    with pytest.raises(InputError, match="shares of the image's width and height, not pixels") as caught:
        read_coco(write(shares))
    assert str(caught.value.where).endswith("instances_train2017.json")
    assert ("mask" if "segmentation" in share else "box") in caught.value.what
    pixels = annotation(n, BOX, segmentation=[[2, 3, 12, 3, 12, 8, 2, 8]])
    assert len(read_coco(write([*shares[:1], pixels])).splits["train"][0].objects) == 2


NO_MASKS = [None, [], [[]], [[], []], [[1, 2, 3, 4]], {"counts": [], "size": [HEIGHT, WIDTH]}]


@pytest.mark.parametrize("segmentation", NO_MASKS)
def test_an_object_without_a_mask_leaves_boxes_alone_and_is_named(write, segmentation):
    folder = write([*TRAIN, annotation(33, BOX, segmentation=segmentation)])
    found = load_image_set(f"coco:{folder}")
    assert found.detection("train").masks is None
    assert found.detection("train").boxes[0].tolist()[3] == [1, 4, 6, 9], "the object stays"
    (remark,) = (remark for remark in found.remarks if remark.startswith("no mask: 1 of 4 objects"))
    assert "(annotations/instances_train2017.json, annotation 33 for one)" in remark
    boxes_only = [{**each, "segmentation": []} for each in [*TRAIN, annotation(33, BOX)]]
    assert load_image_set(f"coco:{write(boxes_only)}").fingerprint == found.fingerprint


@pytest.mark.parametrize("segmentation", NO_MASKS)
def test_a_set_in_which_no_object_has_a_mask_needs_no_remark(write, segmentation):
    found = load_image_set(f"coco:{write([annotation(33, BOX, segmentation=segmentation)])}")
    assert found.detection("train").masks is None
    assert not any("no mask" in remark for remark in found.remarks)


def test_masks_that_miss_in_the_other_split_alone_count(write):
    folder = write()
    file = folder / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"] = [annotation(1, BOX, image_id=8)]
    file.write_text(json.dumps(content))
    found = load_image_set(f"coco:{folder}")
    assert found.detection("train").masks is None
    assert any("1 of 4 objects (annotations/instances_val2017.json, annotation 1" in r for r in found.remarks)


def test_many_masks_in_another_format_are_refused(write):
    dots = [annotation(i, BOX, segmentation=[[7.1, 7.1, 7.2, 7.1, 7.2, 7.2]]) for i in range(1, 31)]
    with pytest.raises(InputError, match="30 of 30 objects have a mask without a pixel") as caught:
        read_coco(write(dots))
    assert "in pixels" in str(caught.value.next_step)


def with_root(document, root="dataset", **others):
    document["categories"] = [
        {"id": 0, "name": root, "supercategory": "none"},
        *({**category, "supercategory": root} for category in document["categories"]),
    ]


def test_the_root_of_the_categories_is_no_class_unless_it_owns_an_object(write):
    found = read_coco(write(change=with_root))
    assert found.classes == ("person", "toothbrush")
    assert found.splits["train"][0].objects[0].label == 1
    assert any(remark.endswith("of others: 1 of 3 categories, dataset (0)") for remark in found.remarks)
    owned = read_coco(write([*TRAIN, annotation(4, BOX, category_id=0, segmentation=SQUARE)], with_root))
    assert owned.classes == ("dataset", "person", "toothbrush")


def test_a_root_may_have_the_name_of_a_class(write):
    assert read_coco(write(change=lambda d: with_root(d, "person"))).classes == ("person", "toothbrush")


def test_a_root_that_owns_objects_in_the_test_file_alone_is_refused_or_a_class(write):
    folder = write(change=with_root)
    file = folder / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    with_root(content)
    content["annotations"] = [annotation(1, BOX, image_id=8, category_id=0, segmentation=SQUARE)]
    file.write_text(json.dumps(content))
    assert read_coco(folder).classes == ("dataset", "person", "toothbrush")


def test_a_category_without_objects_stays_a_class_and_is_said(write):
    def its_own_parent(document):
        document["categories"][0]["supercategory"] = "toothbrush"

    found = read_coco(write([TRAIN[1]], its_own_parent))
    assert found.classes == ("person", "toothbrush")
    found = read_coco(write(TRAIN[:1]))
    assert found.classes == ("person", "toothbrush")
    assert "1 of 2 classes have no object to train on: person" in found.remarks


def test_classes_without_a_test_object_are_said(write):
    folder = write()
    file = folder / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"] = [
        annotation(1, BOX, image_id=8, segmentation=SQUARE),
        annotation(2, BOX, image_id=8, segmentation=SQUARE, category_id=1, iscrowd=1),
    ]
    file.write_text(json.dumps(content))
    assert [remark.split(":")[1] for remark in read_coco(folder).remarks if "no test object" in remark] == [
        " person"
    ]


@pytest.fixture
def roboflow(tmp_path):
    """Writes a folder in Roboflow's layout with the given splits and returns it."""

    def write(*splits):
        for identifier, split in enumerate(splits, start=1):
            folder = tmp_path / split
            folder.mkdir()
            Image.new("RGB", (WIDTH, HEIGHT), (identifier, 0, 0)).save(folder / "a.png")
            content = document(identifier, "a.png", [annotation(1, BOX, image_id=identifier)])
            with_root(content)
            (folder / "_annotations.coco.json").write_text(json.dumps(content))
        return tmp_path

    return write


def test_roboflows_layout_is_read_and_its_valid_is_said_to_be_unused(roboflow):
    found = load_image_set(f"coco:{roboflow('train', 'test', 'valid')}")
    shades = [found.detection(split).images[0][0].unique().tolist() for split in ("train", "test")]
    assert shades == [[1], [2]]
    assert found.detection_classes == ("person", "toothbrush")
    assert found.remarks[0].startswith("valid/_annotations.coco.json is not used")


def test_without_a_test_folder_roboflows_valid_is_measured_and_that_is_said(roboflow):
    found = load_image_set(f"coco:{roboflow('train', 'valid')}")
    assert found.detection("test").images[0][0].unique().tolist() == [2]
    assert "valid/_annotations.coco.json is measured" in found.remarks[0]


def test_a_validation_file_beside_a_test_file_is_said_to_be_unused(write):
    folder = write()
    annotations = folder / "annotations"
    (annotations / "instances_test.json").write_text((annotations / "instances_val2017.json").read_text())
    (folder / "val2017").rename(folder / "test")
    assert read_coco(folder).remarks[0].startswith("annotations/instances_val2017.json is not used")


def test_names_in_another_spelling_are_found_and_counted(write):
    folder = write(change=lambda d: d["images"][0].update(file_name="part\\7.PNG"))
    (folder / "train2017" / "part").mkdir()
    (folder / "train2017" / "7.png").rename(folder / "train2017" / "part" / "7.png")
    found = read_coco(folder)
    assert found.splits["train"][0].path == folder / "train2017" / "part" / "7.png"
    remark = (
        "files found under another name than the annotations give: 1 (part\\7.PNG is part/7.png, for one)"
    )
    assert remark in found.remarks


def test_a_remark_can_be_written_whatever_bytes_a_folder_is_called(write):
    folder = write(change=lambda d: d["images"][0].update(file_name="7.PNG"))
    odd = folder / "train2017" / os.fsdecode(b"odd\xff")
    odd.mkdir()
    (folder / "train2017" / "7.png").rename(odd / "7.png")
    found = read_coco(folder)
    assert found.splits["train"][0].path == odd / "7.png"
    assert any(r"(7.PNG is odd\udcff/7.png" in remark for remark in found.remarks)
    json.dumps(found.remarks, ensure_ascii=False).encode()


def test_two_spellings_of_one_picture_are_one_picture(write):
    folder = write(change=lambda d: d["images"].append({**d["images"][0], "id": 9, "file_name": "x/7.PNG"}))
    with pytest.raises(InputError, match=r"2 images of the split train(.|\n)*7\.png"):
        read_coco(folder)
