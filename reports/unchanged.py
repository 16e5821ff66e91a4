"""Whether a report is there already, byte for byte: a finished study is then told of without drawing it anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

import matplotlib as mpl

from twinbench.foundation.documents import from_json
from twinbench.foundation.files import write_synced
from twinbench.reports.records import Record, RunInfo, records_csv
from twinbench.reports.study import StudySpec

MADE_OF = ".report-made-of.json"


def digest_of(
    study: StudySpec, records: Sequence[Record], runs: Sequence[RunInfo], command: str, draw: bool
) -> str:
    """SHA-256 of all that a report is made of: what is asked for, the records, the runs' files, and this code."""
    digest = hashlib.sha256()
    for part in _parts(study, records, runs, command, draw):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _parts(
    study: StudySpec, records: Sequence[Record], runs: Sequence[RunInfo], command: str, draw: bool
) -> Iterator[bytes]:
    yield repr((command, draw, mpl.__version__)).encode()
    yield study.model_dump_json().encode()
    yield records_csv(records).encode()
    for run in runs:
        yield repr(run).encode()
    read = {path for run in runs for path in (*_files_of(run.folder), *run.pictures.values())}
    for path in sorted(read):
        yield path.read_bytes()
    yield from _code(files("twinbench.reports"))


def _files_of(folder: Path) -> list[Path]:
    names = ("metrics.jsonl", "diagnostics.json", "recipe.yaml", "source.yaml")
    return [path for name in names if (path := folder / name).is_file()]


def _code(folder: Traversable) -> Iterator[bytes]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir() and entry.name != "__pycache__":
            yield from _code(entry)
        elif entry.is_file():
            yield entry.read_bytes()


def reports_version() -> str:
    """Which twinbench writes reports here: its version, and a checksum of the code that makes their texts."""
    try:
        release = version("twinbench")
    except PackageNotFoundError:
        release = "of no known version"
    digest = hashlib.sha256()
    for part in _code(files("twinbench.reports")):
        digest.update(hashlib.sha256(part).digest())
    return f"{release} ({digest.hexdigest()[:12]})"


def note(folder: Path, digest: str, command: str) -> None:
    """Write down what the report in a folder is made of, what its files are, and the command that made it."""
    made = {"of": digest, "command": command, "files": _contents(folder)}
    write_synced(folder / MADE_OF, (json.dumps(made, indent=1) + "\n").encode())


def made_by(folder: Path) -> str:
    """The command that made the report in a folder; empty where there is none, or none that is told of."""
    try:
        made = from_json((folder / MADE_OF).read_text(encoding="utf-8"))
        return str(made["command"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def is_there(folder: Path, digest: str) -> bool:
    """Whether the report in a folder is made of just this, and nobody has changed a file of it since."""
    made = _made(folder)
    return made is not None and made[0] == digest and not changed_files(folder)


def changed_files(folder: Path) -> list[str]:
    """The files of a report that are gone or not as they were written; its list of them, if that is unreadable."""
    made = _made(folder)
    if made is None:
        return [MADE_OF]
    return [name for name, sha256 in made[1].items() if not _is(folder, name, sha256)]


def noted_files(folder: Path) -> list[str]:
    """The files of a report as it was written; none if its list of them is unreadable."""
    made = _made(folder)
    return [] if made is None else list(made[1])


def _made(folder: Path) -> tuple[str, dict[str, str]] | None:
    try:
        made = from_json((folder / MADE_OF).read_text(encoding="utf-8"))
        return str(made["of"]), {str(name): str(sha256) for name, sha256 in made["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is(folder: Path, name: str, sha256: str) -> bool:
    """Whether a file below a folder is as it was; what lies elsewhere, or is no file, is none of the report's."""
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return False
    path = folder / name
    try:
        return path.is_file() and _sha256(path) == sha256
    except OSError:
        return False


def _contents(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in paths}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
