"""Several commands at once on one run store: each job is done once, whoever is killed or sleeps, and tables agree."""

import fcntl
import os
import signal
from pathlib import Path

import pytest
import torch

from tests.forks import Fork
from twinbench.foundation.errors import InputError
from twinbench.foundation.lease import Lease
from twinbench.harness.store import read_run
from twinbench.harness.watch import LiveView, PlainLines

# A command whose leases last so many seconds, and which stops itself after its first checkpoint if asked to.
COMMAND = """
import os
import signal
import sys
from twinbench.foundation import lease
from twinbench.harness.main import main
from twinbench.pretraining import train

lease.LEASE_SECONDS, stops = float(sys.argv.pop(1)), sys.argv.pop(1) == "stops"
save = train.save_checkpoint


def save_and_stop(*args):
    save(*args)
    train.save_checkpoint = save
    os.kill(os.getpid(), signal.SIGSTOP)


if stops:
    train.save_checkpoint, train._CHECKPOINT_SECONDS = save_and_stop, 0.0
main()
"""


@pytest.fixture
def command(started, tmp_path):
    """Start a command in a process of its own; what it says goes to the file ``said``."""

    def start(*words, seconds=60.0, stops=False):
        options = [seconds, "stops" if stops else ""]
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        with (tmp_path / "said").open("w") as said:
            process = Fork(COMMAND, *options, *words, cwd=tmp_path, env=environment, stdout=said, stderr=said)
        started.append(process)
        return process

    return start


@pytest.fixture
def studies(tiny_study, photos, tmp_path):
    """Two studies on a few photos, ``less`` and ``more``: the second has the rows of the first and one more."""
    text = tiny_study.read_text().replace("image_set: digit-scenes", f"image_set: folder:{photos}")
    text = text.replace("limit: {train: 192, val: 32, test: 64}\n", "").replace("size: 96", "size: 16")
    (tmp_path / "less.yaml").write_text(text)
    (tmp_path / "more.yaml").write_text(text.replace("barlow_twins]", "barlow_twins, simsiam]"))


@pytest.fixture(autouse=True)
def no_flock(monkeypatch):
    """As on a network file system that has none."""

    def refuse(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(fcntl, "lockf", refuse)


def began(text):
    """The labels of the jobs that a command began, by its lines."""
    lines = [line for line in text.splitlines() if line.startswith("[") and ", ETA " not in line]
    return [line.partition("] ")[2] for line in lines]


def files(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and ".lease" not in file.parts
    }


def test_overlapping_studies_at_once_do_each_job_once_and_write_the_tables_of_one_alone(
    command, studies, tmp_path, cli, wait_for
):
    other = command("run", "less.yaml", "--workers", "1")
    wait_for(lambda: list((tmp_path / "runs").glob("*/.lease/*.held")), other)
    ended = cli("run", "more.yaml")
    code, said = other.wait(), (tmp_path / "said").read_text()
    assert (code, ended.code) == (0, 0), said + ended.err
    jobs = began(said) + began(ended.err)
    assert len(jobs) == len(set(jobs)) == 9, said + ended.err
    for name in ("less", "more"):
        alone = cli("run", f"{name}.yaml", "--runs", "alone", "--out", f"alone-results/{name}")
        assert alone.code == 0, alone.err
        tables = files(tmp_path / "results" / name / "tables")
        assert tables == files(tmp_path / "alone-results" / name / "tables")
        assert len(tables) >= 3


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_run_that_another_works_in_comes_last_and_its_holder_is_named(
    cli, studies, tmp_path, monkeypatch, workers
):
    assert cli("run", "less.yaml", "--methods", "random_init").code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    for record in (folder / "records").glob("*.json"):
        record.unlink()
    other = Lease(folder)
    assert other.take()
    waits = PlainLines.waits

    def leave_when_nothing_else_is_left(self, label, holder):
        if len(list((tmp_path / "runs").glob("barlow_twins*/records/*.json"))) == 2:
            other.release()
        waits(self, label, holder)

    monkeypatch.setattr(PlainLines, "waits", leave_when_nothing_else_is_left)
    ended = cli("run", "less.yaml", "--workers", workers)
    other.release()
    assert ended.code == 0, ended.err
    assert f"(seed 0) waits for process {os.getpid()} on" in ended.err
    assert ["random_init" in job for job in began(ended.err)] == [False] * 3 + [True] * 2


def test_pretrain_and_evaluate_wait_and_say_for_whom(cli, photos, tmp_path, monkeypatch):
    pretrain = ["pretrain", "random_init", "--image-set", f"folder:{photos}", "--set", "backbone.width=8"]
    assert cli(*pretrain).code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    other, said = Lease(folder), []

    def leave(text):
        said.append(text)
        other.release()

    monkeypatch.setattr("twinbench.harness.encoder_commands.say", leave)
    assert other.take()
    evaluated = cli("evaluate", folder, "--protocol", "knn/cosine-v1", "--image-set", f"folder:{photos}")
    assert evaluated.code == 0, evaluated.err
    assert len(list((folder / "records").glob("*.json"))) == 1
    assert other.take()
    (folder / "status.json").unlink()
    assert cli(*pretrain).code == 0
    waits = [text for text in said if text.startswith(f"waits for process {os.getpid()} on")]
    assert len(waits) == 2
    assert read_run(folder).is_trained()


def test_what_is_measured_is_not_measured_again(cli, photos, tmp_path, monkeypatch):
    assert (
        cli("pretrain", "random_init", "--image-set", f"folder:{photos}", "--set", "backbone.width=8").code
        == 0
    )
    (folder,) = (tmp_path / "runs").iterdir()
    evaluate = ("evaluate", folder, "--protocol", "knn/cosine-v1", "--image-set", f"folder:{photos}")
    first = cli(*evaluate)
    (record,) = (folder / "records").glob("*.json")
    written = record.stat().st_mtime_ns
    other = Lease(folder)
    assert other.take(), "no run is waited for either"
    again = cli(*evaluate)
    assert again.code == 0, again.err
    assert again.out == first.out
    assert f"already measured: {record}" in again.err
    # by the process that this one waits for
    record.rename(tmp_path / "kept")

    def measured(text):
        if not record.exists():
            (tmp_path / "kept").rename(record)
            other.release()

    monkeypatch.setattr("twinbench.harness.encoder_commands.say", measured)
    meanwhile = cli(*evaluate)
    assert (meanwhile.code, meanwhile.out) == (0, first.out), meanwhile.err
    assert record.stat().st_mtime_ns == written


def test_who_cannot_wait_for_ever_says_for_whom_it_waited(finished):
    folder = next((finished / "runs").iterdir())
    other = Lease(folder)
    assert other.take()
    said = []
    waiting = read_run(folder).locked(said.append, patience=0.0)
    with pytest.raises(InputError, match=f"another twinbench process .*{os.getpid()}"), waiting:
        pass
    other.release()
    with read_run(folder).locked(said.append):
        assert not other.take()
    assert said == []


def is_stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_training_that_slept_too_long_leaves_the_run_to_who_took_it_over(
    command, studies, tmp_path, cli, wait_for
):
    words = ["run", "less.yaml", "--methods", "barlow_twins", "--workers", "1"]
    sleeper = command(*words, "--out", "results/sleeper", seconds=1.0, stops=True)
    wait_for(lambda: is_stopped(sleeper.pid), sleeper)
    heir = cli(*words)
    assert heir.code == 0, heir.err
    assert f"waits for process {sleeper.pid} on" in heir.err
    (folder,) = (tmp_path / "runs").glob("barlow*")
    left = files(folder)
    os.kill(sleeper.pid, signal.SIGCONT)
    code, said = sleeper.wait(), (tmp_path / "said").read_text()
    assert code == 0, said
    assert "LOST pretrain" in said
    assert f"no life for over 1 s, and its work was taken over by process {os.getpid()} on" in said
    assert files(folder) == left
    assert files(tmp_path / "results/less/tables") == files(tmp_path / "results/sleeper/tables")


def test_a_live_view_names_whom_jobs_wait_for():
    view = LiveView({"": [f"pretrain {n}" for n in range(8)]})
    for n in range(7):
        view.waits(f"pretrain {n}", "process 7 on node3")
    shown = [str(part) for part in view.render().renderables[1:]]
    assert shown[0] == "pretrain 0 waits for process 7 on node3"
    assert shown[-1] == "waiting for other processes beside these: 2"
    assert len(shown) == 6
    for n in range(3):
        view.end(f"pretrain {n}")
    assert len(view.render().renderables) == 5
