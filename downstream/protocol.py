"""The contract of an evaluation protocol, and the registry that finds every protocol there is.

A protocol is one file in ``downstream/`` (or ``downstream/detection/``) with a class under
``@register_protocol``; packages outside register through the entry-point group ``twinbench.plugins``. Its name
is ``family/variant-vN`` and is printed in full wherever a number of it appears; a changed default is a new N.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from twinbench.data.image_sets import ImageSet
from twinbench.downstream.features import FeatureStore
from twinbench.downstream.label_lists import LabelList
from twinbench.encoders.encoder import Encoder
from twinbench.foundation.errors import InputError, unknown_name


@dataclass(frozen=True)
class Measurement:
    """One measured number: ``value`` in percent over ``n`` test items.

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

    ``label_list`` says which images count as labelled where a protocol uses a share of them. A protocol leaves in
    ``details`` (names to JSON values) what it chose and used, for the record to keep beside the measurements.
    """

    image_set: ImageSet
    features: FeatureStore
    seed: int = 0
    progress: Callable[[float], None] = _ignore_progress
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    label_list: LabelList | None = None
    details: dict[str, Any] = field(default_factory=dict)


class Protocol(ABC):
    """Base class of every protocol. It leaves the encoder as it found it, bit for bit.

    ``metrics`` names everything that `evaluate` may measure, so that a table's columns are checked beforehand.
    ``uses_label_list`` says that a list of labelled images changes what it does.
    """

    name: ClassVar[str]
    needs: ClassVar[Literal["labels", "detection"]]
    metrics: ClassVar[tuple[str, ...]]
    uses_label_list: ClassVar[bool] = False

    @abstractmethod
    def evaluate(self, encoder: Encoder, context: EvaluationContext) -> list[Measurement]:
        """Measure the encoder on the test split; hyperparameters come from the split ``val``, never from test."""

    def check(self, image_set: ImageSet) -> None:  # noqa: B027  (most have nothing to check)
        """Raise InputError where the protocol cannot measure on this machine or image set, before any work."""

    @abstractmethod
    def forward_passes(self, image_set: ImageSet) -> float:
        """The work of one evaluation in forward passes of one image; an image trained on counts three."""


def accuracies(scores: Tensor, labels: Tensor) -> list[Measurement]:
    """Top-1 and top-5 accuracy of class scores ``[N, C]`` for labels ``[N]``, in percent.

    Equal scores rank by class number. The standard error is that of a binomial proportion. With five classes
    or fewer the top-5 accuracy is 100 whatever the features are, so it is left out.
    """
    ranking = scores.argsort(dim=1, descending=True, stable=True)
    hits = ranking == labels[:, None]
    n = len(labels)
    measurements = []
    for k in (1, 5):
        if k == 1 or scores.shape[1] > k:
            p = hits[:, :k].any(dim=1).double().mean().item()
            measurements.append(Measurement(f"top{k}", 100 * p, n, 100 * math.sqrt(p * (1 - p) / n)))
    return measurements


_PROTOCOLS: dict[str, type[Protocol]] = {}
_CHOICES: dict[str, Callable[[], str]] = {}
_NAME = re.compile(r"(?P<family>[a-z0-9-]+)/(?P<variant>[a-z0-9-]+)-v(?P<version>\d+)")
P = TypeVar("P", bound=type[Protocol])


def register_protocol(cls: P) -> P:
    """Class decorator that makes a protocol available under its ``name``.

    Raises ValueError where the name is not ``family/variant-vN`` or belongs to another class: two protocols
    under one name would make every number under it doubtful.
    """
    if not _NAME.fullmatch(cls.name):
        raise ValueError(f"protocol name {cls.name!r} is not of the form family/variant-vN")
    known = _PROTOCOLS.setdefault(cls.name, cls)
    if known is not cls:
        raise ValueError(
            f"protocol {cls.name!r} is already registered by {known.__module__}.{known.__qualname__}"
        )
    return cls


def register_choice(name: str, choose: Callable[[], str]) -> None:
    """Let ``name`` stand for the protocol whose full name ``choose`` returns on this machine.

    Only commands take such a name; records and studies have the full one, so rows of two libraries never mix.
    """
    _CHOICES[name] = choose


@cache
def _discover() -> None:
    """Import every module that may register a protocol."""
    for package in ("twinbench.downstream", "twinbench.downstream.detection"):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            importlib.import_module(f"{package}.{module.name}")
    for plugin in entry_points(group="twinbench.plugins"):
        plugin.load()


def protocol_names() -> list[str]:
    """The full name of every registered protocol."""
    _discover()
    return sorted(_PROTOCOLS)


def protocol(name: str) -> Protocol:
    """The protocol called ``name``: a full name, a bare family ("knn"), which means its newest version, or a choice.

    A choice ("detection/c4") stands for the same protocol with one library or another, whichever is installed.
    Raises InputError with the nearest name where there is none, and where a family has several variants of
    the same version.
    """
    _discover()
    name = _CHOICES[name]() if name in _CHOICES else name
    if name in _PROTOCOLS:
        return _PROTOCOLS[name]()
    versions: dict[int, list[str]] = {}
    for full_name in protocol_names():
        parts = _NAME.fullmatch(full_name)
        if parts and parts["family"] == name:
            versions.setdefault(int(parts["version"]), []).append(full_name)
    if not versions:
        raise unknown_name("protocol", name, [*_PROTOCOLS, *_CHOICES])
    newest = versions[max(versions)]
    if len(newest) > 1:
        raise InputError(
            f"protocol {name!r} has more than one variant", next_step=f"name one in full: {', '.join(newest)}"
        )
    return _PROTOCOLS[newest[0]]()
