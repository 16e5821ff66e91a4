"""What became of each test item, read for the statistics of a cell (`foundation.outcomes` has the format)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from twinbench.foundation.outcomes import Array, hits, read_outcomes
from twinbench.reports.records import Record, RunInfo
from twinbench.reports.statistics import Sample, of_items, of_replicates, of_values


class OutcomeFiles:
    """The files of outcomes of some runs, each read once, when a number first asks for it."""

    def __init__(self, runs: Iterable[RunInfo] = ()) -> None:
        self._paths = {sha256: path for run in runs for sha256, path in run.outcomes.items()}
        self._read: dict[str, Mapping[str, Array]] = {}

    def sample(self, records: Sequence[Record]) -> Sample:
        """The sample of one number, a record a seed; without test items where they are not known of every seed.

        Nor are they where the seeds were not measured on the same items. Raises InputError for a file that is not what
        its record says.
        """
        values = [record.value for record in records if record.value is not None]
        alone = of_values(values)
        if len(values) != len(records) or not all(record.outcomes in self._paths for record in records):
            return alone
        arrays = [self._arrays(record.outcomes) for record in records]
        metric = records[0].metric
        classified = [hits(each).get(metric) if "predicted" in each else None for each in arrays]
        right = [each for each in classified if each is not None]
        if len(right) == len(arrays):
            alike = all(np.array_equal(each["true"], arrays[0]["true"]) for each in arrays)
            return of_items(100.0 * np.stack(right)) if alike else alone
        counts = f"right/{metric}"
        if all(counts in each for each in arrays):  # over draws of the labelled images
            return of_items(np.stack([100.0 * each[counts] / each["draws"][0] for each in arrays]))
        name = f"replicates/{metric}"
        if not all(name in each for each in arrays):
            return alone
        return of_replicates(np.array(values), np.stack([each[name] for each in arrays]), records[0].n or 0)

    def _arrays(self, sha256: str) -> Mapping[str, Array]:
        if sha256 not in self._read:
            self._read[sha256] = read_outcomes(self._paths[sha256], sha256, with_detections=False).arrays
        return self._read[sha256]
