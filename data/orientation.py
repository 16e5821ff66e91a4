"""Which way up an annotated picture is read, where its file has an orientation tag (EXIF 0x0112, or XMP's).

A camera stores a picture as its sensor was held and notes in the tag how a viewer turns it. Boxes may have been drawn
on the stored picture or on the turned one, and the annotated size tells which: the tags 5 to 8 exchange width and
height. It does not tell for a square picture, nor for the tags 2 to 4, which mirror or turn by 180 degrees. These are
read as all the pictures whose size tells, where there are such and they agree, else as they are stored. Remarks count
all three kinds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import Image, PngImagePlugin, TiffImagePlugin

from twinbench.data.pixels import Oddity, expected_oddities, opened
from twinbench.data.remarks import Tally

_ORIENTATION = 0x0112
_UPRIGHT = 1
# What a viewer does to the stored picture (as `PIL.ImageOps.exif_transpose`); turning counts against the clock.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_UNDONE = _TURNS | {6: _TURNS[8], 8: _TURNS[6]}
_EXCHANGING = (5, 6, 7, 8)
_PNG_SIGNATURE_BYTES = 8
_LARGEST_EXIF = 2**20  # bytes; Python makes room for what a header claims before it reads
_WHERE = "in detection (elsewhere files are decoded without regard to the annotated size)"


@dataclass(frozen=True)
class Header:
    """The stored size of a picture in pixels and its orientation tag, 1 to 8; 1 where it has none or a damaged one.

    ``decoded_turned`` says that decoding turns the picture, as Pillow does with TIFF and with no other format. ``odd``
    is what `data.pixels` has to say about it.
    """

    height: int
    width: int
    tag: int
    decoded_turned: bool
    odd: tuple[Oddity, ...] = ()

    def fitting(self, height: int, width: int) -> tuple[bool, ...]:
        """The ways to read the picture that give this size: as it is stored (False), turned by its tag (True)."""
        stored = (self.height, self.width) == (height, width)
        if self.tag == _UPRIGHT:
            return (False,) * stored
        turned_size = (self.width, self.height) if self.tag in _EXCHANGING else (self.height, self.width)
        return (False,) * stored + (True,) * (turned_size == (height, width))

    def transposition(self, turned: bool) -> Image.Transpose | None:
        """What makes the decoded picture the stored one, or the turned one; None where it is that already."""
        if turned == self.decoded_turned:
            return None
        return _TURNS.get(self.tag) if turned else _UNDONE.get(self.tag)


def read_header(path: Path) -> Header:
    """Size and orientation without decoding the picture; raises as `data.pixels.opened` does."""
    with opened(path) as image:
        width, height = image.size
        tag = _tag(image)
        tiff = isinstance(image, TiffImagePlugin.TiffImageFile)
        if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_ORIENTATION) in _EXCHANGING:
            # Pillow gives the size of the turned picture.
            width, height = height, width
        return Header(height, width, tag, tiff and tag != _UPRIGHT, expected_oddities(image))


def _tag(image: Image.Image) -> int:
    if isinstance(image, PngImagePlugin.PngImageFile) and "exif" not in image.info and image.fp is not None:
        late = _exif_after_pixels(image.fp)
        if late is not None:
            image.info["exif"] = late
    try:
        # Not the method of PNG's class, which decodes the picture to find a tag behind its pixels.
        tag = Image.Image.getexif(image).get(_ORIENTATION)
    except (SyntaxError, ValueError, struct.error):
        return _UPRIGHT
    return tag if isinstance(tag, int) and tag in _TURNS else _UPRIGHT


def _exif_after_pixels(file: IO[bytes]) -> bytes | None:
    """The EXIF block of a PNG file wherever it stands, found by stepping over the other chunks."""
    file.seek(_PNG_SIGNATURE_BYTES)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            return file.read(length) if length <= _LARGEST_EXIF else None
        file.seek(length + 4, 1)
    return None


def choose_turned(
    headers: Sequence[Header], fitting: Sequence[tuple[bool, ...]], names: Sequence[str]
) -> tuple[list[bool], tuple[str, ...]]:
    """Whether each picture is read turned by its tag, and remarks with counts on those that have a tag.

    ``fitting`` is what `Header.fitting` gives for the annotated size, at least one way each.
    """
    told = {
        ways[0] for header, ways in zip(headers, fitting, strict=True) if header.tag > 1 and len(ways) == 1
    }
    assumed = told == {True}
    turned = [ways[0] if len(ways) == 1 else assumed for ways in fitting]
    tallies = {"turned": Tally(), "stored": Tally(), "open": Tally()}
    for header, ways, way, name in zip(headers, fitting, turned, names, strict=True):
        if header.tag != _UPRIGHT:
            tallies["open" if len(ways) > 1 else "turned" if way else "stored"].add(name)
    return turned, tuple(_remarks(tallies, len(headers), assumed))


def _remarks(tallies: dict[str, Tally], pictures: int, assumed: bool) -> Iterator[str]:
    said = {kind: tally.of(pictures, "pictures") for kind, tally in tallies.items() if tally.count}
    if "turned" in said:
        yield f"turned by their orientation tag, which gives the annotated size, {_WHERE}: {said['turned']}"
    if "stored" in said:
        yield f"not turned by their orientation tag, for the stored size is annotated, {_WHERE}: {said['stored']}"
    if "open" in said:
        if assumed:
            how, remedy = "turned by it, as those whose size tells", "are of the stored ones, remove the tags"
        else:
            how, remedy = (
                "as they are stored",
                "are of the turned ones, save them turned and without the tags",
            )
        yield (
            "the annotated size does not tell whether the boxes are of the stored picture or of the one that its "
            f"orientation tag turns: {said['open']}; {_WHERE} these are read {how} (if the boxes {remedy})"
        )
