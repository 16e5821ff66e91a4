"""Which tables a study has: their rows, their measured columns and their quoted ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from twinbench.reports import names, quoted
from twinbench.reports.ablations import (
    ablation_methods,
    quoted_point,
    same_value,
    varied_fields,
)
from twinbench.reports.cells import MISSING, Cell
from twinbench.reports.groups import Group, group_records, image_sets, is_unmeasured, main_groups
from twinbench.reports.layout import Column, Line, Table, finish_table
from twinbench.reports.records import Record, RunInfo, unique
from twinbench.reports.study import (
    AblationQuoted,
    AblationSpec,
    ColumnSpec,
    StudySpec,
    TableSpec,
)


def build_tables(study: StudySpec, records: Sequence[Record], runs: Sequence[RunInfo] = ()) -> list[Table]:
    """Every table of the study, the ablation table last."""
    groups = group_records(records, runs)
    tables = [_main_table(table, study, records, groups) for table in study.tables]
    if study.ablation is not None:
        tables.append(_ablation_table(study, study.ablation, records, groups))
    return tables


def _main_table(
    table: TableSpec, spec: StudySpec, records: Sequence[Record], groups: Sequence[Group]
) -> Table:
    columns = _measured_columns(table.columns, records)
    shown = main_groups(groups, spec.ablation is not None)
    has_variants = any(group.variant for group in shown)
    stub = ("Method", *(_variant_heading(spec) if has_variants else ()))
    lines = [
        Line(
            group,
            (group.label, *((group.variant or "-",) if has_variants else ())),
            _cells(group, columns),
        )
        for group in shown
    ]
    quotes: list[tuple[Column, dict[str, Cell]]] = []
    notes: list[str] = []
    if table.quoted is not None:
        quotes, notes = _quoted_columns(table, [line.group.method for line in lines])
        lines = [
            Line(
                line.group,
                line.labels,
                (*line.cells, *(cells_of[line.group.method] for _, cells_of in quotes)),
            )
            for line in lines
        ]
    return finish_table(
        table.name,
        table.title or table.name,
        stub,
        (*columns, *(column for column, _ in quotes)),
        lines,
        notes,
        varied_fields(spec) if has_variants else (),
    )


def _variant_heading(spec: StudySpec) -> tuple[str]:
    return (spec.ablation.heading if spec.ablation else "Variant",)


def _measured_columns(specs: Sequence[ColumnSpec], records: Sequence[Record]) -> tuple[Column, ...]:
    columns = []
    for spec in specs:
        found = image_sets([r for r in records if r.protocol == spec.protocol])
        for image_set in found or ("",):
            label = f"{spec.heading} ({image_set})" if len(found) > 1 else spec.heading
            unmeasured = is_unmeasured(records, spec.protocol, spec.metric, image_set)
            columns.append(
                Column(label, spec.protocol, spec.protocol, spec.metric, image_set, unmeasured=unmeasured)
            )
    return tuple(columns)


def _quoted_columns(
    table: TableSpec, methods: Sequence[str]
) -> tuple[list[tuple[Column, dict[str, Cell]]], list[str]]:
    """The quoted columns with a cell per method, and the notes that tell where the numbers come from."""
    spec = table.quoted
    assert spec is not None
    rows = quoted.select(spec.file, spec.where)
    of_methods = {quoted.published_name(method, rows) for method in methods}
    setting = quoted.setting(spec.file, [row for row in rows if row["method"] in of_methods])
    columns, sources = [], []
    for name, label in spec.columns.items():
        by_method = {}
        for method in methods:
            value = quoted.table_value(spec.file, name, method, spec.where)
            by_method[method] = _quoted_cell(value, method) if value else MISSING
            sources += [value.source] if value and value.value is not None else []
        column = Column(label, f"quoted, {setting}", "", name, setting, quoted=True)
        columns.append((column, by_method))
    notes = (
        [f"Quoted, {setting}: numbers from {'; '.join(unique(sources))}. Not measured here."]
        if sources
        else []
    )
    return columns, notes


def _quoted_cell(value: quoted.QuotedValue, method: str) -> Cell:
    renamed = value.published_name != names.pretty(method)
    note = f'the published row is "{value.published_name}"' if renamed else ""
    if method == "swav" and value.published_name == "SwAV":
        note = 'the published row is "SwAV", trained with multi-crop; ours sees two views'
    return Cell("quoted", value=value.value, origin="quoted", source=value.source, note=note)


def _ablation_table(
    spec: StudySpec, ablation: AblationSpec, records: Sequence[Record], groups: Sequence[Group]
) -> Table:
    columns = _measured_columns(ablation.columns or spec.main_columns(), records)
    references = [group for group in groups if group.is_reference and not group.variant]
    lines = [_line(group, (group.label, "-"), columns) for group in references]
    for method in ablation_methods(groups):
        for value in ablation.values:
            matching = [g for g in groups if g.method == method and same_value(g.variant, value)]
            lines += [_line(group, (group.label, value), columns) for group in matching]
    notes: list[str] = []
    if ablation.quoted is not None:
        column, by_line, notes = _quoted_curve_column(ablation.quoted, lines)
        columns = (*columns, column)
        lines = [
            Line(line.group, line.labels, (*line.cells, cell))
            for line, cell in zip(lines, by_line, strict=True)
        ]
    title = f"Ablation: {ablation.heading}"
    return finish_table(
        "ablation", title, ("Method", ablation.heading), columns, lines, notes, varied_fields(spec)
    )


def _line(group: Group, labels: tuple[str, ...], columns: Sequence[Column]) -> Line:
    return Line(group, labels, _cells(group, columns))


def _cells(group: Group, columns: Sequence[Column]) -> tuple[Cell, ...]:
    found = [group.cell(column.protocol, column.metric, column.image_set) for column in columns]
    return tuple(
        replace(cell, note=f"{column.protocol} has no {column.metric} on {column.image_set}")
        if column.unmeasured and cell.status == "missing"
        else cell
        for cell, column in zip(found, columns, strict=True)
    )


def _quoted_curve_column(
    source: AblationQuoted, lines: Sequence[Line]
) -> tuple[Column, list[Cell], list[str]]:
    """The published ablation beside ours: the column, a cell for each line, and the sources."""
    found: list[tuple[quoted.QuotedCurve, quoted.QuotedPoint] | None] = []
    for line in lines:
        method = line.group.method
        curve = quoted.curve(source.file, source.x, source.y, method, source.where)
        point = quoted_point(source, curve, line.labels[-1]) if curve else None
        found.append((curve, point) if curve and point else None)
    lengths = unique(pair[0].length for pair in found if pair)
    column_cells = [_curve_cell(*pair, len(lengths) > 1) if pair else MISSING for pair in found]
    setting = ", ".join(["ImageNet ResNet-50", " / ".join(lengths)])
    sources = unique(pair[1].source for pair in found if pair)
    label = f"Published {quoted.metric_name(source.y)}"
    column = Column(label, f"quoted, {setting}", "", source.y, "ImageNet", quoted=True)
    notes = [f"Quoted, {setting}: numbers from {'; '.join(sources)}. Not measured here."] if sources else []
    return column, column_cells, notes


def _curve_cell(curve: quoted.QuotedCurve, point: quoted.QuotedPoint, several_lengths: bool) -> Cell:
    remarks = ["published value read off a figure, approximate"] if point.digitised else []
    if curve.published_name != names.pretty(curve.method):
        remarks.append(f'the published row is "{curve.published_name}"')
    if several_lengths:
        remarks.append(f"pretraining: {curve.length}")
    return Cell("quoted", value=point.y, origin="quoted", source=point.source, note="; ".join(remarks))
