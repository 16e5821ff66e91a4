"""torchvision's detectors on several ranks: see `downstream.detection.shares`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from twinbench.downstream.detection.shares import drawn_in_turn, shares_of_means
from twinbench.foundation.collectives import rank, world_size
from twinbench.foundation.norms import use_global_batches
from twinbench.foundation.ranks import largest


class SharedTransform(GeneralizedRCNNTransform):
    """torchvision's resizing and padding of a batch of which the ranks have equally many pictures."""

    def torch_choice(self, k: list[int]) -> int:
        """The size of a training picture, drawn for the neighbours that the other ranks have as well."""
        drawn = [super(SharedTransform, self).torch_choice(k) for _ in range(world_size())]
        return drawn[rank()]

    def max_by_axis(self, the_list: list[list[int]]) -> list[int]:
        """The shape that holds all pictures: in training those of every rank."""
        shape = super().max_by_axis(the_list)
        return [round(side) for side in largest(list(map(float, shape)))] if self.training else shape


class SharedSampler(BalancedPositiveNegativeSampler):
    """torchvision's choice of regions; ``objects`` and ``taken`` are how many of the last pictures it chose."""

    objects = taken = 0

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks of the objects and of the background that are chosen from each picture's regions ``[R]``."""
        choose = super().__call__
        objects, background = [], []
        for labels in matched_idxs:
            found = drawn_in_turn(labels, partial(choose, [labels]))
            objects += found[0]
            background += found[1]
        self.objects = sum(int(mask.sum()) for mask in objects)
        self.taken = self.objects + sum(int(mask.sum()) for mask in background)
        return objects, background


class SharedPooler(MultiScaleRoIAlign):
    """torchvision's cutting of regions from maps, whose scales it infers from the largest picture of a first batch."""

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """The maps' values in the boxes; in training the first batch is that of all ranks."""
        if self.training and self.scales is None:
            height, width = largest([float(max(sides)) for sides in zip(*image_shapes, strict=True)])
            image_shapes = [(round(height), round(width))]
        values: Tensor = super().forward(x, boxes, image_shapes)
        return values


def share_over_ranks(detector: GeneralizedRCNN) -> None:
    """Let a detector train on this rank's part of each batch as one process does on the whole."""
    use_global_batches(detector)
    old = detector.transform
    detector.transform = SharedTransform(
        old.min_size, old.max_size, old.image_mean, old.image_std, old.size_divisible, old.fixed_size
    )
    for part in (detector.rpn, detector.roi_heads):
        sampler = part.fg_bg_sampler
        part.fg_bg_sampler = SharedSampler(sampler.batch_size_per_image, sampler.positive_fraction)
    for name in ("box_roi_pool", "mask_roi_pool"):
        pooler = getattr(detector.roi_heads, name, None)
        if isinstance(pooler, MultiScaleRoIAlign):  # the one that infers scales
            setattr(detector.roi_heads, name, _shared(pooler))


def shared_losses(detector: GeneralizedRCNN, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What this rank adds to each loss of the whole batch, of a detector that `share_over_ranks` has changed."""
    anchors, regions = detector.rpn.fg_bg_sampler, detector.roi_heads.fg_bg_sampler
    counts = {
        "loss_objectness": anchors.taken,
        "loss_rpn_box_reg": anchors.taken,
        "loss_classifier": regions.taken,
        "loss_box_reg": regions.taken,
        "loss_mask": regions.objects,
    }
    return shares_of_means(losses, counts)


def _shared(pooler: MultiScaleRoIAlign) -> SharedPooler:
    return SharedPooler(
        pooler.featmap_names,
        pooler.output_size,
        pooler.sampling_ratio,
        canonical_scale=pooler.canonical_scale,
        canonical_level=pooler.canonical_level,
    )
