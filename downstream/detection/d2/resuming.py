"""Resuming a training with Detectron2's own checkpointer."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from twinbench.downstream.checkpoints import Checkpoints, Stateful, TrainingState
from twinbench.foundation.checkpoint import newest, read_state, save_content
from twinbench.foundation.errors import RunFailure
from twinbench.foundation.ranks import everyones, from_main

_NAME = "model"


def training(checkpoints: Checkpoints, model: nn.Module, **parts: Stateful) -> TrainingState:
    """What `Checkpoints.training` does, with Detectron2's checkpointer: it writes model and parts, and loads them.

    Its files take their place whole, with their digest in the name, as all our checkpoints do. Every rank loads the
    file, so all machines must see it; raises RunFailure otherwise.
    """
    folder = checkpoints.folder("training")
    path = from_main(None if folder is None else _newest(checkpoints, folder))
    checkpointer = DetectionCheckpointer(model, **parts)
    first = 0 if path is None else _loaded(checkpointer, path)

    def write(step: int) -> None:
        assert folder is not None
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as place:
            checkpointer.save_dir = place
            checkpointer.save(_NAME, identity=checkpoints.identity, step=step)
            content = Path(place, f"{_NAME}.pth").read_bytes()
        save_content(folder, step, content)

    return TrainingState(first, None if folder is None else write)


def _newest(checkpoints: Checkpoints, folder: Path) -> Path | None:
    """The newest intact checkpoint, unless it is another evaluation's."""
    found = newest(folder)
    if found is not None and read_state(*found).get("identity") != checkpoints.identity:
        checkpoints.refuse(folder)
        return None
    return None if found is None else found[0]


def _loaded(checkpointer: DetectionCheckpointer, path: Path) -> int:
    """Load a checkpoint; returns after how many steps it was written."""
    if not all(everyones(path.is_file())):
        raise RunFailure(
            "this checkpoint is not to be seen from every machine, so the training cannot go on from it",
            where=path,
            next_step="use a folder that all machines share, or delete the checkpoint to begin anew",
        )
    rest: dict[str, Any] = checkpointer.load(str(path))
    return int(rest["step"])
