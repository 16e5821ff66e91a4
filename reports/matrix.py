"""Who beats whom, by how much and how surely: the square of a column's rows that the page shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from twinbench.reports.cells import number
from twinbench.reports.conclusions import probability
from twinbench.reports.contests import Contest
from twinbench.reports.layout import Column, Table, name_of
from twinbench.reports.metrics import metric_of

Verdict = Literal["wins", "loses", "tied", "untested"]


@dataclass(frozen=True)
class MatrixCell:
    """A difference with its interval and probability in words, and what it comes to for the row."""

    difference: str
    more: str
    verdict: Verdict


@dataclass(frozen=True)
class Matrix:
    """The rows that compete in a column, the best first: each minus each; None on the diagonal."""

    column: Column
    names: tuple[str, ...]
    lines: tuple[tuple[str, tuple[MatrixCell | None, ...]], ...]


def matrix_of(table: Table, column: Column, found: Contest) -> Matrix:
    """The square of a column of a table."""
    names = tuple(name_of(table.rows[row]) for row in found.rows)
    lines = tuple(
        (name, tuple(_cell(column, found, row, other) if row != other else None for other in found.rows))
        for name, row in zip(names, found.rows, strict=True)
    )
    return Matrix(column, names, lines)


def _cell(column: Column, found: Contest, row: int, other: int) -> MatrixCell:
    comparison, digits = found.of(row, other), metric_of(column.metric).digits
    e = comparison.estimate
    shown = number(e.value, digits)
    difference = shown if e.value < 0 or float(shown) == 0 else f"+{shown}"
    if e.low is None or e.high is None or comparison.p is None:
        return MatrixCell(difference, "not tested", "untested")
    more = f"{number(e.low, digits)} to {number(e.high, digits)}, {probability(comparison.p)}"
    better = (e.value > 0) == (column.better == "higher")
    verdict: Verdict = ("wins" if better else "loses") if comparison.separates else "tied"
    return MatrixCell(difference, more, verdict)
