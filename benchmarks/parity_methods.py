"""What `parity.py` compares: for each method the clones, our recipe, and which of their names is which of ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from twinbench.foundation.errors import RunFailure

Weights = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]

BATCH = 16


@dataclass(frozen=True)
class Clone:
    """A repository that the user has cloned: the folder's name, and the files in it that are run.

    ``commit`` is one whose code runs, where the tip of the main branch does not have these files any more.
    """

    folder: str
    address: str
    files: tuple[str, ...]
    commit: str | None = None

    def command(self, official: object) -> str:
        """What makes the clone."""
        clone = f"git clone {self.address} {official}/{self.folder}"
        return clone + (f" && git -C {official}/{self.folder} checkout {self.commit}" if self.commit else "")


@dataclass(frozen=True)
class Subject:
    """One method's comparison.

    ``names`` are pairs of a pattern for the names of the authors' weights and of what it becomes among ours; those
    that become nothing have no counterpart, and ``alone`` is a pattern for ours that have none. ``not_shared`` is one
    for ours that mean something else there with several processes. Ours times ``loss_factor(processes)`` is the loss
    as the authors have it. Their side is run by ``runner`` in an interpreter of the user's, with ``settings``, or else
    by `parity_theirs.py`. Views have ``sizes`` pixels; ours are normalised by ``mean`` and ``std``. What is set, and
    why, is in parity_notes.md.
    """

    title: str
    clones: tuple[Clone, ...]
    sizes: tuple[int, ...]
    steps_per_epoch: int
    recipe_of: Callable[[int], dict[str, Any]]
    names: tuple[tuple[str, str], ...]
    alone: str = "(?!)"
    not_shared: str = "(?!)"
    loss_factor: Callable[[int], float] = lambda processes: 1.0
    processes: tuple[int, ...] = (1, 2)
    runner: str | None = None
    settings: Mapping[str, float] = field(default_factory=dict)
    mean: tuple[float, ...] = (0.5,) * 3
    std: tuple[float, ...] = (0.25,) * 3

    def recipe(self, steps: int, processes: int = 1) -> dict[str, Any]:
        """Our recipe for so many steps, with the values that the authors' program is called with."""
        shared = {"image_set": "prepared", "batch_size": BATCH, "epochs": steps // self.steps_per_epoch}
        return {**shared, **self.recipe_of(processes)}


def translated(subject: Subject, theirs: Weights, shapes: Shapes) -> Weights:
    """The authors' weights under our names and in our layouts, for our weights of the given ``shapes``.

    Raises RunFailure for a name of either side without counterpart, unless the subject says that it has none, and for a
    shape that does not fit.
    """
    found: Weights = {}
    for name, array in theirs.items():
        new = _renamed(subject, name)
        if not new:
            continue
        if new not in shapes:
            raise RunFailure(f"{name} would be {new}, which our {subject.title} has not")
        found[new] = _in_layout(array, shapes[new], name, subject.runner is not None)
    alone = f"{_COUNTERS}|{subject.alone}"
    missing = [name for name in shapes if name not in found and not re.search(alone, name)]
    if missing:
        raise RunFailure(f"no weights of the authors' for {', '.join(missing)}")
    return found


_COUNTERS = "num_batches_tracked$"


def _renamed(subject: Subject, name: str) -> str:
    if re.search(_COUNTERS, name):
        return ""
    for pattern, replacement in subject.names:
        if re.search(pattern, name):
            new = re.sub(pattern, replacement, name)
            return new if replacement else ""
    raise RunFailure(f"{subject.title}: nothing is known of the authors' weight {name}")


def _in_layout(array: np.ndarray, shape: tuple[int, ...], name: str, foreign: bool) -> np.ndarray:
    """Kernels with the output channels first; MoCo's queue with a key in each row."""
    if foreign and array.ndim == 4 and len(shape) == 4:
        array = array.transpose(3, 2, 0, 1)
    elif array.ndim == 2 and (foreign or name == "queue"):
        array = array.T
    if array.size != np.prod(shape) or (len(shape) > 1 and array.shape != shape):
        raise RunFailure(f"{name} has shape {array.shape}, ours {shape}")
    return array.reshape(shape).copy(order="C")


_FACEBOOK = "https://github.com/facebookresearch"


def _resnet(name: str, zero_init: bool) -> dict[str, Any]:
    return {"name": name, "width": 64, "stem": "imagenet", "zero_init": zero_init}


BARLOW_TWINS = Subject(
    title="Barlow Twins",
    clones=(Clone("barlowtwins", f"{_FACEBOOK}/barlowtwins", ("main.py",)),),
    sizes=(32, 32),
    steps_per_epoch=1,
    recipe_of=lambda processes: {
        "method": "barlow_twins",
        "backbone": _resnet("resnet50", zero_init=True),
        "optimizer": {"name": "lars", "base_lr": 25.6, "weight_decay": 1e-6},
        "schedule": {"warmup_epochs": 10, "final_factor": 0.001},
        "options": {"projector": (64, 64, 64), "norm_lr_scale": 0.024, "loss_scale": 1 / processes},
    },
    names=((r"^bn\.", ""), (r"^(backbone|projector)\.", r"\1.")),
    loss_factor=float,
)

SIMSIAM = Subject(
    title="SimSiam",
    clones=(Clone("simsiam", f"{_FACEBOOK}/simsiam", ("main_simsiam.py", "simsiam/builder.py")),),
    sizes=(32, 32),
    steps_per_epoch=2,
    recipe_of=lambda processes: {
        "method": "simsiam",
        "backbone": _resnet("resnet18", zero_init=True),
        "optimizer": {"name": "sgd", "base_lr": 1.6, "weight_decay": 1e-4},
        "schedule": {"per": "epoch"},
        "options": {"projector": (512, 512, 64), "predictor_hidden": 16},
    },
    names=(
        (r"^encoder\.fc\.(6\.bias|7\.running_mean)$", ""),
        (r"^encoder\.fc\.", "projector."),
        (r"^encoder\.", "backbone."),
        (r"^predictor\.", "predictor."),
    ),
    alone=r"^projector\.7\.running_mean$",
)

MOCO_V2 = Subject(
    title="MoCo v2",
    clones=(Clone("moco", f"{_FACEBOOK}/moco", ("main_moco.py", "moco/builder.py"), commit="7397dfe"),),
    sizes=(32, 32),
    steps_per_epoch=2,
    recipe_of=lambda processes: {
        "method": "moco_v2",
        "backbone": _resnet("resnet18", zero_init=False),
        "optimizer": {"name": "sgd", "base_lr": 0.48, "weight_decay": 1e-4},
        "schedule": {"per": "epoch"},
        "options": {
            "projector": (512, 64),
            "temperature": 0.2,
            "queue_length": 5 * BATCH,
            "momentum": 0.99,
            "bn_splits": processes,
        },
    },
    names=(
        (r"^encoder_q\.fc\.", "projector."),
        (r"^encoder_k\.fc\.", "key_projector."),
        (r"^encoder_q\.", "backbone."),
        (r"^encoder_k\.", "key_backbone."),
        (r"^queue$", "queue"),
        (r"^queue_ptr$", "queue_pointer"),
    ),
    not_shared="running_",
)

SWAV = Subject(
    title="SwAV",
    clones=(
        Clone("swav", f"{_FACEBOOK}/swav", ("main_swav.py", "src/resnet50.py", "src/utils.py")),
        Clone("apex", "https://github.com/NVIDIA/apex", ("apex/parallel/LARC.py",), commit="25.05"),
    ),
    sizes=(32, 32, 24, 24),
    steps_per_epoch=2,
    recipe_of=lambda processes: {
        "method": "swav",
        "backbone": _resnet("resnet18", zero_init=False),
        "optimizer": {"name": "larc", "base_lr": 9.6, "weight_decay": 1e-6, "exclude_nothing": True},
        "schedule": {"final_factor": 0.001},
        "options": {
            "projector": (64, 32),
            "prototypes": 30,
            "queue_length": 3 * BATCH,
            "queue_start_epoch": 2,
            "freeze_prototypes_steps": 4,
        },
        "views": [{"size": 32}, {"size": 32}, {"size": 24}, {"size": 24}],
    },
    names=(
        (r"^projection_head\.", "projector."),
        (r"^prototypes\.", "prototypes."),
        (r"^(conv1|bn1|layer\d)\.", r"backbone.\1."),
    ),
    alone="^queue$",
)

_RESNET50, _RESNET18 = (3, 4, 6, 3), (2, 2, 2, 2)


def _exactly(pairs: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((f"^{re.escape(theirs)}$", ours) for theirs, ours in pairs.items())


def _simclr_names() -> dict[str, str]:
    """TensorFlow counts the layers as they are made: in the first block of a stage the shortcut comes first."""
    layers = [("conv1", "bn1")]
    for stage, depth in enumerate(_RESNET50, start=1):
        for block in range(depth):
            here = f"layer{stage}.{block}"
            layers += [(f"{here}.downsample.0", f"{here}.downsample.1")] if block == 0 else []
            layers += [(f"{here}.conv{i}", f"{here}.bn{i}") for i in (1, 2, 3)]
    pairs = {}
    for index, (convolution, norm) in enumerate(layers):
        number = f"_{index}" if index else ""
        pairs[f"conv2d{number}/kernel:0"] = f"backbone.{convolution}.weight"
        pairs[f"sync_batch_normalization{number}/gamma:0"] = f"backbone.{norm}.weight"
        pairs[f"sync_batch_normalization{number}/beta:0"] = f"backbone.{norm}.bias"
    hidden, output = len(layers), len(layers) + 1
    return pairs | {
        "dense/kernel:0": "projector.0.weight",
        f"sync_batch_normalization_{hidden}/gamma:0": "projector.1.weight",
        f"sync_batch_normalization_{hidden}/beta:0": "projector.1.bias",
        "dense_1/kernel:0": "projector.3.weight",
        f"sync_batch_normalization_{output}/gamma:0": "projector.4.weight",
    }


def _byol_names() -> dict[str, str]:
    pairs = {}
    for network, ours in (("online", ""), ("target", "target_")):
        layers = {"initial_conv": "conv1", "initial_batchnorm": "bn1"}
        for stage, depth in enumerate(_RESNET18):
            for block in range(depth):
                theirs, here = f"block_group_{stage}/~/block_{block}/~", f"layer{stage + 1}.{block}"
                layers |= {f"{theirs}/conv_{i}": f"{here}.conv{i + 1}" for i in (0, 1)}
                layers |= {f"{theirs}/batchnorm_{i}": f"{here}.bn{i + 1}" for i in (0, 1)}
                layers |= {f"{theirs}/shortcut_conv": f"{here}.downsample.0"}
                layers |= {f"{theirs}/shortcut_batchnorm": f"{here}.downsample.1"}
        places = {f"encoder/~/{theirs}": f"{ours}backbone.{name}" for theirs, name in layers.items()}
        for head in ("projector", "predictor"):
            layers = {"linear": "0", "batch_norm": "1", "linear_1": "3"}
            places |= {f"{head}/{theirs}": f"{ours}{head}.{name}" for theirs, name in layers.items()}
        for theirs, place in places.items():
            weight, bias = ("scale", "offset") if "norm" in theirs else ("w", "b")
            pairs[f"{network}/{theirs}/{weight}"] = f"{place}.weight"
            if bias == "offset" or theirs.endswith("/linear"):
                pairs[f"{network}/{theirs}/{bias}"] = f"{place}.bias"
    return pairs


SIMCLR = Subject(
    title="SimCLR",
    clones=(
        Clone(
            "simclr",
            "https://github.com/google-research/simclr",
            ("tf2/model.py", "tf2/objective.py", "tf2/lars_optimizer.py", "tf2/resnet.py", "tf2/run.py"),
        ),
    ),
    sizes=(33, 33),
    steps_per_epoch=2,
    recipe_of=lambda processes: {
        "method": "simclr",
        "backbone": _resnet("resnet50", zero_init=True),
        "optimizer": {"name": "lars_simclr", "base_lr": 4.8, "weight_decay": 1e-6},
        "schedule": {"warmup_epochs": 4},
        "options": {"projector": (2048, 32), "temperature": 0.1, "loss_scale": 2.0},
    },
    names=tuple((rf"(^|.*/){re.escape(theirs)}$", ours) for theirs, ours in _simclr_names().items()),
    alone=r"running_|^projector\.4\.bias$",
    processes=(1,),
    runner="parity_simclr.py",
    settings={"base_lr": 4.8, "warmup_epochs": 4},
    mean=(0.0,) * 3,
    std=(1.0,) * 3,
)

BYOL = Subject(
    title="BYOL",
    clones=(
        Clone(
            "deepmind-research",
            "https://github.com/google-deepmind/deepmind-research",
            ("byol/byol_experiment.py", "byol/utils/networks.py", "byol/utils/optimizers.py"),
        ),
    ),
    sizes=(33, 33),
    steps_per_epoch=2,
    recipe_of=lambda processes: {
        "method": "byol",
        "backbone": _resnet("resnet18", zero_init=True),
        "optimizer": {"name": "lars", "base_lr": 51.2, "weight_decay": 1.5e-6},
        "schedule": {"warmup_epochs": 4},
        "options": {"projector": (64, 32), "predictor_hidden": 64, "tau_base": 0.99},
    },
    names=((r"/classifier/|^target/predictor/", ""), *_exactly(_byol_names())),
    alone="running_",
    processes=(1,),
    runner="parity_byol.py",
    settings={"base_lr": 51.2, "warmup_steps": 8},
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)

SUBJECTS: dict[str, Subject] = {
    "barlow_twins": BARLOW_TWINS,
    "simclr": SIMCLR,
    "byol": BYOL,
    "swav": SWAV,
    "simsiam": SIMSIAM,
    "moco_v2": MOCO_V2,
}
