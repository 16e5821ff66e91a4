"""The views that methods and recipes ask for: frequencies, crops and sizes as the papers' tables give them."""

import dataclasses
import math

import pytest
import torch

from twinbench.data.augment import Normalisation, apply, augment, draw_parameters
from twinbench.foundation.errors import InputError
from twinbench.harness.recipes import load_recipe
from twinbench.pretraining.build import resolve, view_policies
from twinbench.pretraining.method import method_class
from twinbench.pretraining.view_policies import two_views

DRAWS = 4000
NONE = Normalisation((0.0,) * 3, (1.0,) * 3)
SIDE = 320
# blur and solarisation of both views, jitter strengths, smallest crop, interpolation at 224 pixels
PUBLISHED = {
    "barlow_twins": ((1.0, 0.1), (0.0, 0.2), (0.4, 0.4, 0.2, 0.1), 0.08, "bicubic"),
    "byol": ((1.0, 0.1), (0.0, 0.2), (0.4, 0.4, 0.2, 0.1), 0.08, "bicubic"),
    "simclr": ((0.5, 0.5), (0.0, 0.0), (0.8, 0.8, 0.8, 0.2), 0.08, "bicubic"),
    "swav": ((0.5, 0.5), (0.0, 0.0), (0.8, 0.8, 0.8, 0.2), 0.08, "bilinear"),
    "simsiam": ((0.5, 0.5), (0.0, 0.0), (0.4, 0.4, 0.4, 0.1), 0.2, "bilinear"),
    "moco_v2": ((0.5, 0.5), (0.0, 0.0), (0.4, 0.4, 0.4, 0.1), 0.2, "bilinear"),
}


def draw(policy, seed=0):
    return draw_parameters(policy, DRAWS, SIDE, SIDE, torch.Generator().manual_seed(seed))


def assert_frequency(coins, p):
    """Within four standard deviations of the frequency in so many draws."""
    assert abs(coins.double().mean().item() - p) <= 4 * math.sqrt(p * (1 - p) / DRAWS)


@pytest.mark.parametrize("method", PUBLISHED)
def test_frequencies_over_many_draws_are_the_published_ones(method):
    blurs, solarisations, *_ = PUBLISHED[method]
    policies = method_class(method).default_views(224)
    for seed, (policy, blur, solarise) in enumerate(zip(policies, blurs, solarisations, strict=True)):
        drawn = draw(policy, seed)
        for coins, p in (
            (drawn.blur, blur),
            (drawn.solarize, solarise),
            (drawn.jitter, 0.8),
            (drawn.grayscale, 0.2),
            (drawn.flip, 0.5),
        ):
            assert_frequency(coins, p)


@pytest.mark.parametrize("method", PUBLISHED)
def test_strengths_and_crops_over_many_draws_stay_in_the_published_ranges(method):
    *_, (brightness, contrast, saturation, hue), smallest, interpolation = PUBLISHED[method]
    for policy in method_class(method).default_views(224):
        drawn = draw(policy)
        for values, middle, strength in (
            (drawn.brightness, 1.0, brightness),
            (drawn.contrast, 1.0, contrast),
            (drawn.saturation, 1.0, saturation),
            (drawn.hue, 0.0, hue),
        ):
            reach = (values - middle).abs().max().item()
            assert 0.99 * strength <= reach <= strength
        assert (drawn.sigma.min().item(), drawn.sigma.max().item()) == pytest.approx((0.1, 2.0), abs=0.01)
        assert_area_between(drawn, smallest, 1.0)
        assert policy.interpolation == interpolation


def assert_area_between(drawn, low, high):
    """Whole pixels round the sides by up to half a pixel each."""
    area = (drawn.height * drawn.width).double() / SIDE**2
    rounding = 0.5 * (drawn.height + drawn.width) / SIDE**2 + 1e-9
    assert (area >= low - rounding).all()
    assert (area <= high + rounding).all()
    assert area.min() < low + 0.02 * (high - low)


@pytest.mark.parametrize("folder", ["imagenet", "imagenet-256"])
def test_multi_crop_draws_two_large_and_six_small_views(folder):
    policies = view_policies(load_recipe(folder, "swav", "digit-scenes", {}), 224)
    assert [policy.size for policy in policies] == [224] * 2 + [96] * 6
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    for seed, policy in enumerate(policies):
        low, high = (0.14, 1.0) if policy.size == 224 else (0.05, 0.14)
        assert_area_between(draw(policy, seed), low, high)
        view = augment(images, policy, NONE, torch.Generator().manual_seed(seed))
        assert view.shape == (2, 3, policy.size, policy.size)
        assert (policy.jitter, policy.brightness, policy.hue, policy.blur) == (0.8, 0.8, 0.2, 0.5)


def test_flipping_last_is_flipping_first():
    """The official MoCo and SimSiam code flips at the end of the pipeline, ours with the crop."""
    policy = method_class("moco_v2").default_views(64)[0]
    images = torch.rand(24, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    drawn = draw_parameters(policy, 24, 80, 80, torch.Generator().manual_seed(1))
    first, without = (
        apply(images, dataclasses.replace(drawn, flip=flip), policy, Normalisation((0.5,) * 3, (0.2,) * 3))
        for flip in (torch.ones(24, dtype=torch.bool), torch.zeros(24, dtype=torch.bool))
    )
    torch.testing.assert_close(first, without.flip(-1), rtol=0, atol=2e-5)


def test_the_blur_is_that_of_each_code():
    """Pillow's in the PyTorch codes; the SimCLR and BYOL code cuts a sampled Gaussian off after a tenth."""
    kernels = {m: {policy.blur_kernel for policy in method_class(m).default_views(96)} for m in PUBLISHED}
    truncated = {"byol", "simclr"}
    assert kernels == {m: {"truncated" if m in truncated else "pillow"} for m in PUBLISHED}


def test_a_recipe_may_ask_for_the_other_blur():
    changes = {"views.blur_kernel": "truncated"}
    recipe = resolve(load_recipe("folder", "barlow_twins", "digit-scenes", changes), 96, "print")
    assert {policy.blur_kernel for policy in view_policies(recipe, 96)} == {"truncated"}


@pytest.mark.parametrize("method", PUBLISHED)
def test_small_images_get_no_blur_and_the_colours_of_the_cifar_recipes(method):
    for policy in method_class(method).default_views(32):
        assert not draw(policy).blur.any()
        assert (policy.brightness, policy.contrast, policy.hue) == (0.4, 0.4, 0.1)


@pytest.mark.parametrize("count", [1, 3])
def test_a_two_view_method_says_how_many_views_it_got(count):
    with pytest.raises(InputError, match=f"gives {count}"):
        two_views([torch.zeros(1)] * count)
