"""What every test finds: all methods and protocols registered, other seeds, and a record of the margins of scores."""

from __future__ import annotations

import gc
import json
import os
import random
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy
import pytest

from tests.forks import Origin
from twinbench.foundation.cores import usable_cores

if TYPE_CHECKING:
    from torch import Tensor

# What is imported and collected stays until the end: the search for garbage would go through it again and again, for a
# quarter of the time until the first test begins.
gc.disable()

# Bits, device names and numbers of workers are those of a CPU, on a machine with a GPU too; child processes inherit it.
# `make test-gpu` asks for the tests marked ``gpu`` instead, see tests/gpu/conftest.py.
if "TWINBENCH_TEST_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_configure(config: pytest.Config) -> None:
    """Register everything, for test modules ask the registries; not where pytest-xdist only tells others what to do."""
    if not hasattr(config, "workerinput"):  # one for all of pytest-xdist's workers
        config.add_cleanup(Origin().end)
    if config.getoption("numprocesses", None):
        return
    # Cores that tests claim concern neither those beside them nor what else runs here; Python's own folder stays.
    folder = tempfile.TemporaryDirectory(prefix="twinbench-tests-", ignore_cleanup_errors=True)
    os.environ["TMPDIR"] = folder.name
    config.add_cleanup(folder.cleanup)

    import torch

    from twinbench.harness.plugins import load_plugins

    # The compiler's cache does not tell instruction sets apart, and what was compiled for another one gives NaN.
    capability = torch.backends.cpu.get_cpu_capability().replace(" ", "-")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(
        tempfile.gettempdir(), f"twinbench-compiled-{os.getuid()}-{capability}"
    )
    load_plugins()


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: tests of processes and locks wait for much of their time."""
    return usable_cores() + 1


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start many processes go first: begun last, one would keep a single core busy in the end."""
    first = ("test_devices", "test_kill_and_resume", "test_installed", "test_exact_across_ranks")
    items.sort(key=lambda item: item.path.stem not in first)


@pytest.fixture(autouse=True)
def global_seeds() -> None:
    """Every test draws the same first weights and inputs in every run, whatever ran before it in the process."""
    import torch

    torch.manual_seed(0)
    numpy.random.seed(0)
    random.seed(0)


@pytest.fixture(scope="session")
def seed_offset() -> int:
    """What a test marked ``numerics`` adds to the seeds of its data, first weights and training; usually 0."""
    return int(os.environ.get("TWINBENCH_SEED_OFFSET", "0"))


class Margin:
    """Compares a measured value with its bar, and writes both down where the environment names a file for it.

    ``broken`` is what a variant scored that ought to fail. With it the distance between value and bar has a scale.
    """

    def __init__(self, test: str) -> None:
        self._test = test

    def at_least(self, name: str, value: float, bar: float, broken: float | None = None) -> None:
        self._record(name, value, bar, ">=", broken)
        assert value >= bar, f"{name} is {value}, below {bar}"

    def at_most(self, name: str, value: float, bar: float, broken: float | None = None) -> None:
        self._record(name, value, bar, "<=", broken)
        assert value <= bar, f"{name} is {value}, above {bar}"

    def close(
        self,
        name: str,
        actual: Mapping[str, Tensor],
        expected: Mapping[str, Tensor],
        rtol: float,
        atol: float,
    ) -> None:
        """Every element within ``atol`` + ``rtol`` times the expected one; what counts is the share of that."""
        assert actual.keys() == expected.keys()
        shares = [
            float(((actual[key].double() - value).abs() / (atol + rtol * value.abs().double())).max())
            for key, value in expected.items()
        ]
        # A sum that is not a number shows one that `max` would pass over.
        self.at_most(f"{name}, of the tolerance", max(shares) + 0 * sum(shares), 1)

    def _record(self, name: str, value: float, bar: float, side: str, broken: float | None) -> None:
        if path := os.environ.get("TWINBENCH_MARGINS"):
            row = {"test": self._test, "name": name, "value": float(value), "bar": bar, "side": side}
            with open(path, "a") as file:  # workers append to one file, each a whole line at a time
                file.write(json.dumps({**row, "broken": broken}) + "\n")


@pytest.fixture
def margin(request: pytest.FixtureRequest) -> Margin:
    assert request.node.get_closest_marker("numerics"), "a test with a margin has the marker numerics"
    return Margin(request.node.nodeid)
