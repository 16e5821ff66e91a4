"""Checkpoints of every project as encoders: each key accounted for, features equal to those of its own network."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.resnet import ResNet, resnext50_32x4d, wide_resnet50_2

from tests.encoders.foreign.project_files import (
    DEVIATING,
    LAYOUTS,
    WIDTH,
    assert_same_features,
    backbone_alone,
    byol,
    detectron2_detector,
    dino,
    head,
    lightly,
    moco_v2,
    pictures,
    simclr,
    simsiam,
    solo_learn,
    swav,
    torchvision,
    torchvision_resnet,
    under,
    vicreg,
    written,
)
from twinbench.encoders.encoder import Encoder
from twinbench.encoders.foreign.formats import format_names
from twinbench.encoders.foreign.importer import read_foreign
from twinbench.foundation.errors import InputError


@pytest.mark.parametrize(
    ("case", "bottleneck"),
    [(case, deep) for case in LAYOUTS for deep in (False, True) if deep or case != "simclr_v2"],
)
def test_every_layout_is_recognised_and_gives_the_features_of_its_network(tmp_path, case, bottleneck):
    write, format_name, method = LAYOUTS[case]
    model = torchvision_resnet(bottleneck)
    foreign = read_foreign(written(tmp_path, write(model.state_dict())))
    counted = [n for n in model.state_dict() if not n.endswith("num_batches_tracked")]
    assert foreign.info.source_format == format_name
    assert foreign.info.method == "some_net.pth"
    assert (f"if it is {method}, name it" in foreign.info.source_note) == bool(method)
    assert foreign.info.architecture == ("resnet50" if bottleneck else "resnet18")
    assert (foreign.info.width, foreign.info.stem, foreign.info.input_size) == (WIDTH, "imagenet", 224)
    assert foreign.info.deviation == DEVIATING.get(case, "none")
    assert len(foreign.accounting.matched) == foreign.accounting.expected == len(counted)
    assert foreign.accounting.missing == foreign.accounting.unexpected == foreign.accounting.misfits == ()
    read, given = foreign.backbone.state_dict(), model.state_dict()
    for name in counted:
        assert torch.equal(read[name], given[name]), name
    if case not in DEVIATING:
        assert_same_features(foreign, model)


def test_every_format_has_a_case():
    assert {format_name for _, format_name, _ in LAYOUTS.values()} | {"timm"} == set(format_names())


@pytest.mark.parametrize("case", LAYOUTS)
@pytest.mark.parametrize("lost", ["conv1.weight", "layer1.0.bn1.running_mean", "layer4.1.conv2.weight"])
def test_one_missing_tensor_is_named_and_refused(tmp_path, case, lost):
    write = LAYOUTS[case][0]
    backbone = torchvision_resnet(bottleneck=True).state_dict()
    del backbone[lost]
    path = written(tmp_path, write(backbone))
    with pytest.raises(InputError, match="not a complete resnet50") as error:
        read_foreign(path)
    assert f"in the format {LAYOUTS[case][1]}; missing 1 ({lost})" in error.value.what
    assert error.value.nearest is None, "no other format would succeed"


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("layer2.0.se.fc.weight", torch.zeros(2), "layer2.0.se.fc.weight"),
        ("layer5.0.conv1.weight", torch.zeros(2), "layer5.0.conv1.weight"),
        ("layer1.0.bn9.num_batches_tracked", torch.tensor(0), "layer1.0.bn9.num_batches_tracked"),
        ("conv1.bias", torch.zeros(WIDTH), "conv1.bias"),
        ("conv2.weight", torch.zeros(WIDTH, WIDTH, 3, 3), "conv2.weight"),
        ("conv1.weight", torch.zeros(()), r"conv1.weight \(\) instead of"),
        ("bn1.weight", torch.zeros(WIDTH, device="meta"), "bn1.weight is sparse or has no values"),
        ("bn1.bias", torch.zeros(WIDTH).to_sparse(), "bn1.bias is sparse or has no values"),
        ("bn1.bias", torch.zeros(WIDTH, dtype=torch.int8), "bn1.bias is torch.int8"),
        ("layer3.0.conv1.weight", torch.zeros(5, 16, 3, 3), r"\(5, 16, 3, 3\) instead of \(32, 16, 3, 3\)"),
    ],
)
def test_a_backbone_that_is_no_plain_resnet_is_refused(tmp_path, key, value, why):
    backbone = {**torchvision_resnet().state_dict(), key: value}
    with pytest.raises(InputError, match=why):
        read_foreign(written(tmp_path, backbone))


def test_what_nobody_asked_for_and_what_is_left_out_are_told_apart(tmp_path):
    document = moco_v2(torchvision_resnet().state_dict())
    document["state_dict"]["module.attention.weight"] = torch.zeros(3)
    foreign = read_foreign(written(tmp_path, document), "moco_v2")
    assert foreign.accounting.unexpected == ("attention.weight",)
    assert set(foreign.accounting.ignored) == {"momentum encoder", "projector", "queue"}
    assert len(foreign.accounting.ignored["momentum encoder"]) == 121
    text = "\n".join(foreign.accounting.lines())
    assert "matched:    100 of 100" in text
    assert "unexpected: 1 (attention.weight)" in text
    assert "names are given without module." in text


@pytest.mark.parametrize("make", [wide_resnet50_2, resnext50_32x4d], ids=["wide", "resnext"])
def test_wider_relatives_of_a_resnet_50_are_refused_in_words(tmp_path, make):
    with torch.device("meta"):
        shapes = make().state_dict()
    # a byte each: 70 million numbers of four would take seconds to write
    state = {name: torch.zeros(tensor.shape, dtype=torch.int8) for name, tensor in shapes.items()}
    with pytest.raises(InputError, match="not of a plain resnet50") as error:
        read_foreign(written(tmp_path, state))
    assert "layer1.0.conv1.weight (128, 64, 1, 1) instead of (64, 64, 1, 1)" in error.value.what
    assert "Wide-ResNet, ResNeXt" in (error.value.next_step or "")


def as_shortcuts(b: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of kuangliu's pytorch-cifar, and of SupContrast after it."""
    return {name.replace("downsample", "shortcut"): tensor for name, tensor in b.items()}


def pruned(b: dict[str, Tensor]) -> dict[str, Tensor]:
    """torch.nn.utils.prune keeps a weight as what it was and a mask."""
    kernel = b["layer1.0.conv1.weight"]
    masked = {"layer1.0.conv1.weight_orig": kernel, "layer1.0.conv1.weight_mask": torch.ones_like(kernel)}
    return {name: tensor for name, tensor in b.items() if name != "layer1.0.conv1.weight"} | masked


def checkpointed(b: dict[str, Tensor]) -> dict[str, Tensor]:
    """What PyTorch's activation checkpointing puts before the names of a block."""
    return {n.replace("layer1.0.", "layer1.0._checkpoint_wrapped_module."): t for n, t in b.items()}


def deep_stem(b: dict[str, Tensor]) -> dict[str, Tensor]:
    without = {name: tensor for name, tensor in b.items() if name != "conv1.weight"}
    return {**without, "conv1.0.weight": torch.zeros(4, 3, 3, 3), "conv1.3.weight": torch.zeros(8, 4, 3, 3)}


def grey(b: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**b, "conv1.weight": b["conv1.weight"][:, :1]}


@pytest.mark.parametrize(
    ("write", "foreign"),
    [
        (as_shortcuts, "layer2.0.shortcut.0.weight"),
        (pruned, "layer1.0.conv1.weight_orig"),
        (checkpointed, "layer1.0._checkpoint_wrapped_module.conv1.weight"),
        (deep_stem, "conv1.0.weight"),
        (grey, "conv1.weight (8, 1, 7, 7) instead of (8, 3, 7, 7)"),
    ],
)
def test_a_whole_file_with_other_layers_is_not_called_incomplete_by_its_publisher(tmp_path, write, foreign):
    with pytest.raises(InputError, match="not of a plain resnet18") as error:
        read_foreign(written(tmp_path, write(torchvision_resnet().state_dict())))
    assert foreign in error.value.what
    assert "torchvision's own layers and names" in (error.value.next_step or "")


def test_another_norm_than_batch_norm_is_named_as_the_reason(tmp_path):
    b = torchvision_resnet().state_dict()
    group_norms = {name: t for name, t in b.items() if "running" not in name and "num_batches" not in name}
    with pytest.raises(InputError, match="missing 40") as error:
        read_foreign(written(tmp_path, group_norms))
    assert "a ResNet with batch norms" in (error.value.next_step or "")


def test_half_a_file_is_called_a_network_with_half_of_it_missing(tmp_path):
    state = torchvision_resnet().state_dict()
    half = {name: state[name] for name in list(state)[: len(state) // 2]}
    with pytest.raises(InputError, match="not a complete resnet18 in the format plain; missing 50") as error:
        read_foreign(written(tmp_path, half))
    assert error.value.nearest is None


@pytest.mark.parametrize("case", ["moco_v2", "simsiam", "vissl", "solo_learn", "lightly_sequential"])
def test_a_wrong_format_names_the_right_one(tmp_path, case):
    write, format_name, _ = LAYOUTS[case]
    path = written(tmp_path, write(torchvision_resnet().state_dict()))
    with pytest.raises(InputError) as error:
        read_foreign(path, "torchvision")
    assert (error.value.nearest or "").startswith(f"{format_name} (100 of 100")


def test_an_unknown_format_suggests_the_nearest_name(tmp_path):
    with pytest.raises(InputError) as error:
        read_foreign(written(tmp_path, torchvision_resnet().state_dict()), "barlowtwins")
    assert error.value.nearest == "barlow_twins"


def test_what_may_be_two_formats_is_not_guessed(tmp_path):
    """Old files of torchvision have no batch counters, and neither have BYOL's; they compute differently."""
    old = {n: t for n, t in torchvision(torchvision_resnet().state_dict()).items() if "num_batches" not in n}
    path = written(tmp_path, old)
    with pytest.raises(InputError, match="several formats: byol, torchvision") as error:
        read_foreign(path)
    assert "byol, or another" in (error.value.next_step or "")
    assert error.value.option == "format"
    assert read_foreign(path, "torchvision").info.deviation == "none"
    assert read_foreign(path, "byol").info.deviation == "same_padding"


def test_missing_batch_counters_are_filled_and_not_missed(tmp_path):
    foreign = read_foreign(written(tmp_path, byol(torchvision_resnet().state_dict())))
    assert "no batch counters" in "\n".join(foreign.accounting.lines())
    assert int(foreign.backbone.bn1.num_batches_tracked) == 0


def test_names_that_anybody_may_write_are_called_as_the_file_is_unless_the_user_says_more(tmp_path):
    """A plain torchvision-named file may be anybody's: DINO's ResNet-50 for one is no Barlow Twins."""
    path = written(tmp_path, backbone_alone(torchvision_resnet().state_dict()), "dino_resnet50_pretrain.pth")
    unsaid = read_foreign(path)
    assert (unsaid.info.source_format, unsaid.info.method) == ("plain", "dino_resnet50_pretrain.pth")
    assert unsaid.accounting.notes == (unsaid.info.source_note,)
    for words in ("speak of no project", "ImageNet's mean", "name it as you import it"):
        assert words in unsaid.info.source_note
    for said, format_name, method in (
        (read_foreign(path, "barlow_twins"), "barlow_twins", "barlow_twins"),
        (read_foreign(path, "vicreg"), "vicreg", "vicreg"),
        (read_foreign(path, "dino"), "dino", "dino"),
        (read_foreign(path, method="barlow_twins"), "plain", "barlow_twins"),
        (read_foreign(path, method="mine"), "plain", "mine"),
    ):
        assert (said.info.source_format, said.info.method) == (format_name, method)
        assert (said.info.source_note, said.accounting.notes) == ("", ())


@pytest.mark.parametrize("case", [case for case in LAYOUTS if LAYOUTS[case][2]])
def test_a_training_checkpoint_speaks_for_its_code_and_the_user_for_its_method(tmp_path, case):
    """PCL writes the very names of MoCo, EsViT DINO's and SeLa-v2 SwAV's: what they are called is no guess."""
    write, format_name, method = LAYOUTS[case]
    path = written(tmp_path, write(torchvision_resnet(True).state_dict()))
    unsaid = read_foreign(path)
    assert (unsaid.info.source_format, unsaid.info.method) == (format_name, "some_net.pth")
    note = unsaid.info.source_note
    assert note in unsaid.accounting.notes
    assert "these are the names of" in note
    assert f"if it is {method}, name it as you import it" in note
    for said in (read_foreign(path, format_name), read_foreign(path, method=method)):
        assert (said.info.source_format, said.info.method) == (format_name, method)
        assert "name it" not in " ".join(said.accounting.notes)
        assert "these are the names of" not in said.info.source_note


@pytest.mark.parametrize(("write", "other"), [(moco_v2, "PCL"), (dino, "EsViT"), (swav, "SeLa-v2")])
def test_who_is_known_to_use_anothers_code_is_named(tmp_path, write, other):
    foreign = read_foreign(written(tmp_path, write(torchvision_resnet().state_dict())))
    assert other in foreign.info.source_note


@pytest.mark.parametrize("name", ["barlow_twins.pth", "SimSiam.pth", "supervised", "swav.v2.pth.tar", "BYOL"])
def test_the_name_of_a_file_is_never_taken_for_a_method(tmp_path, name):
    """A published number stands beside a method; what is known of a file called so is its name."""
    foreign = read_foreign(written(tmp_path, backbone_alone(torchvision_resnet().state_dict()), name))
    assert foreign.info.method == (name if "." in name else f"file {name}")


@pytest.mark.parametrize("write", [backbone_alone, detectron2_detector, moco_v2])
def test_the_caution_goes_with_the_encoder(tmp_path, write):
    foreign = read_foreign(written(tmp_path, write(torchvision_resnet(True).state_dict())))
    foreign.save(tmp_path / "encoder")
    note = Encoder.load(tmp_path / "encoder").info.source_note
    assert note == json.loads((tmp_path / "encoder" / "encoder.json").read_text())["source_note"]
    assert note
    assert note in foreign.accounting.notes


@pytest.mark.parametrize(
    ("name", "method"), [("two\nlines.pth", None), ("net.pth", "two\nlines"), ("net.pth", " ")]
)
def test_what_cannot_stand_in_a_table_is_no_method(tmp_path, name, method):
    path = written(tmp_path, torchvision(torchvision_resnet().state_dict()), name)
    with pytest.raises(InputError, match="cannot be a method's name"):
        read_foreign(path, method=method)
    assert read_foreign(path, method="my net").info.method == "my net"


def detectron2_feature_pyramid(b: dict[str, Tensor]) -> dict:
    """An FPN detector's backbone, all below bottom_up."""
    state = detectron2_detector(b)["model"]
    named = {
        re.sub(r"^(backbone|roi_heads)\.(?=stem|res)", "backbone.bottom_up.", k): t for k, t in state.items()
    }
    del named["backbone.bottom_up.res5.norm.weight"]
    return named


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize(
    ("write", "key", "twin"),
    [
        (torchvision, "conv1.weight", "_orig_mod.conv1.weight"),
        (torchvision, "layer1.0.bn1.running_mean", "layer1._orig_mod.0.bn1.running_mean"),
        (lambda b: under("module.", b), "module.bn1.bias", "module._orig_mod.bn1.bias"),
        (
            detectron2_feature_pyramid,
            "backbone.bottom_up.res2.0.conv1.weight",
            "backbone.res2.0.conv1.weight",
        ),
        (detectron2_feature_pyramid, "backbone.bottom_up.stem.conv1.weight", "stem.conv1.weight"),
        (detectron2_feature_pyramid, "backbone.bottom_up.stem.conv1.norm.bias", "bn1.bias"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_two_keys_for_one_tensor_are_refused_by_name(tmp_path, write, key, twin, last):
    """Neither replaces the other, whichever comes first, even where both hold the same values."""
    state = write(torchvision_resnet(True).state_dict())
    assert read_foreign(written(tmp_path, state)).accounting.complete
    more = {twin: state[key].clone()}
    path = written(tmp_path, {**state, **more} if last else {**more, **state})
    with pytest.raises(InputError, match="two keys of this file") as error:
        read_foreign(path, "detectron2" if write is detectron2_feature_pyramid else None)
    assert re.search(rf"(?<!\S){re.escape(key)}(?!\S)", error.value.what)
    assert re.search(rf"(?<!\S){re.escape(twin)}(?!\S)", error.value.what)
    assert error.value.where == path


def test_two_keys_that_are_no_part_of_the_backbone_stay_two(tmp_path):
    state = detectron2_feature_pyramid(torchvision_resnet(True).state_dict())
    heads = head("backbone.fpn_lateral2.weight", "roi_heads.res5.norm.weight", "res5.norm.weight")
    accounting = read_foreign(written(tmp_path, {**state, **heads})).accounting
    named = {
        *accounting.matched,
        *accounting.unexpected,
        *(k for keys in accounting.ignored.values() for k in keys),
    }
    assert set(heads) <= named


def test_normalisation_is_the_one_the_project_trained_with(tmp_path):
    backbone = torchvision_resnet().state_dict()
    expected = {
        "swav": (swav, ((0.485, 0.456, 0.406), (0.228, 0.224, 0.225))),
        "simclr": (simclr, ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
        "byol": (byol, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
    }
    for case, (write, normalisation) in expected.items():
        info = read_foreign(written(tmp_path, write(backbone)), case).info
        assert (info.mean, info.std, info.channel_order) == (*normalisation, "RGB")


def tensorflow_padded(model: ResNet, convolutions: bool) -> ResNet:
    """SAME padding for even sides, by hand: 7x7 at stride 2 pads 2 before and 3 after, 3x3 at stride 2 pads 0 and 1."""
    model.maxpool = nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, 2)
    )  # after a ReLU, zero is lowest
    for module in list(model.modules()) if convolutions else ():
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d) and child.stride == (2, 2) and child.kernel_size != (1, 1):
                side = {3: (0, 1), 7: (2, 3)}[child.kernel_size[0]]
                child.padding = (0, 0)
                setattr(module, name, nn.Sequential(nn.ZeroPad2d((*side, *side)), child))
    return model


@pytest.mark.parametrize(("write", "convolutions"), [(byol, True), (simclr, False)], ids=["byol", "simclr"])
def test_converted_networks_pad_as_the_originals_did(tmp_path, write, convolutions):
    model = torchvision_resnet(bottleneck=True)
    foreign = read_foreign(written(tmp_path, write(model.state_dict())), write.__name__)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.allclose(foreign.backbone(x), model(x), atol=1e-3), "the padding would not matter"
    assert_same_features(foreign, tensorflow_padded(model, convolutions))


def test_same_padding_of_odd_sides_gives_every_window_of_the_textbook(tmp_path):
    """TensorFlow's rule, in float64 and by loops: out = ceil(in / stride), the odd pixel of padding at the end."""
    foreign = read_foreign(written(tmp_path, byol(torchvision_resnet().state_dict())))
    conv = foreign.backbone.conv1
    x = torch.randn(1, 3, 37, 38, generator=torch.Generator().manual_seed(0))
    kernel, image = conv.weight.detach().double().numpy(), x.double().numpy()[0]
    with torch.no_grad():
        found = conv(x)[0].numpy()
    rows, columns = 19, 19
    assert found.shape == (WIDTH, rows, columns)
    before = [((out - 1) * 2 + 7 - side) // 2 for out, side in ((rows, 37), (columns, 38))]
    for i, j in ((0, 0), (9, 9), (18, 18), (0, 18), (18, 0)):
        total = np.zeros(WIDTH)
        for u in range(7):
            for v in range(7):
                y, z = 2 * i + u - before[0], 2 * j + v - before[1]
                if 0 <= y < 37 and 0 <= z < 38:
                    total += kernel[:, :, u, v] @ image[:, y, z]
        np.testing.assert_allclose(found[:, i, j], total, atol=1e-5)


def test_the_small_stem_is_recognised_where_the_project_has_no_other_and_solo_learns_pads_by_two(tmp_path):
    model = torchvision_resnet(small_stem=True)
    foreign = read_foreign(written(tmp_path, solo_learn(model.state_dict())))
    assert (foreign.info.stem, foreign.info.input_size) == ("small", 32)
    model.conv1.padding = (2, 2)
    assert_same_features(foreign, model, side=32)
    assert foreign.backbone.feature_maps(torch.zeros(1, 3, 32, 32))["res2"].shape[-1] == 34
    assert foreign.info.std == (0.2470, 0.2435, 0.2616)


@pytest.mark.parametrize(
    "write", [moco_v2, backbone_alone, vicreg, dino, torchvision, simsiam, lightly, detectron2_detector]
)
def test_the_stride_of_a_3x3_stem_is_not_guessed(tmp_path, write):
    model = torchvision_resnet(small_stem=True)
    path = written(tmp_path, write(model.state_dict()))
    with pytest.raises(InputError, match="the first convolution is 3x3") as error:
        read_foreign(path)
    assert (
        error.value.nearest
        == "small (stride 1) or stride2 (stride 2); both pad by 1 and neither has a max-pool"
    )
    assert "small or stride2" in (error.value.next_step or "")
    assert error.value.option == "stem"
    for stem, stride in (("small", 1), ("stride2", 2)):
        model.conv1.stride = (stride, stride)
        foreign = read_foreign(path, stem=stem)
        assert (foreign.info.stem, foreign.info.input_size) == (stem, 32)
        assert_same_features(foreign, model, side=32)
    with pytest.raises(InputError, match="the stem of this network is not imagenet"):
        read_foreign(path, stem="imagenet")


def test_a_stem_that_contradicts_the_weights_or_the_project_is_refused(tmp_path):
    large = written(tmp_path, moco_v2(torchvision_resnet().state_dict()), "large.pth")
    with pytest.raises(InputError, match="the stem of this network is not small") as error:
        read_foreign(large, stem="small")
    assert error.value.nearest == "imagenet"
    solo = written(tmp_path, solo_learn(torchvision_resnet(small_stem=True).state_dict()), "solo.ckpt")
    with pytest.raises(InputError, match="the stem of this network is not stride2") as error:
        read_foreign(solo, stem="stride2")
    assert error.value.nearest == "small"


def test_the_description_in_an_export_must_fit_its_weights(tmp_path):
    state = torchvision_resnet().state_dict()
    description = {"method": "x", "stem": "small", "input_size": 32, "mean": [0, 0, 0], "std": [1, 1, 1]}
    for text, what in (
        (json.dumps(description), "is not small"),
        ("{", "was altered"),
        ("[]", "was altered"),
    ):
        save_file(state, tmp_path / "net.safetensors", {"twinbench": text})
        with pytest.raises(InputError, match=what):
            read_foreign(tmp_path / "net.safetensors")


def test_lightlys_own_resnet_loses_the_relu_of_its_stem(tmp_path):
    resnet = pytest.importorskip("lightly.models.resnet", reason="lightly is not installed")
    torch.manual_seed(0)
    model = resnet.ResNetGenerator("resnet-18", width=0.125)
    taken_apart = nn.Sequential(*list(model.children())[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    document = {"state_dict": under("backbone.", taken_apart.state_dict())}
    foreign = read_foreign(written(tmp_path, document))
    assert (foreign.info.source_format, foreign.info.deviation) == ("lightly", "no_stem_relu")
    assert_same_features(foreign, taken_apart, side=32)


def test_timms_resnet_is_read_as_torchvisions(tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    model = timm.create_model("resnet18", num_classes=10).eval()
    path = written(tmp_path, model.state_dict())
    assert read_foreign(path).info.source_format == "torchvision"
    foreign = read_foreign(path, "timm", method="supervised")
    assert (foreign.info.source_format, foreign.info.method, foreign.info.width) == ("timm", "supervised", 64)
    assert_same_features(foreign, nn.Sequential(nn.Identity(), TimmFeatures(model)))


class TimmFeatures(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.forward_features(x).mean((2, 3))


@pytest.mark.parametrize(
    ("key", "sibling"),
    [("module.encoder_q.fc.weight", "moco_v1"), ("module.prototypes.prototypes0.weight", "deepcluster_v2")],
)
def test_a_sibling_method_with_the_same_names_is_not_called_by_the_wrong_name(tmp_path, key, sibling):
    """MoCo v1's projector is one layer; main_deepclusterv2.py of SwAV's repository has several sets of prototypes."""
    backbone = torchvision_resnet().state_dict()
    prefix = "module.encoder_q." if "encoder_q" in key else "module."
    beside = head("module.queue") if "encoder_q" in key else head("module.projection_head.0.weight")
    state = {**under(prefix, backbone), key: torch.zeros(4, 4), **beside}
    path = written(tmp_path, {"state_dict": state})
    assert f"if it is {sibling}, name it" in read_foreign(path).info.source_note
    assert read_foreign(path, "moco_v2" if "encoder_q" in key else "swav").info.method == sibling


def test_wrappers_of_pytorch_in_names_make_no_difference(tmp_path):
    """torch.compile puts _orig_mod. where the compiled module is, DistributedDataParallel module. before everything."""
    model = torchvision_resnet()
    for prefix in ("module._orig_mod.", "_orig_mod.module.", "_orig_mod."):
        document = {"state_dict": under(prefix, torchvision(model.state_dict()))}
        foreign = read_foreign(written(tmp_path, document))
        assert foreign.info.source_format == "torchvision"
        assert any("_orig_mod." in note for note in foreign.accounting.notes)
        assert_same_features(foreign, model)
    inside = solo_learn(model.state_dict())
    inside["state_dict"] = {
        k.replace("backbone.", "backbone._orig_mod."): v for k, v in inside["state_dict"].items()
    }
    assert_same_features(read_foreign(written(tmp_path, inside)), model)


def test_what_belongs_to_a_detector_is_named_and_left_out(tmp_path):
    foreign = read_foreign(
        written(tmp_path, detectron2_detector(torchvision_resnet(True).state_dict()), "final.pth")
    )
    assert foreign.accounting.ignored == {
        "norm after res5": ("roi_heads.res5.norm.weight",),
        "predictors": ("roi_heads.box_predictor.cls_score.bias", "roi_heads.mask_head.deconv.weight"),
        "proposal network": ("proposal_generator.rpn_head.conv.weight",),
    }
    (caution,) = foreign.accounting.notes
    for word in ("order of colours", "RGB", "BGR", "1x1"):
        assert word in caution
    assert (foreign.info.channel_order, foreign.info.method) == ("RGB", "final.pth")


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning")
def test_a_detector_that_detectron2_itself_saved_is_imported(tmp_path):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from detectron2 import model_zoo
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model
    from detectron2.solver import build_lr_scheduler, build_optimizer

    cfg = model_zoo.get_config("PascalVOC-Detection/faster_rcnn_R_50_C4.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.RESNETS.STRIDE_IN_1X1, cfg.MODEL.RESNETS.NORM = False, "BN"
    detector = build_model(cfg).eval()
    optimizer = build_optimizer(cfg, detector)
    scheduler = build_lr_scheduler(cfg, optimizer)
    trained = DetectionCheckpointer(detector, str(tmp_path), optimizer=optimizer, scheduler=scheduler)
    trained.save("model_final", iteration=23999)
    foreign = read_foreign(tmp_path / "model_final.pth")
    assert set(foreign.accounting.ignored) == {"predictors", "proposal network"}
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        res4 = detector.backbone(x)["res4"]
        maps = foreign.backbone.feature_maps(x)
        torch.testing.assert_close(maps["res4"], res4)
        torch.testing.assert_close(maps["res5"], detector.roi_heads.res5(res4))


def detectron2_arrays(b: dict[str, Tensor]) -> dict:
    """As MoCo's detection/convert-pretrain-to-detectron2.py writes it, counters included."""
    state = {
        re.sub(r"^(backbone|roi_heads)\.", "", name): tensor.numpy()
        for name, tensor in detectron2_detector(b)["model"].items()
        if re.search(r"stem|res[2-5]\.\d", name)
    }
    return {"model": state, "__author__": "MOCO", "matching_heuristics": True}


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_pickle_protocol_are_read(tmp_path, protocol):
    model = torchvision_resnet(True)
    arrays = detectron2_arrays(model.state_dict())
    columns, big = "res2.0.conv2.weight", "res3.0.conv2.weight"
    arrays["model"][columns] = np.asfortranarray(arrays["model"][columns])
    arrays["model"][big] = arrays["model"][big].astype(">f4")
    arrays["epoch"] = np.float64(3.0)
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(arrays, protocol))
    foreign = read_foreign(tmp_path / "net.pkl")
    assert foreign.info.source_format == "detectron2"
    read = foreign.backbone.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(read[name], tensor), name
    assert_same_features(foreign, model)


@pytest.mark.parametrize(
    "named", ["os.system", "builtins.eval", "numpy.load", "numpy.testing._private.utils.runstring"]
)
def test_a_pickle_of_arrays_may_name_nothing_else(tmp_path, named):
    module, _, name = named.rpartition(".")
    whole = pickle.dumps(detectron2_arrays(torchvision_resnet(True).state_dict()), 2)
    path = tmp_path / "net.pkl"
    trace = tmp_path / "was-run"
    call = f"c{module}\n{name}\n(S'touch {trace}'\ntR0".encode()
    path.write_bytes(whole[:2] + call + whole[2:])
    with pytest.raises(InputError, match=f"wants to run code: {re.escape(named)}"):
        read_foreign(path)
    assert not trace.exists()
    path.write_bytes(whole)
    assert read_foreign(path).accounting.complete, "the file would be read but for that call"


@pytest.mark.parametrize(
    "body",
    [
        b"cnumpy\ndtype\n(S'O8'\nI00\nI01\ntR.",
        b"cnumpy._core.multiarray\n_reconstruct\n(tR(I1\n(I1000000000000\ntI0\nI00\nS''\ntb.",
        b"cnumpy\ndtype\n}S'__setstate__'\nNs\x86b.",
        b"c_codecs\nencode\n}S'x'\nI1\nsb.",
        b"]" * 3000 + b"a" * 2999 + b".",
    ],
    ids=["objects", "no_bytes", "class_of_types", "class_of_bytes", "deep"],
)
def test_a_pickle_of_arrays_that_is_no_such_thing_is_refused(tmp_path, body):
    (tmp_path / "net.pkl").write_bytes(b"\x80\x02" + body)
    with pytest.raises(InputError, match=r"not a complete checkpoint|not a state dict"):
        read_foreign(tmp_path / "net.pkl")


def test_a_zip_that_unpacks_to_more_than_it_is_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(10_000_000))
        archive.writestr("bomb/version", "3")
    with pytest.raises(
        InputError, match=r"not a complete checkpoint \(ValueError: unpacks to 10000001 bytes\)"
    ):
        read_foreign(path)


def test_tensors_of_a_gpu_are_read_without_one(tmp_path):
    model = torchvision_resnet()
    path = written(tmp_path, torchvision(model.state_dict()), "cpu.pth")
    with zipfile.ZipFile(path) as cpu, zipfile.ZipFile(tmp_path / "gpu.pth", "w") as gpu:
        for entry in cpu.infolist():
            content = cpu.read(entry)
            if entry.filename.endswith("data.pkl"):
                there = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
                assert there != content
                content = there
            gpu.writestr(entry, content)
    assert_same_features(read_foreign(tmp_path / "gpu.pth"), model)


class Command:
    """Runs a shell command when unpickled, as anybody's pickle may."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.trace}",)


def test_a_pickle_that_wants_to_run_code_is_refused_and_not_run(tmp_path):
    trace = tmp_path / "was-run"
    zipped = written(tmp_path, {**torchvision_resnet().state_dict(), "note": Command(trace)}, "zipped.pth")
    legacy = tmp_path / "legacy.pth"
    torch.save({"note": Command(trace)}, legacy, _use_new_zipfile_serialization=False)
    bare = tmp_path / "bare.pkl"
    bare.write_bytes(pickle.dumps(Command(trace), protocol=2))
    for path in (zipped, legacy, bare):
        with pytest.raises(InputError, match=r"wants to run code: posix\.system"):
            read_foreign(path)
        assert not trace.exists()
    torch.load(zipped, weights_only=False)
    assert trace.exists(), "the pickle is harmless, so the test shows nothing"


def test_command_line_and_numpy_scalars_of_official_files_are_let_through(tmp_path):
    extra = {
        "args": argparse.Namespace(lr=0.2),
        "best_acc1": np.float64(73.2),
        "steps": np.int64(5),
        "ok": np.True_,
    }
    document = {**moco_v2(torchvision_resnet().state_dict()), **extra}
    assert read_foreign(written(tmp_path, document)).info.source_format == "moco_v2"


def test_other_objects_in_a_pickle_are_named(tmp_path):
    document = {"config": Path("x"), "state_dict": torchvision_resnet().state_dict()}
    with pytest.raises(InputError, match=r"pathlib\S*PosixPath"):
        read_foreign(written(tmp_path, document))


@pytest.mark.parametrize("content", [b"hello", b"PK\x03\x04 not a zip", b"\x80\x02}q\x00"])
def test_a_damaged_file_is_named(tmp_path, content):
    for suffix in ("pth", "safetensors"):
        path = tmp_path / f"damaged.{suffix}"
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a complete checkpoint") as error:
            read_foreign(path)
        assert error.value.where == path


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
def test_a_truncated_file_is_named(tmp_path, name):
    path = tmp_path / name
    state = torchvision_resnet().state_dict()
    save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="not a complete checkpoint"):
        read_foreign(path)


def test_a_missing_file_and_a_file_without_weights_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_foreign(tmp_path / "nothing.pth")
    with pytest.raises(InputError, match="no state dict in this file; its keys: args, epoch"):
        read_foreign(written(tmp_path, {"args": {"lr": 1.0}, "epoch": 3}))
    with pytest.raises(InputError, match=r"no known format; its keys: 1 \(blocks\.0\.attn") as error:
        read_foreign(written(tmp_path, {"blocks.0.attn.qkv.weight": torch.zeros(3)}))
    assert "no format finds a ResNet here" in error.value.what
    assert "torchvision's ResNets" in (error.value.next_step or "")
    assert (error.value.nearest, error.value.option) == (None, None), "no format would read it"
    with pytest.raises(InputError, match="this is a folder"):
        read_foreign(tmp_path)


def test_values_that_are_not_finite_are_refused(tmp_path):
    backbone = torchvision_resnet().state_dict()
    for value, what in ((torch.nan, "holds values that are not finite"), (-1.0, "holds variances below 0")):
        backbone["layer2.1.bn2.running_var"][3] = value
        with pytest.raises(InputError, match=rf"layer2\.1\.bn2\.running_var {what}"):
            read_foreign(written(tmp_path, backbone))


def test_safetensors_are_read_and_half_precision_becomes_single(tmp_path):
    model = torchvision_resnet()
    save_file(
        {n: t.half() if t.is_floating_point() else t for n, t in model.state_dict().items()},
        tmp_path / "a.safetensors",
    )
    foreign = read_foreign(tmp_path / "a.safetensors")
    assert foreign.backbone.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(foreign.backbone.conv1.weight, model.conv1.weight, atol=1e-3, rtol=1e-3)


def test_the_encoder_on_disk_says_where_it_is_from(tmp_path):
    path = written(tmp_path, byol(torchvision_resnet().state_dict()), "byol_resnet18.pth")
    foreign = read_foreign(path, method="mine")
    saved = foreign.save(tmp_path / "encoder")
    loaded = Encoder.load(tmp_path / "encoder")
    assert loaded.info == foreign.info
    assert (loaded.info.origin, loaded.info.method, loaded.info.source_file) == (
        "imported",
        "mine",
        "byol_resnet18.pth",
    )
    assert loaded.info.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.info.deviation == "same_padding"
    images = pictures()
    assert torch.equal(loaded.features(images), saved.features(images))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        # on some CPUs torch rounds otherwise where the weights ask for gradients, as those of one side do
        torch.testing.assert_close(loaded.backbone(x), foreign.backbone(x))
        torch.testing.assert_close(loaded.fresh_backbone().eval()(x), foreign.backbone(x))
    weights = loaded.backbone.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in foreign.backbone.state_dict().items())
    with pytest.raises(InputError, match="there is an encoder already"):
        foreign.save(tmp_path / "encoder")
