import logging

import numpy as np
import pytest
import torch
from PIL import Image

from twinbench.data.catalogue import load_image_set
from twinbench.data.voc import VOC_CLASSES, read_voc
from twinbench.foundation.errors import InputError

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""
WIDTH, HEIGHT = 40, 30


def write_image(folder, name, *objects, size=(WIDTH, HEIGHT)):
    """One picture of 40x30 pixels and its annotation; an object is (name, box) or (name, box, difficult)."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(name)).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.jpg")
    text = "".join(OBJECT.format(name=o[0], box=o[1], difficult=int(len(o) > 2)) for o in objects)
    size_text = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size_text}{text}</annotation>")


def write_lists(folder, **splits):
    for split, names in splits.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")


@pytest.fixture
def folder(tmp_path):
    write_image(tmp_path, "one", ("cat", (1, 1, WIDTH, HEIGHT)), ("dog", (5, 6, 20, 25), "difficult"))
    write_image(tmp_path, "two", ("dog", (3, 3, 3, 3)))
    write_image(tmp_path, "three")
    write_lists(tmp_path, trainval=["one", "two"], train=["one"], val=["two"], test=["three"])
    return tmp_path


def test_boxes_are_one_based_and_inclusive_in_the_file(folder):
    split = load_image_set(f"voc:{folder}").detection("train")
    assert split.boxes[0].tolist() == [[0, 0, WIDTH, HEIGHT], [4, 5, 20, 25]]
    assert split.boxes[1].tolist() == [[2, 2, 3, 3]], "equal edges are a box of one pixel"
    assert split.labels[0].tolist() == [0, 1]
    assert [flags.tolist() for flags in split.difficult] == [[False, True], [False]]
    assert split.crowd is None
    assert split.masks is None


def test_pictures_are_whole_and_decoded_on_demand(folder):
    split = load_image_set(f"voc:{folder}").detection("train")
    expected = np.asarray(Image.open(folder / "JPEGImages" / "two.jpg").convert("RGB"))
    assert torch.equal(split.images[1], torch.from_numpy(expected.transpose(2, 0, 1).copy()))
    assert split.size(1) == (HEIGHT, WIDTH)
    assert [image.shape for image in split.images[:2]] == 2 * [(3, HEIGHT, WIDTH)]


def test_a_set_serves_pretraining_as_unlabelled_squares(folder):
    image_set = load_image_set(f"voc:{folder}", image_size=16, limit={"test": 1})
    assert image_set.split("test").images.shape == (1, 3, 16, 16)
    assert image_set.split("train").labels.tolist() == [-1]
    assert image_set.detection_classes == ("cat", "dog")


def test_a_limit_takes_the_first_images(folder):
    assert len(load_image_set(f"voc:{folder}", limit={"train": 1}).detection("train")) == 1


def test_without_a_test_list_train_and_val_are_used(folder):
    (folder / "ImageSets" / "Main" / "test.txt").unlink()
    found = read_voc(folder)
    assert [image.path.stem for image in found.splits["train"]] == ["one"]
    assert [image.path.stem for image in found.splits["test"]] == ["two"]


def test_a_devkit_is_the_union_of_both_years(tmp_path):
    for year, name in (("VOC2007", "000001"), ("VOC2012", "2008_000001")):
        write_image(tmp_path / year, name, ("cat", (1, 1, 10, 10)))
        write_lists(tmp_path / year, trainval=[name])
    write_image(tmp_path / "VOC2007", "000002", ("tvmonitor", (1, 1, 10, 10)))
    write_lists(tmp_path / "VOC2007", test=["000002"])
    found = read_voc(tmp_path)
    assert [image.path.stem for image in found.splits["train"]] == ["000001", "2008_000001"]
    assert [image.path.stem for image in found.splits["test"]] == ["000002"]
    assert found.classes == VOC_CLASSES == tuple(sorted(VOC_CLASSES))
    assert len(VOC_CLASSES) == 20
    assert found.splits["test"][0].objects[0].label == 19


def test_a_devkit_of_2012_alone_is_tested_on_val(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / "VOC2012", name, ("cat", (1, 1, 10, 10)))
    write_lists(tmp_path / "VOC2012", train=["a"], val=["b"], trainval=["a", "b"])
    found = read_voc(tmp_path)
    assert [len(found.splits[split]) for split in ("train", "test")] == [1, 1]


@pytest.mark.parametrize(
    ("box", "repaired", "message"),
    [
        ((-4, 1, 10, 10), [0, 0, 10, 10], "clipped a box"),
        ((30, 20, 90, 90), [29, 19, WIDTH, HEIGHT], "clipped a box"),
        ((WIDTH + 1, 1, WIDTH + 9, 10), None, "without area"),
        ((8, 5, 7, 10), None, "without area"),
    ],
)
def test_boxes_outside_or_without_area_are_repaired_and_named(folder, caplog, box, repaired, message):
    write_image(folder, "one", ("cat", (1, 1, 9, 9)), ("dog", box))
    with caplog.at_level(logging.WARNING):
        found = read_voc(folder)
    boxes = [list(o.box) for o in found.splits["train"][0].objects]
    assert boxes == [[0, 0, 9, 9]] + ([] if repaired is None else [repaired])
    named, counted = (record.getMessage() for record in caplog.records)
    assert message in named
    assert "one.xml, object 2 (dog)" in named
    (remark,) = found.remarks
    assert remark.endswith("1 of 3 objects (Annotations/one.xml, object 2 (dog) for one)")
    assert counted == f"{folder}: {remark}"


@pytest.mark.parametrize("box", [(20, 5, 10, 10), (5, 20, 10, 10), ("nan", 1, 5, 5), ("x", 1, 5, 5)])
def test_boxes_that_are_none_are_refused_by_name(folder, box):
    write_image(folder, "two", ("dog", box))
    with pytest.raises(InputError) as error:
        read_voc(folder)
    assert "two.xml, object 1 (dog)" in str(error.value)


def refused(folder):
    with pytest.raises(InputError) as error:
        load_image_set(f"voc:{folder}")
    return str(error.value)


@pytest.mark.parametrize("n", [1, 30])
def test_shares_of_the_image_are_not_taken_for_pixels(folder, n):
    write_image(folder, "two", ("dog", (0.1, 0.2, 0.5, 1.0)))
    assert "1 of 3 objects" in read_voc(folder).remarks[0], "the boxes of another picture are in pixels"
    write_image(folder, "one", *[("dog", (0, 0, 1, 1))] * n)
    with pytest.raises(InputError, match="shares of the image's width and height, not pixels") as caught:
        read_voc(folder)
    assert caught.value.where == folder / "Annotations"


def test_malformed_xml_is_refused_by_name(folder):
    (folder / "Annotations" / "two.xml").write_text("<annotation><size>")
    assert "malformed XML" in refused(folder)
    assert "two.xml" in refused(folder)


LAUGHS = "<!DOCTYPE a [<!ENTITY a0 'lol'>{}]><annotation>&a9;</annotation>".format(
    "".join(f"<!ENTITY a{i} '{f'&a{i - 1};' * 10}'>" for i in range(1, 10))
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "malformed XML"),
        (LAUGHS, "malformed XML"),
        (
            "<!DOCTYPE a [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><annotation>&e;</annotation>",
            "undefined entity",
        ),
        ("<?xml version='1.0' encoding='none'?><annotation/>", "unknown encoding: none"),
        ("<?xml version='1.0' encoding='utf-7'?><annotation/>", "encodings are not supported"),
        ("<html><size/></html>", "begins with <html>"),
    ],
    ids=["empty", "billion laughs", "external entity", "unknown encoding", "wide encoding", "another root"],
)
def test_what_is_no_annotation_is_refused_by_name(folder, text, message):
    (folder / "Annotations" / "two.xml").write_text(text)
    assert message in refused(folder)
    assert "two.xml" in refused(folder)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("<difficult>0<", "<difficult>yes<", "two.xml, object 1 (dog)"),
        (f"<width>{WIDTH}<", f"<width>{WIDTH}.5<", "size/width is 40.5"),
        (f"<height>{HEIGHT}<", "<height>-3<", "size/height is -3"),
    ],
)
def test_flags_and_sizes_that_are_none_are_refused_by_name(folder, before, after, message):
    annotation = folder / "Annotations" / "two.xml"
    assert before in annotation.read_text()
    annotation.write_text(annotation.read_text().replace(before, after))
    assert message in refused(folder)
    assert "two.xml" in refused(folder)


@pytest.mark.parametrize("name", ["one", "../two", "/two", "t\0wo"])
def test_a_list_names_every_image_once_and_without_folder(folder, name):
    write_lists(folder, trainval=["one", name])
    assert "trainval.txt" in refused(folder)
    assert ("listed 2 times" if name == "one" else "is not the name of an image") in refused(folder)


def test_the_lists_of_classes_do_not_count(folder):
    write_lists(folder, trainval=["one  1", "two -1"], cat_trainval=["one  1", "two  0"])
    assert [image.path.stem for image in read_voc(folder).splits["train"]] == ["one", "two"]


def test_more_repairs_than_are_named_are_counted(folder, caplog):
    write_image(folder, "one", *[("dog", (-4, 1, 10, 10))] * 33, *[("dog", (4, 1, 10, 10))] * 166)
    with caplog.at_level(logging.WARNING):
        found = read_voc(folder)
    assert sum("to the image of" in record.getMessage() for record in caplog.records) == 20
    assert found.remarks == (
        "clipped a box to the image: 33 of 200 objects (Annotations/one.xml, object 1 (dog) for one)",
    )


def test_a_picture_that_cannot_be_decoded_is_refused_by_name_when_it_is_met(folder):
    picture = folder / "JPEGImages" / "two.jpg"
    whole = picture.read_bytes()
    split = load_image_set(f"voc:{folder}").detection("train")
    picture.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot decode") as error:
        split.images[1]
    assert error.value.where == picture
    assert "skip" not in error.value.next_step
    picture.write_text("no picture")
    assert "two.jpg" in refused(folder)


def test_a_picture_without_a_known_range_is_to_be_saved_otherwise(folder):
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.int32)).save(folder / "JPEGImages" / "two.jpg", "TIFF")
    with pytest.raises(InputError, match="cannot tell black from white") as caught:
        read_voc(folder)
    assert str(caught.value.next_step).startswith("save it with 8 or 16 unsigned bits")


def test_a_picture_that_is_too_large_is_not_to_be_restored(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match="too large") as caught:
        read_voc(folder)
    assert "restore" not in str(caught.value.next_step)


def test_missing_parts_are_refused_by_name(folder):
    annotation = folder / "Annotations" / "two.xml"
    annotation.write_text(annotation.read_text().replace("<name>dog</name>", ""))
    assert "two.xml, object 1" in refused(folder)
    annotation.write_text(f"<annotation><size><width>{WIDTH}</width></size></annotation>")
    assert "size/height is missing" in refused(folder)
    annotation.unlink()
    assert "two.xml" in refused(folder)


def test_a_missing_image_is_refused_by_name(folder):
    (folder / "JPEGImages" / "three.jpg").unlink()
    assert "missing" in refused(folder)
    assert "three.jpg" in refused(folder)


def test_another_version_of_a_picture_is_refused(folder):
    write_image(folder, "two", size=(WIDTH * 2, HEIGHT))
    assert f"{WIDTH}x{HEIGHT} pixels, its annotation says {2 * WIDTH}x{HEIGHT}" in refused(folder)


def test_a_class_that_occurs_in_the_test_alone_is_refused(folder):
    write_image(folder, "three", ("dgo", (1, 1, 5, 5)))
    message = refused(folder)
    assert "three.xml, object 1 (dgo)" in message
    assert "nearest: dog" in message


def test_an_image_in_both_splits_is_refused(folder):
    write_lists(folder, test=["three", "one"])
    assert "listed for training and for testing" in refused(folder)


def test_without_any_test_list_that_is_what_is_missing(folder):
    for name in ("test", "val"):
        (folder / "ImageSets" / "Main" / f"{name}.txt").unlink()
    assert "neither test.txt nor val.txt" in refused(folder)


def test_coordinates_from_zero_are_said(folder):
    write_image(folder, "two", ("dog", (0, 3, 9, 9)), ("dog", (2, 0, 9, 9)), ("dog", (1, 1, 9, 9)))
    found = read_voc(folder)
    assert found.remarks[0].startswith("left or top is 0, which looks like coordinates from 0")
    assert ": 2 of 5 objects (Annotations/two.xml, object 1 for one); if so" in found.remarks[0]
    write_image(folder, "two", ("dog", (-1, 3, 9, 9)))
    assert not any("from 0" in remark for remark in read_voc(folder).remarks), "outside, not from 0"


def test_missing_and_empty_lists_are_refused(folder):
    write_lists(folder, test=[])
    assert "test.txt" in refused(folder)
    for name in ("test", "val"):
        (folder / "ImageSets" / "Main" / f"{name}.txt").unlink()
    assert "val.txt" in refused(folder)
    assert "no Pascal VOC folder" in refused(folder / "ImageSets")


def test_the_fingerprint_follows_the_annotations(folder):
    before = load_image_set(f"voc:{folder}").fingerprint
    annotation = folder / "Annotations" / "two.xml"
    annotation.write_text(annotation.read_text().replace("<xmax>3<", "<xmax>4<"))
    assert load_image_set(f"voc:{folder}").fingerprint != before


def test_classes_that_differ_in_case_alone_are_a_slip(tmp_path):
    write_image(tmp_path, "one", ("cat", (1, 1, 9, 9)), ("Cat", (5, 6, 20, 25)))
    write_image(tmp_path, "two")
    write_lists(tmp_path, trainval=["one"], test=["two"])
    with pytest.raises(InputError, match=r"'Cat' and 'cat'|'cat' and 'Cat'"):
        read_voc(tmp_path)


def test_a_folder_without_a_test_list_says_what_it_measures(folder, caplog):
    (folder / "ImageSets" / "Main" / "test.txt").unlink()
    read_voc(folder)
    assert "there is no test.txt; train.txt is trained on and val.txt is measured" in caplog.text


def test_pictures_with_extensions_in_capitals_are_found_and_counted(folder):
    pictures = folder / "JPEGImages"
    (pictures / "two.jpg").rename(pictures / "two.JPG")
    (pictures / "three.jpg").rename(pictures / "Three.Jpeg")
    found = read_voc(folder)
    assert [found.splits[split][-1].path.name for split in ("train", "test")] == ["two.JPG", "Three.Jpeg"]
    assert any(remark.endswith(": 2 (two.jpg is two.JPG, for one)") for remark in found.remarks)


def test_the_file_name_in_the_annotation_helps_where_the_listed_one_does_not(folder):
    pictures, annotation = folder / "JPEGImages", folder / "Annotations" / "two.xml"
    content = annotation.read_text()
    annotation.write_text(content.replace("<annotation>", "<annotation><filename>one.jpg</filename>"))
    assert read_voc(folder).splits["train"][1].path == pictures / "two.jpg", "the listed name goes first"
    (pictures / "two.jpg").rename(pictures / "IMG_2.bmp")
    annotation.write_text(
        content.replace("<annotation>", "<annotation><filename>C:\\x\\img_2.bmp</filename>")
    )
    found = read_voc(folder)
    assert found.splits["train"][1].path == pictures / "IMG_2.bmp"
    assert any("(two.jpg is IMG_2.bmp, for one)" in remark for remark in found.remarks)
    annotation.write_text(content.replace("<annotation>", "<annotation><filename>one.jpg</filename>"))
    assert "2 images of the split train" in refused(folder)
    annotation.write_text(content.replace("<annotation>", "<annotation><filename>../one.jpg</filename>"))
    assert "an annotated image is missing" in refused(folder)


def test_a_list_that_names_one_picture_in_two_spellings_is_refused(folder):
    write_lists(folder, test=["TWO"])
    assert "listed for training and for testing" in refused(folder)


def test_a_list_of_validation_that_is_not_used_is_said(folder):
    (folder / "ImageSets" / "Main" / "trainval.txt").unlink()
    assert "val.txt is not used: train.txt is trained on and test.txt is measured" in read_voc(folder).remarks
