"""How much memory there is under control groups of both versions, in made-up trees of their files."""

import re
from pathlib import Path

import pytest

from twinbench.foundation.machine_memory import usable_memory

MEMINFO = Path("/proc/meminfo")
if not MEMINFO.exists():
    pytest.skip("only Linux tells its memory in a file", allow_module_level=True)
INSTALLED = 1024 * int(re.findall(r"MemTotal: +(\d+) kB", MEMINFO.read_text())[0])


def memory(tmp_path: Path, groups: str, **files: str) -> int:
    """Usable bytes with ``groups`` as the process's list and these files below the mount."""
    (tmp_path / "list").write_text(groups)
    for name, content in files.items():
        path = tmp_path / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return usable_memory(tmp_path / "list", tmp_path / "mount")


def test_without_control_groups_it_is_what_the_machine_has(tmp_path: Path) -> None:
    assert usable_memory(tmp_path / "nothing", tmp_path) == INSTALLED
    assert memory(tmp_path, "0::/\n") == INSTALLED


@pytest.mark.parametrize(
    ("own", "expected"), [("max", INSTALLED), ("1048576", 2**20), (str(2**60), INSTALLED), ("odd", INSTALLED)]
)
def test_version_2(tmp_path: Path, own: str, expected: int) -> None:
    assert memory(tmp_path, "0::/job/step\n", **{"job/step/memory.max": own + "\n"}) == expected


def test_the_smallest_limit_from_the_group_to_the_root_counts(tmp_path: Path) -> None:
    files = {"a/b/memory.max": "8000", "a/memory.max": "3000"}
    assert memory(tmp_path, "0::/a/b\n", **files) == 3000
    assert memory(tmp_path, "0::/elsewhere\n") == INSTALLED
    assert memory(tmp_path, "0::/elsewhere\n", **{"memory.max": "9000"}) == 9000


def test_version_1(tmp_path: Path) -> None:
    groups = "9:memory:/docker/abc\n3:cpu,cpuacct:/x\n0::/\n"
    files = {
        "memory/docker/abc/memory.limit_in_bytes": "4096\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
        "cpu,cpuacct/x/memory.limit_in_bytes": "1\n",
    }
    assert memory(tmp_path, groups, **files) == 4096
