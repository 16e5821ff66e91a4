import json

import pytest
import torch

from twinbench.encoders.backbones import build_backbone
from twinbench.encoders.encoder import Encoder, EncoderInfo
from twinbench.foundation.documents import unsealed
from twinbench.foundation.errors import InputError

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
        torch.testing.assert_close(Encoder.load(folder).features(images), backbone(x), atol=1e-4, rtol=1e-4)


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
    document = unsealed((saved[1] / "encoder.json").read_text())
    (saved[1] / "encoder.json").write_text(json.dumps({**document, "width": 16}))
    with pytest.raises(InputError, match="do not fit"):
        Encoder.load(saved[1])


def test_a_description_from_before_imports_existed_is_still_read(saved):
    file = saved[1] / "encoder.json"
    document = unsealed(file.read_text())
    for key in ("deviation", "source_file", "source_format", "source_sha256", "source_note"):
        del document[key]
    file.write_text(json.dumps(document))
    encoder = Encoder.load(saved[1])
    assert encoder.info == INFO
    assert (INFO.origin, INFO.deviation, INFO.source_sha256, INFO.source_note) == ("run", "none", "", "")


def test_an_unknown_deviation_is_refused_with_the_nearest(saved):
    file = saved[1] / "encoder.json"
    file.write_text(json.dumps({**unsealed(file.read_text()), "deviation": "same_pading"}))
    with pytest.raises(InputError, match="unknown deviation") as error:
        Encoder.load(saved[1])
    assert error.value.nearest == "same_padding"


NONSENSE = [
    ("mean", [0.5, 0.5]),
    ("mean", [0.5, 0.5, 0.5, 0.5]),
    ("mean", [0.5, 0.5, float("nan")]),
    ("mean", [0.5, 0.5, float("inf")]),
    ("mean", [123.7, 116.3, 103.5]),
    ("mean", [10**400, 0, 0]),
    ("mean", "111"),
    ("mean", ["0.5", "0.4", "0.3"]),
    ("mean", [True, True, True]),
    ("mean", {"0": 1, "1": 1, "2": 1}),
    ("mean", None),
    ("std", [0.2, 0.2]),
    ("std", [0.2, 0.2, 0]),
    ("std", [0.2, 0.2, -0.2]),
    ("std", [0.2, 0.2, float("nan")]),
    ("input_size", 7),
    ("input_size", 1025),
    ("input_size", 16.0),
    ("input_size", "16"),
    ("input_size", True),
    ("stem", "large"),
    ("stem", ["small"]),
    ("method", ""),
    ("method", " "),
    ("method", "two\nlines"),
    ("method", 3),
]


@pytest.mark.parametrize(("key", "value"), NONSENSE)
def test_nonsense_in_a_description_is_refused_by_name(saved, key, value):
    file = saved[1] / "encoder.json"
    file.write_text(json.dumps({**unsealed(file.read_text()), key: value}))
    with pytest.raises(InputError, match=f"{key} cannot be") as error:
        Encoder.load(saved[1])
    assert error.value.where == file


@pytest.mark.parametrize("key", ["mean", "std", "input_size", "stem", "method"])
def test_what_a_description_lacks_is_named(saved, key):
    file = saved[1] / "encoder.json"
    document = unsealed(file.read_text())
    del document[key]
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match=key):
        Encoder.load(saved[1])


@pytest.mark.parametrize("size", [8, 1024])
def test_the_extremes_of_a_description_are_taken(saved, size):
    file = saved[1] / "encoder.json"
    changed = {"input_size": size, "mean": [0, 1, 0.5], "std": [1, 1, 1e-3], "method": "my method"}
    file.write_text(json.dumps({**unsealed(file.read_text()), **changed}))
    info = Encoder.load(saved[1]).info
    assert (info.input_size, info.mean, info.std) == (size, (0.0, 1.0, 0.5), (1.0, 1.0, 0.001))
