"""The views that a GPU makes are those of the CPU, up to rounding."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from twinbench.data.augment import Normalisation, ViewPolicy, apply, draw_parameters
from twinbench.data.streaming import Images, StreamedImages
from twinbench.data.views import RandomViews, plain_views
from twinbench.foundation.transfer import to_device

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
NORMALISATION = Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
EVERYTHING = {"blur": 0.5, "solarize": 0.2}


def pictures(n: int, side: int) -> Tensor:
    """Smooth colours with a little noise: uint8 ``[n, 3, side, side]``."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    noise = torch.rand(n, 3, side, side, generator=generator)
    return (255 * (0.8 * smooth + 0.2 * noise)).to(torch.uint8)


def assert_same_views(ours: Tensor, theirs: Tensor, atol: float = 1e-4) -> None:
    """Equal but for the few pixels that fall on another side of the threshold of solarisation."""
    apart = (ours.cpu() - theirs).abs() > atol
    assert ours.shape == theirs.shape
    assert apart.float().mean() < 1e-3


@pytest.mark.parametrize(
    ("side", "policy"),
    [
        (32, ViewPolicy(32, **EVERYTHING, blur_kernel="pillow")),
        (50, ViewPolicy(40, **EVERYTHING, interpolation="bilinear")),
        (256, ViewPolicy(224, **EVERYTHING)),
        (256, ViewPolicy(160, **EVERYTHING, blur_kernel="pillow", interpolation="bilinear")),
    ],
)
def test_a_view_is_that_of_the_cpu(gpu: torch.device, side: int, policy: ViewPolicy) -> None:
    images = pictures(24, side)
    drawn = draw_parameters(policy, 24, side, side, torch.Generator().manual_seed(1))
    made = apply(images.to(gpu), drawn, policy, NORMALISATION)
    assert made.device.type == gpu.type
    assert_same_views(made, apply(images, drawn, policy, NORMALISATION))


@pytest.fixture(params=["in memory", "streamed"])
def images(request: pytest.FixtureRequest, tmp_path: Path) -> Images:
    made = pictures(20, 40)
    if request.param == "in memory":
        return made
    paths = [tmp_path / f"{i:02}.png" for i in range(len(made))]
    for path, image in zip(paths, made, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return StreamedImages(paths, np.full(len(paths), -1), 40)


def views_of(images: Images, device: torch.device, make: Callable[..., list[Tensor]]) -> list[list[Tensor]]:
    def rows(step: int) -> Tensor:
        return torch.randperm(20, generator=torch.Generator().manual_seed(step))[:8]

    policies = [ViewPolicy(32, **EVERYTHING), ViewPolicy(24, interpolation="bilinear")]
    views = RandomViews(images, rows, policies, NORMALISATION, 0, device, 0)
    return [make(step) for step in views.steps(1, 6)]


@pytest.mark.parametrize("at_once", [None, 3])
def test_every_step_of_a_training_has_the_views_of_the_cpu(
    gpu: torch.device, images: Images, at_once: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(step) -> list[Tensor]:
        return step.make(slice(1, None, 2))

    expected = views_of(images, CPU, odd)
    if at_once and not isinstance(images, StreamedImages):
        monkeypatch.setattr(RandomViews, "_steps_at_once", lambda self, first: at_once)
    for ours, theirs in zip(views_of(images, gpu, odd), expected, strict=True):
        for view, other in zip(ours, theirs, strict=True):
            assert_same_views(view, other)


def test_views_without_randomness_are_those_of_the_cpu(gpu: torch.device, images: Images) -> None:
    rows = torch.arange(20)
    ours, theirs = (torch.cat(list(plain_views(images, rows, 32, NORMALISATION, d))) for d in (gpu, CPU))
    assert_same_views(ours, theirs, atol=1e-5)


def test_what_is_sent_together_arrives(gpu: torch.device) -> None:
    sent = [torch.tensor([True, False]), torch.randn(3, 5).T, torch.empty(0, 2), torch.arange(70_000)]
    for there, here in zip(to_device(sent, gpu), sent, strict=True):
        assert (there.device.type, there.dtype) == (gpu.type, here.dtype)
        assert torch.equal(there.cpu(), here)
