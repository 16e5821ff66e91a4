"""Pooled features of an image set, computed once for all protocols that need them."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from twinbench.data.image_sets import ImageSet
from twinbench.data.streaming import StreamedImages
from twinbench.encoders.encoder import Encoder
from twinbench.foundation.documents import from_json
from twinbench.foundation.errors import InputError, RunFailure
from twinbench.foundation.files import write_atomically

_log = logging.getLogger(__name__)


def frozen_copy(encoder: Encoder, device: torch.device) -> nn.Module:
    """The encoder's backbone on a device, in evaluation mode and without gradients."""
    return copy.deepcopy(encoder.backbone).to(device).to(memory_format=torch.channels_last)


@torch.no_grad()
def pooled(backbone: nn.Module, views: Tensor) -> Tensor:
    """Features ``[N, D]`` of normalised views ``[N, 3, H, W]``, both on the backbone's device.

    They are float32, or float64 of a backbone in float64.
    """
    features: Tensor = backbone(views.contiguous(memory_format=torch.channels_last))
    return features if features.dtype == torch.float64 else features.float()


def require_finite(features: Tensor, encoder: Encoder, of: str) -> None:
    """Raise RunFailure unless every feature is finite; ``of`` says of which images they are."""
    if not torch.isfinite(features).all():
        raise RunFailure(
            f"the encoder's features of {of} are not all finite",
            where=f"encoder {encoder.checksum[:12]}",
            next_step="look at the encoder's pretraining loss; the run has probably diverged",
        )


class FeatureStore:
    """Features of evaluation views, extracted once per encoder, image set and split.

    With a folder, for a single process, they are kept there as safetensors files and survive it; with None they are
    kept in memory, and several ranks compute them in turns. A file that was truncated or altered is noticed by its
    digest and computed again. ``remarks`` are what another process met in the images of those features that were found
    in the folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._memory: dict[str, tuple[Tensor, Tensor]] = {}
        self.remarks: list[str] = []

    def get(self, encoder: Encoder, image_set: ImageSet, split: str) -> tuple[Tensor, Tensor]:
        """Features ``[N, D]`` (float32) and labels ``[N]`` (int64, -1 where unlabelled) of a split.

        Raises RunFailure if the encoder gives a feature that is not finite.
        """
        key = _key(encoder, image_set, split)
        if self._folder is None:
            if key not in self._memory:
                self._memory[key] = _extract(encoder, image_set, split)
            return self._memory[key]
        path = self._folder / f"{key}.safetensors"
        cached = _read(path)
        if cached is None:
            features, labels = _extract(encoder, image_set, split)
            _write(path, _Cached(features, labels, image_set.remarks))
            return features, labels
        self.remarks += [remark for remark in cached.remarks if remark not in self.remarks]
        return cached.features, cached.labels

    def labelled(self, encoder: Encoder, image_set: ImageSet, split: str) -> tuple[Tensor, Tensor]:
        """The features and labels of those images of a split that have a label; InputError if none has."""
        features, labels = self.get(encoder, image_set, split)
        known = labels >= 0
        if not known.any():
            raise InputError(
                f"the split {split!r} has no labelled image",
                where=image_set.name,
                next_step="choose an image set with labels, or leave out the protocols that need them",
            )
        return features[known], labels[known]

    def labelled_rows(self, encoder: Encoder, image_set: ImageSet, split: str) -> Tensor:
        """The places in the split of the images that `labelled` gives, int64 ``[N]``."""
        return torch.nonzero(self.get(encoder, image_set, split)[1] >= 0).flatten()


def _key(encoder: Encoder, image_set: ImageSet, split: str) -> str:
    """A name for the features that changes with everything that changes them."""
    # The checksum covers the weights only; the rest alters the features just as much.
    info = encoder.info
    # A GPU rounds differently, so its features are not another device's.
    device = next(encoder.backbone.parameters()).device.type
    described = [info.input_size, info.mean, info.std, info.deviation, device]
    identity = [encoder.checksum, *described, image_set.fingerprint, split]
    return f"{split}-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]}"


def _extract(encoder: Encoder, image_set: ImageSet, split: str) -> tuple[Tensor, Tensor]:
    data = image_set.split(split)
    features = encoder.features(data.images)
    require_finite(features, encoder, f"the split {split!r} of {image_set.name}")
    if not isinstance(data.images, StreamedImages):
        return features, data.labels
    data.images.count_with_ranks()
    labels = data.labels.clone()
    labels[torch.tensor(list(data.images.skipped.paths), dtype=torch.long)] = -1  # these were substitutes
    return features, labels


def _digest(features: Tensor, labels: Tensor) -> str:
    digest = hashlib.sha256(features.contiguous().numpy().tobytes())
    digest.update(labels.contiguous().numpy().tobytes())
    return digest.hexdigest()


class _Cached(NamedTuple):
    features: Tensor
    labels: Tensor
    remarks: tuple[str, ...]


def _write(path: Path, cached: _Cached) -> None:
    tensors = {"features": cached.features.contiguous(), "labels": cached.labels.contiguous()}
    digest = _digest(cached.features, cached.labels)
    write_atomically(path, save(tensors, metadata={"sha256": digest, "remarks": json.dumps(cached.remarks)}))


def _read(path: Path) -> _Cached | None:
    """The features in a file, or None if there is no file or it is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            features, labels = file.get_tensor("features"), file.get_tensor("labels")
            metadata = file.metadata() or {}
            remarks = tuple(map(str, from_json(metadata.get("remarks", "[]"))))
            intact = metadata.get("sha256") == _digest(features, labels)
    except (SafetensorError, OSError, ValueError, TypeError):
        intact = False
    if not intact:
        _log.warning("the cached features in %s are damaged: computing them again", path)
        return None
    return _Cached(features, labels, remarks)
