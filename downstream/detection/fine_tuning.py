"""What the detection protocols with a `Schedule` share, whatever library the detector comes from."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Protocol as Interface

import torch
from torch import Tensor, nn

from twinbench.data.detection import DetectionSplit
from twinbench.data.image_sets import ImageSet
from twinbench.downstream.checkpoints import Checkpoints
from twinbench.downstream.detection.coco_eval import (
    Detections,
    evaluation_remarks,
    require_objects,
)
from twinbench.downstream.detection.drawing import drawn
from twinbench.downstream.detection.outcomes import Detecting, Evaluator, detected
from twinbench.downstream.detection.schedules import Schedule
from twinbench.downstream.protocol import EvaluationContext, Measurement
from twinbench.downstream.randomness import seeded
from twinbench.encoders.backbones import Stem
from twinbench.encoders.encoder import Encoder
from twinbench.foundation.collectives import all_reduce_sum, rank
from twinbench.foundation.errors import RunFailure
from twinbench.foundation.ranks import in_shares, require_equal_shares

BOX_METRICS = ("box_ap", "box_ap50", "box_ap75")
BOX_AND_MASK_METRICS = (*BOX_METRICS, "mask_ap", "mask_ap50", "mask_ap75")
STAGES = ("res2", "res3", "res4", "res5")
STEM_STRIDES: Mapping[Stem, int] = {"imagenet": 4, "small": 1, "stride2": 2}
"""Pixels per position of the map that enters res2; each later stage halves the map."""
POSITIVE_SHARE = 0.25
"""The largest share of an image's regions that train the box head as objects, in both libraries."""
DETECTIONS = 100
"""The most detections of an image that a detector returns, in both libraries."""
_TOLERANCE = 1e-4
_CHECKED_PIXELS = 128
# Region heads and backbone together, in forward passes of the backbone at the size of the schedule (measured for the
# C4 detectors, ResNet-10 of width 32, schedule for CPUs).
_HEAD_COST = 4.6


class Detector(Interface):
    """A detector that starts from an encoder's weights."""

    def feature_maps(self, image: Tensor) -> Mapping[str, Tensor]:
        """Maps res2 to res5 ``[1, C, H, W]`` of an uint8 picture ``[3, H, W]`` at its own size, in evaluation mode."""

    def train(self, split: DetectionSplit, seed: int, checkpoints: Checkpoints) -> Iterator[int]:
        """Fine-tune by the schedule, yielding the 0-based number of every finished iteration."""

    def detect(self, image: Tensor) -> Detections:
        """The detections in an uint8 picture ``[3, H, W]``, in its pixels, on the CPU."""


@dataclass(frozen=True)
class FineTuning(Detecting):
    """Box AP, and mask AP where it is said, of a detector fine-tuned from the encoder on ``train``, over ``test``.

    The same schedule for every encoder; all layers are trained, with batch norm (MoCo, arXiv:1911.05722, appendix A.1);
    the state after the last iteration counts. ``evaluator`` is COCO's AP or that of VOC 2007.
    """

    name: str
    schedule: Schedule
    evaluator: Evaluator = "coco"
    metrics: tuple[str, ...] = BOX_METRICS

    @abstractmethod
    def build(self, encoder: Encoder, classes: int, masks: bool, device: torch.device) -> Detector:
        """A detector for so many classes that starts from the encoder."""

    def check(self, image_set: ImageSet) -> None:
        """Raise InputError if no object of the test split counts, before any work."""
        require_objects(image_set.detection("test"))

    def check_ranks(self, ranks: int) -> None:
        """Raise InputError unless the ranks have equally many images of a batch."""
        require_equal_shares(self.schedule.images_per_batch, ranks)

    def unmeasured(self, image_set: ImageSet) -> dict[str, str]:
        """The metrics of masks, on an image set that has none."""
        if image_set.detection("train").masks is not None:
            return {}
        return {name: "these images have no masks" for name in self.metrics if name.startswith("mask_")}

    def evaluate(self, encoder: Encoder, context: EvaluationContext) -> list[Measurement]:
        """``box_ap``, ``box_ap50``, ``box_ap75`` and perhaps the same of masks, over the test images.

        Raises InputError if the image set has no objects, RunFailure where the detector does not start from the
        encoder or its loss is not finite.
        """
        image_set = context.image_set
        self.check(image_set)
        train, test = image_set.detection("train"), image_set.detection("test")
        classes = len(image_set.detection_classes)
        masks = train.masks is not None and "mask_ap" in self.metrics
        if not masks:
            # They would be decoded, flipped and sent to the device with every picture, for a detector without use.
            train = replace(train, masks=None)
        context.remarks += evaluation_remarks(test, classes) if self.evaluator == "coco" else ()
        iterations = self.schedule.iterations
        context.details["schedule"] = asdict(self.schedule)
        context.remarks += crowding(train, test, ObjectLimits.of(self.schedule))
        with seeded(context.seed, context.device):
            detector = self.build(encoder, classes, masks, context.device)
            require_encoder_maps(detector.feature_maps, encoder, train.images[0])
            for iteration in detector.train(train, context.seed, context.checkpoints):
                context.progress(0.9 * (iteration + 1) / iterations)
            detections = []
            for found in in_shares(len(test), lambda i: detector.detect(test.images[i])):
                detections.append(found)
                context.progress(0.9 + 0.1 * len(detections) / (len(test) + 1))
        if rank():
            return []  # the precisions take long, and those of one rank count
        context.picture = drawn(test, detections, image_set.detection_classes)
        context.outcomes = detected(detections, test, classes, self.evaluator)
        measured = self.measure_again(context.outcomes, image_set)
        context.progress(1.0)
        return measured

    def forward_passes(self, image_set: ImageSet) -> float:
        """Pictures count by the area they are resized to, and for the region heads several times over."""
        area = self.schedule.test_size**2 / image_set.image_size**2
        trained = self.schedule.iterations * self.schedule.images_per_batch
        statistics = self.schedule.precise_bn * self.schedule.images_per_batch
        return _HEAD_COST * area * (3 * trained + statistics + len(image_set.detection("test")))


@dataclass(frozen=True)
class ObjectLimits:
    """How many of an image's regions a detector trains on and examines, and how many detections it returns.

    ``proposals`` are handed on in training, ``regions`` of them train the box head; ``examined`` are handed on in
    testing.
    """

    proposals: int
    regions: int
    examined: int
    detections: int = DETECTIONS

    @classmethod
    def of(cls, schedule: Schedule) -> ObjectLimits:
        """Those of a schedule."""
        return cls(schedule.train_proposals, schedule.regions, schedule.test_proposals)

    @property
    def positives(self) -> int:
        """The most regions of an image that train the box head as objects, in one iteration."""
        return int(POSITIVE_SHARE * self.regions)


def crowding(train: DetectionSplit, test: DetectionSplit, limits: ObjectLimits) -> list[str]:
    """Sentences on images with more objects than a detector trains on at a time, or can find; crowds do not count.

    Such an image lowers the AP of every encoder, and makes it depend on the library more than on the encoder.
    """
    crowds = train.crowd or [torch.zeros_like(labels, dtype=torch.bool) for labels in train.labels]
    trained = [int((~crowd).sum()) for crowd in crowds]
    tested = [int((~test.ignored(i)).sum()) for i in range(len(test))]
    said = [
        _more_than(
            limits.positives,
            trained,
            "training",
            f"of the {limits.regions} regions of an image that train the box head no more are objects",
        ),
        _more_than(limits.proposals, trained, "training", "no more regions of an image are proposed"),
    ]
    if limits.examined <= limits.detections:
        why = "no more regions of an image are examined, so the rest is missed"
        said.append(_more_than(limits.examined, tested, "test", why))
    else:
        why = "no more detections of an image are returned, so the rest is missed"
        said.append(_more_than(limits.detections, tested, "test", why))
    return [sentence for sentence in said if sentence is not None]


def _more_than(limit: int, counts: list[int], split: str, why: str) -> str | None:
    more = [count for count in counts if count > limit]
    if not more:
        return None
    have = "has" if len(more) == 1 else "have"
    return f"{len(more)} of {len(counts)} {split} images {have} more than {limit} objects (up to {max(more)}): {why}"


@torch.no_grad()
def require_encoder_maps(
    feature_maps: Callable[[Tensor], Mapping[str, Tensor]], encoder: Encoder, image: Tensor
) -> None:
    """Raise RunFailure unless a detector gives the encoder's maps res2 to res5 on an uint8 picture ``[3, H, W]``.

    ``feature_maps`` is that of the detector (see `Detector`).

    A detector that silently starts from other weights still trains and still gives an AP: this is the check that the
    number belongs to the encoder. It covers normalisation and channel order as well. A GPU computes in full precision
    meanwhile: its usual TF32 convolutions alone make a larger difference than is tolerated.
    """
    image = image[:, :_CHECKED_PIXELS, :_CHECKED_PIXELS]
    mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.mean, encoder.std))
    pixels = ((unit_floats(image) - mean) / std)[None]
    expected = copy.deepcopy(encoder.backbone).cpu().feature_maps(pixels)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = feature_maps(image)
    for stage in STAGES:
        difference = _relative_difference(found[stage].cpu(), expected[stage])
        if not difference < _TOLERANCE:
            raise RunFailure(
                f"the detector does not start from the encoder: {stage} differs by {difference:.2g}",
                where=f"encoder {encoder.checksum[:12]}",
                next_step="report this as a bug; no number was recorded",
            )


def unit_floats(images: Tensor) -> Tensor:
    """Uint8 images of any shape as float32 from 0 to 1."""
    return images.float() / 255


def _relative_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected value; infinite for maps of different sizes."""
    if found.shape != expected.shape:
        return math.inf
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def finite_total(losses: Mapping[str, Tensor], iteration: int) -> Tensor:
    """The sum of a detector's losses on this rank; every rank raises RunFailure if the sum over all is not finite."""
    total = torch.stack([loss.reshape(()) for loss in losses.values()]).sum()
    of_all = all_reduce_sum(total.detach())
    if not torch.isfinite(of_all):
        raise not_finite(f"the detection loss became {of_all.item()}", iteration)
    return total


def require_finite(model: nn.Module, iteration: int) -> None:
    """Raise RunFailure if a weight or statistic of a model is not finite after a 0-based iteration.

    The last step of a training can diverge after a loss that was finite. Such a detector finds nothing, and its AP of
    0 would look like a measurement.
    """
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise not_finite(f"{name} is not finite", iteration)


def not_finite(what: str, iteration: int) -> RunFailure:
    """The failure of a training that diverged at a 0-based iteration."""
    return RunFailure(
        f"{what} at iteration {iteration}",
        next_step="the encoder's features are unusable with this schedule; other rows are not affected",
    )
