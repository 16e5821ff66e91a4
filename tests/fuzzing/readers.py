"""Every reader of files from outside, each with good files to begin with.

`Reader.good` are the contents of a folder; `Reader.read` reads it all as a command would. ``seal`` puts right, in files
that were changed, the checksums that would keep a reader from looking further; whoever forges a file can do that too.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import pickle
import struct
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save as save_tensors

from tests.fuzzing.law import check_message
from tests.fuzzing.mutations import of_file
from twinbench.data import contents
from twinbench.data.catalogue import load_image_set
from twinbench.data.coco import read_coco
from twinbench.data.orientation import read_header
from twinbench.data.pixels import picture_size, read_picture
from twinbench.data.voc import read_voc
from twinbench.downstream.detection.coco_eval import from_coco_results
from twinbench.downstream.features import _Cached, _write
from twinbench.downstream.features import _read as read_features
from twinbench.downstream.label_lists import LabelList, read_label_list
from twinbench.encoders.backbones import build_backbone
from twinbench.encoders.encoder import INFO_FILE, WEIGHTS_FILE, Encoder, EncoderInfo
from twinbench.encoders.foreign.files import read_checkpoint
from twinbench.encoders.foreign.importer import read_foreign
from twinbench.foundation.checkpoint import load_latest, save_checkpoint
from twinbench.foundation.documents import unsealed
from twinbench.foundation.errors import InputError
from twinbench.foundation.outcomes import (
    Outcomes,
    detections_file,
    is_whole,
    read_outcomes,
    write_outcomes,
)
from twinbench.harness.exported_results import export_results
from twinbench.harness.facts import FACTS
from twinbench.harness.images import MeasuredImages
from twinbench.harness.recipes import load_recipe, parse_overrides, recipe_folder
from twinbench.harness.records import collect_stored
from twinbench.harness.search import load_search
from twinbench.harness.store import holds_run, stored_runs
from twinbench.harness.studies import load_study
from twinbench.harness.variants import told_apart
from twinbench.pretraining.metrics_log import MetricsLog
from twinbench.reports.output import check_out
from twinbench.reports.records import Record, read_diagnostics, read_loss_curve, read_records, write_records
from twinbench.reports.source import read_source
from twinbench.reports.unchanged import changed_files, made_by

Files = dict[str, bytes]


def _as_they_are(files: Files) -> Files:
    return files


@dataclass(frozen=True)
class Reader:
    """A reader, good files for it, and what a forger would make right after changing them."""

    name: str
    good: Callable[[], Files]
    read: Callable[[Path], object]
    seal: Callable[[Files], Files] = _as_they_are

    def bad(self, r: Random) -> Files:
        """The good files with one of them changed, rarely two, nearly always sealed again."""
        files = dict(self.good())
        for _ in range(1 if r.random() < 0.9 else 2):
            name = r.choice(sorted(files))
            files[name] = of_file(name, files[name], r)
        return self.seal(files) if r.random() < 0.9 else files


def _files(folder: Path) -> Files:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _made(make: Callable[[Path], object]) -> Files:
    """What a function writes into an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        return _files(Path(folder))


_INFO = EncoderInfo(
    architecture="resnet10", width=4, stem="small", feature_dim=32, input_size=32, mean=(0.5, 0.5, 0.5),
    std=(0.2, 0.2, 0.2), method="simclr", recipe_hash="0123456789ab",
)  # fmt: skip


@cache
def _encoder() -> Files:
    return _made(lambda folder: Encoder.save(folder, build_backbone("resnet10", 4, "small"), _INFO))


def _sealed_encoder(files: Files, where: str = "") -> Files:
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        info = unsealed(files[where + INFO_FILE])
        info["sha256"] = hashlib.sha256(files[where + WEIGHTS_FILE]).hexdigest()
        return {**files, where + INFO_FILE: json.dumps(info).encode("utf-8", "surrogatepass")}
    return files


@cache
def _weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    stem = {"conv1.weight": torch.randn(4, 3, 3, 3, generator=generator), "bn1.weight": torch.ones(4)}
    return {**stem, "layer1.0.conv1.weight": torch.randn(4, 4, 3, 3, generator=generator).half()}


@cache
def _torch_zip() -> Files:
    document = {
        "state_dict": _weights(),
        "epoch": 3,
        "best": np.float64(70.5),
        "tied": _weights()["bn1.weight"],
    }
    return _made(lambda folder: torch.save(document, folder / "weights.pth"))


@cache
def _torch_legacy() -> Files:
    return _made(
        lambda folder: torch.save(
            {"state_dict": _weights()}, folder / "weights.pth", _use_new_zipfile_serialization=False
        )
    )


@cache
def _array_pickle() -> Files:
    arrays = {name: tensor.float().numpy() for name, tensor in _weights().items()}
    return {"weights.pkl": pickle.dumps({"model": arrays, "__author__": "x"}, protocol=2)}


@cache
def _safetensors() -> Files:
    return {"weights.safetensors": save_tensors(_weights(), {"format": "pt"})}


def _read_checkpoint(folder: Path) -> object:
    """The tensors; the importer, which wants a whole ResNet, refuses the good ones too, and must do so in our form."""
    read = []
    for path in sorted(folder.iterdir()):
        read.append(read_checkpoint(path))
        try:
            read_foreign(path)
        except InputError as error:
            check_message(error)
    return read


@cache
def _picture(kind: str, mode: str = "RGB", suffix: str = "", **options: object) -> Files:
    r = Random(0)
    pixels = bytes(r.randrange(256) for _ in range(24 * 20 * 4))
    if mode == "I;16":
        image = Image.frombytes("I;16", (24, 20), pixels[: 24 * 20 * 2])
    else:
        image = Image.frombytes("RGBA", (24, 20), pixels).convert(mode)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return {f"picture{suffix or '.' + kind.lower()}": out.getvalue()}


def _read_picture(folder: Path) -> object:
    read = []
    for path in sorted(folder.iterdir()):
        read.append((picture_size(path), read_header(path), np.asarray(read_picture(path).image).shape))
    return read


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


_PICTURES: dict[str, Callable[[], Files]] = {
    "JPEG": lambda: _picture("JPEG", suffix=".jpg", exif=_exif()),
    "progressive JPEG": lambda: _picture("JPEG", suffix=".jpg", progressive=True),
    "PNG": lambda: _picture("PNG", "RGBA"),
    "PNG with a palette": lambda: _picture("PNG", "P"),
    "PNG of 16 bits": lambda: _picture("PNG", "I;16"),
    "TIFF": lambda: _picture("TIFF", suffix=".tif"),
    "packed TIFF": lambda: _picture("TIFF", suffix=".tif", compression="tiff_lzw"),
    "WebP": lambda: _picture("WEBP"),
    "GIF": lambda: _picture("GIF", "P"),
    "BMP": lambda: _picture("BMP"),
    "PPM": lambda: _picture("PPM"),
    "AVIF": lambda: _picture("AVIF"),
    "JPEG 2000": lambda: _picture("JPEG2000", suffix=".jp2"),
    "codestream of JPEG 2000": lambda: _picture("JPEG2000", suffix=".j2k", no_jp2=True),
}


def _jpeg(size: tuple[int, int] = (24, 20), colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "JPEG")
    return out.getvalue()


_XML = """<annotation><filename>{name}.jpg</filename><size><width>24</width><height>20</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult>
<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>10</xmax><ymax>12</ymax></bndbox></object>
<object><name>dog</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>24</xmax><ymax>20</ymax></bndbox></object></annotation>"""


@cache
def _voc() -> Files:
    files = {"ImageSets/Main/train.txt": b"a\nb\n", "ImageSets/Main/test.txt": b"c\n"}
    for name in "abc":
        files[f"Annotations/{name}.xml"] = _XML.format(name=name).encode()
        files[f"JPEGImages/{name}.jpg"] = _jpeg()
    return files


def _coco_document(names: str) -> bytes:
    images = [{"id": i, "file_name": f"{n}.jpg", "height": 20, "width": 24} for i, n in enumerate(names, 1)]
    polygon = [[2, 3, 10, 3, 10, 12, 2, 12]]
    runs = {"size": [20, 24], "counts": [100, 20, 360]}
    packed = {"size": [20, 24], "counts": "T3d0X;"}
    annotations = []
    for image in images:
        for mask in (polygon, runs, packed):
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image["id"], "category_id": 1 + len(annotations) % 2,
                    "bbox": [2, 3, 8, 9], "iscrowd": 0, "segmentation": mask,
                }
            )  # fmt: skip
    categories = [{"id": 1, "name": "cat", "supercategory": "pets"}, {"id": 2, "name": "dog"}]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories}).encode()


@cache
def _coco() -> Files:
    files = {
        "annotations/instances_train.json": _coco_document("ab"),
        "annotations/instances_test.json": _coco_document("c"),
    }
    return files | {f"images/{name}.jpg": _jpeg() for name in "abc"}


@cache
def _folder() -> Files:
    colours = ("red", "green", "blue", "white")
    names = [
        f"{split}/{label}/{i}.jpg" for split in ("train", "test") for label in ("cat", "dog") for i in (0, 1)
    ]
    files = {name: _jpeg(colour=colours[i % 4]) for i, name in enumerate(names)}
    return {**files, "train/cat/2.png": _picture("PNG", "RGBA")["picture.png"]}


def _read_folder(folder: Path) -> object:
    read = []
    for stream in (False, True):
        images = load_image_set(f"folder:{folder}", None, image_size=16, stream=stream, corrupt="skip")
        read.append([images.split(split).images[:4].shape for split in ("train", "val", "test")])
        read.append([images.fingerprint, images.remarks, images.slug])
    return read


@cache
def _shards() -> Files:
    """Tar files as GNU and as POSIX have them, with names that are too long for a header."""
    files = {}
    for split in ("train", "test"):
        for kind, form in (("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)):
            out = io.BytesIO()
            with tarfile.open(fileobj=out, mode="w", format=form) as tar:
                for label in ("cat", "dog"):
                    for name, content in (
                        ("0.jpg", _jpeg()),
                        ("0.cls", label.encode()),
                        ("0.txt", b"a text"),
                    ):
                        info = tarfile.TarInfo(
                            f"{split}/{label}/{kind}{'x' * 120 if label == 'dog' else ''}{name}"
                        )
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
            files[f"{split}-{kind}.tar"] = out.getvalue()
    return files


def _read_shards(folder: Path) -> object:
    read = []
    for stream in (False, True):
        images = load_image_set(f"shards:{folder}", None, image_size=16, stream=stream, corrupt="skip")
        read.append([images.split(split).images[:4].shape for split in ("train", "val", "test")])
        read.append([images.fingerprint, images.remarks, images.slug])
    return read


@cache
def _label_list() -> Files:
    files = {f"train/{label}/{label}{i}.jpg": _jpeg() for label in ("cat", "dog") for i in range(12)}
    return files | {"test/cat/x.jpg": _jpeg(), "list.txt": b"cat1.jpg\ncat2.jpg\ndog1.jpg\n"}


def _read_label_list(folder: Path) -> object:
    images = load_image_set(f"folder:{folder}", None, image_size=16, stream=True)
    return read_label_list(
        LabelList(folder / "list.txt", own=True), images.split("train"), images.classes, 0.1
    )


def _only_the_list(files: Files) -> Files:
    return {**_label_list(), "list.txt": files["list.txt"]}


@cache
def _recipe() -> Files:
    place = recipe_folder("digit-scenes")
    return {
        f"{name}.yaml": (place / f"{name}.yaml").read_bytes()
        for name in ("barlow_twins", "swav", "search")  # type: ignore[union-attr]
    }


def _read_recipe(folder: Path) -> object:
    for method in ("barlow_twins", "swav"):
        load_recipe(str(folder), method, "digit-scenes", {"epochs": 2})
    return load_search(str(folder))


@cache
def _study() -> Files:
    from importlib.resources import files

    place = files("twinbench.studies")
    return {f"{name}.yaml": (place / f"{name}.yaml").read_bytes() for name in ("quick", "table7", "bccd")}


def _read_studies(folder: Path) -> object:
    return [load_study(str(path)) for path in sorted(folder.iterdir())]


@cache
def _values() -> Files:
    return {
        "values.yaml": b"epochs: 5\noptimizer.base_lr: 0.1\nviews: {blur: 0.5, crop: [0.2, 1]}\nstem: small\n"
    }


def _read_values(folder: Path) -> object:
    text = (folder / "values.yaml").read_text(errors="replace")
    return parse_overrides(f"key={line.partition(':')[2]}" for line in text.splitlines() if line)


def _record(value: float, seed: int) -> Record:
    return Record(
        study="quick", table="main", method="byol", image_set="digit-scenes", protocol="knn/cosine-v1", metric="top1",
        value=value, seed=seed, status="done", n=100, epochs=5, environment='{"machine": "x86_64"}',
    )  # fmt: skip


@cache
def _arrays() -> dict[str, np.ndarray]:
    predicted = np.array([[0, 1], [1, 0], [1, 0]], np.int16)
    return {
        "predicted": predicted,
        "true": np.array([0, 1, 0], np.int16),
        "rows": np.arange(3, dtype=np.int32),
        "classes": np.array([2], np.int32),
    }


_ABOUT = {
    "protocol": "knn/cosine-v1",
    "image_set": "digit-scenes",
    "image_set_fingerprint": "f",
    "reading": "{}",
}


@cache
def _outcomes() -> Files:
    found = [{"image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5},
             {"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4.5], "score": 0.25}]  # fmt: skip
    masks = [{**each, "segmentation": {"size": [20, 24], "counts": "T3d0X;"}} for each in found]

    def write(folder: Path) -> None:
        write_outcomes(folder / "boxes.safetensors", Outcomes({}, found), _ABOUT)
        write_outcomes(folder / "masks.safetensors", Outcomes({}, masks), _ABOUT)
        write_outcomes(folder / "classes.safetensors", Outcomes(_arrays()), _ABOUT)

    return _made(write)


def _sealed_outcomes(files: Files) -> Files:
    """The files of outcomes with the digest of the detections that are there now."""
    sealed = dict(files)
    for name, content in files.items():
        packed = files.get(f"{name.removesuffix('.safetensors')}.coco.json.gz")
        with contextlib.suppress(ValueError, TypeError, LookupError, RecursionError, struct.error):
            (length,) = struct.unpack("<Q", content[:8])
            header = json.loads(content[8 : 8 + length])
            about = json.loads(header["__metadata__"]["about"])
            if packed is None or "detections_sha256" not in about:
                continue
            about["detections_sha256"] = hashlib.sha256(packed).hexdigest()
            header["__metadata__"]["about"] = json.dumps(about)
            text = json.dumps(header).encode()
            sealed[name] = struct.pack("<Q", len(text)) + text + content[8 + length :]
    return sealed


def _read_outcomes(folder: Path) -> object:
    read: list[object] = []
    for path in sorted(folder.glob("*.safetensors")):
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        read.append((is_whole(path, sha256), detections_file(path)))
        outcomes = read_outcomes(path, sha256)
        if outcomes.detections is not None:
            read.append(from_coco_results(outcomes.detections, 2))
        if "reading" in outcomes.about:
            read.append(MeasuredImages(None)._reread("digit-scenes", outcomes.about["reading"]))
    return read


@cache
def _report() -> Files:
    study = {
        "title": "A title",
        "description": "What it is",
        "tables": [
            {
                "name": "main",
                "title": "T",
                "columns": [{"label": "kNN", "protocol": "knn/cosine-v1", "metric": "top1"}],
                "rows": [{"methods": ["byol"]}],
            }
        ],
        "figures": [],
    }
    run = {"method": "byol", "variant": "", "seed": 0, "status": "done", "reason": "", "seconds": 1.5, "origin": "run",
           "table": "main", "recipe_hash": "0123456789ab", "outcomes": ["a" * 64]}  # fmt: skip
    document = {"study": study, "command": "twinbench run quick", "version": "0", "runs": [run]}
    page = b'<html><meta name="generator" content="twinbench"></html>'
    with tempfile.TemporaryDirectory() as folder:
        write_records(Path(folder), [_record(70.0, 0), _record(71.5, 1)])
        files = {"report.html": page, **{file.name: file.read_bytes() for file in Path(folder).iterdir()}}
    made = {"of": "x", "command": "c", "files": {n: hashlib.sha256(c).hexdigest() for n, c in files.items()}}
    return {
        **files,
        "study.json": json.dumps(document).encode(),
        ".report-made-of.json": json.dumps(made).encode(),
        ".report-files.json": json.dumps(sorted(files)).encode(),
    }


def _read_report(folder: Path) -> object:
    check_out(folder)
    return [
        made_by(folder), changed_files(folder), read_records(folder / "records.csv"), read_source(folder)
    ]  # fmt: skip


@cache
def _run() -> Files:
    recipe = load_recipe("digit-scenes", "barlow_twins", "digit-scenes", {})
    run = "runs/barlow_twins-digit-scenes-0123456789ab/"
    checksum = json.loads(_encoder()[INFO_FILE])["sha256"]
    outcomes = {
        "file": "knn--cosine-v1.safetensors",
        "sha256": hashlib.sha256(_outcomes()["classes.safetensors"]).hexdigest(),
    }
    record = {
        "status": "done", "reason": "", "encoder_checksum": checksum, "seed": recipe.seed, "protocol": "knn/cosine-v1",
        "image_set": "digit-scenes", "image_set_fingerprint": "f" * 64, "outcomes": outcomes, "device": "cpu",
        "peak_memory_mb": 10.0, "seconds": 1.0, "environment": {"machine": "x"}, "remarks": ["odd"],
        "measurements": [{"metric": "top1", "value": 66.7, "stderr": 1.0, "n": 3}], "hyperparameters": {},
    }  # fmt: skip
    status = {
        "status": "done", "reason": "", "recipe_hash": "0", "seconds": 2.0, "parameters": 1000, "ranks": 1,
        "threads": 2,
        "images_per_second": 100.0, "device": "CPU", "device_type": "cpu", "training_memory_mb": 3.0, "remarks": ["r"],
        "energy_unknown": "no counter", "environment": {"machine": "x"}, "skipped": {},
    }  # fmt: skip
    embeddings = {"measures": {"effective_rank": 3.0, "uniformity": -1.0, "alignment": 0.5}}
    diagnostics = {"cross_correlation": [[1.0, 0.1], [0.1, 1.0]], "spectrum": [2.0, 1.0], "effective_rank": 1.9,
                   "embeddings": embeddings}  # fmt: skip
    rows = b"".join(json.dumps({"step": s, "loss": 10.0 - s, "lr": 0.1}).encode() + b"\n" for s in range(5))
    files = {
        "recipe.yaml": yaml.safe_dump(recipe.model_dump(mode="json")).encode(),
        "status.json": json.dumps(status).encode(),
        "metrics.jsonl": rows,
        "diagnostics.json": json.dumps(diagnostics).encode(),
        "records/knn--cosine-v1.json": json.dumps(record).encode(),
        "records/knn--cosine-v1.safetensors": _outcomes()["classes.safetensors"],
        **{f"encoder/{name}": content for name, content in _encoder().items()},
    }
    return {run + name: content for name, content in files.items()}


def _read_run(folder: Path) -> object:
    runs = stored_runs(folder / "runs")
    read: list[object] = [holds_run(folder)]
    for run in runs:
        read += [
            run.is_trained(),
            run.is_collapsed(),
            [FACTS[name].read(run) for name in FACTS.names()] if run.is_trained() else (),
        ]
        read += [read_loss_curve(run.folder), read_diagnostics(run.folder)]
        MetricsLog(run.folder, 3)
    read.append(collect_stored(runs, told_apart(runs).names))
    export_results(folder / "runs", folder / "out", None)
    return read


@cache
def _own_checkpoint() -> Files:
    state = {
        "step": 3,
        "model": _weights(),
        "generator": torch.Generator().get_state(),
        "rows": [1, 2.0, "x", None],
    }
    return _made(lambda folder: save_checkpoint(folder, 3, state))


def _sealed_checkpoint(files: Files) -> Files:
    return {f"step-000000003-{hashlib.sha256(content).hexdigest()}.pt": content for content in files.values()}


@cache
def _features() -> Files:
    cached = _Cached(torch.ones(3, 2), torch.zeros(3, dtype=torch.long), ("a remark",))
    return _made(lambda folder: _write(folder / "features.safetensors", cached))


@cache
def _index() -> Files:
    rows = bytes(range(64))
    return {"index": contents._MAGIC + rows + hashlib.sha256(rows).digest()}


def _sealed_index(files: Files) -> Files:
    rows = files["index"][len(contents._MAGIC) : -32]
    return {"index": contents._MAGIC + rows + hashlib.sha256(rows).digest()}


NEEDS = {"shards of pictures": "webdataset"}
"""The packages without which a reader refuses everything."""

READERS = {
    reader.name: reader
    for reader in (
        Reader("encoder", _encoder, Encoder.load, _sealed_encoder),
        Reader("checkpoint: zip of PyTorch", _torch_zip, _read_checkpoint),
        Reader("checkpoint: PyTorch before 1.6", _torch_legacy, _read_checkpoint),
        Reader("checkpoint: pickled arrays", _array_pickle, _read_checkpoint),
        Reader("checkpoint: safetensors", _safetensors, _read_checkpoint),
        *(Reader(f"picture: {name}", good, _read_picture) for name, good in _PICTURES.items()),
        Reader("folder of pictures", _folder, _read_folder),
        Reader("shards of pictures", _shards, _read_shards),
        Reader("Pascal VOC", _voc, read_voc),
        Reader("COCO", _coco, read_coco),
        Reader("list of labelled images", _label_list, _read_label_list, _only_the_list),
        Reader("recipes and search space", _recipe, _read_recipe),
        Reader("study", _study, _read_studies),
        Reader("values of --set", _values, _read_values),
        Reader("outcomes of test items", _outcomes, _read_outcomes, _sealed_outcomes),
        Reader("report to verify", _report, _read_report),
        Reader("run store", _run, _read_run),
        Reader("checkpoint to resume from", _own_checkpoint, load_latest, _sealed_checkpoint),
        Reader("cached features", _features, lambda folder: read_features(folder / "features.safetensors")),
        Reader("index of contents", _index, lambda folder: contents._read(folder / "index"), _sealed_index),
    )
}
