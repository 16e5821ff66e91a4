"""What the detection protocols share: detections as outcomes, and the average precisions computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from twinbench.data.detection import DetectionSplit
from twinbench.data.image_sets import ImageSet
from twinbench.downstream.detection.coco_eval import (
    Detections,
    average_precision,
    coco_results,
    from_coco_results,
    resampled_average_precision,
)
from twinbench.downstream.detection.voc_eval import resampled_voc_average_precision, voc_average_precision
from twinbench.downstream.outcomes import resamples
from twinbench.downstream.protocol import Measurement, Protocol
from twinbench.foundation.errors import InputError
from twinbench.foundation.outcomes import Outcomes

Evaluator = Literal["coco", "voc2007"]


class Detecting(Protocol):
    """A protocol whose numbers are average precisions: ``evaluator`` is COCO's or that of VOC 2007."""

    needs = "detection"
    evaluator: Evaluator = "coco"

    def measure_again(self, outcomes: Outcomes, image_set: ImageSet | None) -> list[Measurement]:
        """The average precisions of the detections in the outcomes."""
        return precisions(outcomes, image_set, self.evaluator)


def detected(
    detections: Sequence[Detections], truth: DetectionSplit, classes: int, evaluator: Evaluator
) -> Outcomes:
    """The outcomes of detections in the images of a test split, with the average precisions of resampled images."""
    resampled = resampled_average_precision if evaluator == "coco" else resampled_voc_average_precision
    results = coco_results(detections)
    weights = resamples(len(truth))
    arrays = resampled(truth, from_coco_results(results, len(truth)), classes, weights)
    return Outcomes({f"replicates/{metric}": values for metric, values in arrays.items()}, results)


def precisions(outcomes: Outcomes, image_set: ImageSet | None, evaluator: Evaluator) -> list[Measurement]:
    """The average precisions of the detections. Raises InputError without the images' objects or detections."""
    if image_set is None or outcomes.detections is None:
        raise InputError(
            "average precisions need the objects of the test images and the detections in them",
            next_step="name the folder of the image sets",
            option="data-root",
        )
    truth, classes = image_set.detection("test"), len(image_set.detection_classes)
    compute = average_precision if evaluator == "coco" else voc_average_precision
    found = from_coco_results(outcomes.detections, len(truth))
    return [
        Measurement(metric, value, len(truth)) for metric, value in compute(truth, found, classes).items()
    ]
