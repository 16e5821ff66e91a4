"""Names of backbone tensors: torchvision's, which encoders have, and Detectron2's. Needs no Detectron2.

The tensors themselves are the same, kernels in RGB order included: the detector must read pictures as RGB, with the
encoder's mean and standard deviation times 255, and have its strides on the 3x3 convolutions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from data.errors import InputError

_TO_DETECTRON2 = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)
_FROM_DETECTRON2 = (
    (r"^stem\.conv1\.norm\.", "bn1."),
    (r"^stem\.conv1\.", "conv1."),
    (r"^res(\d)\.", lambda match: f"layer{int(match[1]) - 1}."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
)
_BACKBONE = re.compile(r"(stem\.conv1|res[2-5]\.\d+)\.")


def to_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of an encoder's backbone under Detectron2's names: ``stem.*``, ``res2.*`` to ``res5.*``."""
    return {_renamed(name, _TO_DETECTRON2): tensor for name, tensor in state.items()}


def from_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone in the state of a Detectron2 backbone or C4 detector, under torchvision's names.

    A detector keeps stem to res4 below ``backbone.`` and res5 below ``roi_heads.``; the extra norm after res5, the
    proposal network and the predictors belong to the detector and are left out. Raises InputError where a stage is
    missing altogether.
    """
    bare = {re.sub(r"^(backbone|roi_heads)\.", "", name): tensor for name, tensor in state.items()}
    kept = {name: tensor for name, tensor in bare.items() if _BACKBONE.match(name)}
    missing = [p for p in ("stem", "res2", "res3", "res4", "res5") if not any(n.startswith(p) for n in kept)]
    if missing:
        raise InputError(
            f"this is no whole ResNet of Detectron2: {', '.join(missing)} missing",
            where=f"{len(state)} tensors",
            next_step="give the state of a ResNet backbone, or of a C4 detector with res5 in its heads",
        )
    return {_renamed(name, _FROM_DETECTRON2): tensor for name, tensor in kept.items()}


def _renamed(name: str, rules: tuple) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
