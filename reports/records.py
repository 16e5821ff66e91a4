"""Result records and run folders, read into typed values."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from twinbench.foundation.errors import InputError, unknown_name

REQUIRED_COLUMNS = ("method", "image_set", "protocol", "metric", "value", "seed", "status")
COLUMNS = (
    "study",
    "method",
    "variant",
    "image_set",
    "protocol",
    "metric",
    "value",
    "stderr",
    "n",
    "seed",
    "status",
    "reason",
    "origin",
    "source_name",
    "source",
    "recipe_hash",
    "encoder_checksum",
    "backbone",
    "parameters",
    "pretrained_on",
    "epochs",
    "batch_size",
    "images_per_second",
    "peak_memory_mb",
    "seconds",
    "device",
    "environment",
)
STATUSES = ("done", "failed", "collapsed")
ORIGINS = ("run", "imported", "quoted")


@dataclass(frozen=True)
class Record:
    """One measured number, or the failure to measure it. Values are in the metric's unit (percent).

    ``source_name`` is what the study's folder calls an imported encoder, ``source`` where it is from and how it is fed.
    """

    method: str
    image_set: str
    protocol: str
    metric: str
    value: float | None
    seed: int | None
    status: str
    study: str = ""
    variant: str = ""
    stderr: float | None = None
    n: int | None = None
    reason: str = ""
    origin: str = "run"
    source_name: str = ""
    source: str = ""
    recipe_hash: str = ""
    encoder_checksum: str = ""
    backbone: str = ""
    parameters: int | None = None
    pretrained_on: str = ""
    epochs: float | None = None
    batch_size: int | None = None
    images_per_second: float | None = None
    peak_memory_mb: float | None = None
    seconds: float | None = None
    device: str = ""
    environment: str = ""


@dataclass(frozen=True)
class RunInfo:
    """One pretraining run; ``folder`` holds metrics.jsonl and diagnostics.json where the run got that far.

    ``seconds`` is how long the training took; 0 where it is not known or nothing was trained.
    """

    method: str
    variant: str
    seed: int
    status: str
    reason: str
    folder: Path
    seconds: float = 0.0
    origin: str = "run"


@dataclass(frozen=True)
class LossCurve:
    """The loss over training; ``steps`` and ``losses`` have equal lengths and finite values only."""

    steps: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Diagnostics:
    """What a run's embeddings look like: ``cross_correlation`` [D, D], ``spectrum`` descending [D]."""

    cross_correlation: tuple[tuple[float, ...], ...]
    spectrum: tuple[float, ...]
    effective_rank: float | None
    layer: str


def read_records(frame: pd.DataFrame) -> list[Record]:
    """The frame's rows as records. Raises InputError for unknown or missing columns, statuses or origins."""
    if frame.empty and len(frame.columns) == 0:
        return []
    columns = [str(column) for column in frame.columns]
    for column in columns:
        if column not in COLUMNS:
            raise unknown_name("column in the records", column, COLUMNS)
    for column in REQUIRED_COLUMNS:
        if column not in columns:
            raise InputError(
                f"the records have no column {column!r}",
                next_step=f"every record needs: {', '.join(REQUIRED_COLUMNS)}",
            )
    return [_record(row) for row in frame.to_dict("records")]


def _record(row: Mapping[Hashable, Any]) -> Record:
    record = Record(
        method=_text(row["method"]),
        image_set=_text(row["image_set"]),
        protocol=_text(row["protocol"]),
        metric=_text(row["metric"]),
        value=_number(row["value"]),
        seed=_integer(row["seed"]),
        status=_text(row["status"]),
        study=_text(row.get("study")),
        variant=_text(row.get("variant")),
        stderr=_number(row.get("stderr")),
        n=_integer(row.get("n")),
        reason=_text(row.get("reason")),
        origin=_text(row.get("origin")) or "run",
        source_name=_text(row.get("source_name")),
        source=_text(row.get("source")),
        recipe_hash=_text(row.get("recipe_hash")),
        encoder_checksum=_text(row.get("encoder_checksum")),
        backbone=_text(row.get("backbone")),
        parameters=_integer(row.get("parameters")),
        pretrained_on=_text(row.get("pretrained_on")),
        epochs=_number(row.get("epochs")),
        batch_size=_integer(row.get("batch_size")),
        images_per_second=_number(row.get("images_per_second")),
        peak_memory_mb=_number(row.get("peak_memory_mb")),
        seconds=_number(row.get("seconds")),
        device=_text(row.get("device")),
        environment=_text(row.get("environment")),
    )
    where = f"record of {record.method}, {record.protocol}, {record.metric}, seed {record.seed}"
    if record.status not in STATUSES:
        raise unknown_name("status", record.status, STATUSES, where)
    if record.origin not in ORIGINS:
        raise unknown_name("origin", record.origin, ORIGINS, where)
    return record


def _absent(value: Any) -> bool:
    return (
        value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value))
    )


def _text(value: Any) -> str:
    if _absent(value):
        return ""
    if isinstance(value, float) and value.is_integer():  # pandas turns a column of 64 and NaN into 64.0
        return str(int(value))
    return str(value)


def _number(value: Any) -> float | None:
    if _absent(value) or value == "":
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _integer(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def read_loss_curve(folder: Path) -> LossCurve | None:
    """The loss of ``metrics.jsonl``, one point a step, or None where nothing usable was logged.

    A resumed run logs some steps twice: the later line counts. A line cut off by a crash is skipped.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return None
    points: dict[int, float] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            step, loss = int(row["step"]), float(row["loss"])
        except (ValueError, KeyError, TypeError):
            continue
        if math.isfinite(loss):
            points[step] = loss
    if not points:
        return None
    steps = sorted(points)
    return LossCurve(tuple(steps), tuple(points[step] for step in steps))


def read_diagnostics(folder: Path) -> Diagnostics | None:
    """The run's ``diagnostics.json``, or None where there is none. Raises InputError where it is broken."""
    path = folder / "diagnostics.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        matrix = tuple(tuple(float(x) for x in row) for row in content.get("cross_correlation") or ())
        spectrum = tuple(sorted((float(x) for x in content.get("spectrum") or ()), reverse=True))
        rank = _number(content.get("effective_rank"))
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"diagnostics cannot be read: {error}",
            where=path,
            next_step="delete the file and evaluate the run again",
        ) from error
    return Diagnostics(matrix, spectrum, rank, _text(content.get("layer")))


def unique(values: Iterable[str]) -> tuple[str, ...]:
    """The non-empty values, each once, in order of appearance."""
    return tuple(dict.fromkeys(value for value in values if value))
