"""Records of evaluations on disk, each with the files of its outcomes beside it: written and replaced together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twinbench.foundation.outcomes import OUTCOMES_SUFFIX, PackedOutcomes, detections_file, is_outcomes
from twinbench.harness.store import has_its_outcomes, holds_run, outcomes_of, read_json, write_json


def outcomes_beside(record: Path) -> tuple[Path, Path]:
    """The two files that may hold the outcomes of a record: names that nothing else has. Mostly it is the first."""
    first, second = (
        record.with_name(f"{record.name}.outcomes{more}{OUTCOMES_SUFFIX}") for more in ("", ".2")
    )
    return first, second


def replace_record(path: Path, record: Mapping[str, Any], outcomes: PackedOutcomes | None = None) -> None:
    """Write a record and its outcomes, if any, in the place of the record and the outcomes that are there.

    At every moment the record there, if there is one, has its outcomes: new ones are written under a name that it does
    not use, then the new record takes its place, and then what only the old one used goes. What a crash leaves of them
    goes when the record is written again.
    """
    there = read_json(path) or {}
    beside = outcomes_beside(path)
    names = (path.with_suffix(OUTCOMES_SUFFIX), beside[0]) if _is_in_store(path) else beside
    used = _used(path, there)
    document, file = dict(record), None
    if outcomes is not None:
        file = _free(names, used, path, there, outcomes.sha256)
        outcomes.write(file)
        document["outcomes"] = {"file": file.name, "sha256": outcomes.sha256}
    write_json(path, document)
    for other in sorted({*names, *beside, *used} - {file}):
        if is_outcomes(other) or (other in used and other in names):
            # the detections first: that there are any is known by the other file
            detections_file(other).unlink(missing_ok=True)
            other.unlink(missing_ok=True)
    if file is not None and outcomes is not None and outcomes.detections is None:
        detections_file(file).unlink(missing_ok=True)


def _is_in_store(path: Path) -> bool:
    """Whether a record lies where a run keeps its own, whose outcomes have the name of the record."""
    return path.suffix == ".json" and path.parent.name == "records" and holds_run(path.parent.parent)


def _used(path: Path, there: Mapping[str, Any]) -> set[Path]:
    """The file that the record there names, if that is a name for its outcomes: none, or one.

    Any other may be that of another record, of which this one is a copy.
    """
    try:
        return {outcomes_of(path, there)} & {path.with_suffix(OUTCOMES_SUFFIX), *outcomes_beside(path)}
    except (KeyError, TypeError):  # it has none, or is damaged
        return set()


def _free(
    names: tuple[Path, Path], used: set[Path], path: Path, there: Mapping[str, Any], sha256: str
) -> Path:
    """The first of two names; the second if the record there has other outcomes under the first, or these under it."""
    first, second = names
    if not used or not has_its_outcomes(path, there):
        return first
    same = there["outcomes"]["sha256"] == sha256
    return second if (second if same else first) in used else first
