"""ResNet backbones of any depth and width, with torchvision's parameter names.

A width-64 network is torchvision's ResNet without its classifier, tensor for tensor, so checkpoints go both
ways. Narrower ones (``width=16``, ``32``) make studies possible on a CPU.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1

from twinbench.encoders.small_maps import use_small_map_convolutions
from twinbench.foundation.errors import unknown_name

Stem = Literal["imagenet", "small", "stride2"]

_LAYOUTS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet10": (BasicBlock, (1, 1, 1, 1)),
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}


def backbone_names() -> list[str]:
    """The names that `build_backbone` knows."""
    return sorted(_LAYOUTS)


class ResNet(nn.Module):
    """A residual network without classifier (He et al., arXiv:1512.03385; stride on the 3x3 convolution).

    Stems: ``imagenet`` is the 7x7 stride-2 convolution with max-pool; ``small`` the 3x3 stride-1 convolution
    without max-pool used for 32-pixel images (SimCLR, appendix B.9); ``stride2`` the same 3x3 convolution at
    stride 2, four times cheaper, for studies on a CPU.
    """

    def __init__(self, name: str, width: int = 64, stem: Stem = "imagenet", zero_init: bool = False) -> None:
        super().__init__()
        if name not in _LAYOUTS:
            raise unknown_name("backbone", name, _LAYOUTS)
        block, depths = _LAYOUTS[name]
        self.name, self.width, self.stem = name, width, stem
        kernel, stride = {"imagenet": (7, 2), "small": (3, 1), "stride2": (3, 2)}[stem]
        self.conv1 = nn.Conv2d(3, width, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        self._in_channels = width
        self.layer1 = self._stage(block, width, depths[0], stride=1)
        self.layer2 = self._stage(block, width * 2, depths[1], stride=2)
        self.layer3 = self._stage(block, width * 4, depths[2], stride=2)
        self.layer4 = self._stage(block, width * 8, depths[3], stride=2)
        self.feature_dim = width * 8 * block.expansion
        self._initialise(zero_init)
        use_small_map_convolutions(self)

    def _stage(
        self, block: type[BasicBlock] | type[Bottleneck], planes: int, depth: int, stride: int
    ) -> nn.Sequential:
        out_channels = planes * block.expansion
        shortcut = None
        if stride != 1 or self._in_channels != out_channels:
            shortcut = nn.Sequential(
                conv1x1(self._in_channels, out_channels, stride), nn.BatchNorm2d(out_channels)
            )
        layers: list[nn.Module] = [block(self._in_channels, planes, stride, shortcut)]
        layers += [block(out_channels, planes) for _ in range(depth - 1)]
        self._in_channels = out_channels
        return nn.Sequential(*layers)

    def _initialise(self, zero_init: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init and isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)
            elif zero_init and isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)

    def feature_maps(self, x: Tensor) -> dict[str, Tensor]:
        """Feature maps ``res2`` to ``res5`` of normalised images ``[N, 3, H, W]``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = {}
        for name, stage in (
            ("res2", self.layer1),
            ("res3", self.layer2),
            ("res4", self.layer3),
            ("res5", self.layer4),
        ):
            x = stage(x)
            maps[name] = x
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Global-average-pooled features ``[N, feature_dim]`` of normalised images ``[N, 3, H, W]``."""
        # with the channels last its gradient is laid out as the maps are, or the ReLU before it takes ten times as long
        return self.feature_maps(x)["res5"].permute(0, 2, 3, 1).mean(dim=(1, 2))


def build_backbone(name: str, width: int = 64, stem: Stem = "imagenet", zero_init: bool = False) -> ResNet:
    """A freshly initialised backbone.

    ``zero_init`` starts the last batch-norm scale of every residual branch at zero (methods differ: the
    recipe says). Raises InputError for an unknown name.
    """
    return ResNet(name, width, stem, zero_init)
