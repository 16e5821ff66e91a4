"""Detectron2's own launcher: a process for every device of this machine."""

from __future__ import annotations

import os
from collections.abc import Callable

from detectron2.engine import launch
from torch.multiprocessing import ProcessExitedException

from twinbench.foundation.errors import RunFailure


def launch_ranks(main: Callable[[], None], devices: int, nodes: int) -> None:
    """Run ``main`` in every rank of this machine and wait; each has this process's command line and a process group.

    On several machines ``NODE_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT`` must be set. Raises RunFailure, with the exit
    code of the first rank that fails, which says why.
    """
    address = "auto" if nodes == 1 else f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        launch(main, devices, nodes, int(os.environ.get("NODE_RANK", "0")), address)
    except ProcessExitedException as error:
        failure = RunFailure(
            f"rank {error.error_index} of this machine ended: {error.signal_name or 'see what it said'}",
            next_step="mend what it says, and run the same command again: it goes on from its last checkpoint",
        )
        failure.exit_code = error.exit_code if error.exit_code and error.exit_code > 0 else failure.exit_code
        raise failure from error
