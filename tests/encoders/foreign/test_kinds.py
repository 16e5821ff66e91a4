"""Files that are taken for checkpoints and are none: each is called what it is."""

import gzip
import io
import struct
import tarfile
import zipfile

import pytest
import torch
from safetensors.torch import save
from torch import nn

from tests.encoders.foreign.project_files import moco_v2, torchvision_resnet, written
from twinbench.encoders.foreign.importer import read_foreign
from twinbench.foundation.errors import InputError


def tar(mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{mode}") as archive:
        for name in ("model/checkpoint.pth", "model/config.yaml"):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model/", "")
        archive.writestr("model/checkpoint.pth", "abc")
        archive.writestr("model/config.yaml", "abc")
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 94355933\n"
FILES = {
    "net.tar": (tar(""), r"this is a tar archive \(2 files, first model/checkpoint\.pth\)", "unpack"),
    "net.pth.tar": (tar(""), r"this is a tar archive \(2 files", "unpack"),
    "net.tar.gz": (tar("gz"), r"a tar archive, compressed by gzip \(first model/checkpoint\.pth\)", "unpack"),
    "net.tar.xz": (tar("xz"), r"a tar archive, compressed by xz \(first model/checkpoint\.pth\)", "unpack"),
    "net.zip": (zipped(), r"this is a zip archive \(2 files, first model/checkpoint\.pth\)", "unpack"),
    "net.pth": (zipped(), r"this is a zip archive \(2 files", "unpack"),
    "net.pth.gz": (gzip.compress(b"abc"), "this is a file compressed by gzip", "unpack"),
    "net.7z": (b"7z\xbc\xaf\x27\x1c" + bytes(600), "this is a 7z archive", "unpack"),
    "net.rar": (b"Rar!\x1a\x07\x01\x00" + bytes(600), "this is a RAR archive", "unpack"),
    "net.pth.zst": (b"\x28\xb5\x2f\xfd" + bytes(600), "this is a file compressed by zstd", "unpack"),
    "page.pth": (
        b"\n<!DOCTYPE html>\n<html><body>404</body></html>",
        "this is a web page",
        "download it again",
    ),
    "error.pth": (
        b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        "an XML text",
        "download",
    ),
    "message.safetensors": (b'{"error": "not found"}', "this is a JSON text", "download it again"),
    "pointer.pth": (LFS, "this is a pointer of Git LFS", "git lfs pull"),
    "pointer.safetensors": (LFS, "this is a pointer of Git LFS", "git lfs pull"),
    "empty.pth": (b"", "this file is empty", "download it again"),
    "empty.safetensors": (b"", "this file is empty", "download it again"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path, name):
    content, what, next_step = FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=what) as error:
        read_foreign(path)
    assert error.value.where == path
    assert next_step in (error.value.next_step or "")


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_program_of_torchscript_is_called_one(tmp_path):
    path = tmp_path / "traced.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with pytest.raises(InputError, match="this is a TorchScript program"):
        read_foreign(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_torch_wrote_under_the_name_of_an_archive_is_read(tmp_path, zipped):
    document = moco_v2(torchvision_resnet().state_dict())
    path = tmp_path / "checkpoint_0199.pth.tar"
    torch.save(document, path, _use_new_zipfile_serialization=zipped)
    assert read_foreign(path).info.source_format == "moco_v2"
    assert read_foreign(written(tmp_path, document, "net.zip")).info.source_format == "moco_v2"


def test_a_safetensors_file_that_begins_like_json_is_read(tmp_path):
    whole = save(torchvision_resnet().state_dict())
    (length,) = struct.unpack("<Q", whole[:8])
    begins_like_json = int.from_bytes(b" {", "little")
    header = whole[8 : 8 + length].ljust(begins_like_json)
    path = tmp_path / "net.safetensors"
    path.write_bytes(struct.pack("<Q", begins_like_json) + header + whole[8 + length :])
    assert path.read_bytes().startswith(b" {")
    assert read_foreign(path).accounting.complete


@pytest.mark.parametrize(
    ("mark", "place"), [(b"PK\x01\x02", 0), (b"PK\x06\x07", 16)], ids=["directory", "number of disks"]
)
def test_a_zip_file_with_a_damaged_end_is_a_damaged_checkpoint(tmp_path, mark, place):
    path = tmp_path / "net.pth"
    torch.save(torchvision_resnet().state_dict(), path)
    content = bytearray(path.read_bytes())
    content[content.rindex(mark) + place] ^= 3
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a complete checkpoint") as error:
        read_foreign(path)
    assert error.value.where == path
