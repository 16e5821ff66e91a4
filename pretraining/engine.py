"""Devices, nodes, precision and averaged gradients: the one module that knows Lightning Fabric.

Nothing here changes what a run computes, apart from the order of floating-point sums, so `Hardware` is no part
of a recipe. Precision is: it changes the numbers.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import (
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from twinbench.foundation.collectives import all_reduce_max_nograd, rank, world_size
from twinbench.foundation.cores import usable_cores
from twinbench.foundation.errors import InputError
from twinbench.foundation.norms import synchronise_batch_norms
from twinbench.pretraining.memory import keep_freed_memory
from twinbench.pretraining.method import Method

_FABRIC_PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}

_LOCAL_RANK = "LOCAL_RANK"  # the variable by which Fabric tells the ranks that it starts which they are

# the older name is deprecated where there is a newer one
_DDP_OPTIONS = inspect.signature(DistributedDataParallel).parameters
_BUFFER_SYNC = "forward_sync_buffers" if "forward_sync_buffers" in _DDP_OPTIONS else "broadcast_buffers"

# Fabric announces the precision of every instance; the recipe already says it
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Hardware:
    """Where a run computes: ``devices`` processes on each of ``nodes`` machines, compiled or not."""

    devices: int = 1
    nodes: int = 1
    compile: bool = False

    @property
    def ranks(self) -> int:
        """Processes in all."""
        return self.devices * self.nodes


ONE_DEVICE = Hardware()


def hardware_here(devices: int | None, nodes: int | None, compile: bool = False) -> Hardware:
    """What was asked for, or else what torchrun or SLURM started; a single device otherwise."""
    found_devices, found_nodes = 1, 1
    if TorchElasticEnvironment.detect():
        found_devices = int(os.environ["LOCAL_WORLD_SIZE"])
        found_nodes = int(os.environ["WORLD_SIZE"]) // found_devices
    elif SLURMEnvironment.detect() and "SLURM_STEP_ID" in os.environ:  # srun has started the tasks
        found_nodes = int(os.environ.get("SLURM_NNODES", "1"))
        found_devices = int(os.environ["SLURM_NTASKS"]) // found_nodes
    return Hardware(devices or found_devices, nodes or found_nodes, compile)


class Engine:
    """Runs one method on the hardware; made by `launch`."""

    def __init__(self, fabric: Fabric, hardware: Hardware) -> None:
        self._fabric = fabric
        self.hardware = hardware

    @property
    def device(self) -> torch.device:
        """This rank's device."""
        return self._fabric.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the only one that writes and prints."""
        return rank() == 0

    @property
    def counts_energy(self) -> bool:
        """Whether this rank counts its device's energy: each does with a GPU, and without one of each machine."""
        return self.device.type == "cuda" or rank() % self.hardware.devices == 0

    def setup(
        self, method: Method, build_optimizer: Callable[[Method], Optimizer]
    ) -> tuple[nn.Module, Optimizer]:
        """The method in training mode on its device, and its optimizer; gradients are averaged over the ranks."""
        method.to(memory_format=torch.channels_last)
        if world_size() > 1:
            synchronise_batch_norms(method, self.device.type)
        if self.hardware.compile:
            for child in method.children():
                child.compile()
        model, optimizer = self._fabric.setup(method, build_optimizer(method))
        return model.train(), optimizer

    def backward(self, loss: Tensor) -> None:
        """The backward pass, with the loss scaled where the precision needs it."""
        self._fabric.backward(loss)

    def without_averaging(self, model: Any, enabled: bool) -> AbstractContextManager[None]:
        """Leaves the gradients of a micro-batch that is not the last one on their rank."""
        context: AbstractContextManager[None] = self._fabric.no_backward_sync(model, enabled=enabled)
        return context

    def share(self, batch: int) -> slice:
        """This rank's rows of a global batch."""
        own = batch // world_size()
        return slice(rank() * own, (rank() + 1) * own)

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; every rank must ask."""
        return self.any_rank_each(flag)[0]

    def any_rank_each(self, *flags: bool) -> list[bool]:
        """For each flag whether it is set on any rank, in one collective; every rank must ask.

        With several ranks the answer is waited for, on a GPU until all that it was given before is done.
        """
        if world_size() == 1:
            return list(flags)
        own = torch.tensor(flags, dtype=torch.float32, device=self.device)
        return [flag > 0 for flag in all_reduce_max_nograd(own).tolist()]

    def from_main(self, value: int) -> int:
        """Rank 0's value, on every rank."""
        return int(self._fabric.broadcast(value))

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self._fabric.barrier()

    def precision_state(self) -> dict[str, Any]:
        """The loss scale of fp16; empty for the other precisions."""
        return dict(self._fabric.strategy.precision.state_dict())

    def load_precision_state(self, state: dict[str, Any]) -> None:
        """Go on with a saved loss scale."""
        self._fabric.strategy.precision.load_state_dict(state)


def launch(hardware: Hardware, precision: str) -> Engine:
    """Start the other ranks and join them; a single device joins nothing.

    torchrun and SLURM have started every rank already. Otherwise the other ranks of this machine are started
    with this process's own command line. Raises InputError for a precision or a number of devices that the
    machine lacks.
    """
    check_hardware(hardware, precision)
    if not torch.cuda.is_available():
        keep_freed_memory()
    strategy: Any = "auto"
    if hardware.ranks > 1:
        # buffers are equal on all ranks by construction: batch norm and queues see the global batch
        options: dict[str, Any] = {_BUFFER_SYNC: False, "gradient_as_bucket_view": True}
        strategy = DDPStrategy(**options)
    fabric = Fabric(
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        precision=_FABRIC_PRECISION[precision],
        strategy=strategy,
        # one rank needs no cluster: Fabric would refuse the variables of a SLURM job with several tasks
        plugins=[LightningEnvironment()] if hardware.ranks == 1 else None,
    )
    if hardware.ranks > 1:
        fabric.launch()
        divide_cores(hardware)
    return Engine(fabric, hardware)


def divide_cores(hardware: Hardware) -> None:
    """Let a rank that computes on the CPU use its share of this machine's cores."""
    if not torch.cuda.is_available():
        torch.set_num_threads(_share_of_cores(hardware))


def _share_of_cores(hardware: Hardware) -> int:
    return max(1, usable_cores() // hardware.devices)


def claims_cores() -> bool:
    """Whether this process is to claim the cores that it computes with (`foundation.claims`).

    Not where GPUs compute; what a launcher has started is its matter; and of ranks it is the first that claims those of
    all, before there are others.
    """
    is_rank = dist.is_initialized() or _LOCAL_RANK in os.environ
    return not (torch.cuda.is_available() or ranks_are_started() or is_rank)


def threads_to_claim(hardware: Hardware = ONE_DEVICE) -> int:
    """How many threads wait for each other on this machine's cores where this process computes with such hardware.

    One where none are to be claimed: with a thread in each rank, and on several machines, of which two jobs could each
    have one and wait for the other.
    """
    if hardware.nodes > 1 or not claims_cores():
        return 1
    if hardware.devices == 1:
        return torch.get_num_threads()
    share = _share_of_cores(hardware)
    return share * hardware.devices if share > 1 else 1


def ranks_are_started() -> bool:
    """Whether torchrun or SLURM has started this process, and every other rank."""
    return TorchElasticEnvironment.detect() or "SLURM_STEP_ID" in os.environ


def check_hardware(hardware: Hardware, precision: str) -> None:
    """Raise InputError for devices or a precision that this machine lacks, with those it has."""
    _check_nodes(hardware)
    gpus = torch.cuda.device_count()
    if gpus and hardware.devices > gpus:
        raise InputError(
            f"{hardware.devices} devices asked for, this machine has {gpus}",
            where="devices",
            next_step=f"use {gpus} devices or fewer, or more nodes",
            option="devices",
        )
    if precision == "fp16" and not gpus:
        raise InputError(
            "fp16 needs a GPU",
            where="precision",
            nearest="bf16",
            next_step="use bf16 or fp32",
            option="precision",
        )
    if precision == "bf16" and gpus and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError(
            f"{torch.cuda.get_device_name()} has no bf16",
            where="precision",
            nearest="fp16",
            next_step="use fp16 or fp32",
            option="precision",
        )


def _check_nodes(hardware: Hardware) -> None:
    """Without a launcher, the machines of a job must be told how to find each other, or they wait for ever."""
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
    if hardware.nodes > 1 and missing and not ranks_are_started():
        raise InputError(
            f"{hardware.nodes} nodes, but nothing says where they are: {', '.join(missing)} not set",
            where="nodes",
            next_step="start the command with srun or torchrun on every node, or set these variables there",
        )


def check_shares(batch_size: int, accumulate: int, ranks: int) -> None:
    """Raise InputError unless every rank gets an equal share of the batch in equal micro-batches."""
    parts = ranks * accumulate
    if batch_size % parts == 0:
        return
    below, above = batch_size // parts * parts, (batch_size // parts + 1) * parts
    what = f"{ranks} device{'s' * (ranks > 1)}" + (f" x {accumulate} micro-batches" if accumulate > 1 else "")
    raise InputError(
        f"batch_size {batch_size} does not divide evenly over {what}",
        where="batch_size",
        next_step=f"set batch_size to {f'{below} or ' if below else ''}{above}",
    )
