"""Result records and run folders: what a report is made from."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from twinbench.foundation.documents import from_json, unsealed
from twinbench.foundation.errors import InputError, unknown_name
from twinbench.foundation.files import write_synced
from twinbench.foundation.texts import legible
from twinbench.reports.digests import digest_of, environment_of, environments_json, read_environments
from twinbench.reports.output import ENVIRONMENTS, RECORDS

STATUSES = ("done", "failed", "collapsed", "not run", "absent")
ORIGINS = ("run", "imported", "quoted")
REMARKS_BETWEEN = " | "


def _write_out(frozen: object) -> None:
    """Write out, in the texts of a record or run, what does not print."""
    for name, value in vars(frozen).items():
        if isinstance(value, str) and not value.isprintable():
            object.__setattr__(frozen, name, legible(value))


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measured number, or the failure to measure it. The fields are the columns of ``records.csv``, in order.

    ``table`` is the table of the study that it is for, empty if for every table; ``variant`` is what its row varies.
    ``value`` and ``stderr`` are in the metric's unit (`metrics.metric_of`) and finite. ``n`` counts test items.
    ``status`` is one of STATUSES, of which ``not run`` is a number that a command would make, and ``absent`` is one
    that there is not, though nothing failed, for ``reason``; ``origin`` is one of ORIGINS. ``source_name`` is what the
    study's folder calls an imported encoder, ``source`` where it is from and how it is fed. ``seconds`` and
    ``peak_memory_mb`` are of the evaluation, ``images_per_second`` is of the training. ``tuning_trials`` counts the
    trials that chose its settings: 0 if none did, None if there was nothing to choose. ``remarks`` are sentences with
    REMARKS_BETWEEN them: what the reading of the images, the training and the measurement left out, repaired or
    assumed. ``environment`` and, of the training, ``trained_in`` are JSON objects, which ``records.csv`` has as digests
    and ``environments.json`` beside it in full.
    ``outcomes`` is the SHA-256 of the file that tells what became of each test item, ``image_set_fingerprint`` tells
    versions of an image set apart.
    Unknown is None or "". In texts, what does not print (an escape code, a mark that turns the order of letters) is
    written out.
    """

    study: str = ""
    table: str = ""
    method: str
    variant: str = ""
    image_set: str
    protocol: str
    metric: str
    value: float | None
    stderr: float | None = None
    n: int | None = None
    seed: int | None
    status: str
    reason: str = ""
    origin: str = "run"
    source_name: str = ""
    source: str = ""
    recipe_hash: str = ""
    encoder_checksum: str = ""
    backbone: str = ""
    parameters: int | None = None
    pretrained_on: str = ""
    epochs: int | None = None
    batch_size: int | None = None
    tuning_trials: int | None = None
    images_per_second: float | None = None
    peak_memory_mb: float | None = None
    seconds: float | None = None
    device: str = ""
    remarks: str = ""
    environment: str = ""
    trained_in: str = ""
    outcomes: str = ""
    image_set_fingerprint: str = ""

    def __post_init__(self) -> None:
        _write_out(self)

    @property
    def all_remarks(self) -> tuple[str, ...]:
        """The remarks one by one."""
        return tuple(remark for remark in self.remarks.split(REMARKS_BETWEEN) if remark)

    @property
    def scale(self) -> str:
        """What its encoder was trained at: ``digit-scenes, resnet18, 50 epochs``; empty if it never was trained."""
        if self.epochs == 0:
            return ""
        return ", ".join(
            filter(None, [self.pretrained_on, self.backbone, f"{self.epochs} epochs" if self.epochs else ""])
        )


COLUMNS = tuple(field.name for field in fields(Record))
_REQUIRED = tuple(field.name for field in fields(Record) if field.default is MISSING)
_TYPES = get_type_hints(Record)
_ENVIRONMENTS = ("environment", "trained_in")
_TOO_MANY = "fields beyond the columns"


@dataclass(frozen=True)
class RunInfo:
    """One pretraining run in a table of a study, or in every table.

    ``folder`` holds the recipe, and metrics.jsonl and diagnostics.json where the run got that far. ``seconds`` is how
    long the training took; 0 where it is not known or nothing was trained. ``pictures`` are files by protocol and image
    set, that of the views without either. ``outcomes`` are files by the SHA-256 that records tell. ``recipe_hash`` is
    that of its records. Texts are written as those of records are.
    """

    method: str
    variant: str
    seed: int
    status: str
    reason: str
    folder: Path
    seconds: float = 0.0
    origin: str = "run"
    table: str = ""
    pictures: Mapping[tuple[str, str], Path] = field(default_factory=dict)
    outcomes: Mapping[str, Path] = field(default_factory=dict)
    recipe_hash: str = ""

    def __post_init__(self) -> None:
        _write_out(self)


@dataclass(frozen=True)
class LossCurve:
    """The loss over training; ``steps`` and ``losses`` have equal lengths and finite values only."""

    steps: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Diagnostics:
    """What a run's embeddings look like: ``cross_correlation`` [D, D], ``spectrum`` descending [D].

    ``numbers`` are the name and value of everything in the file that is one finite number, effective rank included.
    """

    cross_correlation: tuple[tuple[float, ...], ...]
    spectrum: tuple[float, ...]
    effective_rank: float | None
    numbers: tuple[tuple[str, float], ...] = ()


def write_records(folder: Path, records: Sequence[Record]) -> None:
    """Write ``records.csv`` into a folder, after the ``environments.json`` that it refers to. Raises OSError."""
    texts = (getattr(record, name) for record in records for name in _ENVIRONMENTS)
    write_synced(folder / ENVIRONMENTS, environments_json(unique(texts)).encode("utf-8"))
    write_synced(folder / RECORDS, records_csv(records).encode("utf-8"))


def records_csv(records: Sequence[Record]) -> str:
    """The content of ``records.csv``: one row a record, an empty cell for what is not known, environments by digest.

    In a column with empty cells whole numbers have a decimal point, as pandas writes them: what reads these files has
    met no other form.
    """
    columns = []
    for name in COLUMNS:
        values = [getattr(record, name) for record in records]
        if name in _ENVIRONMENTS:
            digests = {text: digest_of(text) for text in set(values)}
            values = [digests[text] for text in values]
        gaps = None in values
        columns.append([float(value) if gaps and isinstance(value, int) else value for value in values])
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(zip(*columns, strict=True))
    return out.getvalue()


def read_records(path: Path) -> list[Record]:
    """The records of a ``records.csv``, with the environments of the ``environments.json`` beside it.

    Raises InputError naming the file for an unknown or missing column, text that is no CSV and environments that are
    not those of their digests, and the line for a number that cannot be read, too many fields, an unknown status, an
    unknown origin or an unknown environment.
    """
    try:
        return _read(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"the records cannot be read: {error}", where=path, next_step="make the report again"
        ) from error


def _read(path: Path) -> list[Record]:
    environments = read_environments(path.with_name(ENVIRONMENTS))
    with path.open(encoding="utf-8", newline="") as handle:
        rows = csv.DictReader(handle, restkey=_TOO_MANY, restval="")
        columns = list(rows.fieldnames or ())
        for column in columns:
            if column not in COLUMNS:
                raise unknown_name("column in the records", column, COLUMNS, path)
        for column in _REQUIRED:
            if column not in columns:
                raise InputError(
                    f"the records have no column {column!r}",
                    where=path,
                    next_step=f"every record needs: {', '.join(_REQUIRED)}",
                )
        return [_record(row, environments, f"{path}, line {rows.line_num}") for row in rows]


def _record(row: dict[str, str], environments: Mapping[str, str], where: str) -> Record:
    if _TOO_MANY in row:
        raise InputError("more fields than columns", where=where, next_step="correct the file")
    for column in row.keys() & _ENVIRONMENTS:
        row[column] = environment_of(row[column], environments, where)
    record = Record(**{column: _value(column, text, where) for column, text in row.items()})
    if record.status not in STATUSES:
        raise unknown_name("status", record.status, STATUSES, where)
    if record.origin not in ORIGINS:
        raise unknown_name("origin", record.origin, ORIGINS, where)
    return record


def _value(column: str, text: str, where: str) -> Any:
    if _TYPES[column] is str:
        return text
    try:
        number = finite(float(text)) if text else None
    except ValueError as error:
        raise InputError(
            f"{column} is not a number: {text!r}", where=where, next_step="correct the file"
        ) from error
    return int(number) if number is not None and _TYPES[column] == int | None else number


_OfTable = TypeVar("_OfTable", Record, RunInfo)


def of_table(found: Sequence[_OfTable], name: str) -> list[_OfTable]:
    """The records or runs that are for a table."""
    return [one for one in found if one.table in ("", name)]


def finite(value: float | None) -> float | None:
    """The value, or None for one that says nothing: infinite, beyond all floats or not a number."""
    try:
        return float(value) if value is not None and math.isfinite(value) else None
    except OverflowError:
        return None


def read_loss_curve(folder: Path) -> LossCurve | None:
    """The loss of ``metrics.jsonl``, one point a step, or None if nothing usable was logged.

    A resumed run logs some steps twice: the later line counts. A line cut off by a crash is skipped.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return None
    points: dict[int, float] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = from_json(line)
            step, loss = int(row["step"]), float(row["loss"])
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
        if math.isfinite(loss):
            points[step] = loss
    if not points:
        return None
    steps = sorted(points)
    return LossCurve(tuple(steps), tuple(points[step] for step in steps))


def read_diagnostics(folder: Path) -> Diagnostics | None:
    """The run's ``diagnostics.json``, or None if there is none. Raises InputError if it is broken."""
    path = folder / "diagnostics.json"
    if not path.is_file():
        return None
    try:
        content = unsealed(path.read_text(encoding="utf-8"))
        matrix = tuple(tuple(float(x) for x in row) for row in content.get("cross_correlation") or ())
        spectrum = tuple(sorted((float(x) for x in content.get("spectrum") or ()), reverse=True))
        rank = finite(content.get("effective_rank"))
        numbers = tuple((name, x) for name, x in content.items() if _is_number(x))
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(
            f"diagnostics cannot be read: {error}",
            where=path,
            next_step="delete the file and evaluate the run again",
        ) from error
    return Diagnostics(matrix, spectrum, rank, numbers)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and finite(value) is not None


def read_recipe(folder: Path) -> str:
    """The text of the run's recipe, of an imported one that of its source; empty if there is neither."""
    for name in ("recipe.yaml", "source.yaml"):
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8", errors="replace")
    return ""


def unique(values: Iterable[str]) -> tuple[str, ...]:
    """The non-empty values, each once, in order of appearance."""
    return tuple(dict.fromkeys(value for value in values if value))
