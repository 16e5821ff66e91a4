"""Figures of what runs logged: loss curves, cross-correlation maps and spectra."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from twinbench.reports import names
from twinbench.reports.figures.drawing import (
    Drawing,
    Shown,
    draw,
    draws,
    grid_size,
    nothing_drawn,
    panels_of,
    wrapped,
)
from twinbench.reports.records import (
    Diagnostics,
    LossCurve,
    RunInfo,
    read_diagnostics,
    read_loss_curve,
)
from twinbench.reports.study import FigureSpec

_LEGEND_LINE = 0.18  # inches
_MAX_POINTS = 600  # points of one curve: more are not visible and only make the page heavy


@draws("loss_curves")
def loss_curves(spec: FigureSpec, shown: Shown, against: Shown) -> Drawing:
    """The loss over training, a panel a method."""
    title = spec.title or "Training loss"
    curves: dict[str, list[tuple[RunInfo, LossCurve]]] = {}
    for run in _in_order(shown.runs):
        curve = read_loss_curve(run.folder)
        if curve is not None:
            curves.setdefault(_run_label(run), []).append((run, curve))
    if not curves:
        return nothing_drawn(spec, title, "no run has logged a loss")

    def paint(figure: Figure) -> None:
        for axes, (label, members) in zip(panels_of(figure, len(curves)), curves.items(), strict=True):
            for run, curve in members:
                _paint_loss(axes, run, curve)
            axes.set_title(wrapped(label))
            axes.set_xlabel("step")
            axes.set_ylabel("loss")

    caption = (
        "One panel a method, because the losses have different scales and must not be compared. "
        "Faint: as logged; strong: centred moving average; dashed: a run that failed or collapsed."
    )
    return draw(spec, title, caption, grid_size(len(curves), 3.0, 2.4), paint)


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


@draws("cross_correlation")
def cross_correlation(spec: FigureSpec, shown: Shown, against: Shown) -> Drawing:
    """The cross-correlation matrices of two views' embeddings, a panel a method."""
    title = spec.title or "Cross-correlation of the embeddings of two views"
    found = _with_diagnostics(shown.runs, "cross_correlation")
    if not found:
        return nothing_drawn(spec, title, "no run has saved a cross-correlation matrix")
    matrices = {label: np.asarray(d.cross_correlation) for label, (_, d) in found.items()}
    facts = {label: correlation_facts(matrix) for label, matrix in matrices.items()}

    def paint(figure: Figure) -> None:
        panels = panels_of(figure, len(found))
        for axes, (label, (run, _)) in zip(panels, found.items(), strict=True):
            image = axes.imshow(matrices[label], cmap="RdBu_r", vmin=-1, vmax=1, interpolation="none")
            axes.set_title(wrapped(f"{label}{_status_suffix(run)}"))
            axes.set_xlabel(
                f"diagonal {facts[label][0]:.2f}\noff-diagonal RMS {facts[label][1]:.3f}", fontsize=9
            )
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(False)
        figure.colorbar(image, ax=panels, shrink=0.75, label="correlation", aspect=30)

    size = max(matrix.shape[0] for matrix in matrices.values())
    listed = "; ".join(
        f"{label}: diagonal mean {diagonal:.3f}, off-diagonal RMS {off:.3f}"
        for label, (diagonal, off) in facts.items()
    )
    caption = f"One run a method, at most {size} dimensions, the same colour scale (-1 to 1). {listed}."
    return draw(spec, title, caption, grid_size(len(found), 2.5, 2.8), paint)


def correlation_facts(matrix: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    """The mean of the diagonal and the root mean square of the rest of a [D, D] matrix."""
    diagonal = np.diagonal(matrix)
    count = matrix.size - diagonal.size
    rest = float(np.square(matrix).sum() - np.square(diagonal).sum())
    return float(diagonal.mean()), math.sqrt(max(rest, 0.0) / count) if count else 0.0


@draws("spectrum")
def spectrum(spec: FigureSpec, shown: Shown, against: Shown) -> Drawing:
    """The singular values of the embeddings, a line a method."""
    title = spec.title or "Singular values of the standardised embeddings"
    found = {
        label: (run, diagnostics)
        for label, (run, diagnostics) in _with_diagnostics(shown.runs, "spectrum").items()
        if max(diagnostics.spectrum) > 0
    }
    if not found:
        return nothing_drawn(spec, title, "no run has saved a spectrum")

    def described(label: str) -> str:
        run, diagnostics = found[label]
        rank = diagnostics.effective_rank
        suffix = "" if rank is None else f", effective rank {rank:.1f}"
        return f"{wrapped(label)}{_status_suffix(run)}{suffix}"

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        styles = ["-", "--", ":", "-."]
        used: dict[str, int] = {}
        for label, (run, diagnostics) in found.items():
            values = np.asarray(diagnostics.spectrum) / max(diagnostics.spectrum)
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
                label=legend[label],
            )
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("index of the singular value")
        axes.set_ylabel("singular value / largest")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))

    caption = (
        "One run a method, at the end of its training, of its own views of held-out images. A line that falls early "
        "means few dimensions carry the information."
    )
    legend = {label: described(label) for label in found}
    lines = sum(text.count("\n") + 1 for text in legend.values())
    return draw(spec, title, caption, (8.0, max(3.8, _LEGEND_LINE * lines + 0.8)), paint)


def _with_diagnostics(runs: Sequence[RunInfo], wanted: str) -> dict[str, tuple[RunInfo, Diagnostics]]:
    """For each method and variant the first seed whose diagnostics hold ``wanted``, healthy ones first."""
    found: dict[str, tuple[RunInfo, Diagnostics]] = {}
    for run in _in_order(runs):
        label = _run_label(run)
        if label in found and (found[label][0].status == "done" or run.status != "done"):
            continue
        diagnostics = read_diagnostics(run.folder)
        if diagnostics is not None and getattr(diagnostics, wanted):
            found[label] = (run, diagnostics)
    return found


def _in_order(runs: Sequence[RunInfo]) -> list[RunInfo]:
    """The runs in the paper's order of methods, those of a method in the order of the table."""
    return sorted(runs, key=lambda run: names.sort_key(run.method))


def _run_label(run: RunInfo) -> str:
    return names.pretty(run.method) + (f", {run.variant}" if run.variant else "")


def _status_suffix(run: RunInfo) -> str:
    return f" ({run.status})" if run.status in ("failed", "collapsed") else ""
