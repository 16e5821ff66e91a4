"""Whether the parts of a study fit each other, the published numbers and the figures there are."""

from __future__ import annotations

from collections.abc import Sequence

from twinbench.foundation.errors import InputError, inside, unknown_name
from twinbench.reports import quoted
from twinbench.reports.figures import FIGURE_KINDS
from twinbench.reports.study import AblationQuoted, FigureSpec, QuotedColumns, StudySpec


def check_study(study: StudySpec) -> None:
    """Raise InputError naming the key where no report could be made of the study. Call it before a study runs.

    That is an unknown kind of figure, two tables or figures of one name, a figure or an ablation without a number to
    show, a missing file or column of published numbers, and a quotation that fits several published rows.
    """
    names = [table.name for table in study.tables] + (["ablation"] if study.ablation else [])
    _check_unique(names, "tables")
    _check_unique([figure.name for figure in study.figures], "figures")
    for index, table in enumerate(study.tables):
        if table.quoted is not None:
            with inside(f"tables[{index}].quoted"):
                _check_quoted_columns(table.quoted)
    if study.ablation is not None and study.ablation.quoted is not None:
        with inside("ablation.quoted"):
            _check_quoted_curve(study.ablation.quoted)
    if study.ablation is not None and not study.columns():
        raise InputError(
            "the ablation does not say which numbers it shows", "ablation", next_step="give it `columns`"
        )
    for index, figure in enumerate(study.figures):
        _check_figure(figure, study, f"figures[{index}]")


def _check_unique(names: Sequence[str], where: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two {where} are called {name!r}", where, next_step="give each its own `name`")


def _check_quoted_columns(source: QuotedColumns) -> None:
    for column in source.columns:
        for method in quoted.PUBLISHED_NAMES:
            quoted.table_value(source.file, column, method, source.where)


def _check_quoted_curve(source: AblationQuoted) -> None:
    quoted.check_columns(source.file, [source.x, source.y, *source.where])


def _check_figure(figure: FigureSpec, study: StudySpec, where: str) -> None:
    if figure.kind not in FIGURE_KINDS:
        raise unknown_name("figure kind", figure.kind, FIGURE_KINDS.names(), f"{where}.kind")
    if figure.kind == "ablation" and study.ablation is None:
        raise InputError(
            "an ablation figure needs to know what was varied",
            where=where,
            next_step="add `ablation: {key: ..., values: [...]}` to the study",
        )
    if (
        figure.kind in ("bars", "ablation")
        and not study.columns()
        and not (figure.protocol and figure.metric)
    ):
        raise InputError(
            f"the figure {figure.name!r} does not say which number it shows",
            where=where,
            next_step="give it `protocol` and `metric`",
        )
