"""The encoder: a pretrained backbone on disk, and the features it gives.

A folder with ``encoder.safetensors`` (torchvision parameter names) and ``encoder.json`` (architecture, stem,
feature width, input size, channel order, mean and standard deviation, recipe hash, origin, SHA-256; of an imported
one also the file it came from). No pickle.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeGuard, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from twinbench.data.augment import Normalisation
from twinbench.data.streaming import Images
from twinbench.data.views import in_turns, plain_views
from twinbench.encoders.backbones import ResNet, Stem, build_backbone
from twinbench.encoders.deviations import Deviation, deviate
from twinbench.foundation.documents import sealed, unsealed
from twinbench.foundation.errors import InputError
from twinbench.foundation.files import write_atomically

WEIGHTS_FILE = "encoder.safetensors"
INFO_FILE = "encoder.json"
_SIZES = range(8, 1025)  # of input images, in pixels
_WIDTHS = range(1, 2**20)  # of a stage of the network


_AGAIN = "delete the encoder's folder and run the command again that made it"


class DamagedEncoder(InputError):
    """The files of an encoder are not there, or not as they were written."""


@dataclass(frozen=True)
class EncoderInfo:
    """What a user of an encoder must know besides its weights.

    ``deviation`` says how its network computes differently from torchvision's. The fields ``source_*`` are those of an
    imported encoder: the checkpoint's file name, format and SHA-256, and the caution that its import gave, if any.
    """

    architecture: str
    width: int
    stem: Stem
    feature_dim: int
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    method: str
    recipe_hash: str
    origin: str = "run"
    channel_order: str = "RGB"
    deviation: Deviation = "none"
    source_file: str = ""
    source_format: str = ""
    source_sha256: str = ""
    source_note: str = ""

    def build(self) -> ResNet:
        """A freshly initialised backbone that this describes; raises InputError for an unknown name."""
        return deviate(build_backbone(self.architecture, self.width, self.stem), self.deviation)


def checked_description(document: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `EncoderInfo` that a file says and no tensor can contradict: name, stem, size and normalisation.

    A wrong one would give wrong features without a complaint: a deviation of 0 makes infinities, say. Raises ValueError
    unless the method is a line of text, the stem a known one, the input size an int of 8 to 1024 pixels, and mean and
    deviation three numbers in [0, 1], the deviation above 0.
    """
    size, std = document.get("input_size"), document.get("std")
    valid = {
        "method": is_method_name(document.get("method")),
        "stem": document.get("stem") in get_args(Stem),
        "input_size": type(size) is int and size in _SIZES,
        "mean": _are_shares(document.get("mean")),
        "std": _are_shares(std) and min(std) > 0,
    }
    wrong = next((key for key, right in valid.items() if not right), None)
    if wrong:
        raise ValueError(f"{wrong} cannot be {str(document.get(wrong))[:60]!r}")
    fields = {key: document[key] for key in ("method", "stem", "input_size")}
    return fields | {key: tuple(map(float, document[key])) for key in ("mean", "std")}


def is_method_name(name: object) -> bool:
    """Whether it can stand in a table: one line of printable text."""
    return isinstance(name, str) and name.isprintable() and bool(name.strip())


def _are_shares(values: object) -> TypeGuard[list[float]]:
    """Whether these are three numbers in [0, 1], one for each channel; NaN, which JSON lets through, is not."""
    return (
        isinstance(values, list)
        and len(values) == 3
        and all(type(value) in (int, float) and 0 <= value <= 1 for value in values)
    )


class Encoder:
    """A frozen backbone in evaluation mode together with how to feed it."""

    def __init__(self, backbone: ResNet, info: EncoderInfo, checksum: str) -> None:
        self.backbone = backbone.eval().requires_grad_(False)
        self.info = info
        self.checksum = checksum

    @property
    def input_size(self) -> int:
        """Side of the square images it was trained on, in pixels."""
        return self.info.input_size

    @property
    def feature_dim(self) -> int:
        """Width of the pooled features."""
        return self.info.feature_dim

    @property
    def mean(self) -> tuple[float, float, float]:
        """Channel means of the normalisation, in [0, 1]."""
        return self.info.mean

    @property
    def std(self) -> tuple[float, float, float]:
        """Channel standard deviations of the normalisation, in [0, 1]."""
        return self.info.std

    @property
    def normalisation(self) -> Normalisation:
        """``mean`` and ``std``, as views are normalised by them."""
        return Normalisation(self.mean, self.std)

    @torch.no_grad()
    def features(self, images: Images) -> Tensor:
        """Pooled features ``[N, feature_dim]`` (float32, on the CPU) of uint8 images ``[N, 3, H, W]``.

        The images may be streamed; they are decoded batch by batch then. Several ranks compute them in turns.
        """
        device = next(self.backbone.parameters()).device

        def computed(rows: Tensor) -> Iterator[Tensor]:
            for views in plain_views(images, rows, self.input_size, self.normalisation, device):
                yield self.backbone(views).float()

        return torch.cat([batch.cpu() for batch in in_turns(torch.arange(len(images)), computed)])

    def fresh_backbone(self) -> ResNet:
        """A trainable copy of the backbone, for fine-tuning; the encoder itself stays as it is."""
        return copy.deepcopy(self.backbone).train().requires_grad_(True)

    @staticmethod
    def save(folder: Path, backbone: ResNet, info: EncoderInfo) -> Encoder:
        """Write a backbone as an encoder; the information file comes last and makes it valid."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = save({k: v.detach().cpu().contiguous() for k, v in backbone.state_dict().items()})
        checksum = hashlib.sha256(weights).hexdigest()
        write_atomically(folder / WEIGHTS_FILE, weights)
        write_atomically(folder / INFO_FILE, sealed({**asdict(info), "sha256": checksum}))
        return Encoder.load(folder)

    @staticmethod
    def load(folder: Path) -> Encoder:
        """Read an encoder; raises DamagedEncoder if a file is missing, altered or does not fit the architecture."""
        info_file, weights_file = folder / INFO_FILE, folder / WEIGHTS_FILE
        if not info_file.is_file() or not weights_file.is_file():
            missing = info_file.name if not info_file.is_file() else weights_file.name
            raise DamagedEncoder(
                f"no encoder here: {missing} is missing",
                where=folder,
                next_step="give the folder that holds encoder.json, e.g. runs/<run>/encoder",
            )
        try:
            document = unsealed(info_file.read_text(encoding="utf-8"))
            expected = document.pop("sha256")
            info = EncoderInfo(**{**document, **checked_description(document)})
            _require_fields(info)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedEncoder(
                f"not an encoder's description: {type(error).__name__}: {error}",
                where=info_file,
                next_step=_AGAIN,
            ) from error
        if hashlib.sha256(weights_file.read_bytes()).hexdigest() != expected:
            raise DamagedEncoder(
                "the encoder's weights do not match their checksum",
                where=weights_file,
                next_step=_AGAIN,
            )
        _require_its_shapes(info, weights_file)
        backbone = info.build()
        try:
            backbone.load_state_dict(load_file(weights_file))
        except (RuntimeError, SafetensorError) as error:
            raise DamagedEncoder(
                f"the weights do not fit {info.architecture}: {error}", where=folder
            ) from error
        return Encoder(backbone, info, expected)


def _require_fields(info: EncoderInfo) -> None:
    """Raise ValueError unless the fields that `checked_description` leaves are of their kinds."""
    for each in fields(info):
        value = getattr(info, each.name)
        if each.name in ("width", "feature_dim"):
            if type(value) is not int or value not in _WIDTHS:
                raise ValueError(f"{each.name} cannot be {str(value)[:60]!r}")
        elif each.name not in ("input_size", "mean", "std") and not isinstance(value, str):
            raise ValueError(f"{each.name} cannot be {str(value)[:60]!r}")


def _require_its_shapes(info: EncoderInfo, weights_file: Path) -> None:
    """Raise DamagedEncoder unless the file holds the tensors of the network, then built no larger than the file.

    On the device ``meta`` tensors have shapes and no memory.
    """
    with torch.device("meta"):
        expected = {name: list(tensor.shape) for name, tensor in info.build().state_dict().items()}
    try:
        with safe_open(weights_file, framework="pt") as file:
            there = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DamagedEncoder(f"the weights cannot be read: {error}", where=weights_file) from error
    wrong = [name for name in (*expected, *there) if expected.get(name) != there.get(name)]
    if wrong:
        name = wrong[0]
        raise DamagedEncoder(
            f"the weights do not fit {info.architecture} of width {info.width}: {name} is {there.get(name)}, not "
            f"{expected.get(name)}",
            where=weights_file,
            next_step=_AGAIN,
        )
