"""Published numbers, kept as package data in ``reports/published`` and quoted beside measured ones."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from twinbench.foundation.errors import InputError, unknown_name

Row = Mapping[str, str]
Where = Mapping[str, Sequence[str]]

# Candidates in order of preference; the first that a file has is used. Our runs see two views, hence SwAV's.
PUBLISHED_NAMES: dict[str, tuple[str, ...]] = {
    "barlow_twins": ("Barlow Twins",),
    "simclr": ("SimCLR", "SimCLR (BYOL repro)"),
    "byol": ("BYOL", "BYOL (BT reimplementation)"),
    "swav": ("SwAV (w/o multi-crop)", "SwAV"),
    "simsiam": ("SimSiam",),
    "moco_v2": ("MoCo v2",),
    "supervised": ("Supervised",),
    "random_init": ("Random init",),
}

_KIND_ORDER = ("table", "text", "digitised", "definition", "not available")
_USUAL_EPOCHS = 300  # the length of every ablation in the Barlow Twins paper


@dataclass(frozen=True)
class QuotedValue:
    """One published number in percent; None where the source prints nothing."""

    value: float | None
    published_name: str
    source: str
    note: str


@dataclass(frozen=True)
class QuotedPoint:
    """One value of a published ablation: what was varied ``at`` it, as printed, and ``y`` in percent.

    It was read off a plot or printed.
    """

    at: tuple[str, ...]
    y: float
    source: str
    digitised: bool


@dataclass(frozen=True)
class QuotedCurve:
    """A published ablation of one of our methods, in the file's order."""

    method: str
    published_name: str
    epochs: str
    points: tuple[QuotedPoint, ...]

    @property
    def length(self) -> str:
        """The pretraining length in words."""
        return f"{self.epochs} epochs" if self.epochs else "length not stated"

    @property
    def sources(self) -> tuple[str, ...]:
        """Where the points come from, each source once."""
        return tuple(dict.fromkeys(point.source for point in self.points))

    @property
    def digitised(self) -> bool:
        """Whether any point was read off a plot."""
        return any(point.digitised for point in self.points)


def quoted_files() -> list[str]:
    """The names of the CSV files of published numbers."""
    return sorted(
        f.name
        for f in (resources.files("twinbench.reports") / "published").iterdir()
        if f.name.endswith(".csv")
    )


@cache
def load(file: str) -> tuple[Row, ...]:
    """The rows of one file, superseded ones dropped. Raises InputError if there is no such file."""
    name = file if file.endswith(".csv") else f"{file}.csv"
    if name not in quoted_files():
        raise unknown_name("file of published numbers", name, quoted_files(), "file")
    content = (resources.files("twinbench.reports") / "published" / name).read_text(encoding="utf-8")
    rows = csv.DictReader(io.StringIO(content))
    return tuple(row for row in rows if "superseded" not in row.get("library", ""))


def check_columns(file: str, columns: Sequence[str]) -> None:
    """Raise InputError if the file lacks one of the columns."""
    valid = list(load(file)[0])
    for column in columns:
        if column not in valid:
            raise unknown_name("column of published numbers", column, valid, file)


def select(file: str, where: Where) -> list[Row]:
    """The rows whose cells are among ``where``'s values; an empty cell passes, for it does not apply to the
    row.
    """
    check_columns(file, list(where))
    return [row for row in load(file) if all(row[c] == "" or row[c] in values for c, values in where.items())]


def published_name(method: str, rows: Sequence[Row]) -> str | None:
    """What ``rows`` call our method: the first known name that occurs."""
    present = {row["method"] for row in rows}
    candidates = PUBLISHED_NAMES.get(method, (method,))
    return next((name for name in candidates if name in present), None)


def setting(file: str, rows: Sequence[Row]) -> str:
    """What the numbers were measured on, in a few words: ``ImageNet ResNet-50`` unless the file says
    otherwise.
    """
    if "dataset" not in load(file)[0]:
        return "ImageNet ResNet-50"
    columns = ("dataset", "backbone", "library", "epochs", "batch_size")
    distinct = {column: {row[column] for row in rows if row[column]} for column in columns}
    forms = {"epochs": "{} epochs", "batch_size": "batch {}"}
    words = [
        forms.get(column, "{}").format(*values) for column, values in distinct.items() if len(values) == 1
    ]
    return " ".join(words[:2]) + (f" ({', '.join(words[2:])})" if len(words) > 2 else "")


def table_value(file: str, column: str, method: str, where: Where) -> QuotedValue | None:
    """The number that a table quotes for a method, or None if the file has no row for it.

    Raises InputError if several rows with different numbers are left: the study must narrow ``where``.
    """
    check_columns(file, [column])
    rows = select(file, where)
    name = published_name(method, rows)
    if name is None:
        return None
    own = [row for row in rows if row["method"] == name]
    numbers = {row[column] for row in own}
    if len(numbers) > 1:
        raise InputError(
            f"{len(own)} published rows of {name} give different {column}",
            where=file,
            next_step="narrow them with `quoted: {where: {column: value}}`, by library or epochs, say",
        )
    row = own[0]
    return QuotedValue(_number(row[column]), name, row.get("source", ""), row.get("note", ""))


def curve(file: str, varied: Sequence[str], y: str, method: str, where: Where) -> QuotedCurve | None:
    """The published ablation of a method over the columns ``varied``, or None if the file has none.

    Of several pretraining lengths the one nearest 300 epochs is taken (the paper's ablations). Where several
    sources give one value, the source with the most goes first, for curves of one source keep their shape
    (the paper's figures and tables disagree by some tenths); then a printed number before a digitised one.
    """
    check_columns(file, [*varied, y])
    usable = [row for row in select(file, where) if row[y] and all(row[name] for name in varied)]
    name = published_name(method, usable)
    if name is None:
        return None
    own = [row for row in usable if row["method"] == name]
    epochs = min((row.get("epochs", "") for row in own), key=_distance_from_usual)
    same_length = [row for row in own if row.get("epochs", "") == epochs]
    sizes = Counter(row["source"] for row in same_length)
    best: dict[tuple[str, ...], Row] = {}
    for row in sorted(same_length, key=lambda row: (-sizes[row["source"]], _kind(row))):
        best.setdefault(tuple(row[name] for name in varied), row)
    return QuotedCurve(
        method=method,
        published_name=name,
        epochs=epochs,
        points=tuple(
            QuotedPoint(at, float(row[y]), row["source"], row.get("value_kind") == "digitised")
            for at, row in best.items()
        ),
    )


def metric_name(column: str) -> str:
    """How a reader calls a column of published numbers."""
    return {"top1": "top-1", "top5": "top-5"}.get(column, column)


def _distance_from_usual(epochs: str) -> float:
    return abs(float(epochs) - _USUAL_EPOCHS) if epochs else float("inf")


def _kind(row: Row) -> int:
    return _KIND_ORDER.index(row.get("value_kind") or "table")


def _number(cell: str) -> float | None:
    return float(cell) if cell else None
