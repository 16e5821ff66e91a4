"""The measures of features against loops in float64, what they must not depend on, and the views they are taken on."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from twinbench.data.augment import Normalisation, augment, eval_view
from twinbench.encoders.geometry import (
    MEASURES,
    alignment,
    common_view,
    correlation,
    correlation_facts,
    effective_rank,
    geometry,
    measure,
    singular_values,
    spread,
    uniformity,
)
from twinbench.foundation.randomness import seeded_generator

NORMALISATION = Normalisation((0.5, 0.4, 0.3), (0.2, 0.2, 0.3))
CPU = torch.device("cpu")


def gaussian(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pictures(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=generator)


@pytest.fixture
def three():
    """Vectors of plain views and, correlated with each other, of two random ones."""
    plain, first = gaussian(23, 5), gaussian(23, 5, 1)
    return plain, first, 0.8 * first + 0.4 * gaussian(23, 5, 2)


def unit(row):
    return row / math.sqrt(sum(float(x) ** 2 for x in row))


def test_every_measure_equals_loops_in_float64(three):
    plain, first, second = (z.numpy() for z in three)
    n, d = plain.shape
    found = measure(*three)

    aligned = [
        sum((a - b) ** 2 for a, b in zip(unit(x), unit(y), strict=True))
        for x, y in zip(first, second, strict=True)
    ]
    assert found.alignment == pytest.approx(sum(aligned) / n, rel=1e-12)

    pairs = [
        math.exp(-2 * sum((a - b) ** 2 for a, b in zip(unit(plain[i]), unit(plain[j]), strict=True)))
        for i in range(n)
        for j in range(i)
    ]
    assert found.uniformity == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-12)

    deviations = []
    for channel in range(d):
        column = [unit(row)[channel] for row in plain]
        mean = sum(column) / n
        deviations.append(math.sqrt(sum((x - mean) ** 2 for x in column) / n))
    assert found.feature_spread == pytest.approx(sum(deviations) / d * math.sqrt(d), rel=1e-12)

    matrix = np.corrcoef(first.T, second.T)[:d, d:]
    off = [matrix[i, j] ** 2 for i in range(d) for j in range(d) if i != j]
    assert found.diagonal_mean == pytest.approx(np.trace(matrix) / d, rel=1e-9)
    assert found.off_diagonal_rms == pytest.approx(math.sqrt(sum(off) / len(off)), rel=1e-9)

    values = np.linalg.svd(plain - plain.mean(0), compute_uv=False)
    share = values / values.sum()
    assert found.effective_rank == pytest.approx(math.exp(-sum(p * math.log(p) for p in share)), rel=1e-9)


def rotated(*vectors, seed=3):
    rotation = torch.linalg.qr(gaussian(vectors[0].shape[1], vectors[0].shape[1], seed)).Q
    return [z @ rotation for z in vectors]


@pytest.mark.parametrize("seed", range(3))
def test_a_rotation_changes_no_distance_and_no_rank(three, seed):
    before, after = measure(*three), measure(*rotated(*three, seed=seed))
    for name in ("effective_rank", "alignment", "uniformity"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=1e-9)


@pytest.mark.parametrize("factor", [1e-3, 7.0, 1e4])
def test_the_length_of_vectors_changes_nothing(three, factor):
    before, after = measure(*three), measure(*(factor * z for z in three))
    assert asdict(after) == pytest.approx(asdict(before), rel=1e-8)  # 1e-12 is added to a channel's deviation


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_images_and_channels_changes_nothing(three, seed):
    generator = torch.Generator().manual_seed(seed)
    rows, channels = torch.randperm(23, generator=generator), torch.randperm(5, generator=generator)
    before, after = measure(*three), measure(*(z[rows][:, channels] for z in three))
    assert asdict(after) == pytest.approx(asdict(before), rel=1e-9)


def test_the_scale_of_single_channels_changes_no_correlation():
    first, second, scale = gaussian(50, 6), gaussian(50, 6, 1), torch.tensor([1e-3, 1, 2, 3, 50, 1e3])
    matrix = correlation(first, second)
    torch.testing.assert_close(correlation(first * scale - 7, second / scale + 3), matrix)


def test_known_ends():
    same = gaussian(40, 4)
    assert alignment(same, 3 * same) == pytest.approx(0)
    assert alignment(same, -same) == pytest.approx(4)  # opposite points of the sphere
    assert uniformity(torch.ones(10, 3)) == pytest.approx(0)  # one point
    assert uniformity(torch.tensor([[1.0, 0.0], [-2.0, 0.0]])) == pytest.approx(-8)  # two opposite ones
    assert correlation_facts(torch.eye(5)) == (1.0, 0.0)
    assert correlation_facts(torch.ones(1, 1)) == (1.0, 0.0)
    line = gaussian(40, 1) * gaussian(1, 4, 1)
    assert effective_rank(singular_values(line)) == pytest.approx(1)


def test_uniform_points_on_a_sphere_are_as_uniform_as_theory_says():
    # on the circle E exp(-2 |x - y|^2) = E exp(-4 + 4 cos t) = exp(-4) I_0(4)
    points = gaussian(4000, 2)
    assert uniformity(points) == pytest.approx(math.log(math.exp(-4) * np.i0(4.0)), abs=0.02)
    assert spread(points)[1] == pytest.approx(1, abs=0.02)


def test_a_channel_that_never_changes_counts_as_uncorrelated():
    first, second = gaussian(30, 3), gaussian(30, 3, 1)
    first[:, 1], second[:, 1] = 2.0, 2.0
    matrix = correlation(first, second)
    assert matrix[1].abs().max() == matrix[:, 1].abs().max() == 0
    assert matrix.isfinite().all()


def test_the_views_are_one_plain_and_two_random_ones_in_batches_that_change_nothing():
    images, seen = pictures(300), []

    def embed(views):
        seen.append(views)
        return views.flatten(1)[:, ::97]

    found = geometry(embed, images, 16, NORMALISATION, 5, CPU)
    generator, policy = seeded_generator(5, "common views", 0), common_view(16)
    expected = []
    for chunk in (images[:256], images[256:]):
        expected.append(eval_view(chunk, 16, NORMALISATION))
        expected += [augment(chunk, policy, NORMALISATION, generator) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))
    parts = [torch.cat(expected[i::3]).flatten(1)[:, ::97] for i in range(3)]
    assert found == measure(*parts)
    assert tuple(asdict(found)) == MEASURES


def test_the_views_depend_on_the_seed_alone():
    def flat(views):
        return views.flatten(1)[:, ::97]

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = geometry(flat, pictures(20), 16, NORMALISATION, 0, CPU)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    torch.manual_seed(2)
    assert geometry(flat, pictures(20), 16, NORMALISATION, 0, CPU) == first
    other = geometry(flat, pictures(20), 16, NORMALISATION, 1, CPU)
    assert other.alignment != first.alignment
    assert other.effective_rank == first.effective_rank, "that of the plain views"


def test_one_image_has_no_pair_to_compare():
    found = geometry(lambda views: views.flatten(1), pictures(1), 16, NORMALISATION, 0, CPU)
    assert math.isnan(found.uniformity)
