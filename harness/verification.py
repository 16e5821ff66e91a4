"""What `twinbench verify` does: every number of a report computed again from its records and per-item outcomes."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from twinbench.downstream.protocol import Measurement, protocol, protocol_names
from twinbench.foundation.errors import InputError
from twinbench.foundation.outcomes import OUTCOMES_SUFFIX, Outcomes, read_outcomes
from twinbench.harness.images import MeasuredImages
from twinbench.harness.plugins import load_plugins
from twinbench.reports.build import table_files
from twinbench.reports.check import check_study
from twinbench.reports.output import OUTCOMES, PAGE
from twinbench.reports.records import Record, RunInfo, finite
from twinbench.reports.source import Source, read_source
from twinbench.reports.tables import build_tables
from twinbench.reports.unchanged import changed_files, noted_files, reports_version

# Sums that libraries and processors add up in another order differ by this much, and numbers that tell another story
# by more.
_RELATIVE, _ABSOLUTE = 1e-9, 1e-12


@dataclass
class Verification:
    """How many numbers and files were computed again; what could not be, with the reason; what does not follow.

    ``pages`` counts the files that are no more than as they were written, ``texts`` those that another ``version`` put
    in other words.
    """

    numbers: int = 0
    files: int = 0
    pages: int = 0
    texts: int = 0
    version: str = ""
    unchecked: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def leave(self, reason: str) -> None:
        """Count a number that is not computed again."""
        self.unchecked[reason] = self.unchecked.get(reason, 0) + 1

    def lines(self) -> Iterator[str]:
        """What was found, for people."""
        yield f"{self.numbers} numbers follow from the outcomes of their test items"
        yield f"{self.files} files of tables follow from the records"
        yield f"{self.pages} files, the page and the figures, are as they were written; they are not made again"
        if self.texts:
            yield (
                f"{self.texts} texts of tables are not as {reports_version()} words them: they were written by "
                f"{self.version or 'an earlier version'}, and only their numbers in CSV are compared"
            )
        for reason, count in self.unchecked.items():
            yield f"not computed again: {count} number{'s' if count > 1 else ''}, {reason}"


def verify(results: Path, data_root: Path | None) -> None:
    """Check the report in a folder and print what was checked. Raises InputError naming what does not follow."""
    load_plugins()
    source = read_source(results)
    check_study(source.study)
    found = Verification(version=source.version)
    changed = changed_files(results)
    found.wrong += [f"{name}: not as the report was written" for name in changed]
    pages = [name for name in noted_files(results) if name == PAGE or name.startswith("figures/")]
    found.pages = len(set(pages) - set(changed))
    found.wrong += [*_missing(source), *_without_owner(source, results)]
    _check_numbers(source, data_root, found)
    _check_tables(results, source, found)
    for line in found.lines():
        print(line)
    if found.wrong:
        raise InputError(
            f"{len(found.wrong)} thing{'s do' if len(found.wrong) > 1 else ' does'} not follow:\n  "
            + "\n  ".join(found.wrong),
            where=results,
            next_step="make the report again from the run store, and look at what made the difference",
        )


def _row(one: Record | RunInfo) -> tuple[object, ...]:
    """What tells the runs of a study apart, and whose a record is."""
    return one.table, one.method, one.variant, one.seed, one.recipe_hash


def _by_row(records: Iterable[Record]) -> dict[tuple[object, ...], list[Record]]:
    rows: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        rows.setdefault(_row(record), []).append(record)
    return rows


def _missing(source: Source) -> Iterator[str]:
    """What the runs of the study have measured and the records do not tell."""
    records = _by_row(source.records)
    columns = {table.name: {column.protocol for column in table.columns} for table in source.study.tables}
    for run in source.runs:
        own = records.get(_row(run), [])
        # a run of every table was measured under what it was measured under
        for name in sorted(columns.get(run.table, set()) - {record.protocol for record in own}):
            yield f"{_named_run(run)}: there is no record of {name}"
        for sha256 in sorted(run.outcomes.keys() - {record.outcomes for record in own}):
            yield f"{_named_run(run)}: no record is of its outcomes {sha256[:12]}"


def _without_owner(source: Source, results: Path) -> Iterator[str]:
    """Records and outcomes that no run of the study has made."""
    runs = {_row(run): run for run in source.runs}
    for row, records in _by_row(source.records).items():
        if row not in runs:
            yield f"{_named_run(records[0])}: the study has no such run"
            continue
        for sha256 in sorted({record.outcomes for record in records} - {"", *runs[row].outcomes}):
            yield f"{_named_run(records[0])}: the outcomes {sha256[:12]} are not of this run"
    known = {sha256 for run in source.runs for sha256 in run.outcomes}
    for file in sorted((results / OUTCOMES).glob(f"*{OUTCOMES_SUFFIX}")):
        if file.stem not in known:
            yield f"{OUTCOMES}/{file.name}: it is of no run of the study"


def _check_numbers(source: Source, data_root: Path | None, found: Verification) -> None:
    """Compute every number again from its outcomes, which several metrics and tables share."""
    paths = {sha256: path for run in source.runs for sha256, path in run.outcomes.items()}
    images = MeasuredImages(data_root)
    evaluations: dict[str, list[Record]] = {}
    for record in source.records:
        if record.outcomes:
            evaluations.setdefault(record.outcomes, []).append(record)
        elif record.value is not None:
            found.leave("of which no test items are recorded")
    for sha256, records in evaluations.items():
        if sha256 not in paths:
            found.wrong += [f"{_named(record)}: the report lacks its outcomes" for record in records]
            continue
        try:
            _check_evaluation(records, read_outcomes(paths[sha256], sha256), images, found)
        except InputError as error:
            found.wrong.append(f"{_named(records[0])}: {error.what} ({error.where})")
        except Exception as error:  # what is wrong in one file must not hide what else is
            found.wrong.append(
                f"{_named(records[0])}: its outcomes cannot be used: {type(error).__name__}: {error}"
            )


def _check_evaluation(
    records: Sequence[Record], outcomes: Outcomes, images: MeasuredImages, found: Verification
) -> None:
    """Hold the records that name some outcomes against them, each by itself, and their numbers against those again."""
    others = [(record, _of_another(record, outcomes)) for record in records]
    found.wrong += [
        f"{_named(record)}: its outcomes are of another {what}" for record, what in others if what
    ]
    own = [record for record, what in others if not what]
    if not own:
        return
    measured = _measured_again(own[0], outcomes, images)
    if isinstance(measured, str):
        for _ in own:
            found.leave(measured)
        return
    again = {m.metric: m for m in measured}
    for record in own:
        _compare(record, again.get(record.metric), found)
    for same in _by_row(own).values():
        lost = again.keys() - {record.metric for record in same}
        found.wrong += [f"{_named(same[0])}: there is no record of {metric}" for metric in sorted(lost)]


def _of_another(record: Record, outcomes: Outcomes) -> str | None:
    """What outcomes are of another of than their record, if anything."""
    expected = {
        "encoder_checksum": record.encoder_checksum,
        "protocol": record.protocol,
        "seed": str(record.seed),
    }
    if record.image_set_fingerprint:  # records of earlier versions have none
        expected["image_set_fingerprint"] = record.image_set_fingerprint
    other = [name for name, value in expected.items() if outcomes.about.get(name) != value]
    return other[0].removesuffix("_fingerprint").replace("_", " ") if other else None


def _measured_again(record: Record, outcomes: Outcomes, images: MeasuredImages) -> list[Measurement] | str:
    """The measurements that the outcomes give, or why they cannot be computed here."""
    if record.protocol not in protocol_names():
        return f"since there is no protocol {record.protocol} here"
    chosen = protocol(record.protocol)
    if outcomes.detections is None:
        return chosen.measure_again(outcomes, None)
    try:
        image_set = images.of(outcomes, record.image_set)
    except InputError as error:
        return f"since the scenes of {record.image_set} are not here: {error.what} (--data-root)"
    return chosen.measure_again(outcomes, image_set)


def _compare(record: Record, again: Measurement | None, found: Verification) -> None:
    if again is None:
        found.wrong.append(f"{_named(record)}: its outcomes have no {record.metric}")
        return
    pairs: dict[str, tuple[float | None, float | None]] = {
        "value": (record.value, finite(again.value)),
        "stderr": (record.stderr, finite(again.stderr)),
        "n": (record.n, again.n),
    }
    differing = [
        f"{_named(record)}: {name} {kept!r} is recorded, its outcomes give {computed!r}"
        for name, (kept, computed) in pairs.items()
        if not _same(kept, computed)
    ]
    found.wrong += differing
    found.numbers += not differing


def _same(first: float | None, second: float | None) -> bool:
    """Whether two numbers are the same but for the order in which they were summed; unknown is the same as unknown."""
    if first is None or second is None:
        return first is second
    return math.isclose(first, second, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)


def _check_tables(results: Path, source: Source, found: Verification) -> None:
    """Build every table again from the records and compare its files, numbers in CSV as numbers."""
    try:
        tables = build_tables(source.study, source.records, source.runs, source.command)
        files = {name: text for table in tables for name, text in table_files(table).items()}
    except InputError as error:
        found.wrong.append(f"tables: {error.what} ({error.where})")
        return
    except Exception as error:  # as above
        found.wrong.append(f"tables: the records give none: {type(error).__name__}: {error}")
        return
    for name, text in files.items():
        path = results / "tables" / name
        written = path.read_bytes().decode("utf-8", errors="replace") if path.is_file() else ""
        if written == text or (name.endswith(".csv") and _same_csv(written, text)):
            found.files += 1
        elif written and not name.endswith(".csv") and source.version != reports_version():
            found.texts += 1
        else:
            found.wrong.append(f"tables/{name}: the records give another table")


def _same_csv(first: str, second: str) -> bool:
    """Whether two CSV files have the same fields, where numbers need be no more than close."""
    try:
        one, other = (list(csv.reader(io.StringIO(text))) for text in (first, second))
    except csv.Error:
        return False
    return [len(line) for line in one] == [len(line) for line in other] and all(
        a == b or _same_number(a, b)
        for line, again in zip(one, other, strict=True)
        for a, b in zip(line, again, strict=True)
    )


def _same_number(first: str, second: str) -> bool:
    try:
        return _same(float(first), float(second))
    except ValueError:
        return False


def _named_run(one: Record | RunInfo) -> str:
    return f"{one.method}{f' {one.variant}' if one.variant else ''}, seed {one.seed}" + (
        f" of table {one.table}" if one.table else ""
    )


def _named(record: Record) -> str:
    varied = f" {record.variant}" if record.variant else ""
    return f"{record.method}{varied}, seed {record.seed}, {record.metric} of {record.protocol} on {record.image_set}"
