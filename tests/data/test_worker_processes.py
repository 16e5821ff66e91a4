"""Workers come and go with the process that wants them, whatever becomes of it."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from PIL import Image

# No ``if __name__ == "__main__"``: workers that imported it would start over.
SCRIPT = """
import sys
from functools import partial
from multiprocessing import active_children

import torch

from twinbench.data.catalogue import load_image_set
from twinbench.foundation.randomness import seeded_generator
from twinbench.data.streaming import CropStream
from twinbench.pretraining.view_policies import asymmetric_views

images = load_image_set("folder:" + sys.argv[1], stream=True).split("train").images
generator = partial(seeded_generator, 0, "views")
crops = iter(CropStream(images, asymmetric_views(16, 'pillow'), lambda step: torch.arange(4), generator, 0, 20, 2))
next(crops), next(crops)  # one of each worker, so that both are ready
print("workers", *[worker.pid for worker in active_children()], flush=True)
"""
REST = "print('steps', 2 + sum(1 for _ in crops))"
ERROR = "raise ValueError('in the middle')"
WAITING = "sys.stdin.read()"


@pytest.fixture
def script(tmp_path):
    """Gives the command for a script with such an end, in a folder with pictures."""
    folder = tmp_path / "photos" / "train"
    folder.mkdir(parents=True)
    for i in range(8):
        Image.new("RGB", (20, 20), (30 * i, 0, 0)).save(folder / f"{i}.png")

    def command(end: str) -> list[str]:
        path = tmp_path / "script.py"
        path.write_text(SCRIPT + textwrap.dedent(end))
        return [sys.executable, str(path), str(tmp_path / "photos")]

    return command


def finished(command: list[str], **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=1800, **options)


def worker_ids(printed: str) -> list[int]:
    """The two workers in the line that the script prints."""
    (line,) = re.findall(r"^workers (.+)$", printed, re.MULTILINE)
    first, second = line.split()
    return [int(first), int(second)]


def status(pid: int, field: str) -> str:
    return re.search(rf"^{field}:\s+(\S+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[1]


def alive(pid: int) -> bool:
    try:
        return status(pid, "State") != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 1800  # for workers that stay; a busy machine may take long
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, [pid for pid in pids if alive(pid)]
        time.sleep(0.05)


def test_a_script_without_a_guard_runs_once_and_leaves_nothing_and_may_change_its_folder(script, tmp_path):
    """To workers a relative folder means the same as to the script, which is in another one than it began in."""
    interpreter, path, _ = script(REST)
    text = Path(path).read_text().replace("images =", "import os; os.chdir('photos')\nimages =")
    Path(path).write_text(text)
    done = finished([interpreter, path, "."], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == ["steps 20"]
    assert done.stderr == "", "a leaked semaphore, for one"
    wait_until_gone(worker_ids(done.stdout))


def test_an_error_ends_a_script_whose_stream_is_still_open(script):
    """Python ends its workers by SIGTERM and waits for them; they ignore the launcher's."""
    done = finished(script(ERROR))
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("ValueError: in the middle")
    wait_until_gone(worker_ids(done.stdout))


@pytest.fixture
def waiting(script):
    """A script that has two workers at work and waits, its workers and the server that forked them."""
    process = subprocess.Popen(
        script(WAITING),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    with process:
        workers = worker_ids(process.stdout.readline())
        yield process, workers, int(status(workers[0], "PPid"))
        process.kill()


def test_workers_and_the_thread_that_forked_them_survive_a_signal_to_all_and_end_with_a_killed_process(
    waiting,
):
    process, workers, server = waiting
    assert server != process.pid
    assert {status(worker, "PPid") for worker in workers} == {str(server)}
    assert status(server, "Threads") == "1"
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        for pid in (server, *workers):
            os.kill(pid, number)
    time.sleep(0.5)
    assert all(map(alive, [*workers, server]))
    process.kill()
    process.wait()
    wait_until_gone([*workers, server])


def test_a_temporary_folder_whose_path_no_socket_can_have_is_named(tmp_path):
    """As some schedulers give to a job."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    code = "from twinbench.data.worker_processes import worker_context; worker_context().Process(target=print).start()"
    done = finished([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(folder)})
    assert f"where:   {folder}\n" in done.stderr
    assert "set TMPDIR to a folder whose path has 70 characters at most" in done.stderr
