"""Images on disk: the pixels of a set in memory, and crops that depend on the seed, the step and the place only."""

import multiprocessing
import os
import resource
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from twinbench.data import streaming
from twinbench.data.augment import Normalisation, ViewPolicy, apply, draw_parameters, finish
from twinbench.data.catalogue import load_image_set
from twinbench.data.image_sets import ImageSet, Split
from twinbench.data.streaming import CropStream, StreamedImages
from twinbench.foundation.errors import InputError, RunFailure, ShortOfMemory

POLICIES = (ViewPolicy(24), ViewPolicy(16, crop_scale=(0.05, 0.3), interpolation="bilinear"))
BATCH, STEPS, IMAGES = 10, 4, 23


def smooth_picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Far enough from black and white that resampling never overshoots them."""
    coarse = Image.fromarray(rng.integers(70, 186, (4, 5, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def write_pictures(folder: Path, n: int, seed: int = 0, side: int = 0) -> list[Path]:
    """JPEGs of different sizes, or squares of a ``side``."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = [folder / f"{i:03}.jpg" for i in range(n)]
    for path in paths:
        width, height = (side, side) if side else rng.integers(30, 90, 2)
        smooth_picture(rng, int(width), int(height)).save(path, quality=95)
    return paths


def truncate(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-200])
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for seed, (split, name) in enumerate([(s, n) for s in ("train", "test") for n in ("ant", "bee")]):
        write_pictures(tmp_path / "set" / split / name, 12, seed)
    return tmp_path / "set"


def load(root: Path, **options: object) -> ImageSet:
    return load_image_set(f"folder:{root}", image_size=20, **options)  # type: ignore[arg-type]


def streamed(split: Split) -> StreamedImages:
    assert isinstance(split.images, StreamedImages)
    return split.images


def rows_of(step: int, images: int = IMAGES) -> torch.Tensor:
    return torch.randperm(images, generator=torch.Generator().manual_seed(1000 + step))[:BATCH]


def generator_of(step: int) -> torch.Generator:
    return torch.Generator().manual_seed(step)


def stream(
    images: StreamedImages, workers: int = 0, first: int = 0, share: slice = slice(None)
) -> CropStream:
    rows = partial(rows_of, images=len(images))
    return CropStream(images, POLICIES, rows, generator_of, first, STEPS, workers, share)


@pytest.fixture
def pictures(tmp_path: Path) -> StreamedImages:
    paths = write_pictures(tmp_path / "pictures", IMAGES)
    return StreamedImages(paths, np.full(IMAGES, -1), 20)


# A streamed set in the place of a tensor.


def test_a_streamed_set_has_the_pixels_of_a_set_in_memory(tree: Path) -> None:
    on_disk, in_memory = load(tree, stream=True), load(tree)
    assert on_disk.streamed
    assert not in_memory.streamed
    for name in ("train", "val", "test"):
        images, expected = streamed(on_disk.split(name)), in_memory.split(name).images
        assert isinstance(expected, torch.Tensor)
        assert torch.equal(on_disk.split(name).labels, in_memory.split(name).labels)
        assert (images.shape, len(images)) == (expected.shape, len(expected))
        assert torch.equal(images[:], expected)
        some = torch.tensor([1, 0, 1, -1])
        mask = torch.arange(len(images)) % 2 == 0
        for index in (slice(1), slice(None, None, 3), slice(0, 0), some, some[:0], mask, 1):
            assert torch.equal(images[index], expected[index])
    with pytest.raises(IndexError):
        streamed(on_disk.split("val"))[torch.tensor([99])]


def test_what_is_streamed_is_decided_by_the_decoded_size(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = 48 * 3 * 20 * 20
    monkeypatch.setattr("twinbench.data.image_sets._IN_MEMORY_BYTES", decoded)
    assert not load(tree).streamed
    monkeypatch.setattr("twinbench.data.image_sets._IN_MEMORY_BYTES", decoded - 1)
    assert load(tree).streamed
    assert not load(tree, stream=False).streamed
    assert not load(tree, limit={"train": 2}).streamed
    assert load(tree).fingerprint != load(tree, stream=False).fingerprint, "training sees other views"


# Crops.


def test_crops_do_not_depend_on_workers_or_chunks(
    pictures: StreamedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = list(stream(pictures))
    assert [[tuple(view.shape) for view in step] for step in alone] == [
        [(10, 3, 24, 24), (10, 3, 16, 16)]
    ] * STEPS
    monkeypatch.setattr(streaming, "_CHUNK", 3)
    state = torch.get_rng_state()
    for workers in (0, 1, 2):
        for ours, expected in zip(stream(pictures, workers), alone, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert torch.equal(torch.get_rng_state(), state), "the process's own generator is left alone"


def test_a_resumed_stream_is_the_tail(pictures: StreamedImages) -> None:
    whole, tail = list(stream(pictures)), list(stream(pictures, first=2))
    assert len(tail) == STEPS - 2
    for ours, expected in zip(tail, whole[2:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_the_shares_of_ranks_together_are_the_whole_batch(pictures: StreamedImages) -> None:
    shares = [stream(pictures, share=slice(start, start + 5)) for start in (0, 5)]
    for first, second, whole in zip(*shares, stream(pictures), strict=True):
        for a, b, both in zip(first, second, whole, strict=True):
            assert torch.equal(torch.cat([a, b]), both)


def test_crops_are_the_batched_ones_on_each_whole_picture(pictures: StreamedImages) -> None:
    """Against `apply` with the parameters drawn for that picture's size: within the rounding of Pillow's two passes."""
    for step, views in enumerate(stream(pictures)):
        generator, rows = generator_of(step), rows_of(step).tolist()
        originals = [np.asarray(Image.open(pictures.path(row)).convert("RGB")) for row in rows]
        height, width = torch.tensor([image.shape[:2] for image in originals]).unbind(1)
        for policy, crops in zip(POLICIES, views, strict=True):
            plain = replace(policy, jitter=0.0, grayscale=0.0)
            drawn = draw_parameters(plain, BATCH, height, width, generator)
            for i, original in enumerate(originals):
                source = torch.from_numpy(original.copy()).permute(2, 0, 1)[None]
                exact = 255 * apply(source, drawn[i : i + 1], plain, Normalisation((0, 0, 0), (1, 1, 1)))[0]
                off = (crops[i] - exact).abs()
                # half a level for each pass; the absolute weights of the second one, which passes on the error of
                # the first, sum to at most 1.25
                assert off.max() < 0.5 + 0.5 * 1.25 + 0.01


def test_a_square_set_gets_the_crops_it_would_get_in_memory(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "squares", IMAGES, side=24)
    images = StreamedImages(paths, np.full(IMAGES, -1), 24)
    policy = ViewPolicy(24, blur=0.5)
    (views,) = next(iter(CropStream(images, [policy], rows_of, generator_of, 0, 1, 0)))
    drawn = draw_parameters(policy, BATCH, 24, 24, generator_of(0))
    without_sizes = draw_parameters(policy, BATCH, 1, 1, generator_of(0))
    normalisation = Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    ours = finish(views, without_sizes, policy, normalisation)
    off = (ours - apply(images[rows_of(0)], drawn, policy, normalisation)).abs() * 0.2 * 255
    assert off.max() < 5, "1.5 levels, stretched by brightness, contrast and saturation"
    assert off.mean() < 0.5


def test_finish_is_apply_without_the_crop() -> None:
    images = torch.randint(256, (40, 3, 16, 16), generator=generator_of(0), dtype=torch.uint8)
    policy = ViewPolicy(16, crop_scale=(1, 1), crop_ratio=(1, 1), flip=0, blur=0.5, solarize=0.3)
    drawn = draw_parameters(policy, 40, 16, 16, generator_of(1))
    normalisation = Normalisation((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    expected = apply(images, drawn, policy, normalisation)
    for crops in (images, images / 255):
        ours = finish(crops, drawn, policy, normalisation)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_crops_of_images_of_several_sizes_are_distributed_as_for_one_size() -> None:
    """Each size against torchvision's distribution is test_augment's; here that sizes do not disturb each other."""
    policy, n = ViewPolicy(24), 4000
    height = torch.where(torch.arange(n) % 2 == 0, 375, 60)
    width = torch.where(torch.arange(n) % 2 == 0, 500, 200)
    mixed = draw_parameters(policy, n, height, width, generator_of(0))
    for start, (h, w) in enumerate([(375, 500), (60, 200)]):
        alone = draw_parameters(policy, n, h, w, generator_of(0))[slice(start, None, 2)]
        ours = mixed[slice(start, None, 2)]
        for name in ("top", "left", "height", "width", "flip", "sigma"):
            assert torch.equal(getattr(ours, name), getattr(alone, name)), name
    area = (mixed.height * mixed.width / (height * width)).double()
    ratio = mixed.width / mixed.height
    assert 0.07 < area.min() < 0.1
    assert area[::2].max() <= 1
    assert 0.72 < ratio.min() < ratio.max() < 1.39


# Corrupt images.


@pytest.fixture
def damaged(tree: Path) -> list[Path]:
    """A truncated JPEG and a text file among the training images, and one of them among the test images."""
    text = tree / "train" / "bee" / "005.jpg"
    text.write_text("not an image")
    return [truncate(tree / "train" / "ant" / "003.jpg"), text, truncate(tree / "test" / "ant" / "000.jpg")]


def test_corrupt_images_are_refused_by_name(tree: Path, damaged: list[Path]) -> None:
    for options in ({}, {"stream": True}):
        with pytest.raises(InputError, match="cannot decode") as caught:
            load(tree, **options).split("test").images[:]
        assert caught.value.where == damaged[2]
    with pytest.raises(InputError):
        load_image_set(f"folder:{tree}")  # which looks for the size


def test_a_set_in_memory_goes_without_its_corrupt_images(
    tree: Path, damaged: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    image_set = load_image_set(f"folder:{tree}", corrupt="skip")
    assert {name: len(image_set.split(name)) for name in ("train", "val", "test")} == {
        "train": 20,
        "val": 2,
        "test": 23,
    }
    assert image_set.skipped == {"train": 2, "test": 1}
    assert image_set.split("test").labels.bincount().tolist() == [11, 12]
    for path in damaged:
        assert caplog.text.count(f"skipped {path}:") == 1
    whole = load(tree, stream=True, corrupt="skip").split("test")
    expected = streamed(whole)[torch.arange(1, 24)]
    assert torch.equal(load(tree, corrupt="skip").split("test").images[:], expected)


def test_only_so_many_corrupt_images_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pictures(tmp_path / "train" / "a", 10)
    for path in write_pictures(tmp_path / "test" / "a", 30)[:25]:
        path.write_text("x")
    assert len(load(tmp_path, corrupt="skip").split("test").labels) == 5
    assert caplog.text.count(".jpg: cannot") == 20
    assert "skipped 25 of 30 images of test" in caplog.text


def test_corrupt_images_that_are_refused_are_named_together(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train" / "a", 10)
    pictures = write_pictures(tmp_path / "test" / "a", 30)
    for count, more in ((1, ""), (3, "2 more of these 30"), (25, "24 more of these 30")):
        for path in pictures[2 : 2 + count]:
            path.write_text("x")
        with pytest.raises(InputError, match="cannot decode") as caught:
            load(tmp_path).split("test").images[:]
        named = [str(path) for path in pictures[3 : 2 + min(count, 6)]]
        names = ", ".join([*named, *(["..."] if count > 6 else [])])
        assert caught.value.where == pictures[2]
        assert caught.value.what.endswith(f" ({more} cannot be used: {names})" if more else "WEBP")


def test_those_are_too_whose_size_cannot_be_told(tree: Path) -> None:
    texts = sorted((tree / "train").rglob("*.jpg"))[1:3]
    for path in texts:
        path.write_text("x")
    with pytest.raises(InputError) as caught:
        load_image_set(f"folder:{tree}")
    assert caught.value.where == texts[0]
    assert caught.value.what.endswith(f"cannot be used: {texts[1]})")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_set_has_substitutes(
    tree: Path, damaged: list[Path], caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    image_set = load(tree, stream=True, corrupt="skip")
    train = streamed(image_set.split("train"))
    bad = [row for row in range(len(train)) if train.path(row) in damaged]
    good = [row + 1 for row in bad]
    assert torch.equal(image_set.split("train").labels[bad], image_set.split("train").labels[good])
    assert torch.equal(train[torch.tensor(bad)], train[torch.tensor(good)])
    assert image_set.skipped == {"train": 2}

    image_set = load(tree, stream=True, corrupt="skip")
    caplog.clear()
    train = streamed(image_set.split("train"))
    substituted = list(stream(train, workers))
    assert set(train.skipped.paths.values()) == set(damaged[:2])
    assert image_set.skipped == {"train": 2}
    assert [caplog.text.count(f"skipped {path}:") for path in damaged] == [1, 1, 0]

    for path, row in zip(damaged[:2], bad, strict=True):
        path.write_bytes(train.path(row + 1).read_bytes())
    repaired = list(stream(streamed(load(tree, stream=True).split("train"))))
    for ours, expected in zip(substituted, repaired, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_the_substitute_is_the_next_good_image_of_the_label(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path, 6)
    for row in (1, 2, 4):
        truncate(paths[row])
    images = StreamedImages(paths, np.array([0, 1, 1, 0, 1, 2]), 20, "skip")
    one_left = StreamedImages(paths, np.array([0, 0, 0, 1, 0, 1]), 20, "skip")
    assert torch.equal(images[:], images[torch.tensor([0, 3, 3, 3, 5, 5])])
    assert torch.equal(one_left[:], one_left[torch.tensor([0, 0, 0, 3, 0, 5])])


@pytest.mark.parametrize("options", [{}, {"stream": True}])
def test_what_is_skipped_or_odd_is_counted_by_kind(
    tree: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, bool]
) -> None:
    """A picture that is too large is skipped like a corrupt one, and never called that."""
    for name in ("ant", "bee"):
        Image.new("1", (200, 120)).save(tree / "train" / name / "slide.png")
        Image.new("F", (20, 20)).save(tree / "test" / name / "float.tif")
        Image.new("I;16", (20, 20), 40_000).save(tree / "test" / name / "deep.png")
    truncate(tree / "test" / "ant" / "003.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    image_set = load(tree, corrupt="skip", **options)
    for name in ("train", "val", "test"):
        images = image_set.split(name).images
        assert len(images[:])
        if isinstance(images, StreamedImages):
            list(stream(images, workers=1))  # counted once, wherever it is met
    assert sum(image_set.skipped.values()) == 5
    assert image_set.remarks == (
        "left out as too large: 2 train pictures, train/ant/slide.png for one",
        "of 16 bits a channel the upper 8 are used: 2 test pictures, test/ant/deep.png for one",
        "left out since the range of their values is not known: 2 test pictures, test/ant/float.tif for one",
        "left out since they cannot be decoded: 1 test picture, test/ant/003.jpg",
    )
    with pytest.raises(InputError, match="too large: 24000 pixels, the limit is 20000"):
        load(tree, **options).split("train").images[:]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_comes_out_of_a_worker_whole(tree: Path, damaged: list[Path], workers: int) -> None:
    train = streamed(load(tree, stream=True).split("train"))
    with pytest.raises(InputError, match="cannot decode") as caught:
        list(stream(train, workers))
    assert caught.value.where in damaged
    assert "corrupt_images" in str(caught.value.next_step)


@pytest.mark.parametrize("stream_it", [False, True])
def test_nothing_but_corrupt_images(tmp_path: Path, stream_it: bool) -> None:
    for path in write_pictures(tmp_path / "train" / "a", 10):
        path.write_text("x")
    with pytest.raises(InputError, match="none of the"):
        load_image_set(f"folder:{tmp_path}", corrupt="skip")
    image_set = load(tmp_path, corrupt="skip", stream=stream_it)
    with pytest.raises(InputError, match="none of the 9 images") as caught:
        image_set.split("train").images[:2]
    assert caught.value.where == str(tmp_path / "train" / "a")


def test_a_file_that_may_not_be_read_is_not_skipped(pictures: StreamedImages) -> None:
    pictures.corrupt = "skip"
    pictures.path(4).unlink()
    with pytest.raises(InputError, match="No such file") as caught:
        pictures[:]
    assert caught.value.where == pictures.path(4)


class _Short:
    """A generator scheme that leaves the worker too little memory for a large picture."""

    def __call__(self, step: int) -> torch.Generator:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + 2**25
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
        return torch.Generator().manual_seed(step)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process")
def test_a_good_picture_is_not_skipped_for_want_of_memory(tmp_path: Path) -> None:
    """Else the images of a training would depend on what the machine has left."""
    large = tmp_path / "a.png"
    Image.new("RGB", (5000, 4000), "red").save(large)
    images = StreamedImages([large] * 2, np.zeros(2), 20, "skip")
    with pytest.raises(ShortOfMemory, match="not enough memory to decode this image") as caught:
        list(CropStream(images, POLICIES, lambda step: torch.arange(2), _Short(), 0, 1, 1))
    assert caught.value.where == large
    assert not images.skipped.paths


class _Dying:
    """A generator scheme that kills the worker."""

    def __call__(self, step: int) -> torch.Generator:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_worker_that_dies_is_a_failure_of_the_run(pictures: StreamedImages) -> None:
    with pytest.raises(RunFailure, match="DataLoader worker"):
        list(CropStream(pictures, POLICIES, rows_of, _Dying(), 0, 1, 1))


def test_workers_leave_signals_to_the_training_process(pictures: StreamedImages) -> None:
    """A cluster signals every process of a job; the training must still get its next images, and save."""
    alone = list(stream(pictures))
    running = iter(stream(pictures, workers=1))  # its first result shows that it is ready
    crops = [next(running)]
    workers = multiprocessing.active_children()
    assert workers
    for worker in workers:
        for number in (signal.SIGUSR1, signal.SIGTERM):
            os.kill(worker.pid or 0, number)
    crops += list(running)
    assert len(crops) == len(alone)
    assert all(
        torch.equal(a, b) for pair in zip(crops, alone, strict=True) for a, b in zip(*pair, strict=True)
    )
