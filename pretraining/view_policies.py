"""View policies that several methods share, and the check that two views arrived."""

from __future__ import annotations

from torch import Tensor

from twinbench.data.augment import BlurKernel, Interpolation, ViewPolicy
from twinbench.foundation.errors import InputError

_SMALL = 32


def is_small(size: int) -> bool:
    """Whether images of ``size`` pixels get no Gaussian blur, as in the CIFAR-10 recipes of the papers."""
    return size <= _SMALL


def asymmetric_views(size: int, blur_kernel: BlurKernel) -> tuple[ViewPolicy, ViewPolicy]:
    """The two different views of BYOL (arXiv:2006.07733, table 6) and Barlow Twins (official code).

    Blur with probability 1.0 and 0.1, solarisation with probability 0 and 0.2. The two codes blur differently.
    """
    return tuple(  # type: ignore[return-value]
        ViewPolicy(
            size=size,
            crop_scale=(0.08, 1.0),
            jitter=0.8,
            brightness=0.4,
            contrast=0.4,
            saturation=0.2,
            hue=0.1,
            grayscale=0.2,
            blur=0.0 if is_small(size) else blur,
            blur_kernel=blur_kernel,
            solarize=solarize,
            interpolation="bicubic",
        )
        for blur, solarize in ((1.0, 0.0), (0.1, 0.2))
    )


def moco_views(size: int) -> tuple[ViewPolicy, ViewPolicy]:
    """The two equal views of MoCo v2 (arXiv:2003.04297) and SimSiam (arXiv:2011.10566, appendix A)."""
    policy = ViewPolicy(
        size=size,
        crop_scale=(0.2, 1.0),
        jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        grayscale=0.2,
        blur=0.0 if is_small(size) else 0.5,
        blur_kernel="pillow",
        interpolation="bilinear",
    )
    return policy, policy


def strong_colour_views(
    size: int,
    interpolation: Interpolation,
    blur_kernel: BlurKernel,
    crop_scale: tuple[float, float] = (0.08, 1.0),
) -> tuple[ViewPolicy, ViewPolicy]:
    """The two equal views of SimCLR (arXiv:2002.05709, appendix A) and of SwAV without multi-crop.

    Colour strength 1.0; 0.5 and no blur for small images (SimCLR, appendix B.9). The two codes resize and blur
    differently.
    """
    strength = 0.5 if is_small(size) else 1.0
    policy = ViewPolicy(
        size=size,
        crop_scale=crop_scale,
        jitter=0.8,
        brightness=0.8 * strength,
        contrast=0.8 * strength,
        saturation=0.8 * strength,
        hue=0.2 * strength,
        grayscale=0.2,
        blur=0.0 if is_small(size) else 0.5,
        blur_kernel=blur_kernel,
        interpolation=interpolation,
    )
    return policy, policy


def two_views(views: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The two views of a two-view method; raises InputError if there are more or fewer."""
    if len(views) != 2:
        raise InputError(
            f"this method takes exactly 2 views, the recipe gives {len(views)}",
            where="views",
            next_step="list two views, or leave `views` out for the method's own",
        )
    return views[0], views[1]
