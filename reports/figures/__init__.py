"""Figures: loss curves, cross-correlation maps, spectra, bars and ablations, as svg, png and pdf."""

from __future__ import annotations

from collections.abc import Sequence

from twinbench.reports.figures import ablation, bars, runs  # noqa: F401  (each registers the kinds that it draws)
from twinbench.reports.figures.drawing import FIGURE_KINDS, Drawing
from twinbench.reports.records import Record, RunInfo
from twinbench.reports.study import StudySpec

__all__ = ["FIGURE_KINDS", "draw_figures"]


def draw_figures(study: StudySpec, records: Sequence[Record], run_infos: Sequence[RunInfo]) -> list[Drawing]:
    """Every figure of the study. Nothing in the bytes depends on the time of day."""
    return [FIGURE_KINDS[figure.kind](figure, study, records, run_infos) for figure in study.figures]
