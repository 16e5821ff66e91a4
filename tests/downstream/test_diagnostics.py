"""The diagnostics of held-out images: no labels, no training images, the same views for every encoder."""

import copy
from dataclasses import asdict, replace

import pytest
import torch

from twinbench.data.image_sets import Split
from twinbench.downstream.features import FeatureStore
from twinbench.downstream.protocol import EvaluationContext, protocol
from twinbench.encoders.encoder import Encoder
from twinbench.encoders.geometry import geometry
from twinbench.foundation.errors import InputError, RunFailure

NAME = "diagnostics/held-out-v1"


def evaluate(encoder, image_set, seed=0):
    found = protocol(NAME).evaluate(encoder, EvaluationContext(image_set, FeatureStore(None), seed=seed))
    assert {m.n for m in found} == {len(image_set.split("val"))}
    return {m.metric: m.value for m in found}


def test_it_measures_the_backbone_on_the_validation_images_alone(encoder, image_set, monkeypatch):
    split = type(image_set).split
    asked = []
    monkeypatch.setattr(type(image_set), "split", lambda self, name: asked.append(name) or split(self, name))
    found = evaluate(encoder, image_set)
    assert set(asked) == {"val"}
    images = image_set.split("val").images
    size, normalisation, device = encoder.input_size, encoder.normalisation, torch.device("cpu")
    expected = geometry(encoder.backbone, images, size, normalisation, 0, device)
    assert found == pytest.approx(asdict(expected), rel=1e-4)
    assert tuple(found) == protocol(NAME).metrics


def test_labels_change_nothing_and_the_encoder_stays_as_it_was(encoder, image_set, make_encoder):
    before = copy.deepcopy(encoder.backbone.state_dict())
    found = evaluate(encoder, image_set)
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, before[name])
    val = image_set.split("val")
    image_set.splits["val"] = Split(val.images, torch.full_like(val.labels, -1))
    assert evaluate(encoder, image_set) == found
    assert evaluate(make_encoder(1), image_set) != found
    assert evaluate(encoder, image_set, seed=1)["alignment"] != found["alignment"]


def test_a_single_image_is_refused_beforehand(image_set):
    val = image_set.split("val")
    image_set.splits["val"] = Split(val.images[:1], val.labels[:1])
    with pytest.raises(InputError, match=r"not two of them(.|\n)*split 'val'(.|\n)*next:"):
        protocol(NAME).check(image_set)


def test_features_that_are_not_finite_are_a_failure(encoder, image_set):
    broken = copy.deepcopy(encoder.backbone)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(RunFailure, match="not all finite"):
        evaluate(Encoder(broken, replace(encoder.info), "broken"), image_set)


def test_progress_ends_at_one(encoder, image_set):
    seen = []
    context = EvaluationContext(image_set, FeatureStore(None), progress=seen.append)
    protocol(NAME).evaluate(encoder, context)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1)
    assert protocol(NAME).forward_passes(image_set) == 3 * len(image_set.split("val"))
