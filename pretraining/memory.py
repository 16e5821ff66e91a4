"""Memory of the process: how it is kept, how its peak is measured, and how one knows that it was too little."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import re
import resource
from pathlib import Path
from typing import Any

import torch

from twinbench.foundation.errors import ShortOfMemory

# parameters of mallopt(3)
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NO_MEMORY = re.compile(r"(can't|cannot) allocate memory|not enough memory|out of memory", re.IGNORECASE)


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, for the next step to use again.

    By default glibc maps every large tensor anew and the kernel clears its pages each time, which costs a CPU
    training a fifth of its speed. Does nothing where the C library is another one.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, -1)


def reset_peak_memory() -> None:
    """Let `peak_memory_mb` count from here; outside Linux a process keeps the peak of its lifetime."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    release_freed_memory()  # what earlier work left behind is not this one's
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def release_freed_memory() -> None:
    """Give back to the system what `keep_freed_memory` keeps; does nothing where the C library is another one."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def peak_memory_mb() -> float:
    """Peak memory in MiB: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = _told_by_linux("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 if peak is None else peak


def peak_working_memory_mb() -> float | None:
    """`peak_memory_mb` without what is mapped from files, as libraries are when they are first used.

    So it grows by what was computed alone, whether the process had computed anything before or not. None where the
    system does not tell.
    """
    if torch.cuda.is_available():
        return peak_memory_mb()
    peak, mapped = _told_by_linux("VmHWM"), _told_by_linux("RssFile")
    return None if peak is None or mapped is None else peak - mapped


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory left, of the machine or of the GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | ShortOfMemory):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # what torch raises on a CPU has no type of its own
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


def _told_by_linux(name: str) -> float | None:
    """A line of /proc/self/status, in MiB."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024
    return None


def _glibc() -> Any:
    with contextlib.suppress(OSError):
        libc = ctypes.CDLL("libc.so.6")
        if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim"):
            return libc
    return None
