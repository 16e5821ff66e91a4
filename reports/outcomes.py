"""What became of each test item, read for the statistics of a cell. `downstream.outcomes` writes these files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
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
        accuracy = _ACCURACY.fullmatch(metric)
        if accuracy and all("predicted" in each for each in arrays):
            true = arrays[0]["true"]
            if any(not np.array_equal(each["true"], true) for each in arrays):
                return alone
            k = int(accuracy[1])
            hits = [(each["predicted"][:, :k] == true[:, None]).any(axis=1) for each in arrays]
            return of_items(100.0 * np.stack(hits))
        counts = f"right/{metric}"
        if all(counts in each for each in arrays):  # over draws of the labelled images
            by_item = [100.0 * each[counts] / each["draws"][0] for each in arrays]
            by_draw = [100.0 * each[f"by_draw/{metric}"] / len(each[counts]) for each in arrays]
            return of_draws(np.stack(by_item), np.stack(by_draw))
        name = f"replicates/{metric}"
        if not all(name in each for each in arrays):
            return alone
        return of_replicates(np.array(values), np.stack([each[name] for each in arrays]), records[0].n or 0)

    def _arrays(self, sha256: str) -> Mapping[str, Array]:
        if sha256 not in self._read:
            self._read[sha256] = _load(self._paths[sha256], sha256)
        return self._read[sha256]


def _load(path: Path, sha256: str) -> Mapping[str, Array]:
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
        arrays: Mapping[str, Array] = load(content)
    except SafetensorError as error:
        raise InputError(
            "the outcomes cannot be read", where=path, next_step="run the study again"
        ) from error
    return arrays
