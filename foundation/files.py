"""Files that are either whole or absent, and what they are called."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from twinbench.foundation.errors import RunFailure


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to a temporary name beside ``path``, sync it, rename it into place.

    Raises RunFailure naming the path where the folder is read-only or the disk is full; no half-written file
    is left behind.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise RunFailure(
            f"cannot write: {error.strerror or error}",
            where=path,
            next_step="free some space or give a writable folder",
        ) from error


def slug(text: str) -> str:
    """A text as part of a file name: what is neither an ASCII letter nor a digit becomes a hyphen."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text)
