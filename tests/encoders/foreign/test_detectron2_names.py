"""Names of backbone tensors between torchvision and Detectron2."""

import pytest
import torch

from twinbench.encoders.backbones import backbone_names, build_backbone
from twinbench.encoders.foreign.detectron2_names import from_detectron2, to_detectron2
from twinbench.foundation.errors import InputError


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_mean", "stem.conv1.norm.running_mean"),
        ("layer1.0.conv1.weight", "res2.0.conv1.weight"),
        ("layer2.3.bn3.bias", "res3.3.conv3.norm.bias"),
        ("layer3.0.downsample.0.weight", "res4.0.shortcut.weight"),
        ("layer4.0.downsample.1.weight", "res5.0.shortcut.norm.weight"),
        ("layer4.2.bn1.num_batches_tracked", "res5.2.conv1.norm.num_batches_tracked"),
    ],
)
def test_names_by_hand(ours, theirs):
    state = {name: torch.zeros(()) for name in build_backbone("resnet50", 8).state_dict()}
    state[ours] = torch.ones(())
    assert to_detectron2(state)[theirs] == 1
    assert from_detectron2(to_detectron2(state))[ours] == 1


@pytest.mark.parametrize("architecture", backbone_names())
def test_there_and_back(architecture):
    state = build_backbone(architecture, 8).state_dict()
    converted = to_detectron2(state)
    assert len(converted) == len(state)
    assert not set(converted) & set(state)
    back = from_detectron2(converted)
    assert list(back) == list(state)
    assert all(back[name] is state[name] for name in state)


def test_a_resnet50_has_53_convolutions_and_53_norms():
    names = to_detectron2(build_backbone("resnet50", 8).state_dict())
    convolutions = [
        n for n in names if n.endswith(("conv1.weight", "conv2.weight", "conv3.weight", "shortcut.weight"))
    ]
    assert len(convolutions) == len([n for n in names if n.endswith("norm.weight")]) == 53
    assert {n.partition(".")[0] for n in names} == {"stem", "res2", "res3", "res4", "res5"}


def test_a_backbone_with_a_stage_missing_is_refused():
    state = to_detectron2(build_backbone("resnet18", 8).state_dict())
    with pytest.raises(InputError, match="res5 missing"):
        from_detectron2({name: tensor for name, tensor in state.items() if not name.startswith("res5")})


@pytest.mark.parametrize("prefix", ["backbone.", "backbone.bottom_up."])
def test_what_a_detector_has_besides_its_backbone_is_left_out(prefix):
    state = build_backbone("resnet18", 8).state_dict()
    theirs = {f"{prefix}{name}": tensor for name, tensor in to_detectron2(state).items()}
    besides = (
        "roi_heads.res5.norm.weight",
        "proposal_generator.rpn_head.conv.weight",
        "backbone.fpn_lateral2.weight",
    )
    assert list(from_detectron2({**theirs, **dict.fromkeys(besides, torch.zeros(1))})) == list(state)
