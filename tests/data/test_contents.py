"""What is in files, at a bounded price: what is noticed, what is read again, and when an index is not trusted."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from twinbench.data import contents
from twinbench.data.contents import digests

MINUTE_NS = 60 * 10**9


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, with an index for sets of any size whose files were written long ago."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(contents, "WORTH_AN_INDEX", 1)
    monkeypatch.setattr(contents, "_SETTLED_NS", -MINUTE_NS)
    return tmp_path / "cache"


@pytest.fixture
def read_again(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose content is read, as they are."""
    names: list[str] = []
    digest = contents._digest

    def counted(path: str, size: int) -> bytes:
        names.append(os.path.basename(path))
        return digest(path, size)

    monkeypatch.setattr(contents, "_digest", counted)
    return names


def write_files(folder: Path, n: int = 5, size: int = 20_000) -> list[Path]:
    folder.mkdir(parents=True)
    paths = [folder / f"{i}.png" for i in range(n)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * size)
    return paths


def wait_for_the_clock(folder: Path) -> None:
    """Wait until what is written here gets a new time, since the clocks of some disks tick slowly."""
    probe = folder / "probe"
    probe.touch()
    before = probe.stat().st_ctime_ns
    while probe.stat().st_ctime_ns == before:
        time.sleep(0.001)
        probe.touch()
    probe.unlink()


def replace(path: Path, at: int, value: bytes = b"!") -> None:
    """Write some bytes without another size or another time of change."""
    wait_for_the_clock(path.parent)
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[at : at + len(value)] = value
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("size", [0, 1, 4096, 8191, 8192, 8193, 50_000])
def test_the_digest_is_of_the_size_and_both_ends(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "a").write_bytes(content)
    ends = content if size <= 8192 else content[:4096] + content[-4096:]
    expected = hashlib.blake2b(f"{size}:".encode() + ends, digest_size=16).digest()
    assert digests(tmp_path, [tmp_path / "a"]) == [expected]


@pytest.mark.parametrize("at", [0, 4095, 20_000 - 4096, 19_999])
def test_another_content_of_the_same_size_and_time_is_noticed(
    tmp_path: Path, cache: Path, read_again: list[str], at: int
) -> None:
    paths = write_files(tmp_path / "set")
    before = digests(tmp_path / "set", paths)
    replace(paths[3], at)
    read_again.clear()
    after = digests(tmp_path / "set", paths)
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, True, False, True]
    assert read_again == ["3.png"]


def test_files_that_change_places_are_noticed(tmp_path: Path, cache: Path) -> None:
    paths = write_files(tmp_path / "set", 2)
    for path in paths:
        os.utime(path, ns=(10**18, 10**18))
    before = digests(tmp_path / "set", paths)
    wait_for_the_clock(tmp_path)
    paths[0].rename(tmp_path / "aside")
    paths[1].rename(paths[0])
    (tmp_path / "aside").rename(paths[1])
    assert digests(tmp_path / "set", paths) == before[::-1]


def test_what_is_in_the_index_is_not_read_again(
    tmp_path: Path, cache: Path, read_again: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_files(tmp_path / "set")
    before = digests(tmp_path / "set", paths)
    assert sorted(read_again) == [path.name for path in paths]
    read_again.clear()
    (tmp_path / "link").symlink_to(tmp_path / "set")
    monkeypatch.chdir(tmp_path / "set")
    for root in (tmp_path / "set", tmp_path / "link", Path(".")):
        assert digests(root, [root / path.name for path in paths]) == before
    assert read_again == []
    paths[0].unlink()
    digests(tmp_path / "set", paths[1:])
    assert read_again == []
    (index,) = cache.rglob("contents/*")
    assert index.stat().st_size < 5 * 32 + 100
    moved = (tmp_path / "set").rename(tmp_path / "moved")
    assert digests(moved, [moved / path.name for path in paths[1:]]) == before[1:]
    assert sorted(read_again) == [path.name for path in paths[1:]], "another folder has another index"


def test_a_file_that_was_written_a_moment_ago_is_not_kept(
    tmp_path: Path, cache: Path, read_again: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be written again within the same tick of the disk's clock."""
    monkeypatch.setattr(contents, "_SETTLED_NS", MINUTE_NS)
    paths = write_files(tmp_path / "set")
    os.utime(paths[0], ns=(10**18, 10**18))  # the time at which it was given that time is another
    for _ in range(2):
        read_again.clear()
        digests(tmp_path / "set", paths)
        assert len(read_again) == len(paths)
    assert not list(cache.rglob("contents/*"))


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-7], lambda c: c[:30] + b"?" + c[31:], lambda c: b"", lambda c: c + c]
)
def test_a_damaged_index_is_made_anew(
    tmp_path: Path, cache: Path, read_again: list[str], caplog: pytest.LogCaptureFixture, damage
) -> None:
    paths = write_files(tmp_path / "set")
    before = digests(tmp_path / "set", paths)
    (index,) = cache.rglob("contents/*")
    whole = index.read_bytes()
    index.write_bytes(damage(whole))
    read_again.clear()
    assert digests(tmp_path / "set", paths) == before
    assert len(read_again) == len(paths)
    assert "is damaged" in caplog.text
    assert index.read_bytes() == whole


def test_without_a_place_for_the_index_all_is_read(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_files(tmp_path / "set")
    expected = digests(tmp_path / "set", paths)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    assert digests(tmp_path / "set", paths) == expected
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert digests(tmp_path / "set", paths) == expected
    assert len(list((tmp_path / "home" / ".cache" / "twinbench" / "contents").iterdir())) == 1


def test_a_small_set_has_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    digests(tmp_path, write_files(tmp_path / "set"))
    assert not (tmp_path / "cache").exists()
