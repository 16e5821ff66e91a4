"""How much memory the processes of this program may take together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from twinbench.foundation.control_groups import MOUNT, PROCESS, group_folders


def usable_memory(process: Path = PROCESS, mount: Path = MOUNT) -> int:
    """Bytes: the machine's memory, or less where a control group of this process or an ancestor of it has a limit.

    Swap does not count. ``process`` lists the groups of the process, ``mount`` is where their file systems are mounted.
    """
    limits = [limit for folder in group_folders("memory", process, mount) for limit in _limit(folder)]
    # a group without a limit has in version 1 one of 2^63 bytes
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])


def _limit(folder: Path) -> Iterator[int]:
    """The bytes that a control group's folder grants, if it limits them."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            limit = (folder / name).read_text().strip()
            if limit != "max" and int(limit) > 0:
                yield int(limit)
        except (OSError, ValueError):
            continue
