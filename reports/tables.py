"""The tables of a study: their rows, their measured columns and their quoted ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from twinbench.reports import names, quoted
from twinbench.reports.agreement import agreement_notes
from twinbench.reports.cells import MISSING, Cell, with_interval, with_sample
from twinbench.reports.conclusions import conclude
from twinbench.reports.groups import Group, group_records, image_sets, is_unmeasured
from twinbench.reports.layout import Column, Line, Table, finish_table
from twinbench.reports.metrics import metric_of
from twinbench.reports.outcomes import OutcomeFiles
from twinbench.reports.records import Record, RunInfo, of_table, unique
from twinbench.reports.study import ColumnSpec, QuotedColumns, StudySpec, TableSpec
from twinbench.reports.variants import published_values, row_of, same_value, varied_fields

_NOT_VARIED = "-"


def build_tables(
    study: StudySpec, records: Sequence[Record], runs: Sequence[RunInfo] = (), command: str = ""
) -> list[Table]:
    """Every table of the study; ``command`` is what would fill cells that were not run."""
    outcomes, intervals = OutcomeFiles(runs), study.uncertainty == "interval"
    return [
        build_table(
            table, of_table(records, table.name), of_table(runs, table.name), command, outcomes, intervals
        )
        for table in study.tables
    ]


def build_table(
    table: TableSpec,
    records: Sequence[Record],
    runs: Sequence[RunInfo] = (),
    command: str = "",
    outcomes: OutcomeFiles | None = None,
    intervals: bool = False,
) -> Table:
    """A table of its own records and runs: the rows by method in the paper's order, then as they were declared."""
    columns = _measured_columns(table.columns, records)
    groups = group_records(records, runs)
    stub = _stub(table, groups)
    outcomes = outcomes or OutcomeFiles(runs)
    lines = [
        Line(group, _labels(table, group, len(stub)), _cells(group, columns, outcomes, intervals))
        for group in groups
    ]
    notes: list[str] = []
    own = [table.note] if table.note else []
    if table.quoted is not None:
        quoting = _quoted_variants if table.quoted.match else _quoted_methods
        quotes, notes = quoting(table, table.quoted, lines)
        columns = (*columns, *(column for column, _ in quotes))
        lines = [
            replace(line, cells=(*line.cells, *(cells[index] for _, cells in quotes)))
            for index, line in enumerate(lines)
        ]
    done = finish_table(
        table.name,
        table.heading,
        stub,
        columns,
        lines,
        [*own, *notes],
        varied_fields(table),
        command,
    )
    return replace(
        done,
        notes=(*done.notes, *agreement_notes(table, done)),
        conclusions=conclude(done.columns, done.rows, done.contests),
    )


def _stub(table: TableSpec, groups: Sequence[Group]) -> tuple[str, ...]:
    """The headings of the labels: the method, and what is varied or, where only records tell, that it varies."""
    if table.axes:
        return ("Method", *table.axes)
    return ("Method", "Variant") if any(group.variant for group in groups) else ("Method",)


def _labels(table: TableSpec, group: Group, count: int) -> tuple[str, ...]:
    row = row_of(table, group.method, group.variant)
    if row is None or not table.axes:
        return (group.label, group.variant or _NOT_VARIED, *[_NOT_VARIED] * count)[:count]
    values = [row.values.get(axis) for axis in table.axes]
    return (group.label, *(value.label if value else _NOT_VARIED for value in values))


def _measured_columns(specs: Sequence[ColumnSpec], records: Sequence[Record]) -> tuple[Column, ...]:
    """The columns with the image sets that they were measured on: one that names none is there for each."""
    named = {(spec.protocol, spec.image_set) for spec in specs if spec.image_set}
    columns = []
    for spec in specs:
        measured = image_sets([r for r in records if r.protocol == spec.protocol])
        others = [name for name in measured if (spec.protocol, name) not in named]
        found = [spec.image_set] if spec.image_set else others
        for image_set in found or ("",):
            metric = metric_of(spec.metric)
            unit = "" if metric.is_percentage else metric.unit
            more = [*([unit] if unit else []), *([image_set] if len(found) > 1 else [])]
            label = f"{spec.heading} ({', '.join(more)})" if more else spec.heading
            unmeasured = is_unmeasured(records, spec.protocol, spec.metric, image_set)
            columns.append(
                Column(label, spec.protocol, spec.protocol, spec.metric, image_set, unmeasured=unmeasured)
            )
    return tuple(columns)


def _cells(
    group: Group, columns: Sequence[Column], outcomes: OutcomeFiles, intervals: bool
) -> tuple[Cell, ...]:
    found = [
        _sampled(group.cell(column.protocol, column.metric, column.image_set), outcomes, intervals)
        for column in columns
    ]
    return tuple(
        replace(cell, note=f"{column.protocol} has no {column.metric} on {column.image_set}")
        if column.unmeasured and cell.status == "missing"
        else cell
        for cell, column in zip(found, columns, strict=True)
    )


def _sampled(cell: Cell, outcomes: OutcomeFiles, intervals: bool) -> Cell:
    """The cell with what is known of its test items, and with the uncertainty that the study shows."""
    if cell.rest is not None:
        return replace(cell, rest=_sampled(cell.rest, outcomes, intervals))
    if cell.status == "done":
        measured = [r for r in cell.records if r.status == "done" and r.value is not None]
        cell = with_sample(cell, outcomes.sample(measured))
    return with_interval(cell) if intervals else cell


Quotes = tuple[list[tuple[Column, list[Cell]]], list[str]]
"""Quoted columns with a cell for each line, and the notes that tell where the numbers come from."""


def _quoted_methods(table: TableSpec, spec: QuotedColumns, lines: Sequence[Line]) -> Quotes:
    """What was published of each method, whatever our rows vary."""
    rows = quoted.select(spec.file, spec.where)
    of_methods = {quoted.published_name(line.group.method, rows) for line in lines}
    setting = quoted.setting(spec.file, [row for row in rows if row["method"] in of_methods])
    columns, sources = [], []
    for name, label in spec.columns.items():
        cells = []
        for line in lines:
            value = quoted.table_value(spec.file, name, line.group.method, spec.where)
            cells.append(_quoted_cell(value, line.group.method) if value else MISSING)
            sources += [value.source] if value and value.value is not None else []
        column = Column(label, f"quoted, {setting}", "", name, setting, quoted=True)
        columns.append((column, cells))
    return columns, _source_note(setting, sources)


def _source_note(setting: str, sources: Sequence[str]) -> list[str]:
    if not sources:
        return []
    return [f"Quoted, {setting}: numbers from {'; '.join(unique(sources))}. Not measured here."]


def _quoted_cell(value: quoted.QuotedValue, method: str) -> Cell:
    renamed = value.published_name != names.pretty(method)
    note = f'the published row is "{value.published_name}"' if renamed else ""
    if method == "swav" and value.published_name == "SwAV":
        note = 'the published row is "SwAV", trained with multi-crop; ours sees two views'
    return Cell("quoted", value=value.value, origin="quoted", source=value.source, note=note)


def _quoted_variants(table: TableSpec, spec: QuotedColumns, lines: Sequence[Line]) -> Quotes:
    """What was published of each method at the values that our rows vary."""
    found: dict[str, list[tuple[quoted.QuotedCurve, quoted.QuotedPoint] | None]] = {
        name: [_published(table, spec, name, line.group) for line in lines] for name in spec.columns
    }
    pairs = [pair for points in found.values() for pair in points if pair]
    lengths = unique(curve.length for curve, _ in pairs)
    setting = ", ".join(["ImageNet ResNet-50", " / ".join(lengths)])
    columns = [
        (
            Column(label, f"quoted, {setting}", "", name, "ImageNet", quoted=True),
            [_curve_cell(*pair, len(lengths) > 1) if pair else MISSING for pair in found[name]],
        )
        for name, label in spec.columns.items()
    ]
    return columns, _source_note(setting, [point.source for _, point in pairs])


def _published(
    table: TableSpec, spec: QuotedColumns, column: str, group: Group
) -> tuple[quoted.QuotedCurve, quoted.QuotedPoint] | None:
    row = row_of(table, group.method, group.variant)
    at = published_values(row.values, spec.match) if row else None
    curve = quoted.curve(spec.file, tuple(spec.match), column, group.method, spec.where)
    if at is None or curve is None:
        return None
    point = next((p for p in curve.points if all(map(same_value, p.at, at))), None)
    return (curve, point) if point else None


def _curve_cell(curve: quoted.QuotedCurve, point: quoted.QuotedPoint, several_lengths: bool) -> Cell:
    remarks = ["published value read off a figure, approximate"] if point.digitised else []
    if curve.published_name != names.pretty(curve.method):
        remarks.append(f'the published row is "{curve.published_name}"')
    if several_lengths:
        remarks.append(f"pretraining: {curve.length}")
    return Cell("quoted", value=point.y, origin="quoted", source=point.source, note="; ".join(remarks))
