"""What a training has taken: wall-clock time, and energy where the device counts it.

A GPU is read by NVML (the package nvidia-ml-py, if it is installed), a processor by its RAPL counters, which Linux
shows below ``/sys/class/powercap`` and most machines to the administrator only. Both count everything that the device
does, whoever asked for it. Where there is no counter there is no number: nothing is estimated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")
_READ_EVERY_SECONDS = 10.0  # a counter of a busy processor starts anew within the hour, or within minutes
_MICROJOULES, _MILLIJOULES = 1e-6, 1e-3


@dataclass
class Counter:
    """A device's count of energy in units of ``unit`` joules: ``read`` gives it, and after ``range`` it is 0 again."""

    read: Callable[[], int]
    unit: float
    range: int | None = None
    last: int = field(init=False)

    def __post_init__(self) -> None:
        self.last = self.read()

    def joules(self) -> float:
        """The energy since the last call. Raises what reading raises."""
        now = self.read()
        difference = now - self.last
        if difference < 0 and self.range is not None:
            difference += self.range + 1
        self.last = now
        return difference * self.unit


class Spent:
    """Seconds and joules of a training on one process, those before an interruption included.

    ``joules`` is NaN where they are not known, and ``unknown`` then says why.
    """

    def __init__(self, counters: list[Counter] | None = None, unknown: str = "") -> None:
        self._earlier, self._started = 0.0, time.monotonic()
        self._counters, self.unknown = counters or [], unknown
        self.joules = math.nan if unknown else 0.0
        self._read_at = self._started

    @property
    def seconds(self) -> float:
        """Seconds of all parts of the training."""
        return self._earlier + time.monotonic() - self._started

    def keep_count(self, at_once: bool = False) -> None:
        """Read the counters, unless that was a moment ago."""
        if not at_once and time.monotonic() - self._read_at < _READ_EVERY_SECONDS:
            return
        self._read_at = time.monotonic()
        try:
            self.joules += math.fsum(counter.joules() for counter in self._counters)
        except Exception as error:  # NVML has exceptions of its own
            self._counters, self.joules = [], math.nan
            self.unknown = f"the device's counter of energy could not be read: {error}"

    def go_on(self, state: Mapping[str, Any], is_main: bool) -> None:
        """Add what the earlier parts of a resumed training took, whose energy the main process has for all."""
        self._earlier += float(state["seconds"])
        joules = float(state["joules"])
        if math.isnan(joules) and not self.unknown:
            self.joules, self.unknown = (
                math.nan,
                "a part of the training before an interruption was not measured",
            )
        elif is_main:
            self.joules += joules


def spent_on(device: torch.device, counts: bool) -> Spent:
    """A count that begins now, of the energy of a GPU or of the machine's processors.

    One process for each GPU ``counts``, and one for each machine where there is none: the others add nothing.
    """
    if not counts:
        return Spent()
    try:
        counters = _of_gpu(device) if device.type == "cuda" else of_processors(POWERCAP)
    except Exception as error:  # no nvidia-ml-py, no permission, an old GPU
        place = "the GPU" if device.type == "cuda" else "the processor"
        return Spent(unknown=f"{place} does not tell its energy: {_in_words(error)}")
    return Spent(counters)


def _of_gpu(device: torch.device) -> list[Counter]:
    import pynvml

    pynvml.nvmlInit()
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    return [Counter(lambda: int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)), _MILLIJOULES)]


def of_processors(folder: Path) -> list[Counter]:
    """The counters of all processor packages below a powercap folder; OSError if there is none or it cannot be read."""
    packages = [
        place
        for place in sorted(folder.glob("intel-rapl:*"))
        if (place / "name").read_text().startswith("package")
    ]
    if not packages:
        raise FileNotFoundError(f"no counter of a processor package below {folder}")
    return [
        Counter(
            partial(_number_in, place / "energy_uj"),
            _MICROJOULES,
            _number_in(place / "max_energy_range_uj"),
        )
        for place in packages
    ]


def _number_in(file: Path) -> int:
    return int(file.read_text())


def _in_words(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return "the package nvidia-ml-py is not installed"
    if isinstance(error, PermissionError):
        return f"{error.filename} may not be read"
    return str(error)
