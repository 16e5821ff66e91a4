"""The schedule of a detector's fine-tuning, in the vocabulary of Detectron2, and the published ones as presets."""

from __future__ import annotations

from dataclasses import dataclass, replace

from twinbench.foundation.errors import InputError

IMAGES_PER_DEVICE = 2


@dataclass(frozen=True)
class Schedule:
    """SGD with linear warm-up and steps, for a number of images per batch.

    The rate at a 0-based iteration is ``base_lr`` times ``gamma`` for every one of ``steps`` that it has reached; over
    the first ``warmup_iterations`` it rises linearly from ``warmup_factor`` times that. Norm layers have no weight
    decay. Training pictures have a shorter side drawn from ``train_sizes`` pixels, test pictures ``test_size``, and no
    longer side than ``max_size``. Of each picture the proposal network hands on ``train_proposals`` regions, of which
    ``regions`` train the box head, or ``test_proposals``. ``precise_bn`` batches re-estimate the statistics of batch
    norm in the end.
    """

    images_per_batch: int
    base_lr: float
    steps: tuple[int, ...]
    warmup_iterations: int
    warmup_factor: float
    iterations: int
    train_sizes: tuple[int, ...]
    test_size: int
    max_size: int = 1333
    momentum: float = 0.9
    weight_decay: float = 1e-4
    gamma: float = 0.1
    horizontal_flip: bool = True
    train_proposals: int = 2000
    test_proposals: int = 1000
    regions: int = 512
    precise_bn: int = 200

    @property
    def anchor_sizes(self) -> tuple[float, ...]:
        """The sides of the square anchors in pixels: 32 to 512 on pictures of 800 pixels, in proportion on others."""
        return tuple(side * self.test_size / 800 for side in (32, 64, 128, 256, 512))

    def scaled(self, devices: int) -> Schedule:
        """The same schedule for ``devices`` of two images each, by the linear rule (arXiv:1706.02677).

        With half the images per batch, half the learning rate and twice the iterations, steps, warm-up and batches for
        batch norm's statistics: the same number of images. Raises InputError unless the devices divide evenly.
        """
        images = devices * IMAGES_PER_DEVICE
        if devices < 1 or self.images_per_batch % images:
            most = self.images_per_batch // IMAGES_PER_DEVICE
            raise InputError(
                f"a schedule of {self.images_per_batch} images per batch does not divide to {devices} devices",
                next_step=f"use a divisor of {most}",
            )
        factor = self.images_per_batch // images
        return replace(
            self,
            images_per_batch=images,
            base_lr=self.base_lr / factor,
            steps=tuple(step * factor for step in self.steps),
            warmup_iterations=self.warmup_iterations * factor,
            iterations=self.iterations * factor,
            precise_bn=self.precise_bn * factor,
        )

    def learning_rate(self, iteration: int) -> float:
        """The rate of a 0-based iteration."""
        rate = self.base_lr * self.gamma ** sum(iteration >= step for step in self.steps)
        if iteration < self.warmup_iterations:
            share = iteration / self.warmup_iterations
            rate *= self.warmup_factor * (1 - share) + share
        return rate


# MoCo's configuration pascal_voc_R_50_C4_24k, eight devices (arXiv:1911.05722, appendix A.1).
VOC_24K = Schedule(
    images_per_batch=16,
    base_lr=0.02,
    steps=(18_000, 22_000),
    warmup_iterations=100,
    warmup_factor=0.001,
    iterations=24_000,
    train_sizes=tuple(range(480, 801, 32)),
    test_size=800,
)
# That of Barlow Twins (arXiv:2103.03230, appendix C.2): the same but for the rate and the warm-up.
VOC_24K_BT = replace(VOC_24K, base_lr=0.1, warmup_iterations=1_000, warmup_factor=0.333)
# Detectron2's mask_rcnn_R_50_C4_1x with the rate of Barlow Twins (arXiv:2103.03230, appendix C.2).
COCO_1X = Schedule(
    images_per_batch=16,
    base_lr=0.03,
    steps=(60_000, 80_000),
    warmup_iterations=1_000,
    warmup_factor=0.001,
    iterations=90_000,
    train_sizes=tuple(range(640, 801, 32)),
    test_size=800,
)
# For a CPU: minutes with a narrow encoder. No flip, for digits are not symmetric.
TINY = Schedule(
    images_per_batch=4,
    base_lr=0.02,
    steps=(210, 270),
    warmup_iterations=30,
    warmup_factor=0.001,
    iterations=300,
    train_sizes=(192,),
    test_size=192,
    max_size=320,
    horizontal_flip=False,
    train_proposals=200,
    test_proposals=60,
    regions=32,
    precise_bn=20,
)
# The heads of a pyramid have no norm and diverge at that rate; this is the usual 0.02 for 16 images.
TINY_PYRAMID = replace(TINY, base_lr=0.005)
