"""Every mode that Pillow reads: the pixels of the same picture with eight bits a channel, or a refusal by name."""

import contextlib
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from twinbench.data.pixels import (
    CorruptImage,
    Oddities,
    Oddity,
    TooLargeImage,
    UnknownRange,
    open_rgb,
    picture_size,
    pixel_limit,
    read_picture,
)
from twinbench.data.tar_members import member_path

GREYS = np.arange(256, dtype=np.uint8).reshape(16, 16)
EVERY_FORMAT = [
    f"a.{end}" for end in ["png", "tif", "gif", "jpg", "bmp", "webp", "ppm", "avif", "jp2", "j2k"]
]
COLOURS = np.stack([GREYS, GREYS[::-1], GREYS.T], axis=2)
DEEP = GREYS.astype(np.uint16) * 257  # the same greys in 16 bits, as the PNG specification widens them


def pixels_of(path: Path) -> np.ndarray:
    image = open_rgb(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def write_png(
    path: Path, samples: np.ndarray, bits: int, colour: int, transparent: tuple[int, ...] = ()
) -> Path:
    """A PNG file by its specification, for what Pillow does not write; samples ``[H, W]`` or ``[H, W, channels]``."""
    height, width = samples.shape[:2]
    rows = samples.reshape(height, -1)
    if bits == 16:
        packed = [row.astype(">u2").tobytes() for row in rows]
    else:
        planes = (rows[..., None].astype(np.uint8) >> np.arange(bits - 1, -1, -1, dtype=np.uint8)) & 1
        packed = [np.packbits(row).tobytes() for row in planes.reshape(height, -1)]
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = [png_chunk(b"IHDR", header)]
    if transparent:
        chunks.append(png_chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)))
    chunks.append(png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in packed))))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + png_chunk(b"IEND", b""))
    return path


def write_tiff(
    path: Path,
    samples: bytes,
    bits: int,
    photometric: int = 1,
    sample_format: int = 1,
    order: str = "<",
    extra: int | None = None,
) -> Path:
    """A picture of 16x16 pixels of one channel (or of grey and alpha, with ``extra``) by the TIFF specification."""
    channels = 1 if extra is None else 2
    tags = {256: 16, 257: 16, 258: bits, 259: 1, 262: photometric, 273: 8, 277: channels, 278: 16}
    tags |= {279: len(samples), 339: sample_format} | ({} if extra is None else {338: extra})
    entries = b""
    for tag, value in sorted(tags.items()):
        kind, count = ("I", 1) if tag in (273, 279) else ("H", channels if tag in (258, 339) else 1)
        packed = struct.pack(order + kind * count, *[value] * count).ljust(4, b"\0")
        entries += struct.pack(f"{order}HHI", tag, 4 if kind == "I" else 3, count) + packed
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(samples))
    path.write_bytes(head + samples + struct.pack(f"{order}H", len(tags)) + entries + bytes(4))
    return path


# Grey of more than eight bits.


def big_endian_tiff(path: Path) -> None:
    write_tiff(path, DEEP.astype(">u2").tobytes(), 16, order=">")


def white_is_zero_tiff(path: Path) -> None:
    write_tiff(path, (65535 - DEEP).astype("<u2").tobytes(), 16, photometric=0)


def twelve_bit_tiff(path: Path) -> None:
    twelve = DEEP >> 4
    bits = ((twelve.reshape(-1, 1) >> np.arange(11, -1, -1)) & 1).astype(np.uint8)
    write_tiff(path, np.packbits(bits).tobytes(), 12)


SIXTEEN: dict[str, Callable[[Path], object]] = {
    "png": lambda path: write_png(path, DEEP, 16, 0),
    "pillow.png": lambda path: Image.fromarray(DEEP).save(path),
    "little.tif": lambda path: write_tiff(path, DEEP.astype("<u2").tobytes(), 16),
    "big.tif": big_endian_tiff,
    "white.tif": white_is_zero_tiff,
    "twelve.tif": twelve_bit_tiff,
    "packed.big.tif": lambda path: Image.frombytes("I;16B", (16, 16), DEEP.astype(">u2").tobytes()).save(
        path, compression="tiff_lzw"
    ),
    "packed.tif": lambda path: Image.fromarray(DEEP).save(path, compression="tiff_lzw"),
    "pgm": lambda path: path.write_bytes(b"P5 16 16 65535\n" + DEEP.astype(">u2").tobytes()),
    "twelve.pgm": lambda path: path.write_bytes(b"P5 16 16 4095\n" + (DEEP >> 4).astype(">u2").tobytes()),
    "text.pgm": lambda path: path.write_text("P2 16 16 65535\n" + " ".join(map(str, DEEP.ravel()))),
    "jpeg2000.png": lambda path: Image.fromarray(DEEP).save(path, "JPEG2000", irreversible=False),
}


@pytest.mark.parametrize("name", SIXTEEN)
def test_grey_of_more_bits_has_the_pixels_of_its_eight_bit_twin(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"picture.{name}"
    SIXTEEN[name](path)
    assert np.array_equal(pixels_of(path), grey(GREYS))
    assert read_picture(path).odd == (Oddity.SIXTEEN_BIT,)


def test_grey_and_colour_of_sixteen_bits_are_reduced_alike(tmp_path: Path) -> None:
    """At every value: both keep the upper eight bits."""
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    one = pixels_of(write_png(tmp_path / "grey.png", values, 16, 0))
    three = pixels_of(write_png(tmp_path / "colour.png", grey(values), 16, 2))
    assert np.array_equal(one, three)
    assert np.array_equal(one[..., 0], values // 256)
    assert np.abs(one[..., 0] - values / 257).max() < 1


def write_deep(path: Path, kind: str, values: np.ndarray) -> Path:
    """Greys of 16 bits as grey, as colour or with an opaque alpha channel."""
    opaque = np.full((*values.shape, 1), 65535, np.uint16)
    if kind == "ppm":
        path.write_bytes(b"P6 16 16 65535\n" + grey(values).astype(">u2").tobytes())
    else:
        colour, samples = {
            "grey": (0, values),
            "colour": (2, grey(values)),
            "la": (4, np.dstack([values, opaque])),
            "rgba": (6, np.dstack([grey(values), opaque])),
        }[kind]
        write_png(path, samples, 16, colour)
    return path


@pytest.mark.parametrize("kind", ["grey", "colour", "rgba", "la", "ppm"])
def test_deep_pictures_that_are_dark_are_said(tmp_path: Path, kind: str) -> None:
    """A camera of ten to fourteen bits in a file of sixteen: its range is nowhere in the file."""
    for bits in (8, 10, 12, 14):
        odd = read_picture(write_deep(tmp_path / "a", kind, DEEP >> (16 - bits))).odd
        assert odd == (Oddity.SIXTEEN_BIT, Oddity.DARK), bits
    assert read_picture(write_deep(tmp_path / "a", kind, DEEP)).odd == (Oddity.SIXTEEN_BIT,)
    assert read_picture(write_deep(tmp_path / "a", kind, DEEP >> 1)).odd == (Oddity.SIXTEEN_BIT,)


def test_grey_that_is_wholly_black_is_not_called_dark(tmp_path: Path) -> None:
    assert Oddity.DARK not in read_picture(write_png(tmp_path / "c.png", 0 * DEEP, 16, 0)).odd


def test_dark_pictures_of_eight_bits_are_just_dark(tmp_path: Path) -> None:
    Image.fromarray(COLOURS // 8).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").odd == ()


@pytest.mark.parametrize(
    ("name", "write", "values"),
    [
        ("a.tif", lambda path: Image.fromarray(GREYS / np.float32(255)).save(path), "floating-point"),
        ("a.ppm", lambda path: path.write_bytes(b"Pf 16 16 -1.0\n" + bytes(1024)), "floating-point"),
        ("a.tif", lambda path: Image.fromarray(DEEP.astype(np.int32)).save(path), "signed"),
        ("a.tif", lambda path: write_tiff(path, DEEP.astype("<u4").tobytes(), 32), "32 bits"),
        ("a.tif", lambda path: write_tiff(path, DEEP.astype("<i2").tobytes(), 16, 1, 2), "signed"),
        ("a.tif", lambda path: write_tiff(path, GREYS.tobytes(), 8, 1, 2), "signed"),
        ("a.png", lambda path: write_png(path, grey(DEEP), 16, 2, (257, 257, 257)), "transparent"),
    ],
)
def test_what_has_no_known_range_is_refused_by_name(tmp_path: Path, name, write, values: str) -> None:
    write(tmp_path / name)
    with pytest.raises(UnknownRange, match=values) as caught:
        open_rgb(tmp_path / name)
    assert caught.value.where == tmp_path / name
    assert "8 or 16" in str(caught.value.next_step)


# Eight bits and fewer.


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "gif", "webp", "pgm", "ppm"])
def test_grey_at_every_value(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(GREYS).save(path, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(pixels_of(path), grey(GREYS))
    assert read_picture(path).odd == ()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_are_spread_from_black_to_white(tmp_path: Path, bits: int) -> None:
    samples = GREYS >> (8 - bits)
    expected = grey((samples.astype(int) * 255 // (2**bits - 1)).astype(np.uint8))
    assert np.array_equal(pixels_of(write_png(tmp_path / "a.png", samples, bits, 0)), expected)
    planes = (samples[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    packed = np.packbits(planes.astype(np.uint8)).tobytes()
    assert np.array_equal(pixels_of(write_tiff(tmp_path / "a.tif", packed, bits)), expected)


@pytest.mark.parametrize(
    ("mode", "name", "tolerance"),
    [
        ("RGB", "a.png", 0),
        ("RGB", "a.ppm", 0),
        ("RGBA", "a.png", 0),
        ("RGBA", "a.tif", 0),
        ("RGBX", "a.tif", 0),
        ("CMYK", "a.tif", 1),
        ("YCbCr", "a.tif", 3),
        ("RGB", "a.jpg", 6),
        ("YCbCr", "a.jpg", 6),
        ("CMYK", "a.jpg", 6),
    ],
)
def test_colours_at_many_values(tmp_path: Path, mode: str, name: str, tolerance: int) -> None:
    image = Image.fromarray(COLOURS).resize((128, 128), Image.Resampling.NEAREST)
    options = {"quality": 100, "subsampling": 0} if name == "a.jpg" else {}
    image.convert(mode).save(tmp_path / name, **options)
    off = pixels_of(tmp_path / name).astype(int) - np.asarray(image)
    assert np.abs(off).max() <= tolerance
    assert read_picture(tmp_path / name).odd == ((Oddity.CHANNELS,) if mode == "RGBX" else ())


@pytest.mark.parametrize("alpha", [False, True])
def test_colour_of_sixteen_bits(tmp_path: Path, alpha: bool) -> None:
    samples = COLOURS.astype(np.uint16) * 257
    if alpha:
        samples = np.concatenate([samples, np.full((16, 16, 1), 65535, np.uint16)], axis=2)
    path = write_png(tmp_path / "a.png", samples, 16, 6 if alpha else 2)
    assert np.array_equal(pixels_of(path), COLOURS)
    assert read_picture(path).odd == (Oddity.SIXTEEN_BIT,)


def test_lab_is_converted_to_srgb(tmp_path: Path) -> None:
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    muted = (96 + COLOURS // 4).astype(np.uint8)
    ImageCms.applyTransform(Image.fromarray(muted), to_lab).save(tmp_path / "a.tif")
    assert np.abs(pixels_of(tmp_path / "a.tif").astype(int) - muted).max() <= 4


def test_palette_and_its_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(COLOURS).quantize(64)
    expected = np.asarray(image.convert("RGB"))
    for name in ("a.png", "a.gif", "a.tif", "a.bmp"):
        image.save(tmp_path / name)
        assert np.array_equal(pixels_of(tmp_path / name), expected)
    index = int(np.asarray(image)[3, 4])
    hole = np.asarray(image) == index
    for name in ("a.png", "a.gif"):
        image.save(tmp_path / name, transparency=index)
        assert np.array_equal(pixels_of(tmp_path / name), np.where(hole[..., None], 255, expected))
        assert read_picture(tmp_path / name).odd == (Oddity.TRANSPARENT,)
    image.save(tmp_path / "a.png", transparency=bytes(range(64)))
    share = np.arange(64)[np.asarray(image)][..., None]
    seen = (share * expected.astype(int) + (255 - share) * 255) / 255
    assert np.abs(pixels_of(tmp_path / "a.png") - seen).max() <= 0.5


# Transparency.


def test_transparent_parts_are_seen_on_white_whatever_lies_under_them(tmp_path: Path) -> None:
    alpha = GREYS.T
    share = alpha[..., None].astype(int)
    seen = (share * COLOURS + (255 - share) * 255) / 255
    for name in ("a.png", "a.tif", "a.webp"):
        image = Image.fromarray(np.dstack([COLOURS, alpha]))
        image.save(tmp_path / name, **({"lossless": True, "exact": True} if name == "a.webp" else {}))
        assert np.abs(pixels_of(tmp_path / name) - seen).max() <= 0.5
        assert read_picture(tmp_path / name).odd == (Oddity.TRANSPARENT,)


@pytest.mark.parametrize("extra", [1, 2])
def test_grey_with_alpha(tmp_path: Path, extra: int) -> None:
    """TIFF's extra samples of kind 1 say that the greys have been multiplied with alpha, those of kind 2 not."""
    alpha = GREYS.T.astype(int)
    seen = (alpha * GREYS + (255 - alpha) * 255) / 255
    stored = GREYS if extra == 2 else np.round(alpha * GREYS / 255)
    path = write_tiff(
        tmp_path / "a.tif", np.dstack([stored, alpha]).astype(np.uint8).tobytes(), 8, 1, 1, "<", extra
    )
    assert np.abs(pixels_of(path)[..., 0] - seen).max() <= (0.5 if extra == 2 else 1.5)
    assert read_picture(path).odd == (Oddity.TRANSPARENT,)


def test_a_fourth_channel_without_a_meaning_is_said(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([COLOURS, GREYS.T])).save(tmp_path / "a.tif")
    assert read_picture(tmp_path / "a.tif").odd == (Oddity.TRANSPARENT,)
    named, unknown = (struct.pack("<HHI", tag, 3, 1) for tag in (338, 65000))
    content = (tmp_path / "a.tif").read_bytes()
    assert named in content
    (tmp_path / "a.tif").write_bytes(content.replace(named, unknown))
    assert read_picture(tmp_path / "a.tif").odd == (Oddity.ASSUMED_ALPHA, Oddity.TRANSPARENT)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_one_grey_that_is_transparent(tmp_path: Path, bits: int) -> None:
    samples = DEEP >> (16 - bits)
    marked = int(samples[9, 3])
    path = write_png(tmp_path / "a.png", samples, bits, 0, (marked,))
    plain = pixels_of(write_png(tmp_path / "b.png", samples, bits, 0))
    assert np.array_equal(pixels_of(path), np.where((samples == marked)[..., None], 255, plain))


def test_one_colour_that_is_transparent(tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.png", COLOURS, 8, 2, tuple(int(c) for c in COLOURS[3, 4]))
    hole = (COLOURS[3, 4] == COLOURS).all(axis=2)
    assert np.array_equal(pixels_of(path), np.where(hole[..., None], 255, COLOURS))


# Frames, orientation, size, damage.


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.webp", "a.png"])
def test_of_several_frames_the_first_is_used(tmp_path: Path, name: str) -> None:
    frames = [Image.fromarray(GREYS), Image.fromarray(GREYS[::-1].copy())]
    options = {"lossless": True} if name == "a.webp" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    assert np.array_equal(pixels_of(tmp_path / name), grey(GREYS))
    assert read_picture(tmp_path / name).odd == (Oddity.FRAMES,)


def test_the_previews_of_a_photograph_are_no_frames(tmp_path: Path) -> None:
    frames = [Image.fromarray(COLOURS), Image.new("RGB", (4, 4))]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:], quality=95)
    frames[0].save(tmp_path / "b.jpg", quality=95)
    assert np.array_equal(pixels_of(tmp_path / "a.jpg"), pixels_of(tmp_path / "b.jpg"))
    assert read_picture(tmp_path / "a.jpg").odd == ()


@pytest.mark.parametrize(("name", "tolerance"), [("a.jpg", 8), ("a.png", 0), ("a.webp", 0)])
def test_orientation_is_said_and_not_followed(tmp_path: Path, name: str, tolerance: int) -> None:
    for tag in (1, 6):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = tag
        options = {"lossless": True} if name == "a.webp" else {"quality": 100}
        Image.fromarray(GREYS).save(tmp_path / name, exif=exif, **options)
        assert np.abs(pixels_of(tmp_path / name).astype(int) - grey(GREYS)).max() <= tolerance
        assert read_picture(tmp_path / name).odd == ((Oddity.TURNED,) if tag == 6 else ())


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_file_is_turned_and_that_is_said(tmp_path: Path, compression: str | None) -> None:
    tags = {int(ExifTags.Base.Orientation): 6}
    Image.fromarray(GREYS).save(tmp_path / "a.tif", tiffinfo=tags, compression=compression)
    assert np.array_equal(pixels_of(tmp_path / "a.tif"), grey(np.rot90(GREYS, -1)))
    assert read_picture(tmp_path / "a.tif").odd == (Oddity.TIFF_TURNED,)


def test_a_picture_of_too_many_pixels_is_not_called_corrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(GREYS).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 127)
    assert pixel_limit() == 254
    for read in (open_rgb, picture_size):
        with pytest.raises(TooLargeImage, match="too large: 256 pixels, the limit is 254") as caught:
            read(tmp_path / "a.png")
        assert "smaller" in str(caught.value.next_step)
        assert caught.value.oddity is Oddity.TOO_LARGE


def test_a_large_picture_below_the_limit_is_read_without_a_warning(tmp_path: Path) -> None:
    Image.new("1", (12000, 8000)).save(tmp_path / "a.png")
    script = (
        "import sys; from pathlib import Path; from twinbench.data.pixels import open_rgb, picture_size; "
    )
    script += "print(picture_size(Path(sys.argv[1])), open_rgb(Path(sys.argv[1])).size)"
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "a.png"], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("(12000, 8000) (12000, 8000)\n", "")


@pytest.mark.parametrize("in_a_shard", [False, True])
def test_a_size_that_a_file_declares_takes_no_memory(tmp_path: Path, in_a_shard: bool) -> None:
    """Such a picture would else be read or not by what memory there is."""
    path = tmp_path / "a.png"
    Image.fromarray(COLOURS).save(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") - 4] = 0xFF  # the first of the four bytes that say how much follows
    path.write_bytes(content)
    if in_a_shard:
        path = member_path(path.rename(tmp_path / "a.tar"), 0, len(content), "a.png")
    tracemalloc.start()
    try:
        assert np.array_equal(pixels_of(path), COLOURS)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow has words of its own for the end of a TIFF file
@pytest.mark.parametrize("name", EVERY_FORMAT)
def test_a_file_that_is_cut_anywhere_is_corrupt_or_whole(tmp_path: Path, name: str) -> None:
    """Never another kind of error; what is missing may be no part of the first picture."""
    Image.fromarray(COLOURS).save(tmp_path / name)
    content, whole = (tmp_path / name).read_bytes(), pixels_of(tmp_path / name)
    for kept in range(0, len(content), max(1, len(content) // 60)):
        (tmp_path / name).write_bytes(content[:kept])
        with contextlib.suppress(CorruptImage):
            assert np.array_equal(pixels_of(tmp_path / name), whole)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", EVERY_FORMAT)
def test_a_file_that_is_altered_anywhere_is_corrupt_or_another_picture(tmp_path: Path, name: str) -> None:
    Image.fromarray(COLOURS).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    refused = 0
    for place in range(0, len(content), max(1, len(content) // 60)):
        altered = bytearray(content)
        altered[place] ^= 0xFF
        (tmp_path / name).write_bytes(altered)
        try:
            pixels_of(tmp_path / name)
        except CorruptImage:
            refused += 1
    assert refused, "the first byte says what the file is"


def test_oddities_are_counted_once_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    met = Oddities(tmp_path, "test")
    for name in ("b.png", "a.png", "b.png"):
        met.add(tmp_path / "x" / name, (Oddity.SIXTEEN_BIT, Oddity.TRANSPARENT))
    met.add(tmp_path / "c.png", (Oddity.TOO_LARGE,))
    assert met.remarks() == (
        "of 16 bits a channel the upper 8 are used: 2 test pictures, x/a.png for one",
        "transparent parts are seen on white: 2 test pictures, x/a.png for one",
        "left out as too large: 1 test picture, c.png",
    )
    assert len(caplog.messages) == 2, "the first of each kind; what is left out is named elsewhere"
    assert pickle.loads(pickle.dumps(met)).remarks() == (), "a worker process begins anew"
