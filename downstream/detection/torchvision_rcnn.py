"""Detection with torchvision's detectors, for machines without Detectron2: C4 and FPN.

The same data, schedules and evaluators as with Detectron2, and the same sampling of anchors and regions, counts before
and after suppression, box weights and thresholds. The libraries differ in what follows, so the protocols have names of
their own; `benchmarks/detection_gap.py` switches each of these over:

- Predictors begin as a Linear does, not with deviations 0.01 (classes) and 0.001 (boxes) and no bias.
- Boxes are learned by their squared error below 1/9 (smooth L1), not by the absolute one.
- Regions are cut with pixels' centres at whole numbers (``aligned=False``), not at halves.
- Corners of anchors are rounded to whole pixels.
- Pictures are interpolated as floats without a filter, their sides rounded down and padded to multiples of 32; not by
  Pillow as uint8.
- Proposals thinner than a thousandth of a pixel are left out.

These are the libraries' choices. Up to version 1 one more was ours: batch norm's final variance was the mean of the
batches' variances, where Detectron2's trainer, with fvcore, takes that of all batches together, as is done here now. It
is larger by what the batches' means differ, which matters where some pictures are bright and others dark.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from twinbench.data.detection import DetectionSplit
from twinbench.downstream.checkpoints import Checkpoints, RandomState
from twinbench.downstream.detection.coco_eval import Detections, run_lengths
from twinbench.downstream.detection.draws import Draw, Draws
from twinbench.downstream.detection.fine_tuning import (
    BOX_AND_MASK_METRICS,
    STAGES,
    STEM_STRIDES,
    Detector,
    FineTuning,
    finite_total,
    require_finite,
    unit_floats,
)
from twinbench.downstream.detection.schedules import TINY, TINY_PYRAMID, VOC_24K, Schedule
from twinbench.downstream.detection.small_mask_rcnn import PyramidBody, pyramid_maps
from twinbench.downstream.detection.statistics import estimate_statistics
from twinbench.downstream.detection.torchvision_shares import share_over_ranks, shared_losses
from twinbench.downstream.protocol import register_protocol
from twinbench.encoders.backbones import ResNet
from twinbench.encoders.encoder import Encoder
from twinbench.foundation.collectives import world_size
from twinbench.foundation.ranks import own_share, sum_gradients, together

_RATIOS = (0.5, 1.0, 2.0)
_BOX_WIDTH = 256
_MASK_CHANNELS = 64
Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


class StridedAnchors(AnchorGenerator):
    """Anchors as far apart as the maps of an encoder are strided.

    torchvision takes the side of the picture over that of the map, rounded down. A stem that pads by more than half
    its kernel makes maps a little larger, and one pixel too few between anchors leaves part of the picture without.
    """

    def __init__(self, sizes: tuple[tuple[float, ...], ...], strides: Sequence[int]) -> None:
        super().__init__(sizes, (_RATIOS,) * len(sizes))
        self._strides = strides

    def grid_anchors(self, grid_sizes: list[list[int]], strides: list[list[Tensor]]) -> list[Tensor]:
        """The anchors ``[n, 4]`` of every map; ``strides``, the ones that torchvision found, give way to ours."""
        pairs = zip(strides, self._strides, strict=True)
        own = [[torch.full_like(side, stride) for side in sides] for sides, stride in pairs]
        anchors: list[Tensor] = super().grid_anchors(grid_sizes, own)
        return anchors


class C4Body(nn.Module):
    """A backbone's stem to res4, the map that regions are cut from; res5 belongs to the box head."""

    def __init__(self, backbone: ResNet) -> None:
        super().__init__()
        self.stem = nn.Sequential(backbone.conv1, backbone.bn1, backbone.relu, backbone.maxpool)
        self.res2, self.res3, self.res4 = backbone.layer1, backbone.layer2, backbone.layer3
        self.out_channels = backbone.feature_dim // 2

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """``res4`` of normalised images ``[N, 3, H, W]``."""
        return OrderedDict(res4=self.res4(self.res3(self.res2(self.stem(images)))))


class Res5Head(nn.Sequential):
    """res5 on regions ``[N, C, 14, 14]``, one more batch norm (MoCo's extra norm) and global pooling: ``[N, 2C]``."""

    def __init__(self, backbone: ResNet) -> None:
        width = backbone.feature_dim
        super().__init__(
            OrderedDict(
                res5=backbone.layer4,
                norm=nn.BatchNorm2d(width),
                pool=nn.AdaptiveAvgPool2d(1),
                flat=nn.Flatten(),
            )
        )


def c4_detector(encoder: Encoder, classes: int, schedule: Schedule) -> FasterRCNN:
    """A Faster R-CNN with its proposals on res4 and res5 as the box head; class 0 is the background."""
    backbone = encoder.fresh_backbone()
    return FasterRCNN(
        C4Body(backbone),
        rpn_anchor_generator=StridedAnchors((schedule.anchor_sizes,), _strides(encoder)[2:3]),
        box_roi_pool=MultiScaleRoIAlign(["res4"], 14, 0),
        box_head=Res5Head(backbone),
        box_predictor=FastRCNNPredictor(backbone.feature_dim, classes + 1),
        **_common(encoder, schedule),
    )


def fpn_detector(encoder: Encoder, classes: int, masks: bool, schedule: Schedule) -> FasterRCNN | MaskRCNN:
    """A Faster or Mask R-CNN on a pyramid over res2 to res5 with heads small enough for a CPU."""
    backbone = encoder.fresh_backbone()
    body = PyramidBody(backbone, [backbone.feature_dim // 2**i for i in (3, 2, 1, 0)])
    parts: dict[str, Any] = {
        "rpn_anchor_generator": StridedAnchors(
            tuple((side,) for side in schedule.anchor_sizes[: len(STAGES)]), _strides(encoder)
        ),
        "box_roi_pool": MultiScaleRoIAlign(list(STAGES), 7, 2, canonical_scale=schedule.test_size // 3),
        "box_head": TwoMLPHead(body.out_channels * 49, _BOX_WIDTH),
        "box_predictor": FastRCNNPredictor(_BOX_WIDTH, classes + 1),
        **_common(encoder, schedule),
    }
    if not masks:
        return FasterRCNN(body, **parts)
    return MaskRCNN(
        body,
        mask_roi_pool=MultiScaleRoIAlign(list(STAGES), 14, 2, canonical_scale=schedule.test_size // 3),
        mask_head=MaskRCNNHeads(body.out_channels, (_MASK_CHANNELS, _MASK_CHANNELS), 1),
        mask_predictor=MaskRCNNPredictor(_MASK_CHANNELS, _MASK_CHANNELS, classes + 1),
        **parts,
    )


def _strides(encoder: Encoder) -> list[int]:
    """Pixels per position of res2 to res5."""
    return [STEM_STRIDES[encoder.info.stem] * 2**i for i in range(len(STAGES))]


def _common(encoder: Encoder, schedule: Schedule) -> dict[str, Any]:
    """What both detectors take from the encoder and the schedule."""
    return {
        # The last size is that of test pictures; training draws from the list (see `TorchvisionDetector.train`).
        "min_size": schedule.test_size,
        "max_size": schedule.max_size,
        "image_mean": list(encoder.mean),
        "image_std": list(encoder.std),
        "rpn_pre_nms_top_n_train": 6 * schedule.train_proposals,
        "rpn_pre_nms_top_n_test": 6 * schedule.test_proposals,
        "rpn_post_nms_top_n_train": schedule.train_proposals,
        "rpn_post_nms_top_n_test": schedule.test_proposals,
        "box_batch_size_per_image": schedule.regions,
    }


class TorchvisionDetector:
    """A torchvision detector on a device, trained by a schedule."""

    def __init__(self, model: GeneralizedRCNN, schedule: Schedule, device: torch.device) -> None:
        self.model = model.to(device)
        self._schedule, self._device = schedule, device

    @torch.no_grad()
    def feature_maps(self, image: Tensor) -> dict[str, Tensor]:
        """Maps res2 to res5 ``[1, C, H, W]`` of an uint8 picture ``[3, H, W]`` at its own size, in evaluation mode."""
        if isinstance(self.model.backbone, PyramidBody):
            return pyramid_maps(self.model, image)
        self.model.eval()
        pixels = self.model.transform.normalize(unit_floats(image.to(self._device)))[None]
        x = self.model.backbone.stem(pixels)
        maps = {}
        stages = (
            *(getattr(self.model.backbone, name) for name in STAGES[:3]),
            self.model.roi_heads.box_head.res5,
        )
        for name, stage in zip(STAGES, stages, strict=True):
            maps[name] = x = stage(x)
        return maps

    def train(
        self, split: DetectionSplit, seed: int, checkpoints: Checkpoints | None = None
    ) -> Iterator[int]:
        """Fine-tune by the schedule, yielding the 0-based number of every iteration that it finishes.

        It goes on from what ``checkpoints`` has. Raises RunFailure if a loss is not finite, or the detector in the end.
        """
        schedule = self._schedule
        share_over_ranks(self.model)
        optimizer = torch.optim.SGD(_groups(self.model, schedule), schedule.base_lr, schedule.momentum)
        # regions and sizes are drawn from the global generators, one iteration after another
        drawn = RandomState(self._device)
        state = (checkpoints or Checkpoints()).training(
            "training", model=self.model, optimizer=optimizer, drawn=drawn
        )
        batches = together(self._batches(split, seed, state.first))
        self.model.transform.min_size = schedule.train_sizes
        left = islice(batches, schedule.iterations - state.first)
        for iteration, (images, targets) in enumerate(left, state.first):
            self.model.train()
            for group in optimizer.param_groups:
                group["lr"] = schedule.learning_rate(iteration)
            loss = finite_total(shared_losses(self.model, self.model(images, targets)), iteration)
            optimizer.zero_grad()
            loss.backward()
            sum_gradients(optimizer)
            optimizer.step()
            state.keep(iteration + 1)
            yield iteration
        estimate_statistics(
            self.model, islice(batches, schedule.precise_bn), lambda batch: self.model(*batch)
        )
        require_finite(self.model, schedule.iterations - 1)
        self.model.transform.min_size = (schedule.test_size,)

    def _batches(self, split: DetectionSplit, seed: int, first: int = 0) -> Iterator[Batch]:
        """This rank's part of the batches from that of the ``first`` iteration on."""
        draws = Draws(split, self._schedule, seed, partial(prepare, flip=self._schedule.horizontal_flip))
        size = self._schedule.images_per_batch
        positions = range(first * size, len(draws))
        own = [positions[start : start + size][own_share()] for start in range(0, len(positions), size)]
        loaded = draws.loader(self._device, chain.from_iterable(own))
        while batch := list(islice(loaded, size // world_size())):
            images = [unit_floats(image.to(self._device)) for image, _ in batch]
            yield images, [{k: v.to(self._device) for k, v in target.items()} for _, target in batch]

    @torch.no_grad()
    def detect(self, image: Tensor) -> Detections:
        """The detections in an uint8 picture ``[3, H, W]``, in its pixels, on the CPU."""
        self.model.eval()
        (found,) = self.model([unit_floats(image.to(self._device))])
        masks = run_lengths(found["masks"][:, 0].cpu() > 0.5) if "masks" in found else None
        return Detections(found["boxes"].cpu(), found["scores"].cpu(), found["labels"].cpu() - 1, masks)


def prepare(draw: Draw, flip: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """The picture and torchvision's target, every other one mirrored with ``flip``."""
    target = {"boxes": draw.boxes, "labels": draw.labels + 1}
    if draw.masks is not None:
        target["masks"] = draw.masks.to(torch.uint8)
    if not (flip and draw.seed % 2):
        return draw.image, target
    width = draw.image.shape[2]
    left, top, right, bottom = draw.boxes.unbind(1)
    target["boxes"] = torch.stack([width - right, top, width - left, bottom], dim=1)
    if "masks" in target:
        target["masks"] = target["masks"].flip(2)
    return draw.image.flip(2), target


def _groups(model: nn.Module, schedule: Schedule) -> list[dict[str, Any]]:
    """All parameters, those of norm layers without weight decay."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    exempt = {id(parameter) for norm in norms for parameter in norm.parameters()}
    decayed = [parameter for parameter in model.parameters() if id(parameter) not in exempt]
    return [
        {"params": decayed, "weight_decay": schedule.weight_decay},
        {"params": [p for p in model.parameters() if id(p) in exempt], "weight_decay": 0.0},
    ]


class C4Torchvision(FineTuning):
    """torchvision's Faster R-CNN C4."""

    def build(self, encoder: Encoder, classes: int, masks: bool, device: torch.device) -> Detector:
        """A Faster R-CNN C4; masks are not used."""
        return TorchvisionDetector(c4_detector(encoder, classes, self.schedule), self.schedule, device)


class FpnTorchvision(FineTuning):
    """torchvision's R-CNN with a feature pyramid, with masks where the set has them."""

    def build(self, encoder: Encoder, classes: int, masks: bool, device: torch.device) -> Detector:
        """A Mask R-CNN where the set has masks, else a Faster R-CNN."""
        model = fpn_detector(encoder, classes, masks, self.schedule)
        return TorchvisionDetector(model, self.schedule, device)


# With the schedules for CPUs and COCO's AP.
register_protocol(C4Torchvision("detection/c4-torchvision-v2", TINY))
register_protocol(FpnTorchvision("detection/fpn-torchvision-v2", TINY_PYRAMID, metrics=BOX_AND_MASK_METRICS))
# With the schedule of VOC07+12, 16 images per batch, and VOC 2007's AP.
register_protocol(C4Torchvision("detection/voc-c4-torchvision-v2", VOC_24K, evaluator="voc2007"))
