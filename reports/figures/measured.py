"""Which number a figure of results shows, and how it is labelled."""

from __future__ import annotations

from collections.abc import Sequence

from twinbench.reports.cells import Cell
from twinbench.reports.groups import Group, image_sets
from twinbench.reports.layout import Column
from twinbench.reports.records import Record
from twinbench.reports.study import ColumnSpec, FigureSpec


def target_of(spec: FigureSpec, columns: Sequence[ColumnSpec], records: Sequence[Record]) -> Column:
    """The number that bars or an ablation show: the figure's own choice, else the first column that fits it.

    Of several image sets it is the first that the protocol was measured on.
    """
    fitting = [
        column
        for column in columns
        if spec.protocol in ("", column.protocol) and spec.metric in ("", column.metric)
    ]
    chosen = fitting[0] if fitting else ColumnSpec(protocol=spec.protocol, metric=spec.metric)
    measured = image_sets([r for r in records if r.protocol == chosen.protocol])
    return Column(
        label=chosen.heading,
        subtitle=chosen.protocol,
        protocol=chosen.protocol,
        metric=chosen.metric,
        image_set=measured[0] if measured else "",
    )


def cell_of(group: Group, target: Column) -> Cell:
    """A row's cell of the number that is shown."""
    return group.cell(target.protocol, target.metric, target.image_set)


def axis_label(target: Column) -> str:
    """The axis of the number, with its unit."""
    return f"{target.label} (%)"


def error_words(cells: Sequence[Cell]) -> str:
    """What the error bars of the cells stand for."""
    kinds = {cell.kind for cell in cells if cell.value is not None}
    words = []
    if "seeds" in kinds:
        words.append("std over seeds")
    if "items" in kinds:
        words.append("standard error over test items where there is one seed")
    return (
        f"Error bars: {', '.join(words)}."
        if words
        else "No error bars: one seed, no standard error recorded."
    )
