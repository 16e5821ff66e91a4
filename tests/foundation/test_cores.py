"""The number of usable cores under control groups of both versions, in made-up trees of their files."""

import os
from pathlib import Path

import pytest

from twinbench.foundation import cores as of_cores
from twinbench.foundation.cores import own_cores, share_cores, usable_cores


@pytest.fixture(autouse=True)
def sixteen_scheduled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)


def cores(tmp_path: Path, groups: str, **files: str) -> int:
    """Usable cores with ``groups`` as the process's list and files named like ``a__b__cpu.max``."""
    (tmp_path / "list").write_text(groups)
    for name, content in files.items():
        path = tmp_path / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return usable_cores(tmp_path / "list", tmp_path / "mount")


def test_without_control_groups_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "nothing", tmp_path) == 16
    assert cores(tmp_path, "0::/\n") == 16


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("max 100000", 16),
        ("400000 100000", 4),
        ("150000 100000", 2),
        ("10000 100000", 1),
        ("3200000 100000", 16),
    ],
)
def test_version_2(tmp_path: Path, own: str, expected: int) -> None:
    assert cores(tmp_path, "0::/job/step\n", **{"job/step/cpu.max": own + "\n"}) == expected


def test_the_smallest_quota_from_the_group_to_the_root_counts(tmp_path: Path) -> None:
    files = {"a/b/c/cpu.max": "max 100000", "a/b/cpu.max": "800000 100000", "a/cpu.max": "300000 100000"}
    assert cores(tmp_path, "0::/a/b/c\n", **files) == 3
    assert cores(tmp_path, "0::/a/b/c\n", **{"cpu.max": "200000 100000"}) == 2
    assert cores(tmp_path, "0::/other\n", **{"a/cpu.max": "100000 100000"}) == 2


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct", "cpuacct,cpu"])
def test_version_1(tmp_path: Path, controllers: str) -> None:
    groups = f"9:memory:/x\n3:{controllers}:/docker/abc\n0::/\n"
    files = {
        f"{controllers}/docker/abc/cpu.cfs_quota_us": "250000\n",
        f"{controllers}/docker/abc/cpu.cfs_period_us": "100000\n",
        f"{controllers}/cpu.cfs_quota_us": "-1\n",
        f"{controllers}/cpu.cfs_period_us": "100000\n",
        "memory/x/cpu.max": "100000 100000\n",
    }
    assert cores(tmp_path, groups, **files) == 3


def test_in_a_container_the_hosts_path_leads_to_the_root_of_the_mount(tmp_path: Path) -> None:
    assert cores(tmp_path, "0::/kubepods/pod1/box\n", **{"cpu.max": "500000 100000\n"}) == 5
    assert cores(tmp_path, "0::/../../pod1/box\n") == 5


def test_a_file_that_makes_no_sense_is_no_quota(tmp_path: Path) -> None:
    assert cores(tmp_path, "0::/\n", **{"cpu.max": "gibberish\n"}) == 16


def test_a_process_beside_others_starts_threads_for_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_cores, "_share", None)
    assert own_cores() == usable_cores()
    share_cores(1)
    assert own_cores() == 1
    share_cores(10**6)
    assert own_cores() == usable_cores(), "no more than there are"
