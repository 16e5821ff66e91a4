"""Commands that compute with several threads, while another one has the cores: they wait for it, and say so."""

import os
import signal

import pytest
import torch

from tests.forks import COMMAND, Fork
from twinbench.foundation.claims import claimed_cores
from twinbench.foundation.cores import usable_cores
from twinbench.foundation.lease import Lease
from twinbench.harness import execute, workers
from twinbench.pretraining import engine
from twinbench.pretraining.engine import Hardware, threads_to_claim

PRETRAIN = ("pretrain", "random_init", "--image-set", "digit-scenes")  # waits as those do that train
ALL = 10_000
IN_HERE = ("run", "little.yaml", "--workers", "1")
IN_A_WORKER = pytest.param(
    (*IN_HERE, "--time-limit", "9"),
    marks=pytest.mark.skipif(usable_cores() == 1, reason="a worker has several threads on several cores"),
)


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """One with nothing else on it, and no launcher."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for name in ("LOCAL_RANK", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def little(tiny_study, tmp_path):
    """A study that is done in no time, as two threads in a busy suite take long for anything."""
    text = tiny_study.read_text().replace("methods: [random_init, barlow_twins]", "methods: [random_init]")
    (tmp_path / "little.yaml").write_text(
        "\n".join(line for line in text.splitlines() if "linear/" not in line)
    )


@pytest.fixture
def command(started, tmp_path):
    """Start a command of two threads in a process of its own; what it says goes to the file ``said``."""

    def start(*words):
        environment = {**os.environ, "OMP_NUM_THREADS": "2"}
        with (tmp_path / "said").open("w") as said:
            started.append(Fork(COMMAND, *words, cwd=tmp_path, env=environment, stdout=said, stderr=said))
        return started[-1]

    return start


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
        IN_HERE,
        IN_A_WORKER,
        PRETRAIN,
        ("evaluate", "{encoder}", "--protocol", "knn/cosine-v1", "--image-set", "digit-scenes"),
    ],
    ids=["run", "in a worker", "pretrain", "evaluate"],
)
def test_a_command_waits_for_the_cores_of_another_one(waits, words, finished, little, tmp_path):
    (encoder,) = (finished / "runs").glob("barlow_twins*/encoder")
    runs = ("--runs", "others") if words[0] != "evaluate" else ()
    with claimed_cores(ALL, lambda holder: None):
        process = waits(*(word.format(encoder=encoder) for word in words), *runs)
        assert process.poll() is None
    assert process.wait() == 0, said(tmp_path)


def test_finished_jobs_wait_for_nothing(command, finished, tmp_path):
    with claimed_cores(ALL, lambda holder: None):
        assert command("run", "tiny.yaml", "--workers", "1").wait() == 0, said(tmp_path)
    assert "waits" not in said(tmp_path)


@pytest.mark.parametrize(
    ("words", "number"),
    [
        pytest.param(IN_HERE, signal.SIGTERM, id="run"),
        pytest.param(IN_HERE, signal.SIGINT, id="run, Ctrl-C"),
        pytest.param(*IN_A_WORKER.values, signal.SIGTERM, marks=IN_A_WORKER.marks, id="in a worker"),
        pytest.param(PRETRAIN, signal.SIGTERM, id="pretrain"),
        pytest.param(PRETRAIN, signal.SIGINT, id="pretrain, Ctrl-C"),
    ],
)
def test_one_that_waits_stops_at_once(waits, words, number, little, tmp_path):
    with claimed_cores(ALL, lambda holder: None):
        process = waits(*words)
        process.send_signal(number)
        code = 130 if (words, number) == (PRETRAIN, signal.SIGINT) else 75
        assert process.wait() == code, said(tmp_path)
    assert "LOST" not in said(tmp_path)
    assert not list(tmp_path.glob("runs/*/status.json"))


def test_a_command_of_one_thread_waits_for_nothing(cli, tiny_study, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with claimed_cores(ALL, lambda holder: None):
        ended = cli("run", tiny_study)
    assert ended.code == 0, ended.err
    assert "waits" not in ended.err


def test_who_waits_for_a_run_keeps_no_cores(command, wait_for, finished, tmp_path):
    """As for one that another machine works in: others here compute meanwhile."""
    (encoder,) = (finished / "runs").glob("barlow_twins*/encoder")
    lease = Lease(encoder.parent)
    assert lease.take()
    process = command("evaluate", encoder, "--protocol", "knn/cosine-v1", "--image-set", "digit-scenes")
    wait_for(lambda: f"waits for process {os.getpid()} on " in said(tmp_path), process)
    with claimed_cores(ALL, refused):
        lease.release()
        wait_for(lambda: f"waits for cores, after process {os.getpid()} on " in said(tmp_path), process)
    assert process.wait() == 0, said(tmp_path)


def test_a_study_keeps_no_cores_for_a_run_that_another_process_works_in(cli, finished, monkeypatch):
    (run,) = (finished / "runs").glob("barlow_twins*")
    for record in (run / "records").glob("knn*"):
        record.unlink()
    lease, asked = Lease(run), []
    assert lease.take()

    def claimed(threads, waits):
        asked.append(lease.holder())
        return claimed_cores(threads, waits)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(execute, "claimed_cores", claimed)
    monkeypatch.setattr(execute.time, "sleep", lambda seconds: lease.release())
    ended = cli("run", "tiny.yaml")
    assert ended.code == 0, ended.err
    assert f"waits for process {os.getpid()} on " in ended.err
    assert asked == [None]


def refused(holder):
    raise AssertionError(f"waits for {holder}")


def test_timings_of_several_workers_wait_for_the_cores_of_all(monkeypatch):
    assert [workers._threads_of(*each) for each in ((2, 1), (2, 4), (1, 16))] == [1, 8, 16]
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert workers._threads_of(2, 4) == 1


def test_ranks_claim_together_before_they_start(monkeypatch):
    monkeypatch.setattr(engine, "usable_cores", lambda: 8)
    assert threads_to_claim() == torch.get_num_threads()
    assert [threads_to_claim(Hardware(devices=devices)) for devices in (2, 3, 4, 8, 16)] == [8, 6, 8, 1, 1]
    assert threads_to_claim(Hardware(devices=2, nodes=2)) == 1
    monkeypatch.setenv("LOCAL_RANK", "1")  # one that Fabric started, or torchrun
    assert threads_to_claim(Hardware(devices=2)) == 1


def test_nothing_is_claimed_where_gpus_compute(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert threads_to_claim(Hardware(devices=2)) == 1
    assert workers._threads_of(2, 4) == 1
