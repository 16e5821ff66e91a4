"""What a number was measured on: versions, commit and machine."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from twinbench.foundation.cores import usable_cores

_PACKAGES = (
    "twinbench",
    "torch",
    "torchvision",
    "lightning-fabric",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
    "pycocotools",
    "faster-coco-eval",  # in place of pycocotools where it is installed
    "detectron2",
)


_PASSING = ("commit", "threads", "deterministic")
"""What a process may change without its work taking another time, or is told of elsewhere."""


def environment() -> dict[str, str]:
    """Versions of everything that computes, the commit of this code, the machine, and how it computes at the moment.

    A package that is not installed is left out, and so is what only a GPU has where there is none.
    """
    return {**_installed(), **_computing()}


def processor() -> str:
    """The name of the CPU; empty where the system does not tell."""
    names = _cpuinfo("model name")
    return names or platform.processor()


@cache
def _installed() -> dict[str, str]:
    """What stays the same as long as the process lives."""
    facts = {package: found for package in _PACKAGES if (found := _version(package)) is not None}
    facts["python"] = platform.python_version()
    facts["commit"] = _commit()
    facts["machine"] = f"{platform.system()} {platform.machine()}, {usable_cores()} cores"
    facts["processor"] = processor()
    matrices = " with AMX" if "amx_tile" in _cpuinfo("flags").split() else ""
    facts["instruction set"] = torch.backends.cpu.get_cpu_capability() + matrices
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        facts["driver"] = _driver()
    return facts


def _computing() -> dict[str, str]:
    """How torch computes now."""
    facts = {
        "threads": str(torch.get_num_threads()),
        "deterministic": "yes" if torch.are_deterministic_algorithms_enabled() else "not enforced",
    }
    if torch.cuda.is_available():
        tf32 = {
            "products": torch.backends.cuda.matmul.allow_tf32,
            "convolutions": torch.backends.cudnn.allow_tf32,
        }
        facts["tf32"] = ", ".join(name for name, allowed in tf32.items() if allowed) or "none"
    return facts


def _cpuinfo(key: str) -> str:
    """What Linux says of the first core."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _driver() -> str:
    """The version of NVIDIA's kernel module; empty where it does not tell."""
    try:
        line = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return ""
    found = re.search(r"\d+\.\d+(\.\d+)?", line)
    return found[0] if found else ""


def takes_as_long(other: Mapping[str, Any]) -> bool:
    """Whether what an earlier `environment` computed takes as long in this one, whatever the commit.

    A fact that was not recorded then does not count; where none was, nothing is known.
    """
    here = {**environment(), **dict.fromkeys(_PASSING, "")}
    return bool(other) and {**here, **other, **dict.fromkeys(_PASSING, "")} == here


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    """The commit of the checkout, with ``+changes`` if the work tree differs; empty outside a checkout."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")
