"""What a report folder keeps so that its numbers can be computed again without the run store.

``study.json`` is the study, the runs by name, the command, and the version of twinbench that wrote them; ``outcomes/``
are the files that tell what became of each test item, by their SHA-256; ``records.csv`` are the records, and
``environments.json`` what their environments are.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from twinbench.foundation.documents import from_json
from twinbench.foundation.errors import InputError
from twinbench.foundation.files import write_synced
from twinbench.foundation.models import explain_validation
from twinbench.foundation.outcomes import DETECTIONS_SUFFIX, OUTCOMES_SUFFIX, detections_file, is_whole
from twinbench.reports.output import OUTCOMES, RECORDS, STUDY
from twinbench.reports.records import Record, RunInfo, read_records
from twinbench.reports.study import StudySpec
from twinbench.reports.unchanged import reports_version

_OF_RUN = ("method", "variant", "seed", "status", "reason", "seconds", "origin", "table", "recipe_hash")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Source:
    """What a report was made of, and by which `reports_version`, if it tells.

    Of the runs the folders are not known, and of outcomes the files in the report.
    """

    study: StudySpec
    records: Sequence[Record]
    runs: Sequence[RunInfo]
    command: str
    version: str = ""


def write_source(folder: Path, study: StudySpec, runs: Sequence[RunInfo], command: str) -> None:
    """Write the study, and keep the outcomes: by a second name of the same file where the disk can, else as copies.

    Raises InputError for outcomes that have changed since their record was read.
    """
    document = {
        "study": TypeAdapter(StudySpec).dump_python(
            study, mode="json"
        ),  # not what a study adds for its trainings
        "command": command,
        "version": reports_version(),
        "runs": [_of_run(run) for run in runs],
    }
    write_synced(folder / STUDY, (json.dumps(document, indent=1) + "\n").encode())
    files = {sha256: path for run in runs for sha256, path in run.outcomes.items()}
    if files:
        (folder / OUTCOMES).mkdir()
    for sha256, path in files.items():
        if not is_whole(path, sha256):
            raise InputError(
                "the outcomes are not those of their record", where=path, next_step="make the report again"
            )
        _keep(path, folder / OUTCOMES / f"{sha256}{OUTCOMES_SUFFIX}")
        if detections_file(path).is_file():
            _keep(detections_file(path), folder / OUTCOMES / f"{sha256}{DETECTIONS_SUFFIX}")


def _keep(path: Path, kept: Path) -> None:
    """Give a file of the run store, which is only ever replaced as a whole, another name, or copy it."""
    try:
        os.link(path, kept)
    except OSError:  # another disk, or one without links
        write_synced(kept, path.read_bytes())


def _of_run(run: RunInfo) -> dict[str, Any]:
    return {**{name: getattr(run, name) for name in _OF_RUN}, "outcomes": sorted(run.outcomes)}


def read_source(folder: Path) -> Source:
    """What the report in a folder was made of. Raises InputError for a folder that tells nothing of it."""
    file = folder / STUDY
    if not file.is_file() or not (folder / RECORDS).is_file():
        raise InputError(
            "this is no report whose numbers can be computed again",
            where=folder,
            next_step=f"give the folder of a report, which holds {RECORDS} and {STUDY}; of a run store, make one: "
            "twinbench report RUNS --out DIR",
        )
    try:
        document = from_json(file.read_text(encoding="utf-8"))
        study = StudySpec.model_validate(document["study"])
        runs = [_run(folder, each) for each in document["runs"]]
        command, version = str(document["command"]), str(document.get("version", ""))
    except ValidationError as error:
        raise explain_validation(error, StudySpec, file) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"this file cannot be read: {error}", where=file, next_step="make the report again"
        ) from error
    return Source(study, read_records(folder / RECORDS), runs, command, version)


def _run(folder: Path, document: Mapping[str, Any]) -> RunInfo:
    known = {name: document[name] for name in _OF_RUN}
    for name, value in known.items():
        if not isinstance(value, str | int | float | None):
            raise TypeError(f"{name} of a run is {value!r}")
    for sha256 in document["outcomes"]:
        if not _SHA256.fullmatch(sha256):  # it becomes the name of a file
            raise ValueError(f"{sha256!r} is no SHA-256")
    outcomes = {sha256: folder / OUTCOMES / f"{sha256}{OUTCOMES_SUFFIX}" for sha256 in document["outcomes"]}
    return replace(RunInfo(folder=Path(), **known), outcomes=outcomes)
