"""What became of each test item, read for the statistics of a cell. `downstream.outcomes` writes these files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from twinbench.foundation.errors import InputError
from twinbench.reports.records import Record, RunInfo
from twinbench.reports.statistics import Sample, of_draws, of_items, of_replicates, of_values

Array = np.ndarray[Any, Any]
_ACCURACY = re.compile(r"top(\d+)")
_ITEMS = ("rows", "true", "truth")
"""Arrays that are of the test items alone, whatever was made of them."""


@dataclass(frozen=True)
class ItemSample(Sample):
    """A sample that knows its test items: those of equal ``identity`` are the same, and in the same order."""

    identity: str = ""


def identity_of(sample: Sample) -> str:
    """What tells the test items of a sample from others; empty where nothing does."""
    return sample.identity if isinstance(sample, ItemSample) else ""


@dataclass(frozen=True)
class _File:
    """The arrays of a file of outcomes, and the fingerprint of the image set that they are of, empty if unknown."""

    arrays: Mapping[str, Array]
    image_set: str

    def identity(self, items: int) -> str:
        """The SHA-256 of what is known of the test items: their image set, number, places and classes."""
        digest = hashlib.sha256(f"{self.image_set} {items}".encode())
        for name in _ITEMS:
            if name in self.arrays:
                digest.update(name.encode() + np.ascontiguousarray(self.arrays[name]).tobytes())
        return digest.hexdigest()


class OutcomeFiles:
    """The files of outcomes of some runs, each read once, when a number first asks for it."""

    def __init__(self, runs: Iterable[RunInfo] = ()) -> None:
        self._paths = {sha256: path for run in runs for sha256, path in run.outcomes.items()}
        self._read: dict[str, _File] = {}

    def sample(self, records: Sequence[Record]) -> Sample:
        """The sample of one number, a record a seed; without test items where they are not known of every seed.

        Nor are they where the seeds were not measured on the same items. Raises InputError for a file that is not what
        its record says.
        """
        values = [record.value for record in records if record.value is not None]
        alone = of_values(values)
        if len(values) != len(records) or not all(record.outcomes in self._paths for record in records):
            return alone
        files = [self._file(record.outcomes) for record in records]
        identities = {file.identity(record.n or 0) for file, record in zip(files, records, strict=True)}
        found = self._of_items(records, [file.arrays for file in files]) if len(identities) == 1 else None
        return alone if found is None else ItemSample(**vars(found), identity=identities.pop())

    def _of_items(self, records: Sequence[Record], arrays: Sequence[Mapping[str, Array]]) -> Sample | None:
        """The sample of a number from the arrays of each seed, or None where these tell nothing of its metric."""
        metric = records[0].metric
        accuracy = _ACCURACY.fullmatch(metric)
        if accuracy and all("predicted" in each for each in arrays):
            k = int(accuracy[1])
            hits = [(each["predicted"][:, :k] == each["true"][:, None]).any(axis=1) for each in arrays]
            return of_items(100.0 * np.stack(hits))
        counts = f"right/{metric}"
        if all(counts in each for each in arrays):  # over draws of the labelled images
            by_item = [100.0 * each[counts] / each["draws"][0] for each in arrays]
            by_draw = [100.0 * each[f"by_draw/{metric}"] / len(each[counts]) for each in arrays]
            return of_draws(np.stack(by_item), np.stack(by_draw))
        name = f"replicates/{metric}"
        if not all(name in each for each in arrays):
            return None
        values = np.array([record.value for record in records], np.float64)
        return of_replicates(values, np.stack([each[name] for each in arrays]), records[0].n or 0)

    def _file(self, sha256: str) -> _File:
        if sha256 not in self._read:
            self._read[sha256] = _load(self._paths[sha256], sha256)
        return self._read[sha256]


def _load(path: Path, sha256: str) -> _File:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError("the outcomes are not there", where=path, next_step="run the study again") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(
            "the outcomes are not those of their record",
            where=path,
            next_step="delete this file and the record beside it, and run the study again",
        )
    try:
        return _File(load(content), _image_set(content))
    except (SafetensorError, ValueError) as error:
        raise InputError(
            "the outcomes cannot be read", where=path, next_step="run the study again"
        ) from error


def _image_set(content: bytes) -> str:
    """The fingerprint of the image set in the head of a file of outcomes: eight bytes of its length, then JSON."""
    head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    about = json.loads(head.get("__metadata__", {}).get("about", "{}"))
    return str(about.get("image_set_fingerprint", "")) if isinstance(about, dict) else ""
