"""Image sets in tar files, the shards of WebDataset: for sets of more files than a file system likes.

Below a folder, the shards of a split have its name in theirs or in that of their folder: ``train-000.tar``,
``imagenet1k-train-0000.tar``, ``train/000.tar``. ``val`` may be called ``valid`` or ``validation``, and is the test
split where there is none. Where no name tells a split, all is ``train``.

In a shard, files that follow one another and are called the same up to the first dot are one sample (the package
webdataset says so: its functions group them). A sample has one picture; its class is what its file ``.cls`` says, a
number or a name, or else the first folder of its name. Without either the images are unlabelled.

Images are in the order of their classes and then of their names, in whatever order shards and samples lie, which is the
order that the same files have in a folder (`data.folders`). So views, pixels and, where names have the folders of a
folder, the fingerprint are those of that folder. That takes access to any picture at any time: pictures are read where
they lie (`data.tar_members`), and where that is says an index, made when a set is first used. For it the header of
every file in the shards is read, and of every picture 4 KiB from each end, for the fingerprint. Of a set of a thousand
pictures or more it is kept in the user's cache folder, for each shard under a key that holds its name, size and times.
An index that is missing, damaged or cannot be written costs time, nothing else.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import stat
import struct
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twinbench.data import contents
from twinbench.data.folders import FileList, ImageFiles, existing_folder, fingerprint_of
from twinbench.data.listing import is_hidden, is_picture
from twinbench.data.remarks import first_names
from twinbench.data.tar_members import member_path
from twinbench.foundation.documents import from_json
from twinbench.foundation.errors import InputError, RunFailure, nearest_name
from twinbench.foundation.files import write_atomically

_log = logging.getLogger(__name__)

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_BLOCK = 512
_LONGEST_NAME = 1024  # bytes: the names of a set lie in memory as long as the longest
_LONGEST_LABEL = 1024
_LARGEST_HEADER = 2**20
_META = re.compile(r"__[^/]*__($|/)")  # what webdataset leaves out
_VERSION = 2  # also another where a shard is refused that was not before
# Writers pad to records of 10,240 bytes, or of what GNU tar's -b says, for disks and tapes a power of two.
_RECORDS = (10_240, *(2**power for power in range(15, 21)))
# tarfile checks little of what it reads, and fails on it as Python does
_DAMAGE = (
    tarfile.TarError,
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    EOFError,
    RecursionError,
    MemoryError,
    struct.error,
)


class _Member(NamedTuple):
    """A file in a shard."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class _Index:
    """The pictures of a shard, in columns: where they are, their digests in hexadecimal, and what ``.cls`` says.

    ``left_out`` counts files that are not read, by their endings.
    """

    names: list[str]
    offsets: list[int]
    sizes: list[int]
    digests: list[str]
    labels: list[str | None]
    left_out: dict[str, int]

    def packed(self) -> bytes:
        """The content of its file."""
        rows = json.dumps([_VERSION, asdict(self)]).encode()
        return hashlib.sha256(rows).hexdigest().encode() + b"\n" + rows

    @staticmethod
    def unpacked(content: bytes) -> _Index:
        """Of what `packed` gave; raises ValueError or TypeError for anything else."""
        checksum, _, rows = content.partition(b"\n")
        if hashlib.sha256(rows).hexdigest().encode() != checksum:
            raise ValueError("its checksum is another")
        version, columns = from_json(rows)
        if version != _VERSION:
            raise ValueError("another version")
        return _Index(**columns)


class _Row(NamedTuple):
    """A picture: its class in words, its name below the folder of its split, where it lies, and its digest."""

    label: str | None
    name: str
    shard: Path
    offset: int
    size: int
    digest: bytes


@dataclass(frozen=True)
class ShardFiles(ImageFiles):
    """The pictures of shards, with a path each (`data.tar_members`), and with what their folder would have.

    ``entries`` are for each split the names below that folder and the digests, in the order of the paths.
    """

    entries: Mapping[str, Sequence[tuple[str, bytes]]] = None  # type: ignore[assignment]

    def fingerprint(self) -> str:
        """That of a folder of the same files; the shards do not count."""
        return fingerprint_of(
            (split, name, label, digest)
            for split, files in sorted(self.splits.items())
            for (name, digest), label in zip(self.entries[split], files.labels.tolist(), strict=True)
        )


def holds_shards(root: Path) -> bool:
    """Whether there are shards in a folder, or in the folder ``train`` in it."""
    return any(any(folder.glob("*.tar")) for folder in (root, root / "train"))


def list_shards(root: Path) -> ShardFiles:
    """Find the pictures in the shards below ``root``; see the module for the layout, and for what the first time costs.

    Raises InputError where the package webdataset is missing, for a missing folder, no shards, compressed or damaged
    ones, samples with two pictures, pictures with and without a class, and classes that training does not have.
    """
    existing_folder(root, "train-*.tar or train/*.tar")
    by_name = _by_split(root, _tar_files(root))
    indices = _indices(root, [shard for shards in by_name.values() for shard in shards])
    rows = {
        name: _rows(name, {shard: indices[shard] for shard in shards}) for name, shards in by_name.items()
    }
    if not rows["train"]:
        raise InputError("no pictures in the shards of train", where=by_name["train"][0], next_step=_LAYOUT)
    remarks = list(_left_out(indices.values()))
    names = {_SPLITS[name]: name for name in rows}
    if "val" in names and "test" not in names:
        names["test"] = names.pop("val")
        remarks.append(f"the shards of {names['test']} are the test split, since there are none of test")
    classes = _classes({row.label for row in rows["train"]}, by_name["train"][0])
    splits, entries = dict[str, FileList](), dict[str, list[tuple[str, bytes]]]()
    for split, name in sorted(names.items()):
        labels = _labels(name, rows[name], classes, remarks)
        ordered = sorted(
            zip(labels, rows[name], strict=True), key=lambda row: (row[0], row[1].name.split("/"), row[1])
        )
        paths = [member_path(row.shard, row.offset, row.size, row.name) for _, row in ordered]
        splits[split] = FileList(paths, np.array([label for label, _ in ordered], np.int64))
        entries[split] = [(f"{name}/{row.name}", row.digest) for _, row in ordered]
    for remark in remarks:
        _log.warning("%s: %s", root, remark)
    return ShardFiles(root, classes, splits, tuple(remarks), entries=entries)


_LAYOUT = "a sample is a picture, such as 0001.jpg, perhaps with its class in 0001.cls; or train/cat/0001.jpg"


# Which shards


def _tar_files(root: Path) -> list[Path]:
    """The tar files at any depth, sorted; raises InputError for compressed ones."""
    found = []
    for parent, folders, names in os.walk(root):
        folders[:] = sorted(folder for folder in folders if not is_hidden(folder))
        for name in sorted(names):
            if is_hidden(name):
                continue
            if name.lower().endswith(_COMPRESSED):
                raise InputError(
                    "this shard is compressed, so that no picture in it can be read without all before it",
                    where=Path(parent, name),
                    next_step="unpack it to a .tar file (gunzip, unxz); pictures are compressed already",
                )
            if name.endswith(".tar"):
                found.append(Path(parent, name))
    return found


def _by_split(root: Path, shards: Sequence[Path]) -> dict[str, list[Path]]:
    """The shards by the name that their split has there; raises InputError where names tell none, or no training."""
    if not shards:
        raise InputError(
            "no tar files here", where=root, next_step="give the folder of the shards: train-000.tar, ..."
        )
    found: dict[str, list[Path]] = {}
    for shard in shards:
        words = re.split("[^a-z]+", shard.relative_to(root).as_posix().lower())
        found.setdefault(next((word for word in words if word in _SPLITS), ""), []).append(shard)
    if "" in found and len(found) == 1:
        return {"train": found[""]}
    if "" in found:
        raise InputError(
            "the name of this shard does not say which split it belongs to, and others do",
            where=found[""][0],
            next_step="call it train-..., val-... or test-..., or move it into a folder of that name",
        )
    if "train" not in found:
        raise InputError(
            "there are no shards of train here", where=root, next_step="call them train-000.tar, ..."
        )
    validation = [name for name in found if _SPLITS[name] == "val"]
    if len(validation) > 1:
        raise InputError(
            f"there are shards of {' and of '.join(validation)}",
            where=root,
            next_step="call the shards of one split the same",
        )
    return found


# What is in a shard


def _indices(root: Path, shards: Sequence[Path]) -> dict[Path, _Index]:
    """The index of each shard, read in parallel threads from where it is kept, or else made and kept."""
    place = contents.cache_place("shards", root)
    group = _grouping()
    used = set[str]()

    def look_at(shard: Path) -> _Index:
        try:
            status = shard.stat()
            if not stat.S_ISREG(status.st_mode):  # before it is opened: that of a FIFO waits for a writer
                raise InputError(
                    "this shard is not a regular file", where=shard, next_step="put a tar file in its place"
                )
            # by its name an index of another version is none, not a damaged one
            name = f"{_VERSION}-{contents.identity(shard.relative_to(root).as_posix(), status).hex()}"
            used.add(name)
            kept = None if place is None else _kept(place / name)
            if kept is not None:
                return kept
            made = _read_shard(shard, group)
            if place is not None and contents.is_settled(status):
                fresh.append((place / name, made))
            return made
        except OSError as error:
            raise InputError(
                f"cannot read this file: {error.strerror}", where=shard, next_step="make it readable"
            ) from error

    fresh: list[tuple[Path, _Index]] = []
    with ThreadPoolExecutor(contents.THREADS) as pool:
        found = dict(zip(shards, pool.map(look_at, shards), strict=True))
    if (
        place is not None
        and fresh
        and sum(len(index.names) for index in found.values()) >= contents.WORTH_AN_INDEX
    ):
        _keep(place, fresh, used)
    return found


def _kept(file: Path) -> _Index | None:
    try:
        return _Index.unpacked(file.read_bytes())
    except OSError:
        return None
    except (ValueError, TypeError) as error:
        _log.warning("the index of a shard in %s is damaged (%s): reading the shard again", file, error)
        return None


def _keep(place: Path, fresh: Sequence[tuple[Path, _Index]], used: set[str]) -> None:
    """Write new indices, and delete those of shards that are no longer there."""
    try:
        for file, index in fresh:
            write_atomically(file, index.packed())
        for file in place.iterdir():
            if file.name not in used:
                file.unlink(missing_ok=True)
    except (RunFailure, OSError) as error:
        _log.info("no index of shards: %s", error)


class _Grouping(NamedTuple):
    """webdataset's functions: a name's key and endings, and the samples of a stream of files."""

    split: Callable[[str], tuple[str | None, str | None]]
    samples: Callable[[Iterable[dict[str, Any]]], Iterator[dict[str, Any]]]


def _grouping() -> _Grouping:
    try:
        from webdataset.tariterators import base_plus_ext, group_by_keys
    except ImportError as error:
        raise InputError(
            "shards are read with the package webdataset, which is not installed",
            next_step='pip install "twinbench[webdataset]" (in a checkout: pip install -e ".[webdataset]")',
        ) from error
    return _Grouping(base_plus_ext, group_by_keys)


def _read_shard(shard: Path, group: _Grouping) -> _Index:
    """The index of a tar file; raises InputError for a damaged one, and OSError."""
    index = _Index([], [], [], [], [], {})
    left_out = Counter[str]()
    with shard.open("rb", buffering=0) as file:
        try:
            for sample in group.samples(_files(file, group, left_out)):
                _add(sample, file, index, left_out)
        except InputError as error:
            raise InputError(
                error.what, where=f"{shard}, {error.where}", next_step=error.next_step
            ) from error
        except _DAMAGE as error:
            raise InputError(
                f"this is no whole tar file: {error}",
                where=shard,
                next_step="copy or download it again, or write it anew as one tar file",
            ) from error
    index.left_out.update(left_out)
    return index


def _files(file: io.FileIO, group: _Grouping, left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """The files of an open shard as webdataset groups them, those without an ending apart."""
    seen = set[str]()
    for member in _members(file, left_out):
        if _META.match(member.name):
            continue
        if member.name in seen:  # webdataset sees that within a sample alone; elsewhere it would count twice
            raise InputError(
                "duplicate file name in this shard",
                where=member.name,
                next_step="write the shard anew with each file once (`tar -r` keeps the old one too)",
            )
        seen.add(member.name)
        if group.split(member.name)[0] is None:
            left_out["no ending"] += 1
            continue
        yield {"fname": member.name, "data": member, "__url__": ""}


def _add(sample: dict[str, Any], file: io.FileIO, index: _Index, left_out: Counter[str]) -> None:
    """Add a sample to an index, or count it as left out."""
    parts = {ending: member for ending, member in sample.items() if isinstance(member, _Member)}
    pictures = [member for ending, member in parts.items() if is_picture(f"x.{ending}") and "." not in ending]
    left_out.update(ending for ending in parts if ending not in _READ and parts[ending] not in pictures)
    if len(pictures) > 1:
        raise InputError(
            f"a sample has {len(pictures)} pictures: {first_names([member.name for member in pictures])}",
            where=sample["__key__"],
            next_step="leave one picture in each sample",
        )
    if not pictures:
        return
    (picture,) = pictures
    index.names.append(picture.name)
    index.offsets.append(picture.offset)
    index.sizes.append(picture.size)
    index.digests.append(contents.digest_of(file, picture.offset, picture.size).hex())
    index.labels.append(_label(file, parts["cls"]) if "cls" in parts else None)


_READ = frozenset({"cls", "json", "txt"})  # the latter two are companions, not worth a word


def _label(file: io.FileIO, member: _Member) -> str:
    """What a file ``.cls`` says; raises InputError for what is no short text."""
    text = ""
    if member.size <= _LONGEST_LABEL:
        file.seek(member.offset)
        text = file.read(member.size).decode("utf-8", "replace").strip()
    if not text or "\ufffd" in text:
        raise InputError(
            "this class is not a number or a name", where=member.name, next_step="write one into it, as UTF-8"
        )
    return str(int(text)) if text.isascii() and text.isdecimal() else text


class _Headers:
    """A tar file for tarfile to read headers from, none of which makes it read much."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > _LARGEST_HEADER:
            raise ValueError(f"a header of {size} bytes")
        return self._file.read(size)


def _members(file: io.FileIO, left_out: Counter[str]) -> Iterator[_Member]:
    """The files in an open tar file, links and devices counted as left out.

    Raises one of _DAMAGE, or InputError for a name that no folder could hold.
    """
    end = os.fstat(file.fileno()).st_size
    empty = True
    with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:  # type: ignore[call-overload]
        while (found := tar.next()) is not None:
            empty = False
            tar.members.clear()  # which would hold all of them
            if not found.isreg():
                if not found.isdir():
                    left_out["links and devices"] += 1
                continue
            if found.sparse is not None:
                raise ValueError(f"{found.name} is stored with holes")
            if found.size < 0 or found.offset_data + found.size > end:
                raise ValueError(f"{found.name} is larger than what is left of the file")
            yield _Member(_checked_name(found.name), found.offset_data, found.size)
        file.seek(tar.offset)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise ValueError("it ends without the mark of an end")
        if empty:
            raise ValueError("there is nothing in it")
        _check_padding(file, tar.offset + 2 * _BLOCK, end)


def _check_padding(file: io.FileIO, start: int, end: int) -> None:
    """Raise ValueError where more follows the mark of the end than zeros that fill the last record.

    Without that a file zero-filled from some member on would look like a shorter one. Its size tells most of them: a
    tar file is a whole number of records, and padding is shorter than a record. What lies in the last 10 KiB alone may
    still be missing.
    """
    after = end - start
    fits = after <= 0 or any(end % record == 0 and after < record for record in _RECORDS)
    file.seek(start - _BLOCK)  # the second block of the mark, which some writers leave out
    if not fits or any(file.read(_BLOCK + max(after, 0))):
        raise ValueError(
            f"{_BLOCK + after} bytes follow the mark of its end that are no padding; "
            "it is cut, zero-filled, or two tar files in one"
        )


def _checked_name(name: str) -> str:
    """The name of a file in a shard without ``./``; raises InputError for one that no folder could hold."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if (
        name.startswith("/")
        or ".." in parts
        or "\0" in name
        or not parts
        or len(os.fsencode(name)) > _LONGEST_NAME
    ):
        raise InputError(
            "the name of a file in this shard leads out of it, or is too long",
            where=name,
            next_step="make the shard with the names that files have below a folder",
        )
    return "/".join(parts)


# The pictures of a split


def _rows(split: str, indices: Mapping[Path, _Index]) -> list[_Row]:
    """The pictures of a split, whose own folder is no part of their names."""
    rows = []
    for shard, index in indices.items():
        columns = zip(index.names, index.offsets, index.sizes, index.digests, index.labels, strict=True)
        for text, offset, size, digest, said in columns:
            parts = text.split("/")
            parts = parts[1:] if len(parts) > 1 and parts[0] == split else parts
            label = said if said is not None else parts[0] if len(parts) > 1 else None
            rows.append(_Row(label, "/".join(parts), shard, offset, size, bytes.fromhex(digest)))
    return rows


def _classes(labels: set[str | None], where: Path) -> tuple[str, ...]:
    """The classes in order, numbers by their value; none where no picture has one."""
    named = [label for label in labels if label is not None]
    if named and None in labels:
        raise InputError(
            "some pictures have a class and others have none",
            where=where,
            next_step="give each a file .cls or a folder in its name, or none",
        )
    numbers = all(label.isascii() and label.isdecimal() for label in named)
    return tuple(sorted(named, key=int) if numbers else sorted(named))


def _labels(split: str, rows: Sequence[_Row], classes: tuple[str, ...], remarks: list[str]) -> list[int]:
    """The place of each picture's class among those of training, -1 without one; InputError for another class."""
    found = _classes({row.label for row in rows}, rows[0].shard) if rows else ()
    extra = [label for label in found if label not in set(classes)]
    if extra:
        raise InputError(
            f"the shards of {split} have classes that train does not have: {first_names([repr(e) for e in extra])}",
            where=next(row.shard for row in rows if row.label == extra[0]),
            nearest=nearest_name(extra[0], classes),
            next_step="give every split the classes of train",
        )
    missing = sorted(set(classes) - set(found), key=classes.index)
    if found and missing:
        remarks.append(
            f"{split} has no pictures of {len(missing)} of the {len(classes)} classes: {first_names(missing)}"
        )
    places = {label: place for place, label in enumerate(classes)}
    return [-1 if row.label is None else places[row.label] for row in rows]


def _left_out(indices: Iterable[_Index]) -> Iterator[str]:
    """At most one sentence, on files in the shards that are not read."""
    counts = Counter[str]()
    for index in indices:
        counts.update(index.left_out)
    if counts:
        kinds = first_names([f"{ending} {count}" for ending, count in counts.most_common()])
        yield f"files in the shards that are not read: {counts.total()} ({kinds})"
