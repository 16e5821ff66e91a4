"""Exports, each loaded by the project it is for and compared with the encoder."""

import hashlib
import json
import pickle
import sys

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save
from torch import nn

from twinbench.encoders.encoder import Encoder, EncoderInfo
from twinbench.encoders.foreign.exporter import export_encoder
from twinbench.encoders.foreign.importer import read_foreign
from twinbench.foundation.errors import InputError, RunFailure

SUFFIXES = {"torchvision": "pth", "timm": "safetensors", "detectron2": "pkl"}


def make_encoder(name: str, width: int, stem: str, deviation: str = "none") -> Encoder:
    """A random encoder whose batch statistics matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        info = EncoderInfo(
            name, width, stem, 0, 64, (0.5, 0.4, 0.3), (0.2, 0.2, 0.3), "toy", "abc", deviation=deviation
        )
        backbone = info.build()
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.1)
    return Encoder(backbone, info, "0" * 64)


def images(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def loaded(code: str) -> nn.Module:
    namespace: dict = {}
    exec(code, namespace)
    return namespace["model"].eval()


ENCODERS = [
    ("resnet18", 8, "stride2"),
    ("resnet10", 8, "small"),
    ("resnet50", 16, "imagenet"),
    ("resnet18", 64, "imagenet"),
]


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda e: "-".join(map(str, e)))
@pytest.mark.parametrize("name", ["torchvision", "timm"])
def test_the_printed_lines_load_a_model_with_the_features_of_the_encoder(tmp_path, name, encoder):
    if name == "timm":
        pytest.importorskip("timm", reason="timm is not installed")
    encoder = make_encoder(*encoder)
    exported = export_encoder(encoder, name, tmp_path / f"it's a net.{SUFFIXES[name]}")
    assert "res2 to res5" in exported.checked
    with torch.no_grad():
        found, expected = loaded(exported.code).double(), encoder.backbone.double()
        torch.testing.assert_close(
            found(images().double()), expected(images().double()), atol=1e-9, rtol=1e-9
        )


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda e: "-".join(map(str, e)))
def test_detectron2_loads_the_export_and_gives_the_feature_maps(tmp_path, encoder):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    encoder = make_encoder(*encoder)
    exported = export_encoder(encoder, "detectron2", tmp_path / "net.pkl")
    assert "res2 to res5" in exported.checked
    with torch.no_grad():
        expected = encoder.backbone.feature_maps(images())
        found = loaded(exported.code)(images())
    assert list(found) == list(expected) == ["res2", "res3", "res4", "res5"]
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-4)


def test_detectron2s_own_resnet_50_is_filled_by_its_own_checkpointer(tmp_path):
    """As a user would: a configuration and the file, with no line of ours."""
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.modeling.backbone import build_backbone

    encoder = make_encoder("resnet50", 64, "imagenet")
    export_encoder(encoder, "detectron2", tmp_path / "net.pkl")
    cfg = get_cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.NORM = "BN"
    backbone = build_backbone(cfg)
    DetectionCheckpointer(backbone).load(str(tmp_path / "net.pkl"))
    with torch.no_grad():
        found, expected = backbone.eval()(images(1)), encoder.backbone.feature_maps(images(1))
    for name in expected:
        scale = expected[name].abs().max()
        assert (found[name] - expected[name]).abs().max() < 1e-5 * scale, name


def test_torchvisions_resnet_50_and_timms_take_the_file_as_it_is(tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    encoder = make_encoder("resnet50", 64, "imagenet")
    export_encoder(encoder, "torchvision", tmp_path / "net.pth")
    export_encoder(encoder, "timm", tmp_path / "net.safetensors")
    model = torchvision.models.resnet50()
    model.fc = nn.Identity()
    model.load_state_dict(torch.load(tmp_path / "net.pth", weights_only=True))
    other = timm.create_model("resnet50", num_classes=0, checkpoint_path=str(tmp_path / "net.safetensors"))
    with torch.no_grad():
        expected = encoder.backbone.double()(images(1).double())
        for found in (model, other):
            torch.testing.assert_close(
                found.eval().double()(images(1).double()), expected, atol=1e-9, rtol=1e-9
            )


def test_a_detectron2_file_holds_53_convolutions_with_their_norms_in_numpy(tmp_path):
    encoder = make_encoder("resnet50", 8, "imagenet")
    export_encoder(encoder, "detectron2", tmp_path / "net.pkl")
    document = pickle.loads((tmp_path / "net.pkl").read_bytes())
    assert document["matching_heuristics"] is True
    assert document["__author__"]
    names = list(document["model"])
    assert all(isinstance(array, np.ndarray) for array in document["model"].values())
    assert sum(name.endswith("norm.running_var") for name in names) == 53
    assert sum(name.endswith("weight") and ".norm." not in name for name in names) == 53
    assert not any("num_batches" in name or name.startswith("layer") for name in names)


@pytest.mark.parametrize("name", ["timm", "detectron2"])
def test_without_the_other_project_the_file_is_read_back(tmp_path, monkeypatch, name):
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)  # what Python itself does for a package that is not there
    exported = export_encoder(make_encoder("resnet10", 8, "small"), name, tmp_path / f"net.{SUFFIXES[name]}")
    assert f"{name} is not installed here" in exported.checked


def test_a_file_that_loads_as_something_else_is_a_failure(tmp_path, monkeypatch):
    """A bug in the renaming, staged: the last stage's first block is written twice as large."""
    encoder = make_encoder("resnet10", 8, "small")
    write = torch.save

    def altered(tensors, buffer):
        write({**tensors, "layer4.0.conv1.weight": 2 * tensors["layer4.0.conv1.weight"]}, buffer)

    monkeypatch.setattr("twinbench.encoders.foreign.exporter.torch.save", altered)
    with pytest.raises(RunFailure, match="res5 differs"):
        export_encoder(encoder, "torchvision", tmp_path / "net.pth")


def test_what_the_other_network_would_compute_otherwise_is_refused(tmp_path):
    encoder = make_encoder("resnet10", 8, "imagenet", deviation="same_padding")
    for name, suffix in SUFFIXES.items():
        with pytest.raises(InputError, match="same_padding"):
            export_encoder(encoder, name, tmp_path / f"net.{suffix}")
    assert not list(tmp_path.iterdir())


def test_wrong_formats_suffixes_and_widths_are_named(tmp_path):
    encoder = make_encoder("resnet10", 8, "small")
    with pytest.raises(InputError, match="unknown format"):
        export_encoder(encoder, "torchvison", tmp_path / "net.pth")
    with pytest.raises(InputError, match=r"end in \.safetensors"):
        export_encoder(encoder, "timm", tmp_path / "net.pth")
    with pytest.raises(InputError, match="odd number of channels"):
        export_encoder(make_encoder("resnet10", 9, "small"), "timm", tmp_path / "net.safetensors")


def uncounted(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("stem", ["imagenet", "small", "stride2"])
@pytest.mark.parametrize("name", SUFFIXES)
def test_an_export_comes_back_bit_for_bit_with_its_stem_and_normalisation(tmp_path, name, stem):
    """The stride of a 3x3 stem is in no tensor; what the exporter wrote beside them says it."""
    encoder = make_encoder("resnet18", 8, stem)
    export_encoder(encoder, name, tmp_path / f"net.{SUFFIXES[name]}")
    foreign = read_foreign(tmp_path / f"net.{SUFFIXES[name]}")
    assert foreign.info.source_format == ("detectron2" if name == "detectron2" else "torchvision")
    for key in ("architecture", "width", "stem", "input_size", "mean", "std", "method", "channel_order"):
        assert getattr(foreign.info, key) == getattr(encoder.info, key), key
    theirs, ours = uncounted(foreign.backbone.state_dict()), uncounted(encoder.backbone.state_dict())
    assert hashlib.sha256(save(theirs)).hexdigest() == hashlib.sha256(save(ours)).hexdigest()
    with torch.no_grad():
        # on some CPUs torch rounds otherwise where the weights ask for gradients, as those of one side do
        torch.testing.assert_close(foreign.backbone(images()), encoder.backbone(images()))
    with pytest.raises(InputError, match="the stem of this network is not"):
        read_foreign(tmp_path / f"net.{SUFFIXES[name]}", stem="small" if stem == "stride2" else "stride2")


def test_tensors_saved_anew_lose_the_description(tmp_path):
    """Who saves other weights from the network that was loaded does not pass on what described the old ones."""
    encoder = make_encoder("resnet18", 64, "imagenet")
    exported = export_encoder(encoder, "torchvision", tmp_path / "net.pth")
    torch.save(loaded(exported.code).state_dict(), tmp_path / "again.pth")
    assert read_foreign(tmp_path / "net.pth").info.method == "toy"
    assert read_foreign(tmp_path / "again.pth").info.method == "again.pth"
    assert read_foreign(tmp_path / "again.pth").info.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("name", SUFFIXES)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mean", [0.5, 0.4]),
        ("std", [0.2, 0.0, 0.3]),
        ("input_size", 10**9),
        ("stem", "large"),
        ("method", ["toy"]),
        ("method", None),
    ],
)
def test_an_altered_description_is_refused_in_every_format(tmp_path, monkeypatch, name, key, value):
    described = {"method": "toy", "stem": "small", "input_size": 64, "mean": [0, 0, 0], "std": [1, 1, 1]}
    file = tmp_path / f"net.{SUFFIXES[name]}"
    for document in (described, {**described, key: value}):
        monkeypatch.setattr(
            "twinbench.encoders.foreign.exporter._description", lambda info, d=document: json.dumps(d)
        )
        monkeypatch.setattr(
            "twinbench.encoders.foreign.exporter._check",
            lambda *args: "not checked, for it could not be read",
        )
        export_encoder(make_encoder("resnet10", 8, "small"), name, file)
        if document is described:
            assert read_foreign(file).info.std == (1.0, 1.0, 1.0)
    with pytest.raises(InputError, match=f"altered: {key} cannot be") as error:
        read_foreign(file)
    assert error.value.where == file
