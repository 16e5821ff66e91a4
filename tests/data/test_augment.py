"""Batched augmentation against torchvision's functional operations, one image at a time."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

import twinbench.data.augment
from twinbench.data.augment import (
    Normalisation,
    ViewParameters,
    ViewPolicy,
    apply,
    augment,
    blur_taps,
    draw_parameters,
    eval_view,
)

NONE = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
ORDER = ("brightness", "contrast", "saturation", "hue")


def random_images(n: int, height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    """Images with flat areas, gradients and noise, so that hue and resampling meet easy and hard pixels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    noise = torch.rand(n, 3, height, width, generator=generator)
    images = (255 * (0.7 * smooth + 0.3 * noise)).to(torch.uint8)
    images[:, :, : height // 4] = 255 * images[:, :, : height // 4].div(128, rounding_mode="floor")
    return images


def parameters_of(n: int, side: int = 32, **changes: object) -> ViewParameters:
    """Parameters that leave the image as it is, except for ``changes``."""
    whole: dict[str, torch.Tensor] = {
        "top": torch.zeros(n, dtype=torch.long),
        "left": torch.zeros(n, dtype=torch.long),
        "height": torch.full((n,), side),
        "width": torch.full((n,), side),
        "order": torch.arange(4).expand(n, 4),
        **{
            name: torch.zeros(n, dtype=torch.bool)
            for name in ("flip", "jitter", "grayscale", "blur", "solarize")
        },
        **{
            name: torch.ones(n, dtype=torch.float64)
            for name in ("brightness", "contrast", "saturation", "sigma")
        },
        "hue": torch.zeros(n, dtype=torch.float64),
    }
    return ViewParameters(**{**whole, **{name: torch.as_tensor(value) for name, value in changes.items()}})


def reference(image: torch.Tensor, parameters: ViewParameters, policy: ViewPolicy) -> torch.Tensor:
    """The same view by torchvision's functional operations on one float64 image."""
    p = parameters
    x = tv.resized_crop(
        image.double() / 255,
        int(p.top),
        int(p.left),
        int(p.height),
        int(p.width),
        [policy.size, policy.size],
        interpolation=v2.InterpolationMode(policy.interpolation),
        antialias=True,
    ).clamp(0, 1)
    if p.flip:
        x = tv.horizontal_flip(x)
    if p.jitter:
        for which in p.order.flatten().tolist():
            name = ORDER[which]
            x = getattr(tv, f"adjust_{name}")(x, float(getattr(p, name)))
    if p.grayscale:
        x = tv.rgb_to_grayscale(x, num_output_channels=3)
    if p.blur:
        x = tv.gaussian_blur(x, [blur_taps(policy.size)] * 2, [float(p.sigma)] * 2)
    if p.solarize:
        x = tv.solarize(x, 0.5)
    return x


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("source", "size"), [((32, 32), 32), ((64, 48), 32), ((24, 40), 32), ((50, 50), 20)])
def test_crop_resize_and_flip_are_torchvisions(
    interpolation: str, source: tuple[int, int], size: int
) -> None:
    images = random_images(12, *source)
    policy = ViewPolicy(size, interpolation=interpolation, jitter=0, grayscale=0)  # type: ignore[arg-type]
    drawn = draw_parameters(policy, 12, *source, torch.Generator().manual_seed(1))
    assert 0 < drawn.flip.sum() < 12
    result = apply(images, drawn, policy, NONE)
    for i in range(12):
        expected = reference(images[i], drawn[i : i + 1], policy)
        torch.testing.assert_close(result[i].double(), expected, atol=2e-6, rtol=0)


def test_a_crop_of_one_pixel() -> None:
    images = random_images(1)
    tiny = parameters_of(1, top=[3], left=[5], height=[1], width=[1])
    result = apply(images, tiny, ViewPolicy(8), NONE)
    torch.testing.assert_close(result[0], (images[0, :, 3, 5] / 255).view(3, 1, 1).expand(3, 8, 8))


@pytest.mark.parametrize(
    ("name", "amount"),
    [(name, amount) for name in ORDER[:3] for amount in (0.0, 0.1, 0.77, 1.0, 1.6)]
    + [("hue", amount) for amount in (-0.5, -0.07, 0.0, 0.1, 0.5)],
)
def test_each_colour_operation_is_torchvisions(name: str, amount: float) -> None:
    images = random_images(3)
    policy = ViewPolicy(32)
    chosen = parameters_of(3, jitter=[True] * 3, **{name: torch.full((3,), amount, dtype=torch.float64)})
    result = apply(images, chosen, policy, NONE)
    for image, view in zip(images, result, strict=True):
        expected = getattr(tv, f"adjust_{name}")(image.double() / 255, amount)
        torch.testing.assert_close(view.double(), expected, atol=3e-6, rtol=0)


@pytest.mark.parametrize("size", [32, 96])
@pytest.mark.parametrize("sigma", [0.1, 0.8, 2.0])
def test_truncated_blur_is_torchvisions(size: int, sigma: float) -> None:
    images = random_images(2, size, size)
    chosen = parameters_of(2, size, blur=[True, False], sigma=[sigma, sigma])
    result = apply(images, chosen, ViewPolicy(size), NONE)
    expected = tv.gaussian_blur(images[0].double() / 255, [blur_taps(size)] * 2, [sigma] * 2)
    torch.testing.assert_close(result[0].double(), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(result[1], images[1] / 255)


def test_blur_has_23_taps_at_224_and_3_at_32() -> None:
    assert [blur_taps(size) for size in (224, 96, 32, 8)] == [23, 9, 3, 3]


def blurred(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Float images in [0, 1] after Pillow's kind of blur, all with one standard deviation."""
    n, _, size, _ = images.shape
    chosen = parameters_of(n, size, blur=[True] * n, sigma=torch.full((n,), sigma, dtype=torch.float64))
    return apply(images, chosen, ViewPolicy(size, blur_kernel="pillow"), NONE)


def blurred_by_pillow(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """The same of uint8 images by Pillow, uint8."""
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    results = [np.asarray(picture.filter(ImageFilter.GaussianBlur(sigma))) for picture in pictures]
    return torch.from_numpy(np.stack(results)).permute(0, 3, 1, 2)


def spread(response: torch.Tensor) -> float:
    """The standard deviation over columns of what became of one bright pixel, ``[3, size, size]``."""
    weights = response[0].double().sum(dim=0)
    offsets = torch.arange(len(weights)) - len(weights) // 2
    return float((weights * offsets.square()).sum() / weights.sum()) ** 0.5


SIGMAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.8, 1.1, 1.3, 1.7, 2.0)


@pytest.mark.parametrize("size", [96, 224])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_blur_of_pillow_has_the_standard_deviation_that_was_drawn(size: int, sigma: float) -> None:
    impulse = torch.zeros(1, 3, size, size)
    impulse[:, :, size // 2, size // 2] = 1
    response = blurred(impulse, sigma)[0]
    assert spread(response) == pytest.approx(sigma, rel=1e-4)
    assert response.sum() == pytest.approx(3, rel=1e-5)
    if sigma >= 0.5:  # below, Pillow's 8 bits round most of what one pixel gives its neighbours to nothing
        theirs = blurred_by_pillow((impulse * 255).to(torch.uint8), sigma)[0]
        assert (theirs / 255 - response).abs().max() <= 2 / 255


@pytest.mark.parametrize("size", [8, 33, 96, 224])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_blur_of_pillow_is_pillows_up_to_its_rounding(size: int, sigma: float) -> None:
    """Borders included, no pixel is off by more than the six times half a level that Pillow rounds it by."""
    images = random_images(2, size, size)
    difference = 255 * blurred(images / 255, sigma) - blurred_by_pillow(images, sigma)
    assert difference.abs().max() <= 3
    assert difference.square().mean().sqrt() <= 1.2
    assert difference.mean().abs() <= 0.2


def test_the_truncated_blur_falls_short_of_it_in_small_views_and_at_small_sigma() -> None:
    impulse = torch.zeros(1, 3, 96, 96)
    impulse[:, :, 48, 48] = 1
    for sigma, expected in ((2.0, 1.85), (0.3, 0.09)):
        chosen = parameters_of(1, 96, blur=[True], sigma=[sigma])
        assert spread(apply(impulse, chosen, ViewPolicy(96), NONE)[0]) == pytest.approx(expected, abs=0.01)


def test_each_image_has_its_own_standard_deviation() -> None:
    images = random_images(len(SIGMAS), 40, 40) / 255
    chosen = parameters_of(len(SIGMAS), 40, blur=[True] * len(SIGMAS), sigma=SIGMAS)
    together = apply(images, chosen, ViewPolicy(40, blur_kernel="pillow"), NONE)
    alone = torch.cat([blurred(image[None], sigma) for image, sigma in zip(images, SIGMAS, strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_solarize_inverts_from_128() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    result = apply(levels, parameters_of(1, 16, solarize=[True]), ViewPolicy(16), NONE)
    result = (result[0, 0] * 255).round().flatten().tolist()
    assert result == [v if v < 128 else 255 - v for v in range(256)]


def test_grayscale_and_normalisation() -> None:
    images = random_images(2)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    drawn = parameters_of(2, grayscale=[True, False])
    result = apply(images, drawn, ViewPolicy(32), Normalisation(mean, std))
    gray = tv.normalize(tv.rgb_to_grayscale(images[0] / 255, num_output_channels=3), mean, std)
    torch.testing.assert_close(result[0], gray, atol=1e-5, rtol=0)
    torch.testing.assert_close(result[1], tv.normalize(images[1] / 255, mean, std), atol=1e-5, rtol=0)


EVERYTHING = ViewPolicy(32, jitter=0.8, hue=0.2, saturation=0.8, blur=0.5, solarize=0.2)


def test_the_whole_pipeline_is_the_operations_in_order() -> None:
    images = random_images(48, 40, 36)
    drawn = draw_parameters(EVERYTHING, 48, 40, 36, torch.Generator().manual_seed(3))
    result = apply(images, drawn, EVERYTHING, NONE)
    for i in range(48):
        expected = reference(images[i], drawn[i : i + 1], EVERYTHING)
        # a pixel within rounding of the solarisation threshold may fall on its other side
        wrong = (result[i].double() - expected).abs() > 2e-5
        assert wrong.float().mean() < 0.001


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_large_images_take_another_way_to_the_same_pixels(
    interpolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU large sides are resized and blurred without the dense matrices of small ones."""
    images = random_images(12, 150, 140)
    policy = replace(EVERYTHING, size=132, solarize=0.0, interpolation=interpolation)  # type: ignore[arg-type]
    drawn = draw_parameters(policy, 12, 150, 140, torch.Generator().manual_seed(2))
    assert 0 < drawn.blur.sum() < 12
    assert 0 < drawn.flip.sum() < 12
    result = apply(images, drawn, policy, NONE)
    for i in range(12):
        expected = reference(images[i], drawn[i : i + 1], policy)
        torch.testing.assert_close(result[i].double(), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(apply(images / 255, drawn, policy, NONE), result, atol=1e-5, rtol=0)
    monkeypatch.setattr(twinbench.data.augment, "_LARGEST_DENSE_SIDE", 200)
    dense = apply(images, drawn, policy, NONE)
    torch.testing.assert_close(dense, result, atol=1e-5, rtol=0)
    assert not torch.equal(dense, result)


def test_an_image_of_the_batch_is_the_image_alone() -> None:
    images = random_images(40)
    drawn = draw_parameters(EVERYTHING, 40, 32, 32, torch.Generator().manual_seed(4))
    together = apply(images, drawn, EVERYTHING, NONE)
    alone = torch.cat([apply(images[i : i + 1], drawn[i : i + 1], EVERYTHING, NONE) for i in range(40)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_same_seed_same_bits_and_two_views_are_independent() -> None:
    images = random_images(64)

    def two_views(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return augment(images, EVERYTHING, NONE, generator), augment(images, EVERYTHING, NONE, generator)

    first, second = two_views(5), two_views(5)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], first[1])
    generator = torch.Generator().manual_seed(6)
    a = draw_parameters(EVERYTHING, 4000, 32, 32, generator)
    b = draw_parameters(EVERYTHING, 4000, 32, 32, generator)
    for name in ("brightness", "flip", "top", "hue", "blur", "grayscale"):
        pair = torch.stack([getattr(a, name).double(), getattr(b, name).double()])
        assert abs(torch.corrcoef(pair)[0, 1]) < 4 / math.sqrt(4000)


def test_float_input_is_left_alone() -> None:
    images = random_images(8)
    floats = images / 255
    before = floats.clone()
    drawn = draw_parameters(EVERYTHING, 8, 32, 32, torch.Generator().manual_seed(7))
    from_floats = apply(floats, drawn, EVERYTHING, NONE)
    assert torch.equal(floats, before)
    from_bytes = apply(images, drawn, EVERYTHING, NONE)
    assert (from_floats - from_bytes).abs().median() < 1e-5, "single pixels may pass a threshold"


def test_autocast_does_not_reach_the_pixels() -> None:
    images = random_images(4)
    drawn = draw_parameters(EVERYTHING, 4, 32, 32, torch.Generator().manual_seed(8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = apply(images, drawn, EVERYTHING, NONE)
    assert torch.equal(inside, apply(images, drawn, EVERYTHING, NONE))


# Distributions. 4000 draws; a frequency p may be off by four of its standard deviations.
N = 4000


@pytest.mark.parametrize(("blur", "solarize"), [(1.0, 0.0), (0.1, 0.2), (0.5, 0.0)])
def test_probabilities(blur: float, solarize: float) -> None:
    policy = ViewPolicy(32, blur=blur, solarize=solarize)
    drawn = draw_parameters(policy, N, 32, 32, torch.Generator().manual_seed(9))
    expected = {"flip": 0.5, "jitter": 0.8, "grayscale": 0.2, "blur": blur, "solarize": solarize}
    for name, p in expected.items():
        frequency = getattr(drawn, name).double().mean().item()
        assert abs(frequency - p) <= 4 * math.sqrt(p * (1 - p) / N), name


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.2, 1.0), (0.14, 1.0), (0.05, 0.14)])
def test_crops_are_drawn_as_torchvision_draws_them(scale: tuple[float, float]) -> None:
    side = 224
    policy = ViewPolicy(224, crop_scale=scale)
    drawn = draw_parameters(policy, N, side, side, torch.Generator().manual_seed(10))
    assert bool((drawn.top >= 0).all() and (drawn.top + drawn.height <= side).all())
    assert bool((drawn.left >= 0).all() and (drawn.left + drawn.width <= side).all())
    area = (drawn.height * drawn.width).double() / side**2
    ratio = drawn.width.double() / drawn.height
    assert scale[0] - 0.01 <= area.min() <= scale[0] + 0.01
    assert area.max() <= min(scale[1] + 0.01, 1.0)
    assert 3 / 4 - 0.02 <= ratio.min() <= ratio.max() <= 4 / 3 + 0.02

    torch.manual_seed(0)
    theirs = v2.RandomResizedCrop(224, scale=scale)
    params = [theirs.make_params([torch.empty(3, side, side)]) for _ in range(N)]
    for name in ("top", "left", "height", "width"):
        reference_draws = torch.tensor([float(p[name]) for p in params])
        ours = getattr(drawn, name).float()
        error = math.sqrt(float(ours.var() + reference_draws.var()) / N)
        assert abs(float(ours.mean() - reference_draws.mean())) < 4 * error, name
        assert abs(float(ours.std() / reference_draws.std()) - 1) < 0.06, name


def test_aspect_is_log_uniform_and_area_is_uniform_where_nothing_is_rejected() -> None:
    policy = ViewPolicy(224, crop_scale=(0.05, 0.14))
    drawn = draw_parameters(policy, N, 1000, 1000, torch.Generator().manual_seed(11))
    log_ratio = (drawn.width.double() / drawn.height).log() / math.log(4 / 3)
    area = ((drawn.height * drawn.width).double() / 1e6 - 0.05) / 0.09
    for sample in (log_ratio / 2 + 0.5, area):
        assert_uniform(sample)


def assert_uniform(sample: torch.Tensor) -> None:
    """Kolmogorov-Smirnov against U(0, 1) at about one in ten thousand."""
    ordered = sample.double().sort().values
    grid = torch.arange(1, len(ordered) + 1) / len(ordered)
    assert (ordered - grid).abs().max() < 2.2 / math.sqrt(len(ordered))


def test_factors_sigma_and_order_are_uniform() -> None:
    policy = ViewPolicy(32, brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1, blur_sigma=(0.1, 2.0))
    drawn = draw_parameters(policy, N, 32, 32, torch.Generator().manual_seed(12))
    assert_uniform((drawn.brightness - 0.6) / 0.8)
    assert_uniform(drawn.contrast / 2.5)
    assert_uniform((drawn.saturation - 0.8) / 0.4)
    assert_uniform((drawn.hue + 0.1) / 0.2)
    assert_uniform((drawn.sigma - 0.1) / 1.9)
    codes = (drawn.order * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = codes.unique(return_counts=True)[1]
    assert len(counts) == 24
    assert counts.min() > N / 24 - 5 * math.sqrt(N / 24)


def test_a_narrow_image_falls_back_to_the_largest_central_crop() -> None:
    policy = ViewPolicy(32, crop_scale=(1.0, 1.0))
    drawn = draw_parameters(policy, 5, 100, 20, torch.Generator().manual_seed(13))
    assert drawn.width.tolist() == [20] * 5
    assert drawn.height.tolist() == [round(20 / (3 / 4))] * 5
    assert drawn.top.tolist() == [(100 - 27) // 2] * 5
    drawn = draw_parameters(policy, 5, 20, 100, torch.Generator().manual_seed(13))
    assert drawn.height.tolist() == [20] * 5
    assert drawn.width.tolist() == [round(20 * (4 / 3))] * 5


def test_eval_view_resizes_and_normalises() -> None:
    images = random_images(3, 48, 48)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    result = eval_view(images, 32, Normalisation(mean, std))
    for image, view in zip(images, result, strict=True):
        expected = tv.normalize(tv.resize(image / 255, [32, 32], antialias=True), mean, std)
        torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)
    same = eval_view(images, 48, NONE)
    torch.testing.assert_close(same, images / 255)
