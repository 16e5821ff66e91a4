"""What holds for every registered method."""

import pytest
import torch
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode

from twinbench.baselines.supervised import Supervised
from twinbench.encoders.backbones import build_backbone
from twinbench.foundation.errors import InputError
from twinbench.pretraining.method import Progress, method_class, method_names
from twinbench.pretraining.optim import build_optimizer
from twinbench.pretraining.recipe import OptimizerSpec

SMALL = {
    "barlow_twins": {"projector": (16, 16)},
    "simclr": {"projector": (16, 8)},
    "byol": {"projector": (16, 8), "predictor_hidden": 16},
    "swav": {"projector": (16, 8), "prototypes": 12, "freeze_prototypes_steps": 0},
    "simsiam": {"projector": (16, 16, 8), "predictor_hidden": 8},
    "moco_v2": {"projector": (16, 8), "queue_length": 32, "bn_splits": 2},
    "supervised": {"classes": 4},
}


def build(name, seed=0):
    torch.manual_seed(seed)
    cls = method_class(name)
    return cls(build_backbone("resnet10", width=4, stem="small"), cls.Options(**SMALL[name]))


def batch(n=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, 16, 16, generator=generator) for _ in range(2)], torch.arange(n) % 4


def test_the_registry_holds_the_paper_and_its_peers():
    assert {*SMALL, "random_init"} <= set(method_names())
    with pytest.raises(InputError, match="barlow_twins"):
        method_class("barlow_twin")


@pytest.mark.parametrize("name", [*SMALL, "random_init"])
@pytest.mark.parametrize("size", [32, 64, 224])
def test_default_views(name, size):
    views = method_class(name).default_views(size)
    assert {view.size for view in views} == {size}
    assert len(views) == (1 if name in ("supervised", "random_init") else 2)
    if size == 32:
        assert all(view.blur == 0 for view in views)
    elif len(views) == 2:
        assert all(view.blur > 0 for view in views)


@pytest.mark.parametrize("name", SMALL)
def test_unknown_options_are_errors(name):
    with pytest.raises(ValidationError):
        method_class(name).Options(**SMALL[name], not_an_option=1)


@pytest.mark.parametrize("name", SMALL)
def test_parameter_groups_are_disjoint_and_complete(name):
    method = build(name)
    groups = method.parameter_groups(0.1)
    listed = [id(p) for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in method.parameters() if p.requires_grad}
    expected = {"params", "name", "weight_decay", "lars_exclude", "lr_scale", "schedule"}
    assert all(set(group) == expected for group in groups)
    if name not in ("simsiam", "moco_v2"):
        assert all(
            (p.ndim == 1) == g["lars_exclude"] == (g["weight_decay"] == 0)
            for g in groups
            for p in g["params"]
        )


@pytest.mark.numerics
@pytest.mark.parametrize("name", SMALL)
def test_training_on_one_batch_lowers_the_loss(name, seed_offset, margin):
    method = build(name, seed_offset).train()
    spec = OptimizerSpec(name="sgd", base_lr=0.02 * 256 / 8)
    optimizer = build_optimizer(spec, method.parameter_groups(0.0), 8)
    views, labels = batch(seed=seed_offset)
    losses = []
    queue = method.queue.clone() if name == "moco_v2" else None
    for step in range(8):
        progress = Progress(step, 8, 4)
        if queue is not None:  # on a single batch the queue would fill with that batch's own keys
            method.queue.copy_(queue)
        method.before_step(progress)
        result = method.loss(views, labels if method.needs_labels else None, progress)
        assert result.total.ndim == 0
        assert all(not part.requires_grad and part.ndim == 0 for part in result.parts.values())
        optimizer.zero_grad(set_to_none=True)
        result.total.backward()
        method.before_optimizer(progress)
        optimizer.step()
        method.after_step(progress)
        losses.append(result.total.item())
    # Without a step of the optimizer there is none.
    margin.at_least("drop of the loss", losses[0] - min(losses[1:]), 0.1, broken=0)


@pytest.mark.numerics
@pytest.mark.parametrize("name", SMALL)
def test_bf16_autocast_and_channels_last_give_nearly_the_same_loss(name, seed_offset, margin):
    first, second = build(name, seed_offset).train(), build(name, seed_offset).train()
    second.load_state_dict(first.state_dict())
    views, labels = batch(seed=seed_offset)
    expected = first.loss(views, labels, Progress(0, 4, 2)).total
    second = second.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        views = [view.contiguous(memory_format=torch.channels_last) for view in views]
        loss = second.loss(views, labels, Progress(0, 4, 2)).total
    assert loss.dtype == torch.float32
    tolerance = max(0.05, 0.05 * abs(expected.item()))
    margin.at_most("difference of losses, of the tolerance", abs(loss - expected).item() / tolerance, 1)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in second.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", SMALL)
def test_a_saved_method_goes_on_with_the_same_bits(name):
    first = build(name).train()
    views, labels = batch()
    first.loss(views, labels, Progress(0, 4, 2))
    second = build(name).train()
    second.load_state_dict(first.state_dict())
    losses = [m.loss(views, labels, Progress(1, 4, 2)).total for m in (first, second)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("name", [*SMALL, "random_init"])
def test_embeddings_are_finite_rows_without_gradient(name):
    cls = method_class(name)
    method = cls(build_backbone("resnet10", width=4), cls.Options(**SMALL.get(name, {}))).eval()
    z = method.embed(torch.randn(5, 3, 16, 16))
    assert z.shape[0] == 5
    assert z.ndim == 2
    assert torch.isfinite(z).all()
    assert not z.requires_grad


@pytest.mark.parametrize("name", ["barlow_twins", "simclr", "byol", "simsiam", "moco_v2"])
def test_three_views_are_an_input_error(name):
    views, _ = batch()
    with pytest.raises(InputError, match="exactly 2 views"):
        build(name).loss([*views, views[0]], None, Progress(0, 1, 1))


@pytest.mark.parametrize("labels", [None, torch.full((8,), -1), torch.full((8,), 4)])
def test_supervised_training_explains_unusable_labels(labels):
    views, _ = batch()
    method = build("supervised")
    assert isinstance(method, Supervised)
    with pytest.raises(InputError, match=r"label"):
        method.loss(views, labels, Progress(0, 1, 1))


def test_random_init_does_not_train():
    assert not method_class("random_init").trains


@pytest.mark.numerics
@pytest.mark.parametrize("name", SMALL)
def test_micro_batches_give_the_gradient_of_the_batch_where_a_method_says_so(name, seed_offset, margin):
    """In evaluation mode, where batch norm does not tie the images of a batch together."""
    views, labels = batch(seed=seed_offset)
    whole, parts = build(name, seed_offset).eval(), build(name, seed_offset).eval()
    whole.loss(views, labels, Progress(0, 1, 1)).total.backward()
    for half in (slice(0, 4), slice(4, 8)):
        (parts.loss([view[half] for view in views], labels[half], Progress(0, 1, 1)).total / 2).backward()
    pairs = zip(whole.parameters(), parts.parameters(), strict=True)
    grads = [(p.grad, q.grad) for p, q in pairs if p.requires_grad]
    apart = torch.stack([(p - q).norm() / p.norm().clamp_min(1e-6) for p, q in grads]).max().item()
    compare = margin.at_most if method_class(name).accumulates else margin.at_least
    compare("relative difference of gradients", apart, 1e-3)


class Unread(TorchDispatchMode):
    """Refuses the operations that hand a value, or a shape that depends on values, to Python."""

    READING = frozenset(
        {"_local_scalar_dense", "nonzero", "equal", "masked_select", "unique_dim", "_unique2"}
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.READING, f"{func} waits for a GPU"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", SMALL)
def test_a_step_reads_no_value(name):
    """From the second on, and so waits for no GPU. SwAV's queue fills in one step and is full in the next."""
    queue = {"queue_length": 8, "queue_start_epoch": 2} if name == "swav" else {}
    cls = method_class(name)
    method = cls(build_backbone("resnet10", width=4, stem="small"), cls.Options(**SMALL[name], **queue))
    method.train()
    views, labels = batch()
    with Unread():
        for step in range(1, 4):
            progress = Progress(step, 4, 1)
            method.before_step(progress)
            method(views, labels, progress).total.backward()
            method.before_optimizer(progress)
            method.after_step(progress)
        with pytest.raises(AssertionError, match="waits for a GPU"):
            bool((views[0] > 0).any())
    if name == "swav":
        assert method.queue.norm(dim=2).min() > 0.99
