"""Detection and instance segmentation in small scenes: a Mask R-CNN of torchvision's parts, trained in a minute.

The protocols of `torchvision_rcnn` follow a `Schedule` and resize pictures to it; this one takes scenes of one size as
they are, which is what makes it quick, and has an optimizer of its own.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from twinbench.data.detection import DetectionSplit, PictureFiles
from twinbench.data.image_sets import ImageSet
from twinbench.downstream.checkpoints import Checkpoints, RandomState
from twinbench.downstream.detection.coco_eval import (
    Detections,
    evaluation_remarks,
    require_objects,
    run_lengths,
)
from twinbench.downstream.detection.drawing import drawn
from twinbench.downstream.detection.fine_tuning import (
    BOX_AND_MASK_METRICS,
    STAGES,
    ObjectLimits,
    crowding,
    require_encoder_maps,
    unit_floats,
)
from twinbench.downstream.detection.outcomes import Detecting, detected
from twinbench.downstream.detection.torchvision_shares import share_over_ranks, shared_losses
from twinbench.downstream.protocol import EvaluationContext, Measurement, register_protocol
from twinbench.downstream.randomness import seeded, shuffled_indices
from twinbench.encoders.backbones import ResNet
from twinbench.encoders.encoder import Encoder
from twinbench.foundation.collectives import all_reduce_sum, rank
from twinbench.foundation.errors import InputError, RunFailure
from twinbench.foundation.ranks import in_shares, own_share, require_equal_shares, sum_gradients

STEPS = 160
BATCH = 4
LEARNING_RATE = 1e-3
# Few regions reach the mask branch: it needs larger steps.
MASK_LEARNING_RATE = 5e-3
WEIGHT_DECAY = 1e-4
_FPN_CHANNELS = 32
_BOX_WIDTH = 128
_MASK_CHANNELS = 32
# No object of the scenes is so small that it needs res2, whose map is as large as the others together three times.
_STAGES = STAGES[1:]
_ANCHOR_SHARES = (1 / 4, 1 / 3, 1 / 2)
_SAMPLES = 1  # points per bin of a region, along each side
_LIMITS = ObjectLimits(proposals=100, regions=32, examined=50, detections=20)
_EVAL_BATCH = 32
# Backbone, pyramid and heads together, in forward passes of the backbone over as many pixels: the CPU seconds of an
# evaluation on digit-scenes over those of passes timed in turn with it in one process (harness.estimate.ForwardPass),
# with ResNet-10 of width 16 and the stride2 stem. Four evaluations gave 5.7 to 6.2.
_HEAD_COST = 5.7


class PyramidBody(nn.Module):
    """A backbone's maps of ``stages``, ``[N, C_i, H_i, W_i]``, turned into a pyramid of equally many channels."""

    def __init__(self, backbone: ResNet, channels: Sequence[int], stages: Sequence[str] = STAGES) -> None:
        super().__init__()
        self.body, self._stages = backbone, tuple(stages)
        self.fpn = FeaturePyramidNetwork(list(channels), _FPN_CHANNELS)
        self.out_channels = _FPN_CHANNELS

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """The pyramid of normalised images ``[N, 3, H, W]``, finest level first."""
        maps = self.body.feature_maps(images)
        pyramid: OrderedDict[str, Tensor] = self.fpn(
            OrderedDict((stage, maps[stage]) for stage in self._stages)
        )
        return pyramid


class OneMaskPredictor(MaskRCNNPredictor):
    """A mask predictor whose masks are the same for all classes, so that every region trains the one that there is."""

    def __init__(self, channels: int, hidden: int, classes: int) -> None:
        super().__init__(channels, hidden, 1)
        self._classes = classes

    def forward(self, x: Tensor) -> Tensor:
        """Mask logits ``[N, classes, 28, 28]`` of region features ``[N, channels, 14, 14]``."""
        logits: Tensor = super().forward(x)
        return logits.expand(-1, self._classes, -1, -1)


def build_detector(encoder: Encoder, classes: int, height: int, width: int) -> MaskRCNN:
    """A Mask R-CNN whose body is a trainable copy of the encoder's backbone; class 0 is the background.

    Scenes are normalised as the encoder was trained and never resized. Anchors have a quarter to a half of
    the shorter side of the scene. Regions are pooled from the pyramid's res3, but for those at least as large as the
    square of that side, which come from a coarser map. Raises InputError if the scene is too small for the backbone's
    strides.
    """
    side = min(height, width)
    body = encoder.fresh_backbone()
    channels, strides = _layout(encoder, side)
    anchors = tuple((round(side * share),) for share in _ANCHOR_SHARES)
    # With these a region twice as wide as the canonical scale, which covers the square of the shorter side, comes from
    # res4 and every smaller one, of a half of the scene too, from res3, whatever the stem's stride. So what the heads
    # see is res3 of the pyramid, in which its top-down sums carry res4 and res5. The numbers of v2 were measured so.
    levels = {"canonical_scale": side // 2, "canonical_level": int(math.log2(strides[0])) + 1}
    return MaskRCNN(
        PyramidBody(body, channels[1:], _STAGES),
        min_size=side,
        max_size=max(height, width),
        image_mean=list(encoder.mean),
        image_std=list(encoder.std),
        rpn_anchor_generator=AnchorGenerator(anchors, ((0.5, 1.0, 2.0),) * len(anchors)),
        rpn_pre_nms_top_n_train=200,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_train=_LIMITS.proposals,
        rpn_post_nms_top_n_test=_LIMITS.examined,
        box_roi_pool=MultiScaleRoIAlign(list(_STAGES), 7, _SAMPLES, **levels),
        box_head=TwoMLPHead(_FPN_CHANNELS * 49, _BOX_WIDTH),
        box_predictor=FastRCNNPredictor(_BOX_WIDTH, classes + 1),
        box_batch_size_per_image=_LIMITS.regions,
        box_detections_per_img=_LIMITS.detections,
        mask_roi_pool=MultiScaleRoIAlign(list(_STAGES), 14, _SAMPLES, **levels),
        mask_head=MaskRCNNHeads(_FPN_CHANNELS, (_MASK_CHANNELS, _MASK_CHANNELS), 1),
        mask_predictor=OneMaskPredictor(_MASK_CHANNELS, _MASK_CHANNELS, classes + 1),
    )


def _layout(encoder: Encoder, side: int) -> tuple[list[int], list[int]]:
    """Channels and strides of the maps res2 to res5 on a square scene."""
    parameter = next(encoder.backbone.parameters())
    with torch.no_grad():
        maps = encoder.backbone.feature_maps(parameter.new_zeros(1, 3, side, side))
    channels = [maps[stage].shape[1] for stage in STAGES]
    sides = [maps[stage].shape[2] for stage in STAGES]
    if sides[-1] < 2:
        raise InputError(
            f"scenes of {side} pixels are too small for this backbone: its last map is {sides[-1]} pixel wide",
            next_step="use larger scenes or an encoder with the stem 'small' or 'stride2'",
        )
    return channels, [2 ** round(math.log2(side / map_side)) for map_side in sides]


@torch.no_grad()
def pyramid_maps(model: GeneralizedRCNN, image: Tensor) -> dict[str, Tensor]:
    """Maps res2 to res5 ``[1, C, H, W]`` under a detector's pyramid, of an uint8 picture ``[3, H, W]`` at its own size.

    Leaves the detector in evaluation mode.
    """
    model.eval()
    body = model.backbone.body
    pixels = unit_floats(image.to(next(body.parameters()).device))
    maps: dict[str, Tensor] = body.feature_maps(model.transform.normalize(pixels)[None])
    return maps


@register_protocol
class SmallMaskRcnn(Detecting):
    """Box and mask AP of one short Mask R-CNN training on the detection scenes.

    The network is torchvision's, with a feature pyramid over res3 to res5 (regions as large as the scene apart, its
    heads see the finest map, into which the others are summed), masks that are the same for all classes (four scenes
    a step are too few to train ten) and heads small enough for a CPU. It answers the question of
    BT-paper table 4 (does pretraining help detection?) at the size of this image set; the numbers do not
    compare with Detectron2's. As there (MoCo, arXiv:1911.05722, appendix A.1) all layers are trained and batch
    norm keeps using and learning batch statistics: frozen statistics would handicap encoders whose features
    have an unusual scale, random initialisation above all. AdamW, linear warm-up, then cosine to zero; the same
    fixed schedule for every encoder, no augmentation (the digits of the default scenes are not symmetric), the
    state after the last step counts.
    """

    name = "detection/small-mask-rcnn-torchvision-v2"
    metrics = BOX_AND_MASK_METRICS

    def check(self, image_set: ImageSet) -> None:
        """Raise InputError for pictures of different sizes or without masks, and where no test object counts."""
        for split in ("train", "test"):
            _pixels_and_masks(image_set.detection(split))
        require_objects(image_set.detection("test"))

    def check_ranks(self, ranks: int) -> None:
        """Raise InputError unless the ranks have equally many scenes of a step."""
        require_equal_shares(BATCH, ranks)

    def evaluate(self, encoder: Encoder, context: EvaluationContext) -> list[Measurement]:
        """``box_ap``, ``box_ap50``, ``box_ap75`` and the same of masks, over the test scenes.

        Raises InputError if the image set has no scenes, RunFailure where the detector does not start from
        the encoder or its loss is not finite.
        """
        image_set = context.image_set
        self.check(image_set)
        train, test = image_set.detection("train"), image_set.detection("test")
        train_images, test_images = (_pixels_and_masks(split)[0] for split in (train, test))
        classes = len(image_set.detection_classes)
        context.remarks += [*crowding(train, test, _LIMITS), *evaluation_remarks(test, classes)]
        with seeded(context.seed, context.device) as generator:
            detector = build_detector(encoder, classes, *train_images.shape[-2:])
            detector.to(context.device).to(memory_format=torch.channels_last)
            require_encoder_maps(partial(pyramid_maps, detector), encoder, train_images[0])
            training = train_detector(detector, train, STEPS, generator, context.device, context.checkpoints)
            for step in training:
                context.progress(0.8 * (step + 1) / STEPS)
        detections = detect(detector, test_images, context.device)
        if rank():
            return []  # the precisions take long, and those of one rank count
        context.picture = drawn(test, detections, image_set.detection_classes)
        context.progress(0.95)
        context.outcomes = detected(detections, test, classes, self.evaluator)
        measured = self.measure_again(context.outcomes, image_set)
        context.progress(1.0)
        return measured

    def forward_passes(self, image_set: ImageSet) -> float:
        """Scenes count by their area, and for pyramid and heads several times over."""
        test, _ = _pixels_and_masks(image_set.detection("test"))
        scene = _HEAD_COST * test.shape[-2] * test.shape[-1] / image_set.image_size**2
        return scene * (3 * STEPS * BATCH + len(test))


def train_detector(
    detector: MaskRCNN,
    scenes: DetectionSplit,
    steps: int,
    generator: torch.Generator,
    device: torch.device,
    checkpoints: Checkpoints | None = None,
) -> Iterator[int]:
    """Train in place, yielding the 0-based number of every step that it finishes; RunFailure on a non-finite loss.

    It goes on from what ``checkpoints`` has.
    """
    images, all_masks = _pixels_and_masks(scenes)
    share_over_ranks(detector)
    groups: dict[float, list[nn.Parameter]] = {LEARNING_RATE: [], MASK_LEARNING_RATE: []}
    for name, parameter in detector.named_parameters():
        groups[MASK_LEARNING_RATE if name.startswith("roi_heads.mask") else LEARNING_RATE].append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "lr": rate} for rate, parameters in groups.items()],
        weight_decay=WEIGHT_DECAY,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, steps))
    targets = [
        {"boxes": boxes.to(device), "labels": labels.to(device) + 1, "masks": masks.to(device, torch.uint8)}
        for boxes, labels, masks in zip(scenes.boxes, scenes.labels, all_masks, strict=True)
    ]
    order = shuffled_indices(len(images), steps * BATCH, generator)
    # regions are drawn from the global generators, one step after another
    state = (checkpoints or Checkpoints()).training(
        "training", detector=detector, optimizer=optimizer, schedule=schedule, drawn=RandomState(device)
    )
    detector.train()
    for step, whole in enumerate(order.split(BATCH)[state.first :], state.first):
        chosen = whole[own_share()]
        batch = list(unit_floats(images[chosen].to(device)))
        losses = shared_losses(detector, detector(batch, [targets[i] for i in chosen.tolist()]))
        loss = sum(losses.values(), torch.zeros((), device=device))
        of_all = all_reduce_sum(loss.detach())
        if not torch.isfinite(of_all):
            raise RunFailure(f"the detection loss became {of_all.item()} at step {step}")
        optimizer.zero_grad()
        loss.backward()
        sum_gradients(optimizer)
        optimizer.step()
        schedule.step()
        state.keep(step + 1)
        yield step


def _pixels_and_masks(scenes: DetectionSplit) -> tuple[Tensor, Sequence[Tensor]]:
    """The scenes ``[N, 3, H, W]`` and their masks; InputError for pictures of different sizes or without masks."""
    if isinstance(scenes.images, PictureFiles) or scenes.masks is None:
        raise InputError(
            f"{SmallMaskRcnn.name} is for scenes of one size with masks",
            nearest="detection/fpn-torchvision-v2",
            next_step="use the nearest protocol",
        )
    return scenes.images, scenes.masks


def lr_factor(step: int, steps: int) -> float:
    """The share of the peak learning rate at a 0-based step: linear warm-up, then cosine to zero."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


@torch.no_grad()
def detect(detector: MaskRCNN, images: Tensor, device: torch.device) -> list[Detections]:
    """Detections in uint8 scenes ``[N, 3, H, W]``, on the CPU, with 0-based labels; every rank has all of them."""
    detector.eval()
    chunks = images.split(_EVAL_BATCH)

    def detected_in(i: int) -> list[Detections]:
        found = []
        for output in detector(list(unit_floats(chunks[i].to(device)))):
            masks = run_lengths(output["masks"][:, 0].cpu() > 0.5)
            boxes, scores, labels = (output[part].cpu() for part in ("boxes", "scores", "labels"))
            found.append(Detections(boxes, scores, labels - 1, masks))
        return found

    return [each for found in in_shares(len(chunks), detected_in) for each in found]
