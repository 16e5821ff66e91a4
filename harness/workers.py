"""Several runs at once: worker processes on one machine, each with its share of the cores.

A narrow network gains next to nothing from a second thread, so two processes with one core each do nearly twice
the work of one process with two. `harness.schedule` says which job a free worker gets. The number of workers and
threads depends on the machine alone, never on what is left to do, so a resumed study computes the same bits.

A job whose worker dies, that runs out of memory or that does not end within its limit is tried once more when all other
jobs are done, with nothing beside it. If that does not help it is marked as failed, and its cells say so.
"""

from __future__ import annotations

import itertools
import queue
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from twinbench.data.worker_processes import end_with_parent
from twinbench.foundation.cores import usable_cores
from twinbench.foundation.errors import RunFailure
from twinbench.foundation.lease import Lease, Seen
from twinbench.harness.console import legible_warnings
from twinbench.harness.crew import Crew
from twinbench.harness.estimate import Step, Unit, Use, estimate, former_use, measured_use, time_limit
from twinbench.harness.execute import ShortOfMemory, attempt, evaluation_device, give_up
from twinbench.harness.images import Images
from twinbench.harness.plan import Job
from twinbench.harness.plugins import load_plugins
from twinbench.harness.schedule import Waiting, order_matters, unfinished_runs
from twinbench.harness.store import LOOK_SECONDS
from twinbench.harness.watch import Watch
from twinbench.pretraining.interrupt import Interrupted, StopRequest
from twinbench.pretraining.train import ReportProgress, device_name

_MOST_WORKERS = 8
_MESSAGE_SECONDS = 0.2


def default_workers() -> int:
    """One worker for each core of a machine without GPU, at most eight; a single one where there is a GPU."""
    return 1 if torch.cuda.is_available() else min(_MOST_WORKERS, usable_cores())


def threads_each(workers: int) -> int:
    """The threads of each of so many workers."""
    return max(1, usable_cores() // workers)


def busy_workers(plan: Sequence[Job], workers: int) -> int:
    """How many of so many workers compute at a time: a run's jobs go one after another."""
    return min(workers, len(unfinished_runs(plan, {})))


def estimated_use(
    plan: Sequence[Job],
    images: Images,
    workers: int,
    busy: int,
    say: Callable[[str], None],
) -> dict[str, Use]:
    """What each unfinished job takes, by its label, where ``busy`` of so many workers compute at a time.

    What earlier runs do not tell is measured now, by as many processes at once. Raises what a step raises.
    """
    if all(job.is_finished() for job in plan):
        return {}

    def here(units: list[Unit]) -> list[Use]:
        say(_timing_line(units))
        return [measured_use(unit, images) for unit in units]

    if workers == 1:
        return estimate(plan, images, former_use(_store(plan), _device()), here)
    with _started(images.data_root, busy, threads_each(workers)) as crew:

        def side_by_side(units: list[Unit]) -> list[Use]:
            say(_timing_line(units))
            return [timing.result() for timing in _timings(crew, units, busy)]

        device, *_ = [asked.result() for asked in _meeting(crew, busy)]
        return estimate(plan, images, former_use(_store(plan), device), side_by_side)


def execute_in_parallel(
    plan: Sequence[Job],
    images: Images,
    workers: int,
    watch: Watch,
    say: Callable[[str], None],
    longest_first: bool = True,
    job_seconds: float | None = None,
) -> int:
    """Do every unfinished job with ``workers`` processes; returns how many jobs failed.

    The runs with most seconds left go first; where earlier runs do not tell how long jobs take, a few steps of each
    method are timed before. Otherwise than ``longest_first`` runs begin in the order of the plan. A job may take
    ``job_seconds``; unless they are given, what `time_limit` says of those whose seconds are known.

    Raises RunFailure if workers die before they can begin a job; what was finished is kept. Raises Interrupted after a
    signal to stop, when every worker has saved.
    """
    with StopRequest() as stop, _started(images.data_root, workers, threads_each(workers)) as crew:
        use: dict[str, Use] = {}
        if longest_first and order_matters(plan, workers):
            use = _use_to_order_by(plan, images, crew, workers, stop, say)
        seconds = {label: each.seconds for label, each in use.items()}
        runs = unfinished_runs(plan, seconds)
        waiting = Waiting([[seconds.get(job.label, 0.0) for job in jobs] for jobs in runs], workers)
        ready = _Ready(runs, waiting, watch)
        under_way: list[_UnderWay] = []
        failures = 0
        terminal = _Terminal(crew.messages, watch, say)
        while True:
            _check(stop)
            for each in [each for each in under_way if each.work.done()]:
                under_way.remove(each)
                failures += each.concluded(ready, crew, watch, say)
            # a last timing may still be under way
            while crew.has_free() and (found := ready.next(bool(under_way))) is not None:
                limit = job_seconds or time_limit(use.get(found.job.label, Use()))
                under_way.append(_begun(found, crew, limit))
            for each in under_way:
                each.end_if_late(crew)
            if not terminal.show_next() and not under_way and not waiting.has_left():
                return failures


class _Found(NamedTuple):
    """A job that may start now: of which run, that run's lease, and whether it is the second try, with none beside."""

    run: int
    job: Job
    lease: Lease
    alone: bool


@dataclass
class _UnderWay:
    """A job that a worker does, ``since`` so many seconds of the steady clock and for at most ``limit`` of them."""

    found: _Found
    work: Future[bool | None]
    since: float
    limit: float | None
    is_late: bool = False

    def end_if_late(self, crew: Crew) -> None:
        """End its worker if it takes longer than it may."""
        if not crew.has_begun(self.work):
            self.since = time.monotonic()
        if self.limit is not None and time.monotonic() - self.since > self.limit and not self.work.done():
            self.is_late = True
            crew.kill(self.work)

    def concluded(self, ready: _Ready, crew: Crew, watch: Watch, say: Callable[[str], None]) -> bool:
        """It has ended, one way or another; whether it failed for good."""
        run, job, lease, alone = self.found
        if (lost := self._lost(crew)) is None:
            failed = self.work.result()
        elif not alone:
            say(f"LOST {job.label}: {lost.what}; it is tried once more after all others")
            watch.waits(job.label, "")
            ready.again(run)
            return False
        elif not crew.has_begun(self.work):
            raise lost
        else:
            failed = give_up(job, lost, lease, watch, say)
        ready.ended(run, failed)
        return bool(failed)

    def _lost(self, crew: Crew) -> RunFailure | None:
        """Why it has to be tried again, if so."""
        error = self.work.exception()
        if isinstance(error, ShortOfMemory):
            return error
        if not isinstance(error, BrokenProcessPool):
            return None
        if self.is_late:
            return RunFailure(
                f"it did not end within {self.limit:g} s and was stopped",
                where=self.found.job.label,
                next_step="see why it hangs, or give it more time",
                option="job-minutes",
            )
        return _died(self.found.job.label)


def _died(where: str) -> RunFailure:
    return RunFailure(
        "its worker process died, killed perhaps for its memory",
        where=where,
        next_step="run the same command again, with fewer workers if memory is short",
        option="workers",
    )


def _begun(found: _Found, crew: Crew, limit: float | None) -> _UnderWay:
    if found.alone:
        crew.rest()  # what idle workers hold in memory may be what the first try lacked
    seen, messages = found.lease.seen, crew.messages
    work = crew.submit(_work, found.job, seen, found.alone)
    work.add_done_callback(lambda _: messages.put(("wake", "", None)))  # wakes the terminal
    return _UnderWay(found, work, time.monotonic(), limit)


class _Ready:
    """The jobs that may start now, which are those of runs that no other process works in."""

    def __init__(self, runs: Sequence[Sequence[Job]], waiting: Waiting, watch: Watch) -> None:
        self._runs, self._waiting, self._watch = runs, waiting, watch
        self._leases = [Lease(jobs[0].run.folder) for jobs in runs]
        self._look_again: dict[int, float] = {}
        self._again: set[int] = set()
        self._alone: int | None = None

    def next(self, busy: bool) -> _Found | None:
        """What may start; None if nothing may. ``busy``: something is under way."""
        if self._alone is not None:
            return None
        found = self._first(self._again)
        if found is None and self._again and not busy:
            found = self._first(set(range(len(self._runs))) - self._again)
            self._alone = None if found is None else found.run
        return found

    def _first(self, but: set[int]) -> _Found | None:
        now = time.monotonic()
        while (
            place := self._waiting.start(but | {run for run, at in self._look_again.items() if now < at})
        ) is not None:
            run, job = place[0], self._runs[place[0]][place[1]]
            holder = job.run.at_work(self._leases[run])
            if holder is None:
                return _Found(run, job, self._leases[run], alone=run in self._again)
            self._watch.waits(job.label, str(holder))
            self._put_back(run)
        return None

    def ended(self, run: int, failed: bool | None) -> None:
        """A job has ended, or it is None that failed: another process was quicker to begin it, or took it over."""
        if run == self._alone:
            self._alone = None
        if failed is None:
            self._put_back(run)
        else:
            self._again.discard(run)
            self._waiting.ended(run)

    def again(self, run: int) -> None:
        """The job of this run that was under way is to be tried once more when all others are done."""
        self._waiting.put_back(run)
        self._again.add(run)

    def _put_back(self, run: int) -> None:
        self._waiting.put_back(run)
        self._look_again[run] = time.monotonic() + LOOK_SECONDS


def _use_to_order_by(
    plan: Sequence[Job],
    images: Images,
    crew: Crew,
    workers: int,
    stop: StopRequest,
    say: Callable[[str], None],
) -> dict[str, Use]:
    """What each unfinished job takes; nothing is said of one whose timing fails, for the job will say why."""

    def times(units: list[Unit]) -> list[Use]:
        say(f"{_timing_line(units)} to begin with the longest runs")
        timings = _timings(crew, units, workers, stop)
        return [Use() if timing.exception() else timing.result() for timing in timings]

    meeting = _meeting(crew, workers)
    while wait(meeting, timeout=_MESSAGE_SECONDS).not_done:
        _check(stop)
    here = [device.result() for device in meeting if not device.exception()]
    return estimate(plan, images, former_use(_store(plan), here[0]), times) if here else {}


@contextmanager
def _started(data_root: Path | None, workers: int, threads: int) -> Iterator[Crew]:
    """Worker processes with the study's images; ended when anything is raised."""
    try:
        with Crew(workers, _become_worker, (data_root, threads)).at_work() as crew:
            yield crew
    except BrokenProcessPool as error:
        raise _died(f"one of {workers} workers") from error


def _store(plan: Sequence[Job]) -> Path:
    return plan[0].run.folder.parent


def _meeting(crew: Crew, workers: int) -> list[Future[str]]:
    """The device of each worker: when all have told theirs, none times a step alone."""
    return [crew.submit(_device) for _ in range(workers)]


def _check(stop: StopRequest | None) -> None:
    if stop is not None and stop.name is not None:
        raise Interrupted(
            f"stopped by {stop.name}; every training has saved",
            next_step="run the same command again: it goes on from there",
        )


def _timing_line(units: list[Unit]) -> str:
    methods = len({unit.recipe.method for unit in units if isinstance(unit, Step)})
    if not methods:
        return "timing a forward pass"
    return f"timing a few steps of {methods} method{'s' if methods > 1 else ''}"


def _timings(crew: Crew, units: list[Unit], busy: int, stop: StopRequest | None = None) -> list[Future[Use]]:
    """The first timing of each unit, done, during all of which ``busy`` workers computed.

    When each unit is being timed, those that are free time them again, for no other end than to be busy.
    """
    first: dict[int, Future[Use]] = {}
    under_way: dict[Future[Use], int] = {}
    turns = itertools.cycle(range(len(units)))
    while len(first) < len(units):
        while len(under_way) < busy:
            place = next(turns)
            under_way[crew.submit(_time, units[place])] = place
        for timing in wait(under_way, timeout=_MESSAGE_SECONDS, return_when=FIRST_COMPLETED).done:
            first.setdefault(under_way.pop(timing), timing)
        _check(stop)
    return [first[place] for place in range(len(units))]


class _Terminal:
    """Where the progress of jobs goes that other processes do."""

    def __init__(self, messages: Any, watch: Watch, say: Callable[[str], None]) -> None:
        self._messages, self._watch, self._say = messages, watch, say
        self._reports: dict[str, ReportProgress] = {}

    def show_next(self) -> bool:
        """Show what a worker tells next; False if for some time none tells anything."""
        try:
            kind, label, content = self._messages.get(timeout=_MESSAGE_SECONDS)
        except queue.Empty:
            return False
        if kind == "start":
            self._reports[label] = self._watch.start(label)
        elif kind == "progress":
            self._reports[label](*content)
        elif kind == "end":
            self._watch.end(label, content)
        elif kind == "waits":
            self._watch.waits(label, content)
        elif kind == "say":
            self._say(content)
        return True


class _Worker:
    """What a worker process keeps from one job to the next; ``tell`` sends the parent a message."""

    images: Images
    tell: Callable[[tuple[str, str, Any]], None]
    stopped: Interrupted | None = None


def _become_worker(
    data_root: Path | None, threads: int, tell: Callable[[tuple[str, str, Any]], None]
) -> None:
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    end_with_parent()  # for otherwise the next command would find its run locked
    legible_warnings()
    load_plugins(warn=False)
    _Worker.images = Images(data_root, quiet=True)
    _Worker.tell = tell


def _device() -> str:
    """The device of this process, with its number of threads."""
    return device_name(evaluation_device())


def _time(unit: Unit) -> Use:
    return measured_use(unit, _Worker.images)


def _work(job: Job, seen: Seen | None, alone: bool) -> bool | None:
    """Do a job, as `attempt` does. After a signal to stop, no further one is begun.

    ``seen`` is what the parent knows of the lease of the job's run. Raises ShortOfMemory unless it was ``alone``.
    """
    if _Worker.stopped is not None:
        raise _Worker.stopped
    lease = Lease(job.run.folder, seen=seen)
    try:
        return attempt(job, _Worker.images, _Told(), _say, lease, will_retry=not alone)
    except Interrupted as error:
        _Worker.stopped = error
        raise


def _say(text: str) -> None:
    _Worker.tell(("say", "", text))


class _Told:
    """The watch of a worker, which tells the parent what there is to see."""

    def start(self, label: str) -> ReportProgress:
        _Worker.tell(("start", label, None))
        last = 0.0

        def report(fraction: float, text: str) -> None:
            nonlocal last
            if time.monotonic() - last >= _MESSAGE_SECONDS:
                last = time.monotonic()
                _Worker.tell(("progress", label, (fraction, text)))

        return report

    def end(self, label: str, failure: str = "") -> None:
        _Worker.tell(("end", label, failure))

    def waits(self, label: str, holder: str) -> None:
        _Worker.tell(("waits", label, holder))
