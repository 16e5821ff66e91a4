"""Where encoders are evaluated: the device that the machine has goes to the protocol, with the encoder on it."""

import torch

from twinbench.data.catalogue import load_image_set
from twinbench.downstream.protocol import Measurement, Protocol
from twinbench.encoders.backbones import build_backbone
from twinbench.encoders.encoder import Encoder, EncoderInfo
from twinbench.harness import execute


class WhereAmI(Protocol):
    name = "toy/where-v1"
    needs = "labels"
    metrics = ("there",)

    def evaluate(self, encoder, context):
        places = {tensor.device for tensor in encoder.backbone.state_dict().values()}
        return [Measurement("there", float(places == {context.device}), 1)]

    def forward_passes(self, image_set):
        """None."""
        return 0.0


def evaluated() -> dict:
    backbone = build_backbone("resnet10", 8, "stride2")
    grey = (0.5, 0.5, 0.5)
    info = EncoderInfo("resnet10", 8, "stride2", backbone.feature_dim, 32, grey, grey, "toy", "none")
    encoder = Encoder(backbone, info, "none")
    image_set = load_image_set("digit-scenes", limit={"train": 8, "val": 8, "test": 8})
    return execute.evaluate_encoder(
        encoder, WhereAmI(), image_set, 0, None, lambda fraction, text: None
    ).record


def test_encoder_and_protocol_are_on_the_device_of_this_machine():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert execute.evaluation_device().type == expected
    assert evaluated()["measurements"][0]["value"] == 1.0


def test_another_device_reaches_the_protocol(monkeypatch):
    # The meta device stands in for a GPU: tensors have it, though nothing can be computed there.
    monkeypatch.setattr(execute, "evaluation_device", lambda: torch.device("meta"))
    assert evaluated()["measurements"][0]["value"] == 1.0
