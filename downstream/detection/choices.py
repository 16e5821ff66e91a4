"""Short names that stand for the same C4 protocol with Detectron2 where it is installed, else with torchvision."""

from __future__ import annotations

from functools import partial

from twinbench.downstream.detection.detectron2_c4 import detectron2_found
from twinbench.downstream.protocol import register_choice


def _with_installed_library(name: str) -> str:
    return f"{name}-{'detectron2-v1' if detectron2_found() else 'torchvision-v2'}"


for _name in ("detection/c4", "detection/voc-c4"):
    register_choice(_name, partial(_with_installed_library, _name))
