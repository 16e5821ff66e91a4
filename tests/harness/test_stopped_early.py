"""A signal while a command imports what it needs, or waits for other ranks: a scheduler may begin it again."""

import os
import signal
import socket
import subprocess
import sys

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


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_a_signal_while_other_machines_are_waited_for_ends_the_command(tmp_path, wait_for, number, code):
    """A library waits there, for half an hour, and runs no handler of Python's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    said = tmp_path / "said"

    def waits():
        with socket.socket() as asks:
            return asks.connect_ex(("127.0.0.1", port)) == 0

    with said.open("w") as err:
        words = ("pretrain", "random_init", "--image-set", "digit-scenes", "--nodes", "2")
        process = Fork(COMMAND, *words, cwd=tmp_path, env={**os.environ, **meeting}, stdout=err, stderr=err)
    try:
        wait_for(waits, process)
        process.send_signal(number)
        assert process.wait(1800) == code  # seconds, for a process that hangs
    finally:
        process.kill()
    last = said.read_text().splitlines()[-1]
    assert last == f"stopped by {number.name} before all ranks were there; run the same command again"
