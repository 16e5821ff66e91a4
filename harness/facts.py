"""What is known of a training without an evaluation, in columns as a protocol has them: its cost, its embeddings.

Such facts have names of the form of a protocol's, with a version, and metrics. They are read from the run's folder when
records are collected; there is no job for them. Where a run has none, the reason stands in the number's place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from twinbench.encoders.geometry import MEASURES
from twinbench.foundation.registry import Registry
from twinbench.harness.source import ImportedSource
from twinbench.harness.store import Run, read_json

Values = Mapping[str, float | str]
"""By metric a number, or why there is none."""

_HOUR, _KWH = 3600.0, 3.6e6
_EARLIER = "the run is of an earlier version of twinbench, which did not record it"
_UNTRAINED = "nothing was trained, or one step only"
_IMPORTED = "the encoder is imported: nobody watched its training here"


@dataclass(frozen=True)
class Facts:
    """Facts under one name: ``read`` gives the value of each of the ``metrics`` for a run that has an encoder.

    ``about`` describes them in the reference of protocols; ``remarks`` says what a reader must know about these numbers
    of the run.
    """

    name: str
    about: str
    metrics: tuple[str, ...]
    read: Callable[[Run], Values]
    remarks: Callable[[Run, str], tuple[str, ...]] = lambda run, metric: ()


def _cost(run: Run) -> Values:
    if isinstance(run.source, ImportedSource):
        return dict.fromkeys(_COSTS, _IMPORTED)
    status = run.status() or {}
    if not status.get("images_per_second"):
        return dict.fromkeys(_COSTS, _UNTRAINED)
    return {
        "images_per_second": _number(status, "images_per_second"),
        "device_hours": _device_hours(status),
        "peak_memory": _number(status, "training_memory_mb"),
        "parameters": _number(status, "parameters", 1e6),
        "energy": status.get("energy_unknown") or _number(status, "energy_joules", _KWH),
    }


_COSTS = ("images_per_second", "device_hours", "peak_memory", "parameters", "energy")


def _number(status: Mapping[str, Any], key: str, unit: float = 1.0) -> float | str:
    if key not in status:
        return _EARLIER
    return "the system does not tell" if status[key] is None else status[key] / unit


def _device_hours(status: Mapping[str, Any]) -> float | str:
    """The hours of all devices: of every GPU, or of every thread of a CPU."""
    if not {"device_type", "seconds", "ranks", "threads"} <= status.keys():
        return _EARLIER
    each = status["threads"] if status["device_type"] == "cpu" else 1
    return float(status["seconds"] * status["ranks"] * each / _HOUR)


def _of_the_device(run: Run, metric: str) -> tuple[str, ...]:
    """Where it was trained; the number of parameters is the same everywhere."""
    if metric == "parameters":
        return ("those of heads and of the slow copies of some methods count as well",)
    where = (f"trained on {(run.status() or {}).get('device', 'an unknown device')}",)
    if metric == "device_hours":
        return (*where, "a device is a GPU, or one core of a CPU")
    if metric == "peak_memory":
        return (
            *where,
            "without images and libraries; what a process computed before shifts it by some tens of MiB",
        )
    if metric == "energy":
        return (*where, "it is all that the device took in that time, whatever else ran on it")
    return where


def _embeddings(run: Run) -> Values:
    if isinstance(run.source, ImportedSource):
        return dict.fromkeys(MEASURES, "the encoder is imported without its projector")
    document = read_json(run.folder / "diagnostics.json") or {}
    if "embeddings" not in document:
        return dict.fromkeys(MEASURES, _EARLIER)
    if document["embeddings"] is None:
        return dict.fromkeys(MEASURES, "the method has no projector")
    measures = document["embeddings"].get("measures") if isinstance(document["embeddings"], dict) else None
    if not isinstance(measures, dict):
        return dict.fromkeys(MEASURES, "the run's diagnostics.json is damaged")
    few = "there are too few held-out images"
    return {name: value if isinstance(value, int | float) else few for name, value in measures.items()}


FACTS = Registry[Facts]("fact of a training")
for _facts in (
    Facts(
        "cost/training-v1",
        "What the training took: images a second, hours of all its devices (a device is a GPU, or one core of a CPU), "
        "the peak memory of one process or GPU beyond the images and libraries that it held before, parameters with "
        "heads and slow copies, and the energy that the device counted.",
        _COSTS,
        _cost,
        _of_the_device,
    ),
    Facts(
        "diagnostics/embeddings-v1",
        "The geometry of the embeddings, which are what the loss sees, of images of the split `val` at the end of the "
        "training. `diagnostics/held-out-v1` measures the same of the features of the backbone.",
        MEASURES,
        _embeddings,
    ),
):
    FACTS.add(_facts.name, _facts)
