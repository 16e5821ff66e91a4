"""How other projects name the weights of a ResNet, and what their networks expect of an image.

Each `Format` is read off its project's own code, and recognised by what that code alone writes: the names and shapes
of its heads, its queue, its name in the file, never by a wrapper such as ``model`` or ``state_dict``, which everybody
uses. What speaks of no project is read as ``plain``, and what may be one of two is asked for. Names tell whose code
wrote a file and how its network computes, not what it was trained with, for others train other methods with the same
code: the method is for the user to say. A backbone's names become torchvision's; what belongs to heads, momentum
encoders and queues is left out on purpose, each with its reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

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
_BLOCK = r"layer[1-4]\.\d+\.(conv[123]|bn[123]|downsample\.[01])"
_BLOCK_OF_SEQUENCE = r"[2-7]\.\d+\.(conv[123]|bn[123]|(downsample|shortcut)\.[01])"
_BACKBONE = re.compile(rf"(conv1|bn1|{_BLOCK})\.{_STATISTIC}")
_NETWORK = 10  # so many tensors of residual blocks, fewer than any ResNet has, are a network and no accident


def _as_it_is(name: str) -> str:
    return name


@dataclass(frozen=True)
class Layout:
    """Names that begin with ``prefix`` and that ``rename`` makes torchvision's.

    ``anywhere`` says that the prefix may be any. ``blocks`` is the pattern of the names of residual blocks, by which
    networks under other prefixes are found; empty where they are not looked for. ``deviations`` says for which stems
    the network of this layout computes differently; ``note`` cautions the reader. ``shared`` says that others write
    these very names, so that they speak for the format's method only where the user says that they do; the note is
    about that and goes to who did not say.
    ``small_stem`` says that a 3x3 first convolution of this layout is the stem ``small``, since the project writes no
    other; elsewhere nobody knows its stride.
    """

    prefix: str = ""
    rename: Callable[[str], str] = _as_it_is
    deviations: Mapping[Stem, Deviation] = field(default_factory=dict)
    note: str = ""
    shared: bool = False
    small_stem: bool = False
    anywhere: bool = False
    blocks: str = _BLOCK

    def prefixes(self, keys: list[str]) -> list[str]:
        """What stands before the names of each network in this layout, in the file's order."""
        if not self.blocks:
            return []
        pattern = re.compile(rf"((?:.*?\.)?){self.blocks}\.{_STATISTIC}")
        found = Counter(match[1] for key in keys if (match := pattern.fullmatch(key)))
        return [prefix for prefix, tensors in found.items() if tensors >= _NETWORK]

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

    ``recognise`` decides from what is in the file. ``ignored`` maps a reason to the keys that are left out for it.
    ``evaluates`` says, after the name of the network that is read, that it is the one which the project evaluates.
    ``method`` is what the project trains, as the weights are called where the user names the format, None where it
    trains many; ``siblings`` maps keys that only the network of another of its methods has to that method. ``code`` is
    whose names these are, in words, and ``used_for`` what else is known to be trained with it. Images with the small
    stem are normalised with ``small_normalisation``.
    """

    name: str
    layouts: tuple[Layout, ...]
    recognise: Callable[[CheckpointFile], bool]
    ignored: Mapping[str, str] = field(default_factory=dict)
    method: str | None = None
    siblings: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    used_for: str = ""
    normalisation: Normalisation = IMAGENET_NORMALISATION
    small_normalisation: Normalisation = IMAGENET_NORMALISATION
    evaluates: str = ""

    def layout(self, keys: list[str]) -> Layout:
        """The layout that explains most of the keys."""
        placed = [
            replace(layout, prefix=prefix)
            for layout in self.layouts
            for prefix in (layout.anywhere and layout.prefixes(keys)) or [layout.prefix]
        ]
        return max(placed, key=lambda layout: len(layout.backbone(keys)))

    def networks(self, keys: list[str]) -> dict[str, Layout]:
        """Every network in a layout of this format, by what stands before its names."""
        found: dict[str, Layout] = {}
        for layout in self.layouts:
            for prefix in layout.prefixes(keys):
                placed = replace(layout, prefix=prefix)
                best = found.setdefault(prefix, placed)
                if len(placed.backbone(keys)) > len(best.backbone(keys)):
                    found[prefix] = placed
        return found

    def trained_with(self, keys: list[str]) -> str | None:
        """The method that the project trains such networks with, None where it trains many."""
        others = (
            sibling for pattern, sibling in self.siblings.items() if any(re.match(pattern, k) for k in keys)
        )
        return next(others, self.method)

    def caution(self, keys: list[str]) -> str:
        """What to know of a file whose method nobody named; empty where the project trains many."""
        method = self.trained_with(keys)
        if method is None:
            return ""
        others = f" ({self.used_for})" if self.used_for else ""
        return (
            f"these are the names of {self.code}, which others use as well{others}, so the method is called as the "
            f"file is; if it is {method}, name it as you import it"
        )

    def reason_to_ignore(self, key: str) -> str | None:
        """Why a key is left out, or None if that is not known."""
        return next((why for why, pattern in self.ignored.items() if re.match(pattern, key)), None)


def _any(checkpoint: CheckpointFile, pattern: str) -> bool:
    compiled = re.compile(pattern)
    return any(compiled.match(key) for key in checkpoint.tensors)


def _parts(checkpoint: CheckpointFile) -> set[str]:
    """The modules at the top of the network: what stands before the first dot of each name."""
    return {key.partition(".")[0] for key in checkpoint.tensors}


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


def _trained_with_projector(c: CheckpointFile) -> bool:
    """Whether there are a backbone and a projector, and nothing but them and ``bn``."""
    named = {"backbone", "projector"} <= _parts(c) <= {"backbone", "projector", "bn"}
    return named and _any(c, r"backbone\.layer1\.")


def _is_barlow_twins(c: CheckpointFile) -> bool:
    """main.py: the batch norm of the loss has no scale and no shift; the projector's linear layers have no bias."""
    normed = "bn.running_mean" in c.tensors and "bn.weight" not in c.tensors
    return _trained_with_projector(c) and normed and "projector.0.bias" not in c.tensors


def _is_vicreg(c: CheckpointFile) -> bool:
    """main_vicreg.py: the linear layers of its projector have a bias, but for the last one; no norm in the loss."""
    linear = [k for k, t in c.tensors.items() if re.fullmatch(r"projector\.\d+\.weight", k) and t.ndim == 2]
    biased = [k.replace("weight", "bias") in c.tensors for k in linear]
    return (
        _trained_with_projector(c)
        and not _any(c, r"bn\.")
        and len(biased) > 1
        and biased[-2:] == [True, False]
    )


def _is_moco(c: CheckpointFile) -> bool:
    """moco/builder.py: the encoders are whole ResNets, and there is one queue and nothing else."""
    alone = {"encoder_q", "queue"} <= _parts(c) <= {"encoder_q", "encoder_k", "queue", "queue_ptr"}
    return alone and _any(c, r"encoder_q\.(conv1|layer\d)\.")


def _is_moco_v3(c: CheckpointFile) -> bool:
    """moco/builder.py of moco-v3; in mmselfsup a number comes after base_encoder."""
    alone = _parts(c) == {"base_encoder", "momentum_encoder", "predictor"}
    return alone and _any(c, r"base_encoder\.(conv1|layer\d)\.")


def _is_simsiam(c: CheckpointFile) -> bool:
    """simsiam/builder.py: the third linear layer has a bias, the norm after it no scale; the predictor two layers."""
    head = {"encoder.fc.0.weight", "encoder.fc.6.bias", "encoder.fc.7.running_mean", "predictor.3.bias"}
    whole = head <= c.tensors.keys() and "encoder.fc.7.weight" not in c.tensors
    return whole and _parts(c) == {"encoder", "predictor"}


def _is_swav(c: CheckpointFile) -> bool:
    """src/resnet50.py: both heads are in the ResNet itself, which has no classifier."""
    backbone = {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}
    return _plain(c) and _parts(c) - backbone == {"projection_head", "prototypes"}


def _is_dino(c: CheckpointFile) -> bool:
    """main_dino.py saves two networks and the centre of the loss."""
    both = all(_any(c, rf"{name}\.backbone\.(conv1|layer\d)\.") for name in ("student", "teacher"))
    return both and "dino_loss.center" in c.tensors


_NECK = (
    r"neck|(encoder(_q)?|online_net|base_encoder)\.1"  # 0.x keeps backbone and neck in a Sequential as well
)
_OF_MMSELFSUP = re.compile(
    r"(backbone|neck|head|memory_bank|data_preprocessor|encoder(_[qk])?|(online|target)_net|(base|momentum)_encoder)\."
    r"|queue|loss_weight"
)


def _is_mmselfsup(c: CheckpointFile) -> bool:
    """OpenMMLab's runners write ``meta``; mmselfsup's algorithms (0.x and 1.x, and mmpretrain's) have these parts and
    no other, and a neck, which OpenMMLab's classifiers lack and its detectors have beside parts of their own.
    mmselfsup's tools/model_converters/extract_backbone_weights.py leaves its name.
    """
    if c.beside.get("author") == "MMSelfSup":
        return _plain(c)
    own = all(_OF_MMSELFSUP.match(key) for key in c.tensors) and _any(c, rf"({_NECK})\.")
    return isinstance(c.beside.get("meta"), Mapping) and own and _any(c, r"backbone\.(conv1|layer\d)\.")


def _is_byol(c: CheckpointFile) -> bool:
    """byol-convert writes torchvision's names without batch counters, statistics last; old torchvision files lack the
    counters as well, so without that order both are possible.
    """
    return _plain(c) and _classified(c) and not _counts_batches(c)


def _is_simclr(c: CheckpointFile) -> bool:
    """simclr-converter saves a ResNet with a classifier that never trained in torch, but torchvision's weights of 2017,
    loaded and saved again, look the same. SimCLRv2-Pytorch has names of its own.
    """
    v1 = c.wrappers == ("state_dict",) and not c.beside and _plain(c) and _classified(c)
    return (v1 and _never_trained_in_torch(c)) or _any(c, r"net\.[1-4]\.blocks\.")


def _is_torchvision(c: CheckpointFile) -> bool:
    converted = _is_byol(c) and _statistics_last(c)
    return _plain(c) and (_classified(c) or bool(c.description)) and not converted


def _optimised(c: CheckpointFile) -> set[str]:
    """What the parameter groups in the optimizer states of a Lightning checkpoint are called."""
    groups = [
        group
        for state in _listed(c.beside.get("optimizer_states"))
        for group in _listed(state.get("param_groups"))
    ]
    return {name for group in groups if isinstance(name := group.get("name"), str)}


def _listed(value: object) -> list[Mapping[str, Any]]:
    """The mappings in a list; none in anything else, for a file may hold what it likes."""
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


_SOLO_HEADS = {"projector", "predictor", "prototypes", "head", "decoder", "momentum_classifier"}


def _is_solo_learn(c: CheckpointFile) -> bool:
    """solo/methods/base.py calls the parameter groups of its optimizer by the parts of the network; Lightning does not.

    The names of the tensors are those that anybody gives.
    """
    named = _optimised(c)
    parts = bool(named & {"backbone", "encoder"}) and "classifier" in named and bool(named & _SOLO_HEADS)
    return parts and _any(c, r"classifier\.") and _any(c, r"(backbone|encoder)\.(conv1|bn1|layer[1-4])\.")


# lightly/models/modules/heads.py, lightly/utils/benchmarking/online_linear_classifier.py, lightly/models/resnet.py
_LIGHTLY_HEADS = r"(\w+_)?(projection|prediction)_head(_momentum)?\.layers\.\d+\.|online_classifier\.linear\."
_LIGHTLY_BLOCKS = r"backbone\.[2-5]\.\d+\.shortcut\."


def _is_lightly(c: CheckpointFile) -> bool:
    """lightly's heads keep their layers in ``layers``; its own ResNet, taken apart, has shortcuts from place 2 on."""
    named = _any(c, r"backbone\.((conv1|bn1|layer[1-4])|[0-7])\.")
    return named and (_any(c, _LIGHTLY_HEADS) or _any(c, _LIGHTLY_BLOCKS))


def _is_plain(c: CheckpointFile) -> bool:
    """Whether there is a ResNet of torchvision's names, under any prefix, and nothing that speaks of a project."""
    keys = list(c.tensors)
    found = any(layout.prefixes(keys) for layout in _PLAIN_LAYOUTS)
    return found and not any(each.recognise(c) for each in _PROJECTS)


def _of_sequence(positions: Mapping[str, str]) -> Callable[[str], str]:
    """Names of a Sequential's children made into those of the modules at these positions."""

    def rename(name: str) -> str:
        position, _, rest = name.partition(".")
        if position not in positions:  # no part of a backbone, even if it is called layer2
            return f"other.{name}"
        return f"{positions[position]}.{rest}".replace(".shortcut.", ".downsample.")

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
    "the keys are those of torchvision's ResNet and speak of no project (the backbones that Barlow Twins, VICReg and "
    "DINO publish look alike): it computes as torchvision's does, images are fed with ImageNet's mean and deviation, "
    "and the method is called as the file is; name it as you import it"
)
_COLOURS = (
    "a Detectron2 file says neither the order of colours nor where blocks have their stride. Taken as RGB with the "
    "stride on the 3x3 convolution, as twinbench's export and MoCo's conversion write it; Caffe's networks (MSRA's "
    "R-50.pkl and what was trained from it) are BGR with the stride on the 1x1 convolution and give wrong features here"
)
_CLASSIFIER = {"classifier": r"fc\."}
# Where a project publishes the backbone alone, under torchvision's names, nothing in the file speaks of it.
_BACKBONE_ALONE = Layout(note=_ANYBODYS, shared=True)
_PLAIN_LAYOUTS = (
    replace(_BACKBONE_ALONE, anywhere=True),
    replace(
        _BACKBONE_ALONE, anywhere=True, rename=_of_sequence(_TORCHVISION_CHILDREN), blocks=_BLOCK_OF_SEQUENCE
    ),
)

_PROJECTS = (
    Format(
        name="barlow_twins",
        layouts=(Layout("backbone."), _BACKBONE_ALONE),
        recognise=_is_barlow_twins,
        ignored={"projector": r"projector\.", "batch norm of the loss": r"bn\."},
        method="barlow_twins",
        code="Barlow Twins' code",
    ),
    Format(
        name="vicreg",
        layouts=(Layout("backbone."), _BACKBONE_ALONE),
        recognise=_is_vicreg,
        ignored={"projector": r"projector\."},
        method="vicreg",
        code="VICReg's code",
    ),
    Format(
        name="dino",
        layouts=(Layout("teacher.backbone."), _BACKBONE_ALONE),
        recognise=_is_dino,
        ignored={
            "student": r"student\.",
            "projector": r"teacher\.head\.",
            "centre of the loss": r"dino_loss\.",
        },
        method="dino",
        code="DINO's code",
        used_for="EsViT",
        evaluates="which eval_linear.py of DINO evaluates",
    ),
    Format(
        name="moco_v3",
        layouts=(Layout("base_encoder."),),
        recognise=_is_moco_v3,
        ignored={
            "momentum encoder": r"momentum_encoder\.",
            "projector": r"base_encoder\.fc\.",
            "predictor": r"predictor\.",
        },
        method="moco_v3",
        code="MoCo v3's code",
        evaluates="which main_lincls.py of MoCo v3 evaluates",
    ),
    Format(
        name="moco_v2",
        layouts=(Layout("encoder_q."),),
        recognise=_is_moco,
        evaluates="which main_lincls.py of MoCo evaluates",
        ignored={
            "momentum encoder": r"encoder_k\.",
            "projector": r"encoder_q\.fc\.",
            "queue": r"queue",
        },
        method="moco_v2",
        code="MoCo's code",
        used_for="PCL",
        siblings={r"encoder_q\.fc\.weight": "moco_v1"},  # its projector is one layer
    ),
    Format(
        name="swav",
        layouts=(Layout(),),
        recognise=_is_swav,
        ignored={"projector": r"projection_head\.", "prototypes": r"prototypes\."},
        method="swav",
        code="SwAV's code",
        used_for="DeepCluster-v2, SeLa-v2",
        siblings={r"prototypes\.prototypes\d": "deepcluster_v2"},  # several sets of them
        normalisation=_SWAV,
    ),
    Format(
        name="simsiam",
        layouts=(Layout("encoder."),),
        recognise=_is_simsiam,
        ignored={"projector": r"encoder\.fc\.", "predictor": r"predictor\."},
        method="simsiam",
        code="SimSiam's code",
    ),
    Format(
        name="byol",
        layouts=(Layout(deviations=_SAME),),
        recognise=_is_byol,
        ignored=_CLASSIFIER,
        method="byol",
        code="byol-convert",
    ),
    Format(
        name="simclr",
        layouts=(
            Layout(deviations=_SAME_POOL),
            Layout(rename=_of_simclr_v2, deviations=_SAME_POOL, blocks=""),
        ),
        recognise=_is_simclr,
        ignored=_CLASSIFIER,
        method="simclr",
        code="SimCLR's converters",
        used_for="for supervised networks",
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
        name="mmselfsup",
        layouts=(Layout("backbone."), Layout()),
        recognise=_is_mmselfsup,
        ignored={
            "momentum network": r"(encoder_k|target_net|momentum_encoder)\.",
            "neck": rf"({_NECK})\.",
            "head": r"head\.",
            "queue": r"queue",
            "memory bank": r"memory_bank\.",
            "weights of the loss": r"loss_weight",
            "pixel statistics": r"data_preprocessor\.",
        },
        evaluates="which extract_backbone_weights.py of mmselfsup extracts",
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
        evaluates="which main_linear.py of solo-learn evaluates",
    ),
    Format(
        name="lightly",
        layouts=(
            Layout("backbone."),
            Layout("backbone.", _of_sequence(_TORCHVISION_CHILDREN), blocks=_BLOCK_OF_SEQUENCE),
            Layout(
                "backbone.",
                _of_sequence(_LIGHTLY_CHILDREN),
                {"small": "no_stem_relu"},
                small_stem=True,
                blocks=_BLOCK_OF_SEQUENCE,
            ),
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
        evaluates="which lightly's benchmarks evaluate",
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
        layouts=(Layout(rename=torchvision_name, note=_COLOURS, blocks=""),),
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

_PLAIN = Format(name="plain", layouts=_PLAIN_LAYOUTS, recognise=_is_plain, ignored=_CLASSIFIER)

FORMATS = Registry[Format]("format")
for _each in (*_PROJECTS, _PLAIN):
    FORMATS.add(_each.name, _each)


def format_names() -> list[str]:
    """The formats that can be imported."""
    return FORMATS.names()
