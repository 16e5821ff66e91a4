"""Which network of a file is taken, where it holds several: student and teacher, weights and their moving average.

A network is known by what stands before the names of its residual blocks. Of several the one that the file's project
evaluates is taken and the others are named; where nobody knows that, the user is asked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from twinbench.encoders.foreign.files import CheckpointFile
from twinbench.encoders.foreign.formats import Format, Layout
from twinbench.foundation.errors import InputError, nearest_name

_COUNTER = ".num_batches_tracked"


@dataclass(frozen=True)
class Taken:
    """The network that an encoder is made of, as the ``layout`` that leads to it.

    ``copies`` and ``others`` are the prefixes of further networks: those with equal tensors, and the rest. ``note``
    says so in words, and ``caution`` what the user asked for where there was a choice.
    """

    layout: Layout
    copies: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    note: str = ""
    caution: str = ""

    def reason_to_ignore(self, key: str) -> str | None:
        """Why a key belongs to a network that is left out, None if it does not."""
        if any(self._is_of(prefix, key) for prefix in self.copies):
            return "the same tensors under another name"
        if any(self._is_of(prefix, key) for prefix in self.others):
            return "another network"
        return None

    def _is_of(self, prefix: str, key: str) -> bool:
        """Whether a key is of the network with a prefix; without one, heads beside the backbone are not."""
        return key.startswith(prefix) if prefix else bool(replace(self.layout, prefix="").backbone([key]))


def take(checkpoint: CheckpointFile, chosen: Format, wanted: str | None = None) -> Taken:
    """Find the network of a file in a format; ``wanted`` names it by what stands before its names, or their beginning.

    Raises InputError if several networks differ and the format does not say which one its project evaluates, and where
    there is none that is called as ``wanted``.
    """
    keys = list(checkpoint.tensors)
    usual = chosen.layout(keys)
    layout = _named(checkpoint, chosen, wanted) if wanted else usual
    found = layout.backbone(keys)
    rest = [prefix for prefix in layout.prefixes(keys) if found and prefix != layout.prefix]
    copies = tuple(prefix for prefix in rest if _equal(checkpoint, layout, replace(layout, prefix=prefix)))
    others = tuple(prefix for prefix in rest if prefix not in copies)
    if not wanted and any(
        chosen.reason_to_ignore(f"{prefix}layer1.0.conv1.weight") is None for prefix in others
    ):
        raise _which(checkpoint, [layout.prefix, *others])
    asked = bool(wanted) and not (chosen.evaluates and layout.prefix == usual.prefix)
    why = "as asked" if asked else chosen.evaluates or "the one that the format reads"
    caution = ""
    if asked and others:
        instead = f", not {called(usual.prefix)}, {chosen.evaluates}" if chosen.evaluates else ""
        caution = f"the network {called(layout.prefix)} of this file is taken, as asked{instead}"
    return Taken(layout, copies, others, _note(layout, copies, others, why), caution)


def _named(checkpoint: CheckpointFile, chosen: Format, wanted: str) -> Layout:
    found = {called(prefix): layout for prefix, layout in chosen.networks(list(checkpoint.tensors)).items()}
    name = called(wanted)
    begun = [layout for each, layout in found.items() if each.startswith(f"{name}.")]
    fitting = [found[name]] if name in found else begun
    if len(fitting) != 1:
        raise InputError(
            f"no single network of this file is called {wanted!r}",
            where=checkpoint.path,
            nearest=nearest_name(wanted, found),
            next_step=f"name one of: {', '.join(found)}" if found else "leave the network open",
            option="network",
        )
    return fitting[0]


def _which(checkpoint: CheckpointFile, prefixes: list[str]) -> InputError:
    names = ", ".join(called(prefix) for prefix in prefixes)
    return InputError(
        f"{len(prefixes)} networks in this file, and nothing says which one its project evaluates: {names}",
        where=checkpoint.path,
        next_step="look it up in the project's evaluation and name the network as you import it",
        option="network",
    )


def called(prefix: str) -> str:
    """What a network is called: what stands before its names, a dot where nothing does."""
    return prefix.removesuffix(".") or "."


def _equal(checkpoint: CheckpointFile, one: Layout, other: Layout) -> bool:
    """Whether two networks of a file have the same names and tensors, batch counters aside."""
    keys = list(checkpoint.tensors)
    first, second = (
        {n: k for n, k in each.backbone(keys).items() if not n.endswith(_COUNTER)} for each in (one, other)
    )
    pairs = [
        (checkpoint.tensors[key], checkpoint.tensors[second[name]])
        for name, key in first.items()
        if name in second
    ]
    return first.keys() == second.keys() and all(_are_equal(*pair) for pair in pairs)


def _are_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are, to the bit; those without values of their own are not."""
    comparable = all(each.layout == torch.strided and not each.is_meta for each in (one, other))
    return comparable and one.dtype == other.dtype and torch.equal(one, other)


def _note(layout: Layout, copies: tuple[str, ...], others: tuple[str, ...], why: str) -> str:
    parts = []
    if others:
        left = ", ".join(map(called, others))
        parts.append(
            f"{1 + len(others)} networks in this file: {called(layout.prefix)} is taken, {why}; left out: {left}"
        )
    if copies:
        parts.append(
            f"{', '.join(map(called, copies))} and {called(layout.prefix)} are the same tensors, one by one"
        )
    return "; ".join(parts)
