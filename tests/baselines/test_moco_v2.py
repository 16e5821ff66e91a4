"""MoCo v2: the loss, the order of a step, the queue, shuffling and groups of batch norm."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from twinbench.baselines.moco_v2 import MoCoV2, info_nce_loss
from twinbench.encoders.backbones import build_backbone
from twinbench.foundation.errors import InputError
from twinbench.pretraining.method import Progress
from twinbench.pretraining.norms import SplitBatchNorm2d


def vectors(*counts, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1) for n in counts]


def test_loss_equals_the_formula_row_by_row():
    q, k, queue = (v.numpy() for v in vectors(6, 6, 12))
    rows = []
    for query, key in zip(q, k, strict=True):
        positive = math.exp(query @ key / 0.2)
        rows.append(-math.log(positive / (positive + sum(math.exp(query @ other / 0.2) for other in queue))))
    q, k, queue = (torch.from_numpy(v) for v in (q, k, queue))
    assert info_nce_loss(q, k, queue).item() == pytest.approx(np.mean(rows))
    assert info_nce_loss(3 * q, 2 * k, queue).item() == pytest.approx(np.mean(rows))


def test_only_queries_get_a_gradient():
    q, k, queue = (v.requires_grad_() for v in vectors(4, 4, 6))
    gradients = torch.autograd.grad(info_nce_loss(q, k, queue), (q, k, queue), allow_unused=True)
    assert gradients[1] is None
    assert gradients[2] is None
    torch.autograd.gradcheck(lambda x: info_nce_loss(x, k.detach(), queue.detach()), (q,))


def test_random_vectors_cost_the_logarithm_of_the_choices():
    generator = torch.Generator().manual_seed(0)
    q, k, queue = (normalize(torch.randn(n, 128, generator=generator), dim=1) for n in (256, 256, 4096))
    assert info_nce_loss(q, k, queue, temperature=1.0).item() == pytest.approx(8.3180, abs=0.02)
    assert math.log(4097) == pytest.approx(8.3180, abs=1e-4)


def moco(queue_length=16, **options):
    torch.manual_seed(0)
    settings = {
        "projector": (16, 8),
        "queue_length": queue_length,
        "momentum": 0.9,
        "bn_splits": 2,
        **options,
    }
    return MoCoV2(build_backbone("resnet10", width=4), MoCoV2.Options(**settings))


def images(seed=0, n=4):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, 16, 16, generator=generator) for _ in range(2)]


def test_key_encoder_follows_the_query_encoder_before_its_forward():
    method = moco()
    expected = method.key_backbone.conv1.weight.clone()
    for step in range(3):
        method.backbone.conv1.weight.data.add_(0.1)
        expected = 0.9 * expected + 0.1 * method.backbone.conv1.weight.detach()
        method.before_step(Progress(step, 10, 5))
        torch.testing.assert_close(method.key_backbone.conv1.weight, expected)
        method.loss(images(step), None, Progress(step, 10, 5)).total.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.key_backbone.parameters())
    assert all(p.grad is None and not p.requires_grad for p in method.key_projector.parameters())


def test_queue_is_overwritten_once_around_with_unit_keys():
    method = moco(queue_length=16)
    first = method.queue.clone()
    torch.testing.assert_close(first.norm(dim=1), torch.ones(16))
    for step in range(4):
        before = method.queue.clone()
        method.loss(images(step), None, Progress(step, 10, 5))
        changed = (method.queue != before).any(dim=1).nonzero().flatten()
        assert changed.tolist() == list(range(4 * step, 4 * step + 4))
        assert method.queue_pointer == (4 * step + 4) % 16
    torch.testing.assert_close(method.queue.norm(dim=1), torch.ones(16))


@pytest.mark.parametrize("symmetric", [False, True])
def test_logits_use_the_queue_of_the_steps_before(symmetric):
    """Written out with plain modules: groups one after the other, the keys' company shuffled."""
    method = moco(bn_splits=1, symmetric=symmetric)
    twin = copy.deepcopy(method)
    a, b = images()
    result = method.loss([a, b], None, Progress(0, 10, 5))

    def direction(query_view, key_view):
        q = normalize(twin.projector(twin.backbone(query_view)), dim=1)
        k = normalize(twin.key_projector(twin.key_backbone(key_view)), dim=1)
        return q, k

    pairs = [direction(a, b)] + ([direction(b, a)] if symmetric else [])
    expected = torch.stack([info_nce_loss(q, k, twin.queue) for q, k in pairs]).mean()
    torch.testing.assert_close(result.total, expected)
    right = [(q * k).sum(1) > (q @ twin.queue.T).amax(1) for q, k in pairs]
    torch.testing.assert_close(result.parts["accuracy"], torch.stack(right).float().mean())
    keys = torch.cat([k for _, k in pairs])
    torch.testing.assert_close(method.queue[: len(keys)], keys)
    leaked = torch.stack([info_nce_loss(q, k, method.queue) for q, k in pairs]).mean()
    assert not torch.allclose(result.total, leaked, rtol=1e-3)


def test_keys_are_those_of_the_shuffled_groups_in_the_batch_order():
    method = moco(bn_splits=2)
    twin = copy.deepcopy(method)
    _, b = images(n=8)
    keys = method._keys(b, seed=5)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(5))
    groups = [
        normalize(twin.key_projector(twin.key_backbone(b[share])), dim=1) for share in _unsplit(twin, order)
    ]
    expected = torch.empty(8, 8)
    expected[order] = torch.cat(groups)
    torch.testing.assert_close(keys, expected)
    unshuffled = torch.cat([normalize(twin.key_projector(twin.key_backbone(s)), dim=1) for s in b.chunk(2)])
    assert not torch.allclose(keys, unshuffled, atol=1e-4)


def _unsplit(method, order):
    """The shares of a shuffled batch, after turning the group norms of the key encoder into plain ones."""
    for module in method.key_backbone.modules():
        if isinstance(module, SplitBatchNorm2d):
            module.splits = 1
    return order.chunk(2)


def test_shuffling_does_not_change_keys_without_batch_norm():
    method = moco()
    method.key_backbone.eval()
    _, b = images(n=8)
    torch.testing.assert_close(method._keys(b, seed=1), method._keys(b, seed=2))


@pytest.mark.parametrize(
    ("queue_length", "symmetric", "choices"),
    [(18, False, "16 or 20"), (3, False, "to 4,"), (12, True, "8 or 16")],
)
def test_a_queue_that_does_not_divide_names_the_lengths_that_work(queue_length, symmetric, choices):
    method = moco(queue_length, symmetric=symmetric)
    for refuse in (
        lambda: method.loss(images(), None, Progress(0, 1, 1)),
        lambda: method.check(batch_size=4, views=2),
    ):
        with pytest.raises(InputError) as caught:
            refuse()
        assert choices in str(caught.value)


@pytest.mark.parametrize(
    ("splits", "ranks", "choices"),
    [(3, 1, "one of 1, 2, 4, 8"), (2, 4, "one of 1, 4, 8"), (6, 2, "one of 1, 2, 4, 8")],
)
def test_groups_that_do_not_divide_name_the_numbers_that_work(splits, ranks, choices):
    with pytest.raises(InputError, match=choices):
        moco(bn_splits=splits).check(batch_size=16, views=2, ranks=ranks)


@pytest.mark.parametrize(("splits", "ranks"), [(1, 4), (4, 4), (8, 2), (2, 1)])
def test_groups_that_divide_pass(splits, ranks):
    moco(bn_splits=splits).check(batch_size=16, views=2, ranks=ranks)


def test_one_split_keeps_plain_batch_norm_and_every_tensor_is_decayed():
    assert not [m for m in moco(bn_splits=1).modules() if isinstance(m, SplitBatchNorm2d)]
    method = moco()
    assert [m for m in method.key_backbone.modules() if isinstance(m, SplitBatchNorm2d)]
    (group,) = method.parameter_groups(1e-4)
    assert group["weight_decay"] == 1e-4
    trainable = [*method.backbone.parameters(), *method.projector.parameters()]
    assert {id(p) for p in group["params"]} == {id(p) for p in trainable}
