"""Detectron2's own launcher: a process for every device of this machine."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable

from detectron2.engine import launch
from torch.multiprocessing import ProcessExitedException

from twinbench.foundation.errors import RunFailure

_MOMENT = 5.0  # seconds


def launch_ranks(main: Callable[[], None], devices: int, nodes: int) -> int:
    """Run ``main`` in every rank of this machine and wait; each has this process's command line and a process group.

    Returns the exit code of the first rank that fails, which says why, or 0. On several machines ``NODE_RANK``,
    ``MASTER_ADDR`` and ``MASTER_PORT`` must be set. Raises RunFailure if a rank is killed.
    """
    address = "auto" if nodes == 1 else f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        launch(main, devices, nodes, int(os.environ.get("NODE_RANK", "0")), address)
    except KeyboardInterrupt:
        _end_ranks()
        raise
    except ProcessExitedException as error:
        if error.exit_code is not None and error.exit_code > 0:
            return int(error.exit_code)
        raise RunFailure(
            f"the process of device {error.error_index} of this machine was killed by {error.signal_name}",
            next_step="run the same command again: it goes on from its last checkpoint",
        ) from error
    return 0


def _end_ranks() -> None:
    """End the ranks as this process was asked to end; those that have been asked as well are given a moment."""
    ranks = multiprocessing.active_children()
    for rank in ranks:
        rank.join(_MOMENT)
        rank.terminate()
    for rank in ranks:
        rank.join(_MOMENT)
        rank.kill()  # it waits for others in a collective
