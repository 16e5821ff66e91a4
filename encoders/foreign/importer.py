"""Bring in a checkpoint of another project as an encoder, and account for every key of it.

`read_foreign` recognises the format, gives each tensor its torchvision name, finds out depth, width and stem from names
and shapes, and refuses whatever is not a complete plain ResNet: a backbone of which a part stayed random still gives
features, and a number in a table.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from twinbench.encoders.backbones import ResNet, Stem, backbone_names, build_backbone
from twinbench.encoders.encoder import INFO_FILE, Encoder, EncoderInfo, is_method_name
from twinbench.encoders.foreign.files import CheckpointFile, read_checkpoint, require_distinct
from twinbench.encoders.foreign.formats import FORMATS, Format, Layout
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
    path: Path, format_name: str | None = None, method: str | None = None, stem: Stem | None = None
) -> ForeignEncoder:
    """Read a checkpoint of another project.

    ``format_name`` is recognised from the keys where it is None. ``method`` is what the encoder is called in tables: by
    default the format's method, or else the file's name, also where others write the format's names and nobody named
    it. ``stem`` is needed where the first convolution is 3x3 and the format leaves its stride open. Raises InputError
    for a file that cannot be read safely, an unknown or ambiguous format, two keys for one tensor, an open or
    impossible stem, and anything but a complete plain ResNet; RunFailure for a file that the machine does not let us
    read.
    """
    checkpoint = read_checkpoint(path)
    chosen = FORMATS[format_name] if format_name else recognise(checkpoint)
    keys = list(checkpoint.tensors)
    layout = chosen.layout(keys)
    names = layout.backbone(keys)
    require_distinct({key: name for key, name in layout.names(keys).items() if name in names}, path)
    unsaid = layout.shared and not (format_name or method)
    note = layout.note if (unsaid or not layout.shared) and not checkpoint.description else ""
    caution = "; ".join(filter(None, (note, _contradiction(checkpoint, chosen))))
    accounting = account(checkpoint, chosen, caution)
    if not accounting.complete:
        raise _incomplete(checkpoint, accounting)
    weights = {name: checkpoint.tensors[key] for name, key in names.items()}
    _check_values(weights, path)
    stem = _stem(checkpoint, layout, weights["conv1.weight"].shape[-1], stem)
    method = _method(checkpoint, method, None if unsaid else chosen.trained_with(keys))
    info = replace(_describe(checkpoint, chosen, layout, accounting, method, stem), source_note=caution)
    backbone = info.build()
    counters = {k: torch.zeros_like(v) for k, v in backbone.state_dict().items() if k.endswith(_COUNTER)}
    backbone.load_state_dict({**counters, **weights})
    return ForeignEncoder(backbone.eval(), info, accounting)


def recognise(checkpoint: CheckpointFile) -> Format:
    """The format that the keys speak of; raises InputError if none fits, or several."""
    fitting = [each for each in FORMATS.entries() if each.recognise(checkpoint)]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise InputError(
            f"no known format; its keys: {_some(tuple(checkpoint.tensors))}",
            where=checkpoint.path,
            nearest=_nearest(checkpoint)
            or "none: no format finds a tensor of a ResNet here, and only ResNets can be read",
            next_step=f"name its format as you import it: {', '.join(FORMATS.names())}",
            option="format",
        )
    raise InputError(
        f"the keys fit several formats: {', '.join(each.name for each in fitting)}",
        where=checkpoint.path,
        nearest=" or ".join(each.name for each in fitting),
        next_step=f"name its format as you import it: {fitting[0].name}, or another",
        option="format",
    )


def _contradiction(checkpoint: CheckpointFile, chosen: Format) -> str:
    """What to know where the keys speak of other formats than the one that was asked for."""
    fitting = [each.name for each in FORMATS.entries() if each.recognise(checkpoint)]
    if not fitting or chosen.name in fitting:
        return ""
    return f"the keys are those of {' or '.join(fitting)}, yet it is read and fed as {chosen.name}, as asked"


def account(checkpoint: CheckpointFile, chosen: Format, caution: str = "") -> Accounting:
    """Compare a file's keys, taken in a format, with the backbone they come nearest to; a caution joins the notes."""
    keys = list(checkpoint.tensors)
    layout = chosen.layout(keys)
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
        reason = chosen.reason_to_ignore(key)
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
        if re.match(r"(conv1|bn1|layer\d)\.", name) and name.replace(_COUNTER, ".weight") not in expected
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
    possible: tuple[Stem, ...] = ("imagenet",) if kernel == 7 else ("small", "stride2")
    if kernel == 3 and layout.small_stem:
        possible = ("small",)
    said = wanted or checkpoint.description.get("stem")
    described = checkpoint.description.get("stem", said)
    if said is None and len(possible) > 1:
        raise InputError(
            "the first convolution is 3x3, and neither the weights nor the format say its stride",
            where=checkpoint.path,
            nearest="small (stride 1) or stride2 (stride 2); neither has a max-pool",
            next_step="look it up in the code of its network and name the stem as you import it, small or stride2; "
            "where a max-pool follows it is neither and cannot be imported",
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
    """What to call the weights: as the user says, or as their export or their keys do, or else as the file."""
    stem = checkpoint.path.name.partition(".")[0] or checkpoint.path.name
    name = wanted or checkpoint.description.get("method") or trained_with or stem
    if not is_method_name(name):
        raise InputError(
            f"{name!r} cannot be a method's name: it is not one line of text",
            where=checkpoint.path,
            next_step="name the method as you import it",
            option="method",
        )
    return name


def _feature_dim(architecture: str, width: int) -> int:
    with torch.device("meta"):
        return build_backbone(architecture, width).feature_dim


def _check_values(weights: dict[str, Tensor], path: Path) -> None:
    for name, tensor in weights.items():
        if name.endswith(_COUNTER):
            continue
        if tensor.layout != torch.strided or tensor.is_meta:
            fault = "is sparse or has no values"
        elif not tensor.is_floating_point():
            fault = f"is {tensor.dtype}, not floating point"
        elif not torch.isfinite(tensor.float()).all():
            fault = "holds values that are not finite"
        elif name.endswith("running_var") and (tensor < 0).any():
            fault = "holds variances below 0"
        else:
            continue
        raise InputError(f"{name} {fault}", where=path, next_step="ask its publisher for an intact file")


def _incomplete(checkpoint: CheckpointFile, accounting: Accounting) -> InputError:
    parts = [f"not a complete backbone in the format {accounting.format}"]
    if accounting.missing:
        parts.append(f"missing {_some(accounting.missing)}")
    if accounting.misfits:
        parts.append(f"not of a plain {accounting.architecture}: {_some(accounting.misfits)}")
    where, nearest = checkpoint.path, _nearest(checkpoint)
    if accounting.missing:
        next_step = "give the file as its project publishes it, and its format if the nearest is another"
        return InputError("; ".join(parts), where, nearest, next_step, option="format")
    next_step = "give a plain ResNet: Wide-ResNet, ResNeXt, SE and deep-stem networks cannot be imported"
    return InputError("; ".join(parts), where, nearest, next_step)


def _nearest(checkpoint: CheckpointFile) -> str | None:
    """The format of which most is there, in words; one that recognises the file goes before one that does not."""
    accounts = {each.name: account(checkpoint, each) for each in FORMATS.entries()}
    best = max(
        FORMATS.entries(),
        key=lambda each: (len(accounts[each.name].matched), each.recognise(checkpoint)),
    )
    matched, expected = len(accounts[best.name].matched), accounts[best.name].expected
    words = f"{best.name} ({matched} of {expected} tensors of a {accounts[best.name].architecture})"
    return words if matched else None


def _some(names: tuple[str, ...], most: int = 3) -> str:
    """A count and the first few names."""
    if not names:
        return "0"
    dots = ", ..." if len(names) > most else ""
    return f"{len(names)} ({', '.join(names[:most])}{dots})"
