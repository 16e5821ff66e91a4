"""An ablation as curves or, where the values are words, as points; the published one beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from twinbench.reports import names, quoted
from twinbench.reports.ablations import ablation_methods, as_number, quoted_point, same_value
from twinbench.reports.cells import Cell
from twinbench.reports.figures.drawing import Drawing, draw, draws, nothing_drawn
from twinbench.reports.figures.measured import axis_label, cell_of, error_words, target_of
from twinbench.reports.groups import group_records
from twinbench.reports.layout import Column
from twinbench.reports.records import Record, RunInfo, unique
from twinbench.reports.study import AblationQuoted, AblationSpec, FigureSpec, StudySpec

Ours = dict[str, list[tuple[str, Cell]]]


@draws("ablation")
def ablation_figure(
    spec: FigureSpec, study: StudySpec, records: Sequence[Record], runs: Sequence[RunInfo]
) -> Drawing:
    """One number against the varied value, a line or a row of points a method."""
    ablation = study.ablation
    assert ablation is not None
    target = target_of(spec, (*ablation.columns, *study.main_columns()), records)
    title = spec.title or f"{target.label} against {ablation.heading}"
    groups = group_records(records, runs)
    values = ablation.values
    ours = {
        method: [
            (value, cell_of(group, target))
            for value in values
            for group in groups
            if group.method == method and same_value(group.variant, value)
        ]
        for method in ablation_methods(groups)
    }
    if all(cell.value is None for points in ours.values() for _, cell in points):
        return nothing_drawn(spec, title, "no variant has a number yet")
    curves = _published_curves(ablation, tuple(ours))
    numeric = all(as_number(value) is not None for value in values)
    painter = _paint_numeric if numeric else _paint_categories

    def paint(figure: Figure) -> None:
        painter(figure, ablation, target, values, ours, curves)

    words = [f"{target.metric} of {target.protocol} on {target.image_set or 'the image set'}."]
    words.append(error_words([cell for points in ours.values() for _, cell in points]))
    lost = [
        f"{names.pretty(method)} at {value}: {cell.status}"
        for method, points in ours.items()
        for value, cell in points
        if cell.status in ("failed", "collapsed")
    ]
    words += [f"Without a number: {'; '.join(lost)}."] if lost else []
    if curves:
        sources = unique(source for curve in curves for source in curve.sources)
        approximate = (
            " Some points are read off a figure, approximate." if any(c.digitised for c in curves) else ""
        )
        words.append(f"Right: {_quoted_title(curves)}; sources: {'; '.join(sources)}.{approximate}")
    height = 3.6 if numeric else max(0.42 * len(values) * max(len(ours), 1) ** 0.5 + 1.4, 3.0)
    return draw(spec, title, " ".join(words), (9.5 if curves else 6.0, height), paint)


def _published_curves(ablation: AblationSpec, methods: Sequence[str]) -> list[quoted.QuotedCurve]:
    source = ablation.quoted
    if source is None:
        return []
    found = [quoted.curve(source.file, source.x, source.y, m, source.where) for m in methods]
    return [curve for curve in found if curve is not None]


def _quoted_title(curves: Sequence[quoted.QuotedCurve]) -> str:
    return f"quoted, ImageNet ResNet-50, {' / '.join(unique(curve.length for curve in curves))}"


def _paint_numeric(
    figure: Figure,
    ablation: AblationSpec,
    target: Column,
    values: Sequence[str],
    ours: Ours,
    curves: Sequence[quoted.QuotedCurve],
) -> None:
    axes = figure.add_subplot(1, 2 if curves else 1, 1)
    for method, points in ours.items():
        good = [(float(value), cell) for value, cell in points if cell.value is not None]
        axes.errorbar(
            [x for x, _ in good],
            [cell.value or 0.0 for _, cell in good],
            yerr=[cell.uncertainty or 0.0 for _, cell in good],
            color=names.colour(method),
            marker=names.marker(method),
            markersize=6,
            capsize=3,
            label=names.pretty(method),
        )
        lost = [float(value) for value, cell in points if cell.status in ("failed", "collapsed")]
        if lost:
            _mark_lost(axes, method, lost)
    axes.set_ylabel(axis_label(target))
    axes.set_ymargin(0.12)
    _finish_axis(axes, ablation, [float(value) for value in values])
    if curves and ablation.quoted is not None:
        axes.set_title("measured here\n")
        _paint_published(figure.add_subplot(1, 2, 2), ablation, ablation.quoted, curves)
    figure.legend(loc="outside lower center", ncols=3)


def _mark_lost(axes: Axes, method: str, values: Sequence[float]) -> None:
    """Crosses on the lower edge where a method has no number to show."""
    (crosses,) = axes.plot(
        values,
        [0.0] * len(values),
        "x",
        color=names.colour(method),
        markersize=9,
        markeredgewidth=2,
        clip_on=False,
        transform=axes.get_xaxis_transform(),
        label=f"{names.pretty(method)}, failed or collapsed",
    )
    crosses.set_in_layout(False)  # unclipped, it would be laid out as if it had no bounds


def _paint_published(
    axes: Axes, ablation: AblationSpec, source: AblationQuoted, curves: Sequence[quoted.QuotedCurve]
) -> None:
    for curve in curves:
        points = sorted((x, point.y) for point in curve.points if (x := as_number(point.x)) is not None)
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=names.colour(curve.method),
            marker=names.marker(curve.method),
            markerfacecolor="white",
            linestyle="--",
            label=_quoted_label(curve),
        )
    axes.set_title(_two_lines(_quoted_title(curves)))
    axes.set_ylabel(f"published {quoted.metric_name(source.y)} (%)")
    axes.set_ymargin(0.12)
    numbers = [as_number(point.x) for curve in curves for point in curve.points]
    _finish_axis(axes, ablation, [x for x in numbers if x is not None])


def _quoted_label(curve: quoted.QuotedCurve) -> str:
    return f"{curve.published_name}, quoted, {curve.length}"


def _two_lines(title: str) -> str:
    return title.replace("ResNet-50, ", "ResNet-50,\n", 1)


def _finish_axis(axes: Axes, ablation: AblationSpec, points: Sequence[float]) -> None:
    axes.set_xlabel(ablation.heading)
    if ablation.log_scale:
        _log_axis(axes, points)


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


def _paint_categories(
    figure: Figure,
    ablation: AblationSpec,
    target: Column,
    values: Sequence[str],
    ours: Ours,
    curves: Sequence[quoted.QuotedCurve],
) -> None:
    axes = figure.add_subplot(1, 2 if curves else 1, 1)
    spread = {method: 0.16 * (i - (len(ours) - 1) / 2) for i, method in enumerate(ours)}
    for method, points in ours.items():
        placed = [(values.index(value) + spread[method], cell) for value, cell in points]
        good = [(y, cell) for y, cell in placed if cell.value is not None]
        axes.errorbar(
            [cell.value or 0.0 for _, cell in good],
            [y for y, _ in good],
            xerr=[cell.uncertainty or 0.0 for _, cell in good],
            color=names.colour(method),
            marker=names.marker(method),
            linestyle="none",
            markersize=7,
            capsize=3,
            label=names.pretty(method),
        )
        for y, cell in placed:
            if cell.status in ("failed", "collapsed"):
                style: dict[str, Any] = {"fontsize": 9, "va": "center", "color": names.colour(method)}
                axes.annotate(cell.status, (0.02, y), xycoords=("axes fraction", "data"), **style)
    axes.set_xlabel(axis_label(target))
    axes.set_xmargin(0.15)
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.5, -0.5)
    if curves and ablation.quoted is not None:
        axes.set_title("measured here\n")
        other = figure.add_subplot(1, 2, 2, sharey=axes)
        for curve in curves:
            found = [(quoted_point(ablation.quoted, curve, value), i) for i, value in enumerate(values)]
            other.plot(
                [point.y for point, _ in found if point is not None],
                [index + spread[curve.method] for point, index in found if point is not None],
                color=names.colour(curve.method),
                marker=names.marker(curve.method),
                markerfacecolor="white",
                markersize=7,
                linestyle="none",
                label=_quoted_label(curve),
            )
        other.set_title(_two_lines(_quoted_title(curves)))
        other.set_xlabel(f"published {quoted.metric_name(ablation.quoted.y)} (%)")
        other.set_xmargin(0.15)
        other.tick_params(labelleft=False, left=False)
    figure.legend(loc="outside lower center", ncols=3)
