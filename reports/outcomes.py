"""What became of each test item, read for the statistics of a cell (`foundation.outcomes` has the format)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from twinbench.foundation.errors import InputError
from twinbench.foundation.outcomes import Array, Outcomes, hits, read_outcomes
from twinbench.reports.records import Record, RunInfo
from twinbench.reports.statistics import Sample, of_draws, of_items, of_replicates, of_values

_ITEMS = ("rows", "true", "truth")
"""Arrays that are of the test items alone, whatever was made of them."""


@dataclass(frozen=True)
class ItemSample(Sample):
    """A sample that knows its test items: those of equal ``identity`` are the same, and in the same order."""

    identity: str = ""


def identity_of(sample: Sample) -> str:
    """What tells the test items of a sample from others; empty where nothing does."""
    return sample.identity if isinstance(sample, ItemSample) else ""


def _identity(outcomes: Outcomes, items: int) -> str:
    """The SHA-256 of what is known of the test items: their image set, number, places and classes."""
    digest = hashlib.sha256(f"{outcomes.about.get('image_set_fingerprint', '')} {items}".encode())
    for name in _ITEMS:
        if name in outcomes.arrays:
            digest.update(name.encode() + np.ascontiguousarray(outcomes.arrays[name]).tobytes())
    return digest.hexdigest()


class OutcomeFiles:
    """The files of outcomes of some runs, each read once, when a number first asks for it."""

    def __init__(self, runs: Iterable[RunInfo] = ()) -> None:
        self._paths = {sha256: path for run in runs for sha256, path in run.outcomes.items()}
        self._read: dict[str, Outcomes] = {}

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
        identities = {_identity(file, record.n or 0) for file, record in zip(files, records, strict=True)}
        try:
            found = self._of_items(records, [file.arrays for file in files]) if len(identities) == 1 else None
        except (LookupError, ValueError, TypeError) as error:
            raise InputError(
                f"the arrays of these outcomes are missing or do not fit each other: {error}",
                where=self._paths[records[0].outcomes],
                next_step="evaluate the encoder again",
            ) from error
        return alone if found is None else ItemSample(**vars(found), identity=identities.pop())

    def _of_items(self, records: Sequence[Record], arrays: Sequence[Mapping[str, Array]]) -> Sample | None:
        """The sample of a number from the arrays of each seed, or None where these tell nothing of its metric."""
        metric = records[0].metric
        classified = [hits(each).get(metric) if "predicted" in each else None for each in arrays]
        right = [each for each in classified if each is not None]
        if len(right) == len(arrays):
            return of_items(100.0 * np.stack(right))
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

    def _file(self, sha256: str) -> Outcomes:
        if sha256 not in self._read:
            self._read[sha256] = read_outcomes(self._paths[sha256], sha256, with_detections=False)
        return self._read[sha256]
