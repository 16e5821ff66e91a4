"""What may be asked of Ray, free of Ray itself: only `harness.ray_executor` imports that."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from twinbench.foundation.errors import InputError

HOW_TO_INSTALL = "python -m pip install 'twinbench[ray]'"


@dataclass(frozen=True)
class RayOptions:
    """Where Ray does the jobs, and what each may take.

    ``address`` is that of a cluster; without it Ray is started on this machine. A training computes with ``devices``
    processes on each of ``nodes`` machines.
    """

    address: str | None = None
    devices: int = 1
    nodes: int = 1

    @property
    def ranks(self) -> int:
        """The processes of a training."""
        return self.devices * self.nodes


def asked_of_ray(
    executor: str, address: str | None, devices: int | None, nodes: int | None, debug: bool
) -> RayOptions | None:
    """What a command line asks of Ray, None if nothing; raises InputError where that makes no sense."""
    given = {"address": address, "devices": devices, "nodes": nodes}
    named = [name for name, value in given.items() if value is not None]
    if executor != "ray":
        if named:
            raise InputError(
                "only Ray takes this", where=named[0], next_step="add --executor ray, or leave it out"
            )
        return None
    if debug:
        raise InputError(
            "with --debug one job at a time is done, in this process",
            where="executor ray",
            next_step="leave out one of the two",
        )
    return RayOptions(address, devices or 1, nodes or 1)


def check_ray(options: RayOptions) -> None:
    """Raise InputError if Ray is not installed, or the address is one of its client, which has no run store."""
    if ray_version() is None:
        raise InputError("Ray is not installed", where="executor ray", next_step=HOW_TO_INSTALL)
    if options.address is not None and "://" in options.address:
        raise InputError(
            f"{options.address!r} is the address of Ray's client; this command is itself a part of the cluster",
            where="address",
            next_step="run the command on a node of the cluster, with 'auto' or HOST:PORT",
            option="address",
        )


def ray_version() -> str | None:
    """The version of Ray that is installed, if it is."""
    try:
        return version("ray")
    except PackageNotFoundError:
        return None


def prepare_for_ray(options: RayOptions) -> None:
    """Set what Ray reads when it is imported: it tells nobody of its use, and alone on this machine it stays there.

    Without the last of the variables, named for the systems where it is the default, it listens to the network.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_COLOR_PREFIX"] = "0"  # what it passes on from nodes is for logs, too
    if options.address is None:
        # jobs give way to nothing that the command does not give way to, as with local workers
        os.environ.setdefault("RAY_worker_niceness", "0")
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
