"""Bring in a checkpoint of another project as an encoder, and account for every key of it.

`read_foreign` recognises the format, gives each tensor its torchvision name, finds out depth, width and stem from names
and shapes, and refuses whatever is not a complete plain ResNet: a backbone of which a part stayed random still gives
features, and a number in a table.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from twinbench.encoders.backbones import ResNet, Stem, backbone_names, build_backbone
from twinbench.encoders.encoder import INFO_FILE, Encoder, EncoderInfo, is_method_name
from twinbench.encoders.foreign.files import CheckpointFile, read_checkpoint, require_distinct
from twinbench.encoders.foreign.formats import FORMATS, Format, Layout
from twinbench.encoders.foreign.networks import Taken, called, take
from twinbench.foundation.errors import InputError

_SMALL_PIXELS, _IMAGENET_PIXELS = 32, 224
_COUNTER = ".num_batches_tracked"


@dataclass(frozen=True)
class Accounting:
    """Where each tensor of a file went.

    ``matched`` are the file's keys that fill the backbone, ``missing`` torchvision's names that nothing fills,
    ``unexpected`` keys that no one asked for, ``misfits`` what contradicts a plain ResNet (a foreign layer in the
    backbone, another shape), and ``ignored`` the keys left out on purpose by reason. Batch counters, which no forward
    pass reads, are not counted. ``notes`` are what a reader should know besides.
    """

    format: str
    architecture: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misfits: tuple[str, ...]
    ignored: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]

    @property
    def expected(self) -> int:
        """How many tensors the backbone has."""
        return len(_expected(self.architecture, 64, "imagenet"))

    @property
    def complete(self) -> bool:
        """Whether every tensor of a plain ResNet is there and nothing contradicts it."""
        return not self.missing and not self.misfits

    def lines(self) -> list[str]:
        """The account for a reader, a few names each."""
        lines = [
            f"matched:    {len(self.matched)} of {self.expected} tensors of a {self.architecture}",
            f"missing:    {_some(self.missing)}",
            f"unexpected: {_some(self.unexpected)}",
        ]
        lines += [f"ignored:    {why}: {_some(keys)}" for why, keys in self.ignored.items()]
        return lines + [f"note:       {note}" for note in self.notes]


@dataclass(frozen=True)
class ForeignEncoder:
    """A checkpoint of another project as a backbone with its description and the account of its keys."""

    backbone: ResNet
    info: EncoderInfo
    accounting: Accounting

    def save(self, folder: Path) -> Encoder:
        """Write it as an encoder; raises InputError if the folder holds one already."""
        if (folder / INFO_FILE).exists():
            raise InputError(
                "there is an encoder already", where=folder, next_step="give another folder", option="out"
            )
        return Encoder.save(folder, self.backbone, self.info)


def read_foreign(
    path: Path,
    format_name: str | None = None,
    method: str | None = None,
    stem: Stem | None = None,
    network: str | None = None,
) -> ForeignEncoder:
    """Read a checkpoint of another project.

    ``format_name`` is recognised from the file where it is None. ``method`` is what the encoder is called in tables: by
    default the method of the format that was named, or else the file's name. ``stem`` is needed where the first
    convolution is 3x3 and the format leaves its stride open. ``network`` is what stands before the names of one, needed
    where there are several and the format does not say which one its project evaluates. Raises InputError for a file
    that cannot be read safely, an unknown or ambiguous format, two keys for one tensor, an open or impossible stem or
    network, and anything but a complete plain ResNet; RunFailure for a file that the machine does not let us read.
    """
    checkpoint = read_checkpoint(path)
    chosen = FORMATS[format_name] if format_name else recognise(checkpoint)
    taken = take(checkpoint, chosen, network)
    keys, layout = list(checkpoint.tensors), taken.layout
    names = _names(checkpoint, layout)
    unsaid = not (format_name or method)
    cautions = (
        *_cautions(checkpoint, chosen, layout, unsaid),
        taken.note,
        taken.caution,
        _contradiction(checkpoint, chosen),
    )
    caution = "; ".join(filter(None, cautions))
    accounting = account(checkpoint, chosen, taken, caution)
    if not accounting.complete:
        raise _incomplete(checkpoint, accounting)
    weights = {name: checkpoint.tensors[key] for name, key in names.items()}
    _check_values(weights, path)
    _require_strides_of_torchvision(checkpoint)
    stem = _stem(checkpoint, layout, weights["conv1.weight"].shape[-1], stem)
    method = _method(checkpoint, method, None if unsaid else chosen.trained_with(keys))
    info = replace(_describe(checkpoint, chosen, layout, accounting, method, stem), source_note=caution)
    backbone = info.build()
    counters = {k: torch.zeros_like(v) for k, v in backbone.state_dict().items() if k.endswith(_COUNTER)}
    backbone.load_state_dict({**counters, **weights})
    return ForeignEncoder(backbone.eval(), info, accounting)


def _cautions(checkpoint: CheckpointFile, chosen: Format, layout: Layout, unsaid: bool) -> list[str]:
    """What the names leave open; ``unsaid`` is whether the user said neither the format nor the method."""
    if checkpoint.description:
        return []
    return [
        layout.note if unsaid or not layout.shared else "",
        chosen.caution(list(checkpoint.tensors)) if unsaid else "",
    ]


def _names(checkpoint: CheckpointFile, layout: Layout) -> dict[str, str]:
    """The key of every tensor of the backbone; raises InputError where two keys are one tensor."""
    keys = list(checkpoint.tensors)
    names = layout.backbone(keys)
    require_distinct(
        {key: name for key, name in layout.names(keys).items() if name in names}, checkpoint.path
    )
    return names


def recognise(checkpoint: CheckpointFile) -> Format:
    """The format that the file speaks of; raises InputError if none fits, or several."""
    fitting = recognised(checkpoint)
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise _unknown(checkpoint)
    able = [each for each in fitting if _succeeds(checkpoint, each)]
    if not able:
        raise _incomplete(checkpoint, account(checkpoint, fitting[0], take(checkpoint, fitting[0])))
    raise InputError(
        f"the keys fit several formats: {', '.join(each.name for each in fitting)}",
        where=checkpoint.path,
        nearest=" or ".join(each.name for each in able),
        next_step=f"name its format as you import it: {able[0].name}, or another",
        option="format",
    )


def _unknown(checkpoint: CheckpointFile) -> InputError:
    """For a file that speaks of no format: a format is suggested only if it reads the file."""
    what, where = f"no known format; its keys: {_some(tuple(checkpoint.tensors))}", checkpoint.path
    if nearest := _nearest(checkpoint):
        return InputError(what, where, nearest, "name the format as you import it", option="format")
    what += "; no format finds a ResNet here"
    return InputError(what, where, None, "give one of torchvision's ResNets; no other network can be read")


def recognised(checkpoint: CheckpointFile) -> list[Format]:
    """Every format that the file speaks of."""
    return [each for each in FORMATS.entries() if each.recognise(checkpoint)]


def _contradiction(checkpoint: CheckpointFile, chosen: Format) -> str:
    """What to know where the keys speak of other projects than the one whose format was asked for."""
    fitting = [each.name for each in recognised(checkpoint)]
    if chosen.name in fitting or fitting in ([], ["plain"]):
        return ""
    return f"the keys are those of {' or '.join(fitting)}, yet it is read and fed as {chosen.name}, as asked"


def _require_strides_of_torchvision(checkpoint: CheckpointFile) -> None:
    """Raise InputError where OpenMMLab's configuration, kept in the file, has the strides on the 1x1 convolutions."""
    meta = checkpoint.beside.get("meta")
    configuration = str(meta.get("cfg", "")) if isinstance(meta, Mapping) else ""
    if re.search(r"""style['"]?\s*[=:]\s*['"]caffe""", configuration):
        raise InputError(
            "the configuration in this file says style='caffe': strides on the 1x1 convolutions",
            where=checkpoint.path,
            next_step="give a network of style='pytorch'; no encoder here computes with Caffe's strides",
        )


def account(checkpoint: CheckpointFile, chosen: Format, taken: Taken, caution: str = "") -> Accounting:
    """Compare a file's keys, taken in a format, with the backbone they come nearest to; a caution joins the notes."""
    keys, layout = list(checkpoint.tensors), taken.layout
    found = layout.backbone(keys)
    shapes = {name: checkpoint.tensors[key].shape for name, key in found.items()}
    architecture = _architecture(found)
    kernel = tuple(shapes.get("conv1.weight", ()))[-1:]
    expected = _expected(architecture, _width(shapes), "small" if kernel == (3,) else "imagenet")
    misfits = _foreign_layers(layout, keys, expected)
    matched = []
    for name in (each for each in expected if each in found):
        if shapes[name] == expected[name]:
            matched.append(found[name])
        else:
            misfits.append(f"{found[name]} {tuple(shapes[name])} instead of {tuple(expected[name])}")
    ignored: dict[str, list[str]] = defaultdict(list)
    unexpected = []
    for key in set(keys) - set(found.values()) - set(misfits):
        reason = _reason_to_ignore(key, chosen, taken)
        ignored[reason].append(key) if reason else unexpected.append(key)
    order = {key: position for position, key in enumerate(keys)}
    return Accounting(
        format=chosen.name,
        architecture=architecture,
        matched=tuple(sorted(matched, key=order.__getitem__)),
        missing=tuple(name for name in expected if name not in found),
        unexpected=tuple(sorted(unexpected, key=order.__getitem__)),
        misfits=tuple(misfits),
        ignored={why: tuple(sorted(some, key=order.__getitem__)) for why, some in sorted(ignored.items())},
        notes=_notes(checkpoint, found, caution),
    )


def _reason_to_ignore(key: str, chosen: Format, taken: Taken) -> str | None:
    """Why a key is left out; a classifier may stand in the network, below its prefix."""
    below = key.removeprefix(taken.layout.prefix)
    return chosen.reason_to_ignore(key) or taken.reason_to_ignore(key) or chosen.reason_to_ignore(below)


def _notes(checkpoint: CheckpointFile, found: dict[str, str], caution: str) -> tuple[str, ...]:
    notes = []
    if checkpoint.stripped:
        notes.append(
            f"names are given without {' and '.join(checkpoint.stripped)}, which PyTorch's wrappers put in"
        )
    if not any(name.endswith(_COUNTER) for name in found):
        notes.append("no batch counters in the file; they are set to 0 and no feature needs them")
    if checkpoint.description:
        notes.append("exported by twinbench, which wrote down its method, stem, input size and normalisation")
    if caution:
        notes.append(caution)
    return tuple(notes)


def _foreign_layers(layout: Layout, keys: list[str], expected: dict[str, torch.Size]) -> list[str]:
    """Keys inside the backbone that a plain ResNet of this depth does not have."""
    return [
        key
        for key, name in layout.names(keys).items()
        if re.match(r"(conv\d|bn\d|layer\d)\.", name) and name.replace(_COUNTER, ".weight") not in expected
    ]


def _architecture(names: dict[str, str]) -> str:
    """The ResNet whose blocks are most like those of these names."""
    blocks = _blocks(names)
    bottleneck = any(".conv3." in name for name in names)

    def distance(architecture: str) -> tuple[bool, int, int]:
        known = _expected(architecture, 64, "imagenet")
        own = _blocks(known)
        # half a file is rather a larger network with blocks missing than a smaller one with blocks too many
        return any(".conv3." in name for name in known) != bottleneck, len(blocks - own), len(own - blocks)

    return min(backbone_names(), key=distance)


def _blocks(names: dict[str, str] | dict[str, torch.Size]) -> set[str]:
    """The residual blocks that some of the names belong to: ``layer1.0``, ``layer1.1``, ..."""
    return {match[0] for name in names if (match := re.match(r"layer\d\.\d+", name))}


def _width(shapes: dict[str, torch.Size]) -> int:
    """Channels of the stem."""
    of_stem = (shapes.get(name) for name in ("conv1.weight", "bn1.weight", "bn1.bias"))
    return next((shape[0] for shape in of_stem if shape), 64)


def _stem(checkpoint: CheckpointFile, layout: Layout, kernel: int, wanted: Stem | None) -> Stem:
    """The stem of the first convolution's kernel; of a 3x3 one the weights do not say the stride.

    Raises InputError if nothing else says it either, and where ``wanted`` contradicts what is known.
    """
    # solo-learn's stem alone pads by 2, and a format that nobody recognised or named does not
    padded = (
        "; a network of solo-learn pads by 2, name the format solo_learn for it" if layout.anywhere else ""
    )
    possible: tuple[Stem, ...] = ("imagenet",) if kernel == 7 else ("small", "stride2")
    if kernel == 3 and layout.small_stem:
        possible = ("small",)
    said = wanted or checkpoint.description.get("stem")
    described = checkpoint.description.get("stem", said)
    if said is None and len(possible) > 1:
        raise InputError(
            "the first convolution is 3x3, and neither the weights nor the format say its stride",
            where=checkpoint.path,
            nearest="small (stride 1) or stride2 (stride 2); both pad by 1 and neither has a max-pool",
            next_step="look it up in the code of its network and name the stem as you import it, small or stride2; "
            f"where a max-pool follows it is neither and cannot be imported{padded}",
            option="stem",
        )
    if said is not None and (said not in possible or said != described):
        raise InputError(
            f"the stem of this network is not {said}",
            where=checkpoint.path,
            nearest=" or ".join(stem for stem in possible if stem == described) or " or ".join(possible),
            next_step="leave the stem open, or name the one that its project builds",
            option="stem",
        )
    return next((stem for stem in possible if stem == said), possible[0])


@cache
def _expected(architecture: str, width: int, stem: Stem) -> dict[str, torch.Size]:
    """Name and shape of every tensor of a backbone, batch counters left out."""
    with torch.device("meta"):
        backbone = build_backbone(architecture, width, stem)
    return {name: t.shape for name, t in backbone.state_dict().items() if not name.endswith(_COUNTER)}


def _describe(
    checkpoint: CheckpointFile,
    chosen: Format,
    layout: Layout,
    accounting: Accounting,
    method: str,
    stem: Stem,
) -> EncoderInfo:
    shapes = {
        name: checkpoint.tensors[key].shape for name, key in layout.backbone(list(checkpoint.tensors)).items()
    }
    small, own, width = stem != "imagenet", checkpoint.description, _width(shapes)
    normalisation = chosen.small_normalisation if small else chosen.normalisation
    return EncoderInfo(
        architecture=accounting.architecture,
        width=width,
        stem=stem,
        feature_dim=_feature_dim(accounting.architecture, width),
        input_size=own.get("input_size", _SMALL_PIXELS if small else _IMAGENET_PIXELS),
        mean=own.get("mean", normalisation.mean),
        std=own.get("std", normalisation.std),
        method=method,
        recipe_hash="",
        origin="imported",
        deviation=layout.deviations.get(stem, "none"),
        source_file=checkpoint.path.name,
        source_format=chosen.name,
        source_sha256=checkpoint.sha256,
    )


def _method(checkpoint: CheckpointFile, wanted: str | None, trained_with: str | None) -> str:
    """What to call the weights: as the user says, or as their export does or the format that was named, or as the file.

    The file's whole name is no method's, so nobody takes a file called simclr.pth for SimCLR, and no published number
    comes to stand beside it.
    """
    file = checkpoint.path.name if "." in checkpoint.path.name.strip(".") else f"file {checkpoint.path.name}"
    name = wanted or checkpoint.description.get("method") or trained_with or file
    if not is_method_name(name):
        raise InputError(
            f"{name!r} cannot be a method's name: it is not one line of text",
            where=checkpoint.path,
            next_step="name the method as you import it",
            option="method",
        )
    return name


@cache
def _feature_dim(architecture: str, width: int) -> int:
    with torch.device("meta"):
        return build_backbone(architecture, width).feature_dim


def _check_values(weights: dict[str, Tensor], path: Path) -> None:
    for name, tensor in weights.items():
        if name.endswith(_COUNTER):
            continue
        if not tensor.is_floating_point():
            fault = f"is {tensor.dtype}, not floating point"
        elif not torch.isfinite(tensor.float()).all():
            fault = "holds values that are not finite"
        elif name.endswith("running_var") and (tensor < 0).any():
            fault = "holds variances below 0"
        else:
            continue
        raise InputError(f"{name} {fault}", where=path, next_step="ask its publisher for an intact file")


def _incomplete(checkpoint: CheckpointFile, accounting: Accounting) -> InputError:
    parts = [f"not a complete {accounting.architecture} in the format {accounting.format}"]
    if not accounting.matched and not accounting.misfits:
        parts = [f"no tensor of a ResNet under the names of the format {accounting.format}"]
    elif accounting.missing:
        parts.append(f"missing {_some(accounting.missing)}")
    if accounting.misfits:
        parts.append(f"not of a plain {accounting.architecture}: {_some(accounting.misfits)}")
    where, nearest = checkpoint.path, _nearest(checkpoint)
    if nearest:
        next_step = "name the format as you import it"
        return InputError("; ".join(parts), where, nearest, next_step, option="format")
    if not accounting.matched and (prefixes := FORMATS[accounting.format].networks(list(checkpoint.tensors))):
        next_step = f"name the network as you import it: {', '.join(map(called, prefixes))}"
        return InputError("; ".join(parts), where, None, next_step, option="network")
    return InputError("; ".join(parts), where, None, _what_to_give(accounting))


def _what_to_give(accounting: Accounting) -> str:
    """The next step for a file that no format reads: what differs from a plain ResNet, if anything does."""
    statistics = [name for name in _expected(accounting.architecture, 64, "imagenet") if "running_" in name]
    if accounting.misfits:
        return (
            "give a ResNet with torchvision's own layers and names, without what is named here: Wide-ResNet, ResNeXt, "
            "SE, deep-stem, grey-image and pruned networks cannot be imported, nor other names within a block"
        )
    if accounting.matched and set(statistics) <= set(accounting.missing):
        return "give a ResNet with batch norms: another norm, which has no running statistics, cannot be imported"
    return "give the whole file, with every tensor of its network"


def _nearest(checkpoint: CheckpointFile) -> str | None:
    """A format in which the file can be imported, in words; one that recognises the file goes first."""
    able = [each for each in FORMATS.entries() if _succeeds(checkpoint, each)]
    if not able:
        return None
    best = max(able, key=lambda each: each.recognise(checkpoint))
    accounting = account(checkpoint, best, take(checkpoint, best))
    return f"{best.name} ({len(accounting.matched)} of {accounting.expected} tensors of a {accounting.architecture})"


def _succeeds(checkpoint: CheckpointFile, chosen: Format) -> bool:
    """Whether the file can be imported in a format; a stem may still have to be named."""
    try:
        taken = take(checkpoint, chosen)
        names = _names(checkpoint, taken.layout)
        _check_values({name: checkpoint.tensors[key] for name, key in names.items()}, checkpoint.path)
    except InputError:
        return False
    return account(checkpoint, chosen, taken).complete


def _some(names: tuple[str, ...], most: int = 3) -> str:
    """A count and the first few names."""
    if not names:
        return "0"
    dots = ", ..." if len(names) > most else ""
    return f"{len(names)} ({', '.join(names[:most])}{dots})"
