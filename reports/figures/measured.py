"""Which number a figure of results shows, and how it is labelled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from twinbench.reports.cells import OF_ONE_SEED, OF_SEVERAL_SEEDS, Cell, share, spread_words
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
    kinds = {cell.kind for cell in cells if cell.value is not None}
    words = [spread_words(kind) for kind in OF_SEVERAL_SEEDS if kind in kinds]
    words += [f"{spread_words(kind)} where there is one seed" for kind in OF_ONE_SEED if kind in kinds]
    return (
        f"Error bars: {', '.join(words)}."
        if words
        else "No error bars: one seed, no standard error recorded."
    )


def incomplete_words(named: Iterable[tuple[str, Cell]]) -> str:
    """A sentence about means over some of the seeds, after a space; empty if there are none."""
    shares = [f"{name} {share(cell)}" for name, cell in named if share(cell)]
    return f" Means over some seeds only: {', '.join(shares)}." if shares else ""
