"""How many cores this process may use: what the scheduler allows and what its control groups pay for."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_PROCESS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


def usable_cores(process: Path = _PROCESS, mount: Path = _MOUNT) -> int:
    """Cores this process may use, at least one: the smaller of the scheduling affinity and the CPU quota.

    The quota is the smallest of the process's control group (of version 1 or 2) and its ancestors, rounded up.
    ``process`` lists the groups of the process, ``mount`` is where their file systems are mounted.
    """
    scheduled = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _group_folders(process, mount) for quota in _quota(folder)]
    return max(1, min([scheduled, *map(math.ceil, quotas)]))


def _group_folders(process: Path, mount: Path) -> Iterator[Path]:
    """The folders that may hold a CPU quota of this process: its own groups, then their ancestors."""
    try:
        lines = process.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            roots = [mount, mount / "unified"]
        elif "cpu" in controllers.split(","):
            roots = [mount / controllers, mount / "cpu"]
        else:
            continue
        # inside a container the listed path may be that of the host, which is not mounted here: only its
        # ancestor, the root of the mount, is then found
        parts = [part for part in group.split("/") if part not in ("", "..")]
        for root in roots:
            yield from (root.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))


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
