"""Mean ranks of methods over the columns of a table, with what they must differ by to be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from twinbench.reports import names
from twinbench.reports.conclusions import probability
from twinbench.reports.figures.drawing import Drawing, Shown, draw, draws, nothing_drawn
from twinbench.reports.layout import Row, Table, left_out, name_of
from twinbench.reports.metrics import metric_of
from twinbench.reports.statistics import (
    Ranking,
    bayesian_signed_rank,
    probability_of_improvement,
    rank,
    wilcoxon,
)
from twinbench.reports.study import FigureSpec

Numbers = np.ndarray[Any, np.dtype[np.float64]]
_EQUIVALENT = 1.0
"""Percentage points up to which a difference counts as none in practice."""
_FEWEST_COLUMNS, _FEWEST_ROWS = 2, 3


@draws("ranks")
def ranks(spec: FigureSpec, shown: Shown, against: Shown) -> Drawing:
    """A critical-difference diagram over the percentages of a table (Demsar 2006, section 3.2.4)."""
    title = spec.title or "Mean ranks over the protocols"
    columns, dependent = _columns(shown.table)
    rows = [row for row in shown.table.method_rows if all(row.entries[c].competes for c in columns)]
    if len(rows) < _FEWEST_ROWS or len(columns) < _FEWEST_COLUMNS:
        return nothing_drawn(
            spec,
            title,
            f"{len(rows)} methods compete in all of {len(columns)} columns, too few to rank",
        )
    scores = np.array([[_value(row, column) for row in rows] for column in columns])
    ranking = rank(scores)
    order = np.argsort(ranking.ranks, kind="stable").tolist()

    def paint(figure: Figure) -> None:
        _paint(figure.add_subplot(), [rows[place] for place in order], ranking, order)

    caption = (
        f"Mean rank over {len(columns)} columns ({', '.join(shown.table.columns[c].label for c in columns)}), 1 the "
        f"best. Friedman: {probability(ranking.p)}. A bar joins methods whose ranks differ by less than the critical "
        f"difference of {ranking.critical_difference:.2f} (Nemenyi, 5 %): they cannot be told apart by their ranks. "
        f"{_first_two(rows, columns, scores, order)}"
    )
    if dependent:
        labels = ", ".join(shown.table.columns[c].label for c in dependent)
        caption += f" Not counted, since another number of the same evaluation is: {labels}."
    caption += left_out(row for row in shown.table.method_rows if row not in rows)
    return draw(spec, title, caption, (6.4, 1.5 + 0.28 * len(rows)), paint)


def _columns(table: Table) -> tuple[list[int], list[int]]:
    """The places of the percentages to rank by, one of each evaluation, and those of the others.

    Friedman's test takes columns for independent, which top-1 and top-5 of one evaluation are not.
    """
    first: dict[tuple[str, str], int] = {}
    dependent = []
    for place, column in enumerate(table.columns):
        metric = metric_of(column.metric)
        if column.quoted or column.unmeasured or not metric.is_percentage or metric.better != "higher":
            continue
        if first.setdefault((column.protocol, column.image_set), place) != place:
            dependent.append(place)
    return list(first.values()), dependent


def _value(row: Row, column: int) -> float:
    value = row.entries[column].cell.value
    assert value is not None
    return value


def _first_two(rows: Sequence[Row], columns: Sequence[int], scores: Numbers, order: Sequence[int]) -> str:
    """How sure it is that the first of the ranking beats the second."""
    first, second = order[0], order[1]
    differences = scores[:, first] - scores[:, second]
    posterior = bayesian_signed_rank(differences, _EQUIVALENT)
    seeds = [
        tuple(np.array(rows[place].entries[c].cell.values) for place in (first, second)) for c in columns
    ]
    improvement = probability_of_improvement([(a, b) for a, b in seeds])
    return (
        f"{name_of(rows[first])} against {name_of(rows[second])}, a pair chosen by its ranks, which nothing corrects "
        f"for: Wilcoxon's signed ranks {probability(wilcoxon(differences))}; Bayesian signed ranks with "
        f"{_EQUIVALENT:g} point counting as equal: "
        f"better {posterior.first:.2f}, equal {posterior.equal:.2f}, worse {posterior.second:.2f}; a run of the first "
        f"beats one of the second with probability {improvement:.2f}."
    )


def _paint(axes: Axes, rows: Sequence[Row], ranking: Ranking, order: Sequence[int]) -> None:
    """Rows from the best down, each at its rank; to the left bars join what cannot be told apart."""
    values = [ranking.ranks[place] for place in order]
    for height, (row, value) in enumerate(zip(rows, values, strict=True)):
        axes.plot(value, height, names.marker(row.method), color=names.colour(row.method), markersize=8)
    for number, (first, last) in enumerate(cliques(values, ranking.critical_difference)):
        where = 1.0 + 0.02 * (number + 1)
        axes.plot(
            [where] * 2,
            [first - 0.3, last + 0.3],
            color="black",
            linewidth=3,
            transform=axes.get_yaxis_transform(),
            clip_on=False,
        )
    axes.set_yticks(range(len(rows)), [name_of(row) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0.8, len(rows) + 0.2)
    axes.set_xlabel("mean rank")


def cliques(ranks: Sequence[float], critical: float) -> list[tuple[int, int]]:
    """The longest stretches of two and more ascending ranks that differ by less than ``critical``: first and last."""
    found: list[tuple[int, int]] = []
    for first in range(len(ranks)):
        last = max(place for place in range(first, len(ranks)) if ranks[place] - ranks[first] < critical)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found
