"""Bars: one number of every method, with the reference rows as lines."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from twinbench.reports import names
from twinbench.reports.cells import Cell, text
from twinbench.reports.figures.drawing import Drawing, Shown, draw, draws, nothing_drawn, wrapped
from twinbench.reports.figures.measured import axis_label, error_words, incomplete_words, target_of
from twinbench.reports.layout import BUDGET_MARK, Row, name_of
from twinbench.reports.metrics import metric_of
from twinbench.reports.study import FigureSpec

_BAR, _CHARACTER, _LINE = 1.15, 0.075, 0.15  # inches: a bar with its gap, and text below it
_LABEL_SHARE = 0.055  # of the height of a bar chart: the height of a line of text


@draws("bars")
def bars(spec: FigureSpec, shown: Shown, against: Shown) -> Drawing:
    """One number of every row."""
    table = shown.table
    place = target_of(spec, shown.declared, table)
    target = table.columns[place]
    digits = metric_of(target.metric).digits
    title = spec.title or f"{target.label} on {target.image_set or 'the image set'}"
    ours = [(row, row.entries[place].cell) for row in table.method_rows]
    references = [
        (row, cell) for row in table.reference_rows if (cell := row.entries[place].cell).value is not None
    ]
    if all(cell.value is None for _, cell in (*ours, *references)):
        return nothing_drawn(spec, title, f"no number of {target.protocol} {target.metric} yet")

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, (row, cell) in enumerate(ours):
            _paint_bar(axes, index, row, cell, digits)
        for row, cell in references:
            assert cell.value is not None
            axes.axhline(cell.value, color=names.colour(row.method), linestyle="--", linewidth=1.3, zorder=1)
        axes.set_xticks(range(len(ours)), labels, rotation=0 if len(ours) <= 8 else 30)
        axes.set_xlim(-0.6, len(ours) - 0.4)
        axes.set_ylabel(axis_label(target))
        axes.grid(False, axis="x")
        axes.margins(y=0.12)
        if all((cell.value or 0.0) >= 0 for _, cell in (*ours, *references)):
            axes.set_ylim(bottom=0)
        _label_references(axes, references, digits)

    caption = (
        f"{target.metric} of {target.protocol}. {error_words([c for _, c in ours])} Dashed: reference rows."
    )
    caption += incomplete_words((name_of(row), cell) for row, cell in (*ours, *references))
    if any(BUDGET_MARK in row.marks for row, _ in ours):
        caption += f" {BUDGET_MARK}: another pretraining budget than the others."
    labels = [_label(row) for row, _ in ours]
    return draw(spec, title, caption, _size(labels), paint)


def _size(labels: Sequence[str]) -> tuple[float, float]:
    """The size in inches of a chart with room for its labels, which have one or two short lines as a rule."""
    lines = [label.split("\n") for label in labels]
    longest = max((len(line) for label in lines for line in label), default=0)
    most = max(map(len, lines), default=0)
    bar = max(_BAR, _CHARACTER * longest + 0.15)
    return max(bar * len(labels) + 1.6, 4.5), 3.6 + _LINE * max(most - 2, 0)


def _label(row: Row) -> str:
    method, *varied = row.labels
    mark = BUDGET_MARK if BUDGET_MARK in row.marks else ""
    return "\n".join(map(wrapped, [f"{method}{mark}", *(value for value in varied if value != "-")]))


def _label_references(axes: Axes, references: Sequence[tuple[Row, Cell]], digits: int = 1) -> None:
    """Name the lines of reference rows beside the axes; names of lines that are close are moved apart."""
    low, high = axes.get_ylim()
    gap = _LABEL_SHARE * (high - low)
    lowest = low - gap
    for row, cell in sorted(references, key=lambda reference: reference[1].value or 0.0):
        height = lowest = max(cell.value or 0.0, lowest + gap)
        axes.annotate(
            f"{row.labels[0]} {cell.value:.{digits}f}",
            (1.0, height),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=names.colour(row.method),
        )


def _paint_bar(axes: Axes, index: int, row: Row, cell: Cell, digits: int) -> None:
    if cell.value is None:
        word = text(cell) if cell.status != "missing" else "no number"
        axes.annotate(
            word,
            (index, 0),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            va="bottom",
            rotation=90,
            fontsize=9,
            color="#a00000",
        )
        return
    error = cell.uncertainty or 0.0
    axes.bar(index, cell.value, width=0.68, color=names.colour(row.method), zorder=2)
    if cell.uncertainty:
        axes.errorbar(index, cell.value, yerr=error, color="black", capsize=3, linewidth=1.2, zorder=3)
    axes.annotate(
        f"{cell.value:.{digits}f}",
        (index, cell.value + error),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=9,
        zorder=5,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.8},
    )
