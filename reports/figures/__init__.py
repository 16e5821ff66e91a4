"""Figures: loss curves, cross-correlation maps, spectra, bars and ablations, as svg, png and pdf."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twinbench.reports.figures.ablation import ablation_figure
from twinbench.reports.figures.bars import bars
from twinbench.reports.figures.drawing import Drawing
from twinbench.reports.figures.runs import cross_correlation, loss_curves, spectrum
from twinbench.reports.records import Record, RunInfo
from twinbench.reports.study import FigureSpec, StudySpec

_DRAWERS: dict[str, Callable[[FigureSpec, StudySpec, Sequence[Record], Sequence[RunInfo]], Drawing]] = {
    "loss_curves": loss_curves,
    "cross_correlation": cross_correlation,
    "spectrum": spectrum,
    "bars": bars,
    "ablation": ablation_figure,
}


def draw_figures(spec: StudySpec, records: Sequence[Record], runs: Sequence[RunInfo]) -> list[Drawing]:
    """Every figure of the study. Nothing in the bytes depends on the time of day."""
    return [_DRAWERS[figure.kind](figure, spec, records, runs) for figure in spec.figures]
