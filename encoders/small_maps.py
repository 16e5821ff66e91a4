"""Convolutions with few output pixels, computed on a CPU by matrix products where those are faster.

The last stages of a ResNet on 32-pixel images work on maps of 4 x 4 and 2 x 2. For such maps oneDNN, which torch calls
on CPUs, takes many times as long for the gradient of the weights as the same products in one matrix: 13 times for 256
to 256 channels at 2 x 2 in bf16. The values are the same up to the order of sums.

And where oneDNN's own way ends the process: the gradient of a strided 1 x 1 convolution of few channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, pad

# sides of the output in pixels, by measurement: up to the first the gradient of the weights is faster as a matrix
# product, in fp32 and bf16, with vectors and with tiles; up to the second the convolution itself is, too
_SMALL, _TINY = 4, 2

# Of a strided 1 x 1 convolution of fewer channels, stored with the channels last, the gradient is read from outside the
# memory on CPUs with AVX-512 and without AMX, for inputs of 48 pixels (torch 2.14.1).
_FEW_CHANNELS = 16


class SmallMapConv2d(nn.Conv2d):
    """``nn.Conv2d`` with products of matrices for small maps on a CPU; parameters and state dict are the same.

    On a GPU, in compiled code and for larger maps it is ``nn.Conv2d`` itself; strided 1 x 1 kernels on few channels see
    only the pixels that count.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The convolution of ``[N, C, H, W]``."""
        if input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        if self._side(input) > _SMALL:
            return self._of_pixels_that_count(input) if self._skips_pixels() else super().forward(input)
        weight = self.weight
        if torch.is_autocast_enabled("cpu") and input.dtype != torch.float64:
            dtype = torch.get_autocast_dtype("cpu")
            input, weight = input.to(dtype), weight.to(dtype)
        if self._side(input) == 1:
            return _one_pixel(input, weight, int(self.padding[0]))
        output: Tensor = _Convolution.apply(input, weight, self.stride[0], int(self.padding[0]))
        return output

    def _skips_pixels(self) -> bool:
        few, alone = self.in_channels < _FEW_CHANNELS, self.kernel_size == (1, 1) and self.padding == (0, 0)
        return few and alone and self.stride[0] > 1

    def _of_pixels_that_count(self, input: Tensor) -> Tensor:
        step = self.stride[0]
        return torch.conv2d(input[:, :, ::step, ::step], self.weight)

    def _side(self, input: Tensor) -> int:
        """The larger side of the output in pixels."""
        return (max(input.shape[2:]) + 2 * int(self.padding[0]) - self.kernel_size[0]) // self.stride[0] + 1


def use_small_map_convolutions(network: nn.Module) -> None:
    """Replace the ordinary convolutions below ``network`` by `SmallMapConv2d`, in place, with the very same weights.

    Ordinary: square, undilated, padded with zeros, in one group and without a bias.
    """
    for name, child in network.named_children():
        if type(child) is nn.Conv2d and _is_ordinary(child):
            setattr(network, name, _small_map(child))
        else:
            use_small_map_convolutions(child)


def _is_ordinary(convolution: nn.Conv2d) -> bool:
    pairs = (convolution.kernel_size, convolution.stride, convolution.padding)
    return (
        all(pair[0] == pair[1] for pair in pairs)
        and convolution.dilation == (1, 1)
        and convolution.groups == 1
        and convolution.bias is None
        and convolution.padding_mode == "zeros"
    )


def _small_map(convolution: nn.Conv2d) -> SmallMapConv2d:
    # on "meta" no weights are drawn: the random numbers that follow stay what they were
    new = SmallMapConv2d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size[0],
        convolution.stride[0],
        convolution.padding[0],
        bias=False,
        device="meta",
    )
    new.weight = convolution.weight
    return new


def _one_pixel(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """The convolution whose output is one pixel: a linear map of the part of the kernel that is not on the padding."""
    height, width = x.shape[2:]
    inside = weight[:, :, padding : padding + height, padding : padding + width]
    seen = x[:, :, : inside.shape[2], : inside.shape[3]]
    return linear(_channels_last(seen).flatten(1), _as_matrix(inside))[:, :, None, None]


class _Convolution(torch.autograd.Function):
    """A convolution of ``[N, C, H, W]`` with ``[K, C, k, k]``, and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        kernel = weight.shape[2]
        if x.shape[2] + 2 * padding - kernel >= _TINY * stride:
            return torch.conv2d(x, weight, None, stride, padding)
        return _pixels_first(_patches(_channels_last(x), kernel, stride, padding) @ _as_matrix(weight).T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = grads
        x, weight = ctx.saved_tensors
        of_input = (
            _of_input(gradient, x, weight, ctx.stride, ctx.padding) if ctx.needs_input_grad[0] else None
        )
        patches = _patches(_channels_last(x), weight.shape[2], ctx.stride, ctx.padding)
        of_weight = _channels_last(gradient).flatten(0, 2).T @ patches.flatten(0, 2)
        return of_input, _pixels_first(of_weight.view(_channels_last(weight).shape)), None, None


def _of_input(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """The gradient of the input; at stride 1 it is a convolution with the mirrored kernel."""
    kernel = weight.shape[2]
    if stride == 1 and gradient.shape[2] <= _TINY:
        mirrored = weight.flip(2, 3).permute(2, 3, 0, 1).flatten(0, 2)
        return _pixels_first(_patches(_channels_last(gradient), kernel, 1, kernel - 1 - padding) @ mirrored)
    of_input: Tensor = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [True, False, False]
    )[0]
    return of_input


def _patches(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """The windows of ``[N, H, W, C]``, padded with zeros: ``[N, H', W', k k C]``."""
    if padding:
        x = pad(x, (0, 0, padding, padding, padding, padding))
    windows = x.unfold(1, kernel, stride).unfold(2, kernel, stride)
    return windows.permute(0, 1, 2, 4, 5, 3).flatten(3)


def _as_matrix(weight: Tensor) -> Tensor:
    """``[K, C, k, k]`` as ``[K, k k C]``, without a copy where it is stored with the channels last."""
    return _channels_last(weight).flatten(1)


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _pixels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)
