"""A signal while a command imports what it needs, or waits for other ranks: a scheduler may begin it again."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.forks import COMMAND, Fork

# the signal comes in the middle of the first import of the command line
PROGRAM = """
import os, signal, sys


class Struck:
    def find_spec(self, name, path=None, target=None):
        if name == "twinbench.harness.cli":
            os.kill(os.getpid(), signal.{name})


sys.meta_path.insert(0, Struck())
from twinbench.harness.main import main

main()
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_before_anything_began_ends_with_the_code_of_a_stopped_run(tmp_path, name):
    command = [sys.executable, "-c", PROGRAM.replace("{name}", name), "run", "quick"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 75
    assert ended.stderr == f"stopped by {name} with nothing under way; run the same command again\n"
    assert not list(tmp_path.iterdir())


@pytest.fixture
def meets(started, tmp_path, wait_for):
    """Start a training on two machines, of which the other never comes, and come back when it waits for that."""

    def start(*more):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]

        def waits():
            with socket.socket() as asks:
                return asks.connect_ex(("127.0.0.1", port)) == 0

        script = tmp_path / "command.py"
        script.write_text(COMMAND)
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
        words = ("pretrain", "random_init", "--image-set", "digit-scenes", "--nodes", "2", *more)
        with (tmp_path / "said").open("w") as said:
            started.append(
                Fork(script, *words, cwd=tmp_path, env={**os.environ, **meeting}, stdout=said, stderr=said)
            )
        wait_for(waits, started[0])
        return started[0]

    return start


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_a_signal_while_other_machines_are_waited_for_ends_the_command(meets, tmp_path, number, code):
    """A library waits there, for half an hour, and runs no handler of Python's."""
    process = meets()
    process.send_signal(number)
    assert process.wait(1800) == code  # seconds, for a process that hangs
    last = (tmp_path / "said").read_text().splitlines()[-1]
    assert last == f"stopped by {number.name} before all ranks were there; run the same command again"


def children(pid):
    """The processes that a process started, as the system says."""
    fields = {int(file.parent.name): parent_of(file) for file in Path("/proc").glob("[0-9]*/stat")}
    return [child for child, parent in fields.items() if parent == pid]


def parent_of(file):
    try:
        state, parent, *_ = file.read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else int(parent)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not say who started whom")
def test_ranks_of_this_machine_end_with_the_first(meets):
    """They import what they need when it ends, or look for it already."""
    process = meets("--devices", "2")
    (rank,) = children(process.pid)
    process.kill()
    process.wait()
    hung = time.monotonic() + 1800
    while parent_of(Path(f"/proc/{rank}/stat")) is not None:
        assert time.monotonic() < hung, "the rank hangs"
        time.sleep(0.05)
