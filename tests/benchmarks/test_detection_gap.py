"""Each switch of the comparison of detectors does what it says, and nothing else does."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align

from twinbench.data.detection import DetectionSplit
from twinbench.downstream.detection.schedules import TINY
from twinbench.downstream.detection.torchvision_rcnn import C4Body
from twinbench.downstream.features import FeatureStore
from twinbench.downstream.protocol import EvaluationContext, protocol
from twinbench.downstream.randomness import seeded
from twinbench.encoders.backbones import build_backbone
from twinbench.encoders.encoder import Encoder, EncoderInfo
from twinbench.encoders.foreign.detectron2_names import from_detectron2
from twinbench.foundation.errors import InputError

CPU = torch.device("cpu")
SHORT = replace(
    TINY,
    images_per_batch=2,
    iterations=2,
    steps=(1,),
    warmup_iterations=1,
    train_sizes=(64,),
    test_size=64,
    precise_bn=2,
)
GREY = (0.5, 0.5, 0.5)


@pytest.fixture
def gap(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import detection_gap

    return detection_gap


@pytest.fixture
def encoder():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build_backbone("resnet10", width=8, stem="stride2")
    info = EncoderInfo("resnet10", 8, "stride2", backbone.feature_dim, 32, GREY, GREY, "random", "none")
    return Encoder(backbone, info, checksum="none")


def squares():
    """Four pictures of one bright square each."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 60, (4, 3, 96, 96), generator=generator).to(torch.uint8)
    images[:, :, 20:44, 30:54] = 230
    return DetectionSplit(images, 4 * [torch.tensor([[30.0, 20, 54, 44]])], 4 * [torch.tensor([0])])


class Squares:
    """An image set of them."""

    detection_classes = ("square",)

    def detection(self, name):
        return squares()


def made(gap, row, encoder):
    with seeded(0, CPU):
        return gap.detector_of(row, encoder, 3, SHORT)


def test_a_row_without_switches_is_the_protocol(gap, encoder):
    chosen = replace(protocol("detection/c4-torchvision-v2"), schedule=SHORT)
    expected = chosen.evaluate(encoder, EvaluationContext(Squares(), FeatureStore(None), seed=3))
    found = gap.average_precision_of("torchvision", encoder, gap.Scenes(squares(), squares(), 1), 3, SHORT)
    assert found == {measurement.metric: measurement.value for measurement in expected}


def test_every_switch_trains(gap, encoder):
    scenes = gap.Scenes(squares(), squares(), 1)
    assert 0 <= gap.average_precision_of("torchvision+all", encoder, scenes, 0, SHORT)["box_ap"] <= 100


def test_an_unknown_switch_is_refused(gap, encoder):
    for row in ("torchvison", "torchvision+predictor"):
        with pytest.raises(InputError, match="unknown"):
            made(gap, row, encoder)


def test_predictors_begin_small(gap, encoder):
    predictor = made(gap, "torchvision+predictors", encoder).model.roi_heads.box_predictor
    assert predictor.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.2)
    assert predictor.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.2)
    assert not predictor.cls_score.bias.any()


def test_anchors_have_the_area_of_their_size(gap, encoder):
    generator = made(gap, "torchvision+anchors", encoder).model.rpn.anchor_generator
    maps = torch.zeros(1, 4, 8, 8)
    (anchors,) = generator(ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)]), [maps])
    sides = anchors[:, 2:] - anchors[:, :2]
    areas = sides.prod(1).reshape(-1, 15).mean(0)
    torch.testing.assert_close(areas, torch.tensor(3 * [side**2 for side in SHORT.anchor_sizes]))


def test_regions_are_cut_half_a_place_further_up_and_left(gap, encoder):
    pool = made(gap, "torchvision+alignment", encoder).model.roi_heads.box_roi_pool
    maps = torch.rand(1, 2, 12, 12)
    box = torch.tensor([[16.0, 24, 56, 64]])
    expected = roi_align(maps, [box - 4], 14, 1 / 8, 0, aligned=False)
    torch.testing.assert_close(pool({"res4": maps}, [box], [(96, 96)]), expected)


@pytest.mark.parametrize(("switch", "loss"), [("rpn-loss", "loss_rpn_box_reg"), ("box-loss", "loss_box_reg")])
def test_a_loss_becomes_absolute_and_no_other(switch, loss, gap, encoder):
    images, targets = (
        [torch.rand(3, 64, 64)],
        [{"boxes": torch.tensor([[9.0, 9, 30, 30]]), "labels": torch.tensor([1])}],
    )
    losses = []
    for row in ("torchvision", f"torchvision+{switch}"):
        model = made(gap, row, encoder).model
        with seeded(1, CPU):
            losses.append(model(images, targets))
    plain, absolute = losses
    assert {name for name in plain if plain[name] != absolute[name]} == {loss}
    # |d| exceeds its smooth version by at most half of 1/9 for each of four coordinates of a positive.
    assert 0 < absolute[loss] - plain[loss] < 4 / 18


def test_pictures_are_resized_as_pillow_does(gap, encoder):
    model = made(gap, "torchvision+resizing", encoder).model
    picture = torch.randint(0, 256, (3, 100, 131), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    target = {"boxes": torch.tensor([[0.0, 0, 131, 100]])}
    prepared, (resized,) = model.eval().transform([picture / 255], [target])
    ((height, width),) = prepared.image_sizes
    assert (height, width) == (64, round(131 * 0.64))
    expected = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    found = (prepared.tensors[0, :, :height, :width] * 0.5 + 0.5) * 255
    assert np.array_equal(found.round().permute(1, 2, 0).numpy(), np.array(expected))
    torch.testing.assert_close(resized["boxes"], torch.tensor([[0.0, 0, width, height]]))


def give_weights(detectron2, torchvision, encoder, classes):
    """Copy every weight of Detectron2's detector into torchvision's, whose order of anchors and classes is another."""
    theirs, own = detectron2.model, torchvision.model
    backbone = encoder.fresh_backbone()
    backbone.load_state_dict(from_detectron2(theirs.state_dict()))
    own.backbone.load_state_dict(C4Body(backbone).state_dict())
    own.roi_heads.box_head.res5.load_state_dict(backbone.layer4.state_dict())
    own.roi_heads.box_head.norm.load_state_dict(theirs.roi_heads.res5.norm.state_dict())
    head, own_head = theirs.proposal_generator.rpn_head, own.rpn.head
    own_head.conv[0][0].load_state_dict(head.conv.state_dict())
    anchors = torch.tensor([3 * size + ratio for ratio in range(3) for size in range(5)])
    names = [torch.tensor([classes, *range(classes)]), anchors]
    layers = [theirs.roi_heads.box_predictor.cls_score, head.objectness_logits]
    for order, layer, own_layer in zip(
        names, layers, [own.roi_heads.box_predictor.cls_score, own_head.cls_logits], strict=True
    ):
        own_layer.load_state_dict({name: tensor[order] for name, tensor in layer.state_dict().items()})
    corners = (4 * anchors[:, None] + torch.arange(4)).flatten()
    own_head.bbox_pred.load_state_dict({n: t[corners] for n, t in head.anchor_deltas.state_dict().items()})
    boxes = theirs.roi_heads.box_predictor.bbox_pred.state_dict()
    none = {name: torch.zeros(4, *tensor.shape[1:]) for name, tensor in boxes.items()}
    own.roi_heads.box_predictor.bbox_pred.load_state_dict({n: torch.cat([none[n], boxes[n]]) for n in boxes})


@pytest.mark.detectron2
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning", "ignore:torch.meshgrid")
def test_with_every_switch_torchvisions_detector_computes_what_detectron2s_does(gap, encoder):
    """From the same weights, whose copying is part of the test: the same detections and losses."""
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from detectron2.utils.events import EventStorage

    # All the regions train, so their losses are no draw; anchors are drawn.
    schedule = replace(TINY, regions=4000)
    split = gap._spot_pictures(4, seed=0)
    with seeded(0, CPU), EventStorage():
        theirs, own = (
            gap.detector_of(row, encoder, 2, schedule) for row in ("detectron2", "torchvision+all")
        )
        for layer in (
            theirs.model.roi_heads.box_predictor.cls_score,
            theirs.model.roi_heads.box_predictor.bbox_pred,
        ):
            torch.nn.init.normal_(layer.weight, std=0.1)
        give_weights(theirs, own, encoder, 2)
        expected, found = theirs.detect(split.images[0]), own.detect(split.images[0])
        assert len(found.boxes) > 10
        for name in ("boxes", "scores", "labels"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-3, atol=1e-3)
        theirs.model.train()
        own.model.train()
        expected, found = (
            theirs.model(next(theirs.batches(split, 0))),
            own.model(*next(own._batches(split, 0))),
        )
    for name, own_name, tolerance in (
        ("loss_cls", "loss_classifier", 1e-3),
        ("loss_box_reg", "loss_box_reg", 1e-3),
        ("loss_rpn_loc", "loss_rpn_box_reg", 1e-2),
        ("loss_rpn_cls", "loss_objectness", 1e-2),
    ):
        assert found[own_name].item() == pytest.approx(expected[name].item(), rel=tolerance), name


def test_spots_are_many_small_and_seen(gap):
    split = gap._spot_pictures(12, seed=0)
    again = gap._spot_pictures(12, seed=0)
    assert torch.equal(split.images, again.images)
    assert split.images.shape == (12, 3, 256, 256)
    sides = torch.cat(split.boxes)[:, 2:] - torch.cat(split.boxes)[:, :2]
    assert 12 <= sides.prod(1).sqrt().median() <= 17
    assert sides.min() >= 4
    assert len({len(boxes) for boxes in split.boxes}) > 6


def test_a_share_of_the_schedule_has_its_steps_in_proportion(gap):
    half = gap.shortened(TINY, 0.5)
    assert (half.iterations, half.steps, half.warmup_iterations, half.precise_bn) == (150, (105, 135), 15, 10)
    assert gap.shortened(TINY, 1) == TINY


def test_the_tables_have_mean_deviation_and_number_of_seeds(gap):
    measured = [
        {
            "images": "spots",
            "share": 0.5,
            "row": "torchvision",
            "encoder": "supervised",
            "seed": 0,
            "box_ap": 10.0,
        },
        {
            "images": "spots",
            "share": 0.5,
            "row": "torchvision",
            "encoder": "supervised",
            "seed": 1,
            "box_ap": 12.0,
        },
        {
            "images": "spots",
            "share": 0.5,
            "row": "detectron2",
            "encoder": "random_init",
            "seed": 0,
            "box_ap": 3.0,
        },
        {
            "images": "spots",
            "share": 1,
            "row": "detectron2",
            "encoder": "random_init",
            "seed": 0,
            "box_ap": 5.0,
        },
    ]
    lines = gap.tables(measured).splitlines()
    assert lines[0] == "spots, 0.5 of the schedule:"
    assert [cell.strip() for cell in lines[4].split("|")] == ["", "torchvision", "11.0 ± 1.4 (2)", "-", ""]
    assert [cell.strip() for cell in lines[5].split("|")] == ["", "detectron2", "-", "3.0 (1)", ""]
    assert lines[7] == "spots, the whole schedule:"
