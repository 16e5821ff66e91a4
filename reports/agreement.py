"""Does our order of the methods agree with the published one? Kendall's tau-b, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from twinbench.reports.cells import Cell
from twinbench.reports.layout import Column, Table, left_out
from twinbench.reports.study import TableSpec

Numbers = np.ndarray[Any, np.dtype[np.float64]]

_REPLICATES = 2000
_SEED = 0
_FEWEST = 3


def agreement_notes(declared: TableSpec, table: Table) -> list[str]:
    """A sentence for each quoted column of a finished table that there is a measured one for.

    It is about the rows that have a number in both and compete with the measured one.
    """
    notes = []
    for quoted_place, quoted in enumerate(table.columns):
        place = _measured(declared, quoted, table.columns) if quoted.quoted else None
        if place is None:
            continue
        pairs = [
            (row, row.entries[place], row.entries[quoted_place].cell.value)
            for row in table.method_rows
            if row.entries[place].cell.value is not None
        ]
        both = [(entry.cell, value) for _, entry, value in pairs if entry.competes and value is not None]
        aside = [row for row, entry, value in pairs if not entry.competes and value is not None]
        if both:
            what = f"{table.columns[place].label} with the quoted {quoted.label}"
            notes.append(_note(what, "rows" if declared.axes else "methods", both) + left_out(aside))
    return notes


def _measured(declared: TableSpec, quoted: Column, columns: Sequence[Column]) -> int | None:
    """The place of the measured column whose order is compared with that of a quoted one."""
    assert declared.quoted is not None
    spec = declared.quoted
    headings = {(c.protocol, c.metric, c.image_set): c.heading for c in reversed(declared.columns)}

    def heading(column: Column) -> str:
        general = (column.protocol, column.metric, "")
        return headings.get((column.protocol, column.metric, column.image_set), headings.get(general, ""))

    ours = [(place, column) for place, column in enumerate(columns) if not column.quoted]
    wanted = spec.compare.get(quoted.metric, quoted.label)
    named = [place for place, column in ours if heading(column) == wanted]
    alike = [place for place, column in ours if column.metric == quoted.metric]
    return next(iter(named or alike), None)


def _note(what: str, things: str, both: Sequence[tuple[Cell, float]]) -> str:
    n = len(both)
    if n < _FEWEST:
        have = f"{things[:-1]} has" if n == 1 else f"{things} have"
        return f"Order of {what}: only {n} {have} both numbers, too few to compare."
    published = np.array([value for _, value in both])
    tau = float(tau_b(np.array([cell.value for cell, _ in both], dtype=np.float64), published))
    over_seeds = all(len(cell.values) > 1 for cell, _ in both)
    replicates = _over_seeds(both) if over_seeds else _over_rows(both)
    known = replicates[np.isfinite(replicates)]
    if not np.isfinite(tau) or not len(known):
        return f"Order of {what}: the {n} {things} have equal numbers, so there is no order to compare."
    low, high = np.quantile(known, [0.025, 0.975])
    source = "the seeds" if over_seeds else f"the {things}, of which some have one seed"
    swap = 4 / (n * (n - 1))
    return (
        f"Order of {what}: Kendall's tau-b {_signed(tau)} over {n} {things} (95 % bootstrap interval {_signed(low)} "
        f"to {_signed(high)}, resampling {source}); 1 is the same order, 0 none, -1 the reverse. With {n} {things} one "
        f"pair in the other order changes it by {swap:.2f}."
    )


def _signed(value: float) -> str:
    return f"{value + 0.0:.2f}".replace("-0.00", "0.00")


def tau_b(ours: Numbers, published: Numbers) -> Numbers:
    """Kendall's tau-b between the last axes of two ``[..., N]``; NaN where all numbers of a side are equal.

    Written for many bootstrap samples at once; `scipy.stats.kendalltau`, one pair at a time, gives the same.
    """
    first, second = _signs(ours), _signs(published)
    pairs = (first * second).sum(axis=(-2, -1))
    untied = np.abs(first).sum(axis=(-2, -1)) * np.abs(second).sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Numbers = pairs / np.sqrt(untied)
    return result


def _signs(values: Numbers) -> Numbers:
    signs: Numbers = np.sign(values[..., :, None] - values[..., None, :])
    return signs


def _over_seeds(both: Sequence[tuple[Cell, float]]) -> Numbers:
    """The tau of each replicate, in which every mean is over seeds drawn anew."""
    rng = np.random.default_rng(_SEED)
    means = [
        np.array(cell.values)[rng.integers(len(cell.values), size=(_REPLICATES, len(cell.values)))].mean(
            axis=1
        )
        for cell, _ in both
    ]
    return tau_b(np.stack(means, axis=1), np.array([value for _, value in both]))


def _over_rows(both: Sequence[tuple[Cell, float]]) -> Numbers:
    """The tau of each replicate, for which as many rows are drawn with replacement."""
    chosen = np.random.default_rng(_SEED).integers(len(both), size=(_REPLICATES, len(both)))
    ours = np.array([cell.value for cell, _ in both], dtype=np.float64)
    return tau_b(ours[chosen], np.array([value for _, value in both])[chosen])
