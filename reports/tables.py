"""Tables: which rows and columns, what each cell says, which footnotes explain it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twinbench.reports import cells, names, quoted
from twinbench.reports.cells import MISSING, Cell
from twinbench.reports.groups import Budget, Group, check_metric, group_records, image_sets
from twinbench.reports.records import Record, RunInfo, unique
from twinbench.reports.study import (
    AblationQuoted,
    AblationSpec,
    ColumnSpec,
    StudySpec,
    TableSpec,
    parse_study,
)

BUDGET_MARK = "†"
ONE_SEED_MARK = "§"


@dataclass(frozen=True)
class Column:
    """A column of numbers. ``subtitle`` is the protocol with its version, or what a quotation was measured
    on.
    """

    label: str
    subtitle: str
    protocol: str
    metric: str
    image_set: str
    quoted: bool = False
    digits: int = 1

    @property
    def heading(self) -> str:
        """The label, which for a quotation says so and names its setting."""
        return f"{self.label} ({self.subtitle})" if self.quoted else self.label


@dataclass(frozen=True)
class Entry:
    """A cell in its place: its text without marks, the footnote marks, and whether it is the best."""

    cell: Cell
    text: str
    marks: tuple[str, ...] = ()
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A row: its leading labels (method, and the ablation's value), marks on the first label, and entries."""

    labels: tuple[str, ...]
    method: str
    variant: str
    origin: str
    is_reference: bool
    budget: str
    marks: tuple[str, ...]
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Table:
    """A finished table. ``footnotes`` are (mark, text); ``notes`` apply to the whole table."""

    name: str
    title: str
    stub: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    footnotes: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    @property
    def reference_rows(self) -> tuple[Row, ...]:
        """The rows set apart from the methods that compete."""
        return tuple(row for row in self.rows if row.is_reference)

    @property
    def method_rows(self) -> tuple[Row, ...]:
        """The rows of the methods."""
        return tuple(row for row in self.rows if not row.is_reference)


@dataclass
class _Footnotes:
    """Letters for footnotes, each text once."""

    letters: dict[str, str] = field(default_factory=dict)

    def mark(self, text: str) -> str:
        if text not in self.letters:
            index = len(self.letters)
            self.letters[text] = "abcdefghijklmnopqrstuvwxyz"[index % 26] * (index // 26 + 1)
        return self.letters[text]


@dataclass(frozen=True)
class _Line:
    """A row before its footnotes: a group, its labels, and its cells column by column."""

    group: Group
    labels: tuple[str, ...]
    cells: tuple[Cell, ...]


def build_tables(
    study: Mapping[str, Any], records: Sequence[Record], runs: Sequence[RunInfo] = ()
) -> list[Table]:
    """Every table of the study, the ablation table last. Raises InputError for a study that does not fit."""
    return tables_of(parse_study(study), records, runs)


def tables_of(spec: StudySpec, records: Sequence[Record], runs: Sequence[RunInfo] = ()) -> list[Table]:
    """Like build_tables, for a study that is already parsed."""
    groups = group_records(records, runs)
    tables = [_main_table(table, spec, records, groups) for table in spec.tables]
    if spec.ablation is not None:
        tables.append(_ablation_table(spec, spec.ablation, records, groups))
    return tables


def _main_table(
    table: TableSpec, spec: StudySpec, records: Sequence[Record], groups: Sequence[Group]
) -> Table:
    where = f"tables, {table.name}"
    columns = _measured_columns(table.columns, records, where)
    shown = main_groups(groups)
    has_variants = any(group.variant for group in shown)
    stub = ("Method", *(_variant_heading(spec) if has_variants else ()))
    lines = [
        _Line(
            group,
            (group.label, *((group.variant or "-",) if has_variants else ())),
            tuple(group.cell(c.protocol, c.metric, c.image_set) for c in columns),
        )
        for group in shown
    ]
    quotes: list[tuple[Column, dict[str, Cell]]] = []
    notes: list[str] = []
    if table.quoted is not None:
        quotes, notes = _quoted_columns(table, [line.group.method for line in lines])
        lines = [
            _Line(
                line.group,
                line.labels,
                (*line.cells, *(cells_of[line.group.method] for _, cells_of in quotes)),
            )
            for line in lines
        ]
    return _finish(
        table.name,
        table.title or table.name,
        stub,
        (*columns, *(column for column, _ in quotes)),
        lines,
        notes,
        varied_fields(spec) if has_variants else (),
    )


def main_groups(groups: Sequence[Group]) -> list[Group]:
    """The groups of the main comparison: without ablation variants, unless the study has nothing else."""
    plain = [group for group in groups if not group.variant]
    if any(not group.is_reference for group in plain) or not any(group.variant for group in groups):
        return plain
    return list(groups)


def _variant_heading(spec: StudySpec) -> tuple[str]:
    return (spec.ablation.heading if spec.ablation else "Variant",)


def varied_fields(spec: StudySpec) -> tuple[str, ...]:
    """The budget's fields that the ablation varies on purpose: differing in them earns no mark."""
    if spec.ablation is None:
        return ()
    parts = spec.ablation.key.split(".")
    return tuple(name for name in ("backbone", "epochs", "batch_size") if name in parts)


def _measured_columns(
    specs: Sequence[ColumnSpec], records: Sequence[Record], where: str
) -> tuple[Column, ...]:
    columns = []
    for spec in specs:
        check_metric(records, spec.protocol, spec.metric, where)
        found = image_sets([r for r in records if r.protocol == spec.protocol])
        several = not spec.image_set and len(found) > 1
        for image_set in found if several else (spec.image_set or "".join(found),):
            label = f"{spec.heading} ({image_set})" if several else spec.heading
            columns.append(
                Column(label, spec.protocol, spec.protocol, spec.metric, image_set, digits=spec.digits)
            )
    return tuple(columns)


def _quoted_columns(
    table: TableSpec, methods: Sequence[str]
) -> tuple[list[tuple[Column, dict[str, Cell]]], list[str]]:
    """The quoted columns with a cell per method, and the notes that tell where the numbers come from."""
    spec = table.quoted
    assert spec is not None
    rows = quoted.select(spec.file, spec.where)
    of_methods = {quoted.published_name(method, rows, spec.rows) for method in methods}
    setting = quoted.setting(spec.file, [row for row in rows if row["method"] in of_methods])
    columns, sources = [], []
    for name, label in spec.columns.items():
        by_method = {}
        for method in methods:
            value = quoted.table_value(spec.file, name, method, spec.where, spec.rows)
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
    specs = ablation.columns or spec.main_columns() or _recorded_columns(records)
    columns = _measured_columns(specs, records, "ablation")
    references = [group for group in groups if group.is_reference and not group.variant]
    lines = [_line(group, (group.label, "-"), columns) for group in references]
    for method in ablation_methods(ablation, groups):
        for value in ablation_values(ablation, groups):
            matching = [g for g in groups if g.method == method and same_value(g.variant, value)]
            lines += [_line(group, (group.label, value), columns) for group in matching]
    notes: list[str] = []
    if ablation.quoted is not None:
        column, by_line, notes = _quoted_curve_column(ablation.quoted, lines)
        columns = (*columns, column)
        lines = [
            _Line(line.group, line.labels, (*line.cells, cell))
            for line, cell in zip(lines, by_line, strict=True)
        ]
    title = f"Ablation: {ablation.heading}"
    return _finish(
        "ablation", title, ("Method", ablation.heading), columns, lines, notes, varied_fields(spec)
    )


def _line(group: Group, labels: tuple[str, ...], columns: Sequence[Column]) -> _Line:
    return _Line(group, labels, tuple(group.cell(c.protocol, c.metric, c.image_set) for c in columns))


def _recorded_columns(records: Sequence[Record]) -> tuple[ColumnSpec, ...]:
    pairs = dict.fromkeys((r.protocol, r.metric) for r in records if r.protocol and r.metric)
    return tuple(ColumnSpec(protocol=protocol, metric=metric, digits=1) for protocol, metric in pairs)


def ablation_methods(ablation: AblationSpec, groups: Sequence[Group]) -> tuple[str, ...]:
    """The methods of the ablation: the study's own list, else every method that has a variant."""
    return ablation.methods or unique(group.method for group in groups if group.variant)


def ablation_values(ablation: AblationSpec, groups: Sequence[Group]) -> tuple[str, ...]:
    """The varied values in the study's order, else as recorded (sorted where they are numbers)."""
    if ablation.values:
        return ablation.values
    found = unique(group.variant for group in groups)
    return tuple(sorted(found, key=float)) if all(as_number(value) is not None for value in found) else found


def as_number(value: str) -> float | None:
    """The number that a varied value spells, or None."""
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def same_value(one: str, other: str) -> bool:
    """Whether two spellings mean the same value: 0.0051 and 5.1e-3 do, true and True do."""
    a, b = as_number(one), as_number(other)
    if a is not None and b is not None:
        return math.isclose(a, b, rel_tol=1e-9)
    return one.lower() == other.lower()


def _quoted_curve_column(
    source: AblationQuoted, lines: Sequence[_Line]
) -> tuple[Column, list[Cell], list[str]]:
    """The published ablation beside ours: the column, a cell for each line, and the sources."""
    found: list[tuple[quoted.QuotedCurve, quoted.QuotedPoint] | None] = []
    for line in lines:
        method = line.group.method
        curve = quoted.curve(source.file, source.x, source.y, method, source.where, source.rows)
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


def quoted_point(source: AblationQuoted, curve: quoted.QuotedCurve, value: str) -> quoted.QuotedPoint | None:
    """The published point at one of our values, or None where the paper has none."""
    published = next((theirs for ours, theirs in source.values.items() if same_value(ours, value)), value)
    return next((point for point in curve.points if same_value(point.x, published)), None)


def _finish(
    name: str,
    title: str,
    stub: tuple[str, ...],
    columns: tuple[Column, ...],
    lines: Sequence[_Line],
    notes: Sequence[str],
    varied: Sequence[str],
) -> Table:
    image_sets_shown = unique(column.image_set for column in columns if not column.quoted)
    usual = usual_budgets([line.group for line in lines], image_sets_shown, varied)
    different = [differs(line.group, usual, varied) for line in lines]
    best = _best_rows(lines, columns, different)
    kinds = {cell.kind for line in lines for cell in line.cells if cell.status == "done"}
    footnotes = _Footnotes()
    rows = []
    for index, line in enumerate(lines):
        entries = tuple(
            _entry(cell, column, best[position] == index, kinds, footnotes)
            for position, (cell, column) in enumerate(zip(line.cells, columns, strict=True))
        )
        group = line.group
        rows.append(
            Row(
                labels=line.labels,
                method=group.method,
                variant=group.variant,
                origin=group.origin,
                is_reference=group.is_reference,
                budget="; ".join(unique(str(budget) for budget in group.budgets().values())),
                marks=(BUDGET_MARK,) if different[index] else (),
                entries=entries,
            )
        )
    budget_notes = _budget_notes(rows, usual)
    marked = [(BUDGET_MARK, text) for text in _budget_footnote(rows)]
    if len(kinds) > 1 and any(ONE_SEED_MARK in e.marks for row in rows for e in row.entries):
        marked.append((ONE_SEED_MARK, _one_seed_text(lines)))
    return Table(
        name=name,
        title=title,
        stub=stub,
        columns=columns,
        rows=tuple(rows),
        footnotes=(*marked, *((mark, text) for text, mark in footnotes.letters.items())),
        notes=(
            *_uncertainty_notes(lines, kinds),
            *budget_notes,
            *_source_notes(lines),
            *_protocol_notes(columns),
            *notes,
        ),
    )


def usual_budgets(
    groups: Sequence[Group], image_sets: Sequence[str], varied: Sequence[str] = ()
) -> dict[str, Budget]:
    """For each image set the budget that most groups have (the first of equals); methods go before references."""
    usual = {}
    for image_set in image_sets:
        for pool in (
            [group for group in groups if not group.is_reference],
            [group for group in groups if group.method != "random_init"],
        ):
            found = [group.budgets().get(image_set) for group in pool]
            counts = Counter(budget.without(varied) for budget in found if budget is not None)
            if counts:
                usual[image_set] = counts.most_common(1)[0][0]
                break
    return usual


def differs(group: Group, usual: Mapping[str, Budget], varied: Sequence[str] = ()) -> bool:
    """Whether the group was pretrained with another budget than the usual one, and so is no fair competitor."""
    if group.method == "random_init":  # never trained, so it has no budget to compare
        return False
    own = group.budgets()
    return any(
        image_set in own and own[image_set].without(varied) != budget for image_set, budget in usual.items()
    )


def _best_rows(
    lines: Sequence[_Line], columns: Sequence[Column], different: Sequence[bool]
) -> list[int | None]:
    """For each measured column the row of the best value among methods with equal budgets, if two or more
    compete.
    """
    best: list[int | None] = []
    for position, column in enumerate(columns):
        competing = {
            index: value
            for index, line in enumerate(lines)
            if not (line.group.is_reference or different[index] or column.quoted)
            and line.group.origin != "quoted"
            and (value := line.cells[position].value) is not None
        }
        best.append(max(competing, key=lambda index: competing[index]) if len(competing) >= 2 else None)
    return best


def _entry(cell: Cell, column: Column, best: bool, kinds: set[cells.Kind], footnotes: _Footnotes) -> Entry:
    marks = []
    if cell.status == "done" and cell.kind == "items" and "seeds" in kinds:
        marks.append(ONE_SEED_MARK)
    if cell.failures:
        marks.append(footnotes.mark(cells.describe_failures(cell)))
    if cell.note and cell.value is not None:
        marks.append(footnotes.mark(cell.note))
    return Entry(cell, cells.text(cell, column.digits), tuple(marks), best)


def _counts(lines: Sequence[_Line], kind: cells.Kind, attribute: str) -> str:
    """``3`` or ``2-3``: the range of n over the cells of one kind."""
    found = sorted(
        {
            getattr(cell, attribute)
            for line in lines
            for cell in line.cells
            if cell.status == "done" and cell.kind == kind and getattr(cell, attribute) is not None
        }
    )
    return "" if not found else f"{found[0]}" if len(found) == 1 else f"{found[0]}-{found[-1]}"


def _one_seed_text(lines: Sequence[_Line]) -> str:
    return f"± = standard error over {_counts(lines, 'items', 'n_items') or 'the'} test items (one seed)"


def _uncertainty_notes(lines: Sequence[_Line], kinds: set[cells.Kind]) -> list[str]:
    notes = []
    if "seeds" in kinds:
        notes.append(f"± = std over {_counts(lines, 'seeds', 'n_seeds')} seeds; the value is their mean.")
    elif "items" in kinds:
        notes.append(f"{_one_seed_text(lines)}.")
    if "" in kinds:
        notes.append("Numbers without ± are one seed without a recorded standard error.")
    return notes


def _budget_notes(rows: Sequence[Row], usual: Mapping[str, Budget]) -> list[str]:
    known = {image_set: budget for image_set, budget in usual.items() if budget.known}
    if not known:
        return []
    marked = "all rows without † and " if any(row.marks for row in rows) else ""
    if len(set(known.values())) == 1:
        text = str(next(iter(known.values())))
    else:
        text = "; ".join(f"{image_set}: {budget}" for image_set, budget in known.items())
    # Of imported encoders the network is known and not the training.
    trained = any(budget.epochs or budget.batch_size for budget in known.values())
    return [f"{'Pretraining' if trained else 'Network'} ({marked}apart from random init): {text}."]


def _budget_footnote(rows: Sequence[Row]) -> list[str]:
    marked = [f"{', '.join(row.labels)}: {row.budget}" for row in rows if row.marks]
    if not marked:
        return []
    return [f"different network or pretraining, so not compared with the others: {'; '.join(marked)}"]


def _source_notes(lines: Sequence[_Line]) -> list[str]:
    shown = unique(f"{line.group.label} from {source}" for line in lines for source in line.group.sources())
    return [f"Imported: {'; '.join(shown)}."] if shown else []


def _protocol_notes(columns: Sequence[Column]) -> list[str]:
    shown = [
        f"{c.label} = {c.metric} of {c.protocol} on {c.image_set or 'the image set'}"
        for c in columns
        if not c.quoted
    ]
    return [f"Protocols: {'; '.join(shown)}."] if shown else []
