"""How other projects name the weights of a ResNet, and what their networks expect of an image.

Each `Format` is read off its project's own code. A backbone's names become torchvision's; what belongs to heads,
momentum encoders and queues is left out on purpose, each with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from twinbench.data.augment import Normalisation
from twinbench.data.image_sets import CIFAR10_NORMALISATION, IMAGENET_NORMALISATION
from twinbench.encoders.backbones import Stem
from twinbench.encoders.deviations import Deviation
from twinbench.encoders.foreign.detectron2_names import torchvision_name
from twinbench.encoders.foreign.files import CheckpointFile
from twinbench.foundation.registry import Registry

_SWAV = replace(IMAGENET_NORMALISATION, std=(0.228, 0.224, 0.225))  # swav src/multicropdataset.py
_UNIT_RANGE = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # simclr data_util.py: none

_STATISTIC = "(weight|bias|running_mean|running_var|num_batches_tracked)"
_BACKBONE = re.compile(rf"(conv1|bn1|layer[1-4]\.\d+\.(conv[123]|bn[123]|downsample\.[01]))\.{_STATISTIC}")


def _as_it_is(name: str) -> str:
    return name


@dataclass(frozen=True)
class Layout:
    """Names that begin with ``prefix`` and that ``rename`` makes torchvision's.

    ``deviations`` says for which stems the network of this layout computes differently; ``note`` cautions the reader.
    ``shared`` says that others write these very names, so that they speak for the format's method only where the user
    says that they do; the note is about that and goes to who did not say.
    ``small_stem`` says that a 3x3 first convolution of this layout is the stem ``small``, since the project writes no
    other; elsewhere nobody knows its stride.
    """

    prefix: str = ""
    rename: Callable[[str], str] = _as_it_is
    deviations: Mapping[Stem, Deviation] = field(default_factory=dict)
    note: str = ""
    shared: bool = False
    small_stem: bool = False

    def names(self, keys: list[str]) -> dict[str, str]:
        """torchvision's name of every key under the prefix, whether or not it belongs to a ResNet."""
        return {
            key: self.rename(key.removeprefix(self.prefix)) for key in keys if key.startswith(self.prefix)
        }

    def backbone(self, keys: list[str]) -> dict[str, str]:
        """The key of every torchvision name of a ResNet that is there."""
        return {name: key for key, name in self.names(keys).items() if _BACKBONE.fullmatch(name)}


@dataclass(frozen=True)
class Format:
    """A project's way to write a checkpoint.

    ``recognise`` decides from the keys alone. ``ignored`` maps a reason to the keys that are left out for it.
    ``method`` is what the weights were trained with, None where the project trains many; ``siblings`` maps keys that
    only the network of another of its methods has to that method. Images with the small stem are normalised with
    ``small_normalisation``.
    """

    name: str
    layouts: tuple[Layout, ...]
    recognise: Callable[[CheckpointFile], bool]
    ignored: Mapping[str, str] = field(default_factory=dict)
    method: str | None = None
    siblings: Mapping[str, str] = field(default_factory=dict)
    normalisation: Normalisation = IMAGENET_NORMALISATION
    small_normalisation: Normalisation = IMAGENET_NORMALISATION

    def layout(self, keys: list[str]) -> Layout:
        """The layout that explains most of the keys."""
        return max(self.layouts, key=lambda layout: len(layout.backbone(keys)))

    def trained_with(self, keys: list[str]) -> str | None:
        """The method that the keys speak of, None where the project trains many."""
        others = (
            sibling for pattern, sibling in self.siblings.items() if any(re.match(pattern, k) for k in keys)
        )
        return next(others, self.method)

    def reason_to_ignore(self, key: str) -> str | None:
        """Why a key is left out, or None if that is not known."""
        return next((why for why, pattern in self.ignored.items() if re.match(pattern, key)), None)


def _any(checkpoint: CheckpointFile, pattern: str) -> bool:
    compiled = re.compile(pattern)
    return any(compiled.match(key) for key in checkpoint.tensors)


def _plain(checkpoint: CheckpointFile) -> bool:
    """Whether it holds torchvision's names at top level."""
    return _any(checkpoint, r"(conv1|bn1|layer[1-4]\.\d+)\.")


def _classified(checkpoint: CheckpointFile) -> bool:
    return _any(checkpoint, r"fc\.")


def _counts_batches(checkpoint: CheckpointFile) -> bool:
    return any(key.endswith("num_batches_tracked") for key in checkpoint.tensors)


def _statistics_last(checkpoint: CheckpointFile) -> bool:
    """Whether all running statistics follow all parameters, as no module ever writes them but a converter does."""
    statistics = ["running_" in key for key in checkpoint.tensors]
    return any(statistics) and statistics == sorted(statistics)


def _never_trained_in_torch(checkpoint: CheckpointFile) -> bool:
    """Whether every batch norm has counted no batch: the weights were copied in from elsewhere."""
    counters = [t for key, t in checkpoint.tensors.items() if key.endswith("num_batches_tracked")]
    return bool(counters) and not any(bool(t.any()) for t in counters)


def _is_barlow_twins(c: CheckpointFile) -> bool:
    trained = c.wrappers == ("model",) and _any(c, r"backbone\.") and _any(c, r"projector\.")
    published = _plain(c) and not c.description and not _any(c, r"fc\.|projection_head\.|prototypes\.")
    return trained or published


def _is_simsiam(c: CheckpointFile) -> bool:
    return _any(c, r"encoder\.fc\.") and _any(c, r"predictor\.")


def _is_swav(c: CheckpointFile) -> bool:
    return _plain(c) and _any(c, r"(projection_head|prototypes)\.")


def _is_byol(c: CheckpointFile) -> bool:
    """byol-convert writes torchvision's names without batch counters, statistics last; old torchvision files lack the
    counters as well, so without that order both are possible.
    """
    return _plain(c) and _classified(c) and not _counts_batches(c)


def _is_simclr(c: CheckpointFile) -> bool:
    v1 = c.wrappers == ("state_dict",) and not c.beside and _plain(c) and _classified(c)
    return (v1 and _never_trained_in_torch(c)) or _any(c, r"net\.[1-4]\.blocks\.")


def _is_torchvision(c: CheckpointFile) -> bool:
    converted = _is_simclr(c) or (_is_byol(c) and _statistics_last(c))
    return _plain(c) and (_classified(c) or bool(c.description)) and not converted


_LIGHTLY_ONLY = (
    r"(projection_head|prediction_head|online_classifier|criterion|(backbone|projection_head)_momentum"
    r"|(student|teacher|query|key)_\w+)[._]"
)


def _is_solo_learn(c: CheckpointFile) -> bool:
    own = c.wrappers == ("state_dict",) or _any(c, r"classifier\.|momentum_")
    named = _any(c, r"(backbone|encoder)\.(conv1|bn1|layer[1-4])\.")
    return named and own and not _any(c, _LIGHTLY_ONLY) and not _is_simsiam(c)


def _is_lightly(c: CheckpointFile) -> bool:
    named = _any(c, r"backbone\.(conv1|bn1|layer[1-4])\.") and _any(c, _LIGHTLY_ONLY)
    return named or _any(c, r"backbone\.[0-7]\.")


def _of_sequence(positions: Mapping[str, str]) -> Callable[[str], str]:
    """Names of a Sequential's children made into those of the modules at these positions."""

    def rename(name: str) -> str:
        position, _, rest = name.partition(".")
        # an unknown position keeps its number and so is no part of a backbone
        return f"{positions.get(position, position)}.{rest}".replace(".shortcut.", ".downsample.")

    return rename


_SIMCLR_V2_BLOCK = {
    "net.0": "conv1", "net.1.0": "bn1", "net.2": "conv2", "net.3.0": "bn2", "net.4": "conv3", "net.5.0": "bn3",
    "projection.shortcut": "downsample.0", "projection.bn.0": "downsample.1",
}  # fmt: skip


def _of_simclr_v2(name: str) -> str:
    """``net.2.blocks.0.net.1.0.weight`` is ``layer2.0.bn1.weight``; the stem is ``net.0``."""
    stem = re.fullmatch(rf"net\.0\.(0|1\.0)\.{_STATISTIC}", name)
    if stem:
        return f"{'conv1' if stem[1] == '0' else 'bn1'}.{stem[2]}"
    block = re.fullmatch(rf"net\.([1-4])\.blocks\.(\d+)\.(.+)\.{_STATISTIC}", name)
    if block and block[3] in _SIMCLR_V2_BLOCK:
        return f"layer{block[1]}.{block[2]}.{_SIMCLR_V2_BLOCK[block[3]]}.{block[4]}"
    return name


# The children of torchvision's ResNet, and of lightly's own, which has neither ReLU nor max-pool as modules.
_TORCHVISION_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_LIGHTLY_CHILDREN = {"0": "conv1", "1": "bn1", "2": "layer1", "3": "layer2", "4": "layer3", "5": "layer4"}

_SAME: Mapping[Stem, Deviation] = {"imagenet": "same_padding", "small": "same_padding"}
_SAME_POOL: Mapping[Stem, Deviation] = {"imagenet": "same_max_pool"}
_SOLO: Mapping[Stem, Deviation] = {"small": "stem_padding_2"}
_ANYBODYS = (
    "these are the names of the official Barlow Twins file and of others: torchvision's without a classifier. The "
    "method is called as the file is; name it as you import it, barlow_twins if it is one"
)
_COLOURS = (
    "a Detectron2 file says neither the order of colours nor where blocks have their stride. Taken as RGB with the "
    "stride on the 3x3 convolution, as twinbench's export and MoCo's conversion write it; Caffe's networks (MSRA's "
    "R-50.pkl and what was trained from it) are BGR with the stride on the 1x1 convolution and give wrong features here"
)
_CLASSIFIER = {"classifier": r"fc\."}

_FORMATS = (
    Format(
        name="barlow_twins",
        layouts=(Layout(note=_ANYBODYS, shared=True), Layout("backbone.")),
        recognise=_is_barlow_twins,
        ignored={"projector": r"projector\.", "batch norm of the loss": r"bn\."},
        method="barlow_twins",
    ),
    Format(
        name="moco_v2",
        layouts=(Layout("encoder_q."),),
        recognise=lambda c: _any(c, r"encoder_q\."),
        ignored={
            "momentum encoder": r"encoder_k\.",
            "projector": r"encoder_q\.fc\.",
            "queue": r"queue",
        },
        method="moco_v2",
        siblings={r"encoder_q\.fc\.weight": "moco_v1"},  # its projector is one layer
    ),
    Format(
        name="swav",
        layouts=(Layout(),),
        recognise=_is_swav,
        ignored={"projector": r"projection_head\.", "prototypes": r"prototypes\."},
        method="swav",
        siblings={r"prototypes\.prototypes\d": "deepcluster_v2"},  # several sets of them
        normalisation=_SWAV,
    ),
    Format(
        name="simsiam",
        layouts=(Layout("encoder."),),
        recognise=_is_simsiam,
        ignored={"projector": r"encoder\.fc\.", "predictor": r"predictor\."},
        method="simsiam",
    ),
    Format(
        name="byol",
        layouts=(Layout(deviations=_SAME),),
        recognise=_is_byol,
        ignored=_CLASSIFIER,
        method="byol",
    ),
    Format(
        name="simclr",
        layouts=(Layout(deviations=_SAME_POOL), Layout(rename=_of_simclr_v2, deviations=_SAME_POOL)),
        recognise=_is_simclr,
        ignored=_CLASSIFIER,
        method="simclr",
        normalisation=_UNIT_RANGE,
        small_normalisation=_UNIT_RANGE,
    ),
    Format(
        name="vissl",
        layouts=tuple(
            Layout(f"{trunk}{base}_feature_blocks.")
            for trunk in ("trunk.", "")
            for base in ("", "base_model.")
        ),
        recognise=lambda c: _any(c, r"(trunk\.)?(base_model\.)?_feature_blocks\."),
        ignored={"heads": r"heads\."},
    ),
    Format(
        name="solo_learn",
        layouts=tuple(Layout(name, deviations=_SOLO, small_stem=True) for name in ("backbone.", "encoder.")),
        recognise=_is_solo_learn,
        ignored={
            "momentum encoder": r"momentum_",
            "projector": r"projector\.",
            "predictor": r"predictor\.",
            "prototypes": r"prototypes\.",
            "classifier": r"(classifier|(backbone|encoder)\.fc)\.",
            "queue": r"queue",
        },
        small_normalisation=CIFAR10_NORMALISATION,
    ),
    Format(
        name="lightly",
        layouts=(
            Layout("backbone."),
            Layout("backbone.", _of_sequence(_TORCHVISION_CHILDREN)),
            Layout("backbone.", _of_sequence(_LIGHTLY_CHILDREN), {"small": "no_stem_relu"}, small_stem=True),
        ),
        recognise=_is_lightly,
        ignored={
            "second branch": r"(teacher|student|query|key)_|\w+_momentum\.",
            "projector": r"projection_head\.",
            "predictor": r"prediction_head\.",
            "prototypes": r"prototypes\.",
            "classifier": r"(online_classifier|backbone\.fc)\.",
            "queue": r"criterion\.",
        },
    ),
    Format(
        name="torchvision",
        layouts=(Layout(),),
        recognise=_is_torchvision,
        ignored=_CLASSIFIER,
    ),
    Format(
        name="timm",
        layouts=(Layout(),),
        # its plain ResNets have torchvision's very names and arithmetic, so they are read as torchvision's
        recognise=lambda c: False,
        ignored=_CLASSIFIER,
    ),
    Format(
        name="detectron2",
        layouts=(Layout(rename=torchvision_name, note=_COLOURS),),
        recognise=lambda c: _any(c, r"(backbone\.(bottom_up\.)?)?(stem\.conv1|res[2-5]\.\d+)\."),
        ignored={
            "classifier": r"(backbone\.(bottom_up\.)?)?(stem\.fc|linear)\.",
            "norm after res5": r"roi_heads\.res5\.norm\.",
            "feature pyramid": r"backbone\.(fpn_|top_block\.)",
            "proposal network": r"proposal_generator\.",
            "predictors": r"(roi_heads|sem_seg_head|head)\.",
            "pixel statistics": r"pixel_(mean|std)$",
        },
    ),
)

FORMATS = Registry[Format]("format")
for _each in _FORMATS:
    FORMATS.add(_each.name, _each)


def format_names() -> list[str]:
    """The formats that can be imported."""
    return FORMATS.names()
