"""Detection with Detectron2, used in-process where it is installed: Faster and Mask R-CNN C4.

Detectron2 is not in the package index; its installation guide tells how to build it from source. Without it these
protocols are known by name and refuse to start.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import torch

from twinbench.data.image_sets import ImageSet
from twinbench.downstream.detection.fine_tuning import BOX_AND_MASK_METRICS, Detector, FineTuning
from twinbench.downstream.detection.schedules import COCO_1X, TINY, VOC_24K, VOC_24K_BT
from twinbench.downstream.protocol import register_protocol
from twinbench.encoders.encoder import Encoder
from twinbench.foundation.errors import InputError

INSTALLATION_GUIDE = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"


def detectron2_problem() -> str | None:
    """Why Detectron2 cannot be used, as the end of a sentence; None where it can."""
    # A folder of its source in the path is none: it has no compiled part.
    if find_spec("detectron2") is None or find_spec("detectron2._C") is None:
        return "is not installed"
    try:
        import_module("detectron2._C")
    except ImportError as error:
        return f"was built against another torch ({error})"
    return None


def detectron2_found() -> bool:
    """Whether Detectron2 is installed and fits the installed torch."""
    return detectron2_problem() is None


def require_detectron2(protocol_name: str) -> None:
    """Raise InputError if Detectron2 cannot be used."""
    problem = detectron2_problem()
    if problem is not None:
        raise InputError(
            f"{protocol_name} needs Detectron2, which {problem}",
            nearest="detection/c4-torchvision-v2",
            next_step=f"build it against the installed torch ({INSTALLATION_GUIDE}), or use the nearest protocol",
        )


class Detectron2C4(FineTuning):
    """Detectron2's C4 detector; without Detectron2 `check` raises InputError, before any work.

    Masks are trained on as bitmaps (``INPUT.MASK_FORMAT``), which every image set has, not as polygons.
    """

    def check(self, image_set: ImageSet) -> None:
        """As `FineTuning.check`; raises InputError if Detectron2 is not installed."""
        require_detectron2(self.name)
        super().check(image_set)

    def start_ranks(self, main: Callable[[], None], devices: int, nodes: int) -> int | None:
        """By Detectron2's launcher."""
        from twinbench.downstream.detection.d2.launcher import launch_ranks

        return launch_ranks(main, devices, nodes)

    def build(self, encoder: Encoder, classes: int, masks: bool, device: torch.device) -> Detector:
        """A Faster R-CNN C4, or a Mask R-CNN C4 for a set with masks."""
        from twinbench.downstream.detection.d2.detector import Detectron2Detector

        return Detectron2Detector(encoder, self.schedule, classes, masks, device)


# The schedule for CPUs, COCO's AP of boxes.
register_protocol(Detectron2C4("detection/c4-detectron2-v1", TINY))

# Faster R-CNN on VOC07+12 (24k iterations, 16 images per batch), with VOC 2007's AP: with MoCo's learning rate
# (arXiv:1911.05722, table 2; MoCo v2's row is of arXiv:2003.04297, table 1), and with the learning rate and warm-up of
# Barlow Twins (arXiv:2103.03230, table 4, VOC07+12). Each is there again, scaled to one device of two images (1gpu);
# batch norm sees fewer of them, so its rows are apart.
_voc = partial(Detectron2C4, evaluator="voc2007")
register_protocol(_voc("detection/voc-c4-detectron2-v1", VOC_24K))
register_protocol(_voc("detection/voc-c4-detectron2-1gpu-v1", VOC_24K.scaled(devices=1)))
register_protocol(_voc("detection/voc-c4-bt-detectron2-v1", VOC_24K_BT))
register_protocol(_voc("detection/voc-c4-bt-detectron2-1gpu-v1", VOC_24K_BT.scaled(devices=1)))

# Mask R-CNN on COCO (1x, 16 images per batch), with COCO's AP of boxes and masks and the learning rate of Barlow Twins
# (arXiv:2103.03230, table 4, COCO), and the same scaled to one device.
_coco = partial(Detectron2C4, metrics=BOX_AND_MASK_METRICS)
register_protocol(_coco("detection/coco-c4-detectron2-v1", COCO_1X))
register_protocol(_coco("detection/coco-c4-detectron2-1gpu-v1", COCO_1X.scaled(devices=1)))
