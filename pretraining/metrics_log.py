"""What a run writes down while it trains: metrics.jsonl always, TensorBoard events when asked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from twinbench.foundation.documents import from_json
from twinbench.foundation.errors import InputError
from twinbench.foundation.files import check_fences, write_atomically

_ROWS = 200
_PROBES = 10


def wants_row(step: int, total_steps: int) -> bool:
    """Whether a step gets a row."""
    return step % max(1, total_steps // _ROWS) == 0 or wants_probe(step, total_steps)


def wants_probe(step: int, total_steps: int) -> bool:
    """Whether collapse is to be measured after a step: at each tenth of the run and at its end."""
    return (step + 1) % max(1, total_steps // _PROBES) == 0 or step == total_steps - 1


class MetricsLog:
    """At most a few hundred rows a run; rows past a resumed step are dropped first.

    Raises InputError if TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, first_step: int, tensorboard: bool = False) -> None:
        self._path = folder / "metrics.jsonl"
        rows = (
            self._path.read_text(encoding="utf-8", errors="replace").splitlines()
            if self._path.exists() and first_step > 0
            else []
        )
        kept = [row for row in rows if _step_of(row) < first_step]
        write_atomically(self._path, "".join(row + "\n" for row in kept).encode())
        self._writer = _tensorboard(folder / "tensorboard", first_step) if tensorboard else None

    def write(self, row: dict[str, Any]) -> None:
        """Append a row, which has a ``step``."""
        check_fences(self._path)
        with self._path.open("a") as handle:
            handle.write(json.dumps(row) + "\n")
        if self._writer is not None:
            for name, value in row.items():
                self._writer.add_scalar(name, value, row["step"])
            self._writer.flush()


def _tensorboard(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "TensorBoard is not installed",
            where=folder,
            next_step="install it: pip install tensorboard; metrics.jsonl is written in any case",
        ) from error
    return SummaryWriter(str(folder), purge_step=first_step)


def _step_of(row: str) -> float:
    """The step of a log row; a row cut short by a kill counts as past everything."""
    try:
        return float(from_json(row)["step"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return math.inf
