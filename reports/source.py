"""What a report folder keeps so that its numbers can be computed again without the run store.

``study.json`` is the study, the runs by name and the command; ``outcomes/`` are the files that tell what became of each
test item, by their SHA-256; ``records.csv`` are the records.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from twinbench.foundation.errors import InputError
from twinbench.foundation.files import write_synced
from twinbench.foundation.models import explain_validation
from twinbench.reports.output import OUTCOMES, RECORDS, STUDY
from twinbench.reports.records import Record, RunInfo, read_records
from twinbench.reports.study import StudySpec

_OF_RUN = ("method", "variant", "seed", "status", "reason", "seconds", "origin", "table", "recipe_hash")


@dataclass(frozen=True)
class Source:
    """What a report was made of. Of the runs the folders are not known, and of outcomes the copies in the report."""

    study: StudySpec
    records: Sequence[Record]
    runs: Sequence[RunInfo]
    command: str


def write_source(folder: Path, study: StudySpec, runs: Sequence[RunInfo], command: str) -> None:
    """Write the study and copy the outcomes."""
    document = {
        "study": TypeAdapter(StudySpec).dump_python(
            study, mode="json"
        ),  # not what a study adds for its trainings
        "command": command,
        "runs": [_of_run(run) for run in runs],
    }
    write_synced(folder / STUDY, (json.dumps(document, indent=1) + "\n").encode())
    files = {sha256: path for run in runs for sha256, path in run.outcomes.items()}
    if files:
        (folder / OUTCOMES).mkdir()
    for sha256, path in files.items():
        for file in sorted(path.parent.glob(f"{path.stem}.*")):
            if file.suffix != ".json" or file.name.endswith(".coco.json"):
                shutil.copyfile(file, folder / OUTCOMES / f"{sha256}{file.name.removeprefix(path.stem)}")


def _of_run(run: RunInfo) -> dict[str, Any]:
    return {**{name: getattr(run, name) for name in _OF_RUN}, "outcomes": sorted(run.outcomes)}


def read_source(folder: Path) -> Source:
    """What the report in a folder was made of. Raises InputError for a folder that tells nothing of it."""
    file = folder / STUDY
    if not file.is_file() or not (folder / RECORDS).is_file():
        raise InputError(
            "this is no report whose numbers can be computed again",
            where=folder,
            next_step=f"give the folder of a report: it holds {RECORDS} and {STUDY}",
        )
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        study = StudySpec.model_validate(document["study"])
        runs = [_run(folder, each) for each in document["runs"]]
        command = str(document["command"])
    except ValidationError as error:
        raise explain_validation(error, StudySpec, file) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"this file cannot be read: {error}", where=file, next_step="make the report again"
        ) from error
    return Source(study, read_records(folder / RECORDS), runs, command)


def _run(folder: Path, document: Mapping[str, Any]) -> RunInfo:
    known = {name: document[name] for name in _OF_RUN}
    outcomes = {sha256: folder / OUTCOMES / f"{sha256}.safetensors" for sha256 in document["outcomes"]}
    return replace(RunInfo(folder=Path(), **known), outcomes=outcomes)
