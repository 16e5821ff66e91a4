"""A Detectron2 detector that starts from an encoder: its training, and its detections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from torch import Tensor

from twinbench.data.detection import DetectionSplit
from twinbench.downstream.checkpoints import Checkpoints, RandomState
from twinbench.downstream.detection.coco_eval import Detections, run_lengths
from twinbench.downstream.detection.d2.config import detectron2_config
from twinbench.downstream.detection.d2.resuming import training
from twinbench.downstream.detection.draws import Draw, Draws
from twinbench.downstream.detection.fine_tuning import finite_total, not_finite, require_finite
from twinbench.downstream.detection.schedules import Schedule
from twinbench.downstream.detection.statistics import estimate_statistics
from twinbench.encoders.encoder import Encoder
from twinbench.encoders.foreign.detectron2_names import to_detectron2
from twinbench.foundation.collectives import world_size
from twinbench.foundation.norms import use_global_batches
from twinbench.foundation.ranks import own_share, sum_gradients, together

STAGES_OF_BACKBONE = ("res2", "res3", "res4")


class DrawMapper:
    """What Detectron2's DatasetMapper makes of a file, from a picture in memory: a dictionary for its models."""

    def __init__(self, cfg: CfgNode) -> None:
        self._augmentation = T.AugmentationList(detection_utils.build_augmentation(cfg, True))
        self._masks = cfg.MODEL.MASK_ON

    def __call__(self, draw: Draw) -> dict[str, Any]:
        """The augmented picture and its instances; what is drawn depends on the draw's seed alone."""
        pixels = T.AugInput(_channels_last(draw.image))
        with _numpy_seeded(draw.seed):
            transforms = self._augmentation(pixels)
        size = pixels.image.shape[:2]
        annotations = [
            detection_utils.transform_instance_annotations(annotation, transforms, size)
            for annotation in self._annotations(draw)
        ]
        instances = detection_utils.annotations_to_instances(annotations, size, mask_format="bitmask")
        height, width = draw.image.shape[1:]
        return {
            "image": _channels_first(pixels.image),
            "height": height,
            "width": width,
            "instances": detection_utils.filter_empty_instances(instances),
        }

    def _annotations(self, draw: Draw) -> list[dict[str, Any]]:
        annotations: list[dict[str, Any]] = [
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label}
            for box, label in zip(draw.boxes.tolist(), draw.labels.tolist(), strict=True)
        ]
        if self._masks and draw.masks is not None:
            for annotation, mask in zip(annotations, run_lengths(draw.masks), strict=True):
                annotation["segmentation"] = mask
        return annotations


class Detectron2Detector:
    """Detectron2's Faster or Mask R-CNN C4, trained by a schedule."""

    def __init__(
        self, encoder: Encoder, schedule: Schedule, classes: int, masks: bool, device: torch.device
    ) -> None:
        self.cfg = detectron2_config(encoder, schedule, classes, masks, device)
        self.model = build_model(self.cfg)
        load_encoder(self.model, encoder)
        self._schedule, self._masks, self._device = schedule, masks, device
        self._test_augmentation = T.AugmentationList(detection_utils.build_augmentation(self.cfg, False))

    @torch.no_grad()
    def feature_maps(self, image: Tensor) -> dict[str, Tensor]:
        """Maps res2 to res5 ``[1, C, H, W]`` of an uint8 picture ``[3, H, W]`` at its own size, in evaluation mode."""
        self.model.eval()
        x = self.model.backbone.stem(self.model.preprocess_image([{"image": image}]).tensor)
        maps = {}
        for name in STAGES_OF_BACKBONE:
            maps[name] = x = getattr(self.model.backbone, name)(x)
        *blocks, _ = self.model.roi_heads.res5
        for block in blocks:
            x = block(x)
        return {**maps, "res5": x}

    def train(
        self, split: DetectionSplit, seed: int, checkpoints: Checkpoints | None = None
    ) -> Iterator[int]:
        """Fine-tune by the schedule, yielding the 0-based number of every iteration that it finishes.

        It goes on from what ``checkpoints`` has. Raises RunFailure if a loss is not finite, or the detector in the end.
        """
        optimizer = build_optimizer(self.cfg, self.model)
        scheduler = build_lr_scheduler(self.cfg, optimizer)
        # after the optimizer, which knows norms by Detectron2's list of them
        use_global_batches(self.model)
        # regions are drawn from the global generators, one iteration after another
        drawn = RandomState(self._device)
        state = training(
            checkpoints or Checkpoints(), self.model, optimizer=optimizer, scheduler=scheduler, drawn=drawn
        )
        batches = together(self.batches(split, seed, state.first))
        left = islice(batches, self._schedule.iterations - state.first)
        for iteration, batch in enumerate(left, state.first):
            self.model.train()
            with _watched(iteration):
                losses = self.model(batch)
            loss = finite_total(losses, iteration)
            optimizer.zero_grad()
            loss.backward()
            sum_gradients(optimizer)
            optimizer.step()
            scheduler.step()
            state.keep(iteration + 1)
            yield iteration
        last = self._schedule.iterations - 1
        with _watched(last):
            estimate_statistics(self.model, islice(batches, self._schedule.precise_bn), self.model)
        require_finite(self.model, last)

    def batches(self, split: DetectionSplit, seed: int, first: int = 0) -> Iterator[list[dict[str, Any]]]:
        """This rank's part of the batches from that of the ``first`` iteration on, as Detectron2's models take them.

        Landscape and portrait pictures are apart.
        """
        draws, size = (
            Draws(split, self._schedule, seed, DrawMapper(self.cfg)),
            self._schedule.images_per_batch,
        )
        shapes = ((position, draws.shape(position)) for position in range(len(draws)))
        undecoded = ({"height": height, "width": width, "at": at} for at, (height, width) in shapes)
        grouped = islice(AspectRatioGroupedDataset(undecoded, size), first, None)
        own = (each["at"] for batch in grouped for each in batch[own_share()])
        loaded = draws.loader(self._device, own)
        while batch := list(islice(loaded, size // world_size())):
            yield batch

    @torch.no_grad()
    def detect(self, image: Tensor) -> Detections:
        """The detections in an uint8 picture ``[3, H, W]``, in its pixels, on the CPU."""
        self.model.eval()
        pixels = T.AugInput(_channels_last(image))
        self._test_augmentation(pixels)
        height, width = image.shape[1:]
        (output,) = self.model([{"image": _channels_first(pixels.image), "height": height, "width": width}])
        found = output["instances"].to("cpu")
        masks = run_lengths(found.pred_masks) if self._masks else None
        return Detections(found.pred_boxes.tensor, found.scores, found.pred_classes, masks)


def load_encoder(model: GeneralizedRCNN, encoder: Encoder) -> None:
    """Copy the encoder's weights into a C4 detector: stem to res4 into its backbone, res5 into its box head.

    Every tensor must find its place; only the extra norm after res5 keeps its own values.
    """
    state = to_detectron2(encoder.backbone.state_dict())
    res5 = {name.removeprefix("res5."): tensor for name, tensor in state.items() if name.startswith("res5.")}
    own_norm = {f"norm.{k}": v for k, v in model.roi_heads.res5.norm.state_dict().items()}
    model.roi_heads.res5.load_state_dict({**res5, **own_norm})
    model.backbone.load_state_dict({k: v for k, v in state.items() if not k.startswith("res5.")})


def _channels_last(image: Tensor) -> np.ndarray:
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def _channels_first(pixels: np.ndarray) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


@contextmanager
def _watched(iteration: int) -> Iterator[None]:
    """Take what Detectron2's models log in training and drop it, and turn its FloatingPointError into our failure.

    A storage for the whole training would keep every number of every iteration.
    """
    with EventStorage(iteration):
        try:
            yield
        except FloatingPointError as error:
            raise not_finite(str(error), iteration) from error


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which Detectron2's augmentations draw from, and restore it."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
