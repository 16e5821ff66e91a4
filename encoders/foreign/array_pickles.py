"""Pickles of numpy arrays, the files of Detectron2's model zoo, read without running any code that they may hold.

A pickle names functions and has them called. Here the few names that numpy writes for an array lead to classes of
this module, which do nothing but take the bytes; any other name is refused. numpy itself never sees the pickle.
"""

from __future__ import annotations

import pickle
import pickletools
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

    def read(self, content: bytes | bytearray | str, shape: tuple[int, ...], order: str) -> np.ndarray:
        """The array in these bytes, in the machine's own order of bytes and writable."""
        raw = content.encode("latin1") if isinstance(content, str) else content  # Python 2 wrote bytes as str
        array = np.frombuffer(raw, self.order + self.code).reshape(shape, order="F" if order == "F" else "C")
        return np.array(array, dtype=self.code, order="C")


class _Array:
    """numpy's ``_reconstruct``, which makes an empty array, and the state that fills it, read when all is known."""

    def __init__(self, *arguments: object) -> None:
        self.filled: tuple[_Type, bytes | bytearray | str, tuple[int, ...], str] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_columns, content = state
        self._fill(kind, content, shape, "F" if by_columns else "C")

    def _fill(self, kind: object, content: object, shape: tuple[int, ...], order: str) -> None:
        if not isinstance(kind, _Type) or not isinstance(content, bytes | bytearray | str):
            raise pickle.UnpicklingError("no array of numbers")
        self.filled = kind, content, shape, order


class _Buffer(_Array):
    """numpy's ``_frombuffer``, which pickles of protocol 5 use."""

    def __init__(self, content: bytes, kind: _Type, shape: tuple[int, ...], order: str) -> None:
        self._fill(kind, content, shape, order)


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
    _require_small_memo(path)
    with path.open("rb") as file:
        document = _Unpickler(file, encoding="latin1").load()
    return _Tensors(path.stat().st_size).of(document)


def _require_small_memo(path: Path) -> None:
    """Raise UnpicklingError if the pickle numbers what it will need again otherwise than one after the other.

    The unpickler makes a table as long as the largest number, which five bytes can make four thousand million.
    """
    with path.open("rb") as file:
        for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
            if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and (argument or 0) > count:
                raise pickle.UnpicklingError(f"a memo of {argument} entries")


class _Tensors:
    """Turns the arrays of a document into tensors, which together take no more than the file has.

    A pickle may hold one thing at many places, so that a small file stands for any number of arrays.
    """

    def __init__(self, bytes_left: int) -> None:
        self._left = bytes_left
        self._known: dict[int, Any] = {}

    def of(self, node: Any) -> Any:
        """The node with tensors in the place of arrays, in mappings at any depth; each node is turned once."""
        if not isinstance(node, dict | _Array):
            return node
        if id(node) not in self._known:
            self._known[id(node)] = self._turned(node)
        return self._known[id(node)]

    def _turned(self, node: dict[Any, Any] | _Array) -> Any:
        if isinstance(node, dict):
            return {key: self.of(value) for key, value in node.items()}
        if node.filled is None:
            return node
        kind, content, shape, order = node.filled
        self._left -= len(content)
        if self._left < 0:
            raise pickle.UnpicklingError("its arrays are larger than the file")
        return torch.from_numpy(kind.read(content, shape, order))
