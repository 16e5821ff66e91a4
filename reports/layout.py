"""A finished table: rows and entries with their marks, the best of each column, and the notes below."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from twinbench.reports import cells
from twinbench.reports.cells import OF_ONE_SEED, OF_SEVERAL_SEEDS, Cell, Kind
from twinbench.reports.contests import MCNEMAR, STUDENT, Contest, contest
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

    ``best`` says that it is the best of its column, or cannot be told from that. ``competes`` says whether it takes
    part in whatever puts numbers in an order: contests, ranks and correlations of orders.
    """

    cell: Cell
    text: str
    marks: tuple[str, ...] = ()
    best: bool = False
    digits: int = 1
    competes: bool = False


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
) -> Table:
    """The table of these lines: the best of each column, the marks, and the notes that explain them.

    ``command`` is what would fill cells that were not run.
    """
    image_sets_shown = unique(column.image_set for column in columns if not column.quoted)
    usual = usual_budgets([line.group for line in lines], image_sets_shown, varied)
    trials = usual_trials([line.group for line in lines])
    different = [differs(line.group, usual, varied) for line in lines]
    competing = [
        [
            _competes(line.group, different[index], column, cell)
            for column, cell in zip(columns, line.cells, strict=True)
        ]
        for index, line in enumerate(lines)
    ]
    contests = _contests(lines, columns, competing)
    footnotes = _Footnotes()
    rows = []
    for index, line in enumerate(lines):
        entries = tuple(
            Entry(
                cell,
                cells.text(cell, metric_of(column.metric).digits),
                _entry_marks(cell, column, lines, footnotes),
                best=found is not None and index in found.best,
                digits=metric_of(column.metric).digits,
                competes=competes,
            )
            for cell, column, found, competes in zip(
                line.cells, columns, contests, competing[index], strict=True
            )
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
    if any(ONE_SEED_MARK in e.marks for row in rows for e in row.entries):
        marked.append((ONE_SEED_MARK, _spread(_kinds(lines, OF_ONE_SEED)[:1], lines)))
    return Table(
        name=name,
        title=title,
        stub=stub,
        columns=columns,
        rows=tuple(rows),
        footnotes=(*marked, *((mark, text) for text, mark in footnotes.letters.items())),
        notes=(
            *_not_run_notes(lines, columns, command),
            *_uncertainty_notes(lines),
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


def _competes(group: Group, different: bool, column: Column, cell: Cell) -> bool:
    """Whether a number may be put in an order with others: a method's own, at the usual budget, of every seed."""
    apart = group.is_reference or different or column.quoted or group.origin == "quoted"
    return not apart and cell.value is not None and not cell.failures


def left_out(rows: Iterable[Row]) -> str:
    """A sentence about methods that an order leaves out, after a space; empty if there are none."""
    named = ", ".join(name_of(row) for row in rows)
    return f" Left out, for a missing number or seed or for another budget: {named}." if named else ""


def _contests(
    lines: Sequence[Line], columns: Sequence[Column], competing: Sequence[Sequence[bool]]
) -> tuple[Contest | None, ...]:
    """The competition in each column."""
    return tuple(
        contest(
            {row: line.cells[place] for row, line in enumerate(lines) if competing[row][place]}, column.better
        )
        for place, column in enumerate(columns)
    )


def _best_notes(contests: Sequence[Contest | None]) -> list[str]:
    """What the marks of the best mean and how they were found; why there are none where there are none."""
    known = [found for found in contests if found is not None]
    tests = " or ".join(test for test in (STUDENT, MCNEMAR) if any(test in found.tests for found in known))
    how = (
        f"differences paired by test item where these are recorded, {tests}, Holm's correction for all pairs of the "
        "column; intervals are of single comparisons"
    )
    notes = []
    if any(found.best for found in known):
        notes.append(
            f"Marked as best: the best number and every one that cannot be told from it at 5 % ({how})."
        )
    elif tests:
        notes.append(f"Differences: {how.removeprefix('differences ')}.")
    reasons = unique(found.unmarked for found in known)
    return [*notes, *(f"Nothing is marked as best where {reason}." for reason in reasons)]


def _row_marks(group: Group, different: bool, trials: int | None) -> tuple[str, ...]:
    marks = [BUDGET_MARK] if different else []
    marks += [TUNING_MARK] if group.tuning_trials not in (None, trials) else []
    return tuple(marks)


def _entry_marks(cell: Cell, column: Column, lines: Sequence[Line], footnotes: _Footnotes) -> tuple[str, ...]:
    marks = _marks_of_spread(cell, lines, footnotes)
    if cell.failures and (cell.status != "not run" or any(failure.reason for failure in cell.failures)):
        marks.append(footnotes.mark(cells.describe_failures(cell)))
    if cell.note and (cell.value is not None or cell.status == "missing"):
        marks.append(footnotes.mark(cell.note))
    if cell.rest is not None:
        marks.append(footnotes.mark(cells.describe_rest(cell, metric_of(column.metric).digits)))
    return tuple(marks)


def _kinds(lines: Sequence[Line], wanted: Sequence[Kind]) -> list[Kind]:
    """Those of the wanted kinds of ± that the numbers have, in this order."""
    there = {cell.kind for line in lines for cell in line.cells if cell.status == "done"}
    return [kind for kind in wanted if kind in there]


def _marks_of_spread(cell: Cell, lines: Sequence[Line], footnotes: _Footnotes) -> list[str]:
    """The mark of a number of one seed whose ± is another than the one that the note is about."""
    alone = _kinds(lines, OF_ONE_SEED)
    if cell.status != "done" or cell.kind not in alone:
        return []
    if cell.kind != alone[0]:
        return [footnotes.mark(_spread([cell.kind], lines))]
    return [ONE_SEED_MARK] if _kinds(lines, OF_SEVERAL_SEEDS) else []


def _counts(lines: Sequence[Line], kinds: Collection[Kind], attribute: str) -> str:
    """``3`` or ``2-3``: the range of n over the cells of some kinds; empty where it is not known."""
    found = sorted(
        {
            getattr(cell, attribute)
            for line in lines
            for cell in line.cells
            if cell.status == "done" and cell.kind in kinds and getattr(cell, attribute) is not None
        }
    )
    return "" if not found else f"{found[0]}" if len(found) == 1 else f"{found[0]}-{found[-1]}"


def _spread(kinds: Sequence[Kind], lines: Sequence[Line]) -> str:
    """What the ± of some kinds, all of one seed or all of several, is over: ``± = std over 3 seeds``."""
    seeds = f"{_counts(lines, kinds, 'n_seeds')} seeds"
    items = f"{_counts(lines, kinds, 'n_items') or 'the'} test items"
    words = [cells.spread_words(kind, seeds, items) for kind in kinds]
    more = " (one seed)" if kinds[0] in OF_ONE_SEED else ""
    return f"± = {' or, where test items are not recorded, '.join(words)}{more}"


def _uncertainty_notes(lines: Sequence[Line]) -> list[str]:
    """What the ± is, how many test items that leaves unsaid, and why some numbers have none."""
    several, alone = _kinds(lines, OF_SEVERAL_SEEDS), _kinds(lines, OF_ONE_SEED)
    notes = []
    if several:
        notes.append(f"{_spread(several, lines)}; the value is their mean.")
        unsaid = [kind for kind in several if kind != "interval over seeds and test items"]
        items = _counts(lines, unsaid, "n_items")
        notes += [f"Measured on {items} test items."] if items else []
    elif alone:
        notes.append(f"{_spread(alone[:1], lines)}.")
    equal = any(cell.uncertainty == 0 for line in lines for cell in line.cells)
    bare = ["of seeds, or of test items, that are all equal"] if equal else []
    bare += ["of one seed without a recorded standard error"] if _kinds(lines, [""]) else []
    notes += [f"Numbers without ± are {' or '.join(bare)}."] if bare else []
    return notes


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
    # a report of a run store measures nothing: the footnotes of its cells have the commands
    fills = command and not command.startswith("twinbench report ")
    fill = f" They are filled by: {command}" if fills else ""
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
