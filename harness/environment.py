"""What a number was measured on: versions, commit and machine."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

from twinbench.foundation.cores import usable_cores

_PACKAGES = ("twinbench", "torch", "torchvision", "numpy", "scikit-learn", "pycocotools")


@cache
def environment() -> dict[str, str]:
    """Versions of everything that computes, the commit of this code, and the machine's kind and cores."""
    facts = {package: version(package) for package in _PACKAGES}
    facts["python"] = platform.python_version()
    facts["commit"] = _commit()
    facts["machine"] = f"{platform.system()} {platform.machine()}, {usable_cores()} cores"
    return facts


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
