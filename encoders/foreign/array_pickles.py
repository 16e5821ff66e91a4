"""Pickles of numpy arrays, the files of Detectron2's model zoo, read without running any code that they may hold.

A pickle names functions and has them called. Here the few names that numpy writes for an array lead to classes of
this module, which do nothing but take the bytes; any other name is refused. numpy itself never sees the pickle.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

_NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"}


class _Type:
    """numpy.dtype: a code such as ``f4``, and the order of bytes."""

    def __init__(self, code: str, *flags: object) -> None:
        if code not in _NUMBERS:
            raise pickle.UnpicklingError(f"no numbers: {code}")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = {"<": "<", ">": ">"}.get(state[1], "=")

    def read(self, content: bytes | str, shape: tuple[int, ...], order: str) -> np.ndarray:
        """The array in these bytes, in the machine's own order of bytes and writable."""
        raw = content.encode("latin1") if isinstance(content, str) else content  # Python 2 wrote bytes as str
        array = np.frombuffer(raw, self.order + self.code).reshape(shape, order="F" if order == "F" else "C")
        return np.array(array, dtype=self.code, order="C")


class _Array:
    """numpy's ``_reconstruct``, which makes an empty array, and the state that fills it."""

    def __init__(self, *arguments: object) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_columns, content = state
        self.array = kind.read(content, shape, "F" if by_columns else "C")


class _Buffer(_Array):
    """numpy's ``_frombuffer``, which pickles of protocol 5 use."""

    def __init__(self, content: bytes, kind: _Type, shape: tuple[int, ...], order: str) -> None:
        self.array = kind.read(content, shape, order)


class _Scalar:
    """numpy's ``scalar``; a number beside the weights, a loss say, and so no tensor."""

    def __init__(self, *arguments: object) -> None:
        pass

    __setstate__ = None


class _Bytes(bytes):
    """``_codecs.encode``, as which protocols before 3 write bytes."""

    __setstate__ = None  # a pickle may set the attributes of a class that has no such method

    def __new__(cls, text: str, encoding: str = "latin1") -> _Bytes:
        """The bytes of a text in latin1, the one encoding that pickle uses."""
        return super().__new__(cls, text.encode("latin1"))


_ALLOWED: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _Bytes,
    ("collections", "OrderedDict"): OrderedDict,
    # numpy 1 and 2 name their inside differently
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _Buffer for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed")
        return _ALLOWED[module, name]


def load_arrays(path: Path) -> Any:
    """What a pickle of plain containers and numpy arrays holds, the arrays as tensors.

    Raises UnpicklingError with ``GLOBAL`` and the name for anything else that the pickle asks for, and whatever the
    bytes of a damaged file happen to lead to.
    """
    with path.open("rb") as file:
        return _with_tensors(_Unpickler(file, encoding="latin1").load())


def _with_tensors(node: Any) -> Any:
    if isinstance(node, _Array) and node.array is not None:
        return torch.from_numpy(node.array)
    return {key: _with_tensors(value) for key, value in node.items()} if isinstance(node, dict) else node
