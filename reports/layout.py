"""A finished table: rows and entries with their marks, the best of each column, and the notes below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from twinbench.reports import cells
from twinbench.reports.cells import Cell
from twinbench.reports.contests import Contest, contest
from twinbench.reports.environments import environment_notes
from twinbench.reports.groups import Budget, Group, differs, usual_budgets, usual_trials
from twinbench.reports.metrics import metric_of
from twinbench.reports.records import unique

BUDGET_MARK = "†"
TUNING_MARK = "‡"
ONE_SEED_MARK = "§"


@dataclass(frozen=True)
class Column:
    """A column of numbers. ``subtitle`` is the protocol with its version, or what a quotation was measured on.
    ``label`` has the unit in it, unless that is percent.

    ``unmeasured`` says that the protocol has no number of this metric on this image set.
    """

    label: str
    subtitle: str
    protocol: str
    metric: str
    image_set: str
    quoted: bool = False
    unmeasured: bool = False

    @property
    def better(self) -> str:
        """Which way its numbers are better: higher, lower or none."""
        return metric_of(self.metric).better

    @property
    def heading(self) -> str:
        """The label, which for a quotation says so and names its setting."""
        return f"{self.label} ({self.subtitle})" if self.quoted else self.label


@dataclass(frozen=True)
class Entry:
    """A cell in its place: its text without marks, the footnote marks, and its decimals.

    ``best`` says that it is the best of its column, or cannot be told from that.
    """

    cell: Cell
    text: str
    marks: tuple[str, ...] = ()
    best: bool = False
    digits: int = 1


@dataclass(frozen=True)
class Row:
    """A row: its leading labels (method, and the ablation's value), marks on the first label, and entries.

    ``scales`` are what its encoders were trained at.
    """

    labels: tuple[str, ...]
    method: str
    variant: str
    origin: str
    is_reference: bool
    budget: str
    scales: tuple[str, ...]
    tuning_trials: int | None
    marks: tuple[str, ...]
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Table:
    """A finished table. ``footnotes`` are (mark, text); ``notes`` apply to the whole table.

    ``contests`` say for each column who beats whom, None where nothing competes; ``conclusions`` say it in words.
    """

    name: str
    title: str
    stub: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    footnotes: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    contests: tuple[Contest | None, ...]
    conclusions: tuple[str, ...] = ()

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
class Line:
    """A row before its footnotes: a group, its labels, and its cells column by column."""

    group: Group
    labels: tuple[str, ...]
    cells: tuple[Cell, ...]


def finish_table(
    name: str,
    title: str,
    stub: tuple[str, ...],
    columns: tuple[Column, ...],
    lines: Sequence[Line],
    notes: Sequence[str],
    varied: Sequence[str],
    command: str = "",
    intervals: bool = False,
) -> Table:
    """The table of these lines: the best of each column, the marks, and the notes that explain them.

    ``command`` is what would fill cells that were not run; ``intervals`` says that their uncertainties are those.
    """
    image_sets_shown = unique(column.image_set for column in columns if not column.quoted)
    usual = usual_budgets([line.group for line in lines], image_sets_shown, varied)
    trials = usual_trials([line.group for line in lines])
    different = [differs(line.group, usual, varied) for line in lines]
    contests = _contests(lines, columns, different)
    kinds = {cell.kind for line in lines for cell in line.cells if cell.status == "done"}
    footnotes = _Footnotes()
    rows = []
    for index, line in enumerate(lines):
        entries = tuple(
            _entry(cell, column, found is not None and index in found.tied, kinds, footnotes)
            for cell, column, found in zip(line.cells, columns, contests, strict=True)
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
                scales=group.scales(),
                tuning_trials=group.tuning_trials,
                marks=_row_marks(group, different[index], trials),
                entries=entries,
            )
        )
    marked = [(BUDGET_MARK, text) for text in _budget_footnote(rows)]
    marked += [(TUNING_MARK, text) for text in _tuning_footnote(rows)]
    if len(kinds) > 1 and any(ONE_SEED_MARK in e.marks for row in rows for e in row.entries):
        marked.append((ONE_SEED_MARK, _one_seed_text(lines, intervals)))
    return Table(
        name=name,
        title=title,
        stub=stub,
        columns=columns,
        rows=tuple(rows),
        footnotes=(*marked, *((mark, text) for text, mark in footnotes.letters.items())),
        notes=(
            *_not_run_notes(lines, columns, command),
            *_uncertainty_notes(lines, kinds, intervals),
            *_best_notes(contests),
            *_budget_notes(rows, usual),
            *_tuning_notes(rows, trials),
            *_source_notes(lines),
            *_protocol_notes(columns),
            *_remark_notes(lines, columns),
            *environment_notes(record for line in lines for cell in line.cells for record in cell.records),
            *notes,
        ),
        contests=contests,
    )


def _contests(
    lines: Sequence[Line], columns: Sequence[Column], different: Sequence[bool]
) -> tuple[Contest | None, ...]:
    """For each column the competition among methods with equal budgets whose every seed has a number."""
    found = []
    for position, column in enumerate(columns):
        competing = {
            index: line.cells[position]
            for index, line in enumerate(lines)
            if not (line.group.is_reference or different[index] or column.quoted)
            and line.group.origin != "quoted"
            and line.cells[position].value is not None
            and not line.cells[position].failures
        }
        found.append(contest(competing, column.better))
    return tuple(found)


def _best_notes(contests: Sequence[Contest | None]) -> list[str]:
    """What the marks of the best mean, where there are any."""
    known = [found for found in contests if found is not None]
    if not known:
        return []
    marked = (
        [
            "Marked as best: the best number and every one that cannot be told from it at 5 % (differences paired by "
            "test item where these are recorded, Student's t, Holm's correction for all pairs of the column)."
        ]
        if any(found.tied for found in known)
        else []
    )
    untested = any(not found.tied for found in known)
    return marked + (
        [
            "Where nothing is marked, no difference can be tested: one seed, or seeds that are all equal, without a "
            "record of test items."
        ]
        if untested
        else []
    )


def _row_marks(group: Group, different: bool, trials: int | None) -> tuple[str, ...]:
    marks = [BUDGET_MARK] if different else []
    marks += [TUNING_MARK] if group.tuning_trials not in (None, trials) else []
    return tuple(marks)


def _entry(cell: Cell, column: Column, best: bool, kinds: set[cells.Kind], footnotes: _Footnotes) -> Entry:
    marks = []
    if cell.status == "done" and cell.kind == "items" and "seeds" in kinds:
        marks.append(ONE_SEED_MARK)
    if cell.failures and (cell.status != "not run" or any(failure.reason for failure in cell.failures)):
        marks.append(footnotes.mark(cells.describe_failures(cell)))
    if cell.note and (cell.value is not None or cell.status == "missing"):
        marks.append(footnotes.mark(cell.note))
    digits = metric_of(column.metric).digits
    if cell.rest is not None:
        marks.append(footnotes.mark(cells.describe_rest(cell, digits)))
    return Entry(cell, cells.text(cell, digits), tuple(marks), best, digits)


def _counts(lines: Sequence[Line], kind: cells.Kind, attribute: str) -> str:
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


def _one_seed_text(lines: Sequence[Line], intervals: bool) -> str:
    what = "half the 95 % interval" if intervals else "standard error"
    return f"± = {what} over {_counts(lines, 'items', 'n_items') or 'the'} test items (one seed)"


def _uncertainty_notes(lines: Sequence[Line], kinds: set[cells.Kind], intervals: bool) -> list[str]:
    notes = []
    if "seeds" in kinds:
        n = _counts(lines, "seeds", "n_seeds")
        over = f"{n} seeds{_items(lines)}" if intervals else f"{n} seeds"
        notes.append(
            f"± = {'half the 95 % interval' if intervals else 'std'} over {over}; the value is their mean."
        )
    elif "items" in kinds:
        notes.append(f"{_one_seed_text(lines, intervals)}.")
    equal = any(cell.uncertainty == 0 for line in lines for cell in line.cells)
    bare = ["of seeds, or of test items, that are all equal"] if equal else []
    bare += ["of one seed without a recorded standard error"] if "" in kinds else []
    notes += [f"Numbers without ± are {' or '.join(bare)}."] if bare else []
    return notes


def _items(lines: Sequence[Line]) -> str:
    """``and the test items``, where intervals are over these as well."""
    bases = {cell.basis for line in lines for cell in line.cells if cell.status == "done"}
    both, seeds = "seeds and test items" in bases, "seeds" in bases
    return (
        " and, where they are recorded, test items" if both and seeds else " and test items" if both else ""
    )


def _not_run_notes(lines: Sequence[Line], columns: Sequence[Column], command: str) -> list[str]:
    """What is not there yet, by row, and the command that fills it."""
    missing: dict[str, list[str]] = {}
    for line in lines:
        for cell, column in zip(line.cells, columns, strict=True):
            if any(failure.status == "not run" for failure in cell.failures):
                row = " ".join([line.labels[0], *(label for label in line.labels[1:] if label != "-")])
                missing.setdefault(row, []).append(column.label)
    if not missing:
        return []
    number = sum(map(len, missing.values()))
    across = sum(not column.quoted for column in columns)
    measured = across * len(lines)
    fill = f" They are filled by: {command}" if command else ""
    rows = "; ".join(
        f"{row}: {'all' if len(labels) == across else ', '.join(labels)}" for row, labels in missing.items()
    )
    return [f"Not run yet, wholly or for some seeds: {number} of {measured} numbers ({rows}).{fill}"]


def _budget_notes(rows: Sequence[Row], usual: Mapping[str, Budget]) -> list[str]:
    known = {image_set: budget for image_set, budget in usual.items() if budget.known}
    if not known:
        return []
    marked = "all rows without † and " if any(BUDGET_MARK in row.marks for row in rows) else ""
    if len(set(known.values())) == 1:
        text = str(next(iter(known.values())))
    else:
        text = "; ".join(f"{image_set}: {budget}" for image_set, budget in known.items())
    # Of imported encoders the network is known and not the training.
    trained = any(budget.epochs or budget.batch_size for budget in known.values())
    return [f"{'Pretraining' if trained else 'Network'} ({marked}apart from random init): {text}."]


def _budget_footnote(rows: Sequence[Row]) -> list[str]:
    marked = [f"{', '.join(row.labels)}: {row.budget}" for row in rows if BUDGET_MARK in row.marks]
    if not marked:
        return []
    return [f"different network or pretraining, so not compared with the others: {'; '.join(marked)}"]


def _tuning_notes(rows: Sequence[Row], trials: int | None) -> list[str]:
    if trials is None:
        return []
    if trials == 0:
        return ["Tuning: no logged trials chose these settings."]
    scope = ["all rows without ‡"] if any(TUNING_MARK in row.marks for row in rows) else []
    scope += ["apart from imported encoders"] if any(row.origin == "imported" for row in rows) else []
    about = f" ({' and '.join(scope)})" if scope else ""
    return [f"Tuning{about}: {trials} trial{'s' if trials > 1 else ''} a method on val."]


def _tuning_footnote(rows: Sequence[Row]) -> list[str]:
    marked = [f"{name_of(row)} {row.tuning_trials or 'none'}" for row in rows if TUNING_MARK in row.marks]
    return [f"tuned with another number of trials: {', '.join(marked)}"] if marked else []


def name_of(row: Row) -> str:
    """The method with what its row varies in parentheses."""
    method, *varied = row.labels
    return method + "".join(f" ({value})" for value in varied if value != "-")


def _source_notes(lines: Sequence[Line]) -> list[str]:
    shown = unique(f"{line.group.label} from {source}" for line in lines for source in line.group.sources())
    return [f"Imported: {'; '.join(shown)}."] if shown else []


def _remark_notes(lines: Sequence[Line], columns: Sequence[Column]) -> list[str]:
    """Every remark on the numbers, after the columns that it is about or, where it is not about all rows, the rows."""
    places: dict[str, list[tuple[int, int]]] = {}
    done = set()
    for row, line in enumerate(lines):
        for position, cell in enumerate(line.cells):
            if cell.status == "done":
                done.add((row, position))
            for remark in cell.remarks:
                places.setdefault(remark, []).append((row, position))
    notes = []
    for remark, found in places.items():
        named = {position for _, position in found}
        if set(found) == done:
            about = "All numbers"
        elif set(found) == {(row, position) for row, position in done if position in named}:
            about = ", ".join(columns[position].label for position in sorted(named))
        else:
            about = ", ".join(unique(lines[row].group.label for row, _ in found))
        notes.append(f"{about}: {remark}.")
    return notes


def _protocol_notes(columns: Sequence[Column]) -> list[str]:
    shown = [
        f"{c.label} = {c.metric} of {c.protocol} on {c.image_set or 'the image set'}"
        for c in columns
        if not c.quoted
    ]
    return [f"Protocols: {'; '.join(shown)}."] if shown else []
