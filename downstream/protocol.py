"""The contract of an evaluation protocol, and the registry of protocols.

A protocol is an object with a name, registered by a file in ``downstream/`` (or ``downstream/detection/``); packages
outside register through the entry-point group ``twinbench.plugins``. The harness imports both (`harness.plugins`); a
name is known once the module that registers it is imported. Names are ``family/variant-vN`` and are printed in full
wherever a number of the protocol appears; a changed default is a new N.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from twinbench.data.image_sets import ImageSet
from twinbench.downstream.checkpoints import Checkpoints
from twinbench.downstream.features import FeatureStore
from twinbench.downstream.label_lists import LabelList
from twinbench.downstream.outcomes import classified
from twinbench.encoders.encoder import Encoder
from twinbench.foundation.errors import InputError
from twinbench.foundation.outcomes import MOST_PREDICTED, Outcomes, hits
from twinbench.foundation.registry import Registry


@dataclass(frozen=True)
class Measurement:
    """One measured number over ``n`` test items: in percent, unless reports know its metric with another unit.

    ``stderr`` is the sampling error from the finite test set in the same unit, None where it is not known.
    """

    metric: str
    value: float
    n: int
    stderr: float | None = None


def _ignore_progress(fraction: float) -> None:
    """The default of `EvaluationContext.progress`."""


@dataclass
class EvaluationContext:
    """What a protocol gets besides the encoder. ``progress`` is told the fraction done, from 0 to 1.

    ``label_list`` says which images count as labelled where a protocol uses a share of them. Where it trains, it goes
    on from what ``checkpoints`` has. A protocol leaves in ``details`` (names to JSON values) what it chose and used,
    for the record to keep beside the measurements, and appends to ``remarks`` a sentence on whatever a reader of the
    number must know about its measurement, with counts. It leaves in ``outcomes`` what became of each test item, if its
    numbers can be computed again from that, and may leave a ``picture`` for people to look at, uint8 ``[3, H, W]``.
    """

    image_set: ImageSet
    features: FeatureStore
    seed: int = 0
    progress: Callable[[float], None] = _ignore_progress
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    label_list: LabelList | None = None
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    details: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    outcomes: Outcomes | None = None
    picture: Tensor | None = None

    def classified(self, scores: Tensor, labels: Tensor, rows: Tensor) -> list[Measurement]:
        """Leave the outcomes of a classification, and return its accuracies.

        Class scores are ``[N, C]``, labels and the places of the images in the test split ``[N]``. Equal scores rank by
        class number.
        """
        self.outcomes = classified(scores.numpy(force=True), labels.numpy(force=True), rows.numpy(force=True))
        return accuracies(self.outcomes)


class Protocol(ABC):
    """Base class of every protocol. It leaves the encoder as it found it, bit for bit.

    ``needs`` says what of an image set it reads: labels, objects in scenes, or no more than the images of ``val``.
    One object does every evaluation of a process, so it keeps nothing from one to the next. ``metrics`` names
    everything that `evaluate` may measure, so that a table's columns are checked beforehand. ``uses_label_list`` says
    that a list of labelled images changes what it does, ``keeps_features`` that it leaves the features of every image
    in the store for the next protocol.

    On several devices every rank evaluates, on the device of its context, and rank 0's measurements count. The ranks
    compute features in turns (`data.views.in_turns`) and share the images of a training's steps (`foundation.ranks`);
    what a protocol does not share, each does for itself.
    """

    name: str
    needs: Literal["labels", "detection", "images"]
    metrics: tuple[str, ...]
    uses_label_list: bool = False
    keeps_features: bool = False

    @abstractmethod
    def evaluate(self, encoder: Encoder, context: EvaluationContext) -> list[Measurement]:
        """Measure the encoder on the test split; hyperparameters come from the split ``val``, never from test."""

    def measure_again(self, outcomes: Outcomes, image_set: ImageSet | None) -> list[Measurement]:
        """What `evaluate` measured, to the last bit, computed from the outcomes that it left.

        ``image_set`` is needed for the objects of its scenes alone. Raises InputError where it is needed and None.
        """
        return accuracies(outcomes)

    def check(self, image_set: ImageSet) -> None:  # noqa: B027  (most have nothing to check)
        """Raise InputError if the protocol cannot measure on this machine or image set, before any work."""

    def check_ranks(self, ranks: int) -> None:  # noqa: B027  (most take any number)
        """Raise InputError if so many ranks cannot share the work, before any is done."""

    def start_ranks(self, main: Callable[[], None], devices: int, nodes: int) -> int | None:
        """Where the protocol's library has a launcher of its own: run ``main`` on this machine's ranks, and wait.

        They find a process group. Returns the exit code of the first that fails, or 0. Without such a launcher nothing
        is done, and the answer is None.
        """
        return None

    def unmeasured(self, image_set: ImageSet) -> dict[str, str]:
        """Which of ``metrics`` this image set has no number for, each with the reason; known before any work."""
        if "top5" in self.metrics and 0 < len(image_set.classes) <= MOST_PREDICTED:
            return {"top5": f"with {len(image_set.classes)} classes it is 100 whatever the features are"}
        return {}

    @abstractmethod
    def forward_passes(self, image_set: ImageSet) -> float:
        """The work of one evaluation in forward passes of one image; an image trained on counts three."""


def accuracies(outcomes: Outcomes) -> list[Measurement]:
    """Top-1 and top-5 accuracy (see `foundation.outcomes.hits`) of a classification, in percent.

    The standard error is that of a binomial proportion.
    """
    measurements = []
    for metric, right in hits(outcomes.arrays).items():
        p, n = float(right.mean()), len(right)
        measurements.append(Measurement(metric, 100 * p, n, 100 * math.sqrt(p * (1 - p) / n)))
    return measurements


_PROTOCOLS = Registry[Protocol]("protocol", filled_by="twinbench.harness.plugins.load_plugins()")
_CHOICES = Registry[Callable[[], str]]("choice of protocols")
_NAME = re.compile(r"(?P<family>[a-z0-9-]+)/(?P<variant>[a-z0-9-]+)-v(?P<version>\d+)")
_TEST_CROP = "its test crop is torchvision's to the pixel"
_STATISTICS = "batch norm's final variance is that of all batches together"
_DRAWN = "its labelled images are drawn by the seed of the run"
_QUICKER = "it has one mask for all classes and leaves out the map res2, which learns more in less time"
_REPLACED = (
    {
        f"{name}-v1": (f"{name}-v2", _TEST_CROP)
        for name in (
            "linear/sgd",
            "linear/places205",
            "linear/inat18",
            "svm/voc07",
        )
    }
    | {
        f"semi-{share}/{old}": (f"semi-{share}/{successor}", difference)
        for share in ("1pct", "10pct")
        for old, successor, difference in (
            ("finetune-v1", "finetune-v2", _DRAWN),
            ("paper-v1", "paper-v3", f"{_TEST_CROP}, and {_DRAWN} unless a list names them"),
            ("paper-v2", "paper-v3", f"{_DRAWN} unless a list names them"),
        )
    }
    | {
        f"detection/{name}-torchvision-v1": (f"detection/{name}-torchvision-v2", _STATISTICS)
        for name in ("c4", "voc-c4", "fpn")
    }
    | {
        f"detection/{name}-v1": ("detection/small-mask-rcnn-torchvision-v2", _QUICKER)
        for name in ("small-mask-rcnn-torchvision", "torchvision-fpn")
    }
)
"""Versions that nothing measures any more: what took their place, and how it differs. Their records keep the name."""
P = TypeVar("P", bound="Protocol | type[Protocol]")


def register_protocol(protocol: P) -> P:
    """Make a protocol available under its ``name``; also a decorator for a class that is made without arguments.

    Raises ValueError if the name is not ``family/variant-vN`` or belongs to another protocol.
    """
    registered = protocol() if isinstance(protocol, type) else protocol
    if not _NAME.fullmatch(registered.name):
        raise ValueError(f"protocol name {registered.name!r} is not of the form family/variant-vN")
    _PROTOCOLS.add(registered.name, registered)
    return protocol


def register_choice(name: str, choose: Callable[[], str]) -> None:
    """Let ``name`` stand for the protocol whose full name ``choose`` returns on this machine.

    Only commands take such a name; records and studies have the full one, so rows of two libraries never mix.
    """
    _CHOICES.add(name, choose)


def protocol_names() -> list[str]:
    """The full name of every protocol that the modules imported so far have registered."""
    return _PROTOCOLS.names()


def protocol(name: str, others: Iterable[str] = ()) -> Protocol:
    """The protocol called ``name``: a full name, a bare family ("knn"), which means its newest version, or a choice.

    A choice ("detection/c4") stands for the same protocol with one library or another, whichever is installed.
    Raises InputError with the nearest name, which may be one of the ``others`` that the caller knows, if there is none,
    for a version that was replaced, and if a family has several variants.
    """
    _require_not_replaced(name)
    full_name = _CHOICES[name]() if name in _CHOICES else name
    if full_name in _PROTOCOLS:
        return _PROTOCOLS[full_name]
    newest = _newest_of_family(name)
    if not newest:
        raise _PROTOCOLS.unknown(name, others=[*_CHOICES.names(), *others])
    if len(newest) > 1:
        raise InputError(
            f"protocol {name!r} has more than one variant", next_step=f"name one in full: {', '.join(newest)}"
        )
    return _PROTOCOLS[newest[0]]


def replaced_by(name: str) -> dict[str, str]:
    """The versions that a protocol took the place of, each with how it differs."""
    return {old: difference for old, (successor, difference) in _REPLACED.items() if successor == name}


def _require_not_replaced(name: str) -> None:
    if name in _REPLACED:
        successor, difference = _REPLACED[name]
        raise InputError(
            f"the protocol {name} was replaced by {successor}: {difference}",
            nearest=successor,
            next_step=f"write {successor} in its place; what {name} measured keeps its name in reports",
        )


def _newest_of_family(family: str) -> list[str]:
    """The full names of a family's protocols, of every variant the one with the highest version number."""
    newest: dict[str, tuple[int, str]] = {}
    for full_name in _PROTOCOLS.names():
        parts = _NAME.fullmatch(full_name)
        if parts and parts["family"] == family:
            version = (int(parts["version"]), full_name)
            newest[parts["variant"]] = max(version, newest.get(parts["variant"], version))
    return [full_name for _, full_name in newest.values()]
