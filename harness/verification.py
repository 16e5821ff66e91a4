"""What `twinbench verify` does: every number of a report computed again from its records and per-item outcomes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from twinbench.data.catalogue import load_image_set
from twinbench.data.image_sets import ImageSet
from twinbench.downstream.outcomes import Outcomes, read_outcomes
from twinbench.downstream.protocol import Measurement, protocol, protocol_names
from twinbench.foundation.errors import InputError
from twinbench.harness.plugins import load_plugins
from twinbench.reports.build import table_files
from twinbench.reports.records import Record
from twinbench.reports.source import Source, read_source
from twinbench.reports.tables import build_tables
from twinbench.reports.unchanged import changed_files


@dataclass
class Verification:
    """How many numbers and files were computed again; what could not be, with the reason; what does not follow."""

    numbers: int = 0
    files: int = 0
    unchecked: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def leave(self, reason: str) -> None:
        """Count a number that is not computed again."""
        self.unchecked[reason] = self.unchecked.get(reason, 0) + 1

    def lines(self) -> Iterator[str]:
        """What was found, for people."""
        yield f"{self.numbers} numbers follow from the outcomes of their test items"
        yield f"{self.files} files of tables follow from the records"
        for reason, count in self.unchecked.items():
            yield f"not computed again: {count} number{'s' if count > 1 else ''}, {reason}"


def verify(results: Path, data_root: Path | None) -> None:
    """Check the report in a folder and print what was checked. Raises InputError naming what does not follow."""
    load_plugins()
    source = read_source(results)
    found = Verification()
    found.wrong += [f"{name}: not as the report was written" for name in changed_files(results)]
    _check_records(source, data_root, found)
    _check_tables(results, source, found)
    for line in found.lines():
        print(line)
    if found.wrong:
        raise InputError(
            f"{len(found.wrong)} things do not follow:\n  " + "\n  ".join(found.wrong),
            where=results,
            next_step="make the report again from the run store, and look at what made the difference",
        )


def _check_records(source: Source, data_root: Path | None, found: Verification) -> None:
    """Compute every number again from its outcomes, which several metrics and tables share."""
    paths = {sha256: path for run in source.runs for sha256, path in run.outcomes.items()}
    evaluations: dict[str, list[Record]] = {}
    for record in source.records:
        if record.value is not None and record.outcomes:
            evaluations.setdefault(record.outcomes, []).append(record)
        elif record.value is not None:
            found.leave("of which no test items are recorded")
    scenes: dict[str, ImageSet | None] = {}
    for sha256, records in evaluations.items():
        if sha256 not in paths:
            found.wrong += [f"{_named(record)}: the report lacks its outcomes" for record in records]
            continue
        try:
            measured = _measured_again(records[0], paths[sha256], sha256, data_root, scenes)
        except InputError as error:
            found.wrong.append(f"{_named(records[0])}: {error.what} ({error.where})")
            continue
        if isinstance(measured, str):
            for _ in records:
                found.leave(measured)
            continue
        for record in records:
            _compare(record, {m.metric: m.value for m in measured}, found)


def _compare(record: Record, again: dict[str, float], found: Verification) -> None:
    if record.metric not in again:
        found.wrong.append(f"{_named(record)}: its outcomes have no {record.metric}")
    elif again[record.metric] != record.value:
        numbers = f"{record.value!r} is recorded, its outcomes give {again[record.metric]!r}"
        found.wrong.append(f"{_named(record)}: {numbers}")
    else:
        found.numbers += 1


def _measured_again(
    record: Record, path: Path, sha256: str, data_root: Path | None, scenes: dict[str, ImageSet | None]
) -> list[Measurement] | str:
    """The measurements that the outcomes give, or why they cannot be computed here. InputError for wrong outcomes."""
    outcomes = read_outcomes(path, sha256)
    expected = {
        "encoder_checksum": record.encoder_checksum,
        "protocol": record.protocol,
        "seed": str(record.seed),
    }
    for name, value in expected.items():
        if outcomes.about.get(name) != value:
            raise InputError(f"its outcomes are of another {name.replace('_', ' ')}", where=path)
    if record.protocol not in protocol_names():
        return f"since there is no protocol {record.protocol} here"
    chosen = protocol(record.protocol)
    if outcomes.detections is None:
        return chosen.measure_again(outcomes, None)
    image_set = _scenes(record.image_set, outcomes, data_root, scenes)
    if image_set is None:
        return f"since the scenes of {record.image_set} are not here (--data-root)"
    return chosen.measure_again(outcomes, image_set)


def _scenes(
    name: str, outcomes: Outcomes, data_root: Path | None, known: dict[str, ImageSet | None]
) -> ImageSet | None:
    """The image set that detections were made in, or None where it, or just this version of it, is not here."""
    if name not in known:
        try:
            known[name] = load_image_set(name, data_root)
        except InputError:
            known[name] = None
    found = known[name]
    same = found is not None and found.fingerprint == outcomes.about.get("image_set_fingerprint")
    return found if same else None


def _check_tables(results: Path, source: Source, found: Verification) -> None:
    """Build every table again from the records and compare its files."""
    try:
        tables = build_tables(source.study, source.records, source.runs, source.command)
    except InputError as error:
        found.wrong.append(f"tables: {error.what} ({error.where})")
        return
    for table in tables:
        for name, text in table_files(table).items():
            path = results / "tables" / name
            if path.is_file() and path.read_bytes() == text.encode("utf-8"):
                found.files += 1
            else:
                found.wrong.append(f"tables/{name}: the records give another table")


def _named(record: Record) -> str:
    varied = f" {record.variant}" if record.variant else ""
    return f"{record.method}{varied}, seed {record.seed}, {record.metric} of {record.protocol} on {record.image_set}"
