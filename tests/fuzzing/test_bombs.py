"""Files that somebody made on purpose: to fill the memory, to take for ever, to write elsewhere, to run a program."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.fuzzing.law import check_message, outcome, read_files, write_files
from tests.fuzzing.readers import READERS
from twinbench.data.catalogue import load_image_set
from twinbench.foundation.documents import from_json, from_yaml, unsealed
from twinbench.foundation.errors import InputError
from twinbench.foundation.texts import legible
from twinbench.reports.study import MOST_ROWS

DEEP = "[" * 100_000
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 64))


def read(name, changed):
    """How a reader ends on its good files with some of them exchanged."""
    reader = READERS[name]
    return read_files(reader.read, reader.seal({**reader.good(), **changed}))


def good(name, file):
    return READERS[name].good()[file]


# --- pictures


def png(*chunks, header=None):
    """A PNG file of these chunks, with right checksums."""
    header = header or struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(4))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    packed = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(canary) (w) file\n%%EOF\n"
HUGE_SIDE = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
PICTURES = {
    "a header of 2^62 pixels": png(header=HUGE_SIDE),
    "a header just above the limit": png(header=struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)),
    "a program in PostScript": EPS,
    "a text that unpacks to 80 MB": png((b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000), 1))),
    "a profile that unpacks to 80 MB": png((b"iCCP", b"a\0\0" + zlib.compress(bytes(80_000_000), 1))),
    "EXIF of 2 GB": png()[:-12] + struct.pack(">I", 2**31 - 1) + b"eXIf",
    "a GIF of 65535x65535": b"GIF89a\xff\xff\xff\xff\0\0\0",
    "a BMP of 2^31x2^31": b"BM" + bytes(8) + struct.pack("<IIiiHH", 54, 40, 2**31 - 1, 2**31 - 1, 1, 24) + bytes(24),
    "a PPM of a 4000-digit width": b"P6 " + b"9" * 4000 + b" 1 255\n",
    "a TIFF whose directory is its own successor": b"II*\0\x08\0\0\0" + struct.pack("<H", 1)
    + struct.pack("<HHII", 256, 4, 1, 1) + struct.pack("<I", 8),
    "a TIFF of 2^32 tags": b"II*\0\x08\0\0\0" + struct.pack("<H", 65535),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_that_claim_too_much(name):
    assert read_files(READERS["picture: PNG"].read, {"picture.png": PICTURES[name]}) in (
        ("value", "error") if "unpacks" in name or "EXIF" in name else ("error",)
    )


def test_no_program_is_started_for_a_picture_whatever_it_says_it_is(tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript; here it is not even asked whether there is one."""
    from PIL import EpsImagePlugin

    def opened(*arguments):
        raise AssertionError("opened as PostScript")

    monkeypatch.setattr(EpsImagePlugin.EpsImageFile, "_open", opened)
    path = tmp_path / "picture.jpg"
    path.write_bytes(EPS)
    with pytest.raises(AssertionError, match="opened as PostScript"):
        Image.open(path)
    with pytest.raises(InputError, match="cannot decode this image"):
        READERS["picture: JPEG"].read(tmp_path)


# --- tar files


def tar_header(name="train/cat/0.jpg", size=0, kind=b"0", magic=b"ustar\x0000", **fields):
    """A header with a right checksum; a size above 8 GiB is written as GNU does. ``fields`` are bytes at a place."""
    header = bytearray(512)
    header[0 : len(name)] = name.encode()
    header[100:108] = b"0000644\0"
    header[124:136] = b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    header[156:157], header[257:265] = kind, magic
    for place, value in fields.items():
        at = int(place.removeprefix("at"))
        header[at : at + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def pax(body, size=None):
    """An extended header before that of a picture of one byte."""
    padded = body + bytes(-len(body) % 512)
    size = len(body) if size is None else size
    return tar_header("x", size, b"x") + padded + tar_header(size=1) + b"x".ljust(512, b"\0") + bytes(1024)


def record(key, value):
    """A line of an extended header, which begins with its own length."""
    rest = f" {key}={value}\n".encode()
    length = len(rest) + len(str(len(rest) + 2))
    return str(length).encode() + rest


GNU = b"ustar  \0"
TARS = {
    "a picture of 8 EiB": tar_header(size=2**63) + bytes(2048),
    "a picture of more than the file": tar_header(size=10**9) + bytes(2048),
    "a picture of negative size": tar_header(at124=b"\xff" * 12) + bytes(2048),
    "a picture with holes of 1 PiB": tar_header(
        kind=b"S", magic=GNU, at386=b"0" * 24, at483=b"\x80" + (2**50).to_bytes(11, "big")
    ) + bytes(2048),
    "holes of 1 PiB in an extended header": pax(record("GNU.sparse.major", 0) + record("GNU.sparse.minor", 1)
    + record("GNU.sparse.map", "0,1") + record("GNU.sparse.size", 2**50)),
    "a map of a billion holes": pax(record("GNU.sparse.major", 1) + record("GNU.sparse.minor", 0)
    + record("GNU.sparse.realsize", 2**50)),
    "an extended header that claims 1 GiB": pax(b"", 2**30),
    "an extended header of 2 MiB": pax(record("path", "x" * 2**21)),
    "a name of 100,000 characters": pax(record("path", "x" * 100_000 + ".jpg")),
    "a size of 4000 digits": pax(record("size", "9" * 4000)),
    "a negative size": pax(record("size", -512)),
    "extended headers of extended headers": tar_header("x", 0, b"x") * 20_000 + tar_header(size=1) + bytes(2048),
    "a name that leads out": tar_header("../../escaped.jpg", 1) + bytes(2048),
    "a link for a picture": tar_header(kind=b"2", at157=b"/etc/passwd") + bytes(1024),
    "a device for a picture": tar_header(kind=b"3") + bytes(1024),
}  # fmt: skip


@pytest.mark.parametrize("name", TARS)
def test_tar_files_that_claim_too_much(name):
    pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    assert read("shards of pictures", {"train-gnu.tar": TARS[name]}) == (
        "value" if name.endswith("for a picture") else "error"
    )


# --- XML, JSON, YAML


def voc(xml):
    return read("Pascal VOC", {"Annotations/a.xml": xml.encode()})


def test_entities_that_grow_are_refused():
    grow = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
    assert (
        voc(f'<!DOCTYPE annotation [<!ENTITY a0 "laughs">{grow}]><annotation>&a11;</annotation>') == "error"
    )
    long = f'<!DOCTYPE annotation [<!ENTITY a "{"x" * 100_000}">]><annotation>{"&a;" * 20_000}</annotation>'
    assert voc(long) == "error"


def test_entities_of_other_files_are_not_read(tmp_path):
    (tmp_path / "secret").write_text("cat")
    head = f'<!DOCTYPE annotation [<!ENTITY b SYSTEM "file://{tmp_path}/secret">]>'
    assert voc(head + good("Pascal VOC", "Annotations/a.xml").decode().replace("cat", "&b;")) == "error"


def test_deep_xml():
    assert voc("<annotation>" * 50_000) == "error"
    body = good("Pascal VOC", "Annotations/a.xml").decode()
    nested = "<x>" * 20_000 + "</x>" * 20_000
    assert voc(body.replace("<depth>3</depth>", nested)) == "value"


RUN = "runs/barlow_twins-digit-scenes-0123456789ab/"
JSON_FILES = [
    ("COCO", "annotations/instances_train.json"),
    ("encoder", "encoder.json"),
    ("report to verify", "study.json"),
    ("report to verify", ".report-made-of.json"),
    ("report to verify", ".report-files.json"),
    ("report to verify", "environments.json"),
    *(("run store", RUN + name) for name in ("status.json", "diagnostics.json", "metrics.jsonl", "encoder/encoder.json",
                                             "records/knn--cosine-v1.json")),
]  # fmt: skip


@pytest.mark.parametrize("content", [DEEP, '{"a":' * 100_000, "9" * 5000, "[1e999, NaN, Infinity]", "\ud800"])
@pytest.mark.parametrize(("name", "file"), JSON_FILES)
def test_json_that_nests_without_end_or_has_endless_numbers(name, file, content):
    assert read(name, {file: content.encode("utf-8", "surrogatepass")}) in ("value", "error")


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("status.json", ("seconds",)),
        ("status.json", ("ranks",)),
        ("records/knn--cosine-v1.json", ("measurements", 0, "stderr")),
    ],
)
def test_documents_of_a_run_that_lack_something(file, keys):
    document = json.loads(good("run store", RUN + file))
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    assert read("run store", {RUN + file: json.dumps(document).encode()}) == "value"


@pytest.mark.parametrize("number", ["1" + "0" * 400, "Infinity", "NaN", "-1", "1e308", '"1"', "[1]"])
@pytest.mark.parametrize(
    "key", ["step", "loss", "seconds", "parameters", "images_per_second", "effective_rank", "ranks"]
)
def test_numbers_of_a_run_that_are_none(key, number):
    changed = {}
    for file in ("status.json", "diagnostics.json", "metrics.jsonl"):
        lines = good("run store", RUN + file).decode().splitlines()
        documents = [json.loads(line) for line in lines]
        kept = [{k: v for k, v in document.items() if k != key} for document in documents]
        changed[RUN + file] = "\n".join(f'{json.dumps(k)[:-1]}, "{key}": {number}}}' for k in kept).encode()
    assert read("run store", changed) in ("value", "error")


YAML = {
    "aliases that grow": f"epochs: 5\noptions: {{a: 1}}\n{LAUGHS}",
    "a list that holds itself": "epochs: &a [*a]\n",
    "a mapping that holds itself": "options: &a {b: *a}\n",
    "deep": f"options: {DEEP}",
    "deep blocks": "options:\n" + "".join(" " * i + "- \n" for i in range(1, 2000)),
    "a hexadecimal number of 100,000 digits": "epochs: 0x" + "f" * 100_000,
    "a sexagesimal number of 10,000 digits": "epochs: " + ":".join(["59"] * 5000),
    "a date that is none": "epochs: 2001-99-99",
    "a function": "epochs: !!python/object/apply:os.system ['touch canary']",
    "a module": "epochs: !!python/name:os.system",
    "merges that grow": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)),
}


@pytest.mark.parametrize("name", YAML)
def test_yaml_that_grows_or_runs(name):
    assert read("recipes and search space", {"barlow_twins.yaml": YAML[name].encode()}) == "error"
    assert read("study", {"quick.yaml": YAML[name].encode()}) == "error"
    value = YAML[name].partition("epochs: ")[2].partition("\n")[0] or LAUGHS
    assert read("values of --set", {"values.yaml": b"key: " + value.encode()}) in ("value", "error")


def test_documents_are_as_the_libraries_read_them():
    for text in ("a: [1, 2.5, x]\nb: {c: null}\n", "- &x {a: 1}\n- *x\n", "1", "", "2001-01-01"):
        assert from_yaml(text) == yaml.safe_load(text)
    assert from_json('{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    with pytest.raises(ValueError, match="stand for more than"):
        from_yaml(LAUGHS)


# --- checkpoints


def torch_pickle(document):
    out = io.BytesIO()
    torch.save(document, out)
    return out.getvalue()


def packed_again(content, method=zipfile.ZIP_STORED, **members):
    """A zip file of PyTorch with some members exchanged or added."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", method) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, members.pop(entry.filename.rpartition("/")[2], old.read(entry)))
        for name, body in members.items():
            new.writestr(name, body)
    return out.getvalue()


def checkpoint(content, name="weights.pth"):
    return read_files(READERS["checkpoint: zip of PyTorch"].read, {name: content})


class Program:
    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


WEIGHTS = {"conv1.weight": torch.ones(4, 3, 3, 3)}
ONE = torch.ones(1)
TENSORS = {
    "a petabyte seen through one number": ONE.expand(10**15),
    "a terabyte in four dimensions seen through one number": ONE.as_strided((10**3,) * 4, (0, 0, 0, 0)),
    "without memory": torch.empty(10**15, device="meta"),
    "sparse": torch.sparse_coo_tensor(
        torch.zeros(1, 1, dtype=torch.long), ONE, (10**15,), check_invariants=False
    ),
}


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_that_are_larger_than_their_file(name, legacy, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({**WEIGHTS, "fc.weight": TENSORS[name]}, path, _use_new_zipfile_serialization=not legacy)
    assert checkpoint(path.read_bytes()) == "error"


def test_plain_and_tied_tensors_are_read():
    tied = torch.ones(5, 4)
    assert (
        checkpoint(torch_pickle({**WEIGHTS, "a.w": tied, "b.w": tied, "c.w": tied[1:3], "d.w": tied.t()}))
        == "value"
    )


def test_a_storage_that_claims_more_than_its_record():
    content = torch_pickle(WEIGHTS)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        pickled = archive.read("archive/data.pkl")
    for claim in (b"J\xff\xff\xff\x7f", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x0f"):
        assert pickled.count(b"Kl") >= 1
        assert checkpoint(packed_again(content, **{"data.pkl": pickled.replace(b"Kl", claim)})) == "error"


def test_archives_that_grow_or_lead_out(tmp_path):
    content = torch_pickle(WEIGHTS)
    assert checkpoint(packed_again(content)) == "value"
    assert checkpoint(packed_again(content, zipfile.ZIP_DEFLATED)) == "error"
    assert checkpoint(packed_again(content, zipfile.ZIP_DEFLATED, **{"0": bytes(10**7)})) == "error"
    assert checkpoint(content + b"PK\x05\x06" + bytes(18)) == "error"
    assert checkpoint(content + content) in ("value", "error")
    for name in ("../../../../escaped", "/escaped", "archive/../../escaped"):
        assert checkpoint(packed_again(content, **{name: b"x"})) in ("value", "error")
    assert not Path("/escaped").exists()


@pytest.mark.parametrize("opener", [gzip.open, bz2.open, lzma.open])
def test_a_packed_archive_whose_first_name_has_no_end(opener, tmp_path):
    endless = tarfile.TarInfo("pax")
    endless.type, endless.size = tarfile.XHDTYPE, 2**33 - 1
    path = tmp_path / "bomb"
    with opener(path, "wb") as file:
        file.write(endless.tobuf() + bytes(3_000_000))
    assert checkpoint(path.read_bytes()) == "error"


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
PICKLES = {
    "a memo of four thousand million entries": b"\x80\x04Nr\xff\xff\xff\xff.",
    "the same in text": b"Np4294967294\n.",
    "mappings in mappings that double": pickle.dumps(
        __import__("functools").reduce(lambda inner, _: {"a": inner, "b": inner}, range(64), {"w.x": np.ones(2)})
    ),
    "an array at five places": pickle.dumps({f"a{i}.w": array for array in [np.ones(100)] for i in range(5)}),
    "bytes that are not there": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x3f.",
    "a frame that is not there": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x3f.",
    "a petabyte of nothing": ARRAY + b"(I1\n(L1000000000000000L\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntRI0\nS''\ntb.",
    "a number of 200,000 digits": b"L" + b"9" * 200_000 + b"L\n.",
    "marks without end": b"(" * 50_000,
    "lists without end": b"]" * 50_000 + b".",
    "a program": pickle.dumps(Program(os.system, "touch /tmp/twinbench-canary")),
    "a program by way of a class": pickle.dumps(Program(eval, "__import__('os').system('true')")),
    "a program in numpy's object array": pickle.dumps({"a.b": np.array([Program(os.system, "true")], object)}),
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_grow_or_run(name):
    expected = ("value", "error") if "places" in name or "double" in name else ("error",)
    assert checkpoint(PICKLES[name], "weights.pkl") in expected
    torchs = packed_again(torch_pickle(WEIGHTS), **{"data.pkl": PICKLES[name]})
    assert checkpoint(torchs) == "error"


def test_arrays_that_share_their_bytes_take_no_more_than_the_file():
    """One text of a megabyte is the content of five hundred arrays."""
    text = b"X" + struct.pack("<I", 10**6) + bytes(10**6) + b"q\x01"
    kind = b"cnumpy\ndtype\n(S'u1'\nI0\nI1\ntRq\x02"
    items = b"".join(
        b"X\x04\x00\x00\x00%03d." % i + ARRAY + b"(K\x01(J@B\x0f\x00th\x02K\x00h\x01tbs" for i in range(500)
    )
    assert checkpoint(b"\x80\x02" + text + b"0" + kind + b"0}" + items + b".", "weights.pkl") == "error"


def safetensors(header, data=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


SAFETENSORS = {
    "a header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "a header of 90 MB that is not there": struct.pack("<Q", 90_000_000) + b"{}",
    "a petabyte": safetensors(
        {"a.b": {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4 * 10**15]}}, bytes(64)
    ),
    "a shape that overflows": safetensors(
        {"a.b": {"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 0]}}
    ),
    "no shape": safetensors({"a.b": {"dtype": "F32", "shape": None, "data_offsets": [0, 0]}}),
    "deep": struct.pack("<Q", 100_000) + DEEP.encode(),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors_that_claim_too_much(name):
    assert checkpoint(SAFETENSORS[name], "weights.safetensors") == "error"
    assert read("encoder", {"encoder.safetensors": SAFETENSORS[name]}) == "error"
    assert read("cached features", {"features.safetensors": SAFETENSORS[name]}) == "value"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("width", 10**9), ("width", 4096), ("width", 0), ("width", -4), ("width", 2.5), ("width", "4"), ("width", True),
        ("architecture", []), ("architecture", "resnet152"), ("architecture", None), ("stem", "imagenet"),
        ("feature_dim", 10**9), ("feature_dim", "x"), ("deviation", {}), ("channel_order", None), ("method", "\x1b[2J"),
        ("origin", 5), ("recipe_hash", ["x"]), ("source_file", {"a": 1}), ("extra", 1), ("sha256", None),
    ],
)  # fmt: skip
def test_descriptions_of_an_encoder_that_do_not_fit_its_weights(key, value):
    info = {**unsealed(good("encoder", "encoder.json")), key: value}
    files = {**READERS["encoder"].good(), "encoder.json": json.dumps(info).encode()}
    assert read_files(READERS["encoder"].read, files) == "error"


def test_batches_of_cifar10_run_nothing(tmp_path):
    write_files(tmp_path, {
        f"cifar-10-batches-py/{name}": pickle.dumps(Program(os.system, f"touch {tmp_path}/canary"))
        for name in ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6)))
    })  # fmt: skip
    assert outcome(lambda folder: load_image_set("cifar10", folder), tmp_path) == "error"
    assert not (tmp_path / "canary").exists()


# --- annotations and lists


def coco(change):
    document = json.loads(good("COCO", "annotations/instances_train.json"))
    change(document)
    return read("COCO", {"annotations/instances_train.json": json.dumps(document).encode()})


def _mask(value):
    return lambda document: document["annotations"][0].update(segmentation=value)


def _large(document):
    document["images"][0].update(width=65_535, height=65_535)
    corners = [0, 0, 65_535, 65_535, 0, 65_535, 65_535, 0] * 2000
    document["annotations"][0].update(segmentation=[corners], bbox=[0, 0, 9, 9])


def _many(document):
    # each of its own, so that whoever looks at all of them for each never ends
    document["categories"] += [
        {"id": i, "name": f"c{i}", "supercategory": f"s{i}"} for i in range(10, 20_000)
    ]


COCO = {
    "a text of 100,000 letters among a million corners": _mask([["x" * 100_000, *[0] * 1_000_000]]),
    "corners that are nested": _mask([[[1, 2], [3, 4]]]),
    "corners of 400 digits": _mask([[10**400] * 6]),
    "an outline of thousands of millions of pixels": _large,
    "a number of runs that never ends": _mask({"size": [20, 24], "counts": "o" * 1_000_000}),
    "runs that do not fit": _mask({"size": [20, 24], "counts": [2**62, 2**62]}),
    "a mask of 2^40 pixels": _mask({"size": [2**20, 2**20], "counts": [2**40]}),
    "a file at the root": lambda d: d["images"][0].update(file_name="/etc/passwd"),
    "a file above": lambda d: d["images"][0].update(file_name="../../../etc/passwd"),
    "a name with a line break": lambda d: d["images"][0].update(file_name="a\n.jpg"),
    "a name of 10 MB": lambda d: d["images"][0].update(file_name="a" * 10_000_000),
    "an identifier of 4000 digits": lambda d: d["images"][0].update(id=10**4000),
    "a size of 4000 digits": lambda d: d["images"][0].update(width=10**4000),
}  # fmt: skip


@pytest.mark.parametrize("name", COCO)
def test_coco_that_claims_too_much_or_leads_out(name):
    assert coco(COCO[name]) == "error"


def test_many_categories_take_no_longer_each():
    assert coco(_many) == "value"


def test_a_mask_of_an_object_that_is_left_out_is_not_counted_with():
    """Its box has no area; so nobody had looked at its corners before all corners were compared."""

    def change(document):
        document["annotations"][0].update(bbox=[0, 0, 0, 0], segmentation=[["x"], 5, {"a": 1}])

    assert coco(change) == "value"


@pytest.mark.parametrize("name", ["/etc/passwd", "../../../../etc/passwd", "..", ".", "a\x1b[2J"])
def test_voc_names_lead_nowhere_else(name):
    assert read("Pascal VOC", {"ImageSets/Main/train.txt": f"{name}\n".encode()}) == "error"
    xml = good("Pascal VOC", "Annotations/a.xml").decode().replace("a.jpg", name.replace("\x1b", ""))
    assert read("Pascal VOC", {"Annotations/a.xml": xml.encode()}) == "value"


def test_voc_of_many_classes_takes_no_longer_each():
    objects = "".join(
        f"<object><name>c{i}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
        for i in range(5_000)
    )
    xml = good("Pascal VOC", "Annotations/a.xml").decode().replace("</annotation>", f"{objects}</annotation>")
    assert voc(xml) == "value"


def detections(found):
    packed = gzip.compress(json.dumps(found).encode())
    return read("outcomes of test items", {"boxes.coco.json.gz": packed})


def test_detections_that_are_none():
    whole = {"image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
    assert detections([whole]) == "value"
    for key, values in {
        "image_id": [None, True, 10**30, 7, "0"],
        "bbox": [None, [1, 2, 3], [1, 2, 3, "4"], [1, 2, 3, 10**400], [[1]] * 4],
        "score": [None, "1", 10**400],
        "category_id": [None, 2**70, 1.5],
        "segmentation": [
            None, {}, {"size": [20, 24], "counts": "o"}, {"size": [20, 24], "counts": "T3d0X"},
            {"size": [2**40, 2**40], "counts": "T3d0X;"}, {"size": [20], "counts": "T3d0X;"},
            {"size": [20, 24], "counts": "\u00ff"}, {"size": [20, 24], "counts": [480]},
        ],
    }.items():  # fmt: skip
        for value in values:
            assert detections([{**whole, key: value}]) == "error", (key, value)
    assert detections([DEEP]) == "error"
    assert detections({"a": 1}) == "error"


def test_detections_that_unpack_to_a_thousand_times_their_size():
    packed = gzip.compress(b"[" + b" " * 50_000_000 + b"]", 1)
    assert read("outcomes of test items", {"boxes.coco.json.gz": packed}) == "error"


@pytest.mark.parametrize("file", ["..", ".", "", "/etc/passwd", "../../../../etc/passwd", "a\x00b"])
def test_outcomes_of_a_record_are_beside_it(file):
    record = json.loads(good("run store", RUN + "records/knn--cosine-v1.json"))
    record["outcomes"]["file"] = file
    assert read("run store", {RUN + "records/knn--cosine-v1.json": json.dumps(record).encode()}) == "error"


@pytest.mark.parametrize("name", ["../../x", "/../../x", "a/b/c/d/"])
def test_what_is_exported_stays_in_its_folder(name, tmp_path):
    record = json.loads(good("run store", RUN + "records/knn--cosine-v1.json"))
    record |= {"image_set_fingerprint": name, "protocol": name}
    write_files(
        tmp_path,
        {**READERS["run store"].good(), RUN + "records/knn--cosine-v1.json": json.dumps(record).encode()},
    )
    assert outcome(READERS["run store"].read, tmp_path) == "value"
    (written,) = (tmp_path / "out").rglob("*.csv")
    assert written.parent.parent == tmp_path / "out"


# --- studies and tables


def study(**changes):
    document = {
        "title": "T", "description": "D", "image_set": "digit-scenes",
        "tables": [{"name": "main", "rows": [{"methods": ["byol"]}],
                    "columns": [{"protocol": "knn/cosine-v1", "metric": "top1"}]}],
    }  # fmt: skip
    document["tables"][0] |= changes.pop("table", {})
    return read_files(READERS["study"].read, {"own.yaml": yaml.safe_dump({**document, **changes}).encode()})


def test_studies_whose_plan_has_no_end():
    assert study() == "value"
    axes = [{"label": f"axis {i}", "key": "epochs", "values": list(range(10))} for i in range(12)]
    assert study(table={"rows": [{"methods": ["byol"], "vary": axes}]}) == "error"
    assert study(table={"rows": [{"methods": ["byol"], "vary": axes[:3]}]}) == "value"
    assert 10**3 < MOST_ROWS < 10**12
    assert study(seeds=10**9) == "error"
    assert study(include=["own", "quick"] * 3) == "error"


@pytest.mark.parametrize("name", ["../../escaped", "/etc/x", "a/b", "", "a\nb", ".hidden", "x" * 5000])
def test_tables_and_figures_cannot_name_files_elsewhere(name):
    assert study(table={"name": name}) in (("value", "error") if name.startswith("x") else ("error",))


@pytest.mark.parametrize("cell", ["x" * 10_000_000, "1e308", "1e999", "9" * 5000, "\x00", "nan", "=1+1"])
def test_records_with_odd_cells(cell):
    text = good("report to verify", "records.csv").decode()
    for column in ("70.0", "byol", "100"):
        assert read("report to verify", {"records.csv": text.replace(column, cell, 1).encode()}) in (
            "value",
            "error",
        )


# --- what is said


def test_messages_are_text_that_a_terminal_shows():
    error = InputError("a\x1b[2J\u202eb", where="c\rd\x07", nearest="\x9b31m", next_step="e" * 100_000)
    check_message(error)
    assert "a\\x1b[2J\\u202eb" in str(error)
    assert "and 96000 more characters" in str(error)
    assert str(InputError("two\nlines, ünïcode 猫")) == "two\nlines, ünïcode 猫"


def test_legible_text():
    assert legible("猫 é\n") == "猫 é\n"
    assert legible("\x1b\u202e\udcff\t\r") == "\\x1b\\u202e\\udcff\\t\\r"
    assert legible("abcdef", 4) == "abcd ... and 2 more characters"


def test_names_of_tensors_do_not_reach_the_terminal_raw(tmp_path):
    from typer.testing import CliRunner

    from twinbench.harness.cli import app

    evil = OrderedDict({**WEIGHTS, "layer1.\x1b]0;owned\x07.weight": torch.ones(2, 2, 1, 1)})
    torch.save(evil, tmp_path / "weights.pth")
    ended = CliRunner().invoke(app, ["import", str(tmp_path / "weights.pth"), "--out", str(tmp_path / "out")])
    assert ended.exit_code == 2
    assert "\x1b" not in ended.output
    assert "\x07" not in ended.output


def test_what_is_printed_is_legible(capsys):
    import sys

    from twinbench.harness.console import LegibleOutput

    print("a\x1b[31m", file=LegibleOutput(sys.stdout))
    assert capsys.readouterr().out == "a\\x1b[31m\n"
