"""What an evaluation that trains keeps while it is under way, so that one that was killed ends with the same bits."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch

from twinbench.foundation.checkpoint import load_latest, remove_checkpoints, save_checkpoint
from twinbench.foundation.collectives import rank
from twinbench.foundation.ranks import from_main

_SECONDS, _SHARE = 30.0, 1 / 20  # between two checkpoints, and of the time that writing them takes
_log = logging.getLogger(__name__)


class Stateful(Protocol):
    """A module or an optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """Its state: tensors and plain containers."""

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Take over a state."""


class RandomState:
    """Torch's global generators, as a part of a training that draws from them as it goes; that of a GPU included."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def state_dict(self) -> dict[str, Any]:
        """Where they are now."""
        of_gpu = {"cuda": torch.cuda.get_rng_state(self._device)} if self._device.type == "cuda" else {}
        return {"cpu": torch.get_rng_state(), **of_gpu}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put them where they were; that of a GPU only where there is one now as there was then."""
        torch.set_rng_state(state["cpu"])
        if self._device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self._device)


class Checkpoints:
    """The checkpoints of one evaluation, below ``folder``; with None, the default, nothing is kept.

    ``identity`` is JSON: everything that its trained state depends on. A checkpoint of another identity is foreign.
    """

    def __init__(self, folder: Path | None = None, identity: Mapping[str, Any] | None = None) -> None:
        self._folder, self.identity = folder, json.dumps(identity or {}, sort_keys=True)

    def training(self, name: str, **parts: Stateful) -> TrainingState:
        """One of the evaluation's trainings, with ``parts`` as its newest intact checkpoint has them.

        Without one they stay as they are. A damaged or foreign checkpoint is named in a warning and removed. Every rank
        must call this; rank 0 reads.
        """
        folder = self.folder(name)
        state = from_main(None if folder is None else self._load(folder))
        for part, content in ({} if state is None else state["parts"]).items():
            parts[part].load_state_dict(content)

        def write(step: int) -> None:
            assert folder is not None
            kept = {name: part.state_dict() for name, part in parts.items()}
            save_checkpoint(folder, step, {"identity": self.identity, "step": step, "parts": kept})

        return TrainingState(0 if state is None else state["step"], None if folder is None else write)

    def folder(self, name: str) -> Path | None:
        """Where the checkpoints of a training are; None where there are none, and on all ranks but the first."""
        return None if self._folder is None or rank() else self._folder / name

    def refuse(self, folder: Path) -> None:
        """Remove the checkpoints of another evaluation that are found in a folder, and say so."""
        _log.warning("the checkpoint in %s is of another evaluation; training begins anew", folder)
        remove_checkpoints(folder)

    def remove(self) -> None:
        """Delete all of them: what they were for has its record."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            with suppress(OSError):  # other evaluations have theirs there
                self._folder.parent.rmdir()

    def _load(self, folder: Path) -> dict[str, Any] | None:
        state = load_latest(folder)
        if state is not None and state.get("identity") != self.identity:
            self.refuse(folder)
            return None
        return state


class TrainingState:
    """A training that can be gone on with after ``first`` steps, which are behind it already.

    ``write`` writes a checkpoint of the state after so many steps; None where none is kept.
    """

    def __init__(self, first: int, write: Callable[[int], None] | None) -> None:
        self.first, self._write = first, write
        self._due = time.monotonic() + _SECONDS

    def keep(self, step: int) -> None:
        """Write a checkpoint of the state after ``step`` steps if the last one is old, on rank 0: all have the same."""
        started = time.monotonic()
        if self._write is None or started < self._due:
            return
        self._write(step)
        now = time.monotonic()
        self._due = now + max(_SECONDS, (now - started) / _SHARE)
