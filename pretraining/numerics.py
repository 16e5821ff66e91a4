"""Loss arithmetic in full precision, whatever autocast is active around it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def _at_least_fp32(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value


def in_full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: half-precision tensor arguments become fp32 and autocast is off inside.

    Upcasting alone would not do: under autocast a matrix product of fp32 tensors still runs in half
    precision. float64 stays float64, so that gradients can be checked.
    """

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        device = next((tensor.device.type for tensor in tensors), "cpu")
        with torch.autocast(device, enabled=False):
            return function(
                *(_at_least_fp32(value) for value in args),
                **{name: _at_least_fp32(value) for name, value in kwargs.items()},
            )

    return wrapped
