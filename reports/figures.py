"""Figures: loss curves, cross-correlation maps, spectra, bars and ablations, as svg, png and pdf."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from twinbench.reports import names, quoted
from twinbench.reports.cells import Cell
from twinbench.reports.groups import Group, check_metric, group_records, image_sets
from twinbench.reports.records import (
    Diagnostics,
    LossCurve,
    Record,
    RunInfo,
    read_diagnostics,
    read_loss_curve,
    unique,
)
from twinbench.reports.study import AblationQuoted, AblationSpec, ColumnSpec, FigureSpec, StudySpec
from twinbench.reports.tables import (
    BUDGET_MARK,
    ablation_methods,
    ablation_values,
    as_number,
    differs,
    main_groups,
    quoted_point,
    same_value,
    usual_budgets,
    varied_fields,
)

FORMATS = ("svg", "png", "pdf")
_MAX_POINTS = 600  # points of one curve: more are not visible and only make the page heavy
_LABEL_SHARE = 0.055  # of the height of a bar chart: the height of a line of text
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.7,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "twinbench",
    "svg.fonttype": "path",
    "path.simplify": True,
}


@dataclass(frozen=True)
class Drawing:
    """A finished figure: its name, title, what it shows in words, and the bytes for each format.

    ``files`` is empty where there was nothing to draw; ``caption`` then says why.
    """

    name: str
    title: str
    caption: str
    files: dict[str, bytes]


def draw_figures(spec: StudySpec, records: Sequence[Record], runs: Sequence[RunInfo]) -> list[Drawing]:
    """Every figure of the study. Nothing in the bytes depends on the time of day."""
    return [_DRAWERS[figure.kind](figure, spec, records, runs) for figure in spec.figures]


def _render(figure: Figure) -> dict[str, bytes]:
    metadata: dict[str, dict[str, Any]] = {
        "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    files = {}
    for name in FORMATS:
        buffer = io.BytesIO()
        figure.savefig(buffer, format=name, dpi=160, bbox_inches="tight", metadata=metadata[name])
        files[name] = buffer.getvalue()
    return files


def _draw(
    spec: FigureSpec, title: str, caption: str, size: tuple[float, float], paint: Callable[[Figure], None]
) -> Drawing:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        paint(figure)
        files = _render(figure)
        figure.clear()
    return Drawing(spec.name, title, caption, files)


def _nothing(spec: FigureSpec, title: str, why: str) -> Drawing:
    return Drawing(spec.name, title, f"Not drawn: {why}.", {})


def _panels(figure: Figure, count: int) -> list[Axes]:
    columns = _grid_columns(count)
    rows = math.ceil(count / columns)
    return [figure.add_subplot(rows, columns, index + 1) for index in range(count)]


def _grid_columns(count: int) -> int:
    return count if count <= 3 else 4 if count in (4, 7, 8) or count > 9 else 3


def _grid_size(count: int, width: float, height: float) -> tuple[float, float]:
    columns = _grid_columns(count)
    return max(columns * width, 3.6), math.ceil(count / columns) * height


def _main_runs(runs: Sequence[RunInfo]) -> list[RunInfo]:
    """The runs without ablation variants, unless there are only such; in the paper's order, by seed."""
    plain = [run for run in runs if not run.variant]
    chosen = plain if any(not names.is_reference(run.method) for run in plain) else list(runs)
    return sorted(chosen, key=lambda run: (names.sort_key(run.method), _variant_key(run.variant), run.seed))


def _variant_key(variant: str) -> tuple[float, str]:
    """Sorts numbers as numbers and puts words after them."""
    number = as_number(variant)
    return (math.inf if number is None else number, variant)


def _run_label(run: RunInfo) -> str:
    return names.pretty(run.method) + (f", {run.variant}" if run.variant else "")


def _loss_curves(
    spec: FigureSpec, study: StudySpec, records: Sequence[Record], runs: Sequence[RunInfo]
) -> Drawing:
    title = spec.title or "Training loss"
    curves: dict[str, list[tuple[RunInfo, LossCurve]]] = {}
    for run in _main_runs(runs):
        curve = read_loss_curve(run.folder)
        if curve is not None:
            curves.setdefault(_run_label(run), []).append((run, curve))
    if not curves:
        return _nothing(spec, title, "no run has logged a loss")

    def paint(figure: Figure) -> None:
        for axes, (label, members) in zip(_panels(figure, len(curves)), curves.items(), strict=True):
            for run, curve in members:
                _paint_loss(axes, run, curve)
            axes.set_title(label)
            axes.set_xlabel("step")
            axes.set_ylabel("loss")

    caption = (
        "One panel a method, because the losses have different scales and must not be compared. "
        "Faint: as logged; strong: centred moving average; dashed: a run that failed or collapsed."
    )
    return _draw(spec, title, caption, _grid_size(len(curves), 3.0, 2.4), paint)


def _paint_loss(axes: Axes, run: RunInfo, curve: LossCurve) -> None:
    steps, losses = np.asarray(curve.steps), np.asarray(curve.losses)
    shade = names.colour(run.method)
    keep = _thin(len(steps))
    axes.plot(steps[keep], losses[keep], color=shade, alpha=0.25, linewidth=0.8)
    broken = run.status in ("failed", "collapsed")
    smooth = smoothed(losses)
    axes.plot(steps[keep], smooth[keep], color=shade, linewidth=1.5, linestyle="--" if broken else "-")


def _thin(count: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    return np.unique(np.linspace(0, count - 1, min(count, _MAX_POINTS)).round().astype(np.intp))


def smoothed(values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Centred moving average [N] over 5 % of the points; the window shrinks at the ends, so no value is
    invented.
    """
    half = max(len(values) // 40, 1)
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return np.asarray((total[last] - total[first]) / (last - first))


def _with_diagnostics(runs: Sequence[RunInfo], wanted: str) -> dict[str, tuple[RunInfo, Diagnostics]]:
    """For each method and variant the first seed whose diagnostics hold ``wanted``, healthy ones first."""
    found: dict[str, tuple[RunInfo, Diagnostics]] = {}
    for run in _main_runs(runs):
        label = _run_label(run)
        if label in found and (found[label][0].status == "done" or run.status != "done"):
            continue
        diagnostics = read_diagnostics(run.folder)
        if diagnostics is not None and getattr(diagnostics, wanted):
            found[label] = (run, diagnostics)
    return found


def _status_suffix(run: RunInfo) -> str:
    return f" ({run.status})" if run.status in ("failed", "collapsed") else ""


def _cross_correlation(
    spec: FigureSpec, study: StudySpec, records: Sequence[Record], runs: Sequence[RunInfo]
) -> Drawing:
    title = spec.title or "Cross-correlation of the embeddings of two views"
    found = _with_diagnostics(runs, "cross_correlation")
    if not found:
        return _nothing(spec, title, "no run has saved a cross-correlation matrix")
    matrices = {label: np.asarray(d.cross_correlation) for label, (_, d) in found.items()}
    facts = {label: correlation_facts(matrix) for label, matrix in matrices.items()}

    def paint(figure: Figure) -> None:
        panels = _panels(figure, len(found))
        for axes, (label, (run, _)) in zip(panels, found.items(), strict=True):
            image = axes.imshow(matrices[label], cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
            axes.set_title(f"{label}{_status_suffix(run)}")
            axes.set_xlabel(
                f"diagonal {facts[label][0]:.2f}\noff-diagonal RMS {facts[label][1]:.3f}", fontsize=9
            )
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(False)
        figure.colorbar(image, ax=panels, shrink=0.75, label="correlation", aspect=30)

    size = max(matrix.shape[0] for matrix in matrices.values())
    layers = unique(diagnostics.layer for _, diagnostics in found.values())
    listed = "; ".join(
        f"{label}: diagonal mean {diagonal:.3f}, off-diagonal RMS {off:.3f}"
        for label, (diagonal, off) in facts.items()
    )
    layer = f" Layer: {', '.join(layers)}." if layers else ""
    caption = (
        f"One run a method, at most {size} dimensions, the same colour scale (-1 to 1). {listed}.{layer}"
    )
    return _draw(spec, title, caption, _grid_size(len(found), 2.5, 2.8), paint)


def correlation_facts(matrix: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    """The mean of the diagonal and the root mean square of the rest of a [D, D] matrix."""
    diagonal = np.diagonal(matrix)
    count = matrix.size - diagonal.size
    rest = float(np.square(matrix).sum() - np.square(diagonal).sum())
    return float(diagonal.mean()), math.sqrt(max(rest, 0.0) / count) if count else 0.0


def _spectrum(
    spec: FigureSpec, study: StudySpec, records: Sequence[Record], runs: Sequence[RunInfo]
) -> Drawing:
    title = spec.title or "Singular values of the standardised embeddings"
    found = {
        label: (run, diagnostics)
        for label, (run, diagnostics) in _with_diagnostics(runs, "spectrum").items()
        if max(diagnostics.spectrum) > 0
    }
    if not found:
        return _nothing(spec, title, "no run has saved a spectrum")

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        styles = ["-", "--", ":", "-."]
        used: dict[str, int] = {}
        for label, (run, diagnostics) in found.items():
            values = np.asarray(diagnostics.spectrum) / max(diagnostics.spectrum)
            rank = diagnostics.effective_rank
            suffix = "" if rank is None else f", effective rank {rank:.1f}"
            style = styles[used.setdefault(run.method, 0) % len(styles)]
            used[run.method] += 1
            axes.plot(
                np.arange(1, len(values) + 1),
                np.clip(values, 1e-6, None),
                color=names.colour(run.method),
                linestyle=style,
                marker=names.marker(run.method),
                markevery=max(len(values) // 8, 1),
                markersize=5,
                label=f"{label}{_status_suffix(run)}{suffix}",
            )
        axes.set_yscale("log")
        axes.set_xlabel("index of the singular value")
        axes.set_ylabel("singular value / largest")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))

    layers = unique(diagnostics.layer for _, diagnostics in found.values())
    layer = f" Layer: {', '.join(layers)}." if layers else ""
    caption = f"One run a method. A line that falls early means few dimensions carry the information.{layer}"
    return _draw(spec, title, caption, (8.0, 3.8), paint)


def _target(
    spec: FigureSpec, study: StudySpec, columns: Sequence[ColumnSpec], records: Sequence[Record]
) -> ColumnSpec:
    """The number that bars or an ablation show: the figure's own choice, else the first that fits it."""
    fitting = [
        column
        for column in columns
        if spec.protocol in ("", column.protocol) and spec.metric in ("", column.metric)
    ]
    chosen = fitting[0] if fitting else ColumnSpec(protocol=spec.protocol, metric=spec.metric, digits=1)
    check_metric(records, chosen.protocol, chosen.metric, f"figures, {spec.name}")
    measured = image_sets([r for r in records if r.protocol == chosen.protocol])
    image_set = spec.image_set or chosen.image_set or (measured[0] if measured else "")
    heading = spec.label or chosen.heading
    return ColumnSpec(
        protocol=chosen.protocol,
        metric=chosen.metric,
        label=heading,
        image_set=image_set,
        digits=chosen.digits,
    )


def _cell(group: Group, target: ColumnSpec) -> Cell:
    return group.cell(target.protocol, target.metric, target.image_set)


def _axis_label(target: ColumnSpec) -> str:
    return f"{target.heading} (%)"


def _error_words(cells: Sequence[Cell]) -> str:
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


def _bars(spec: FigureSpec, study: StudySpec, records: Sequence[Record], runs: Sequence[RunInfo]) -> Drawing:
    target = _target(spec, study, study.main_columns(), records)
    title = spec.title or f"{target.heading} on {target.image_set or 'the image set'}"
    groups = main_groups(group_records(records, runs))
    shown = [(group, _cell(group, target)) for group in groups if not group.is_reference]
    references = [(g, c) for g in groups if g.is_reference and (c := _cell(g, target)).value is not None]
    usual = usual_budgets(groups, [target.image_set], varied_fields(study))
    marks = [BUDGET_MARK if differs(group, usual, varied_fields(study)) else "" for group, _ in shown]
    marked = list(zip(shown, marks, strict=True))
    if all(cell.value is None for _, cell in (*shown, *references)):
        return _nothing(spec, title, f"no number of {target.protocol} {target.metric} yet")

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, (group, cell) in enumerate(shown):
            _paint_bar(axes, index, group, cell, target.digits)
        for group, cell in references:
            assert cell.value is not None
            axes.axhline(
                cell.value, color=names.colour(group.method), linestyle="--", linewidth=1.3, zorder=1
            )
        labels = [f"{g.label}{mark}" + (f"\n{g.variant}" if g.variant else "") for (g, _), mark in marked]
        axes.set_xticks(range(len(shown)), labels, rotation=0 if len(shown) <= 8 else 30)
        axes.set_xlim(-0.6, len(shown) - 0.4)
        axes.set_ylabel(_axis_label(target))
        axes.grid(False, axis="x")
        axes.margins(y=0.12)
        axes.set_ylim(bottom=0)
        _label_references(axes, references, target.digits)

    caption = (
        f"{target.metric} of {target.protocol}. {_error_words([c for _, c in shown])} Dashed: reference rows."
    )
    if any(marks):
        caption += f" {BUDGET_MARK}: another pretraining budget than the others."
    return _draw(spec, title, caption, (max(1.15 * len(shown) + 1.6, 4.5), 3.6), paint)


def _label_references(axes: Axes, references: Sequence[tuple[Group, Cell]], digits: int) -> None:
    """Name the lines of reference rows beside the axes; names of lines that are close are moved apart."""
    gap = _LABEL_SHARE * axes.get_ylim()[1]
    lowest = -gap
    for group, cell in sorted(references, key=lambda reference: reference[1].value or 0.0):
        height = lowest = max(cell.value or 0.0, lowest + gap)
        axes.annotate(
            f"{group.label} {cell.value:.{digits}f}",
            (1.0, height),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=names.colour(group.method),
        )


def _paint_bar(axes: Axes, index: int, group: Group, cell: Cell, digits: int) -> None:
    if cell.value is None:
        word = cell.status if cell.status != "missing" else "no number"
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
    axes.bar(index, cell.value, width=0.68, color=names.colour(group.method), zorder=2)
    if cell.uncertainty is not None:
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


def _ablation(
    spec: FigureSpec, study: StudySpec, records: Sequence[Record], runs: Sequence[RunInfo]
) -> Drawing:
    ablation = study.ablation
    assert ablation is not None
    target = _target(spec, study, (*ablation.columns, *study.main_columns()), records)
    title = spec.title or f"{target.heading} against {ablation.heading}"
    groups = group_records(records, runs)
    values = ablation_values(ablation, groups)
    ours = {
        method: [
            (value, _cell(group, target))
            for value in values
            for group in groups
            if group.method == method and same_value(group.variant, value)
        ]
        for method in ablation_methods(ablation, groups)
    }
    if all(cell.value is None for points in ours.values() for _, cell in points):
        return _nothing(spec, title, "no variant has a number yet")
    curves = _published_curves(ablation, tuple(ours))
    numeric = all(as_number(value) is not None for value in values)
    painter = _paint_numeric if numeric else _paint_categories

    def paint(figure: Figure) -> None:
        painter(figure, ablation, target, values, ours, curves)

    words = [f"{target.metric} of {target.protocol} on {target.image_set or 'the image set'}."]
    words.append(_error_words([cell for points in ours.values() for _, cell in points]))
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
    return _draw(spec, title, " ".join(words), (9.5 if curves else 6.0, height), paint)


def _published_curves(ablation: AblationSpec, methods: Sequence[str]) -> list[quoted.QuotedCurve]:
    source = ablation.quoted
    if source is None:
        return []
    found = [quoted.curve(source.file, source.x, source.y, m, source.where, source.rows) for m in methods]
    return [curve for curve in found if curve is not None]


def _quoted_title(curves: Sequence[quoted.QuotedCurve]) -> str:
    return f"quoted, ImageNet ResNet-50, {' / '.join(unique(curve.length for curve in curves))}"


Ours = dict[str, list[tuple[str, Cell]]]


def _paint_numeric(
    figure: Figure,
    ablation: AblationSpec,
    target: ColumnSpec,
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
    axes.set_ylabel(_axis_label(target))
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
    target: ColumnSpec,
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
    axes.set_xlabel(_axis_label(target))
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


_DRAWERS: dict[str, Callable[[FigureSpec, StudySpec, Sequence[Record], Sequence[RunInfo]], Drawing]] = {
    "loss_curves": _loss_curves,
    "cross_correlation": _cross_correlation,
    "spectrum": _spectrum,
    "bars": _bars,
    "ablation": _ablation,
}
