"""Which number a figure of results shows, and how it is labelled."""

from __future__ import annotations

from collections.abc import Sequence

from twinbench.reports.cells import Cell
from twinbench.reports.layout import Column, Table
from twinbench.reports.metrics import metric_of
from twinbench.reports.study import FigureSpec, TableSpec


def target_of(spec: FigureSpec, declared: TableSpec, table: Table) -> int:
    """The place of the column that bars or an ablation show: the one of the figure's choice, or the first."""
    return place_of(spec.column, declared, table)


def place_of(heading: str, declared: TableSpec, table: Table) -> int:
    """The place of the column with a heading, or of the first if there is none.

    Of several image sets it is the first that was measured.
    """
    chosen = next((c for c in declared.columns if c.heading == heading), declared.columns[0])
    return next(
        index
        for index, column in enumerate(table.columns)
        if (column.protocol, column.metric) == (chosen.protocol, chosen.metric)
        and chosen.image_set in ("", column.image_set)
    )


def axis_label(target: Column) -> str:
    """The axis of the number, with its unit."""
    return f"{target.label} (%)" if metric_of(target.metric).is_percentage else target.label


def error_words(cells: Sequence[Cell]) -> str:
    """What the error bars of the cells stand for."""
    kinds = {(cell.kind, cell.shows_interval) for cell in cells if cell.value is not None}
    spreads = {
        ("seeds", False): "std over seeds",
        ("items", False): "standard error over test items where there is one seed",
        ("seeds", True): "half the 95 % interval over seeds and, where they are recorded, test items",
        ("items", True): "half the 95 % interval over test items where there is one seed",
    }
    words = [spread for kind, spread in spreads.items() if kind in kinds]
    return (
        f"Error bars: {', '.join(words)}."
        if words
        else "No error bars: one seed, no standard error recorded."
    )
