"""Does our order of the methods agree with the published one? Kendall's tau-b, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import permutation_test

from twinbench.reports.cells import Cell
from twinbench.reports.conclusions import probability
from twinbench.reports.layout import Column, Table, left_out
from twinbench.reports.study import TableSpec

Numbers = np.ndarray[Any, np.dtype[np.float64]]

_REPLICATES = 2000
_SEED = 0
_FEWEST = 3
_PERMUTATIONS = 10_000  # all of up to seven rows


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
    replicates = _over_rows(both)
    known = replicates[np.isfinite(replicates)]
    if not np.isfinite(tau) or not len(known):
        return f"Order of {what}: the {n} {things} have equal numbers, so there is no order to compare."
    low, high = np.quantile(known, [0.025, 0.975])
    told = [f"{probability(_p(both))} by permutations"]
    if low < high:  # of few rows in one order every replicate is in that order too, which tells nothing
        told.append(f"95 % bootstrap interval {_signed(low)} to {_signed(high)}, resampling the {things}")
    told += _by_seed(both)
    swap = 4 / (n * (n - 1))
    return (
        f"Order of {what}: Kendall's tau-b {_signed(tau)} over {n} {things} ({'; '.join(told)}); 1 is the same order, "
        f"0 none, -1 the reverse. With {n} {things} one pair in the other order changes it by {swap:.2f}."
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


def _p(both: Sequence[tuple[Cell, float]]) -> float:
    """How likely as strong a tau is if the orders have nothing to do with each other: exact of up to seven rows."""
    published = np.array([value for _, value in both])
    ours = np.array([cell.value for cell, _ in both], dtype=np.float64)
    found = permutation_test(
        (ours,),
        lambda permuted, axis=-1: tau_b(np.moveaxis(permuted, axis, -1), published),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=_PERMUTATIONS,
        rng=_SEED,
    )
    return float(found.pvalue)


def _by_seed(both: Sequence[tuple[Cell, float]]) -> list[str]:
    """The lowest and highest tau of one seed of every row, where all have as many of several."""
    counts = {len(cell.values) for cell, _ in both}
    if len(counts) > 1 or counts == {1}:
        return []
    taus = tau_b(np.array([cell.values for cell, _ in both]).T, np.array([value for _, value in both]))
    return (
        [f"{_signed(np.nanmin(taus))} to {_signed(np.nanmax(taus))} seed by seed"]
        if np.isfinite(taus).any()
        else []
    )


def _over_rows(both: Sequence[tuple[Cell, float]]) -> Numbers:
    """The tau of each replicate, for which as many rows are drawn with replacement."""
    chosen = np.random.default_rng(_SEED).integers(len(both), size=(_REPLICATES, len(both)))
    ours = np.array([cell.value for cell, _ in both], dtype=np.float64)
    return tau_b(ours[chosen], np.array([value for _, value in both])[chosen])
