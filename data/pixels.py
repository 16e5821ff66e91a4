"""One file becomes one picture: RGB, eight bits a channel. What is refused, and what is assumed and said.

Every mode that Pillow reads gives the pixels of the same picture saved with eight bits a channel:

- Of 16 bits a channel, grey or colour, the upper eight are used, as Pillow does for colour and as libpng's "strip"; the
  range is that of the format, 0 to 65535 (12 bits: 0 to 4095), whatever values the picture has.
- What is transparent is seen on white. The colours that a file keeps under its transparent parts are no part of the
  picture; a reader that ignores transparency (torchvision's `ImageFolder`) sees them.
- Of several frames or pages the first is used. EXIF's orientation is left alone, as torchvision does; TIFF files are
  turned by their tag, for Pillow does that.

Refused by name are pictures whose range is not known (floating point, signed and 32-bit integers), pictures of more
pixels than Pillow reads (`pixel_limit`), and files that cannot be decoded.
"""

from __future__ import annotations

import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from twinbench.data.remarks import Tally, shown
from twinbench.data.tar_members import opened_file
from twinbench.foundation.errors import ExplainedError, InputError, ShortOfMemory

_log = logging.getLogger(__name__)

# Pillow warns of pictures of more than half the limit, each in words of its own; they are read like any other.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What a file is read as, whatever its name ends with; an MPO file is a JPEG file.

Of the others that Pillow knows one starts a program (EPS).
"""
# Pillow's plugins check little of what they read, and fail on it as Python does.
DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    struct.error,
    zlib.error,
    MemoryError,
    Image.DecompressionBombError,
)
_SIXTEEN_BIT_FORMATS = {"PNG", "PPM", "TIFF", "JPEG2000"}
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLES_PER_PIXEL, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 262, 277, 338, 339
_WHITE_IS_ZERO, _UNSIGNED, _UNDEFINED = 0, 1, 4
_START_OF_DATA, _END_OF_CODESTREAM = b"\xff\x93", b"\xff\xd9"
_QUARTER, _QUARTER_OF_EIGHT_BITS = 2**14, 2**6
_ORIENTATIONS = range(2, 9)  # 1 is upright
_OPAQUE = _EIGHT_BITS = 255


class Oddity(Enum):
    """What a remark says about a kind of pictures."""

    SIXTEEN_BIT = "of 16 bits a channel the upper 8 are used"
    DARK = "of 16 bits no value is above a quarter of the range, so it is dark (cameras of 10 to 14 bits write that)"
    TRANSPARENT = "transparent parts are seen on white"
    WITH_ALPHA = "what is transparent by an alpha channel or a transparent colour is seen on white"
    CHANNELS = "channels after the colours and alpha are not read"
    ASSUMED_ALPHA = "a fourth channel of unstated meaning is taken for transparency"
    FRAMES = "of several frames or pages the first is used"
    TURNED = "EXIF's orientation is not followed"
    TIFF_TURNED = "the orientation of TIFF files is followed"
    TOO_LARGE = "left out as too large"
    UNKNOWN_RANGE = "left out since the range of their values is not known"
    CORRUPT = "left out since they cannot be decoded"


class CorruptImage(InputError):
    """A file without a picture that can be used; not one that cannot be read, which no recipe may skip."""

    oddity: ClassVar[Oddity] = Oddity.CORRUPT


class TooLargeImage(CorruptImage):
    """A picture of more pixels than Pillow reads."""

    oddity = Oddity.TOO_LARGE


class UnknownRange(CorruptImage):
    """A picture whose values may mean anything between black and white."""

    oddity = Oddity.UNKNOWN_RANGE


class Picture(NamedTuple):
    """A decoded picture in RGB at its full size, and what is odd about it."""

    image: Image.Image
    odd: tuple[Oddity, ...] = ()


class Oddities:
    """What was odd about the pictures below ``root`` that were decoded so far; each counts once for a kind.

    Those of a ``split`` have its name in their remarks, which so are the same whatever else a process decoded.
    """

    def __init__(self, root: Path = Path(), split: str = "") -> None:
        self._root, self._split = root, split
        self.paths: dict[Oddity, set[Path]] = {}

    def __reduce__(self) -> tuple[type[Oddities], tuple[Path, str]]:
        """Begin anew in a worker process, which has no use for what others met."""
        return Oddities, (self._root, self._split)

    def add(self, path: Path, kinds: Iterable[Oddity]) -> None:
        """Note a picture; the first of a kind that is used all the same is named in a warning."""
        for kind in kinds:
            if kind not in self.paths:
                self.paths[kind] = set()
                if kind not in (Oddity.TOO_LARGE, Oddity.UNKNOWN_RANGE, Oddity.CORRUPT):
                    _log.warning("%s: %s; others like it are counted", path, kind.value)
            self.paths[kind].add(path)

    def add_all(self, pictures: Iterable[tuple[Path, Iterable[Oddity]]]) -> None:
        """Note several pictures with what is odd about each."""
        for path, kinds in pictures:
            self.add(path, kinds)

    def include(self, others: Mapping[Oddity, set[Path]]) -> None:
        """Count what another process has noted, and named."""
        for kind, paths in others.items():
            self.paths.setdefault(kind, set()).update(paths)

    def remarks(self) -> tuple[str, ...]:
        """One sentence for each kind."""
        met = ((kind, self.paths[kind]) for kind in Oddity if kind in self.paths)
        picture = f"{self._split} picture".lstrip()
        return tuple(
            f"{kind.value}: {Tally(len(paths), shown(min(paths), self._root)).said(picture)}"
            for kind, paths in met
        )


def pixel_limit() -> int | None:
    """The largest number of pixels that Pillow reads."""
    return None if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


@contextmanager
def opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """A picture of which no more than the header is decoded; its path may lead into a tar file (`data.tar_members`).

    Here and in the block raises CorruptImage or one of its kinds, InputError for a file that it may not read, and
    ShortOfMemory.
    """
    try:
        with opened_file(path) as file, Image.open(file, formats=FORMATS) as image:
            yield image
    except DECODING_ERRORS as error:
        raise _unusable(path, error) from error


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height by the file's header; raises as `opened` does."""
    with opened(path) as image:
        return image.size


def open_rgb(path: Path) -> Image.Image:
    """The picture of `read_picture`."""
    return read_picture(path).image


def read_picture(path: Path) -> Picture:
    """The decoded picture; raises as `opened` does."""
    with opened(path) as image:
        if image.format == "JPEG" and image.mode == "RGB":  # nearly all there are
            image.load()
            return Picture(image, (Oddity.TURNED,) if _has_orientation(image) else ())
        return _picture(image)


class _RangeNotKnown(ValueError):
    """Says which values these are."""


def _picture(image: ImageFile.ImageFile) -> Picture:
    """Any picture but a common JPEG."""
    _require_end(image)
    _require_known_range(image)
    tiff_turned = image.format == "TIFF" and _has_orientation(image)  # the tag is gone when it is decoded
    sixteen = _has_sixteen_bits(image)
    channels = _of_channels(image)
    if _is_deep(image):
        pixels, dark = _eight_of_sixteen(image)
    else:
        pixels = _with_its_transparency(image)
        dark = sixteen and _is_dark(pixels)
    pixels, transparent = _on_white(pixels)
    noted = {
        Oddity.SIXTEEN_BIT: sixteen,
        Oddity.DARK: dark,
        Oddity.TRANSPARENT: transparent,
        Oddity.FRAMES: _has_more_frames(image),
        Oddity.TURNED: image.format != "TIFF" and _has_orientation(image),
        Oddity.TIFF_TURNED: tiff_turned,
    }
    return Picture(pixels, (*channels, *(kind for kind, present in noted.items() if present)))


def expected_oddities(image: ImageFile.ImageFile) -> tuple[Oddity, ...]:
    """What is odd about a picture by its header, for those that are decoded only when they are asked for.

    In `opened` raises UnknownRange as decoding will.
    """
    _require_known_range(image)
    noted = {
        Oddity.SIXTEEN_BIT: _has_sixteen_bits(image),
        Oddity.WITH_ALPHA: image.has_transparency_data,
        Oddity.FRAMES: _has_more_frames(image),
    }
    return (*_of_channels(image), *(kind for kind, present in noted.items() if present))


def _of_channels(image: Image.Image) -> tuple[Oddity, ...]:
    """What is odd about the number of channels of a TIFF file, in which any may follow the colours."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return ()
    if image.tag_v2.get(_SAMPLES_PER_PIXEL, 1) > len(image.getbands()):
        return (Oddity.CHANNELS,)
    return (Oddity.ASSUMED_ALPHA,) if image.mode == "RGBA" and _EXTRA_SAMPLES not in image.tag_v2 else ()


def _has_sixteen_bits(image: ImageFile.ImageFile) -> bool:
    """Asked before the picture is decoded, which reduces colours to 8 bits."""
    stored = image.tile[0][3] if image.tile else ""
    if image.format == "PPM" and isinstance(stored, tuple) and isinstance(stored[-1], int):
        return stored[-1] > _EIGHT_BITS
    return ";16" in str(stored) or _is_deep(image)


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "I" or image.mode.startswith("I;16")


def _require_known_range(image: Image.Image) -> None:
    """Raise _RangeNotKnown unless black and white are known values."""
    if image.mode == "F":
        raise _RangeNotKnown("floating-point numbers")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        formats = image.tag_v2.get(_SAMPLE_FORMAT, _UNSIGNED)
        if set(np.atleast_1d(formats).tolist()) - {_UNSIGNED, _UNDEFINED}:
            raise _RangeNotKnown("signed integers")
        if image.mode == "I":
            raise _RangeNotKnown("integers of 32 bits")
    elif _is_deep(image) and image.format not in _SIXTEEN_BIT_FORMATS:
        raise _RangeNotKnown(f"integers of 16 or 32 bits in a file of the format {image.format}")


def _eight_of_sixteen(image: Image.Image) -> tuple[Image.Image, bool]:
    """The upper eight bits of a grey picture, in the mode L or LA, and whether it is all but black."""
    bits, white_is_zero = 16, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = int(np.atleast_1d(image.tag_v2.get(_BITS_PER_SAMPLE, bits))[0])
        white_is_zero = image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    values = np.asarray(image).astype(np.uint16)
    if white_is_zero:  # Pillow does not turn these over
        values = 2**bits - 1 - values
    pixels = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
    if "transparency" in image.info:
        pixels.putalpha(
            Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8))
        )
    return pixels, bits == 16 and 0 < int(values.max()) <= _QUARTER


def _is_dark(image: Image.Image) -> bool:
    """Whether no colour of a picture of 16 bits is above a quarter; of values below 256 Pillow leaves nothing but 0."""
    if image.mode not in ("RGB", "RGBA", "RGBX", "LA"):
        return False
    image.load()
    highest = zip(image.getbands(), np.reshape(image.getextrema(), (-1, 2))[:, 1], strict=True)
    return all(value <= _QUARTER_OF_EIGHT_BITS for band, value in highest if band in "RGBL")


def _require_end(image: ImageFile.ImageFile) -> None:
    """Raise ValueError for a JPEG 2000 file that was cut, of which OpenJPEG makes a picture that is black in parts.

    Its last marker cannot stand among the pixels' data (ISO/IEC 15444-1, annex A).
    """
    if image.format != "JPEG2000":
        return
    assert image.fp is not None
    place = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read()
    image.fp.seek(place)
    if not 0 <= content.find(_START_OF_DATA) < content.rfind(_END_OF_CODESTREAM):
        raise ValueError("the end of its data is missing")


def _with_its_transparency(image: ImageFile.ImageFile) -> Image.Image:
    """Mend the one transparent value of a PNG file where Pillow compares it with pixels of another depth."""
    stored = str(image.tile[0][3]) if image.format == "PNG" and image.tile else ""
    transparency = image.info.get("transparency")
    if stored == "RGB;16B" and transparency is not None:
        raise _RangeNotKnown("colours of 16 bits, one of which is marked as transparent")
    if stored in ("L;2", "L;4") and isinstance(transparency, int):
        image.info["transparency"] = transparency * (85 if stored == "L;2" else 17)
    return image


def _on_white(image: Image.Image) -> tuple[Image.Image, bool]:
    """The picture in RGB as seen on white, and whether some of it is transparent."""
    image.load()
    if not image.has_transparency_data:
        return image.convert("RGB"), False
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    alpha = rgba.getchannel("A")
    if alpha.getextrema()[0] == _OPAQUE:
        return rgba.convert("RGB"), False
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=alpha)
    return white, True


def _has_more_frames(image: Image.Image) -> bool:
    """Whether there are frames or pages after the first; a photograph's further pictures (MPO) are its previews."""
    try:
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except DECODING_ERRORS:  # of the second frame
        return True


def _has_orientation(image: Image.Image) -> bool:
    """Whether a tag says to turn the picture."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return image.tag_v2.get(ExifTags.Base.Orientation) in _ORIENTATIONS
    if "exif" not in image.info:
        return False
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in _ORIENTATIONS
    except DECODING_ERRORS:
        return False


def _unusable(path: Path, error: BaseException) -> ExplainedError:
    skipping = "a training leaves such files out if its recipe says corrupt_images: skip"
    if isinstance(error, OSError) and error.errno is not None:
        return InputError(
            f"cannot read this file: {error.strerror}", where=path, next_step="make it readable"
        )
    if isinstance(error, MemoryError):  # a picture that may well be good, so no recipe may skip it
        return ShortOfMemory(
            "there is not enough memory to decode this image",
            where=path,
            next_step="run the same command again with more memory or fewer workers, or make the image smaller",
        )
    if isinstance(error, Image.DecompressionBombError):
        return TooLargeImage(
            _too_large(error),
            where=path,
            next_step=f"make it smaller or cut it into pieces; {skipping}",
            option="corrupt_images=skip",
        )
    if isinstance(error, _RangeNotKnown):
        return UnknownRange(
            f"cannot tell black from white in this image: its values are {error}",
            where=path,
            next_step=f"save it with 8 or 16 unsigned bits a channel; {skipping}",
            option="corrupt_images=skip",
        )
    # Pillow's words for a file of no format that it may try are those of a programmer
    of_no_format = f"it is none of the formats {', '.join(FORMATS)}"
    return CorruptImage(
        f"cannot decode this image: {of_no_format if isinstance(error, UnidentifiedImageError) else error}",
        where=path,
        next_step=f"replace the file or remove it; {skipping}",
        option="corrupt_images=skip",
    )


def _too_large(error: Image.DecompressionBombError) -> str:
    """Pillow's words with its numbers, since it does not say width and height."""
    numbers = re.findall(r"\d+", str(error))
    pixels = f"{numbers[0]} pixels" if numbers else "more pixels than Pillow reads"
    return f"this image is too large: {pixels}, the limit is {pixel_limit()}"
