"""Jobs whose worker dies, hangs or has too little memory: tried once more, alone, and then marked as failed."""

import json
import threading
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from queue import SimpleQueue
from types import SimpleNamespace

import pytest

from twinbench.foundation.errors import RunFailure
from twinbench.harness import dispatch, execute, workers
from twinbench.harness.images import Images
from twinbench.harness.schedule import Waiting
from twinbench.pretraining.interrupt import StopRequest

STRUCK = "pretrain barlow_twins (seed 0)"


class _Crew:
    """Stands for worker processes, which are this one; a job among ``dies`` is lost as often as that says.

    A job is done as soon as it is given, but for one among ``hangs``, which waits to be ended.
    """

    def __init__(self, monkeypatch):
        self.dies, self.hangs, self.begins = {}, set(), True
        self.messages = SimpleQueue()
        self.order, self.rested, self._hung = [], [], []
        monkeypatch.setattr(workers, "_started", self._started)
        for module in (workers, dispatch):
            monkeypatch.setattr(module, "MESSAGE_SECONDS", 0.01)

    @contextmanager
    def _started(self, data_root, number, threads):
        workers._Worker.images, workers._Worker.messages = Images(data_root), self.messages
        self._number = number
        yield self

    def has_free(self):
        return len(self._hung) < self._number

    def submit(self, function, *arguments):
        future, label = Future(), getattr(arguments[0], "label", "") if arguments else ""
        if label:
            self.order.append(label)
        if label in self.hangs:
            self._hung.append(future)
        elif self.dies.get(label, 0):
            self.dies[label] -= 1
            future.set_exception(BrokenProcessPool())
        else:
            try:
                future.set_result(function(*arguments))
            except Exception as error:
                future.set_exception(error)
        return future

    def beginning(self, work):
        return lambda: self.begins

    def kill(self, work):
        self.hangs.clear()
        self._hung.remove(work)
        work.set_exception(BrokenProcessPool())

    def rest(self):
        self.rested.append(len(self.order))


@pytest.fixture
def crew(monkeypatch):
    return _Crew(monkeypatch)


def status(folder, name):
    (file,) = (folder / "runs").glob(f"{name}*/status.json")
    return json.loads(file.read_text())


def test_a_job_whose_worker_dies_is_done_after_all_others(cli, tiny_study, crew):
    crew.dies = {STRUCK: 1}
    ended = cli("run", tiny_study, "--workers", "2")
    assert ended.code == 0, ended.err
    assert (
        f"LOST {STRUCK}: its worker process died, killed perhaps for its memory; it is tried once"
        in ended.err
    )
    labels = crew.order
    assert labels.count(STRUCK) == 2
    again = len(labels) - 1 - labels[::-1].index(STRUCK)
    assert all("random_init" not in label for label in labels[again:])
    assert crew.rested == [again], "nothing runs beside it, and idle workers hold no memory"


def test_one_that_dies_again_is_marked_and_the_others_are_done(cli, tiny_study, crew, tmp_path):
    crew.dies = {STRUCK: 2}
    ended = cli("run", tiny_study, "--workers", "2")
    assert ended.code == 1
    assert f"FAILED {STRUCK}: its worker process died" in ended.err
    assert "1 of 6 jobs failed" in ended.err
    assert status(tmp_path, "barlow_twins")["status"] == "failed"
    assert status(tmp_path, "random_init")["status"] == "done"
    assert "its worker process died" in (tmp_path / "results/tiny/tables/main.md").read_text()
    assert cli("run", tiny_study).code == 0, "the next command tries it again"


def test_one_that_cannot_be_marked_at_once_is_marked_later_and_not_tried_a_third_time(
    cli, tiny_study, crew, tmp_path, monkeypatch
):
    crew.dies, held = {STRUCK: 2}, []

    def give_up(job, error, *others):
        held.append(job.label)
        return None if len(held) == 1 else execute.give_up(job, error, *others)

    monkeypatch.setattr(workers, "give_up", give_up)
    ended = cli("run", tiny_study, "--workers", "2")
    assert ended.code == 1
    assert held == [STRUCK, STRUCK]
    assert crew.order.count(STRUCK) == 2
    assert f"FAILED {STRUCK}: its worker process died" in ended.err
    assert status(tmp_path, "barlow_twins")["status"] == "failed"


def test_workers_that_never_begin_end_the_study_and_say_so(cli, tiny_study, crew):
    crew.dies, crew.begins = {STRUCK: 2}, False
    ended = cli("run", tiny_study, "--workers", "2")
    assert ended.code == 1
    assert "error: its worker process died" in ended.err
    assert "--workers" in ended.err


def test_one_without_enough_memory_is_tried_once_more_and_then_marked(
    cli, tiny_study, crew, tmp_path, monkeypatch
):
    train, tries = execute.train_run, []

    def too_large(run, *arguments):
        tries.append(run.source.method)
        if run.source.method == "barlow_twins":
            raise MemoryError("for a test")
        return train(run, *arguments)

    monkeypatch.setattr(execute, "train_run", too_large)
    ended = cli("run", tiny_study, "--workers", "2")
    assert ended.code == 1, ended.err
    assert f"LOST {STRUCK}: MemoryError: for a test; it is tried once more" in ended.err
    assert f"FAILED {STRUCK}: MemoryError" in ended.err
    assert tries.count("barlow_twins") == 2
    assert status(tmp_path, "barlow_twins")["status"] == "failed"
    assert status(tmp_path, "random_init")["status"] == "done"


def test_one_that_hangs_is_stopped_at_its_limit_with_one_worker_too(cli, tiny_study, crew):
    crew.hangs = {STRUCK}
    ended = cli("run", tiny_study, "--workers", "1", "--time-limit", "0.01")
    assert ended.code == 0, ended.err
    assert f"LOST {STRUCK}: it did not end within 0.6 s and was stopped" in ended.err
    assert crew.order.count(STRUCK) == 2


@pytest.mark.parametrize(
    ("waits_until", "ends_at", "expected"), [(30, 40, None), (30, 60, "15 s"), (0, 60, "15 s")]
)
def test_what_a_job_waits_for_cores_is_not_of_its_time(monkeypatch, waits_until, ends_at, expected):
    now, killed, waiting = 0, [], {STRUCK}
    work = Future()

    class Crew:
        messages = SimpleQueue()

        def kill(self, work):
            killed.append(now)
            work.set_exception(BrokenProcessPool())

    def wait(futures, timeout):
        nonlocal now
        now += 5
        if now >= waits_until:
            waiting.discard(STRUCK)
        if now == ends_at and not work.done():
            work.set_result(False)
        return SimpleNamespace(not_done=[future for future in futures if not future.done()])

    monkeypatch.setattr(workers, "wait", wait)
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: now))
    jobs = workers._Jobs(Crew(), 1, {}, 15, waiting, StopRequest())
    lost = jobs._lost(SimpleNamespace(label=STRUCK), work, lambda: True)
    assert (lost is None) == (expected is None) == (killed == [])
    if lost is not None:
        assert expected in lost.what
        assert killed == [waits_until + 15 if waits_until else 20]


def test_a_job_whose_worker_a_signal_ended_is_not_lost():
    work, stop = Future(), StopRequest()
    work.set_exception(BrokenProcessPool())
    stop.name = "SIGTERM"
    jobs = workers._Jobs(SimpleNamespace(messages=SimpleQueue()), 1, {}, None, set(), stop)
    assert jobs._ended(SimpleNamespace(label=STRUCK), work, lambda: True, alone=True) is None
    assert jobs.alone == set()


def test_one_that_was_done_the_moment_before_its_worker_died_is_done(cli, tiny_study, finished):
    (file,) = (finished / "runs").glob("barlow_twins*/status.json")
    before = file.stat().st_mtime_ns
    said, ends = [], []

    class Job:
        label = STRUCK

        def is_finished(self):
            return True

    class Watch:
        def end(self, label, failure=""):
            ends.append((label, failure))

    assert execute.give_up(Job(), RunFailure("died"), None, Watch(), said.append) is False
    assert (said, ends) == ([], [(STRUCK, "")])
    assert file.stat().st_mtime_ns == before


def test_a_timing_that_hangs_is_ended_and_nothing_is_known_of_it(monkeypatch):
    """On each of two workers; of the last one, for which nobody waits, too."""
    monkeypatch.setattr(workers, "_TIMING_SECONDS", 0.05)
    hung, ended = [], threading.Event()

    class Hanging:
        def submit(self, function, *arguments):
            hung.append(Future())
            return hung[-1]

        def kill(self, work):
            work.set_exception(BrokenProcessPool())
            if len(hung) >= 2 and all(each.done() for each in hung):
                ended.set()

    (timing,) = workers._timings(Hanging(), ["a unit"], busy=2)
    assert isinstance(timing.exception(), BrokenProcessPool)
    assert ended.wait(60)


def test_what_a_job_waits_for_is_said_as_it_is():
    def job(label):
        run = SimpleNamespace(lease=lambda: SimpleNamespace(seen=None), at_work=lambda lease: None)
        return SimpleNamespace(label=label, run=run)

    told, alone = [], {"a"}
    watch = SimpleNamespace(waits=lambda label, why: told.append((label, why)))
    ready = dispatch._Ready([[job(name)] for name in "abc"], Waiting([[3.0], [2.0], [1.0]], 2), watch, alone)

    def begun():
        ready._look_again.clear()
        found = ready.next()
        return None if found is None else found[0]

    assert [begun(), begun()] == [0, 1]
    ready.ended(0, None)  # its worker has died
    assert begun() == 2
    assert told.pop() == ("a", "the jobs under way, to be done with nothing beside it")
    ready.ended(1, False)
    ready.ended(2, None)
    assert begun() == 0
    assert begun() is None
    assert told == [("c", "a job that is done alone")]
