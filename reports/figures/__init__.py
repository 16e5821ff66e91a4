"""Figures: loss curves, cross-correlation maps, spectra, bars and ablations, as svg, png and pdf."""

from __future__ import annotations

from collections.abc import Sequence

from twinbench.reports.figures import ablation, bars, pictures, runs  # noqa: F401  (each registers the kinds that it draws)
from twinbench.reports.figures.drawing import FIGURE_KINDS, Drawing
from twinbench.reports.layout import Table
from twinbench.reports.records import RunInfo, of_table
from twinbench.reports.study import StudySpec

__all__ = ["FIGURE_KINDS", "draw_figures"]


def draw_figures(study: StudySpec, tables: Sequence[Table], run_infos: Sequence[RunInfo]) -> list[Drawing]:
    """Every figure of the study, each of a finished table. Nothing in the bytes depends on the time of day."""
    finished = {table.name: table for table in tables}
    drawings = []
    for figure in study.figures:
        table = study.table_of(figure)
        draw = FIGURE_KINDS[figure.kind]
        drawings.append(draw(figure, table, finished[table.name], of_table(run_infos, table.name)))
    return drawings
