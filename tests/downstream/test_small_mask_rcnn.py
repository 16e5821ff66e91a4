from collections import OrderedDict
from dataclasses import replace
from functools import partial

import pytest
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform

import twinbench.downstream.detection.small_mask_rcnn as small
from twinbench.downstream.detection.coco_eval import average_precision
from twinbench.downstream.detection.fine_tuning import require_encoder_maps
from twinbench.downstream.features import FeatureStore
from twinbench.downstream.protocol import EvaluationContext, protocol
from twinbench.downstream.randomness import seeded
from twinbench.encoders.backbones import build_backbone
from twinbench.encoders.encoder import Encoder
from twinbench.foundation.errors import InputError, RunFailure

CPU = torch.device("cpu")


def require_maps(detector, encoder, scene):
    require_encoder_maps(partial(small.pyramid_maps, detector), encoder, scene)


def test_body_starts_with_the_features_of_its_encoder_and_no_other(make_encoder, image_set):
    scene = image_set.detection("train").images[0]
    first, second = make_encoder(0), make_encoder(1)
    detector = small.build_detector(first, 3, 64, 64)
    require_maps(detector, first, scene)
    with pytest.raises(RunFailure, match="does not start from the encoder"):
        require_maps(detector, second, scene)


def test_a_single_altered_tensor_is_noticed(encoder, image_set):
    detector = small.build_detector(encoder, 3, 64, 64)
    with torch.no_grad():
        detector.backbone.body.layer4[0].bn2.running_mean += 0.1
    with pytest.raises(RunFailure, match="res5"):
        require_maps(detector, encoder, image_set.detection("train").images[0])


def test_another_normalisation_is_noticed(encoder, image_set):
    detector = small.build_detector(encoder, 3, 64, 64)
    detector.transform = GeneralizedRCNNTransform(64, 64, [0.0, 0.0, 0.0], [1.0, 1.0, 1.0])
    with pytest.raises(RunFailure, match="res2"):
        require_maps(detector, encoder, image_set.detection("train").images[0])


def test_no_number_is_measured_with_other_weights(encoder, context, make_encoder, monkeypatch):
    monkeypatch.setattr(type(encoder), "fresh_backbone", lambda self: make_encoder(7).backbone.train())
    with pytest.raises(RunFailure, match="does not start from the encoder"):
        protocol("detection/small-mask-rcnn-torchvision-v2").evaluate(encoder, context)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80)])
def test_scenes_are_not_resized(encoder, height, width):
    detector = small.build_detector(encoder, 3, height, width)
    image = torch.rand(3, height, width)
    prepared, _ = detector.transform([image])
    assert prepared.image_sizes == [(height, width)]
    expected = (image - 0.5) / 0.25
    torch.testing.assert_close(prepared.tensors[0, :, :height, :width], expected, atol=1e-6, rtol=0)


def test_every_tensor_of_the_body_is_trained(encoder, image_set):
    detector = small.build_detector(encoder, 3, 64, 64)
    before = {name: tensor.clone() for name, tensor in detector.backbone.body.state_dict().items()}
    list(
        small.train_detector(detector, image_set.detection("train"), 2, torch.Generator().manual_seed(0), CPU)
    )
    after = detector.backbone.body.state_dict()
    assert [name for name in before if torch.equal(before[name], after[name])] == []


@pytest.mark.numerics
def test_overfitting_a_few_scenes_raises_the_precision(encoder, image_set, monkeypatch, seed_offset, margin):
    monkeypatch.setattr(small, "BATCH", 4)
    scenes = image_set.detection("test")
    with seeded(seed_offset, CPU) as generator:
        detector = small.build_detector(encoder, 3, 64, 64)
        before = average_precision(scenes, small.detect(detector, scenes.images, CPU), 3)
        list(small.train_detector(detector, scenes, 60, generator, CPU))
    after = average_precision(scenes, small.detect(detector, scenes.images, CPU), 3)
    margin.at_most("AP50 untrained", before["box_ap50"], 10)
    margin.at_least("AP50", after["box_ap50"], 40)
    margin.at_least("mask AP50", after["mask_ap50"], 40)


def test_evaluation_repeats_itself_and_leaves_the_encoder_alone(encoder, image_set, monkeypatch):
    monkeypatch.setattr(small, "STEPS", 4)
    before = {name: tensor.clone() for name, tensor in encoder.backbone.state_dict().items()}
    results = []
    for _ in range(2):
        state = torch.get_rng_state()
        fractions = []
        context = EvaluationContext(image_set, FeatureStore(None), seed=5, progress=fractions.append)
        results.append(protocol("detection/small-mask-rcnn-torchvision-v2").evaluate(encoder, context))
        assert torch.equal(torch.get_rng_state(), state)
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0
    assert results[0] == results[1]
    assert [m.metric for m in results[0]] == [
        "box_ap",
        "box_ap50",
        "box_ap75",
        "mask_ap",
        "mask_ap50",
        "mask_ap75",
    ]
    assert all(m.n == 6 and 0 <= m.value <= 100 for m in results[0])
    assert not encoder.backbone.training
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_region_has_one_mask_whatever_its_class(encoder):
    predictor = small.build_detector(encoder, 3, 64, 64).roi_heads.mask_predictor
    logits = predictor(torch.randn(5, 32, 14, 14))
    assert logits.shape == (5, 4, 28, 28)
    assert all(torch.equal(logits[:, 0], logits[:, i]) for i in range(4))
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("stem", ["stride2", "small", "imagenet"])
@pytest.mark.parametrize("pooler", ["box_roi_pool", "mask_roi_pool"])
def test_regions_come_from_res3_unless_they_are_as_large_as_the_scene(encoder, stem, pooler):
    side = 96
    backbone = build_backbone("resnet10", width=8, stem=stem)
    detector = small.build_detector(
        Encoder(backbone, replace(encoder.info, stem=stem), checksum=stem), 3, side, side
    )
    # each level of the pyramid says its own number at every place, so what is pooled says where it is from
    pyramid = detector.backbone.eval()(torch.zeros(1, 3, side, side))
    numbered = OrderedDict((stage, torch.full_like(maps, int(stage[-1]))) for stage, maps in pyramid.items())
    sides = [4, side / 4, side / 2, side / 2 + 1, side - 1, side]
    boxes = torch.tensor([[0, 0, size, size] for size in sides])
    pooled = getattr(detector.roi_heads, pooler)(numbered, [boxes], [(side, side)])
    assert pooled.mean(dim=(1, 2, 3)).tolist() == pytest.approx([3, 3, 3, 3, 3, 4])


def test_res3_of_the_pyramid_carries_the_coarser_maps(encoder):
    pyramid = small.build_detector(encoder, 3, 64, 64).backbone
    pyramid(torch.rand(1, 3, 64, 64))["res3"].square().sum().backward()
    for stage in (pyramid.body.layer2, pyramid.body.layer3, pyramid.body.layer4):
        assert all(parameter.grad.abs().max() > 0 for parameter in stage.parameters())


def test_scenes_too_small_for_the_backbone_are_an_input_error(encoder):
    with pytest.raises(InputError, match="too small"):
        small.build_detector(encoder, 3, 16, 16)


def test_a_loss_that_is_not_finite_is_a_failure(encoder, image_set):
    detector = small.build_detector(encoder, 3, 64, 64)
    torch.nn.init.constant_(detector.backbone.fpn.inner_blocks[0][0].bias, float("nan"))
    with pytest.raises(RunFailure, match="step 0"):
        next(small.train_detector(detector, image_set.detection("train"), 2, torch.Generator(), CPU))
