import pytest
import torch
import torchvision

from twinbench.encoders.backbones import backbone_names, build_backbone
from twinbench.foundation.errors import InputError


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_at_width_64_it_is_torchvisions_network(name):
    theirs = torchvision.models.get_model(name, weights=None).eval()
    theirs.fc = torch.nn.Identity()
    ours = build_backbone(name).eval()
    ours.load_state_dict(theirs.state_dict())
    # In float64: both sum in another order, and what that makes in float32 depends on the CPU and the weights.
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours.double()(x), theirs.double()(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "parameters"), [("resnet18", 11_168_832), ("resnet50", 23_508_032)])
def test_parameter_counts_of_the_specification(name, parameters):
    stem = "small" if name == "resnet18" else "imagenet"
    assert sum(p.numel() for p in build_backbone(name, stem=stem).parameters()) == parameters


@pytest.mark.parametrize(("stem", "sides"), [("small", (32, 16, 8, 4)), ("stride2", (16, 8, 4, 2))])
def test_feature_maps_of_small_images(stem, sides):
    backbone = build_backbone("resnet10", width=8, stem=stem)
    maps = backbone.feature_maps(torch.zeros(2, 3, 32, 32))
    assert [tuple(m.shape) for m in maps.values()] == [(2, 8 * 2**i, s, s) for i, s in enumerate(sides)]
    assert list(maps) == ["res2", "res3", "res4", "res5"]
    assert backbone(torch.zeros(2, 3, 32, 32)).shape == (2, backbone.feature_dim)


def test_zero_init_makes_every_block_start_as_its_shortcut():
    backbone = build_backbone("resnet18", width=8, stem="small", zero_init=True).eval()
    x = torch.rand(2, 8, 8, 8)
    torch.testing.assert_close(backbone.layer1(x), x)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="resnet50"):
        build_backbone("resnet5")
    assert "resnet18" in backbone_names()
