"""Figures: loss curves, cross-correlation maps, spectra, bars, ablations and scatters, as svg, png and pdf."""

from __future__ import annotations

from collections.abc import Sequence

from twinbench.reports.figures import ablation, bars, pictures, ranks, runs, scatter  # noqa: F401  (each registers its kinds)
from twinbench.reports.figures.drawing import FIGURE_KINDS, Drawing, Shown, nothing_drawn
from twinbench.reports.layout import Table
from twinbench.reports.records import RunInfo, of_table
from twinbench.reports.study import StudySpec, TableSpec

__all__ = ["FIGURE_KINDS", "draw_figures", "figures_to_come"]


def draw_figures(study: StudySpec, tables: Sequence[Table], run_infos: Sequence[RunInfo]) -> list[Drawing]:
    """Every figure of the study, each of a finished table. Nothing in the bytes depends on the time of day."""
    finished = {table.name: table for table in tables}

    def shown(declared: TableSpec) -> Shown:
        return Shown(declared, finished[declared.name], of_table(run_infos, declared.name))

    return [
        FIGURE_KINDS[figure.kind](figure, shown(study.table_of(figure)), shown(study.other_table_of(figure)))
        for figure in study.figures
    ]


def figures_to_come(study: StudySpec) -> list[Drawing]:
    """What stands in the place of every figure while results still come in."""
    return [
        nothing_drawn(figure, figure.title or figure.name, "the study is still running, and its end draws it")
        for figure in study.figures
    ]
