"""What a table varies, as curves or, where the values are words, as points; the published ones beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from twinbench.reports import names, quoted
from twinbench.reports.cells import Cell, describe_rest, text
from twinbench.reports.figures.drawing import Drawing, Shown, draw, draws, nothing_drawn
from twinbench.reports.figures.measured import axis_label, error_words, incomplete_words, target_of
from twinbench.reports.layout import Column, Table
from twinbench.reports.metrics import metric_of
from twinbench.reports.records import unique
from twinbench.reports.study import AxisSpec, FigureSpec, QuotedColumns, RowKey, TableSpec, ValueSpec
from twinbench.reports.variants import as_number, row_of, same_value

_MOST_COUNTS = 10  # ticks with a number each that have room on an axis


@dataclass(frozen=True)
class _Series:
    """One line or row of points: a method, the values of the axes that are not drawn along, and its points."""

    method: str
    others: tuple[str, ...]
    points: list[tuple[ValueSpec, Cell]]

    @property
    def label(self) -> str:
        return ", ".join([names.pretty(self.method), *self.others])


@dataclass(frozen=True)
class _Published:
    """A published line or row of points, at one value of each axis that is not drawn along."""

    curve: quoted.QuotedCurve
    others: tuple[str, ...]

    @property
    def method(self) -> str:
        return self.curve.method

    @property
    def label(self) -> str:
        return ", ".join([self.curve.published_name, *self.others, "quoted", self.curve.length])


@dataclass(frozen=True)
class _Panel:
    """What both painters need: the axis, the number, our lines, the published ones and what they publish."""

    axis: AxisSpec
    target: Column
    ours: list[_Series]
    curves: list[_Published]
    published: str

    @property
    def values(self) -> list[str]:
        return [value.label for value in self.axis.values]


@draws("ablation")
def ablation_figure(spec: FigureSpec, shown: Shown, against: Shown) -> Drawing:
    """One number against the first axis of the table: a line or a row of points for each method and other value."""
    declared, table = shown.declared, shown.table
    place = target_of(spec, declared, table)
    axis = next(iter(declared.axes.values()))
    target = table.columns[place]
    title = spec.title or f"{target.label} against {axis.label}"
    ours = _ours(declared, table, axis, place)
    named = [(f"{series.label} at {value.label}", cell) for series in ours for value, cell in series.points]
    cells = [cell for _, cell in named]
    if all(cell.value is None for cell in cells):
        return nothing_drawn(spec, title, "no variant has a number yet")
    curves, published = _published(declared, axis, unique(series.method for series in ours))
    panel = _Panel(axis, target, ours, curves, published)
    numeric = all(as_number(value) is not None for value in panel.values)
    painter = _paint_numeric if numeric else _paint_categories
    words = [f"{target.metric} of {target.protocol} on {target.image_set or 'the image set'}."]
    words.append(error_words(cells) + incomplete_words(named))
    lost = [
        f"{name}: {_lost_words(cell, target)}"
        for name, cell in named
        if cell.status in ("failed", "collapsed")
    ]
    words += [f"Without a number: {'; '.join(lost)}."] if lost else []
    if curves:
        sources = unique(source for one in curves for source in one.curve.sources)
        digitised = any(one.curve.digitised for one in curves)
        approximate = " Some points are read off a figure, approximate." if digitised else ""
        words.append(f"Right: {_quoted_title(curves)}; sources: {'; '.join(sources)}.{approximate}")
    height = 3.6 if numeric else max(0.42 * len(panel.values) * max(len(ours), 1) ** 0.5 + 1.4, 3.0)
    size = (9.5 if curves else 6.0, height)
    return draw(spec, title, " ".join(words), size, lambda figure: painter(figure, panel))


def _lost_words(cell: Cell, target: Column) -> str:
    """``collapsed (2 of 3 seeds), without the seeds that collapsed: 20.1 ± 0.9 (1 seed)``."""
    digits = metric_of(target.metric).digits
    return ", ".join([text(cell), *([describe_rest(cell, digits)] if cell.rest else [])])


def _ours(declared: TableSpec, table: Table, axis: AxisSpec, place: int) -> list[_Series]:
    found: dict[tuple[str, tuple[str, ...]], _Series] = {}
    for row in table.rows:
        key: RowKey | None = row_of(declared, row.method, row.variant)
        if key is None or axis.label not in key.values:
            continue
        rest = {label: value for label, value in key.values.items() if label != axis.label}
        others = _in_words(list(rest), list(rest.values()))
        series = found.setdefault((row.method, others), _Series(row.method, others, []))
        series.points.append((key.values[axis.label], row.entries[place].cell))
    return list(found.values())


def _in_words(labels: Sequence[str], values: Sequence[ValueSpec]) -> tuple[str, ...]:
    """The values of axes, each with the label of its axis, without which a yes or no would say nothing."""
    return tuple(f"{label} {value.label}" for label, value in zip(labels, values, strict=True))


def _published(declared: TableSpec, axis: AxisSpec, methods: Sequence[str]) -> tuple[list[_Published], str]:
    """The published curves of the methods along the axis, one for each value of the other axes, and which number they
    show.
    """
    spec: QuotedColumns | None = declared.quoted
    varied = [name for name, label in spec.match.items() if label == axis.label] if spec else []
    if spec is None or len(varied) != 1:
        return [], ""
    others = {name: declared.axes[label] for name, label in spec.match.items() if label != axis.label}
    combinations = list(product(*(other.values for other in others.values())))
    number = next(iter(spec.columns))
    curves = [quoted.curve(spec.file, [*varied, *others], number, method, spec.where) for method in methods]
    found = [
        _Published(replace(curve, points=points), _in_words([o.label for o in others.values()], values))
        for curve in curves
        if curve is not None
        for values in combinations
        if (points := _points_at(curve, values))
    ]
    return found, number


def _points_at(curve: quoted.QuotedCurve, others: Sequence[ValueSpec]) -> tuple[quoted.QuotedPoint, ...]:
    """The points of a curve at one value of each axis but the first."""
    wanted = [value.published or value.label for value in others]
    return tuple(point for point in curve.points if all(map(same_value, point.at[1:], wanted)))


def _quoted_title(curves: Sequence[_Published]) -> str:
    return f"quoted, ImageNet ResNet-50, {' / '.join(unique(one.curve.length for one in curves))}"


def _paint_numeric(figure: Figure, panel: _Panel) -> None:
    axes = figure.add_subplot(1, 2 if panel.curves else 1, 1)
    for series, style in zip(panel.ours, _line_styles(panel.ours), strict=True):
        points = [(float(value.label), cell) for value, cell in series.points]
        good = [(x, cell) for x, cell in points if cell.value is not None]
        axes.errorbar(
            [x for x, _ in good],
            [cell.value or 0.0 for _, cell in good],
            yerr=[cell.uncertainty or 0.0 for _, cell in good],
            color=names.colour(series.method),
            marker=names.marker(series.method),
            linestyle=style,
            markersize=6,
            capsize=3,
            label=series.label,
        )
        lost = [x for x, cell in points if cell.status in ("failed", "collapsed")]
        if lost:
            _mark_lost(axes, series, lost)
    axes.set_ylabel(axis_label(panel.target))
    axes.set_ymargin(0.12)
    _finish_axis(axes, panel.axis, [float(value) for value in panel.values])
    if panel.curves:
        axes.set_title("measured here\n")
        _paint_published(figure.add_subplot(1, 2, 2), panel)
    figure.legend(loc="outside lower center", ncols=3)


def _places_in_method(lines: Sequence[_Series | _Published]) -> list[int]:
    """For each line how many of the same method come before it, so that these can look different."""
    methods = [line.method for line in lines]
    return [methods[:place].count(method) for place, method in enumerate(methods)]


def _line_styles(series: Sequence[_Series]) -> list[str]:
    """Solid, then others for further lines of one method."""
    return [("-", "--", ":", "-.")[place % 4] for place in _places_in_method(series)]


def _markers(lines: Sequence[_Series | _Published]) -> list[str]:
    """The method's marker, then others for further lines of it."""
    return [
        (names.marker(line.method), "s", "^", "v")[place % 4]
        for line, place in zip(lines, _places_in_method(lines), strict=True)
    ]


def _mark_lost(axes: Axes, series: _Series, values: Sequence[float]) -> None:
    """Crosses on the lower edge where a method has no number to show."""
    (crosses,) = axes.plot(
        values,
        [0.0] * len(values),
        "x",
        color=names.colour(series.method),
        markersize=9,
        markeredgewidth=2,
        clip_on=False,
        transform=axes.get_xaxis_transform(),
        label=f"{series.label}, failed or collapsed",
    )
    crosses.set_in_layout(False)  # unclipped, it would be laid out as if it had no bounds


def _paint_published(axes: Axes, panel: _Panel) -> None:
    for one, marker in zip(panel.curves, _markers(panel.curves), strict=True):
        points = sorted(
            (x, point.y) for point in one.curve.points if (x := as_number(point.at[0])) is not None
        )
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=names.colour(one.method),
            marker=marker,
            markerfacecolor="white",
            linestyle="--",
            label=one.label,
        )
    axes.set_title(_two_lines(_quoted_title(panel.curves)))
    axes.set_ylabel(f"published {quoted.metric_name(panel.published)} (%)")
    axes.set_ymargin(0.12)
    numbers = [as_number(point.at[0]) for one in panel.curves for point in one.curve.points]
    _finish_axis(axes, panel.axis, [x for x in numbers if x is not None])


def _two_lines(title: str) -> str:
    return title.replace("ResNet-50, ", "ResNet-50,\n", 1)


def _finish_axis(axes: Axes, axis: AxisSpec, points: Sequence[float]) -> None:
    axes.set_xlabel(axis.label)
    if axis.log_scale:
        _log_axis(axes, points)
    elif _are_counts(points):
        axes.set_xticks(range(int(min(points)), int(max(points)) + 1))


def _are_counts(points: Sequence[float]) -> bool:
    """Whether they are a few whole numbers near each other, such as layers, between which there is nothing."""
    whole = all(x == int(x) for x in points)
    return whole and len(set(points)) > 1 and max(points) - min(points) <= _MOST_COUNTS


def _log_axis(axes: Axes, points: Sequence[float]) -> None:
    """A log axis with a tick at each point, thinned where labels would touch."""
    axes.set_xscale("log")
    positive = sorted({x for x in points if x > 0})
    positions: list[float] = []
    for x in positive:
        if not positions or math.log(x / positions[-1]) > 0.075 * math.log(positive[-1] / positive[0]):
            positions.append(x)
    axes.set_xticks(positions, [f"{x:g}" for x in positions], rotation=45 if len(positions) > 7 else 0)
    axes.minorticks_off()


def _paint_categories(figure: Figure, panel: _Panel) -> None:
    axes = figure.add_subplot(1, 2 if panel.curves else 1, 1)
    values = panel.values
    shifts = _shifts(len(panel.ours))
    for series, marker, shift in zip(panel.ours, _markers(panel.ours), shifts, strict=True):
        placed = [(values.index(value.label) + shift, cell) for value, cell in series.points]
        good = [(y, cell) for y, cell in placed if cell.value is not None]
        axes.errorbar(
            [cell.value or 0.0 for _, cell in good],
            [y for y, _ in good],
            xerr=[cell.uncertainty or 0.0 for _, cell in good],
            color=names.colour(series.method),
            marker=marker,
            linestyle="none",
            markersize=7,
            capsize=3,
            label=series.label,
        )
        for y, cell in placed:
            if cell.status in ("failed", "collapsed"):
                style: dict[str, Any] = {"fontsize": 9, "va": "center", "color": names.colour(series.method)}
                axes.annotate(text(cell), (0.02, y), xycoords=("axes fraction", "data"), **style)
    axes.set_xlabel(axis_label(panel.target))
    axes.set_xmargin(0.15)
    axes.set_ylabel(panel.axis.label)
    axes.set_yticks(range(len(values)), values)
    axes.set_ylim(len(values) - 0.5, -0.5)
    if panel.curves:
        axes.set_title("measured here\n")
        _paint_published_categories(figure.add_subplot(1, 2, 2, sharey=axes), panel)
    figure.legend(loc="outside lower center", ncols=3)


def _shifts(count: int) -> list[float]:
    """How far the points of each of ``count`` series stand above or below their value."""
    return [0.16 * (place - (count - 1) / 2) for place in range(count)]


def _paint_published_categories(axes: Axes, panel: _Panel) -> None:
    shifts = _shifts(len(panel.curves))
    for one, marker, shift in zip(panel.curves, _markers(panel.curves), shifts, strict=True):
        found = [
            (point.y, place + shift)
            for place, value in enumerate(panel.axis.values)
            for point in one.curve.points
            if same_value(point.at[0], value.published or value.label)
        ]
        axes.plot(
            [x for x, _ in found],
            [y for _, y in found],
            color=names.colour(one.method),
            marker=marker,
            markerfacecolor="white",
            markersize=7,
            linestyle="none",
            label=one.label,
        )
    axes.set_title(_two_lines(_quoted_title(panel.curves)))
    axes.set_xlabel(f"published {quoted.metric_name(panel.published)} (%)")
    axes.set_xmargin(0.15)
    axes.tick_params(labelleft=False, left=False)
