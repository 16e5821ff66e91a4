"""The ranks of the exactness tests: ``python rank_worker.py WORLD FOLDER``.

Every case takes its own, different share of one global batch and returns numbers that must not depend on the
number of ranks. The test runs the same cases in its own process, as the single rank, for comparison.
"""

import contextlib
import multiprocessing
import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from twinbench.baselines.byol import byol_loss
from twinbench.baselines.moco_v2 import info_nce_loss
from twinbench.baselines.simclr import nt_xent_loss
from twinbench.baselines.simsiam import negative_cosine
from twinbench.baselines.swav import sinkhorn, swapped_prediction_loss
from twinbench.encoders.backbones import build_backbone
from twinbench.foundation import collectives
from twinbench.foundation.collectives import (
    all_gather_cat,
    all_gather_nograd,
    all_reduce_max_nograd,
    all_reduce_sum,
    mean_over_ranks,
    rank,
    world_size,
)
from twinbench.foundation.norms import GlobalBatchNorm, synchronise_batch_norms
from twinbench.harness.plugins import load_plugins
from twinbench.pretraining.barlow_twins import barlow_twins_loss, correlation_terms, cross_correlation
from twinbench.pretraining.correlation_variants import (
    cross_covariance,
    cross_entropy_terms,
    feature_normalised_covariance,
)
from twinbench.pretraining.method import Progress, method_class

N, D = 16, 6
OFFSET = int(os.environ.get("TWINBENCH_SEED_OFFSET", "0"))


def share(x):
    """This rank's slice of a global batch."""
    return x.chunk(world_size())[rank()]


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(OFFSET + seed), dtype=torch.float64)


def average_gradients(module):
    """What DistributedDataParallel does, which sends many gradients at a time as well."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    if world_size() > 1:
        together = parameters_to_vector(gradients)
        dist.all_reduce(together)
        vector_to_parameters(together / world_size(), gradients)


def as_numbers(loss, module):
    loss.backward()
    average_gradients(module)
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {"loss": mean_over_ranks(loss.detach()), **gradients}


def linear_case(loss):
    """A loss over two linear maps of this rank's images."""
    torch.manual_seed(OFFSET)
    nets = nn.ModuleDict({"a": nn.Linear(8, D), "b": nn.Linear(8, D)}).double()
    x_a, x_b = share(random(N, 8, seed=1)), share(random(N, 8, seed=2))
    return as_numbers(loss(nets["a"](x_a), nets["b"](x_b)), nets)


def with_queue(q, k):
    queue = nn.functional.normalize(random(24, D, seed=3), dim=1)
    return info_nce_loss(q, k, queue)


LOSSES = {
    "barlow_twins": lambda a, b: barlow_twins_loss(a, b, lambd=0.1),
    "barlow_twins_covariance": lambda a, b: sum(correlation_terms(cross_covariance(a, b))),
    "barlow_twins_unit_length": lambda a, b: sum(correlation_terms(feature_normalised_covariance(a, b))),
    "barlow_twins_entropy": lambda a, b: sum(cross_entropy_terms(cross_correlation(a, b), 0.5)),
    "simclr": nt_xent_loss,
    "byol": byol_loss,
    "simsiam": negative_cosine,
    "moco_v2": with_queue,
    "swav": lambda a, b: swapped_prediction_loss(a.tanh(), b.tanh()),
}


@contextlib.contextmanager
def broken(module_name, function_name, replacement):
    """Negative control: a collective replaced by a common mistake."""
    module = sys.modules[module_name]
    original = getattr(module, function_name)
    setattr(module, function_name, replacement)
    try:
        yield
    finally:
        setattr(module, function_name, original)


def detached(collective):
    """The collective's value without its backward pass across ranks: gradient of the own part only."""

    def call(x):
        result = collective(x.detach())
        own = result.narrow(0, rank() * x.shape[0], x.shape[0]) if result.shape[0] > x.shape[0] else result
        with torch.no_grad():
            own = own - x
        if result.shape[0] > x.shape[0]:
            parts = list(result.chunk(world_size()))
            parts[rank()] = x + own
            return torch.cat(parts)
        return x + own

    return call


def local_moments(x, dims=(0,)):
    mean = x.mean(dims, keepdim=True)
    return mean, (x - mean).square().mean(dims, keepdim=True)


CONTROLS = {
    "barlow_twins with local statistics": (
        "barlow_twins",
        "twinbench.foundation.collectives",
        "global_moments",
        local_moments,
    ),
    "barlow_twins with a raw all-reduce": (
        "barlow_twins",
        "twinbench.pretraining.barlow_twins",
        "all_reduce_sum",
        detached(all_reduce_sum),
    ),
    "simclr with a detached gather": (
        "simclr",
        "twinbench.baselines.simclr",
        "all_gather_cat",
        detached(all_gather_cat),
    ),
    "swav with local prototype sums": ("swav", "twinbench.baselines.swav", "all_reduce_sum", lambda x: x),
}


def control_case(name):
    loss, *mistake = CONTROLS[name]
    with broken(*mistake):
        return linear_case(LOSSES[loss])


OPTIONS = {
    "barlow_twins": {"projector": (12, 8), "lambd": 0.1},
    "simclr": {"projector": (12, 8)},
    "byol": {"projector": (12, 8), "predictor_hidden": 8, "tau_base": 0.8},
    "swav": {
        "projector": (12, 8),
        "prototypes": 6,
        "freeze_prototypes_steps": 1,
        "queue_length": 16,
        "queue_start_epoch": 0,
    },
    "simsiam": {"projector": (12, 12, 8), "predictor_hidden": 6},
    "moco_v2": {"projector": (12, 8), "queue_length": 64, "momentum": 0.8, "bn_splits": 4, "symmetric": True},
    "supervised": {"classes": 4},
}


class FewLayers(nn.Sequential):
    """A backbone of what ranks share in any: each batch norm takes several messages in every step."""

    feature_dim = 8

    def __init__(self):
        first = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()
        second = nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        super().__init__(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def method_case(name, steps=2, synchronise=True):
    """A whole method for a few steps of SGD: every loss, and the parameters and buffers it ends with."""
    torch.manual_seed(OFFSET)
    cls = method_class(name)
    whole = name == "barlow_twins"
    backbone = build_backbone("resnet10", width=4, stem="stride2") if whole else FewLayers()
    method = cls(backbone, cls.Options(**OPTIONS[name])).double()
    if synchronise:
        synchronise_batch_norms(method, "cpu")
    optimizer = torch.optim.SGD(method.parameters(), lr=0.05, momentum=0.9)
    numbers = {}
    for step in range(steps):
        progress = Progress(step, steps, steps)
        views = [share(random(N, 3, 8, 8, seed=10 * step + view)) for view in range(2)]
        if name == "swav":
            views.append(share(random(N, 3, 4, 4, seed=10 * step + 2)))
        method.before_step(progress)
        loss = method.loss(views, share(torch.arange(N) % 4), progress).total
        numbers[f"loss {step}"] = loss.detach()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(method)
        method.before_optimizer(progress)
        optimizer.step()
        method.after_step(progress)
    return {**numbers, **{key: value.clone() for key, value in method.state_dict().items()}}


def batch_norm_case(shape):
    """Global batch norm against the plain one: output, gradients, running statistics."""
    torch.manual_seed(OFFSET)
    norm = (GlobalBatchNorm(shape[1]) if world_size() > 1 else nn.BatchNorm2d(shape[1])).double()
    if len(shape) == 2 and world_size() == 1:
        norm = nn.BatchNorm1d(shape[1]).double()
    x = share(random(*shape, seed=1) * 3 + 2).requires_grad_()
    loss = mean_over_ranks((norm(x).sin() * share(random(*shape, seed=2))).mean())
    numbers = as_numbers(loss, norm)
    return {
        **numbers,
        "input gradient": all_gather_nograd(x.grad) / world_size(),
        "mean": norm.running_mean,
        "variance": norm.running_var,
    }


def sinkhorn_case():
    return {"codes": all_gather_nograd(sinkhorn(share(random(N, D, seed=5).tanh())))}


def collectives_case():
    """Values that do not depend on the ranks; their gradients are checked through the losses."""
    x = random(N, 2, seed=4)
    return {
        "gathered": all_gather_cat(share(x)),
        "sum": all_reduce_sum(share(x).sum(0)),
        "maximum": all_reduce_max_nograd(share(x).amax(0)),
        "moments": torch.cat(collectives.global_moments(share(x))),
    }


def all_cases():
    results = {f"loss {name}": linear_case(loss) for name, loss in LOSSES.items()}
    results.update({f"control {name}": control_case(name) for name in CONTROLS})
    results.update({f"method {name}": method_case(name) for name in OPTIONS})
    results["control method with local batch norm"] = method_case("simsiam", synchronise=False)
    results.update({f"norm {shape}": batch_norm_case(shape) for shape in ((N, 3), (N, 3, 4, 4))})
    results["sinkhorn"] = sinkhorn_case()
    results["collectives"] = collectives_case()
    return {
        case: {name: value.detach().clone() for name, value in numbers.items()}
        for case, numbers in results.items()
    }


def run_rank(own_rank, world, folder):
    """Join the group, run every case, save the numbers."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=own_rank, world_size=world
    )
    torch.save(all_cases(), f"{folder}/result.{own_rank}")
    dist.destroy_process_group()


def main():
    """Fork the ranks from this process, which has done the imports and nothing else."""
    world, folder = int(sys.argv[1]), sys.argv[2]
    load_plugins()
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=run_rank, args=(r, world, folder)) for r in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))


if __name__ == "__main__":
    main()
