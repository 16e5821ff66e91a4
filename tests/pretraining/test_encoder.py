import json

import pytest
import torch

from data.errors import InputError
from pretraining.backbones import build_backbone
from pretraining.encoder import Encoder, EncoderInfo

INFO = EncoderInfo(
    architecture="resnet10",
    width=8,
    stem="small",
    feature_dim=64,
    input_size=16,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.3),
    method="toy",
    recipe_hash="abc",
)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    backbone = build_backbone("resnet10", 8, "small")
    Encoder.save(tmp_path / "encoder", backbone, INFO)
    return backbone.eval(), tmp_path / "encoder"


def test_what_is_loaded_gives_the_features_of_what_was_saved(saved):
    backbone, folder = saved
    images = torch.randint(
        0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    x = (images / 255 - torch.tensor(INFO.mean).view(3, 1, 1)) / torch.tensor(INFO.std).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(Encoder.load(folder).features(images), backbone(x), atol=1e-5, rtol=1e-5)


def test_features_do_not_depend_on_the_batch_an_image_is_in(saved):
    encoder = Encoder.load(saved[1])
    images = torch.randint(
        0, 256, (300, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(
        encoder.features(images)[290:], encoder.features(images[290:]), atol=1e-5, rtol=1e-4
    )


def test_features_change_with_the_weights(saved):
    encoder = Encoder.load(saved[1])
    images = torch.randint(
        0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    before = encoder.features(images)
    with torch.no_grad():
        encoder.backbone.layer4[0].conv1.weight.mul_(2).add_(0.1)
    assert not torch.allclose(encoder.features(images), before)


def test_a_fresh_backbone_trains_without_touching_the_encoder(saved):
    encoder = Encoder.load(saved[1])
    before = {k: v.clone() for k, v in encoder.backbone.state_dict().items()}
    copy = encoder.fresh_backbone()
    loss = copy(torch.randn(4, 3, 16, 16)).square().sum()
    loss.backward()
    torch.optim.SGD(copy.parameters(), lr=1.0).step()
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not encoder.backbone.training


@pytest.mark.parametrize("file", ["encoder.json", "encoder.safetensors"])
def test_a_missing_file_is_named(saved, file):
    (saved[1] / file).unlink()
    with pytest.raises(InputError, match=file):
        Encoder.load(saved[1])


def test_weights_of_another_width_are_refused(saved):
    document = json.loads((saved[1] / "encoder.json").read_text())
    (saved[1] / "encoder.json").write_text(json.dumps({**document, "width": 16}))
    with pytest.raises(InputError, match="do not fit"):
        Encoder.load(saved[1])


def test_a_description_from_before_imports_existed_is_still_read(saved):
    file = saved[1] / "encoder.json"
    document = json.loads(file.read_text())
    for key in ("deviation", "source_file", "source_format", "source_sha256"):
        del document[key]
    file.write_text(json.dumps(document))
    encoder = Encoder.load(saved[1])
    assert (encoder.info.origin, encoder.info.deviation, encoder.info.source_sha256) == ("run", "none", "")


def test_an_unknown_deviation_is_refused_with_the_nearest(saved):
    file = saved[1] / "encoder.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "deviation": "same_pading"}))
    with pytest.raises(InputError, match="unknown deviation") as error:
        Encoder.load(saved[1])
    assert error.value.nearest == "same_padding"
