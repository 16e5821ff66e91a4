import logging
from dataclasses import replace

import pytest
import torch
from PIL import Image

from twinbench.data.catalogue import load_image_set
from twinbench.data.image_sets import Split
from twinbench.downstream.features import FeatureStore
from twinbench.encoders.encoder import Encoder
from twinbench.foundation.errors import InputError, RunFailure


@pytest.fixture
def extractions(monkeypatch):
    """The sizes of the image batches that encoders were asked for."""
    calls = []
    original = Encoder.features

    def counted(self, images):
        calls.append(len(images))
        return original(self, images)

    monkeypatch.setattr(Encoder, "features", counted)
    return calls


@pytest.mark.parametrize("on_disk", [True, False])
def test_each_split_is_extracted_once(encoder, image_set, extractions, tmp_path, on_disk):
    store = FeatureStore(tmp_path if on_disk else None)
    first = store.get(encoder, image_set, "test")
    again = store.get(encoder, image_set, "test")
    store.get(encoder, image_set, "val")
    assert extractions == [90, 60]
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert first[0].dtype == torch.float32
    assert first[0].shape == (90, encoder.feature_dim)
    assert torch.equal(first[1], image_set.split("test").labels)


def test_the_cache_survives_the_store(encoder, image_set, extractions, tmp_path):
    FeatureStore(tmp_path).get(encoder, image_set, "test")
    FeatureStore(tmp_path).get(encoder, image_set, "test")
    assert extractions == [90]
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_whatever_changes_the_features_changes_the_key(encoder, image_set, extractions, tmp_path):
    store = FeatureStore(tmp_path)
    store.get(encoder, image_set, "test")
    store.get(Encoder(encoder.backbone, encoder.info, "other weights"), image_set, "test")
    store.get(
        Encoder(encoder.backbone, replace(encoder.info, mean=(0.1, 0.2, 0.3)), encoder.checksum),
        image_set,
        "test",
    )
    image_set.fingerprint = "memory-2"
    store.get(encoder, image_set, "test")
    assert len(extractions) == 4


@pytest.mark.parametrize("damage", ["truncated", "altered", "empty"])
def test_a_damaged_file_is_noticed_and_computed_again(
    encoder, image_set, extractions, tmp_path, caplog, damage
):
    store = FeatureStore(tmp_path)
    intact, _ = store.get(encoder, image_set, "test")
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "altered":
        content[-1000] ^= 0x10
    path.write_bytes({"truncated": content[:500], "altered": content, "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        restored, _ = store.get(encoder, image_set, "test")
    assert torch.equal(restored, intact)
    assert len(extractions) == 2
    assert "damaged" in caplog.text
    store.get(encoder, image_set, "test")
    assert len(extractions) == 2


def test_images_without_label_are_dropped_where_labels_are_needed(encoder, image_set):
    images, labels = image_set.split("test").images, image_set.split("test").labels.clone()
    labels[::2] = -1
    image_set.splits["test"] = Split(images, labels)
    store = FeatureStore(None)
    assert len(store.get(encoder, image_set, "test")[1]) == 90
    features, known = store.labelled(encoder, image_set, "test")
    assert len(features) == len(known) == 45
    assert known.min() >= 0


def test_a_split_without_any_label_is_an_input_error(encoder, image_set):
    images = image_set.split("test").images
    image_set.splits["test"] = Split(images, torch.full((90,), -1))
    with pytest.raises(InputError, match="no labelled image"):
        FeatureStore(None).labelled(encoder, image_set, "test")


def test_features_that_are_not_finite_are_a_failure(encoder, image_set):
    encoder.backbone.conv1.weight.fill_(float("nan"))
    with pytest.raises(RunFailure, match="not all finite"):
        FeatureStore(None).get(encoder, image_set, "test")


def test_the_substitute_of_a_corrupt_image_is_not_scored(encoder, tmp_path):
    for index in range(12):
        folder = tmp_path / "train" / str(index % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (20 * index, 0, 0)).save(folder / f"{index}.png")
    (tmp_path / "train" / "1" / "3.png").write_text("not an image")
    streamed = load_image_set(f"folder:{tmp_path}", image_size=16, stream=True, corrupt="skip")
    rows = [name for name in ("train", "val") for _ in range(len(streamed.split(name)))]
    labels = torch.cat([FeatureStore().get(encoder, streamed, name)[1] for name in ("train", "val")])
    assert len(labels) == len(rows) == 12
    assert (labels == -1).sum() == 1
    assert sum(streamed.skipped.values()) == 1


def test_what_was_met_while_extracting_is_known_to_who_finds_the_features(encoder, tmp_path):
    for index in range(12):
        folder = tmp_path / "set" / "train" / str(index % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (16, 16), (20 * index, 0, 0, 9)).save(folder / f"{index}.png")
    remarks = []
    for _ in range(2):
        streamed = load_image_set(f"folder:{tmp_path}/set", image_size=16, stream=True)
        for _ in range(2):
            store = FeatureStore(tmp_path / "features")
            for name in ("train", "val"):
                store.get(encoder, streamed, name)
            remarks.append((list(streamed.remarks), store.remarks))
    said = [f"transparent parts are seen on white: {split} picture" for split in ("11 train", "1 val")]
    for met, found in remarks:  # met while decoding, then found with the features, in the same words
        assert all(any(remark.startswith(words) for remark in met + found) for words in said)
        assert len({*met, *found}) == 2
    assert [(len(met), len(found)) for met, found in remarks] == [(2, 0), (2, 2), (0, 2), (0, 2)]
