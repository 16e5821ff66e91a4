"""The file of what became of every test item under a protocol: its format, written, read and held to its digest.

One file of safetensors an evaluation. A classification has ``predicted`` ``[n, k]``, the (at most five) most probable
classes, ``true`` ``[n]``, ``rows`` ``[n]``, the places of the images in the test split, and the number of ``classes``
``[1]``; support vector machines have ``scores`` ``[n, classes]`` and ``truth`` ``[n, classes]``; few-shot
classification how often an item was ``right/METRIC`` ``[n]`` and how many were in a draw, ``by_draw/METRIC``
``[draws]``. A metric that is no mean of items has ``replicates/METRIC`` ``[r]``, its value on resampled test sets. What
a detector found is in a second file, in COCO's own results format, whose digest the first one holds.

The evaluation writes these files, the run store keeps them, and reports read them, which know no torch; nor does this
module.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from twinbench.foundation.documents import from_json
from twinbench.foundation.errors import InputError
from twinbench.foundation.files import read_document, write_atomically

Array = np.ndarray[Any, Any]

MOST_PREDICTED = 5
"""How many of the most probable classes of an item are kept; the second accuracy is the one among so many."""
OUTCOMES_SUFFIX, DETECTIONS_SUFFIX = ".safetensors", ".coco.json.gz"
_LARGEST_FILE = 2**32
_MOST_BYTES = 2 * 2**30  # of detections: unpacked, a small file may be of any size
_MOST_PACKED = 200  # times its size; detections are packed to a tenth, nothing but zeros to a thousandth
_ABOUT, _DETECTIONS = "about", "detections_sha256"
_AGAIN = "run the command again that made them"


@dataclass(frozen=True)
class Outcomes:
    """What became of every test item: ``arrays`` by name, and the ``detections`` in COCO's results format, if any."""

    arrays: Mapping[str, Array]
    detections: list[dict[str, Any]] | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    """What the numbers are of: encoder's checksum, protocol, seed, image set with its fingerprint and its reading."""


def hits(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Which items of a classification have their label first ("top1"), and among the first five: bool ``[N]``.

    The second is left out unless there are known to be more than five classes: of five it is 100 whatever the features
    are.
    """
    right = arrays["predicted"] == arrays["true"][:, None]
    more = "classes" in arrays and int(arrays["classes"][0]) > MOST_PREDICTED
    return {f"top{k}": right[:, :k].any(axis=1) for k in ((1, MOST_PREDICTED) if more else (1,))}


def detections_file(path: Path) -> Path:
    """Where the detections of an evaluation are, given the file of its outcomes."""
    return path.with_suffix(DETECTIONS_SUFFIX)


@dataclass(frozen=True)
class PackedOutcomes:
    """Outcomes as bytes: the ``content`` of their file, and of that of the ``detections``, if any."""

    content: bytes
    detections: bytes | None

    @property
    def sha256(self) -> str:
        """The digest that a record tells."""
        return hashlib.sha256(self.content).hexdigest()

    def write(self, path: Path) -> None:
        """Write the file, then that of the detections: these are never there without the file that names them."""
        write_atomically(path, self.content)
        if self.detections is not None:
            write_atomically(detections_file(path), self.detections)


def pack(outcomes: Outcomes, about: Mapping[str, str]) -> PackedOutcomes:
    """The outcomes as bytes; ``about`` says what the numbers are of."""
    known, packed = dict(about), None
    if outcomes.detections is not None:
        packed = gzip.compress(json.dumps(outcomes.detections, separators=(",", ":")).encode(), mtime=0)
        known[_DETECTIONS] = hashlib.sha256(packed).hexdigest()
    # All in one entry: safetensors writes several in an order that changes from time to time.
    metadata = {_ABOUT: json.dumps(known, sort_keys=True)}
    content = save({name: np.ascontiguousarray(a) for name, a in outcomes.arrays.items()}, metadata)
    return PackedOutcomes(content, packed)


def write_outcomes(path: Path, outcomes: Outcomes, about: Mapping[str, str]) -> str:
    """Write the outcomes to a file, and their detections beside it; the SHA-256 of the file."""
    packed = pack(outcomes, about)
    packed.write(path)
    return packed.sha256


def read_outcomes(path: Path, sha256: str, with_detections: bool = True) -> Outcomes:
    """The outcomes in a file. Raises InputError if it, or that of its detections, is missing or not as it was.

    Without ``with_detections`` the second file is left alone, and ``detections`` are None.
    """
    content = _content(path, sha256)
    about = _about(path)
    try:
        arrays = dict(sorted(load(content).items()))
    except (
        SafetensorError,
        ValueError,
        TypeError,
        KeyError,
    ) as error:  # the last three are of a type numpy has not
        raise InputError("the outcomes cannot be read", where=path, next_step=_AGAIN) from error
    packed = about.pop(_DETECTIONS, None)
    detections = None if packed is None or not with_detections else _unpacked(detections_file(path), packed)
    return Outcomes(arrays, detections, about)


def is_outcomes(path: Path) -> bool:
    """Whether a file is one that `write_outcomes` made, of whatever evaluation."""
    try:
        return bool(_about(path))
    except InputError:
        return False


def is_whole(path: Path, sha256: str) -> bool:
    """Whether the outcomes, detections included, are there as they were written.

    A file that has not changed since it was last asked for is not read again.
    """
    try:
        if _known_digest(path) != sha256:
            return False
        packed = _about(path).get(_DETECTIONS)
        return packed is None or _known_digest(detections_file(path)) == packed
    except (OSError, InputError):
        return False


def _known_digest(path: Path) -> str:
    stat = path.stat()
    return _digest(path.absolute(), (stat.st_ino, stat.st_size, stat.st_mtime_ns))


@cache
def _digest(path: Path, state: tuple[int, int, int]) -> str:
    """The SHA-256 of a file in some state: another state is another call."""
    return hashlib.sha256(read_document(path, _LARGEST_FILE)).hexdigest()


def _about(path: Path) -> dict[str, str]:
    """What a file says that it is of; nothing if it says nothing."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = from_json((file.metadata() or {}).get(_ABOUT, "{}"))
        return {str(name): str(value) for name, value in about.items()}
    except (OSError, SafetensorError, ValueError, AttributeError) as error:
        raise InputError("the outcomes cannot be read", where=path, next_step=_AGAIN) from error


def _content(path: Path, sha256: str) -> bytes:
    try:
        content = read_document(path, _LARGEST_FILE)
    except OSError as error:
        raise InputError("the outcomes are not there", where=path, next_step=_AGAIN) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError("the outcomes are not those of their record", where=path, next_step=_AGAIN)
    return content


def _unpacked(path: Path, sha256: str) -> list[dict[str, Any]]:
    packed = _content(path, sha256)
    try:
        with gzip.open(io.BytesIO(packed)) as file:
            most = min(_MOST_BYTES, _MOST_PACKED * len(packed))
            text = file.read(most + 1)
        if len(text) > most:
            raise ValueError(f"they are more than {most} bytes, in a file of {len(packed)}")
        detections = from_json(text)
        if not isinstance(detections, list):
            raise ValueError("they are no list")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InputError(f"the detections cannot be read: {error}", where=path, next_step=_AGAIN) from error
    return detections
