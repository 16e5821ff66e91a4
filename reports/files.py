"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from twinbench.reports.errors import ReportFailure


@contextlib.contextmanager
def machine_faults(what: str, where: Path, next_step: str) -> Iterator[None]:
    """Turn an OSError of the block into a ReportFailure that says what could not be done."""
    try:
        yield
    except OSError as error:
        raise ReportFailure(f"{what}: {error.strerror or error}", where=where, next_step=next_step) from error


def write_synced(path: Path, content: bytes) -> None:
    """Write the file and wait until the disk has it."""
    with path.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


def write_atomically(path: Path, text: str) -> None:
    """Replace the file at once: a crash leaves the old content or the new, and the old permissions stay.

    Raises ReportFailure where the folder is read-only or the disk is full.
    """
    with machine_faults("cannot write", path, "free some space or give a writable folder"):
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        try:
            write_synced(temporary, text.encode("utf-8"))
            temporary.chmod(mode)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
