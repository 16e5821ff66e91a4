"""Pictures of several images: where each is, and that a file is read back as it was."""

import numpy as np
import torch
from PIL import Image

from twinbench.data.pictures import tiled, write_picture


def image(value, side=64):
    return torch.full((3, side, side), value, dtype=torch.uint8)


def test_images_stand_in_rows_with_white_between_them():
    made = tiled([[image(1), image(2)], [image(3)]])
    assert made.shape == (3, 130, 130)
    assert (made[:, :64, :64] == 1).all()
    assert (made[:, :64, 66:] == 2).all()
    assert (made[:, 66:, :64] == 3).all()
    assert (made[:, 64:66] == 255).all()
    assert (made[:, 66:, 66:] == 255).all()


def test_small_images_are_enlarged_by_whole_pixels_and_the_first_stand_apart():
    small = torch.arange(12, dtype=torch.uint8).view(3, 2, 2)
    made = tiled([[small, small, small]], apart=1)
    assert made.shape == (3, 64, 3 * 64 + 2 * 2 + 6)
    assert torch.equal(made[:, ::32, :64:32], small)
    second = 64 + 2 + 6
    assert torch.equal(made[:, ::32, second : second + 64 : 32], small)


def test_a_picture_comes_back_as_it_was(tmp_path):
    pixels = torch.randint(0, 256, (3, 7, 9), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    write_picture(tmp_path / "deep" / "picture.png", pixels)
    read = np.asarray(Image.open(tmp_path / "deep" / "picture.png"))
    assert np.array_equal(read, pixels.permute(1, 2, 0).numpy())
