"""Which files below a folder are pictures: one rule at every depth, and a count of what it leaves out.

Listed is every file whose name ends like a picture's (`EXTENSIONS`). Left out are hidden files and folders (a leading
dot, or one of those that systems add for thumbnails and attributes) and files of other kinds; of those the usual
companions of pictures (`_COMPANIONS`) are not worth a word. Links to files and folders are followed, but not to a
folder that the same class has already or lies in, so that a circle ends. Links that lead nowhere are left out. Pictures
in folders below that of a class are pictures of the class, and counted, for such a folder may hold masks or thumbnails.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from twinbench.data.remarks import Tally, first_names, shown
from twinbench.foundation.errors import InputError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})

_COMPANIONS = frozenset(
    {
        ".csv",
        ".db",
        ".html",
        ".ini",
        ".json",
        ".log",
        ".md",
        ".md5",
        ".sha256",
        ".tsv",
        ".txt",
        ".xml",
        ".yaml",
        ".yml",
    }
)
_SYSTEM_FOLDERS = frozenset({"@eaDir", "__MACOSX"})
_SEARCHED_FILES = 10_000

Identity = tuple[int, int]
"""Device and inode: what a file or folder is, whatever path leads there."""


class Listing:
    """Lists the pictures of one image set below ``root`` and remembers what it left out and followed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._hidden, self._links, self._broken, self._again = Tally(), Tally(), Tally(), Tally()
        self._others, self._other_kinds = Tally(), Counter[str]()
        self._nested, self._nested_folders = Tally(), 0

    def here(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """The pictures directly in a folder and its visible subfolders, each sorted by name."""
        pictures: list[Path] = []
        folders: list[Path] = []
        for entry in _entries(folder):
            path, kind, hidden = Path(entry.path), _kind(entry), is_hidden(entry.name)
            if kind == "folder" and not hidden:
                folders.append(path)
            elif kind == "folder":
                for inner in _pictures_anywhere(path):
                    self._count(self._hidden, inner)
            elif kind == "file" and self._is_listed(path, hidden):
                pictures.append(path)
                if entry.is_symlink():
                    self._count(self._links, path)
            elif kind is None and entry.is_symlink() and not hidden:
                self._count(self._broken, path)
        return pictures, folders

    def below(self, folder: Path) -> Iterator[Path]:
        """The pictures at any depth below the folder of a class, sorted by the parts of their paths."""
        parents = (self.root, folder.parent, *folder.resolve().parents)
        above = {identity(parent) for parent in parents if parent != folder}
        return self._walk(folder, above, nested=False)

    def _walk(self, folder: Path, listed: set[Identity], nested: bool = True) -> Iterator[Path]:
        me = identity(folder)
        if me in listed:
            self._count(self._again, folder)
            return
        listed.add(me)
        self.follow(folder)
        pictures, folders = self.here(folder)
        if nested:
            self._count_nested(pictures)
        if not folders:
            yield from pictures
            return
        inside = set(folders)
        for path in sorted(pictures + folders, key=lambda path: path.name):
            yield from self._walk(path, listed) if path in inside else [path]

    def _count_nested(self, pictures: list[Path]) -> None:
        """Count the pictures of a folder that is not itself the folder of their class."""
        self._nested_folders += bool(pictures)
        for path in pictures:
            self._count(self._nested, path)

    def _is_listed(self, path: Path, hidden: bool) -> bool:
        if is_picture(path.name):
            if hidden:
                self._count(self._hidden, path)
            return not hidden
        ending = path.suffix.lower()
        if not hidden and ending not in _COMPANIONS:
            self._count(self._others, path)
            self._other_kinds[ending or "no ending"] += 1
        return False

    def remarks(self) -> tuple[str, ...]:
        """One sentence for each kind of thing that was left out or followed."""
        kinds = first_names([f"{ending} {count}" for ending, count in self._other_kinds.most_common()])
        inside = f"{self._nested_folders} folder{'' if self._nested_folders == 1 else 's'}"
        said = (
            (self._nested, f"in {inside} below class folders and counted for those classes", "picture"),
            (self._hidden, "left out as hidden, or in a hidden folder", "picture"),
            (self._others, f"left out as no kind of picture that is read ({kinds})", "file"),
            (self._broken, "left out since they lead nowhere", "link"),
            (self._again, "left out since they lead to what is listed already or holds them", "link"),
            (self._links, "followed", "link"),
        )
        return tuple(f"{text}: {tally.said(what)}" for tally, text, what in said if tally.count)

    def _count(self, tally: Tally, path: Path) -> None:
        tally.add(tally.first or shown(path, self.root))

    def follow(self, folder: Path) -> None:
        """Count a folder whose pictures are listed, if a link leads to it."""
        if folder.is_symlink():
            self._count(self._links, folder)

    @property
    def other_kinds(self) -> bool:
        """Whether files that may be meant as pictures were left out for their kind."""
        return self._others.count > 0

    @property
    def followed_links(self) -> bool:
        """Whether one file may be listed under two paths."""
        return self._links.count > 0


def identity(path: Path) -> Identity:
    """Of what a path leads to; raises InputError if nothing can be read there."""
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return status.st_dev, status.st_ino


def repeated(splits: Iterable[tuple[str, Iterable[Path]]], root: Path) -> list[str]:
    """At most one sentence, on files listed under several paths; it names two of different splits if it can."""
    seen: dict[Identity, tuple[str, Path]] = {}
    count, pair, across = 0, None, False
    for split, paths in splits:
        for path in paths:
            before = seen.setdefault(identity(path), (split, path))
            if before[1] is path:
                continue
            count += 1
            if pair is None or (before[0] != split and not across):
                pair, across = (before[1], path), before[0] != split
    if pair is None:
        return []
    first, second = (shown(path, root) for path in pair)
    return [f"{count} pictures are listed at two places and count twice: {second} is {first}"]


def holds_pictures(folder: Path) -> bool:
    """Whether a picture, hidden or not, is among the first ten thousand files below a folder."""
    return any(is_picture(path.name) for path in islice(_files(folder), _SEARCHED_FILES))


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out, whatever it holds."""
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def is_picture(name: str) -> bool:
    """Whether a file's name ends like a picture's."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _pictures_anywhere(folder: Path) -> Iterator[Path]:
    return (path for path in _files(folder) if is_picture(path.name))


def _files(folder: Path) -> Iterator[Path]:
    """Every file below a folder that can be seen, without following links."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(parent, name) for name in sorted(names))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(folder, error) from error


def _kind(entry: os.DirEntry[str]) -> str | None:
    """``folder`` or ``file``, also of what a link leads to; None of anything else, and of a link that leads nowhere."""
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else None
    except OSError:  # a link to itself
        return None


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"cannot read this: {error.strerror}", where=path, next_step="make it readable")
