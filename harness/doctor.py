"""What this machine has, what is missing and how to get it."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from twinbench.data.catalogue import image_set_names, load_image_set
from twinbench.downstream.detection.detectron2_c4 import INSTALLATION_GUIDE, detectron2_problem
from twinbench.foundation.cores import usable_cores
from twinbench.foundation.errors import InputError
from twinbench.harness.environment import environment
from twinbench.harness.mirror import mirrored, url_of
from twinbench.harness.plugins import load_plugins
from twinbench.harness.ray_options import HOW_TO_INSTALL, ray_version
from twinbench.harness.store import check_writable

_BUILD = (
    "build it from its public source against the installed torch, as its installation guide says "
    f"({INSTALLATION_GUIDE}), with pip's --no-build-isolation"
)
_OLD_SETUPTOOLS = "its model zoo imports pkg_resources and wants setuptools<81; no protocol needs it"
_ANY_FOLDER = {
    "folder:PATH": "any image folder with train/<class>/* and test/<class>/*",
    "shards:PATH": "any folder of WebDataset's tar files, train-*.tar and test-*.tar",
    "voc:PATH": "any Pascal VOC folder with Annotations, ImageSets and JPEGImages, or a VOCdevkit",
    "coco:PATH": "any folder with annotations/instances_*.json and pictures, as COCO unpacks",
    "val-of:NAME": "any of these sets, measured on its validation images",
}


def examine(data_root: Path | None) -> list[str]:
    """One line for each thing that matters: device, precision, packages, image sets."""
    load_plugins()
    facts = environment()
    lines = [
        f"twinbench   {facts['twinbench']} (commit {facts['commit'] or 'unknown'}), Python {facts['python']}",
        f"torch       {facts['torch']}, torchvision {facts['torchvision']}",
        f"device      {_device()}",
        f"bf16        {_bf16()}",
        f"Detectron2  {_detectron2()}",
        f"Ray         {_ray()}",
        f"S3          {_s3()}",
    ]
    return [*lines, *(f"image set   {name}: {_image_set(name, data_root)}" for name in image_set_names())]


def _detectron2() -> str:
    problem = detectron2_problem()
    if problem is not None:
        return (
            f"{problem}; detection/*-torchvision-* work without it. It is not in the package index: {_BUILD}; "
            f"{_OLD_SETUPTOOLS}"
        )
    zoo = "" if find_spec("pkg_resources") else f"; {_OLD_SETUPTOOLS}"
    return f"found, {version('detectron2')}{zoo}"


def _ray() -> str:
    found = ray_version()
    if found is None:
        return f"not installed; only `twinbench run --executor ray` needs it: {HOW_TO_INSTALL}"
    return f"found, {found}"


def _s3() -> str:
    if find_spec("s3fs") is None:
        return "s3fs is not installed; only --runs s3://... needs it: pip install 'twinbench[objects]'"
    return f"s3fs found, {version('s3fs')}"


def _device() -> str:
    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return f"CPU, {usable_cores()} cores, {torch.get_num_threads()} threads (no GPU found; every study runs without)"


def _bf16() -> str:
    if torch.cuda.is_available():
        return (
            "supported" if torch.cuda.is_bf16_supported() else "not supported by this GPU: use precision=fp32"
        )
    if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "supported; worth it where the CPU has AMX and the convolutions are large"
    return "emulated on this CPU: use precision=fp32"


def _image_set(name: str, data_root: Path | None) -> str:
    if name.endswith((":PATH", ":NAME")):
        any_folder = _ANY_FOLDER.get(name, "any folder of this format")
        lacks = name == "shards:PATH" and find_spec("webdataset") is None
        return f'{any_folder}; needs pip install "twinbench[webdataset]"' if lacks else any_folder
    try:
        found = load_image_set(name, data_root)
    except InputError as error:
        hint = " (--data-root DIR)" if error.option == "data_root" else ""
        return f"not found. {error.what}; {error.next_step}{hint}"
    return f"found, {len(found.classes)} classes, {found.image_size} pixels"


def check_store(runs: Path) -> str:
    """A line on a run store that can be written, though it need not be there yet; raises ExplainedError otherwise."""
    check_writable(next(p for p in (runs.absolute(), *runs.absolute().parents) if p.exists()))
    if (store := mirrored(runs)) is not None:
        store.objects.prove()
    return f"{url_of(runs)}: writable" + ("" if runs.exists() else ", not there yet")
