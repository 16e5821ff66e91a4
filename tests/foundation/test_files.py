"""Files: one that is replaced passes its permissions on, a fault leaves the old one; what is read is no giant."""

import os

import pytest

from twinbench.foundation.errors import RunFailure
from twinbench.foundation.files import read_document, write_atomically


def test_a_new_file_can_be_read_by_all_and_a_replaced_one_keeps_its_permissions(tmp_path):
    path = tmp_path / "below" / "file"
    write_atomically(path, b"old")
    assert path.stat().st_mode & 0o777 == 0o644
    path.chmod(0o600)
    write_atomically(path, b"new")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_fault_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch, broken):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, broken, full)
    with pytest.raises(RunFailure, match=r"No space left(.|\n)*where: .*file(.|\n)*next:"):
        write_atomically(path, b"new")
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("file", b"old")]


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a giant"])
def test_a_document_is_a_file_and_no_giant(tmp_path, kind):
    """A pipe would be waited for; a disk may hold next to nothing of a giant, and memory all of it."""
    path = tmp_path / "document"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 60 * 2**30)
    with pytest.raises(
        OSError, match="it is no file of a disk" if kind != "a giant" else "it has 64424509440 bytes"
    ):
        read_document(path)
    (tmp_path / "plain").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "plain")
    assert read_document(tmp_path / "link") == b"x"
