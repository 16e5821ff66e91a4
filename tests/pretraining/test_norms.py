"""Batch norm in groups against separate batch norms; the conversions."""

import copy

import pytest
import torch
from torch import nn

from twinbench.encoders.backbones import build_backbone
from twinbench.foundation.errors import InputError
from twinbench.foundation.norms import GlobalBatchNorm, synchronise_batch_norms
from twinbench.pretraining.norms import SplitBatchNorm2d, split_batch_norms


def images(n=8, seed=0):
    return torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 1


def test_one_group_is_plain_batch_norm():
    plain, split = nn.BatchNorm2d(3).double(), SplitBatchNorm2d(3, 1).double()
    torch.testing.assert_close(split(images()), plain(images()))
    torch.testing.assert_close(split.running_mean, plain.running_mean)
    torch.testing.assert_close(split.running_var, plain.running_var)


def test_groups_equal_ranks_with_local_statistics():
    split = SplitBatchNorm2d(3, 4).double()
    ranks = [nn.BatchNorm2d(3).double() for _ in range(4)]
    for seed in range(3):
        x = images(seed=seed)
        expected = torch.cat([norm(share) for norm, share in zip(ranks, x.chunk(4), strict=True)])
        torch.testing.assert_close(split(x), expected)
    torch.testing.assert_close(split.running_mean, torch.stack([n.running_mean for n in ranks]).mean(0))
    torch.testing.assert_close(split.running_var, torch.stack([n.running_var for n in ranks]).mean(0))
    assert split.num_batches_tracked == 3


def test_groups_do_not_matter_in_evaluation():
    split, plain = SplitBatchNorm2d(3, 4).double(), nn.BatchNorm2d(3).double()
    split(images())
    plain.load_state_dict(split.state_dict())
    torch.testing.assert_close(split.eval()(images(3)), plain.eval()(images(3)))


def test_a_remainder_is_an_input_error():
    with pytest.raises(InputError, match="3 groups"):
        SplitBatchNorm2d(3, 3).double()(images(8))


@pytest.mark.parametrize(
    "convert", [lambda m: split_batch_norms(m, 1), lambda m: synchronise_batch_norms(m, "cpu")]
)
def test_conversions_keep_names_parameters_and_outputs(convert):
    torch.manual_seed(0)
    backbone = build_backbone("resnet10", width=4)
    reference = copy.deepcopy(backbone)
    parameters = dict(backbone.named_parameters())
    convert(backbone)
    assert list(backbone.state_dict()) == list(reference.state_dict())
    assert all(p is parameters[name] for name, p in backbone.named_parameters())
    assert not [m for m in backbone.modules() if type(m) is nn.BatchNorm2d]
    x = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(backbone(x), reference(x))
    torch.testing.assert_close(backbone.bn1.running_var, reference.bn1.running_var)


def test_synchronising_leaves_groups_alone():
    module = nn.Sequential(nn.BatchNorm2d(3), SplitBatchNorm2d(3, 2), nn.BatchNorm1d(3, affine=False))
    synchronise_batch_norms(module, "cpu")
    assert [type(m) for m in module] == [GlobalBatchNorm, SplitBatchNorm2d, GlobalBatchNorm]
    assert isinstance(synchronise_batch_norms(nn.BatchNorm1d(3), "cpu"), GlobalBatchNorm)
