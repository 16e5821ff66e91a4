"""Finding files that annotations name otherwise than they are called on disk.

Annotations write ``part\\IMG_1.jpg`` where ``part/img_1.JPG`` lies, or leave out or add folders. A file of exactly
that name goes first. Otherwise a name means the file below the folder whose path is the end of the name or ends with
it, whatever the case of letters and the kind of slashes, and of several such files the one with the most folders in
common. Two that fit equally well are refused, and what was found so is counted for a remark. Hidden files and folders
and linked folders are not looked into.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from twinbench.data.listing import is_hidden
from twinbench.data.remarks import Tally
from twinbench.foundation.errors import InputError

_NAMED = 5


class FileFinder:
    """Finds the files of a set by name; a folder is listed once, and only if a name in it is not exact."""

    def __init__(self) -> None:
        self._listed: dict[Path, dict[str, list[str]]] = {}
        self._found = Tally()

    def find(self, folder: Path, names: Sequence[str], where: object, others: Sequence[str] = ()) -> Path:
        """The file in a folder that has one of the ``names`` exactly; else the one that fits one of them or ``others``.

        Earlier names go first. Where there is no such file, it is the path of the first name. Raises InputError, with
        ``where`` the name stands, if several files fit a name equally well.
        """
        for name in names:
            # Path.is_file raises for a name that is too long for the file system.
            if not name.startswith("/") and os.path.isfile(folder / name):
                return folder / name
        for name in (*names, *others):
            fitting = self._fitting(folder, name)
            if len(fitting) > 1:
                raise InputError(
                    f"the name {name!r} fits {len(fitting)} files: {', '.join(fitting[:_NAMED])}",
                    where=where,
                    next_step=f"write the name as it is in {folder}, or take the other files out",
                )
            if fitting:
                self._found.add(f"{names[0]} is {fitting[0]}")
                return folder / fitting[0]
        return folder / names[0].lstrip("/")

    def remarks(self) -> tuple[str, ...]:
        """How many files were found under another name, if any."""
        if not self._found.count:
            return ()
        return (
            f"files found under another name than the annotations give: {self._found.count} "
            f"({self._found.first}, for one)",
        )

    def _fitting(self, folder: Path, name: str) -> list[str]:
        """The files below a folder that a name fits best, none to many, as paths from there."""
        if folder not in self._listed:
            self._listed[folder] = _by_name(folder)
        wanted = name_parts(_folded(name))
        likeness: dict[str, tuple[int, bool]] = {}
        for path in self._listed[folder].get(wanted[-1], []) if wanted else []:
            parts = name_parts(_folded(path))
            common = min(len(parts), len(wanted))
            if parts[-common:] == wanted[-common:]:
                likeness[path] = common, parts == wanted
        best = max(likeness.values(), default=None)
        return [path for path in likeness if likeness[path] == best]


def name_parts(name: str) -> list[str]:
    """The folders and the name of a file, written with either kind of slash; those of an absolute one as well."""
    return [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]


def _by_name(folder: Path) -> dict[str, list[str]]:
    """The files below a folder, as paths from there, by their folded names."""
    by_name: dict[str, list[str]] = {}
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not is_hidden(name))
        inside = Path(parent).relative_to(folder)
        for name in sorted(names):
            if not is_hidden(name):
                by_name.setdefault(_folded(name), []).append((inside / name).as_posix())
    return by_name


def _folded(name: str) -> str:
    """A name without case and with accents as one character (macOS stores them as two)."""
    return unicodedata.normalize("NFC", name).casefold()
