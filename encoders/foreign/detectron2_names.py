"""Names of backbone tensors: torchvision's, which encoders have, and Detectron2's. Needs no Detectron2.

The tensors themselves are the same, kernels in RGB order included: the detector must read pictures as RGB, with the
encoder's mean and standard deviation times 255, and have its strides on the 3x3 convolutions. The names are those that
Detectron2's tools/convert-torchvision-to-d2.py and MoCo's detection/convert-pretrain-to-detectron2.py write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from twinbench.foundation.errors import InputError

_TO_DETECTRON2 = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)
_FROM_DETECTRON2 = (
    # where detectors keep it: in a C4 detector res5 is in the box head, in an FPN all of it is below bottom_up
    (r"^(backbone\.(bottom_up\.)?(?=stem\.|res[2-5]\.)|roi_heads\.(?=res5\.))", ""),
    (r"^stem\.conv1\.norm\.", "bn1."),
    (r"^stem\.conv1\.", "conv1."),
    (r"^res([2-5])\.(?=\d)", lambda match: f"layer{int(match[1]) - 1}."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
)
_BACKBONE = re.compile(r"(conv1|bn1|layer[1-4]\.\d+)\.")

T = TypeVar("T")


def to_detectron2(state: Mapping[str, T]) -> dict[str, T]:
    """The state of an encoder's backbone under Detectron2's names: ``stem.*``, ``res2.*`` to ``res5.*``."""
    return {_renamed(name, _TO_DETECTRON2): tensor for name, tensor in state.items()}


def from_detectron2(state: Mapping[str, T]) -> dict[str, T]:
    """The backbone in the state of a Detectron2 backbone or detector, under torchvision's names.

    The extra norm after a C4 detector's res5, the proposal network, the feature pyramid and the predictors belong to
    the detector and are left out. Raises InputError if a stage is missing altogether.
    """
    renamed = {torchvision_name(name): tensor for name, tensor in state.items()}
    kept = {name: tensor for name, tensor in renamed.items() if _BACKBONE.match(name)}
    stages = {"stem": "conv1", "res2": "layer1", "res3": "layer2", "res4": "layer3", "res5": "layer4"}
    missing = [theirs for theirs, own in stages.items() if not any(name.startswith(own) for name in kept)]
    if missing:
        raise InputError(
            f"this is no whole ResNet of Detectron2: {', '.join(missing)} missing",
            where=f"{len(state)} tensors",
            next_step="give the state of a ResNet backbone, or of a C4 detector with res5 in its heads",
        )
    return kept


def torchvision_name(name: str) -> str:
    """torchvision's name of a tensor of Detectron2; what is no part of a backbone keeps the name it has."""
    return _renamed(name, _FROM_DETECTRON2)


def _renamed(name: str, rules: tuple) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
