"""Bars: one number of every method, with the reference rows as lines."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from twinbench.reports import names
from twinbench.reports.ablations import varied_fields
from twinbench.reports.cells import Cell
from twinbench.reports.figures.drawing import Drawing, draw, draws, nothing_drawn
from twinbench.reports.figures.measured import axis_label, cell_of, error_words, target_of
from twinbench.reports.groups import Group, differs, group_records, main_groups, usual_budgets
from twinbench.reports.layout import BUDGET_MARK
from twinbench.reports.records import Record, RunInfo
from twinbench.reports.study import FigureSpec, StudySpec

_LABEL_SHARE = 0.055  # of the height of a bar chart: the height of a line of text


@draws("bars")
def bars(spec: FigureSpec, study: StudySpec, records: Sequence[Record], runs: Sequence[RunInfo]) -> Drawing:
    """One number of every method."""
    target = target_of(spec, study.main_columns(), records)
    title = spec.title or f"{target.label} on {target.image_set or 'the image set'}"
    groups = main_groups(group_records(records, runs), study.ablation is not None)
    shown = [(group, cell_of(group, target)) for group in groups if not group.is_reference]
    references = [(g, c) for g in groups if g.is_reference and (c := cell_of(g, target)).value is not None]
    usual = usual_budgets(groups, [target.image_set], varied_fields(study))
    marks = [BUDGET_MARK if differs(group, usual, varied_fields(study)) else "" for group, _ in shown]
    marked = list(zip(shown, marks, strict=True))
    if all(cell.value is None for _, cell in (*shown, *references)):
        return nothing_drawn(spec, title, f"no number of {target.protocol} {target.metric} yet")

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, (group, cell) in enumerate(shown):
            _paint_bar(axes, index, group, cell)
        for group, cell in references:
            assert cell.value is not None
            axes.axhline(
                cell.value, color=names.colour(group.method), linestyle="--", linewidth=1.3, zorder=1
            )
        labels = [f"{g.label}{mark}" + (f"\n{g.variant}" if g.variant else "") for (g, _), mark in marked]
        axes.set_xticks(range(len(shown)), labels, rotation=0 if len(shown) <= 8 else 30)
        axes.set_xlim(-0.6, len(shown) - 0.4)
        axes.set_ylabel(axis_label(target))
        axes.grid(False, axis="x")
        axes.margins(y=0.12)
        axes.set_ylim(bottom=0)
        _label_references(axes, references)

    caption = (
        f"{target.metric} of {target.protocol}. {error_words([c for _, c in shown])} Dashed: reference rows."
    )
    if any(marks):
        caption += f" {BUDGET_MARK}: another pretraining budget than the others."
    return draw(spec, title, caption, (max(1.15 * len(shown) + 1.6, 4.5), 3.6), paint)


def _label_references(axes: Axes, references: Sequence[tuple[Group, Cell]]) -> None:
    """Name the lines of reference rows beside the axes; names of lines that are close are moved apart."""
    gap = _LABEL_SHARE * axes.get_ylim()[1]
    lowest = -gap
    for group, cell in sorted(references, key=lambda reference: reference[1].value or 0.0):
        height = lowest = max(cell.value or 0.0, lowest + gap)
        axes.annotate(
            f"{group.label} {cell.value:.1f}",
            (1.0, height),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=names.colour(group.method),
        )


def _paint_bar(axes: Axes, index: int, group: Group, cell: Cell) -> None:
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
        f"{cell.value:.1f}",
        (index, cell.value + error),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=9,
        zorder=5,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.8},
    )
