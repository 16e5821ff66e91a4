"""What a file is that was taken for a checkpoint and is none: an archive, a web page, a pointer to the file itself.

Only names and first bytes are looked at; of what is packed no more than the beginning is unpacked.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twinbench.foundation.errors import InputError

_HEAD = 512  # bytes; a tar archive has its mark at 257
_PACKED = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"\x1f\x8b": "compressed by gzip",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ\x00": "compressed by xz",
}
_OPENERS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_UNPACKED_HEAD = 2**16
_TEXTS = {
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"<?xml": "an XML text, as servers send for an error",
    b"{": "a JSON text",
}
_UNPACK = "unpack it and give the checkpoint in it"
_AGAIN = "download it again, and open it in an editor to see what the server says"


def require_checkpoint(path: Path) -> None:
    """Raise InputError if a file is of a kind that is no checkpoint, and say which."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise InputError("this file is empty", where=path, next_step="download it again")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(
            "this is a pointer of Git LFS, not the file itself",
            where=path,
            next_step="fetch the file: git lfs pull",
        )
    # A safetensors file begins with a length, whose bytes may be a blank and a brace, and with zeros after them.
    if b"\0" not in head and (text := _kind(head.lstrip().lower(), _TEXTS)):
        raise InputError(f"this is {text}, not a checkpoint", where=path, next_step=_AGAIN)
    if archive := _archive(path, head):
        raise InputError(f"this is {archive}", where=path, next_step=_UNPACK)
    _require_torchs_zip(path)


def _kind(head: bytes, kinds: dict[bytes, str]) -> str | None:
    return next((words for mark, words in kinds.items() if head.startswith(mark)), None)


def _archive(path: Path, head: bytes) -> str | None:
    """An archive or packed file in words, None if it is neither; zip is PyTorch's own container and not meant here."""
    packed = _kind(head, _PACKED)
    if packed is None and head[257:262] != b"ustar":
        return None
    try:
        if packed:
            return f"a tar archive, {packed} (first {_first_in(path, head)})"
        with tarfile.open(path) as archive:
            names = [member.name for member in archive if member.isfile()]
    except (tarfile.TarError, lzma.LZMAError, OSError, EOFError, ImportError, ValueError, MemoryError):
        return f"a file {packed}" if packed and packed.startswith("compressed") else packed or "a tar archive"
    return f"a tar archive {_listed(names)}"


def _first_in(path: Path, head: bytes) -> str:
    """The first name in a packed tar archive, of which only the beginning is unpacked: there may be no end of it."""
    opener = next((each for mark, each in _OPENERS.items() if head.startswith(mark)), None)
    if opener is None:
        raise tarfile.ReadError("no packing that Python knows")
    with opener(path) as file:
        beginning = io.BytesIO(file.read(_UNPACKED_HEAD))
    with tarfile.open(fileobj=beginning, mode="r:") as archive:
        first = archive.next()
    if first is None:
        raise tarfile.ReadError("no file in it")
    return first.name


def _require_torchs_zip(path: Path) -> None:
    """Raise InputError for a whole zip file unless torch.save writes such: a folder with data.pkl in it."""
    try:
        if not zipfile.is_zipfile(path):  # which raises, too, where it looks further than at the first bytes
            return
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return  # to whom reads checkpoints it is a damaged one
    if any(name.endswith("/constants.pkl") for name in names):
        raise InputError(
            "this is a TorchScript program, and no program is run here",
            where=path,
            next_step="if you trust it, load it where it was made and save the weights alone: "
            "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')",
        )
    if not any(name.endswith("/data.pkl") for name in names):
        raise InputError(f"this is a zip archive {_listed(names)}", where=path, next_step=_UNPACK)


def _listed(names: list[str]) -> str:
    return f"({len(names)} files, first {names[0]})" if names else "with no file in it"
