"""Checkpoint files of other projects, read without running any code that they may hold.

A ``.pth`` file is a pickle, and a pickle is a program. PyTorch's weights-only reader runs none of it: it builds tensors
and plain containers and refuses everything else. Harmless things that official checkpoints hold are let through:
numpy's scalars (a loss, an accuracy), `argparse.Namespace` (the command line) and the curves of OpenMMLab's log, which
are thrown away. Bare pickles of numpy arrays, as Detectron2 has them, are read by `encoders.foreign.array_pickles`.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar as numpy_scalar
from safetensors import SafetensorError, safe_open
from torch import Tensor

from twinbench.encoders.encoder import checked_description
from twinbench.encoders.foreign.array_pickles import load_arrays
from twinbench.encoders.foreign.kinds import require_checkpoint
from twinbench.foundation.documents import from_json
from twinbench.foundation.errors import InputError, RunFailure

DESCRIPTION = "twinbench"  # the key of our own description in what `encoders.foreign.exporter` writes
_ZIP_MAGIC = b"PK\x03\x04"
_ZIP_END, _ZIP_END_FIELDS = b"PK\x05\x06", 18
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began before it wrote zip files
_WRAPPERS = ("state_dict", "classy_state_dict", "base_model", "model", "model_state_dict", "resnet")
_DEEPEST = 8  # wrappers around a state dict; VISSL has three
_SAVE_WEIGHTS = "save the weights alone: torch.save(model.state_dict(), FILE)"


class _Discarded:
    """Stands for an object beside the weights that is of no use here: takes whatever it is given and keeps nothing."""

    def __new__(cls, *arguments: object) -> _Discarded:
        """An instance that ignores its arguments."""
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "?")),
    (numpy_scalar, "numpy._core.multiarray.scalar"),
    (numpy_scalar, "numpy.core.multiarray.scalar"),  # as numpy 1 called it
    # mmengine's runner saves `message_hub`, curves of the log as arrays (mmengine/logging/history_buffer.py)
    *(
        (_Discarded, name)
        for name in (
            "mmengine.logging.history_buffer.HistoryBuffer",
            "numpy.ndarray",
            "numpy._core.multiarray._reconstruct",
            "numpy.core.multiarray._reconstruct",
        )
    ),
]


@dataclass(frozen=True)
class CheckpointFile:
    """The tensors of a checkpoint by name, in the file's order.

    ``wrappers`` are the keys that lead to them, outermost first; ``beside`` is what else the file holds at its top.
    Of several networks under keys of their own (``student``, ``teacher``) all are here, with the key before the name.
    ``stripped`` are the parts of names that DistributedDataParallel and torch.compile put in; the names here lack them.
    ``description`` is what our own exporter wrote beside the weights, empty in any other file.
    """

    path: Path
    sha256: str
    tensors: dict[str, Tensor]
    wrappers: tuple[str, ...] = ()
    beside: Mapping[str, Any] = field(default_factory=dict)
    stripped: tuple[str, ...] = ()
    description: Mapping[str, Any] = field(default_factory=dict)


def read_checkpoint(path: Path) -> CheckpointFile:
    """Read a checkpoint (``torch.save``, safetensors or a pickle of numpy arrays) without running code.

    Raises InputError if there is no such file, where it is damaged or no checkpoint at all, where its pickle wants
    more than tensors and plain containers, where it holds no state dict, where two keys differ by what PyTorch's
    wrappers put in alone, and where our own description in it is nonsense; RunFailure where the file cannot be opened.
    """
    sha256 = _sha256(path)
    require_checkpoint(path)
    document, note = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if not isinstance(document, Mapping):
        raise InputError(
            f"holds a {type(document).__name__}, not a state dict", where=path, next_step=_SAVE_WEIGHTS
        )
    parts, wrappers = _unwrap(document)
    if not any(parts.values()):
        raise InputError(
            f"no state dict in this file; its keys: {', '.join(map(str, list(document)[:8])) or 'none'}",
            where=path,
            next_step=_SAVE_WEIGHTS,
        )
    tensors: dict[str, Tensor] = {}
    stripped: list[str] = []
    for prefix, part in parts.items():
        bare, found = _stripped(part, path)
        tensors |= {f"{prefix}{name}": tensor for name, tensor in bare.items()}
        stripped += [each for each in found if each not in stripped]
    _require_whole(tensors, path)
    beside = {str(key): value for key, value in document.items() if key not in wrappers[:1]}
    return CheckpointFile(path, sha256, tensors, wrappers, beside, tuple(stripped), _description(note, path))


def _sha256(path: Path) -> str:
    if path.is_dir():
        raise InputError("this is a folder", where=path, next_step="give the checkpoint file in it")
    if not path.is_file():
        raise InputError("no such file", where=path, next_step="give a checkpoint file, e.g. resnet50.pth")
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise RunFailure(
            f"cannot read: {error.strerror or error}", where=path, next_step="make the file readable"
        ) from error


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], object]:
    """The tensors of a safetensors file, and our description in its metadata if there is one."""
    try:
        with safe_open(path, framework="pt") as file:
            names, metadata = file.keys(), file.metadata() or {}
            return {name: file.get_tensor(name) for name in names}, metadata.get(DESCRIPTION)
    except (SafetensorError, RuntimeError, AttributeError) as error:
        raise _damaged(path, error) from error


def _read_pickle(path: Path) -> tuple[Any, object]:
    """What is in a pickle, torch's or one of numpy arrays, and our description in it if there is one."""
    try:
        with path.open("rb") as handle:
            magic = handle.read(len(_LEGACY_MAGIC))
        if magic.startswith(_ZIP_MAGIC) or magic == _LEGACY_MAGIC:
            document = _read_torch(path)
            return document, getattr(document, "_metadata", {}).get(DESCRIPTION)
        document = load_arrays(path)
        return document, document.get(DESCRIPTION) if isinstance(document, dict) else None
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


def _read_torch(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        _require_as_torch_packs(path)
    with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read is an error anyway
        return torch.load(path, map_location="cpu", weights_only=True)


def _require_as_torch_packs(path: Path) -> None:
    """Raise ValueError for a zip file that torch.save did not write, whose parts may unpack to any size.

    The list of parts is looked up from the end of the file. Two programs look it up alike if it ends the file; behind
    it, there could be one for each.
    """
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    if unpacked > path.stat().st_size:  # torch.save compresses nothing; whoever did wants to fill the memory
        raise ValueError(f"unpacks to {unpacked} bytes")
    if packed:
        raise ValueError(f"{packed[0]} is compressed")
    with path.open("rb") as file:
        file.seek(-len(_ZIP_END) - _ZIP_END_FIELDS, 2)
        if not file.read().startswith(_ZIP_END):
            raise ValueError("something follows the end of the archive")


def _require_whole(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise InputError for a tensor whose numbers are not all in the file, one by one."""
    for name, tensor in tensors.items():
        on_cpu = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not on_cpu or tensor.is_quantized or tensor.is_nested:
            fault = f"{name} is sparse or has no values, or they are packed"
        elif tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():  # saved as a view of less
            fault = f"the tensor {name} of shape {tuple(tensor.shape)} is not in this file number by number"
        else:
            continue
        raise InputError(
            fault,
            where=path,
            next_step="save the weights as plain tensors: torch.save({k: v.clone() for k, v in "
            "model.state_dict().items()}, FILE)",
        )


def require_distinct(names: Mapping[str, str], path: Path) -> None:
    """Raise InputError if two keys of a file are given one name, for then one tensor would replace the other."""
    first: dict[str, str] = {}
    for key, name in names.items():
        if name in first:
            raise InputError(
                f"two keys of this file are both {name}: {first[name]} and {key}",
                where=path,
                next_step="save the weights of one network alone, under one name each",
            )
        first[name] = key


def _stripped(tensors: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors without what torch.compile puts anywhere in a name and DistributedDataParallel before every name."""
    stripped = [part for part in ("_orig_mod.",) if any(part in name for name in tensors)]
    require_distinct({name: name.replace("_orig_mod.", "") for name in tensors}, path)
    bare = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    if all(name.startswith("module.") for name in bare):
        stripped.append("module.")
        bare = {name.removeprefix("module."): tensor for name, tensor in bare.items()}
    return bare, tuple(stripped)


def _description(note: object, path: Path) -> Mapping[str, Any]:
    """Our own description of an exported encoder, parsed and checked; empty where there is none."""
    if note is None:
        return {}
    try:
        return checked_description(from_json(note))  # type: ignore[arg-type]
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"what twinbench wrote into this file about its encoder was altered: {error}",
            where=path,
            next_step="export the encoder again, or save the weights anew without the description",
        ) from error


def _damaged(path: Path, error: Exception) -> InputError:
    reason = str(error).partition("\n")[0][:80]
    return InputError(
        f"not a complete checkpoint ({type(error).__name__}{': ' * bool(reason)}{reason})",
        where=path,
        next_step="compare its size and checksum with its publisher's, and download it again",
    )


def _unwrap(document: Mapping[Any, Any]) -> tuple[dict[str, dict[str, Tensor]], tuple[str, ...]]:
    """The state dicts of a file by what their names begin with here, and the keys that lead there.

    A state dict that is alone needs no beginning. Where several hold networks (``student`` and ``teacher``,
    ``state_dict`` and ``state_dict_ema``) none is preferred: each keeps its key. Lone tensors beside a state dict (the
    best accuracy, a loss) are none.
    """
    node = document
    wrappers: list[str] = []
    while True:
        parts = {str(key): part for key, value in node.items() if (part := _tensors(value))}
        networks = [key for key, part in parts.items() if _holds_kernels(part)]
        if tensors := _state_dict(node):
            return {"": tensors, **{f"{key}.": parts[key] for key in networks}}, tuple(wrappers)
        wrapper = next((key for key in _WRAPPERS if isinstance(node.get(key), Mapping)), None)
        if len(networks) == 1 and networks[0] in _WRAPPERS:
            wrapper = networks[0]
        elif networks:
            wrapper = None
        if wrapper is None or len(wrappers) == _DEEPEST:  # a pickle may hold itself
            return {f"{key}.": part for key, part in parts.items()}, tuple(wrappers)
        node = node[wrapper]
        wrappers.append(wrapper)


def _tensors(node: object) -> dict[str, Tensor]:
    """The tensors directly in a mapping, none of anything else."""
    if not isinstance(node, Mapping):
        return {}
    return {str(key): value for key, value in node.items() if isinstance(value, Tensor)}


def _state_dict(node: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors directly in a mapping if they are named as in a module and no mapping below holds more; else none."""
    tensors = _tensors(node)
    named = any("." in name for name in tensors)
    return tensors if named and (_holds_kernels(tensors) or len(tensors) >= _most_tensors(node)) else {}


def _most_tensors(node: Mapping[Any, Any]) -> int:
    """How many tensors the fullest mapping in a mapping holds, itself included."""
    seen: set[int] = set()
    most, waiting = 0, [node]
    while waiting:
        each = waiting.pop()
        if id(each) not in seen:  # a pickle may hold itself
            seen.add(id(each))
            most = max(most, len(_tensors(each)))
            waiting += [value for value in each.values() if isinstance(value, Mapping)]
    return most


def _holds_kernels(tensors: Mapping[str, Tensor]) -> bool:
    """Whether there are kernels of a convolution in a module, as in a network and not in a head, a loss or pictures."""
    return any(tensor.ndim == 4 and "." in name for name, tensor in tensors.items())
