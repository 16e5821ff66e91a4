"""Detectron2's configuration for an encoder and a schedule: MoCo's C4 protocol (arXiv:1911.05722, appendix A.1)."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, get_cfg

from twinbench.downstream.detection.d2.model import (
    Res5ROIHeadsExtraNorm,
    SharedRCNN,
    SharedRPN,
    build_encoder_backbone,
)
from twinbench.downstream.detection.schedules import Schedule
from twinbench.encoders.encoder import Encoder


def detectron2_config(
    encoder: Encoder, schedule: Schedule, classes: int, masks: bool, device: torch.device
) -> CfgNode:
    """The configuration of a Faster R-CNN C4, or a Mask R-CNN C4 with ``masks``.

    Detectron2's defaults are its C4 detector. What differs: nothing is frozen, batch norm is trained (across GPUs) and
    follows res5 once more, strides are on the 3x3 convolutions, pictures are RGB in the encoder's normalisation, and
    several devices share one batch.
    """
    cfg = get_cfg()
    cfg.MODEL.DEVICE = str(device)
    cfg.MODEL.META_ARCHITECTURE = SharedRCNN.__name__
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = SharedRPN.__name__
    cfg.MODEL.MASK_ON = masks
    cfg.MODEL.PIXEL_MEAN = [255 * value for value in encoder.mean]
    cfg.MODEL.PIXEL_STD = [255 * value for value in encoder.std]
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MASK_FORMAT = "bitmask"
    _resnet(cfg, encoder, device)
    cfg.MODEL.ROI_HEADS.NAME = Res5ROIHeadsExtraNorm.__name__
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = classes
    _schedule(cfg, schedule)
    return cfg


def _resnet(cfg: CfgNode, encoder: Encoder, device: torch.device) -> None:
    info = encoder.info
    cfg.MODEL.BACKBONE.NAME = build_encoder_backbone.__name__
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    resnet = cfg.MODEL.RESNETS
    resnet.DEPTH = int(info.architecture.removeprefix("resnet"))
    resnet.STEM = info.stem
    resnet.DEVIATION = info.deviation
    # SyncBN as the papers say. MoCo's files have naiveSyncBN since 2020, Detectron2's way around the wrong gradients of
    # torch up to 1.5, which gives every device the same weight whatever the sizes of its pictures. Without a process
    # group SyncBN is batch norm; inside one it refuses a CPU.
    resnet.NORM = "SyncBN" if device.type == "cuda" else "BN"
    resnet.STRIDE_IN_1X1 = False
    resnet.STEM_OUT_CHANNELS = info.width
    resnet.WIDTH_PER_GROUP = info.width
    resnet.RES2_OUT_CHANNELS = info.feature_dim // 8


def _schedule(cfg: CfgNode, schedule: Schedule) -> None:
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [list(schedule.anchor_sizes)]
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = 6 * schedule.train_proposals
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 6 * schedule.test_proposals
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = schedule.train_proposals
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = schedule.test_proposals
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = schedule.regions
    cfg.INPUT.MIN_SIZE_TRAIN = schedule.train_sizes
    cfg.INPUT.MIN_SIZE_TEST = schedule.test_size
    cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST = schedule.max_size
    cfg.INPUT.RANDOM_FLIP = "horizontal" if schedule.horizontal_flip else "none"
    cfg.SOLVER.IMS_PER_BATCH = schedule.images_per_batch
    cfg.SOLVER.BASE_LR = schedule.base_lr
    cfg.SOLVER.STEPS = schedule.steps
    cfg.SOLVER.MAX_ITER = schedule.iterations
    cfg.SOLVER.WARMUP_ITERS = schedule.warmup_iterations
    cfg.SOLVER.WARMUP_FACTOR = schedule.warmup_factor
    cfg.SOLVER.MOMENTUM = schedule.momentum
    cfg.SOLVER.WEIGHT_DECAY = schedule.weight_decay
    cfg.SOLVER.GAMMA = schedule.gamma
    cfg.TEST.PRECISE_BN.ENABLED = True
    cfg.TEST.PRECISE_BN.NUM_ITER = schedule.precise_bn
