"""The images of ``texture-scenes``: surfaces of ten kinds, whose scale, place, contrast and colours tell nothing.

There is no object and no shape: what is needed is the opposite of what `data.scenes` asks for. Training, validation and
test images come from streams of their own. In integers throughout, as there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from twinbench.data.scenes import Bytes, Draws, Ints, Labels, chroma, value_noise

GENERATOR_VERSION = 1
_PERIOD = 256  # of a pattern, in units of its coordinates


@dataclass(frozen=True)
class TextureConfig:
    """What determines the pixels.

    ``cell`` is a period in percent of the side; ``contrast`` and ``noise`` are in grey levels.
    """

    seed: int = 0
    image_size: int = 32
    train: int = 4096
    val: int = 512
    test: int = 2048
    cell: tuple[int, int] = (15, 34)
    contrast: tuple[int, int] = (14, 50)
    noise: int = 12

    def fingerprint(self) -> str:
        """SHA-256 of the generator's version and of every field."""
        return hashlib.sha256(repr(("texture-scenes", GENERATOR_VERSION, asdict(self))).encode()).hexdigest()


@dataclass(frozen=True)
class _Surface:
    """Coordinates of ``n`` images: ``x`` and ``y`` int32 ``[n, side, side]``, 256 a period, with a random origin."""

    x: Ints
    y: Ints
    draws: Draws

    @property
    def count(self) -> int:
        return len(self.x)


def _wave(phase: Ints) -> Ints:
    """A triangle wave of period 256: -128 to 128."""
    return 2 * np.abs((phase & 255) - 128) - 128


def _square(phase: Ints) -> Ints:
    return np.where(phase & 128, 96, -96).astype(np.int32)


def _rings(s: _Surface) -> Ints:
    """Concentric circles around a random point of the picture, by an integer approximation of the distance."""
    side = s.x.shape[-1]
    middle = s.draws.integers(0, side - 1, 2, s.count)
    rows = np.arange(s.count)
    dx = np.abs(s.x - s.x[rows, 0, middle[0]][:, None, None])
    dy = np.abs(s.y - s.y[rows, middle[1], 0][:, None, None])
    return _wave(np.maximum(dx, dy) + (np.minimum(dx, dy) * 3 >> 3))


def _dots(s: _Surface) -> Ints:
    dx, dy = (s.x & 255) - 128, (s.y & 255) - 128
    return np.where(dx * dx + dy * dy < 75**2, 110, -40).astype(np.int32)


def _bricks(s: _Surface) -> Ints:
    shifted = s.x // 2 + (s.y >> 8 & 1) * 128
    mortar = ((s.y & 255) < 45) | ((shifted & 255) < 24)
    return np.where(mortar, 110, -40).astype(np.int32)


def _zigzag(s: _Surface) -> Ints:
    return _square(s.y + np.abs((s.x & 511) - 256))


def _clouds(s: _Surface) -> Ints:
    return value_noise(s.draws, s.count, s.x.shape[-1])


def _grain(s: _Surface) -> Ints:
    """Noise of one or two pixels."""
    side = s.x.shape[-1]
    fine = s.draws.octets(s.count, side, side) - 128
    return (fine + np.roll(fine, 1, axis=2)) // 2


_KINDS: dict[str, Callable[[_Surface], Ints]] = {
    "bricks": _bricks,
    "checks": lambda s: 2 * (_square(s.x) * _square(s.y) // 192),
    "clouds": _clouds,
    "diagonals": lambda s: _wave(s.x + s.y),
    "dots": _dots,
    "grain": _grain,
    "horizontals": lambda s: _wave(s.y),
    "rings": _rings,
    "verticals": lambda s: _wave(s.x),
    "zigzag": _zigzag,
}
CLASSES = tuple(_KINDS)


def textures(split: str, config: TextureConfig) -> tuple[Bytes, Labels]:
    """Images uint8 ``[N, 3, side, side]`` and labels ``[N]``, all classes equally often."""
    n, side = getattr(config, split), config.image_size
    draws = Draws(f"textures/{config.seed}/{split}")
    labels = draws.permutation(n) % len(CLASSES)
    images = np.empty((n, 3, side, side), np.uint8)
    for label, make in enumerate(_KINDS.values()):
        rows = np.flatnonzero(labels == label)
        pattern = make(_surface(len(rows), config, draws))
        images[rows] = _coloured(pattern, config, draws)
    return images, labels


def _surface(n: int, config: TextureConfig, draws: Draws) -> _Surface:
    side = config.image_size
    period = np.maximum(4, draws.integers(*config.cell, n) * side // 100)[:, None]
    steps = np.arange(side, dtype=np.int32) * _PERIOD // period
    x, y = (steps + draws.integers(0, 4095, n)[:, None] for _ in range(2))
    shape = (n, side, side)
    return _Surface(np.broadcast_to(x[:, None, :], shape), np.broadcast_to(y[:, :, None], shape), draws)


def _coloured(pattern: Ints, config: TextureConfig, draws: Draws) -> Bytes:
    """The pattern in a random colour with random contrast, lighter where it is high as often as darker, with noise."""
    n = len(pattern)
    colour = draws.integers(70, 185, n)[:, None] + chroma(draws, n)
    strength = draws.integers(*config.contrast, n) * (2 * draws.integers(0, 1, n) - 1)
    pixels = colour[:, :, None, None] + (pattern * strength[:, None, None] >> 7)[:, None]
    noise = (draws.octets(*pixels.shape) * (2 * config.noise + 1) >> 8) - config.noise
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)
