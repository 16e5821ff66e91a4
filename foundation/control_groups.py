"""Where Linux says what the control groups of this process may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PROCESS = Path("/proc/self/cgroup")
"""The file that lists the groups of this process."""
MOUNT = Path("/sys/fs/cgroup")
"""Where the file systems of the groups are mounted."""


def group_folders(controller: str, process: Path, mount: Path) -> Iterator[Path]:
    """The folders that may hold a limit of a controller: the groups of the process, then their ancestors.

    Controllers are ``cpu`` and ``memory``, of version 1 and 2. ``process`` lists the groups, their file systems are
    mounted at ``mount``.
    """
    try:
        lines = process.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            roots = [mount, mount / "unified"]
        elif controller in controllers.split(","):
            roots = [mount / controllers, mount / controller]
        else:
            continue
        # inside a container the listed path may be that of the host, which is not mounted here: only its
        # ancestor, the root of the mount, is then found
        parts = [part for part in group.split("/") if part not in ("", "..")]
        for root in roots:
            yield from (root.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))
