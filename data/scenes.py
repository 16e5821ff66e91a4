"""Images of glyphs in coloured, cluttered scenes: what the embedded sets are made by (`data.digit_scenes` and others).

A glyph is drawn with random size, place, rotation, shear, stroke thickness, colour and texture over a random texture
with clutter. It is as often lighter as darker than its surroundings and nothing but its shape depends on its class, so
that raw pixels, colour and position are poor features. Training, validation and test images come from disjoint
originals.

Everything after the originals is arithmetic of whole numbers on the raw output of a Philox generator, which NumPy
keeps stable: a seed gives the same bits on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

GENERATOR_VERSION = 1
SPLITS = ("train", "val", "test")

Ints = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

_FRAGMENTS = 512
# the 8x8 originals get a border of two cells and are magnified, so that nearest-neighbour sampling is smooth
_BORDER, _MAGNIFY = 2, 8
_ATLAS_SIDE = (8 + 2 * _BORDER) * _MAGNIFY
_CHUNK_PIXELS = 2**17
_CANDIDATES = 32  # places tried for a digit of a scene
_LATTICE = 16  # cells of the periodic value noise
_LUMA = np.array([77, 150, 29], np.int32)  # in 256ths


@dataclass(frozen=True)
class SceneConfig:
    """What determines the pixels. Ranges are inclusive; sizes are in percent of the side of the image.

    ``texture_contrast`` and ``digit_texture`` are amplitudes in grey levels per channel, ``contrast_floor``
    the least difference in luma between a digit and its background colour, ``clutter`` the number of
    fragments an image. ``tilt`` and ``shear`` are in percent (about hundredths of a radian), ``noise`` in
    grey levels.
    """

    seed: int = 0
    image_size: int = 32
    train: int = 8192
    val: int = 1024
    test: int = 2048
    digit_size: tuple[int, int] = (64, 84)
    clutter: tuple[int, int] = (0, 2)
    clutter_size: tuple[int, int] = (15, 35)
    texture_contrast: tuple[int, int] = (2, 9)
    digit_texture: tuple[int, int] = (0, 8)
    contrast_floor: int = 60
    tilt: int = 6
    shear: int = 5
    noise: int = 4
    scene_size: int = 96
    scene_train: int = 512
    scene_val: int = 128
    scene_test: int = 256
    scene_digits: tuple[int, int] = (1, 3)
    scene_digit_size: tuple[int, int] = (36, 60)
    scene_clutter: tuple[int, int] = (1, 4)
    scene_clutter_size: tuple[int, int] = (8, 18)

    def fingerprint(self, name: str = "digit-scenes") -> str:
        """SHA-256 of what is drawn, of the generator's version and of every field."""
        return hashlib.sha256(repr((name, GENERATOR_VERSION, asdict(self))).encode()).hexdigest()


@dataclass(frozen=True)
class Glyphs:
    """What is drawn: ``originals`` gives those of a split, uint8 ``[n, 8, 8]``, and their labels ``[n]``, sorted.

    ``key`` begins the names of all random streams, so that no two kinds of glyphs share one.
    """

    classes: tuple[str, ...]
    originals: Callable[[str], tuple[Bytes, Labels]]
    key: str


@dataclass(frozen=True)
class Scenes:
    """Multi-digit images: ``images`` uint8 ``[N, 3, H, W]`` and one array per image for each annotation.

    ``boxes`` int32 ``[n, 4]`` are xyxy in pixels, tight around the visible mask, right and bottom exclusive;
    ``labels`` int64 ``[n]``; ``masks`` bool ``[n, H, W]``.
    """

    images: Bytes
    boxes: list[Ints]
    labels: list[Labels]
    masks: list[npt.NDArray[np.bool_]]


class Draws:
    """Uniform integers from the raw bits of Philox, the part of NumPy's random module that never changes."""

    def __init__(self, key: str) -> None:
        digest = hashlib.sha256(key.encode()).digest()
        self._bits = np.random.Philox(key=int.from_bytes(digest[:16], "little"))

    def integers(self, low: int, high: int, *shape: int) -> Ints:
        """Integers from ``low`` to ``high``, both included."""
        raw = self._bits.random_raw(shape) >> np.uint64(32)
        return ((raw * np.uint64(high - low + 1)) >> np.uint64(32)).astype(np.int32) + np.int32(low)

    def octets(self, *shape: int) -> Ints:
        """Integers from 0 to 255, eight for the price of one."""
        n = int(np.prod(shape))
        words = self._bits.random_raw((n + 7) // 8)
        return words.astype("<u8").view(np.uint8)[:n].reshape(shape).astype(np.int32)

    def permutation(self, n: int) -> Labels:
        """A random order of 0 .. n-1."""
        return np.argsort(self._bits.random_raw(n), kind="stable")


def classification(split: str, config: SceneConfig, glyphs: Glyphs) -> tuple[Bytes, Labels]:
    """Images of one glyph, uint8 ``[N, 3, side, side]``, and labels ``[N]``, all classes equally often."""
    n, side = getattr(config, split), config.image_size
    draws = Draws(f"{glyphs.key}{config.seed}/classification/{split}")
    labels = draws.permutation(n) % len(glyphs.classes)
    images = np.empty((n, 3, side, side), np.uint8)
    chunk = max(1, _CHUNK_PIXELS // side**2)
    for start in range(0, n, chunk):
        mine = labels[start : start + chunk]
        canvas = Canvas(len(mine), side, config, draws)
        canvas.add_clutter(fragments(glyphs, split), config.clutter, config.clutter_size)
        size = _pixels(draws, config.digit_size, side, len(mine))
        drawn = _magnified(glyphs, split)[_pick_originals(mine, split, glyphs, draws)]
        canvas.paint(np.arange(len(mine)), drawn, _places(draws, size, side), size)
        images[start : start + chunk] = canvas.finish()
    return images, labels


def scenes(split: str, config: SceneConfig, glyphs: Glyphs) -> Scenes:
    """Images of several glyphs with boxes, masks and labels; a later glyph may hide a part of an earlier."""
    n, side = getattr(config, f"scene_{split}"), config.scene_size
    draws = Draws(f"{glyphs.key}{config.seed}/scenes/{split}")
    chunk = max(1, _CHUNK_PIXELS // side**2)
    parts = [
        _scene_chunk(min(chunk, n - start), split, config, glyphs, draws) for start in range(0, n, chunk)
    ]
    return Scenes(
        images=np.concatenate([part.images for part in parts]),
        boxes=[boxes for part in parts for boxes in part.boxes],
        labels=[labels for part in parts for labels in part.labels],
        masks=[masks for part in parts for masks in part.masks],
    )


def _scene_chunk(n: int, split: str, config: SceneConfig, glyphs: Glyphs, draws: Draws) -> Scenes:
    side, most = config.scene_size, config.scene_digits[1]
    canvas = Canvas(n, side, config, draws)
    canvas.add_clutter(fragments(glyphs, split), config.scene_clutter, config.scene_clutter_size)
    count = draws.integers(*config.scene_digits, n)
    labels = draws.integers(0, len(glyphs.classes) - 1, n, most).astype(np.int64)
    sizes = np.stack([_pixels(draws, config.scene_digit_size, side, n) for _ in range(most)])
    centres = _spread(draws, sizes, side)
    owner = np.zeros((n, side, side), np.int8)
    for slot in range(most):
        which = np.flatnonzero(count > slot)
        drawn = _magnified(glyphs, split)[_pick_originals(labels[which, slot], split, glyphs, draws)]
        inked = canvas.paint(which, drawn, centres[:, slot, which], sizes[slot, which])
        owner[which] = np.where(inked, slot + 1, owner[which])
    masks = [owner[i] == np.arange(1, count[i] + 1)[:, None, None] for i in range(n)]
    return Scenes(
        images=canvas.finish(),
        boxes=[np.stack([_tight_box(mask) for mask in image_masks]) for image_masks in masks],
        labels=[labels[i, : count[i]] for i in range(n)],
        masks=masks,
    )


class Canvas:
    """A batch of images being painted: ``pixels`` int32 ``[N, 3, side, side]``, not yet clipped to 0..255."""

    def __init__(self, n: int, side: int, config: SceneConfig, draws: Draws) -> None:
        self.config, self.draws, self.side = config, draws, side
        self.luma = draws.integers(50, 205, n)
        colour = self.luma[:, None] + chroma(draws, n)
        self.pixels = colour[:, :, None, None] + _texture(draws, n, side, config.texture_contrast)

    def add_clutter(self, fragments: Bytes, count: tuple[int, int], size: tuple[int, int]) -> None:
        """Scatter fragments ``[_FRAGMENTS, atlas, atlas]``, some of them partly outside."""
        n = len(self.pixels)
        counts = self.draws.integers(*count, n)
        for slot in range(count[1]):
            which = np.flatnonzero(counts > slot)
            pieces = fragments[self.draws.integers(0, _FRAGMENTS - 1, len(which))]
            sizes = _pixels(self.draws, size, self.side, len(which))
            self.paint(which, pieces, self.draws.integers(0, 16 * self.side, 2, len(which)), sizes)

    def paint(self, which: Labels, glyphs: Bytes, centre: Ints, size: Ints) -> npt.NDArray[np.bool_]:
        """Paint one glyph on each of the images ``which``.

        ``glyphs`` is ``[m, atlas, atlas]``, ``centre`` ``[2, m]`` (x, y) in sixteenths of a pixel, ``size``
        ``[m]`` in pixels for the eight cells of an original. Returns where there is ink: bool ``[m, side,
        side]``.
        """
        m = len(which)
        coverage = self._coverage(glyphs, centre, size)
        distance = self.config.contrast_floor + self.draws.integers(0, 60, m)
        background = self.luma[which]
        sign = 2 * self.draws.integers(0, 1, m) - 1
        outside = (background + sign * distance < 10) | (background + sign * distance > 245)
        luma = np.clip(background + np.where(outside, -sign, sign) * distance, 0, 255)
        colour = (luma[:, None] + chroma(self.draws, m))[:, :, None, None]
        ink = colour + _texture(self.draws, m, self.side, self.config.digit_texture)
        below = self.pixels[which]
        self.pixels[which] = below + ((ink - below) * coverage[:, None] >> 8)
        return coverage > 128

    def _coverage(self, glyphs: Bytes, centre: Ints, size: Ints) -> Ints:
        """How much of each pixel the glyph covers, in 256ths: ``[m, side, side]``."""
        m = len(glyphs)
        grid = 16 * np.arange(self.side, dtype=np.int32) + 8
        dx, dy = grid - centre[0][:, None], grid - centre[1][:, None]
        xx, xy, yx, yy = self._affine(size)
        u = ((dx * xx)[:, None, :] + (dy * xy)[:, :, None] >> 16) + _ATLAS_SIDE // 2
        v = ((dx * yx)[:, None, :] + (dy * yy)[:, :, None] >> 16) + _ATLAS_SIDE // 2
        np.clip(u, 0, _ATLAS_SIDE - 1, out=u)
        np.clip(v, 0, _ATLAS_SIDE - 1, out=v)
        cells = (v * _ATLAS_SIDE + u).reshape(m, self.side**2)
        ink = np.take_along_axis(glyphs.reshape(m, _ATLAS_SIDE**2), cells, axis=1)
        threshold = self.draws.integers(115, 155, m)[:, None]
        # the magnified glyph rises by about 255 a cell: this slope makes edges a little over a pixel wide;
        # it always reaches zero where there is no ink at all
        slope = np.maximum(size[:, None] * 27, 128 * 256 // 115 + 2)
        coverage = ((ink - threshold) * slope >> 8) + 128
        return np.clip(coverage, 0, 256).astype(np.int32).reshape(m, self.side, self.side)

    def _affine(self, size: Ints) -> tuple[Ints, Ints, Ints, Ints]:
        """The four coefficients ``[m, 1]`` from sixteenths of a pixel to 65536ths of an atlas pixel.

        A small rotation to second order in the angle, then a shear and an aspect ratio.
        """
        m, config = len(size), self.config
        tilt = self.draws.integers(-config.tilt, config.tilt, m) * 4096 // 100
        shear = self.draws.integers(-config.shear, config.shear, m) * 4096 // 100
        scale = (8 * _MAGNIFY << 12) // size
        x_scale, y_scale = (scale * self.draws.integers(224, 288, m) >> 8 for _ in range(2))
        cosine = 4096 - (tilt * tilt >> 13)
        xx, xy = x_scale * cosine >> 12, x_scale * tilt >> 12
        yx, yy = -(y_scale * tilt) >> 12, y_scale * cosine >> 12
        xx, xy = xx + (yx * shear >> 12), xy + (yy * shear >> 12)
        return xx[:, None], xy[:, None], yx[:, None], yy[:, None]

    def finish(self) -> Bytes:
        """Add pixel noise and clip: uint8 ``[N, 3, side, side]``."""
        noise = (self.draws.octets(*self.pixels.shape) * (2 * self.config.noise + 1) >> 8) - self.config.noise
        return np.clip(self.pixels + noise, 0, 255).astype(np.uint8)


# Colours, textures and places.


def chroma(draws: Draws, n: int) -> Ints:
    """Colour offsets ``[n, 3]`` that leave the luma as it is."""
    offset = draws.integers(-70, 70, n, 3)
    return offset - (offset @ _LUMA >> 8)[:, None]


def _texture(draws: Draws, n: int, side: int, contrast: tuple[int, int]) -> Ints:
    """Offsets ``[n, 3, side, side]`` of a random texture: value noise, stripes or checks of random scale."""
    kind = draws.integers(0, 2, n)
    pattern = np.empty((n, side, side), np.int32)
    for which, make in enumerate((value_noise, _stripes, _checks)):
        index = np.flatnonzero(kind == which)
        pattern[index] = make(draws, len(index), side)
    strength = draws.integers(*contrast, n)[:, None] * draws.integers(-128, 128, n, 3) >> 7
    return pattern[:, None] * strength[:, :, None, None] >> 7


def _positions(draws: Draws, n: int, side: int) -> Ints:
    """Texture coordinates ``[n, side]`` along an axis, in 256ths of a cell of a tenth to half the side."""
    cell = draws.integers(max(3, side // 10), max(4, side // 2), n)[:, None]
    return np.arange(side, dtype=np.int32) * 256 // cell + draws.integers(0, 4095, n)[:, None]


def value_noise(draws: Draws, n: int, side: int) -> Ints:
    """Random values on a lattice, interpolated linearly: ``[n, side, side]`` in -128..127."""
    lattice = draws.octets(n, _LATTICE, _LATTICE) - 128
    for axis in (1, 2):
        position = np.expand_dims(_positions(draws, n, side), 3 - axis)
        cell, fraction = position >> 8, position & 255
        here = np.take_along_axis(lattice, cell % _LATTICE, axis=axis)
        there = np.take_along_axis(lattice, (cell + 1) % _LATTICE, axis=axis)
        lattice = here + ((there - here) * fraction >> 8)
    return lattice


def _stripes(draws: Draws, n: int, side: int) -> Ints:
    """Oblique triangle waves: ``[n, side, side]`` in -128..128."""
    x, y = _positions(draws, n, side), _positions(draws, n, side)
    direction = 2 * draws.integers(0, 1, n)[:, None] - 1
    phase = x[:, None, :] + (direction * y)[:, :, None] & 255
    return 2 * np.abs(phase - 128) - 128


def _checks(draws: Draws, n: int, side: int) -> Ints:
    """Checks: ``[n, side, side]``, -96 or 96."""
    x, y = _positions(draws, n, side) >> 8, _positions(draws, n, side) >> 8
    return 192 * (x[:, None, :] + y[:, :, None] & 1) - 96


def _pixels(draws: Draws, percent: tuple[int, int], side: int, n: int) -> Ints:
    """Sizes ``[n]`` in pixels, uniform between two percentages of the side."""
    return draws.integers(percent[0] * side // 100, percent[1] * side // 100, n)


def _places(draws: Draws, size: Ints, side: int) -> Ints:
    """Centres ``[2, ...]`` in sixteenths of a pixel that keep glyphs of ``size`` pixels inside the image."""
    room = 16 * (side - size)
    return 8 * size + (draws.integers(0, 1024, 2, *size.shape) * room >> 10)


def _spread(draws: Draws, sizes: Ints, side: int) -> Ints:
    """Centres ``[2, slots, n]`` of several glyphs an image, as far as possible clear of each other."""
    slots, n = sizes.shape
    centres = np.zeros((2, slots, n), np.int32)
    for slot in range(slots):
        candidates = _places(draws, np.repeat(sizes[slot][None], _CANDIDATES, axis=0), side)
        clearance = np.zeros((_CANDIDATES, n), np.int32)
        for other in range(slot):
            apart = np.abs(candidates - centres[:, None, other]).max(axis=0)
            clearance = np.minimum(clearance, apart - 8 * (sizes[slot] + sizes[other]))
        best = clearance.argmax(axis=0)
        centres[:, slot] = candidates[:, best, np.arange(n)]
    return centres


def _tight_box(mask: npt.NDArray[np.bool_]) -> Ints:
    """The xyxy box of a mask, right and bottom exclusive."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.int32)


# Glyphs.


def _pick_originals(labels: Labels, split: str, glyphs: Glyphs, draws: Draws) -> Labels:
    """A random original of the split for every label: rows of `Glyphs.originals`."""
    counts = np.bincount(glyphs.originals(split)[1], minlength=len(glyphs.classes))
    first = np.cumsum(counts) - counts
    return first[labels] + (draws.integers(0, 2**20 - 1, len(labels)) * counts[labels] >> 20)


@cache
def _magnified(glyphs: Glyphs, split: str) -> Bytes:
    """The originals of a split, magnified: ``[n, atlas, atlas]``."""
    return _magnify(glyphs.originals(split)[0])


@cache
def fragments(glyphs: Glyphs, split: str) -> Bytes:
    """Clutter, magnified: pieces cut out of any of the split's originals, and plain strokes."""
    draws, whole = Draws(f"{glyphs.key}fragments/{split}"), glyphs.originals(split)[0]
    cells = np.zeros((_FRAGMENTS, 8, 8), np.uint8)
    for i in range(_FRAGMENTS):
        height, width = draws.integers(3, 5, 2)
        top, left = draws.integers(0, 3, 2)
        piece = whole[draws.integers(0, len(whole) - 1, 1)[0], top : top + height, left : left + width]
        if i % 3 == 0:
            piece = np.full((draws.integers(1, 2, 1)[0], draws.integers(4, 8, 1)[0]), 220, np.uint8)
        y, x = (8 - piece.shape[0]) // 2, (8 - piece.shape[1]) // 2
        cells[i, y : y + piece.shape[0], x : x + piece.shape[1]] = piece
        cells[i] = np.rot90(cells[i], draws.integers(0, 3, 1)[0])
    return _magnify(cells)


def _magnify(cells: Bytes) -> Bytes:
    """Cells ``[n, 8, 8]`` with a border, magnified by linear interpolation: ``[n, atlas, atlas]``.

    The products are of floats, for which there are fast ones, and exact: every sum is a whole number below 2**11.
    """
    half = _MAGNIFY // 2
    boxes = np.repeat(np.eye(8 + 2 * _BORDER, dtype=np.float32), _MAGNIFY, axis=0)
    sums = np.cumsum(np.pad(boxes, ((half, half), (0, 0))), axis=0)
    weights = sums[_MAGNIFY:] - sums[:-_MAGNIFY]
    padded = np.pad(cells.astype(np.float32), ((0, 0), (_BORDER, _BORDER), (_BORDER, _BORDER)))
    across = np.floor(padded @ weights.T / _MAGNIFY)
    return np.floor(weights @ across / _MAGNIFY).astype(np.uint8)
