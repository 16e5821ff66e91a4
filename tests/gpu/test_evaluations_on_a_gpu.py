"""Evaluations measure on a GPU what they measure on the CPU."""

from dataclasses import replace

import pytest
import torch

import twinbench.downstream.detection.small_mask_rcnn as small
from twinbench.downstream.features import FeatureStore
from twinbench.downstream.protocol import EvaluationContext, Protocol, protocol
from twinbench.downstream.semi_supervised import FineTuning
from twinbench.encoders.backbones import build_backbone
from twinbench.encoders.encoder import Encoder, EncoderInfo

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("full_precision")]

CPU = torch.device("cpu")
ONE_IMAGE = 100 / 96


@pytest.fixture
def encoder(image_set) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build_backbone("resnet10", 8, "stride2").eval()
    mean, std = image_set.normalisation.mean, image_set.normalisation.std
    info = EncoderInfo("resnet10", 8, "stride2", backbone.feature_dim, 32, mean, std, "random", "none")
    return Encoder(backbone, info, "none")


def measured(chosen: Protocol, encoder: Encoder, image_set, device: torch.device) -> dict[str, float]:
    encoder.backbone.to(device)
    context = EvaluationContext(image_set, FeatureStore(None), seed=0, device=device)
    return {m.metric: m.value for m in chosen.evaluate(encoder, context)}


def test_features_are_those_of_the_cpu(gpu, encoder, image_set):
    images = image_set.split("test").images
    expected = encoder.features(images)
    encoder.backbone.to(gpu)
    torch.testing.assert_close(encoder.features(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("chosen", "images"),
    [
        (protocol("knn/cosine-v1"), 1),
        (protocol("linear/cached-v1"), 2),
        (replace(protocol("linear/sgd-v2"), name="linear-test/sgd-v1", epochs=3), 4),
        (replace(protocol("few-shot/5-v1"), name="few-shot-test/5-v1", draws=3), 2),
        (
            replace(
                protocol("linear/grid-v1"),
                name="linear-test/grid-v1",
                epochs=3,
                rates=(0.3,),
                weight_decays=(0.0,),
            ),
            4,
        ),
        (FineTuning("semi-test/finetune-v1", fraction=0.5, steps=12), 8),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_an_evaluation_measures_what_it_measures_on_the_cpu(gpu, encoder, image_set, chosen, images):
    """Up to a few of the 96 test images whose scores are close."""
    expected = measured(chosen, encoder, image_set, CPU)
    found = measured(chosen, encoder, image_set, gpu)
    assert found.keys() == expected.keys()
    for metric, value in expected.items():
        assert abs(found[metric] - value) <= (images + 0.01) * ONE_IMAGE, metric


def test_a_detector_trains_and_is_measured(gpu, encoder, image_set, monkeypatch):
    """Its regions are drawn on the device, so only that it works is the same."""
    monkeypatch.setattr(small, "STEPS", 6)
    found = measured(protocol("detection/small-mask-rcnn-torchvision-v2"), encoder, image_set, gpu)
    assert {"box_ap", "mask_ap"} <= found.keys()
    assert all(0 <= value <= 100 for value in found.values())
