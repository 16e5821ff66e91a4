"""Batched image augmentation: whole batches at once, an independent draw of every parameter for every image.

One implementation serves the CPU and the GPU. A view is made in the order of the Barlow Twins code (its
``Transform``): random resized crop, horizontal flip, colour jitter, grayscale, Gaussian blur, solarisation,
normalisation. Every operation is torchvision's on float images in [0, 1]; the flip commutes with the
photometric operations, so recipes that flip last (MoCo v2, SimSiam) have the same distribution.

The parameters are drawn on a CPU generator for the whole global batch, so they depend neither on the device
nor on the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from twinbench.foundation.transfer import to_device

Interpolation = Literal["bilinear", "bicubic"]
BlurKernel = Literal["truncated", "pillow"]
Channels = tuple[float, float, float]


@dataclass(frozen=True)
class Normalisation:
    """What is subtracted from each channel (R, G, B) of images in [0, 1], and what they are then divided by."""

    mean: Channels
    std: Channels


_CROP_TRIES = 10
# torchvision's luma weights, which are also those of the BYOL and SimCLR code
_LUMA = (0.2989, 0.587, 0.114)
# on the CPU the batch is worked on in parts whose temporaries stay in the cache
_CACHE_FLOATS = 2**19
# above this many pixels a side the CPU does not resize and blur by dense matrices, whose cost grows with its cube
_LARGEST_DENSE_SIDE = 128


@dataclass(frozen=True)
class ViewPolicy:
    """How one view is drawn; the defaults are Barlow Twins' colours and crop without blur and solarisation.

    ``size`` is in pixels; ``crop_scale`` is a range of area fractions and ``crop_ratio`` a range of
    width/height; ``flip``, ``jitter``, ``grayscale``, ``blur`` and ``solarize`` are probabilities.
    ``brightness``, ``contrast`` and ``saturation`` x draw a factor from U(max(0, 1-x), 1+x), ``hue`` x a
    shift from U(-x, x) in turns; ``blur_sigma`` is a range of standard deviations in pixels.

    ``blur_kernel`` says whose blur it is: ``truncated`` is the sampled Gaussian of the SimCLR and BYOL code, cut off
    after a tenth of the view, and ``pillow`` the one that the codes of the other methods take from Pillow, whose
    standard deviation is the one that was drawn.
    """

    size: int
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale: float = 0.2
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel: BlurKernel = "truncated"
    solarize: float = 0.0
    interpolation: Interpolation = "bicubic"


@dataclass(frozen=True)
class ViewParameters:
    """The drawn parameters of N views: CPU tensors of length N (``order`` is ``[N, 4]``).

    ``top``, ``left``, ``height``, ``width`` (int64) are the crop in source pixels; ``flip``, ``jitter``,
    ``grayscale``, ``blur`` and ``solarize`` (bool) say whether the image gets the operation; row i of
    ``order`` is the order of brightness 0, contrast 1, saturation 2 and hue 3 for image i.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor
    jitter: Tensor
    order: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    grayscale: Tensor
    blur: Tensor
    sigma: Tensor
    solarize: Tensor

    def __getitem__(self, index: slice | Tensor) -> ViewParameters:
        """The parameters of some of the images, one rank's share of the global batch for example."""
        return ViewParameters(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


def join(several: Sequence[ViewParameters]) -> ViewParameters:
    """The parameters of several batches as those of one."""
    columns = [[getattr(one, field.name) for one in several] for field in fields(ViewParameters)]
    return ViewParameters(*(torch.cat(column) for column in columns))


def draw_parameters(
    policy: ViewPolicy, n: int, height: int | Tensor, width: int | Tensor, generator: torch.Generator
) -> ViewParameters:
    """Draw the parameters of ``n`` views of images of ``height`` x ``width`` pixels.

    Images of different sizes have int64 tensors ``[n]`` for them. ``generator`` is a CPU generator. It advances by
    the same amount whatever is drawn, and nothing but a view's own crop depends on the size of its image.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator, dtype=torch.float64)

    def factor(strength: float) -> Tensor:
        return uniform(max(0.0, 1.0 - strength), 1.0 + strength)

    heights, widths = torch.as_tensor(height).expand(n), torch.as_tensor(width).expand(n)
    top, left, crop_height, crop_width = _draw_crops(policy, heights, widths, uniform)
    return ViewParameters(
        top=top,
        left=left,
        height=crop_height,
        width=crop_width,
        flip=uniform(0, 1) < policy.flip,
        jitter=uniform(0, 1) < policy.jitter,
        order=uniform(0, 1, 4).argsort(dim=1),
        brightness=factor(policy.brightness),
        contrast=factor(policy.contrast),
        saturation=factor(policy.saturation),
        hue=uniform(-policy.hue, policy.hue),
        grayscale=uniform(0, 1) < policy.grayscale,
        blur=uniform(0, 1) < policy.blur,
        sigma=uniform(*policy.blur_sigma),
        solarize=uniform(0, 1) < policy.solarize,
    )


def _draw_crops(
    policy: ViewPolicy, height: Tensor, width: Tensor, uniform: Callable[..., Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Crops as torchvision's RandomResizedCrop draws them: ten tries, then the largest central crop.

    ``height`` and ``width`` of the images and the returned top, left, height and width are int64 ``[N]``. All the
    tries are drawn at once; the first that fits in the image counts.
    """
    area = (height * width).unsqueeze(1) * uniform(*policy.crop_scale, _CROP_TRIES)
    low_ratio, high_ratio = policy.crop_ratio
    ratio = uniform(math.log(low_ratio), math.log(high_ratio), _CROP_TRIES).exp()
    widths, heights = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (widths > 0) & (widths <= width.unsqueeze(1)) & (heights > 0) & (heights <= height.unsqueeze(1))
    first, found = fits.int().argmax(dim=1, keepdim=True), fits.any(dim=1)

    central_width = torch.minimum(width, (height.double() * high_ratio).round().long())
    central_height = torch.minimum(height, (width.double() / low_ratio).round().long())
    crop_width = torch.where(found, widths.gather(1, first).squeeze(1), central_width)
    crop_height = torch.where(found, heights.gather(1, first).squeeze(1), central_height)
    top = torch.where(found, uniform(0, 1) * (height - crop_height + 1), (height - central_height) // 2)
    left = torch.where(found, uniform(0, 1) * (width - crop_width + 1), (width - central_width) // 2)
    return top.long(), left.long(), crop_height, crop_width


def apply(
    images: Tensor,
    parameters: ViewParameters,
    policy: ViewPolicy,
    normalisation: Normalisation,
) -> Tensor:
    """Make the views that ``parameters`` describe.

    ``images`` is ``[N, 3, H, W]``, uint8 or float in [0, 1], on any device. Returns float32 ``[N, 3, size, size]``
    on the same device, normalised. The arithmetic is float32 under any autocast. Of ``policy`` only the size, the
    interpolation, the kernel of the blur and which jitter strengths are zero matter here.
    """
    return _views(_resized_crop, images, parameters, policy, normalisation)


def finish(
    crops: Tensor,
    parameters: ViewParameters,
    policy: ViewPolicy,
    normalisation: Normalisation,
) -> Tensor:
    """Everything of `apply` after crop and flip, for crops that were cut and flipped elsewhere.

    ``crops`` is ``[N, 3, size, size]``, uint8 or float in [0, 1], on any device; the rest is as in `apply`.
    """
    return _views(lambda part, boxes, policy: _as_unit_floats(part), crops, parameters, policy, normalisation)


@torch.no_grad()
def _views(
    crop: Callable[[Tensor, Tensor, ViewPolicy], Tensor],
    images: Tensor,
    parameters: ViewParameters,
    policy: ViewPolicy,
    normalisation: Normalisation,
) -> Tensor:
    """The normalised views ``[N, 3, size, size]`` of what ``crop`` makes of images and boxes, part by part."""
    chunk = len(images) if images.is_cuda else max(1, _CACHE_FLOATS // (3 * policy.size**2))
    views = torch.empty(len(images), 3, policy.size, policy.size, device=images.device)
    with torch.autocast(images.device.type, enabled=False):
        for start in range(0, len(images), max(chunk, 1)):
            part = slice(start, start + chunk)
            boxes, edits = _on(images.device, _boxes(parameters[part]), _edits(parameters[part], policy))
            x = crop(images[part], boxes, policy)
            for edit in edits:
                x.index_copy_(0, edit.rows, edit.operation(x.index_select(0, edit.rows), edit.amount))
            views[part] = _normalise(x, normalisation)
    return views


def _boxes(parameters: ViewParameters) -> Tensor:
    """Top, left, height, width and flip (0 or 1) of each crop: int64 ``[5, N]``."""
    p = parameters
    return torch.stack([p.top, p.left, p.height, p.width, p.flip.long()])


class _Edit(NamedTuple):
    """An operation on some images of a batch; the others cost nothing.

    ``rows`` says which, int64 ``[n]``, and ``amount`` what the operation takes for each of them, ``[n, ...]``.
    """

    operation: Callable[[Tensor, Tensor], Tensor]
    rows: Tensor
    amount: Tensor


def _edits(parameters: ViewParameters, policy: ViewPolicy) -> list[_Edit]:
    """Jitter, grayscale, blur and solarisation in their order, for crops in [0, 1]: everything that has an image to do.

    The jitter is torchvision's ColorJitter with an order of its own for each image: at each of the four positions the
    images whose turn it is to have their hue shifted are one group and the others, which are blended with a grey image
    each, another.
    """
    p = parameters
    blends = max(policy.brightness, policy.contrast, policy.saturation) > 0
    edits = []
    for turn in p.order.T:
        if blends:
            edits.append(_edit(_blend, p.jitter & (turn != _HUE), _blend_shares(p, turn)))
        if policy.hue > 0:
            edits.append(_edit(_shift_hue, p.jitter & (turn == _HUE), p.hue.float().view(-1, 1, 1, 1)))
    edits.append(_edit(_grayscale, p.grayscale, p.grayscale))
    blurred = p.blur.nonzero().squeeze(1)
    if len(blurred):
        kernels = _blur_kernels(p.sigma[blurred], policy)
        edits.append(_Edit(partial(_blur, kernel=policy.blur_kernel), blurred, kernels))
    edits.append(_edit(_solarize, p.solarize, p.solarize))
    return [edit for edit in edits if len(edit.rows)]


def _edit(operation: Callable[[Tensor, Tensor], Tensor], coins: Tensor, amounts: Tensor) -> _Edit:
    """The operation for the images whose coin says yes, with their rows of ``amounts``."""
    rows = coins.nonzero().squeeze(1)
    return _Edit(operation, rows, amounts[rows])


def _on(device: torch.device, boxes: Tensor, edits: list[_Edit]) -> tuple[Tensor, list[_Edit]]:
    """Both on the device where the images are; everything that was drawn for a view goes there in one copy."""
    boxes, *rest = to_device([boxes, *(part for edit in edits for part in edit[1:])], device)
    pairs = zip(rest[::2], rest[1::2], strict=True)
    return boxes, [_Edit(edit.operation, *pair) for edit, pair in zip(edits, pairs, strict=True)]


def augment(
    images: Tensor, policy: ViewPolicy, normalisation: Normalisation, generator: torch.Generator
) -> Tensor:
    """Draw and make one view of every image ``[N, 3, H, W]``; see `draw_parameters` and `apply`."""
    n, _, height, width = images.shape
    return apply(images, draw_parameters(policy, n, height, width, generator), policy, normalisation)


@torch.no_grad()
def eval_view(images: Tensor, size: int, normalisation: Normalisation) -> Tensor:
    """The view without randomness: square ``[N, 3, H, W]`` to float32 ``[N, 3, size, size]``, normalised.

    Images of another size are resized (bilinear, antialiased). uint8, or float in [0, 1].
    """
    x = _as_unit_floats(images)
    if x.shape[-2:] != (size, size):
        x = interpolate(x, size=(size, size), mode="bilinear", antialias=True)
    return _normalise(x, normalisation)


def _as_unit_floats(images: Tensor) -> Tensor:
    """A float32 copy in [0, 1], free to be changed in place."""
    if images.dtype == torch.uint8:
        return images.float().div_(255)
    return images.to(torch.float32, copy=True)


def _normalise(x: Tensor, normalisation: Normalisation) -> Tensor:
    """``(x - mean) / std`` per channel, in place."""
    return x.sub_(_each_channel(normalisation.mean, x.device)).div_(
        _each_channel(normalisation.std, x.device)
    )


@lru_cache
def _each_channel(values: Channels, device: torch.device) -> Tensor:
    """A constant of each channel on the device, float32 ``[3, 1, 1]``; kept, since a GPU waits for every new one."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)


# Geometry: crop, flip, resize and blur are one small matrix per image and axis.


def _separable(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``rows @ x @ columns^T`` per image and channel.

    ``x`` is ``[N, 3, H, W]``, ``rows`` ``[N, h, H]``, ``columns`` ``[N, w, W]``; returns ``[N, 3, h, w]``.
    """
    n, channels, height, width = x.shape
    across = torch.bmm(x.reshape(n, channels * height, width), columns.transpose(1, 2))
    across = across.view(n, channels, height, -1)
    return torch.matmul(rows.unsqueeze(1), across)


def _resized_crop(images: Tensor, boxes: Tensor, policy: ViewPolicy) -> Tensor:
    """Crop, resize and flip as torchvision's ``resized_crop(antialias=True)`` on float images, then clamp.

    Bicubic weights overshoot; like 8-bit image libraries, the result is clamped to [0, 1].
    """
    large = max(policy.size, *images.shape[-2:]) > _LARGEST_DENSE_SIDE
    make = _crop_one_by_one if large and not images.is_cuda else _crop_at_once
    return make(images, boxes, policy).clamp_(0, 1)


def _crop_at_once(images: Tensor, boxes: Tensor, policy: ViewPolicy) -> Tensor:
    """Crops of all the images by dense matrices: no work for each image, but most of the products are with zeros."""
    top, left, height, width, flip = boxes
    rows = _resize_matrices(top, height, images.shape[-2], policy)
    columns = _resize_matrices(left, width, images.shape[-1], policy)
    columns = torch.where(flip.bool().view(-1, 1, 1), columns.flip(1), columns)
    if images.dtype == torch.uint8:
        rows = rows / 255
    return _separable(images.float(), rows, columns)


def _crop_one_by_one(images: Tensor, boxes: Tensor, policy: ViewPolicy) -> Tensor:
    """The same crops by torch's sparse filter, an image at a time."""
    crops = torch.empty(len(images), 3, policy.size, policy.size, device=images.device)
    for i, (top, left, height, width, flip) in enumerate(boxes.T.tolist()):
        source = images[i : i + 1, :, top : top + height, left : left + width].float()
        crop = interpolate(source, crops.shape[2:], mode=policy.interpolation, antialias=True)[0]
        crops[i] = crop.flip(2) if flip else crop
    return crops.div_(255) if images.dtype == torch.uint8 else crops


def _resize_matrices(start: Tensor, length: Tensor, side: int, policy: ViewPolicy) -> Tensor:
    """Weights ``[N, size, side]`` (float32) that resize pixels ``start .. start + length`` of an axis.

    The antialiased filters of torch and Pillow: triangle, or cubic with a = -1/2, stretched when shrinking,
    cut off at the edges of the crop and normalised.
    """
    start, length = start.float().view(-1, 1, 1), length.float().view(-1, 1, 1)
    scale = length / policy.size
    centre = (torch.arange(policy.size, device=start.device).view(1, -1, 1) + 0.5) * scale
    offset = torch.arange(side, device=start.device).view(1, 1, -1) + 0.5 - start
    distance = (offset - centre).mul_(1 / scale.clamp(min=1)).abs_()
    weights = _triangle(distance) if policy.interpolation == "bilinear" else _cubic(distance)
    weights *= (offset > 0) & (offset < length)
    return weights.div_(weights.sum(dim=2, keepdim=True))


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance).clamp_(min=0)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution with a = -1/2, for non-negative distances.

    (1.5 d - 2.5) d^2 + 1 up to one and -0.5 (d - 1) (d - 2)^2 up to two; each is zero at the ends of the
    other's interval, so that the sum of the clamped pieces is the kernel.
    """
    near, far = distance.clamp(max=1), distance.clamp_(1, 2).sub_(2)
    squared = far * far
    return near.mul(1.5).sub_(2.5).mul_(near).mul_(near).add_(1).sub_(far.add_(1).mul_(squared), alpha=0.5)


def blur_taps(size: int) -> int:
    """Taps of the Gaussian kernel for images of ``size`` pixels: about a tenth, 23 at 224, 3 at 32.

    The rule of the SimCLR and BYOL code, 2 int(size / 20) + 1, at least 3.
    """
    return max(3, 2 * (size // 20) + 1)


_BOX_PASSES = 3


def _blur_kernels(sigma: Tensor, policy: ViewPolicy) -> Tensor:
    """The symmetric kernels ``[N, taps]`` of a blur with one standard deviation an image, float64 ``[N]``."""
    if policy.blur_kernel == "pillow":
        return _box_kernels(sigma)
    return _gaussian_kernels(sigma, blur_taps(policy.size))


def _blur(x: Tensor, kernels: Tensor, kernel: BlurKernel) -> Tensor:
    """Blur of ``[N, 3, size, size]`` by the kernels of `_blur_kernels`.

    ``truncated`` is torchvision's Gaussian blur with `blur_taps` taps and reflected borders. ``pillow`` is Pillow's
    ``GaussianBlur`` without its rounding to 8 bits after every pass: three box filters, the border pixels repeated.
    """
    passes, border = (_BOX_PASSES, "replicate") if kernel == "pillow" else (1, "reflect")
    if x.shape[-1] > _LARGEST_DENSE_SIDE and not x.is_cuda:
        x = _convolved(x, kernels, border, passes).transpose(2, 3)
        return _convolved(x, kernels, border, passes).transpose(2, 3)
    pixels = torch.eye(x.shape[-1], device=x.device).expand(len(x), 1, -1, -1)
    matrices = _convolved(pixels, kernels, border, passes).squeeze(1)
    return _separable(x, matrices, matrices)


def _convolved(x: Tensor, kernels: Tensor, border: str, passes: int) -> Tensor:
    """``passes`` times the symmetric kernels ``[N, taps]`` over the third axis of ``[N, C, H, W]``."""
    for _ in range(passes):
        x = _convolve_rows(x, kernels, border)
    return x


def _convolve_rows(x: Tensor, kernels: Tensor, border: str) -> Tensor:
    """Symmetric kernels ``[N, taps]`` over the third axis of ``[N, C, H, W]``, padded as ``border`` says."""
    radius, height = kernels.shape[1] // 2, x.shape[2]
    padded = pad(x, (0, 0, radius, radius), mode=border)
    weights = kernels.view(*kernels.shape, 1, 1, 1)
    result = padded[:, :, radius : radius + height] * weights[:, radius]
    for tap in range(radius):
        mirrored = 2 * radius - tap
        pair = padded[:, :, tap : tap + height] + padded[:, :, mirrored : mirrored + height]
        result.addcmul_(pair, weights[:, tap])
    return result


def _gaussian_kernels(sigma: Tensor, taps: int) -> Tensor:
    """``[N, taps]`` (float32): torchvision's kernel, exp(-x^2 / 2 sigma^2) at the integers, normalised."""
    offsets = torch.arange(-(taps // 2), taps // 2 + 1)
    return torch.softmax(-0.5 * (offsets / sigma.view(-1, 1)).square(), dim=1).float()


def _box_kernels(sigma: Tensor) -> Tensor:
    """``[N, taps]`` (float32): the box filters that have the standard deviation ``sigma`` after three passes.

    Ones from -l to l and at either end the fraction a that makes the variance of a pass exactly sigma^2 / 3, divided by
    their sum (Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box filtering", SSVM 2011;
    Pillow's ``BoxBlur.c``).
    """
    variance = sigma.double().view(-1, 1).square() / _BOX_PASSES
    whole = ((torch.sqrt(12 * variance + 1) - 1) / 2).floor()
    fraction = (
        (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1).square()))
    )
    radius = int(whole.max()) + 1
    distance = torch.arange(-radius, radius + 1).abs()
    boxes = torch.where(distance <= whole, 1.0, torch.where(distance == whole + 1, fraction, 0.0))
    return (boxes / boxes.sum(dim=1, keepdim=True)).float()


# Photometric operations.


_CONTRAST, _SATURATION, _HUE = 1, 2, 3


def _blend_shares(parameters: ViewParameters, turn: Tensor) -> Tensor:
    """Of each image itself, of its mean luma and of its luma, where it is ``turn``'s: float32 ``[N, 3, 1, 1, 1]``.

    Brightness blends with black, contrast with the mean luma and saturation with the luma. Rows whose turn is the hue
    mean nothing.
    """
    p = parameters
    factors = torch.stack([p.brightness, p.contrast, p.saturation, torch.ones_like(p.hue)]).float()
    factor = factors[turn, torch.arange(len(turn))]
    rest = 1 - factor
    shares = torch.stack([factor, rest * (turn == _CONTRAST), rest * (turn == _SATURATION)], dim=1)
    return shares.view(-1, 3, 1, 1, 1)


def _blend(x: Tensor, shares: Tensor) -> Tensor:
    """The sum of image, mean luma and luma in the shares of `_blend_shares`."""
    luma, (of_image, of_mean, of_luma) = _luma(x), shares.unbind(1)
    grey = of_mean * luma.mean(dim=(1, 2, 3), keepdim=True) + of_luma * luma
    return x.mul_(of_image).add_(grey).clamp_(0, 1)


def _luma(x: Tensor) -> Tensor:
    """Grayscale ``[N, 1, H, W]`` of ``[N, 3, H, W]``."""
    red, green, blue = x.split(1, dim=1)
    return (_LUMA[0] * red).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def _grayscale(x: Tensor, _: Tensor) -> Tensor:
    return _luma(x).expand_as(x)


def _shift_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue in HSV space without leaving RGB: maximum and minimum of each pixel stay.

    With value v, chroma c and hue h in sixths of a turn, channel k of HSV -> RGB is
    v - c clamp(min(k, 4 - k), 0, 1) for k = (h + 5, 3, 1) mod 6 (red, green, blue).
    """
    red, green, blue = x.split(1, dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # where the chroma is zero the hue is of no consequence, only the division must stay finite
    divisor = chroma.clamp(min=1e-9)
    # arithmetic with 0/1 masks: on the CPU it is several times as fast as torch.where
    is_red = (red == value).float()
    is_green = (green == value).float().mul_(1 - is_red)
    is_blue = 1 - is_red - is_green
    sixths = ((green - blue).mul_(is_red)).addcmul_(blue - red, is_green).addcmul_(red - green, is_blue)
    sixths.div_(divisor).add_(is_green, alpha=2).add_(is_blue, alpha=4).add_(6 * turns)
    k = _each_channel((5.0, 3.0, 1.0), x.device) + sixths
    k.sub_(k.div(6).floor_(), alpha=6)
    ramp = k.sub_(2).abs_().neg_().add_(2).clamp_(0, 1)
    return torch.addcmul(value, chroma, ramp, value=-1)


def _solarize(x: Tensor, _: Tensor) -> Tensor:
    """Invert what rounds to 128 or more of 255 (Pillow's default), which is 0.5 or more (BYOL's code)."""
    return torch.where(x >= 0.5, 1 - x, x)
