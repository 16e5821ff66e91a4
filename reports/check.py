"""Whether the parts of a study fit each other, the published numbers and the figures there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from twinbench.foundation.errors import InputError, inside, unknown_name
from twinbench.reports import quoted
from twinbench.reports.figures import FIGURE_KINDS
from twinbench.reports.study import FigureSpec, QuotedColumns, StudySpec, TableSpec


def check_study(study: StudySpec) -> None:
    """Raise InputError naming the key where no report could be made of the study. Call it before a study runs.

    That is an unknown kind of figure, two tables, figures or rows of one name, a figure of a table or column that there
    is not, a missing file or column of published numbers, and a quotation that fits several published rows.
    """
    if not study.tables:
        raise InputError("the study shows nothing", next_step="add `tables`")
    _check_unique([table.name for table in study.tables], "tables")
    _check_unique([figure.name for figure in study.figures], "figures")
    for index, table in enumerate(study.tables):
        with inside(f"tables[{index}]"):
            _check_table(table)
    for index, figure in enumerate(study.figures):
        _check_figure(figure, study, f"figures[{index}]")


def _check_unique(names: Sequence[str], where: str) -> None:
    for name, times in Counter(names).items():
        if times > 1:
            raise InputError(f"two {where} are called {name!r}", where, next_step="give each its own `name`")


def _check_table(table: TableSpec) -> None:
    rows = [f"{row.method} {row.variant}".strip() for row in table.row_keys()]
    for row, times in Counter(rows).items():
        if times > 1:
            raise InputError(
                f"two rows are called {row!r}",
                "rows",
                next_step="give the values of what is varied other labels",
            )
    if table.quoted is not None:
        with inside("quoted"):
            _check_quoted(table.quoted, table)


def _check_quoted(source: QuotedColumns, table: TableSpec) -> None:
    _check_compared(source, table)
    for axis in source.match.values():
        if axis not in table.axes:
            raise unknown_name("axis of the table", axis, list(table.axes), "match")
    if source.match:
        quoted.check_columns(source.file, [*source.match, *source.columns, *source.where])
        return
    for column in source.columns:
        for method in quoted.PUBLISHED_NAMES:
            quoted.table_value(source.file, column, method, source.where)


def _check_compared(source: QuotedColumns, table: TableSpec) -> None:
    for column, heading in source.compare.items():
        if column not in source.columns:
            raise unknown_name("quoted column", column, list(source.columns), "compare")
        _check_heading(table, heading, f"compare.{column}")


def _check_figure(figure: FigureSpec, study: StudySpec, where: str) -> None:
    if figure.kind not in FIGURE_KINDS:
        raise unknown_name("figure kind", figure.kind, FIGURE_KINDS.names(), f"{where}.kind")
    names = [table.name for table in study.tables]
    for key, name in (("table", figure.table), ("against_table", figure.against_table)):
        if name and name not in names:
            raise unknown_name("table", name, names, f"{where}.{key}")
    table = study.table_of(figure)
    if figure.column:
        _check_heading(table, figure.column, f"{where}.column")
    for heading in figure.against:
        _check_heading(study.other_table_of(figure), heading, f"{where}.against")
    if figure.kind == "scatter" and not figure.against:
        raise InputError(
            "a scatter needs something to be drawn against",
            where=where,
            next_step="add `against: [heading, ...]`, columns of its table or of `against_table`",
        )
    if figure.kind == "ablation" and not table.axes:
        raise InputError(
            f"an ablation figure needs a table that varies something, and {table.name} does not",
            where=where,
            next_step="add `rows: [{methods: [...], vary: [{key: ..., values: [...]}]}]` to the table, or name another",
        )


def _check_heading(table: TableSpec, heading: str, where: str) -> None:
    headings = [column.heading for column in table.columns]
    if heading not in headings:
        raise unknown_name(f"column of the table {table.name}", heading, headings, where)
