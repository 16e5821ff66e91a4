"""What became of every test item under a protocol: kept beside the record, and enough to compute its numbers again.

One file of safetensors an evaluation. A classification has ``predicted`` ``[n, k]``, the (at most five) most probable
classes, ``true`` ``[n]`` and ``rows`` ``[n]``, the places of the images in the test split; support vector machines have
``scores`` ``[n, classes]`` and ``truth`` ``[n, classes]``. A metric that is no mean of items has ``replicates/METRIC``
``[r]``, its value on resampled test sets, the same for all that is measured on a test split of as many images. What a
detector found is in a second file, in COCO's own results format. Reports read the first file without this module.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from twinbench.foundation.errors import InputError
from twinbench.foundation.files import write_atomically

Array = np.ndarray[Any, Any]

REPLICATES = 200
"""How many resampled test sets a metric that is no mean of items is computed on."""
_SEED = 0
_MOST_CLASSES = 5
_ABOUT, _DETECTIONS = "about", "detections_sha256"
_AGAIN = "delete it and its record, and run the command again that made them"


@dataclass(frozen=True)
class Outcomes:
    """What became of every test item: ``arrays`` by name, and the ``detections`` in COCO's results format, if any."""

    arrays: Mapping[str, Array]
    detections: list[dict[str, Any]] | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    """What the numbers are of: encoder's checksum, protocol, fingerprint of the image set, seed."""


def classified(scores: Array, labels: Array, rows: Array) -> Outcomes:
    """The outcomes of class ``scores`` ``[n, classes]`` for ``labels`` ``[n]`` of the test images ``rows`` ``[n]``.

    Equal scores rank by class number.
    """
    classes = scores.shape[1]
    kind = np.int16 if classes <= np.iinfo(np.int16).max else np.int32
    ranking = np.argsort(-scores, axis=1, kind="stable")[:, :_MOST_CLASSES]
    return Outcomes(
        {
            "predicted": ranking.astype(kind),
            "true": labels.astype(kind),
            "rows": rows.astype(np.int32),
            "classes": np.array([classes], np.int32),
        }
    )


def resamples(items: int) -> Array:
    """How often each of ``items`` test items is in each resampled test set, int64 ``[REPLICATES, items]``."""
    return np.random.default_rng(_SEED).multinomial(items, np.full(items, 1 / items), size=REPLICATES)


def replicates(items: int, metrics: Callable[[Array], Mapping[str, float]]) -> dict[str, Array]:
    """Arrays of ``metrics``, which computes them from how often each test item is there, on resampled test sets."""
    found = [metrics(weights) for weights in resamples(items)]
    return {f"replicates/{name}": np.array([each[name] for each in found]) for name in found[0]}


def write_outcomes(path: Path, outcomes: Outcomes, about: Mapping[str, str]) -> str:
    """Write the file, that of the detections first; the SHA-256 of the file. ``about`` says what the numbers are of."""
    known = dict(about)
    if outcomes.detections is not None:
        packed = gzip.compress(json.dumps(outcomes.detections, separators=(",", ":")).encode(), mtime=0)
        write_atomically(detections_file(path), packed)
        known[_DETECTIONS] = hashlib.sha256(packed).hexdigest()
    # All in one entry: safetensors writes several in an order that changes from time to time.
    metadata = {_ABOUT: json.dumps(known, sort_keys=True)}
    content = save({name: np.ascontiguousarray(a) for name, a in outcomes.arrays.items()}, metadata)
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()


def detections_file(path: Path) -> Path:
    """Where the detections of an evaluation are, given the file of its outcomes."""
    return path.with_suffix(".coco.json.gz")


def read_outcomes(path: Path, sha256: str) -> Outcomes:
    """The outcomes in a file. Raises InputError if it, or that of its detections, is missing or not as it was."""
    _content(path, sha256)
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            about = json.loads((file.metadata() or {})[_ABOUT])
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError("the outcomes cannot be read", where=path, next_step=_AGAIN) from error
    detections = None
    if _DETECTIONS in about:
        packed = _content(detections_file(path), about.pop(_DETECTIONS))
        detections = json.loads(gzip.decompress(packed))
    return Outcomes(arrays, detections, about)


def _content(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError("the outcomes are not there", where=path, next_step=_AGAIN) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError("the outcomes are not those of their record", where=path, next_step=_AGAIN)
    return content
