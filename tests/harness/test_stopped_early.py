"""A signal while a command still imports what it needs: nothing is under way, and a scheduler may begin it again."""

import subprocess
import sys

import pytest

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
