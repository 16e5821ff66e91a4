"""How methods are called, ordered, coloured and marked, in one place for every table and figure."""

from __future__ import annotations

import zlib

REFERENCES = ("random_init", "supervised")

# The order of the paper's Table 1: references first, then the peers by published accuracy, then Barlow Twins.
_ORDER = (*REFERENCES, "simclr", "moco_v2", "simsiam", "swav", "byol", "barlow_twins")

_PRETTY = {
    "barlow_twins": "Barlow Twins",
    "simclr": "SimCLR",
    "byol": "BYOL",
    "swav": "SwAV",
    "simsiam": "SimSiam",
    "moco_v2": "MoCo v2",
    "supervised": "Supervised",
    "random_init": "Random init",
}

# Okabe and Ito's palette, distinguishable with any common colour vision deficiency.
_COLOURS = {
    "barlow_twins": "#D55E00",
    "simclr": "#0072B2",
    "byol": "#009E73",
    "swav": "#E69F00",
    "simsiam": "#CC79A7",
    "moco_v2": "#56B4E9",
    "supervised": "#333333",
    "random_init": "#888888",
}
_OTHER_COLOURS = ("#332288", "#882255", "#117733", "#AA4499", "#44AA99", "#999933")

_MARKERS = {
    "barlow_twins": "o",
    "simclr": "s",
    "byol": "^",
    "swav": "D",
    "simsiam": "v",
    "moco_v2": "P",
    "supervised": "X",
    "random_init": "x",
}


def pretty(method: str) -> str:
    """The name a reader knows; a method from outside keeps its own."""
    return _PRETTY.get(method, method)


def colour(method: str) -> str:
    """The method's colour as ``#RRGGBB``, the same in every figure of every study."""
    if method in _COLOURS:
        return _COLOURS[method]
    return _OTHER_COLOURS[zlib.crc32(method.encode()) % len(_OTHER_COLOURS)]


def marker(method: str) -> str:
    """The method's matplotlib marker, so that colour is never the only difference."""
    return _MARKERS.get(method, "h")


def is_reference(method: str) -> bool:
    """Whether the method is a reference row and no self-supervised competitor."""
    return method in REFERENCES


def sort_key(method: str) -> tuple[int, str]:
    """Sorts methods as the paper does, methods from outside last and by name."""
    return (_ORDER.index(method) if method in _ORDER else len(_ORDER), method)
