"""`twinbench evaluate` with a list of labelled images, on a folder small enough for memory."""

import json

import pytest
import torch

from twinbench.encoders.backbones import build_backbone
from twinbench.encoders.encoder import Encoder, EncoderInfo

PROTOCOL = ("--protocol", "semi-10pct/paper-v3")


@pytest.fixture
def encoder(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build_backbone("resnet10", 8, "stride2")
    grey, dim = (0.5, 0.5, 0.5), backbone.feature_dim
    info = EncoderInfo("resnet10", 8, "stride2", dim, 24, grey, grey, "barlow_twins", "none")
    Encoder.save(tmp_path / "mine", backbone, info)
    return "mine"


def test_an_own_list_says_which_images_are_labelled(cli, tmp_path, photos, encoder):
    names = [f"{name}_{i}.png" for name in ("dark", "light") for i in range(0, 24, 2)]
    (tmp_path / "list.txt").write_text("\n".join(names))
    arguments = (*PROTOCOL, "--image-set", f"folder:{photos}", "--label-list", "list.txt")
    unpublished = cli("evaluate", encoder, *arguments)
    assert unpublished.code == 2
    assert "not the published list of 10%" in unpublished.err
    outcome = cli("evaluate", encoder, *arguments, "--own-list", "--out", "record.json")
    assert outcome.code == 0, outcome.err
    assert "top1" in outcome.out
    labels = json.loads((tmp_path / "record.json").read_text())["details"]["labels"]
    assert labels["images"] == len(names)
    assert labels["source"].startswith("own list, SHA-256 ")
    (tmp_path / "list.txt").write_text("dark_0.png\nlight_0.png\ndark_99.png")
    absent = cli("evaluate", encoder, *arguments, "--own-list")
    assert absent.code == 2
    assert "dark_99.png for one" in absent.err
