"""Scatters: one number of every row against others of it, a panel each, and how alike the orders are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from twinbench.reports import names
from twinbench.reports.cells import Cell
from twinbench.reports.figures.drawing import Drawing, Shown, draw, draws, grid_size, nothing_drawn, panels_of
from twinbench.reports.figures.measured import axis_label, error_words, place_of, target_of
from twinbench.reports.layout import Column, Entry, Row, left_out
from twinbench.reports.study import FigureSpec

_FEWEST = 3
_CAUTION = (
    "So few methods differ in more than this one number: an order that agrees, or does not, is a hint of what to look "
    "at and no proof of a cause."
)


@dataclass(frozen=True)
class _Point:
    """A row with its number along either axis."""

    row: Row
    x: Entry
    y: Entry

    @property
    def competes(self) -> bool:
        """Whether it has a place in an order of both numbers."""
        return self.x.competes and self.y.competes


@dataclass(frozen=True)
class _Panel:
    """The rows against one column: those that have both numbers."""

    column: Column
    points: list[_Point]


@draws("scatter")
def scatter(spec: FigureSpec, shown: Shown, against: Shown) -> Drawing:
    """One number of every row against each of the figure's columns of the same rows in the other table."""
    place = target_of(spec, shown.declared, shown.table)
    target = shown.table.columns[place]
    panels = [_panel(heading, place, shown, against) for heading in spec.against]
    panels = [panel for panel in panels if panel.points]
    title = spec.title or f"{target.label} against {', '.join(spec.against)}"
    if not panels:
        return nothing_drawn(spec, title, "no row has a number in both columns yet")

    def paint(figure: Figure) -> None:
        entries: dict[str, Artist] = {}
        for axes, panel in zip(panels_of(figure, len(panels)), panels, strict=True):
            _paint(axes, panel)
            axes.set_xlabel(axis_label(panel.column))
            axes.set_ylabel(axis_label(target))
            handles, labels = axes.get_legend_handles_labels()
            entries.update(zip(labels, handles, strict=True))
        figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=4)

    points = [point for panel in panels for point in panel.points]
    rows = {id(point.row): point.row for point in points}
    aside = {id(point.row): point.row for point in points if not (point.competes or point.row.is_reference)}
    listed = "; ".join(f"{panel.column.label} {_rank_correlation(panel.points)}" for panel in panels)
    references = " (reference rows left out)" if any(row.is_reference for row in rows.values()) else ""
    cells = [entry.cell for point in points for entry in (point.x, point.y)]
    order = f"Spearman's rho{references}: {listed}.{left_out(aside.values())}"
    caption = f"{target.metric} of {target.protocol}. {error_words(cells)} {order} {_CAUTION}"
    height = 3.0 + 0.2 * math.ceil(len(rows) / 4)
    return draw(spec, title, caption, grid_size(len(panels), 3.4, height), paint)


def _panel(heading: str, place: int, shown: Shown, against: Shown) -> _Panel:
    along = place_of(heading, against.declared, against.table)
    others = {_key(row): row.entries[along] for row in against.table.rows}
    points = [
        _Point(row, others[_key(row)], row.entries[place]) for row in shown.table.rows if _key(row) in others
    ]
    both = [point for point in points if point.x.cell.value is not None and point.y.cell.value is not None]
    return _Panel(against.table.columns[along], both)


def _key(row: Row) -> tuple[str, ...]:
    """What makes rows of two tables the same."""
    return (row.method, row.variant, row.origin, row.labels[0])


def _paint(axes: Axes, panel: _Panel) -> None:
    both = [(point.x.cell.value or 0.0, point.y.cell.value or 0.0, point) for point in panel.points]
    colours = [names.colour(point.row.method) for point in panel.points]
    # All error bars at once: point by point, `errorbar` would take longer than all else.
    xs, ys = [x for x, _, _ in both], [y for _, y, _ in both]
    left, right = _bars((x, point.x.cell) for x, _, point in both)
    low, high = _bars((y, point.y.cell) for _, y, point in both)
    axes.hlines(ys, left, right, colors=colours, linewidth=1.0)
    axes.vlines(xs, low, high, colors=colours, linewidth=1.0)
    for (x, y, point), colour in zip(both, colours, strict=True):
        marker = names.marker(point.row.method)
        axes.plot([x], [y], marker, color=colour, markersize=7, linestyle="none", label=_label(point.row))
    axes.margins(0.12)


def _bars(points: Iterable[tuple[float, Cell]]) -> tuple[list[float], list[float]]:
    """Both ends of the error bars of some numbers."""
    pairs = [(value, cell.uncertainty or 0.0) for value, cell in points]
    return [value - error for value, error in pairs], [value + error for value, error in pairs]


def _label(row: Row) -> str:
    return ", ".join([row.labels[0], *(value for value in row.labels[1:] if value != "-")])


def _rank_correlation(points: Sequence[_Point]) -> str:
    """Spearman's rho over the methods that compete in words, with their number."""
    from scipy.stats import spearmanr  # a second of imports that only such a figure needs

    methods = [point for point in points if point.competes]
    count = f"n = {len(methods)}"
    x, y = ([getattr(point, axis).cell.value for point in methods] for axis in ("x", "y"))
    if len(methods) < _FEWEST or len(set(x)) == 1 or len(set(y)) == 1:
        return f"no order ({count})"
    return f"{spearmanr(x, y).statistic:.2f} ({count})"
