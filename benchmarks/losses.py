"""Time and memory of every loss at paper size, against lightly's, a textbook formulation and the floor.

The floor of a loss is the work it cannot do without, at the same precision: its matrix products, forward and
backward, or, for the two losses that have none, one pass over the memory it must read and write. Everything is
fp32, forward and backward with respect to all that gets a gradient. Every measurement is a fresh process that
keeps freed memory on every side alike: else the time to clear new pages would drown the differences.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from measure import (
    KEEP_FREED_MEMORY,
    Document,
    Spread,
    check_targets,
    chosen,
    device,
    device_description,
    facts,
    footnote,
    has_lightly,
    markdown_table,
    peak_memory_mb,
    positive,
    publish,
    resident_mb,
    run_script,
    synchronise,
    take_turns,
)
from torch import Tensor
from torch.nn import functional as F

from twinbench.baselines.byol import byol_loss
from twinbench.baselines.moco_v2 import info_nce_loss
from twinbench.baselines.simclr import nt_xent_loss
from twinbench.baselines.simsiam import negative_cosine
from twinbench.baselines.swav import sinkhorn, swapped_prediction_loss
from twinbench.pretraining.barlow_twins import barlow_twins_loss

Loss = Callable[..., Tensor]

# Batch and embedding sizes of the papers: N images, D dimensions, K keys of the queue or prototypes.
SIZES = {
    "barlow_twins": {"n": 2048, "d": 8192},
    "simclr": {"n": 4096, "d": 128},
    "byol": {"n": 4096, "d": 256},
    "simsiam": {"n": 512, "d": 2048},
    "moco_v2": {"n": 256, "d": 128, "k": 65536},
    "swav": {"n": 4096, "d": 128, "k": 3000},
}
SIDES = ("twinbench", "lightly", "textbook", "floor")
# The least time a measurement lasts, and its least number of calls.
_SECONDS, _CALLS = 1.0, 3


def inputs(name: str, n: int, d: int, k: int = 0) -> list[Tensor]:
    """What the loss takes, on the device; those with ``requires_grad`` get a gradient.

    Two embeddings ``[n, d]``; for MoCo a queue ``[k, d]`` and for SwAV prototypes ``[k, d]`` after them, both of
    unit length. The second embedding of BYOL, SimSiam and MoCo is a target without gradient.
    """
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(n, d, generator=generator)
    second = first + torch.randn(n, d, generator=generator)
    tensors = [first, second]
    if k:
        tensors.append(F.normalize(torch.randn(k, d, generator=generator), dim=1))
    differentiable = {"barlow_twins": (0, 1), "simclr": (0, 1), "swav": (0, 1, 2)}.get(name, (0,))
    return [
        tensor.to(device()).requires_grad_(index in differentiable) for index, tensor in enumerate(tensors)
    ]


# twinbench


def _swav(z_a: Tensor, z_b: Tensor, prototypes: Tensor) -> Tensor:
    scores_a, scores_b = (F.normalize(z, dim=1) @ prototypes.T for z in (z_a, z_b))
    return swapped_prediction_loss(scores_a, scores_b)


TWINBENCH: dict[str, Loss] = {
    "barlow_twins": barlow_twins_loss,
    "simclr": nt_xent_loss,
    "byol": byol_loss,
    "simsiam": negative_cosine,
    "moco_v2": info_nce_loss,
    "swav": _swav,
}


# The formulas as the papers print them


def _textbook_barlow_twins(z_a: Tensor, z_b: Tensor) -> Tensor:
    a, b = ((z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() for z in (z_a, z_b))
    identity = torch.eye(z_a.shape[1], device=z_a.device)
    difference = (a.T @ b / len(a) - identity).square()
    return torch.where(identity.bool(), difference, 0.0051 * difference).sum()


def _textbook_simclr(z_a: Tensor, z_b: Tensor) -> Tensor:
    z = F.normalize(torch.cat([z_a, z_b]), dim=1)
    others = 1.0 - torch.eye(len(z), device=z.device)
    exponentials = torch.exp(z @ z.T / 0.5) * others
    positives = exponentials.diagonal(len(z_a)), exponentials.diagonal(-len(z_a))
    return -torch.log(torch.cat(positives) / exponentials.sum(1)).mean()


def _textbook_byol(p: Tensor, z: Tensor) -> Tensor:
    return (F.normalize(p, dim=1) - F.normalize(z, dim=1)).square().sum(1).mean()


def _textbook_simsiam(p: Tensor, z: Tensor) -> Tensor:
    return -(F.normalize(p, dim=1) * F.normalize(z, dim=1)).sum(1).mean()


def _textbook_moco_v2(q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
    q, k = F.normalize(q, dim=1), F.normalize(k, dim=1)
    own = torch.exp((q * k).sum(1) / 0.2)
    return -torch.log(own / (own + torch.exp(q @ queue.T / 0.2).sum(1))).mean()


def _textbook_swav(z_a: Tensor, z_b: Tensor, prototypes: Tensor) -> Tensor:
    scores = [F.normalize(z, dim=1) @ prototypes.T for z in (z_a, z_b)]
    codes = [sinkhorn(each) for each in scores]
    probabilities = [torch.softmax(each / 0.1, dim=1) for each in scores]
    pairs = ((codes[0], probabilities[1]), (codes[1], probabilities[0]))
    return torch.stack([-(code * probability.log()).sum(1).mean() for code, probability in pairs]).mean()


TEXTBOOK: dict[str, Loss] = {
    "barlow_twins": _textbook_barlow_twins,
    "simclr": _textbook_simclr,
    "byol": _textbook_byol,
    "simsiam": _textbook_simsiam,
    "moco_v2": _textbook_moco_v2,
    "swav": _textbook_swav,
}


def lightly_loss(name: str, tensors: Sequence[Tensor]) -> Loss:
    """lightly's loss at the same hyperparameters. BYOL's is the negative cosine; MoCo's moves its queue too."""
    from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss, SwaVLoss

    if name == "swav":
        swav = SwaVLoss()

        def loss(z_a: Tensor, z_b: Tensor, prototypes: Tensor) -> Tensor:
            scores = [F.normalize(z, dim=1) @ prototypes.T for z in (z_a, z_b)]
            return swav(scores, []).sum()

        return loss
    if name == "moco_v2":
        contrast = NTXentLoss(temperature=0.2, memory_bank_size=tuple(tensors[2].shape)).to(device())
        return lambda q, k, queue: contrast(q, k)
    simple: dict[str, Callable[[], Loss]] = {
        "barlow_twins": lambda: BarlowTwinsLoss(lambda_param=0.0051),
        "simclr": lambda: NTXentLoss(temperature=0.5),
        "byol": NegativeCosineSimilarity,
        "simsiam": NegativeCosineSimilarity,
    }
    return simple[name]()


# Floors: the unavoidable products or passes, forward and backward, on what the loss takes


@torch.no_grad()
def _floor_barlow_twins(z_a: Tensor, z_b: Tensor) -> None:
    correlation = z_a.T @ z_b  # stands for its gradient below
    z_b @ correlation.T
    z_a @ correlation


@torch.no_grad()
def _floor_simclr(z_a: Tensor, z_b: Tensor) -> None:
    """The similarity matrix is symmetric, and its gradient can be made so: one product each way."""
    z = torch.cat([z_a, z_b])
    (z @ z.T) @ z


@torch.no_grad()
def _floor_copy(p: Tensor, z: Tensor) -> None:
    torch.add(p, z)


@torch.no_grad()
def _floor_moco_v2(q: Tensor, k: Tensor, queue: Tensor) -> None:
    (q @ queue.T) @ queue


@torch.no_grad()
def _floor_swav(z_a: Tensor, z_b: Tensor, prototypes: Tensor) -> None:
    for z in (z_a, z_b):
        scores = z @ prototypes.T
        scores @ prototypes
        scores.T @ z


FLOORS: dict[str, Callable[..., None]] = {
    "barlow_twins": _floor_barlow_twins,
    "simclr": _floor_simclr,
    "byol": _floor_copy,
    "simsiam": _floor_copy,
    "moco_v2": _floor_moco_v2,
    "swav": _floor_swav,
}


def step_of(name: str, side: str, tensors: Sequence[Tensor]) -> Callable[[], None]:
    """One forward and backward pass of a side as a function without arguments; gradients are dropped first."""
    if side == "floor":
        return lambda: FLOORS[name](*tensors)
    if side == "lightly":
        loss = lightly_loss(name, tensors)
    else:
        loss = {"twinbench": TWINBENCH, "textbook": TEXTBOOK}[side][name]

    def step() -> None:
        for tensor in tensors:
            tensor.grad = None
        loss(*tensors).backward()

    return step


def measure(name: str, side: str, sizes: dict[str, int]) -> Document:
    """Seconds of a call (the median of several after a first) and the memory it needs beyond its inputs."""
    tensors = inputs(name, **sizes)
    step = step_of(name, side, tensors)
    before = torch.cuda.memory_allocated() / 2**20 if device().type == "cuda" else resident_mb()
    step()
    synchronise()
    extra = peak_memory_mb() - before
    times: list[float] = []
    while len(times) < _CALLS or sum(times) < _SECONDS:
        started = time.perf_counter()
        step()
        synchronise()
        times.append(time.perf_counter() - started)
    return {"milliseconds": 1000 * Spread.of(times).median, "extra_mb": extra, "device": device_description()}


def warm_up_libraries() -> None:
    """A small product with its gradient, so that what libraries load at first use is not taken for the loss's."""
    small = torch.randn(64, 64, device=device(), requires_grad=True)
    F.log_softmax(small @ small, dim=1).sum().backward()
    synchronise()


def measure_all(names: Sequence[str], shrink: int, repetitions: int) -> Document:
    """Every side of every loss, taking turns; ``shrink`` divides the sizes (1: the papers')."""
    sides = [side for side in SIDES if side != "lightly" or has_lightly()]
    sizes = {name: {key: max(2, size // shrink) for key, size in SIZES[name].items()} for name in names}
    jobs = [{"name": name, "side": side, "sizes": sizes[name]} for name in names for side in sides]
    answers = take_turns(__file__, [(job, KEEP_FREED_MEMORY) for job in jobs], repetitions)
    rows = [
        {**job, **{key: [answer[key] for answer in repeated] for key in ("milliseconds", "extra_mb")}}
        for job, repeated in zip(jobs, answers, strict=True)
    ]
    return {"facts": facts(), "device": answers[0][0]["device"], "repetitions": repetitions, "rows": rows}


def render(document: Document) -> str:
    """The document as Markdown."""
    rows = document["rows"]
    floors = {row["name"]: Spread.of(row["milliseconds"]).median for row in rows if row["side"] == "floor"}
    table = markdown_table(
        ["loss", "size", "side", "ms", "times the floor", "extra memory, MiB"],
        [_line(row, floors[row["name"]]) for row in rows],
    )
    setting = (
        f"fp32, forward and backward, {document['repetitions']} repetitions: median (lowest to highest)."
    )
    return "\n\n".join([setting, table, footnote(document)])


def _line(row: Document, floor: float) -> list[str]:
    milliseconds = Spread.of(row["milliseconds"])
    digits = max(0, 2 - math.floor(math.log10(max(milliseconds.median, 1e-3))))
    size = ", ".join(f"{key.upper()}={value}" for key, value in row["sizes"].items())
    return [
        row["name"],
        size,
        row["side"],
        milliseconds.text(digits),
        f"{milliseconds.median / floor:.2f}",
        Spread.of(row["extra_mb"]).text(0),
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--losses", default=",".join(SIZES), help="comma-separated (default: all)")
    parser.add_argument(
        "--shrink", type=positive, default=1, help="divide all sizes by this (default: paper sizes)"
    )
    parser.add_argument(
        "--repetitions", type=positive, default=3, help="measurements of each row, taking turns"
    )
    parser.add_argument("--out", type=Path, help="JSON file for everything measured")
    parser.add_argument("--markdown", type=Path, help="file whose block 'losses' gets the table")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure one job if asked to by a parent process, else everything."""
    arguments = _arguments()
    if arguments.job:
        warm_up_libraries()
        print(json.dumps(measure(**json.loads(arguments.job))))
        return
    names = chosen("loss", arguments.losses, tuple(SIZES))
    check_targets("losses", arguments.out, arguments.markdown)
    document = measure_all(names, arguments.shrink, arguments.repetitions)
    publish(document, render(document), "losses", arguments.out, arguments.markdown)


if __name__ == "__main__":
    run_script(main)
