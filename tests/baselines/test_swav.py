"""Sinkhorn against the official algorithm written out, the loss over crops, queue and prototypes."""

import copy
import math

import numpy as np
import pytest
import torch

from twinbench.baselines.swav import SwAV, multi_crop_loss, sinkhorn, swapped_prediction_loss
from twinbench.encoders.backbones import build_backbone
from twinbench.foundation.errors import InputError
from twinbench.pretraining.method import Progress


def cosine_scores(b=64, k=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(b, k, generator=generator, dtype=torch.float64) * 2 - 1


def official_sinkhorn(scores, epsilon, iterations):
    """The algorithm in the order of appendix A, with every constant factor."""
    q = np.exp(scores.numpy() / epsilon).T
    k, b = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(axis=1, keepdims=True) / k
        q = q / q.sum(axis=0, keepdims=True) / b
    return torch.from_numpy((q * b).T)


@pytest.mark.parametrize(("epsilon", "iterations"), [(0.05, 3), (0.03, 1), (0.5, 20)])
def test_sinkhorn_equals_the_official_algorithm(epsilon, iterations):
    scores = cosine_scores()
    torch.testing.assert_close(
        sinkhorn(scores, epsilon, iterations), official_sinkhorn(scores, epsilon, iterations)
    )


@pytest.mark.parametrize("iterations", [1, 3, 100])
def test_codes_are_distributions_and_prototypes_share_the_batch(iterations):
    codes = sinkhorn(cosine_scores(), 0.5, iterations)
    assert (codes >= 0).all()
    torch.testing.assert_close(codes.sum(1), torch.ones(64, dtype=torch.float64))
    masses = codes.sum(0) * 10 / 64
    assert (masses - 1).abs().max() < {1: 0.5, 3: 0.4, 100: 1e-6}[iterations]


def test_sinkhorn_invariances():
    scores = cosine_scores()
    codes = sinkhorn(scores)
    torch.testing.assert_close(sinkhorn(scores + 100), codes)
    torch.testing.assert_close(sinkhorn(scores.flip(0)), codes.flip(0))


def test_a_sample_far_below_the_others_still_gets_its_code():
    """In fp32 exp(-200) is zero, so the row used to vanish; the limit is the one of the algorithm in float64."""
    scores = cosine_scores(16, 5)
    scores[3] -= 10
    codes = sinkhorn(scores.float(), 0.05, 500)
    torch.testing.assert_close(codes.sum(1), torch.ones(16))
    expected = official_sinkhorn(scores, 0.05, 500)
    torch.testing.assert_close(codes, expected.float(), rtol=1e-3, atol=1e-5)


def test_sinkhorn_survives_extreme_scores_in_half_precision():
    codes = sinkhorn(torch.tensor([[1.0, -1.0], [1.0, -1.0]], dtype=torch.bfloat16) * 100)
    assert codes.dtype == torch.float32
    assert torch.isfinite(codes).all()


def test_a_collapsed_network_stays_at_the_logarithm_of_the_prototypes():
    scores = torch.zeros(16, 3000)
    torch.testing.assert_close(sinkhorn(scores), torch.full((16, 3000), 1 / 3000))
    assert swapped_prediction_loss(scores, scores).item() == pytest.approx(8.00637, abs=1e-4)


def test_swapped_prediction_equals_the_formula():
    a, b = cosine_scores(seed=0), cosine_scores(seed=1)
    q_a, q_b = (official_sinkhorn(s, 0.05, 3).numpy() for s in (a, b))

    def cross_entropy(q, scores):
        rows = []
        for codes, row in zip(q, scores.numpy() / 0.1, strict=True):
            logsum = math.log(sum(math.exp(x) for x in row))
            rows.append(-sum(c * (x - logsum) for c, x in zip(codes, row, strict=True)))
        return sum(rows) / len(rows)

    expected = (cross_entropy(q_a, b) + cross_entropy(q_b, a)) / 2
    assert swapped_prediction_loss(a, b).item() == pytest.approx(expected)


def test_multi_crop_has_fourteen_equal_terms_with_eight_crops():
    scores = [cosine_scores(8, 5, seed) for seed in range(8)]
    codes = [sinkhorn(s) for s in scores[:2]]
    terms = [
        -(codes[i] * torch.log_softmax(scores[v] / 0.1, 1)).sum(1).mean()
        for i in range(2)
        for v in range(8)
        if v != i
    ]
    assert len(terms) == 14
    torch.testing.assert_close(multi_crop_loss(scores, codes), sum(terms) / 14)


def test_codes_carry_no_gradient_and_the_loss_does():
    scores = cosine_scores().requires_grad_()
    assert not sinkhorn(scores).requires_grad
    small = cosine_scores(4, 3).requires_grad_()
    codes = sinkhorn(small.detach())
    torch.autograd.gradcheck(lambda s: multi_crop_loss([s, s.flip(0)], [codes, codes]), (small,))


def test_cross_entropy_is_at_least_the_entropy_of_the_code():
    scores = cosine_scores()
    codes = sinkhorn(scores)
    entropy = -torch.special.xlogy(codes, codes).sum(1).mean()
    assert swapped_prediction_loss(scores, scores) >= entropy


def swav(**options):
    torch.manual_seed(0)
    settings = {"projector": (16, 8), "prototypes": 6, "freeze_prototypes_steps": 2, **options}
    return SwAV(build_backbone("resnet10", width=4), SwAV.Options(**settings))


def crops(sizes=(16, 16), n=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, size, size, generator=generator) for size in sizes]


def test_crops_of_one_resolution_are_forwarded_together():
    method = swav()
    views = crops((16, 16, 8, 8, 8))
    twin = copy.deepcopy(method)
    total = method.loss(views, None, Progress(0, 10, 5)).total
    assert method.backbone.bn1.num_batches_tracked == 2
    assert method.projector[1].num_batches_tracked == 1
    features = torch.cat([twin.backbone(torch.cat(views[:2])), twin.backbone(torch.cat(views[2:]))])
    embeddings = torch.nn.functional.normalize(twin.projector(features), dim=1)
    scores = list((embeddings @ twin.prototypes.weight.T).split(4))
    assert max(s.abs().max() for s in scores) <= 1 + 1e-6
    codes = [sinkhorn(s).detach() for s in scores[:2]]
    expected = multi_crop_loss(scores, codes)
    torch.testing.assert_close(total, expected)
    total.backward()
    expected.backward()
    torch.testing.assert_close(method.prototypes.weight.grad, twin.prototypes.weight.grad)


@pytest.mark.parametrize("sizes", [(16, 16), (16, 16, 8, 8, 8), (16, 8, 16, 8, 12), (16, 16, 12, 8, 12)])
def test_every_resolution_is_forwarded_once_whatever_the_order(sizes):
    method = swav()
    batches = []
    method.backbone.register_forward_hook(lambda _, inputs, __: batches.append(inputs[0].shape[:3:2]))
    method.eval()
    views = crops(sizes)
    embeddings = method._embed_crops(views)
    assert sorted(batches) == sorted((4 * sizes.count(size), size) for size in set(sizes))
    for view, embedding in zip(views, embeddings, strict=True):
        alone = torch.nn.functional.normalize(method.embed(view), dim=1)
        torch.testing.assert_close(embedding, alone, rtol=1e-4, atol=1e-5)


def test_prototypes_have_unit_length_before_the_forward():
    method = swav()
    method.prototypes.weight.data.mul_(3)
    method.before_step(Progress(0, 10, 5))
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(6))


@pytest.mark.parametrize(("step", "frozen"), [(0, True), (1, True), (2, False)])
def test_prototypes_are_frozen_during_the_first_steps(step, frozen):
    method = swav()
    progress = Progress(step, 10, 5)
    method.loss(crops(), None, progress).total.backward()
    assert method.prototypes.weight.grad is not None
    method.before_optimizer(progress)
    assert (method.prototypes.weight.grad is None) == frozen


def test_queue_fills_in_order_and_then_widens_the_assignment(monkeypatch):
    method = swav(queue_length=12, queue_start_epoch=1)
    widths = []

    def recording(scores, *args):
        widths.append(scores.shape[0])
        return sinkhorn(scores, *args)

    monkeypatch.setattr("twinbench.baselines.swav.sinkhorn", recording)
    history = []
    for step in range(8):
        before = method.queue.clone()
        newest = torch.stack(copy.deepcopy(method)._embed_crops(crops(seed=step)))
        method.loss(crops(seed=step), None, Progress(step, 20, 2))
        if step < 2:
            assert torch.equal(method.queue, torch.zeros_like(method.queue))
        else:
            torch.testing.assert_close(method.queue[:, 4:], before[:, :-4])
            torch.testing.assert_close(method.queue[:, :4], newest)
            torch.testing.assert_close(method.queue[:, :4].norm(dim=2), torch.ones(2, 4))
        history.append(widths[-1])
    assert history == [4, 4, 4, 4, 4, 16, 16, 16]
    assert not method.queue.requires_grad


def test_one_view_is_an_input_error():
    with pytest.raises(InputError, match="2 views or more"):
        swav().check(batch_size=4, views=1)


@pytest.mark.parametrize(("length", "choices"), [(18, "to 16 or 24"), (3, "to 8,")])
def test_a_queue_of_no_whole_batches_names_the_lengths_that_work(length, choices):
    with pytest.raises(InputError, match=choices):
        swav(queue_length=length).check(batch_size=8, views=2)
    swav(queue_length=16).check(batch_size=8, views=8)
