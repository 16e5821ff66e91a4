"""What the page tells of a number when it is opened: its seeds, their runs, and the command that makes it again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from twinbench.reports.cells import Cell, describe_rest, number, spread_words
from twinbench.reports.layout import Column, Entry, Row, Table
from twinbench.reports.records import (
    Record,
    RunInfo,
    read_diagnostics,
    read_loss_curve,
    read_recipe,
    unique,
)

_LOSS_POINTS = 200  # of one run: more are not visible in the small chart and only make the page heavy
_SPECTRUM_POINTS = 100


@dataclass(frozen=True)
class Training:
    """A run: what made an encoder, and how that went. It stands in the page once, whatever was measured on it.

    ``loss`` are (step, loss), ``spectrum`` (index from 1, singular value), ``numbers`` the other diagnostics
    of the end of the training.
    """

    folder: str
    recipe_hash: str
    recipe: str
    seconds: float | None
    images_per_second: float | None
    parameters: int | None
    loss: tuple[tuple[int, float], ...]
    numbers: tuple[tuple[str, float], ...]
    spectrum: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Seed:
    """One of the measurements that a number is the mean of. ``run`` and both environments are places in PageData."""

    seed: int | None
    status: str
    reason: str = ""
    value: float | None = None
    stderr: float | None = None
    checksum: str = ""
    seconds: float | None = None
    memory_mb: float | None = None
    device: str = ""
    run: int | None = None
    environment: int | None = None
    trained_in: int | None = None


@dataclass(frozen=True)
class Details:
    """What the dialog of one cell shows. ``digits`` are the decimals that its number has in the table."""

    table: str
    row: str
    column: str
    measured: str
    text: str
    digits: int
    summary: str
    seeds: tuple[Seed, ...]
    remarks: tuple[str, ...]
    source: str
    command: str


@dataclass(frozen=True)
class PageData:
    """What the page's script reads: the cells by their address, and what they share."""

    cells: dict[str, Details]
    runs: list[Training]


Place = tuple[str, int, int]
"""Where a cell stands: the name of its table, its row and its column."""


def describe(
    tables: Sequence[Table], runs: Sequence[RunInfo], environments: Sequence[str], command: str
) -> tuple[PageData, Mapping[Place, str]]:
    """The details of every measured cell, and the address of each. Raises InputError for broken diagnostics."""
    trainings = _Trainings(runs, {text: place for place, text in enumerate(environments)})
    found: dict[str, Details] = {}
    addresses: dict[Place, str] = {}
    for table in tables:
        for i, row in enumerate(table.rows):
            for j, (column, entry) in enumerate(zip(table.columns, row.entries, strict=True)):
                if entry.cell.status in ("missing", "quoted"):
                    continue
                address = _address(table, row, column, found)
                addresses[table.name, i, j] = address
                found[address] = _details(table, row, column, entry, trainings, command)
    return PageData(found, trainings.read), addresses


def _details(
    table: Table, row: Row, column: Column, entry: Entry, trainings: _Trainings, command: str
) -> Details:
    cell = entry.cell
    return Details(
        table=table.title,
        row=", ".join(label for label in row.labels if label != "-"),
        column=column.heading,
        measured=f"{column.metric} of {column.protocol} on {column.image_set or 'the image set'}",
        text=entry.text,
        digits=entry.digits,
        summary=summary(entry),
        seeds=_seeds(cell, trainings),
        remarks=cell.measured.remarks,
        source="; ".join(unique(record.source for record in cell.records)),
        command=_command(command, row),
    )


def summary(entry: Entry) -> str:
    """What the uncertainty of a number is: ``mean and std of 3 seeds; 95 % interval 70.1 to 72.3 over seeds``;
    its source."""
    cell = entry.cell.measured
    parts = [describe_rest(entry.cell, entry.digits)] if entry.cell.rest else []
    parts += [_seeds_and_spread(cell)] if cell.n_seeds else []
    if cell.interval is not None and cell.interval[0] < cell.interval[1]:
        parts.append(f"95 % interval {_interval(*cell.interval, entry.digits + 1)} over {cell.basis}")
    parts += [f"{cell.n_items} test items"] if cell.n_items else []
    parts += [cell.source] if cell.source else []
    return "; ".join(parts)


def _seeds_and_spread(cell: Cell) -> str:
    """``mean and std of 3 seeds``, ``1 seed; ± = standard error over test items``."""
    several = cell.n_seeds > 1
    if several and not cell.uncertainty:
        return f"{cell.n_seeds} equal seeds"
    if cell.kind == "seeds":
        return f"mean and std of {cell.n_seeds} seeds"
    seeds = f"mean of {cell.n_seeds} seeds" if several else "1 seed"
    return seeds + (f"; ± = {spread_words(cell.kind)}" if cell.uncertainty else "")


def _interval(low: float, high: float, digits: int) -> str:
    """Both ends, or how narrow it is where so many decimals cannot tell them apart."""
    ends = [number(end, digits) for end in (low, high)]
    return " to ".join(ends) if ends[0] != ends[1] else f"narrower than {10.0**-digits:.{digits}f}"


def _seeds(cell: Cell, trainings: _Trainings) -> tuple[Seed, ...]:
    """A seed for each record, and for each failure that none tells of; of one encoder's records the first."""
    records = {(r.seed, r.encoder_checksum): r for r in reversed(cell.records)}
    told = {record.seed for record in records.values()}
    seeds = [trainings.seed(record) for record in records.values()]
    seeds += [Seed(f.seed, f.status, f.reason) for f in cell.failures if f.seed not in told]
    return tuple(sorted(seeds, key=lambda seed: -1 if seed.seed is None else seed.seed))


class _Trainings:
    """The runs behind the numbers, each read from its folder once, and the places of environments."""

    def __init__(self, runs: Sequence[RunInfo], environments: Mapping[str, int]):
        self.read: list[Training] = []
        self._environments = environments
        self._places: dict[object, int] = {}
        self._by_hash = {run.recipe_hash: run for run in runs if run.recipe_hash}
        self._by_name = {_names(run): run for run in runs if not run.recipe_hash}

    def seed(self, record: Record) -> Seed:
        """The line of a record, with its run."""
        return Seed(
            record.seed,
            record.status,
            record.reason,
            record.value,
            record.stderr,
            record.encoder_checksum,
            record.seconds,
            record.peak_memory_mb,
            record.device,
            self._place(record),
            self._environments.get(record.environment),
            self._environments.get(record.trained_in),
        )

    def _place(self, record: Record) -> int:
        run = self._by_hash.get(record.recipe_hash) or self._by_name.get(_names(record))
        key = run.folder if run else (*_names(record), record.source_name, record.recipe_hash)
        if key not in self._places:
            self._places[key] = len(self.read)
            self.read.append(_training(record, run))
        return self._places[key]


def _names(of: Record | RunInfo) -> tuple[object, ...]:
    return of.method, of.variant, of.seed, of.origin


def _training(record: Record, run: RunInfo | None) -> Training:
    curve = read_loss_curve(run.folder) if run else None
    diagnostics = read_diagnostics(run.folder) if run else None
    loss = list(zip(curve.steps, curve.losses, strict=True)) if curve else []
    spectrum = list(enumerate(diagnostics.spectrum, start=1)) if diagnostics else []
    numbers = diagnostics.numbers if diagnostics else ()
    return Training(
        folder=run.folder.name if run else "",
        recipe_hash=record.recipe_hash,
        recipe=read_recipe(run.folder) if run else "",
        seconds=run.seconds or None if run else None,
        images_per_second=record.images_per_second or None,
        parameters=record.parameters,
        loss=tuple((step, _short(value)) for step, value in thinned(loss, _LOSS_POINTS)),
        numbers=tuple((_name_of_diagnostic(name), _short(value)) for name, value in numbers),
        spectrum=tuple((index, _short(value)) for index, value in thinned(spectrum, _SPECTRUM_POINTS)),
    )


def _name_of_diagnostic(name: str) -> str:
    """Not that of a column of `diagnostics/embeddings-v1`, whose views are the same for all methods."""
    words = name.replace("_", " ")
    return words if name in ("samples", "dimensions") else f"{words}, the method's own views"


_Point = TypeVar("_Point")


def thinned(points: Sequence[_Point], most: int) -> list[_Point]:
    """At most ``most`` of the points, evenly spread, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(place * (len(points) - 1) / (most - 1))] for place in range(most)]


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _command(command: str, row: Row) -> str:
    """The command that makes the number again: that of the report, for this method alone where that can be said.

    It names a report folder of its own, for a report of one method would take the place of this one.
    """
    if row.origin != "run" or not command.startswith("twinbench run ") or "--methods" in command:
        return command
    words = shlex.split(command)
    if "--out" in words:
        del words[words.index("--out") : words.index("--out") + 2]
    return shlex.join([*words, "--methods", row.method, "--out", f"results/only-{row.method}"])


def _address(table: Table, row: Row, column: Column, taken: Mapping[str, object]) -> str:
    """``cell-table1-byol-linear-top-1``: letters that need no escaping anywhere, and no address twice."""
    words = [table.name, row.method, *row.labels[1:], column.label]
    name = "-".join(
        ["cell", *filter(None, (re.sub(r"[^A-Za-z0-9]+", "-", word).strip("-") for word in words))]
    )
    count = 1
    while (name if count == 1 else f"{name}-{count}") in taken:
        count += 1
    return name if count == 1 else f"{name}-{count}"
