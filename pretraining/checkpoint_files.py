"""Checkpoint files of other projects, read without running any code that they may hold.

A ``.pth`` file is a pickle, and a pickle is a program. PyTorch's weights-only reader runs none of it: it builds tensors
and plain containers and refuses everything else. Two harmless things that official checkpoints hold are let through:
numpy's scalars (a loss, an accuracy) and `argparse.Namespace` (the command line).
"""

from __future__ import annotations

import argparse
import hashlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar as numpy_scalar
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from data.errors import InputError

_WRAPPERS = ("state_dict", "classy_state_dict", "base_model", "model", "model_state_dict", "resnet")
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "?")),
    (numpy_scalar, "numpy._core.multiarray.scalar"),
    (numpy_scalar, "numpy.core.multiarray.scalar"),  # as numpy 1 called it
]


@dataclass(frozen=True)
class CheckpointFile:
    """The tensors of a checkpoint by name, in the file's order.

    ``wrappers`` are the keys that lead to them, outermost first; ``beside`` the keys next to the outermost wrapper.
    """

    path: Path
    sha256: str
    tensors: dict[str, Tensor]
    wrappers: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


def read_checkpoint(path: Path) -> CheckpointFile:
    """Read a checkpoint (``torch.save`` or safetensors) without running code.

    Raises InputError where there is no such file, where it is damaged, where its pickle wants more than tensors and
    plain containers, and where it holds no state dict.
    """
    if not path.is_file():
        raise InputError("no such file", where=path, next_step="give a checkpoint file, e.g. resnet50.pth")
    with path.open("rb") as handle:
        sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
    document = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if not isinstance(document, Mapping):
        raise InputError(f"holds a {type(document).__name__}, not a state dict", where=path)
    node, wrappers = _unwrap(document)
    tensors = {str(key): value for key, value in node.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(
            f"no state dict in this file; its keys: {', '.join(map(str, list(document)[:8])) or 'none'}",
            where=path,
            next_step="save the weights alone: torch.save(model.state_dict(), FILE)",
        )
    return CheckpointFile(
        path, sha256, tensors, wrappers, tuple(str(key) for key in document if key not in wrappers[:1])
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read is an error anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            raise _damaged(path, error) from error
        raise InputError(
            f"this pickle wants to run code: {wanted[1]}; nothing of it was run",
            where=path,
            next_step="if you trust it, load it where it was made, save the weights alone and import that: "
            "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')",
        ) from error
    except Exception as error:  # a damaged pickle fails in whatever way its bytes happen to
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"not a complete checkpoint ({type(error).__name__})",
        where=path,
        next_step="compare its size and checksum with its publisher's, and download it again",
    )


def _unwrap(document: Mapping[Any, Any]) -> tuple[Mapping[Any, Any], tuple[str, ...]]:
    """The innermost mapping that holds tensors, and the keys that lead there."""
    node = document
    wrappers: list[str] = []
    while not _holds_tensors(node):
        step = next((key for key in _WRAPPERS if isinstance(node.get(key), Mapping)), None)
        if step is None:
            return _joined(node), tuple(wrappers)
        node = node[step]
        wrappers.append(step)
    return node, tuple(wrappers)


def _holds_tensors(node: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in node.values())


def _joined(parts: Mapping[Any, Any]) -> dict[str, Any]:
    """One state dict of several under names, as VISSL's ``trunk`` and ``heads``."""
    return {
        f"{name}.{key}": value
        for name, part in parts.items()
        if isinstance(part, Mapping) and _holds_tensors(part)
        for key, value in part.items()
    }
