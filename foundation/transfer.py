"""Several tensors to a device in one copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ALIGNMENT = 16  # bytes; no dtype is wider


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """CPU tensors of any dtypes and shapes on ``device``, packed into one copy that nothing waits for.

    A GPU waits for a copy of its own from ordinary memory, and each costs about as much as a small kernel. The packed
    bytes lie in page-locked memory instead, which torch keeps until the copy is done. A tensor that is already there is
    returned as it is where the device is the CPU.
    """
    if device.type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    return unpack(pack(tensors, pin_memory=True).to(device, non_blocking=True), tensors)


def pack(tensors: Sequence[Tensor], pin_memory: bool = False) -> Tensor:
    """The bytes of the tensors one after the other, each from a multiple of 16 on: uint8 ``[bytes]``."""
    packed = torch.empty(_starts(tensors)[-1], dtype=torch.uint8, pin_memory=pin_memory)
    for place, tensor in zip(unpack(packed, tensors), tensors, strict=True):
        place.copy_(tensor)
    return packed


def unpack(packed: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """What `pack` made of tensors of the dtypes and shapes of ``like``, as views of ``packed``."""
    return [
        packed[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for start, tensor in zip(_starts(like), like, strict=False)
    ]


def _starts(tensors: Sequence[Tensor]) -> list[int]:
    """Where each tensor begins, and where the last one ends, in bytes."""
    starts = [0]
    for tensor in tensors:
        starts.append(starts[-1] + -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT)
    return starts
