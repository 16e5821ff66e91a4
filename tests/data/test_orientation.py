import io
import json
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, PngImagePlugin

from twinbench.data.catalogue import load_image_set
from twinbench.data.coco import read_coco
from twinbench.data.orientation import read_header
from twinbench.foundation.errors import InputError

HEIGHT, WIDTH = 32, 48
ORIENTATION = 0x0112
FORMATS = {
    "jpg": {"quality": 95},
    "png": {},
    "webp": {"lossless": True},
    "tif": {},
    "tiff": {"compression": "tiff_lzw"},
}
EXCHANGING = (5, 6, 7, 8)


def stored_picture(height=HEIGHT, width=WIDTH):
    """Black with one bright block of 8x16 pixels, off the centre, that every turn moves elsewhere."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[8:16, 24:40] = 255
    return Image.fromarray(pixels)


def turned_picture(stored, tag):
    """What Pillow says a viewer shows."""
    stored = stored.copy()
    stored.getexif()[ORIENTATION] = tag
    return ImageOps.exif_transpose(stored)


def bright_box(pixels):
    """x1, y1, x2, y2 of the bright block in ``[3, H, W]``, the far edges exclusive."""
    ys, xs = np.nonzero(np.asarray(pixels).mean(axis=0) > 128)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def saved(path, tag, stored=None, **options):
    exif = Image.Exif()
    if tag is not None:
        exif[ORIENTATION] = tag
    (stored or stored_picture()).save(path, exif=exif, **(options or FORMATS[path.suffix[1:]]))


class Set:
    """A COCO folder of pictures with one box and mask each, around the bright block of what the annotator saw."""

    def __init__(self, root):
        self.root, self.entries = root, []

    def add(self, name, tag, seen_turned, stored=None):
        folder = self.root / "images"
        folder.mkdir(exist_ok=True)
        stored = stored or stored_picture()
        saved(folder / name, tag, stored)
        seen = turned_picture(stored, tag) if seen_turned and tag else stored
        self.entries.append((name, seen.size, bright_box(np.array(seen).transpose(2, 0, 1))))

    def read(self):
        (self.root / "annotations").mkdir(exist_ok=True)
        images, annotations = [], []
        for i, (name, (width, height), box) in enumerate(self.entries, start=1):
            left, top, right, bottom = map(int, box)
            images.append({"id": i, "file_name": name, "width": width, "height": height})
            corners = [left, top, right, top, right, bottom, left, bottom]
            annotation = {"id": i, "image_id": i, "category_id": 1, "segmentation": [corners]}
            annotations.append({**annotation, "bbox": [left, top, right - left, bottom - top]})
        saved(self.root / "images" / "test.png", None)
        test = [{"id": 1, "file_name": "test.png", "width": WIDTH, "height": HEIGHT}]
        for split, pictures, objects in (("train", images, annotations), ("test", test, [])):
            content = {
                "images": pictures,
                "annotations": objects,
                "categories": [{"id": 1, "name": "block"}],
            }
            (self.root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        return load_image_set(f"coco:{self.root}")

    def agree(self):
        """Whether box, mask, size and picture agree, for each picture."""
        split = self.read().detection("train")
        found = []
        for i in range(len(split)):
            picture, box = split.images[i], split.boxes[i][0].tolist()
            assert picture.shape[1:] == split.size(i) == split.masks[i].shape[1:]
            assert bright_box(split.masks[i].expand(3, -1, -1).numpy() * 255.0) == box
            found.append(bright_box(picture) == box)
        return found


@pytest.fixture
def pictures(tmp_path):
    return Set(tmp_path)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("tag", EXCHANGING)
@pytest.mark.parametrize("seen_turned", [False, True])
def test_the_annotated_size_says_which_way_up_a_picture_is(pictures, suffix, tag, seen_turned):
    pictures.add(f"a.{suffix}", tag, seen_turned)
    pictures.add(f"plain.{suffix}", None, False)
    assert pictures.agree() == [True, True]
    (remark,) = (remark for remark in pictures.read().remarks if "orientation" in remark)
    assert remark.startswith("turned by" if seen_turned else "not turned by")
    assert remark.endswith(f"1 of 3 pictures (images/a.{suffix} for one)")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("tag", [2, 3, 4])
def test_where_the_size_does_not_tell_a_picture_is_read_as_stored_and_that_is_said(pictures, suffix, tag):
    pictures.add(f"a.{suffix}", tag, seen_turned=False)
    assert pictures.agree() == [True]
    (remark,) = (remark for remark in pictures.read().remarks if "orientation" in remark)
    assert "does not tell" in remark
    assert f"1 of 2 pictures (images/a.{suffix} for one)" in remark
    assert "these are read as they are stored" in remark


@pytest.mark.parametrize("suffix", FORMATS)
def test_pictures_whose_size_tells_speak_for_those_whose_size_does_not(pictures, suffix):
    square = stored_picture(WIDTH, WIDTH)
    pictures.add(f"tells.{suffix}", 6, seen_turned=True)
    for tag in (2, 3, 4):
        pictures.add(f"{tag}.{suffix}", tag, seen_turned=True)
    for tag in (*EXCHANGING, 3):
        pictures.add(f"square{tag}.{suffix}", tag, seen_turned=True, stored=square)
    assert pictures.agree() == [True] * 9
    assert any(
        "8 of 10 pictures" in remark and "read turned by it, as those whose size tells" in remark
        for remark in pictures.read().remarks
    )


def test_pictures_whose_sizes_disagree_speak_for_none(pictures):
    pictures.add("a.jpg", 6, seen_turned=True)
    pictures.add("b.jpg", 8, seen_turned=False)
    pictures.add("c.jpg", 3, seen_turned=False)
    assert pictures.agree() == [True] * 3
    assert len([remark for remark in pictures.read().remarks if "orientation" in remark]) == 3


@pytest.mark.parametrize("tag", [None, 0, 1, 9])
def test_a_picture_without_a_tag_that_turns_it_needs_no_remark(pictures, tag):
    pictures.add("a.jpg", tag, seen_turned=False)
    assert pictures.agree() == [True]
    assert pictures.read().remarks == ()


def test_a_size_that_is_neither_the_stored_nor_the_turned_one_is_refused(pictures):
    pictures.add("a.jpg", 6, seen_turned=False)
    pictures.entries[0] = ("a.jpg", (HEIGHT + 1, WIDTH), [0, 0, 8, 8])
    with pytest.raises(InputError, match="the picture has 48x32 pixels, its annotation says 33x48"):
        pictures.read()


def test_one_picture_sent_to_a_worker_process_is_turned_as_well(pictures):
    pictures.add("a.jpg", 8, seen_turned=True)
    images = pictures.read().detection("train").images
    sent = pickle.loads(pickle.dumps(images.only(0)))
    assert sent[0].shape == (3, WIDTH, HEIGHT)
    assert torch.equal(sent[0], images[0])


def test_whether_pictures_are_turned_is_part_of_the_identity(pictures):
    pictures.add("a.jpg", 3, seen_turned=False)
    pictures.add("b.jpg", 6, seen_turned=False)
    pictures.add("b2.jpg", 6, seen_turned=True)
    pictures.read()
    undecided = read_coco(pictures.root)
    del pictures.entries[1]
    pictures.read()
    turned = read_coco(pictures.root)
    assert turned.splits["train"][0].objects == undecided.splits["train"][0].objects
    del undecided.splits["train"][1]
    assert turned.digest() != undecided.digest(), "a.jpg is read the other way now"


def test_the_tag_is_read_without_decoding_even_behind_the_pixels_of_a_png(tmp_path, monkeypatch):
    saved(tmp_path / "a.png", None)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = exif.tobytes()[6:]
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data
    chunk += struct.pack(">I", zlib.crc32(b"eXIf" + data))
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[:-12] + chunk + content[-12:])
    with Image.open(tmp_path / "a.png") as image:
        assert image.getexif()[ORIENTATION] == 6, "Pillow finds it as well, after decoding"
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", None)
    assert read_header(tmp_path / "a.png").tag == 6


def test_a_tag_in_xmp_counts_and_a_damaged_one_does_not(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    stored_picture().save(tmp_path / "xmp.jpg", xmp=xmp)
    assert read_header(tmp_path / "xmp.jpg").tag == 8
    buffer = io.BytesIO()
    stored_picture().save(buffer, "jpeg", exif=b"Exif\0\0no header")
    (tmp_path / "damaged.jpg").write_bytes(buffer.getvalue())
    assert read_header(tmp_path / "damaged.jpg").tag == 1


def test_the_rule_is_the_same_for_pascal_voc(tmp_path):
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / part).mkdir(parents=True)
    for name, seen_turned in (("a", True), ("b", False)):
        saved(tmp_path / "JPEGImages" / f"{name}.jpg", 6)
        seen = turned_picture(stored_picture(), 6) if seen_turned else stored_picture()
        left, top, right, bottom = bright_box(np.array(seen).transpose(2, 0, 1))
        (tmp_path / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><size><width>{seen.width}</width><height>{seen.height}</height></size>"
            f"<object><name>block</name><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin>"
            f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object></annotation>"
        )
    (tmp_path / "ImageSets/Main/trainval.txt").write_text("a\n")
    (tmp_path / "ImageSets/Main/test.txt").write_text("b\n")
    found = load_image_set(f"voc:{tmp_path}")
    for split in map(found.detection, ("train", "test")):
        assert bright_box(split.images[0]) == split.boxes[0][0].tolist()
    assert len(found.remarks) == 2


def test_what_is_odd_about_annotated_pictures_is_said_though_they_are_decoded_later(pictures):
    values = np.asarray(stored_picture().convert("L")).astype(np.uint16) * 257
    pictures.add("deep.png", None, False)
    Image.fromarray(values).save(pictures.root / "images" / "deep.png")
    seen = stored_picture().convert("RGBA")
    seen.putalpha(0)
    seen.paste((0, 0, 0, 255), (24, 8, 40, 16))
    pictures.add("cut_out.png", None, False)  # annotated as the others are
    seen.save(pictures.root / "images" / "cut_out.png")
    image_set = pictures.read()
    said = " ".join(image_set.remarks)
    assert "of 16 bits a channel the upper 8 are used: 1 picture, images/deep.png" in said
    assert "is seen on white: 1 picture, images/cut_out.png" in said
    deep, cut_out = image_set.detection("train").images
    assert bright_box(deep) == [24, 8, 40, 16]
    assert bright_box(255 - cut_out.numpy()) == [24, 8, 40, 16]  # a dark block on white


def test_an_annotated_picture_of_unknown_range_is_refused_before_any_work(pictures):
    pictures.add("a.tif", None, False)
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.float32)).save(pictures.root / "images" / "a.tif")
    with pytest.raises(InputError, match=r"floating-point numbers(.|\n)*a\.tif"):
        pictures.read()
