"""Views of images in memory and on disk: the same, whoever makes which part of them, and when."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from twinbench.data.augment import Normalisation, ViewPolicy
from twinbench.data.streaming import Images, StreamedImages
from twinbench.data.views import RandomViews, plain_views

CPU = torch.device("cpu")
SIDE, IMAGES, BATCH, STEPS = 24, 23, 10, 4
POLICIES = (ViewPolicy(24, blur=0.5, solarize=0.2), ViewPolicy(16, interpolation="bilinear"))
NORMALISATION = Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
# the whole picture, as it is
UNCHANGED = ViewPolicy(SIDE, crop_scale=(1, 1), crop_ratio=(1, 1), flip=0, jitter=0, grayscale=0)


@pytest.fixture
def streamed(tmp_path: Path) -> StreamedImages:
    """Square pictures far enough from black and white that resampling never overshoots them."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i:02}.png" for i in range(IMAGES)]
    for path in paths:
        coarse = Image.fromarray(rng.integers(70, 186, (4, 5, 3), dtype=np.uint8))
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)
    return StreamedImages(paths, np.full(IMAGES, -1), SIDE)


@pytest.fixture(params=["in memory", "streamed"])
def images(request: pytest.FixtureRequest, streamed: StreamedImages) -> Images:
    return streamed if request.param == "streamed" else streamed[:]


def rows_of(step: int) -> Tensor:
    return torch.randperm(IMAGES, generator=torch.Generator().manual_seed(1000 + step))[:BATCH]


def views_of(
    images: Images,
    seed: int = 0,
    first: int = 0,
    share: slice = slice(None),
    policies: tuple[ViewPolicy, ...] = POLICIES,
    make: Callable[..., list[Tensor]] = lambda step: step.make(),
) -> list[list[Tensor]]:
    views = RandomViews(images, rows_of, policies, NORMALISATION, seed, CPU, 0, share)
    return [make(step) for step in views.steps(first, STEPS)]


def assert_close(ours: list[list[Tensor]], theirs: list[list[Tensor]], atol: float = 1e-5) -> None:
    for own, others in zip(ours, theirs, strict=True):
        for a, b in zip(own, others, strict=True):
            torch.testing.assert_close(a, b, atol=atol, rtol=0)


def test_views_that_change_nothing_are_the_normalised_images_of_each_step(images: Images) -> None:
    for step, (views,) in enumerate(views_of(images, policies=(UNCHANGED,))):
        pixels = images[rows_of(step)] / 255
        expected = tv.normalize(pixels, list(NORMALISATION.mean), list(NORMALISATION.std))
        torch.testing.assert_close(views, expected, atol=1e-5, rtol=0)


def test_views_depend_on_seed_and_step_alone(images: Images) -> None:
    state = torch.get_rng_state()
    whole, again = views_of(images), views_of(images)
    tail, other = views_of(images, first=2), views_of(images, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert [[tuple(view.shape) for view in step] for step in whole] == [
        [(BATCH, 3, 24, 24), (BATCH, 3, 16, 16)]
    ] * STEPS
    assert_close(again, whole, atol=0)
    assert_close(tail, whole[2:], atol=0)
    assert not torch.equal(other[0][0], whole[0][0])


def test_two_views_of_one_policy_differ(images: Images) -> None:
    first, second = views_of(images, policies=POLICIES[:1] * 2)[0]
    assert (first - second).abs().mean() > 0.1


def test_the_shares_of_ranks_together_are_the_views_of_the_global_batch(images: Images) -> None:
    shares = [views_of(images, share=slice(start, start + 5)) for start in (0, 5)]
    joined = [[torch.cat(pair) for pair in zip(*steps, strict=True)] for steps in zip(*shares, strict=True)]
    assert_close(joined, views_of(images))


def test_parts_of_a_step_are_rows_of_its_views(images: Images) -> None:
    def odd(step) -> list[Tensor]:
        part = slice(1, None, 2)
        assert len(step.rows[part]) == BATCH // 2
        return step.make(part)

    whole = views_of(images)
    assert_close(views_of(images, make=odd), [[view[1::2] for view in step] for step in whole])


@pytest.mark.parametrize("at_once", [2, 3, 9])
def test_views_made_for_several_steps_at_once_are_those_of_each_step(
    streamed: StreamedImages, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run has other groups of steps than one that was never interrupted."""

    def odd(step) -> list[Tensor]:
        return step.make(slice(1, None, 2))

    images = streamed[:]
    whole, odd_rows = views_of(images), views_of(images, make=odd)
    monkeypatch.setattr(RandomViews, "_steps_at_once", lambda self, first: at_once)
    assert_close(views_of(images), whole)
    assert_close(views_of(images, first=1), whole[1:])
    assert_close(views_of(images, make=odd), odd_rows)
    share = slice(2, 7)
    assert_close(views_of(images, share=share), [[view[share] for view in step] for step in whole])
    assert views_of(images, first=STEPS) == []


def test_square_pictures_get_the_views_that_they_get_in_memory(streamed: StreamedImages) -> None:
    # the crops of streamed pictures are rounded to 8 bits, which the jitter stretches; a coin that falls at the
    # threshold of solarisation would fall otherwise
    policies = tuple(replace(policy, solarize=0.0) for policy in POLICIES)
    in_memory, from_disk = views_of(streamed[:], policies=policies), views_of(streamed, policies=policies)
    assert_close(from_disk, in_memory, atol=5 / 255 / 0.2)


def test_plain_views_are_resized_and_normalised_in_the_order_of_the_rows(images: Images) -> None:
    rows = torch.arange(600) * 7 % IMAGES
    batches = list(plain_views(images, rows, 16, NORMALISATION, CPU))
    assert [len(batch) for batch in batches] == [256, 256, 88]
    resized = tv.resize(images[rows] / 255, [16, 16], antialias=True)
    expected = tv.normalize(resized, list(NORMALISATION.mean), list(NORMALISATION.std))
    torch.testing.assert_close(torch.cat(batches), expected, atol=1e-5, rtol=0)
