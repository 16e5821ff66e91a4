"""What a number was measured on: versions, commit and machine."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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


@cache
def environment() -> dict[str, str]:
    """Versions of everything that computes, the commit of this code, and the machine's kind and cores.

    A package that is not installed is left out.
    """
    facts = {package: found for package in _PACKAGES if (found := _version(package)) is not None}
    facts["python"] = platform.python_version()
    facts["commit"] = _commit()
    facts["machine"] = f"{platform.system()} {platform.machine()}, {usable_cores()} cores"
    return facts


def takes_as_long(other: Mapping[str, Any]) -> bool:
    """Whether what an earlier `environment` computed takes as long in this one: all is the same but the commit.

    A fact that was not recorded then does not count; where none was, nothing is known.
    """
    here = {**environment(), "commit": ""}
    return bool(other) and {**here, **other, "commit": ""} == here


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
