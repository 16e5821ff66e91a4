"""What Detectron2's C4 detector lacks: a backbone of any of our shapes, the extra norm after res5, and shared batches.

All of it is registered with Detectron2 and chosen by name in its configuration. The networks are made of Detectron2's
own blocks; for a ResNet that Detectron2 has itself the backbone computes what the one of its ``build_resnet_backbone``
does. Detectron2 trains every device on a batch of its own and takes the mean of their gradients; with what is here, the
devices share one batch, as `downstream.detection.shares` says. On one device the computation is Detectron2's.
"""

from __future__ import annotations

from typing import Any

from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, GeneralizedRCNN
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock, ResNet
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.modeling.roi_heads import Res5ROIHeads
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn.functional import pad

from twinbench.downstream.detection.fine_tuning import STEM_STRIDES
from twinbench.downstream.detection.shares import drawn_in_turn, shares_of_means
from twinbench.encoders.backbones import ResNet as EncoderResNet
from twinbench.encoders.backbones import build_backbone
from twinbench.encoders.deviations import deviate, pad_strided_convolutions_same
from twinbench.foundation.ranks import largest

_BLOCKS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class EncoderStem(CNNBlockBase):
    """The stem of an encoder's network: its convolution with norm, and its own ReLU and max-pool.

    Detectron2's ``BasicStem`` has neither the stems without max-pool nor the deviations of imported networks.
    """

    def __init__(self, in_channels: int, like: EncoderResNet, norm: str) -> None:
        convolution = like.conv1
        super().__init__(in_channels, like.width, STEM_STRIDES[like.stem])
        self.conv1 = Conv2d(
            in_channels,
            like.width,
            convolution.kernel_size,
            convolution.stride,
            padding=convolution.padding,
            bias=False,
            norm=get_norm(norm, like.width),
        )
        self.relu, self.maxpool = like.relu, like.maxpool

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images ``[N, 3, H, W]`` to ``[N, C, H / stride, W / stride]``."""
        pooled: Tensor = self.maxpool(self.relu(self.conv1(images)))
        return pooled


def encoder_stem(cfg: Any, in_channels: int) -> EncoderStem:
    """The stem that the configuration names by ``MODEL.RESNETS.STEM`` and ``MODEL.RESNETS.DEVIATION``."""
    resnet = cfg.MODEL.RESNETS
    # The depth is of no account: only the stem is taken.
    like = deviate(build_backbone("resnet10", resnet.STEM_OUT_CHANNELS, resnet.STEM), resnet.DEVIATION)
    stem = EncoderStem(in_channels, like, resnet.NORM)
    _deviate(cfg, stem)
    return stem


def _deviate(cfg: Any, part: nn.Module) -> None:
    """Change the convolutions of a stem or a block as the encoder's are; other deviations concern the stem alone."""
    if cfg.MODEL.RESNETS.DEVIATION == "same_padding":
        pad_strided_convolutions_same(part)


def stage_blocks(cfg: Any, stage: int) -> list[nn.Module]:
    """The residual blocks of res2 to res5 (``stage`` 2 to 5)."""
    resnet = cfg.MODEL.RESNETS
    factor = 2 ** (stage - 2)
    out_channels = resnet.RES2_OUT_CHANNELS * factor
    count = _BLOCKS[resnet.DEPTH][stage - 2]
    options: dict[str, Any] = {"block_class": BasicBlock}
    if resnet.DEPTH >= 50:
        bottleneck = resnet.WIDTH_PER_GROUP * factor
        options = {
            "block_class": BottleneckBlock,
            "bottleneck_channels": bottleneck,
            "stride_in_1x1": resnet.STRIDE_IN_1X1,
        }
    blocks: list[nn.Module] = ResNet.make_stage(
        num_blocks=count,
        stride_per_block=[1 if stage == 2 else 2] + [1] * (count - 1),
        in_channels=resnet.STEM_OUT_CHANNELS if stage == 2 else out_channels // 2,
        out_channels=out_channels,
        norm=resnet.NORM,
        **options,
    )
    for block in blocks:
        _deviate(cfg, block)
    return blocks


@BACKBONE_REGISTRY.register()
def build_encoder_backbone(cfg: Any, input_shape: Any) -> ResNet:
    """The backbone that the configuration describes, with two keys more than Detectron2's (see `encoder_stem`)."""
    stem = encoder_stem(cfg, input_shape.channels)
    stages = [stage_blocks(cfg, stage) for stage in (2, 3, 4, 5)]
    return ResNet(
        stem, stages, out_features=cfg.MODEL.RESNETS.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT
    )


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """Box head on res5 with one more norm on its last map before pooling (moco detection/train_net.py)."""

    @classmethod
    def _build_res5_block(cls, cfg: Any) -> tuple[nn.Sequential, int]:
        blocks = stage_blocks(cfg, 5)
        channels = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS * 8
        res5 = nn.Sequential(*blocks)
        res5.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
        return res5, channels

    def _sample_proposals(self, matched_idxs: Tensor, matched_labels: Tensor, gt_classes: Tensor) -> Any:
        choose = super()._sample_proposals
        return drawn_in_turn(matched_labels, lambda: choose(matched_idxs, matched_labels, gt_classes))

    def label_and_sample_proposals(self, proposals: Any, targets: Any) -> Any:
        """The regions of each picture to train on; ``taken`` is how many there are, ``objects`` how many show one."""
        sampled = super().label_and_sample_proposals(proposals, targets)
        self.taken = sum(len(each) for each in sampled)
        self.objects = sum(int((each.gt_classes < self.num_classes).sum()) for each in sampled)
        return sampled


@PROPOSAL_GENERATOR_REGISTRY.register()
class SharedRPN(RPN):
    """The proposal network, with anchors drawn for the pictures of all ranks in their order."""

    def _subsample_labels(self, label: Tensor) -> Tensor:
        choose = super()._subsample_labels
        return drawn_in_turn(label, lambda: choose(label))


@META_ARCH_REGISTRY.register()
class SharedRCNN(GeneralizedRCNN):
    """The detector, with the padding and the losses of the whole batch, of which the ranks have equal shares."""

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """What Detectron2's gives; in training what this rank adds to each loss of the whole batch."""
        found = super().forward(batched_inputs)
        if not self.training:
            return found
        heads, pictures = self.roi_heads, len(batched_inputs)
        counts = {
            "loss_rpn_cls": pictures,
            "loss_rpn_loc": pictures,
            "loss_cls": heads.taken,
            "loss_box_reg": heads.taken,
            "loss_mask": heads.objects,
        }
        return shares_of_means(found, counts)

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """The normalised pictures, in training padded to the size of the largest that a rank has."""
        images = super().preprocess_image(batched_inputs)
        if not self.training:
            return images
        height, width = images.tensor.shape[-2:]
        tallest, widest = largest([float(height), float(width)])
        padding = (0, round(widest) - width, 0, round(tallest) - height)
        return ImageList(pad(images.tensor, padding), images.image_sizes)
