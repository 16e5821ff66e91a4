"""Checkpoints to resume from: atomic, checksummed, the last two kept, tensors and plain containers only."""

from __future__ import annotations

import hashlib
import io
import logging
import re
from pathlib import Path
from typing import Any

import torch

from twinbench.foundation.errors import RunFailure
from twinbench.foundation.files import write_atomically

_KEEP = 2
_NAME = re.compile(r"step-(\d{9})-([0-9a-f]{64})\.pt")
_log = logging.getLogger(__name__)


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write the state after ``step`` steps; the file's name carries the SHA-256 of its content."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    save_content(folder, step, buffer.getvalue())


def save_content(folder: Path, step: int, content: bytes) -> None:
    """Write a checkpoint, and delete all but the last two."""
    digest = hashlib.sha256(content).hexdigest()
    write_atomically(folder / f"step-{step:09d}-{digest}.pt", content)
    for old in _files(folder)[:-_KEEP]:
        old.unlink()


def load_latest(folder: Path) -> dict[str, Any] | None:
    """The newest intact state, or None; an altered or truncated file is named, skipped and removed.

    Raises RunFailure for an intact file that cannot be read.
    """
    found = newest(folder)
    return None if found is None else read_state(*found)


def newest(folder: Path) -> tuple[Path, bytes] | None:
    """The newest intact checkpoint and its content, or None; an altered or truncated one is named and removed."""
    for path in reversed(_files(folder)):
        content = path.read_bytes()
        match = _NAME.fullmatch(path.name)
        if match is not None and hashlib.sha256(content).hexdigest() == match[2]:
            return path, content
        _log.warning("checkpoint %s is damaged; falling back to the one before it, or to the beginning", path)
        path.unlink()
    return None


def read_state(path: Path, content: bytes) -> dict[str, Any]:
    """The state in a checkpoint. Raises RunFailure where it cannot be read: memory is short, or it is not ours."""
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # what we did not write fails in whatever way its bytes happen to
        raise RunFailure(
            f"this checkpoint cannot be read: {type(error).__name__}: {str(error).partition(chr(10))[0][:200]}",
            where=path,
            next_step="free memory, or delete the file to go on from the one before it, or from the beginning",
        ) from error
    return state


def remove_checkpoints(folder: Path) -> None:
    """Delete every checkpoint, and what a kill left of one: a finished run needs none."""
    for path in [*_files(folder), *folder.glob(".step-*")]:
        path.unlink()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name))
