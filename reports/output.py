"""The report folder: what in it is ours, and how a new report takes an old one's place.

A report lists its own files in ``.report-files.json``. Only those are ever deleted or replaced; whatever else
lies in the folder is the user's and is carried over.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from twinbench.foundation.documents import from_json
from twinbench.foundation.errors import InputError
from twinbench.foundation.files import machine_faults, write_synced

PAGE = "report.html"
LIST = ".report-files.json"
RECORDS, ENVIRONMENTS, STUDY, OUTCOMES = "records.csv", "environments.json", "study.json", "outcomes"
OWN_ENTRIES = (PAGE, RECORDS, ENVIRONMENTS, STUDY, "tables", "figures", OUTCOMES)
_MARK = b'<meta name="generator" content="twinbench">'


def check_out(out: Path) -> None:
    """Raise InputError if a report in ``out`` would take the place of something that is not a report.

    Changes nothing; raises RunFailure if ``out`` cannot be looked at.
    """
    with machine_faults("the report folder cannot be read", out, "give a folder that you may read and write"):
        out = out.resolve()
        working = Path.cwd().resolve()
        if out == working or out in working.parents:
            raise _refusal("the report folder would be the current folder or one above it", out)
        if os.path.lexists(out) and not out.is_dir():
            raise _refusal("the report needs a folder and this is a file", out)
        above = next(parent for parent in out.parents if os.path.lexists(parent))
        if not above.is_dir():
            raise _refusal("the report folder would lie below a file", above)
        aside = old_folder(out)
        if os.path.lexists(aside) and not _is_real_folder(aside):
            raise InputError("this name is needed for the old report", aside, next_step="move it elsewhere")
        place = aside if aside.exists() and not out.exists() else out
        foreign = [name for name in OWN_ENTRIES if os.path.lexists(place / name)]
        if foreign and not _is_report(place):
            raise _refusal(f"the folder holds {', '.join(foreign)} but no report of twinbench", place)


def _refusal(what: str, where: Path) -> InputError:
    return InputError(what, where, next_step="give a new folder, or the folder of an older report")


def _is_report(folder: Path) -> bool:
    page = folder / PAGE
    if not os.path.lexists(page):
        return _listed(folder) is not None
    return _is_page(page)


def _is_page(page: Path) -> bool:
    return page.is_file() and _MARK in page.read_bytes()


def _listed(folder: Path) -> frozenset[str] | None:
    """The files that the report in ``folder`` wrote, or None if it keeps no list."""
    path = folder / LIST
    if not path.is_file():
        return None
    try:
        content = from_json(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        return None
    return frozenset(content)


def write_list(folder: Path) -> None:
    """List every file below ``folder`` as ours."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    write_synced(folder / LIST, (json.dumps(names, indent=1) + "\n").encode())


def _owned(old: Path, new: Path) -> frozenset[str]:
    """The files of ``old`` that may go. A report without a list gives up only what ``new`` has as well."""
    listed = _listed(old)
    if listed is None:
        listed = (_listed(new) or frozenset()) if _is_page(old / PAGE) else frozenset()
    return listed | {LIST}


def old_folder(out: Path) -> Path:
    """Where the old report stands while the new one takes its place."""
    return out.parent / f".{out.name}.old"


def recover(out: Path) -> None:
    """Undo a swap that a crash cut short: the old report may stand aside with nothing, or a new one, in its
    place.
    """
    old = old_folder(out)
    if old.exists() and not out.exists():
        os.rename(old, out)
    elif old.exists():
        _retire(old, out)


def swap(staging: Path, out: Path) -> None:
    """Put ``staging`` in the place of ``out`` and carry over the files there that are not ours."""
    if not out.exists():
        os.rename(staging, out)
        return
    _check_clashes(staging, out)
    old = old_folder(out)
    os.rename(out, old)
    try:
        os.rename(staging, out)
    except OSError:
        os.rename(old, out)
        raise
    _retire(old, out)


def _check_clashes(staging: Path, out: Path) -> None:
    """Raise InputError if a file of the new report has the name of one that is not ours."""
    owned = _owned(out, staging)
    for entry in sorted(staging.rglob("*")):
        name = entry.relative_to(staging).as_posix()
        place = out / name
        if not os.path.lexists(place):
            continue
        fits = entry.is_dir() if _is_real_folder(place) else name in owned
        if not fits:
            raise InputError(
                "the report needs this name and what has it is not the report's",
                place,
                next_step="move it elsewhere, or rename the table or figure in the study",
            )


def _retire(old: Path, out: Path) -> None:
    """Carry what is not ours from ``old`` to ``out``, then delete ``old``."""
    owned = _owned(old, out)
    _carry(old, out, owned)
    _delete(old, owned)
    if old.exists():
        raise InputError(
            "files that are not the report's are left here: the report has files of the same names",
            old,
            next_step="move them elsewhere, then delete the folder",
        )


def _carry(old: Path, out: Path, owned: frozenset[str], above: str = "") -> None:
    for entry in sorted(old.iterdir()):
        name, target = above + entry.name, out / entry.name
        if not _is_real_folder(entry):
            if name not in owned and not os.path.lexists(target):
                os.rename(entry, target)
        elif not any(file.startswith(f"{name}/") for file in owned) and not os.path.lexists(target):
            os.rename(entry, target)
        else:
            target.mkdir(exist_ok=True)
            _carry(entry, target, owned, f"{name}/")


def _delete(folder: Path, owned: frozenset[str], above: str = "") -> None:
    """Delete our files and then empty folders; the page and the list, which tell what is ours, go last."""
    for entry in sorted(folder.iterdir(), key=lambda entry: (entry.name in (PAGE, LIST), entry.name)):
        name = above + entry.name
        if _is_real_folder(entry):
            _delete(entry, owned, f"{name}/")
        elif name in owned:
            entry.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _is_real_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
