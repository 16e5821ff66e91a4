"""How networks of other projects compute differently from torchvision's with the very same weights.

A checkpoint says nothing of this: it loads without a complaint and gives slightly wrong features. So the importer
notes the deviation in the encoder, and every use of the encoder computes as its authors' network does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from twinbench.encoders.backbones import ResNet
from twinbench.foundation.errors import unknown_name

Deviation = Literal["none", "same_padding", "same_max_pool", "stem_padding_2", "no_stem_relu"]
"""``same_padding``: strided convolutions and the max-pool pad as TensorFlow's and Haiku's SAME does, more at the end
than at the beginning (BYOL). ``same_max_pool``: only the max-pool does (SimCLR, whose convolutions pad evenly).
``stem_padding_2``: the 3x3 convolution of the small stem pads by 2, so the maps are 34, 17, 9 and 5 pixels wide for 32
(solo-learn). ``no_stem_relu``: no ReLU after the stem (lightly's own ResNet taken apart into a Sequential)."""


class _SamePaddedMaxPool2d(nn.MaxPool2d):
    """The stem's max-pool, 3x3 at stride 2, padded as SAME does."""

    def __init__(self) -> None:
        super().__init__(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_pad_same(x, 3, 2, -torch.inf))


def _pad_same(x: Tensor, kernel: int, stride: int, value: float) -> Tensor:
    """Pad ``[N, C, H, W]`` so that a window gives ceil(H / stride) rows; an odd pixel goes to the end."""
    sizes = []
    for side in (x.shape[-1], x.shape[-2]):
        total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
        sizes += [total // 2, total - total // 2]
    return pad(x, sizes, value=value)


def deviate(backbone: ResNet, deviation: str) -> ResNet:
    """Make a backbone compute with a `Deviation`, in place; names and values of its weights stay as they are.

    Raises InputError for an unknown deviation.
    """
    if deviation not in _CHANGES:
        raise unknown_name("deviation", deviation, get_args(Deviation))
    _CHANGES[deviation](backbone)
    return backbone


def pad_strided_convolutions_same(network: nn.Module) -> None:
    """Make the strided square convolutions of any network pad as SAME does, in place; those of Detectron2 as well."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.stride[0] > 1:
            module.padding = (0, 0)
            module.register_forward_pre_hook(_pad_input_same)


def _pad_input_same(convolution: nn.Conv2d, args: tuple[Tensor]) -> tuple[Tensor]:
    return (_pad_same(args[0], convolution.kernel_size[0], convolution.stride[0], 0.0),)


def _pad_everything_same(backbone: ResNet) -> None:
    pad_strided_convolutions_same(backbone)
    _pad_max_pool_same(backbone)


def _pad_max_pool_same(backbone: ResNet) -> None:
    if isinstance(backbone.maxpool, nn.MaxPool2d):
        backbone.maxpool = _SamePaddedMaxPool2d()


def _pad_stem_by_2(backbone: ResNet) -> None:
    backbone.conv1.padding = (2, 2)


def _drop_stem_relu(backbone: ResNet) -> None:
    setattr(backbone, "relu", nn.Identity())  # noqa: B010  (declared as a ReLU)


_CHANGES: dict[str, Callable[[ResNet], None]] = {
    "none": lambda backbone: None,
    "same_padding": _pad_everything_same,
    "same_max_pool": _pad_max_pool_same,
    "stem_padding_2": _pad_stem_by_2,
    "no_stem_relu": _drop_stem_relu,
}
