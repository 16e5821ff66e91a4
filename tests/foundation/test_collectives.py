"""Collectives outside a process group, full precision, and who may talk to other ranks at all."""

from pathlib import Path

import pytest
import torch

import twinbench.baselines
from twinbench.foundation import collectives
from twinbench.pretraining.numerics import in_full_precision


def test_everything_is_the_identity_outside_a_process_group():
    x = torch.randn(4, 3, requires_grad=True)
    assert (collectives.world_size(), collectives.rank()) == (1, 0)
    for collective in (collectives.all_reduce_sum, collectives.all_gather_cat):
        assert collective(x) is x
    assert torch.equal(collectives.mean_over_ranks(x), x)
    for collective in (collectives.all_gather_nograd, collectives.all_reduce_max_nograd):
        assert torch.equal(collective(x), x)
        assert not collective(x).requires_grad


@pytest.mark.parametrize("dims", [(0,), (0, 2, 3)])
def test_moments_are_the_biased_ones(dims):
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    for ours, expected in zip(collectives.global_moments(x, dims), (mean, variance), strict=True):
        torch.testing.assert_close(ours, expected)


def test_full_precision_covers_keywords_and_matrix_products():
    @in_full_precision
    def product(x, *, y):
        assert y.dtype == torch.float32
        return x @ y

    x, y = torch.randn(8, 8), torch.randn(8, 8)
    expected = x @ y
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ y).dtype == torch.bfloat16
        assert torch.equal(product(x, y=y), expected)
        assert product(x, y=y.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    "path", sorted(Path(twinbench.baselines.__file__).parent.glob("*.py")), ids=lambda path: path.stem
)
def test_methods_reach_other_ranks_only_through_the_collectives(path):
    assert "torch.distributed" not in path.read_text()
