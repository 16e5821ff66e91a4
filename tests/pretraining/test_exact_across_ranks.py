"""One process and several ranks with different shares give the same loss, gradient and trained state.

The ranks are real gloo processes (``rank_worker.py``). Gradients are averaged over them as the trainer does. The
negative controls put well-known mistakes in and must be caught.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from tests.forks import run

WORKER = Path(__file__).with_name("rank_worker.py")


def _load_worker():
    spec = importlib.util.spec_from_file_location("rank_worker", WORKER)
    module = importlib.util.module_from_spec(spec)
    sys.modules["rank_worker"] = module
    spec.loader.exec_module(module)
    return module


worker = _load_worker()
EXACT = [
    *(f"loss {name}" for name in worker.LOSSES),
    *(f"method {name}" for name in worker.OPTIONS),
    "norm (16, 3)",
    "norm (16, 3, 4, 4)",
    "sinkhorn",
    "collectives",
]


@pytest.fixture(scope="module")
def one_process():
    return worker.all_cases()


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory):
    """The results of every rank of a process group."""
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    finished = run(WORKER, request.param, folder, cwd=folder)
    assert finished.returncode == 0, finished.stderr
    return [torch.load(folder / f"result.{rank}") for rank in range(request.param)]


@pytest.mark.numerics
@pytest.mark.parametrize("case", EXACT)
def test_every_rank_equals_one_process(case, ranks, one_process, margin):
    for result in ranks:
        margin.close("difference", result[case], one_process[case], rtol=1e-7, atol=1e-10)


@pytest.mark.numerics
@pytest.mark.parametrize(
    "control", [*(f"control {name}" for name in worker.CONTROLS), "control method with local batch norm"]
)
def test_well_known_mistakes_are_caught(control, ranks, one_process, margin):
    differences = [
        (ranks[0][control][name] - expected).norm() / expected.norm().clamp_min(1e-12)
        for name, expected in one_process[control].items()
        if expected.is_floating_point()
    ]
    margin.at_least("relative difference", max(differences).item(), 1e-2)


@pytest.mark.numerics
def test_a_raw_all_reduce_loses_the_number_of_ranks(ranks, one_process, margin):
    """The official pattern: the right direction at 1/W of the length (with statistics done right)."""
    case, world = "control barlow_twins with a raw all-reduce", len(ranks)
    scaled = {name: value * (1 if name == "loss" else world) for name, value in ranks[0][case].items()}
    margin.close("difference", scaled, one_process[case], rtol=1e-7, atol=1e-7)
