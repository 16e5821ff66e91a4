"""How many cores this process may use: what the scheduler allows and what its control groups pay for."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from twinbench.foundation.control_groups import MOUNT, PROCESS, group_folders

_share: int | None = None


def usable_cores(process: Path = PROCESS, mount: Path = MOUNT) -> int:
    """Cores this process may use, at least one: the smaller of the scheduling affinity and the CPU quota.

    The quota is the smallest of the process's control group (of version 1 or 2) and its ancestors, rounded up.
    ``process`` lists the groups of the process, ``mount`` is where their file systems are mounted.
    """
    scheduled = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in group_folders("cpu", process, mount) for quota in _quota(folder)]
    return max(1, min([scheduled, *map(math.ceil, quotas)]))


def core_numbers() -> list[int]:
    """The system's numbers of as many cores as this process may use, of those that it may be scheduled on."""
    scheduled = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return sorted(scheduled)[: usable_cores()]


def share_cores(cores: int) -> None:
    """This process is one of several that work side by side, and starts threads and processes for so many cores."""
    global _share
    _share = cores


def own_cores() -> int:
    """For how many cores this process starts threads and processes: its share of `usable_cores`, or all of them."""
    return usable_cores() if _share is None else min(_share, usable_cores())


def _quota(folder: Path) -> Iterator[float]:
    """The cores that a control group's folder grants, if it limits them."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        # unlimited is "max" in version 2 and -1 in version 1
        if quota != "max" and int(quota) > 0 and int(period) > 0:
            yield int(quota) / int(period)
    except (OSError, ValueError):
        return
