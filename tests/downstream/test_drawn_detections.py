"""The picture of a detector's findings, pixel by pixel where it can be said what they are."""

import torch

from twinbench.data.detection import DetectionSplit
from twinbench.downstream.detection.coco_eval import Detections, run_lengths
from twinbench.downstream.detection.drawing import drawn

YELLOW = torch.tensor([255, 255, 0])


def picture(image, found):
    split = DetectionSplit(images=image[None], boxes=[torch.zeros(0, 4)], labels=[torch.zeros(0).long()])
    return drawn(split, [found], ("<b>one</b>", "two"))


def found(boxes, scores, masks=None):
    return Detections(
        torch.tensor(boxes).float(), torch.tensor(scores), torch.ones(len(scores)).long(), masks
    )


def test_a_box_is_drawn_where_it_is_at_the_size_that_is_shown():
    """A wide picture of 96 x 48 is shown at twice the size, on white below."""
    drawing = picture(torch.zeros(3, 48, 96, dtype=torch.uint8), found([[10, 20, 40, 44]], [0.9]))
    assert drawing.shape == (3, 192, 192)
    assert (drawing[:, 96:] == 255).all()
    for row, column in ((88, 50), (60, 20), (60, 80)):  # lower, left and right edge
        assert torch.equal(drawing[:, row, column].long(), YELLOW)
    assert (drawing[:, 60, 50] == 0).all(), "nothing is drawn inside"


def test_only_the_surest_are_drawn_and_nothing_where_nothing_was_found():
    image = torch.full((3, 96, 96), 7, dtype=torch.uint8)
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long())
    assert (picture(image, none) == 7).all()
    boxes = [[60 + i, 60, 90, 90] for i in range(3)] + [[2, 70, 12, 90]]
    drawing = picture(image, found(boxes, [0.9, 0.8, 0.7, 0.1]))
    assert (drawing[:, :, :40] == 7).all(), "the fourth is left out"


def test_a_mask_tints_its_pixels():
    mask = torch.zeros(1, 96, 96, dtype=torch.bool)
    mask[:, 50:60, 50:60] = True
    drawing = picture(
        torch.zeros(3, 96, 96, dtype=torch.uint8), found([[40, 40, 80, 80]], [0.5], run_lengths(mask))
    )
    inside, outside = drawing[:, 110, 110].int(), drawing[:, 130, 130].int()
    assert (outside == 0).all()
    assert inside[0] == inside[1] > 50
    assert inside[2] == 0
