import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

from twinbench.data.augment import eval_view
from twinbench.data.catalogue import load_image_set
from twinbench.data.streaming import StreamedImages
from twinbench.downstream.views import (
    EpochOrder,
    all_training_images,
    central_views,
    crop_and_flip,
    readable,
    skipped_images,
    training_views,
)
from twinbench.encoders.encoder import Encoder
from twinbench.foundation.errors import InputError
from twinbench.foundation.randomness import seeded_generator

CPU = torch.device("cpu")


def smooth(rng, width, height):
    """Far enough from black and white that resampling never overshoots them."""
    coarse = Image.fromarray(rng.integers(70, 186, (4, 5, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """Two classes of pictures of different sizes."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 20), ("test", 6)):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(n):
                width, height = rng.integers(16, 60, 2)
                smooth(rng, int(width), int(height)).save(tmp_path / split / name / f"{name}{i}.png")
    return tmp_path


def streamed_set(folder):
    return load_image_set(f"folder:{folder}", image_size=16, stream=True)


def test_the_training_view_has_the_defaults_of_torchvision():
    policy = crop_and_flip(224)
    defaults = inspect.signature(transforms.RandomResizedCrop).parameters
    assert policy.crop_scale == defaults["scale"].default
    assert policy.crop_ratio == defaults["ratio"].default
    assert policy.interpolation == defaults["interpolation"].default.value
    assert policy.flip == inspect.signature(transforms.RandomHorizontalFlip).parameters["p"].default
    assert not any((policy.jitter, policy.grayscale, policy.blur, policy.solarize))


def torchvisions(encoder, size, large):
    """The test view of the published linear evaluations, of a PIL image."""
    return transforms.Compose(
        [
            transforms.Resize(large),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(encoder.mean, encoder.std),
        ]
    )


def with_input_size(encoder, size):
    return Encoder(encoder.backbone, replace(encoder.info, input_size=size), encoder.checksum)


@pytest.mark.parametrize(("size", "large"), [(16, 18), (20, 23), (224, 256)])
def test_streamed_test_pictures_are_resized_and_cropped_by_torchvision(folder, make_encoder, size, large):
    encoder, images = with_input_size(make_encoder(0), size), streamed_set(folder).split("test").images
    rows = torch.tensor([3, 0, 11, 7, 8])
    views = torch.cat(list(central_views(images, rows, encoder, CPU)))
    pipeline = torchvisions(encoder, size, large)
    for view, row in zip(views, rows.tolist(), strict=True):
        torch.testing.assert_close(view, pipeline(Image.open(images.path(row))), atol=1e-5, rtol=0)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-60])


def test_a_corrupt_picture_is_refused_by_name_in_every_view(folder, make_encoder):
    encoder, image_set = make_encoder(0), streamed_set(folder)
    train, test = all_training_images(image_set), image_set.split("test")
    cut_short(folder / "test" / "ant" / "ant3.png")
    cut_short(train.images.path(2))
    with pytest.raises(InputError, match="cannot decode") as error:
        list(central_views(test.images, torch.arange(12), encoder, CPU))
    assert error.value.where == folder / "test" / "ant" / "ant3.png"
    with pytest.raises(InputError, match="cannot decode") as error:
        list(training_views(train.images, lambda step: torch.arange(4), 1, 0, encoder, CPU))
    assert error.value.where == train.images.path(2)


def test_skipped_pictures_are_counted_and_their_substitutes_known(folder, make_encoder):
    encoder = make_encoder(0)
    image_set = load_image_set(f"folder:{folder}", image_size=16, stream=True, corrupt="skip")
    train, test = all_training_images(image_set), image_set.split("test")
    assert skipped_images(train=train, test=test) == {}
    cut_short(folder / "test" / "ant" / "ant3.png")
    cut_short(train.images.path(2))
    rows = torch.tensor([5, 3, 0])
    views = torch.cat(list(central_views(test.images, rows, encoder, CPU)))
    list(training_views(train.images, lambda step: torch.arange(4), 3, 0, encoder, CPU))
    assert views.shape == (3, 3, 16, 16)
    assert readable(test.images, rows).tolist() == [True, False, True]
    assert readable(train.images, torch.arange(4)).tolist() == [True, True, False, True]
    assert skipped_images(train=train, test=test) == {"train": 1, "test": 1}
    assert image_set.skipped == {"test": 1}


def test_images_in_memory_are_all_readable(image_set):
    split = image_set.split("test")
    assert readable(split.images, torch.arange(4)).tolist() == [True] * 4
    assert skipped_images(train=split, test=split) == {}


@pytest.mark.parametrize(("size", "large"), [(16, 18), (20, 23), (32, 37), (68, 78)])
def test_images_of_the_input_size_are_seen_whole_and_larger_ones_without_their_margin(
    make_encoder, size, large
):
    encoder, generator = with_input_size(make_encoder(0), size), torch.Generator().manual_seed(0)
    rows = torch.tensor([4, 2])
    stored = torch.randint(0, 256, (5, 3, size, size), generator=generator).to(torch.uint8)
    (whole,) = central_views(stored, rows, encoder, CPU)
    assert torch.equal(whole, eval_view(stored[rows], size, encoder.normalisation))
    larger = torch.randint(0, 256, (5, 3, 40, 40), generator=generator).to(torch.uint8)
    (central,) = central_views(larger, rows, encoder, CPU)
    resized = functional.resize(larger[rows].float() / 255, [large, large], antialias=True)
    expected = functional.normalize(functional.center_crop(resized, [size, size]), encoder.mean, encoder.std)
    torch.testing.assert_close(central, expected, atol=1e-5, rtol=0)


def test_train_and_val_are_joined_in_order(folder, image_set):
    joined, train, val = all_training_images(image_set), image_set.split("train"), image_set.split("val")
    assert torch.equal(joined.images[len(train) :], val.images)
    assert torch.equal(joined.labels, torch.cat([train.labels, val.labels]))
    on_disk = streamed_set(folder)
    streamed = all_training_images(on_disk)
    assert isinstance(streamed.images, StreamedImages)
    assert len(streamed) == 40
    classes = [streamed.images.path(row).parent.name for row in range(40)]
    assert classes == [on_disk.classes[label] for label in streamed.labels.tolist()]
    assert len({streamed.images.path(row) for row in range(40)}) == 40


@pytest.mark.parametrize("images", [3, 256, 257, 700])
def test_every_epoch_sees_every_image_once_in_batches_of_about_one_size(images):
    rows = torch.arange(images) * 2
    order = EpochOrder(rows, seed=5)
    assert order.steps_per_epoch == -(-images // 256)
    epochs = []
    for epoch in range(2):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        batches = [order(step) for step in steps]
        sizes = [len(batch) for batch in batches]
        assert max(sizes) <= min(256, min(sizes) + 1)
        epochs.append(torch.cat(batches))
        assert torch.equal(epochs[-1].sort().values, rows)
    assert not torch.equal(*epochs)
    assert torch.equal(EpochOrder(rows, seed=5)(0), order(0))
    assert not torch.equal(EpochOrder(rows, seed=6)(0), order(0))


def views_of(images, encoder, seed=0, steps=2):
    return list(
        training_views(images, lambda step: torch.arange(6) + step, steps, seed, encoder, torch.device("cpu"))
    )


def test_training_views_depend_on_seed_and_step_alone(make_encoder, image_set):
    encoder, images = make_encoder(0), image_set.split("train").images
    state = torch.get_rng_state()
    first = views_of(images, encoder)
    again, other = views_of(images, encoder), views_of(images, encoder, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0][1], first[1][0])  # the same image in two steps


def test_streamed_squares_get_the_views_that_they_get_in_memory(tmp_path, make_encoder):
    encoder, rng = make_encoder(0), np.random.default_rng(0)
    pictures = [smooth(rng, 16, 16) for _ in range(8)]
    paths = [tmp_path / f"{i}.png" for i in range(8)]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    memory = torch.stack([torch.from_numpy(np.array(picture).transpose(2, 0, 1)) for picture in pictures])
    streamed = StreamedImages(paths, np.zeros(8, np.int64), 16)
    # the crops of a streamed picture are rounded to 8 bits
    tolerance = 1.5 / 255 / min(encoder.std)
    for ours, theirs in zip(views_of(memory, encoder), views_of(streamed, encoder), strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


def test_every_argument_changes_the_generator():
    draws = [
        torch.rand(4, generator=seeded_generator(seed, purpose, counter))
        for seed in (0, 1, 2**32)
        for purpose in ("order", "views")
        for counter in (0, 1)
    ]
    assert len({tuple(draw.tolist()) for draw in draws}) == 12
    again = torch.rand(4, generator=seeded_generator(0, "order", 0))
    assert torch.equal(draws[0], again)
