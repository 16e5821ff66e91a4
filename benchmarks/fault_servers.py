"""A Ray cluster and an S3 server on this machine, in processes of their own, for faults that strike them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

_CLUSTER = """
import json
import sys
from twinbench.harness.ray_options import RayOptions, prepare_for_ray

prepare_for_ray(RayOptions("auto"))
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
print(json.dumps([cluster.address, [node.all_processes["raylet"][0].process.pid for node in nodes]]), flush=True)
sys.stdin.read()
cluster.shutdown()
"""
_S3_SERVER = Path(__file__).parents[1] / "tests" / "harness" / "s3_server.py"


def missing(kind: str) -> list[str]:
    """The packages that are not here of those that a fault of a kind of server takes."""
    return [name for name in {"ray": ("ray",), "s3": ("s3fs", "moto")}[kind] if find_spec(name) is None]


@dataclass
class RayCluster:
    """A cluster's address, and the process of each of its two nodes with a CPU."""

    address: str
    nodes: list[int]


@contextmanager
def ray_cluster(environment: Mapping[str, str]) -> Iterator[RayCluster]:
    """A head without CPUs and two nodes with one each, whose processes have such an environment."""
    not_niced = {**environment, "RAY_worker_niceness": "0"}
    with _process([sys.executable, "-c", _CLUSTER], not_niced) as process:
        assert process.stdout is not None
        address, nodes = json.loads(process.stdout.readline())
        yield RayCluster(address, nodes)


class S3:
    """An S3 server, which keeps its objects while it cannot be reached."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._in, self._out = process, process.stdin, process.stdout
        self.endpoint = f"http://127.0.0.1:{int(self._out.readline())}"

    def tell(self, word: str) -> None:
        """``stop`` or ``start``."""
        print(word, file=self._in, flush=True)
        if self._out.readline().strip() != word:
            raise RuntimeError(f"the S3 server does not {word}")

    def make_bucket(self, name: str) -> None:
        """Make an empty one."""
        asked = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")
        with urllib.request.urlopen(asked):
            pass

    def environment(self) -> dict[str, str]:
        """What makes a command find it."""
        known = {"ACCESS_KEY_ID": "anyone", "SECRET_ACCESS_KEY": "any", "DEFAULT_REGION": "us-east-1"}
        known |= {"ENDPOINT_URL": self.endpoint, "MAX_ATTEMPTS": "1"}
        return {f"AWS_{name}": value for name, value in known.items()}


@contextmanager
def s3_server() -> Iterator[S3]:
    """The server."""
    with _process([sys.executable, str(_S3_SERVER)], {}) as process:
        yield S3(process)


@contextmanager
def _process(command: list[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A program with a group of its own, which is asked to end by the end of its input and then killed."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
