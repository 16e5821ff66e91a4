"""Commands that compute with several threads, while another one has the cores: they wait for it, and say so."""

import os
import signal
import tempfile

import pytest
import torch

from tests.forks import COMMAND, Fork
from twinbench.foundation.claims import claimed_cores
from twinbench.foundation.cores import usable_cores
from twinbench.harness import workers
from twinbench.pretraining import engine
from twinbench.pretraining.engine import Hardware, threads_to_claim

PRETRAIN = ("pretrain", "random_init", "--image-set", "digit-scenes")  # waits as those do that train


@pytest.fixture(autouse=True)
def temporary_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def command(tmp_path):
    """Start a command of two threads in a process of its own; what it says goes to the file ``said``."""
    started = []

    def start(*words):
        program = f"import tempfile; tempfile.tempdir = {str(tmp_path)!r}\n{COMMAND}"
        environment = {**os.environ, "OMP_NUM_THREADS": "2", "TMPDIR": str(tmp_path)}
        with (tmp_path / "said").open("w") as said:
            started.append(Fork(program, *words, cwd=tmp_path, env=environment, stdout=said, stderr=said))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def waits(command, tmp_path, wait_for):
    """Start a command, and come back when it says that it waits for this process."""

    def start(*words):
        process = command(*words)
        wait_for(lambda: f"waits for cores, after process {os.getpid()} on " in said(tmp_path), process)
        return process

    return start


def said(tmp_path):
    return (tmp_path / "said").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ("run", "tiny.yaml", "--workers", "1", "--out", "out"),
        pytest.param(
            ("run", "tiny.yaml", "--workers", "1", "--time-limit", "9", "--out", "out"),
            marks=pytest.mark.skipif(
                usable_cores() == 1, reason="a worker has several threads on several cores"
            ),
        ),
        PRETRAIN,
        ("evaluate", "{encoder}", "--protocol", "linear/cached-v1", "--image-set", "digit-scenes"),
    ],
    ids=["run", "in a worker", "pretrain", "evaluate"],
)
def test_a_command_waits_for_the_cores_of_another_one(waits, words, finished, tmp_path):
    (encoder,) = (finished / "runs").glob("barlow_twins*/encoder")
    runs = ("--runs", "others") if words[0] != "evaluate" else ()
    with claimed_cores(2, lambda holder: None):
        process = waits(*(word.format(encoder=encoder) for word in words), *runs)
        assert process.poll() is None
    assert process.wait() == 0, said(tmp_path)


def test_finished_jobs_wait_for_nothing(command, finished, tmp_path):
    with claimed_cores(2, lambda holder: None):
        assert command("run", "tiny.yaml", "--workers", "1").wait() == 0, said(tmp_path)
    assert "waits" not in said(tmp_path)


@pytest.mark.parametrize("words", [("run", "tiny.yaml", "--workers", "1"), PRETRAIN], ids=["run", "pretrain"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_that_waits_stops_at_once(waits, words, number, tiny_study, tmp_path):
    with claimed_cores(2, lambda holder: None):
        process = waits(*words)
        process.send_signal(number)
        assert process.wait() == (75 if words[0] == "run" or number == signal.SIGTERM else 130), said(
            tmp_path
        )


def test_a_command_of_one_thread_waits_for_nothing(cli, tiny_study):
    with claimed_cores(1000, lambda holder: None):
        ended = cli("run", tiny_study)
    assert ended.code == 0, ended.err
    assert "waits" not in ended.err


def test_timings_of_several_workers_wait_for_the_cores_of_all(monkeypatch):
    wanted = []
    monkeypatch.setattr(workers, "claimed_cores", lambda *arguments: wanted.append(arguments[0]))
    for count, threads in ((2, 1), (2, 4), (1, 16)):
        workers._cores_for(count, threads, print)
    assert wanted == [1, 8, 16]


def test_ranks_claim_together_before_they_start(monkeypatch):
    monkeypatch.setattr(engine, "usable_cores", lambda: 8)
    assert threads_to_claim() == torch.get_num_threads()
    assert [threads_to_claim(Hardware(devices=devices)) for devices in (2, 3, 4, 8, 16)] == [8, 6, 8, 1, 1]
    monkeypatch.setenv("LOCAL_RANK", "1")  # one that Fabric started, or torchrun
    assert threads_to_claim(Hardware(devices=2)) == 1


def test_nothing_is_claimed_where_gpus_compute(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert threads_to_claim(Hardware(devices=2)) == 1
    workers._cores_for(2, 4, print).__enter__()
    assert os.listdir(tempfile.gettempdir()) == []
