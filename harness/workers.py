"""Several runs at once: worker processes on one machine, each with its share of the cores, or with a GPU of its own.

Two processes with one core each do more than one process with two, for narrow networks gain little from a second
thread; a study of a single training has all cores for that one. `harness.schedule` says which job a free worker gets,
and none that does not fit into memory beside those under way (`harness.room`). The number of workers and threads
depends on the machine and on how much the whole plan trains, never on what is left to do or fits, so a resumed study
computes the same bits.

A job whose worker dies, that runs out of memory or that does not end within its limit is tried once more, with nothing
beside it. If that does not help it is marked as failed, and its cells say so.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from twinbench.data.worker_processes import end_with_parent
from twinbench.foundation.cores import share_cores, usable_cores
from twinbench.foundation.errors import RunFailure, ShortOfMemory
from twinbench.foundation.lease import Seen
from twinbench.harness.console import legible_warnings
from twinbench.harness.crew import Crew
from twinbench.harness.dispatch import MESSAGE_SECONDS, Told, check_stop, hand_out
from twinbench.harness.estimate import (
    Step,
    Unit,
    Use,
    estimate,
    first_of_kind,
    former_use,
    measured_use,
    time_limit,
)
from twinbench.harness.execute import attempt, cores_for, evaluation_device, give_up
from twinbench.harness.images import Images
from twinbench.harness.mirror import Sights
from twinbench.harness.plan import Job
from twinbench.harness.plugins import load_plugins
from twinbench.harness.room import gpu_of_each, room_for
from twinbench.harness.schedule import Waiting, order_matters, unfinished_runs
from twinbench.harness.source import has_training
from twinbench.harness.watch import Watch
from twinbench.pretraining.engine import claims_cores, threads_to_claim
from twinbench.pretraining.interrupt import Interrupted, StopRequest
from twinbench.pretraining.memory import release_freed_memory
from twinbench.pretraining.train import ReportProgress, device_name

_MOST_WORKERS = 8
_TIMING_SECONDS = 600.0  # for a few steps
_VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


def workers_here() -> int:
    """One worker for each GPU; on a machine without, one for each core, at most eight."""
    return torch.cuda.device_count() or min(_MOST_WORKERS, usable_cores())


def default_workers(plan: Sequence[Job]) -> int:
    """As many workers as there are runs to train in a plan, finished or not, but no more than this machine has.

    Where none trains, as there are runs to evaluate. Fewer workers have more threads each, for otherwise the cores
    without a run would idle until the end.
    """
    runs = {job.run.folder: job.run.source for job in plan}
    trainings = sum(has_training(source) for source in runs.values())
    return min(workers_here(), trainings or len(runs) or 1)


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
        with cores_for("timing", threads_to_claim(), say):
            say(timing_line(units))
            return [measured_use(unit, images) for unit in units]

    if workers == 1:
        return estimate(plan, images, former_use(_store(plan), _device()), here)
    with _started(images.data_root, busy, threads_each(workers)) as crew:

        def side_by_side(units: list[Unit]) -> list[Use]:
            with cores_for("timing", _threads_of(busy, threads_each(workers)), say):
                say(timing_line(units))
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

    The runs with most seconds left go first, and no job begins that does not fit into memory beside those under way;
    where earlier runs do not tell what jobs take, a few steps of each method are measured before. Otherwise than
    ``longest_first`` runs begin in the order of the plan. A job may take ``job_seconds``; unless they are given, what
    `time_limit` says of those whose seconds are known.

    Raises RunFailure if workers die before they can begin a job; what was finished is kept. Raises Interrupted after a
    signal to stop, when every worker has saved.
    """
    busy, threads = busy_workers(plan, workers), threads_each(workers)
    with StopRequest() as stop, _started(images.data_root, busy, threads) as crew:
        seconds: dict[str, float] = {}
        use: dict[str, Use] = {}
        room = room_for(busy)
        if busy > 1:
            use = _use_to_plan_by(plan, images, crew, busy, threads, longest_first, stop, say)
            if alone := room.too_large(use):
                say(alone)
        if longest_first and order_matters(plan, workers):
            seconds = {label: each.seconds for label, each in use.items()}
        runs = unfinished_runs(plan, seconds)
        lengths = [[seconds.get(job.label, 0.0) for job in jobs] for jobs in runs]
        waiting = Waiting(lengths, busy, room.of(runs, use), room.together_mb)
        limits = {label: time_limit(each) for label, each in use.items()} if longest_first else {}
        noted = _Waits(watch)
        jobs = _Jobs(crew, busy, limits, job_seconds, noted.labels, stop)
        # a last timing may still be under way
        return hand_out(
            runs,
            waiting,
            lambda: busy if crew.has_free() else 0,
            jobs.submit,
            crew.messages,
            noted,
            say,
            stop,
            jobs.alone,
        )


class _Waits:
    """A watch that also keeps the ``labels`` of jobs that wait for what other processes have."""

    def __init__(self, watch: Watch) -> None:
        self.labels: set[str] = set()
        self._watch = watch

    def start(self, label: str) -> ReportProgress:
        self.labels.discard(label)
        return self._watch.start(label)

    def end(self, label: str, failure: str = "") -> None:
        self.labels.discard(label)
        self._watch.end(label, failure)

    def waits(self, label: str, holder: str) -> None:
        (self.labels.add if holder else self.labels.discard)(label)
        self._watch.waits(label, holder)


class _Jobs:
    """The jobs that workers do, each with a thread here that waits for its end and says what follows.

    ``alone`` are the labels of those that are tried once more, with nothing beside them. Of a job's time does not count
    what it is among those that are ``waiting``.
    """

    def __init__(
        self,
        crew: Crew,
        workers: int,
        limits: Mapping[str, float | None],
        limit: float | None,
        waiting: set[str],
        stop: StopRequest,
    ) -> None:
        self.alone: set[str] = set()
        self._crew, self._told = crew, Told(crew.messages)
        self._limits, self._limit, self._waiting = limits, limit, waiting
        self._stop = stop
        self._given_up: dict[str, RunFailure] = {}
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="job")

    def submit(self, job: Job, seen: Seen | Sights | None) -> Future[bool | None]:
        """Let a free worker do a job; the future has what `attempt` returns, None also where it is tried once more."""
        if job.label in self._given_up:
            return self._threads.submit(self._give_up, job, self._given_up[job.label], seen)
        self._waiting.discard(job.label)  # as it did before it was given to a worker
        alone = job.label in self.alone
        if alone:
            self._crew.rest()  # what idle workers hold in memory may be what the first try lacked
        work = self._crew.submit(_work, job, seen, alone)
        return self._threads.submit(self._ended, job, work, self._crew.beginning(work), alone)

    def _ended(
        self, job: Job, work: Future[bool | None], begun: Callable[[], bool], alone: bool
    ) -> bool | None:
        lost = self._lost(job, work, begun)
        if lost is None:
            return work.result()
        if self._stop.name is not None:  # it was told to end
            return None
        if not alone:
            self.alone.add(job.label)
            self._told.say(f"LOST {job.label}: {lost.what}; it is tried once more, with nothing beside it")
            self._told.waits(job.label, "")
            return None
        if not begun():
            raise lost
        return self._give_up(job, lost)

    def _give_up(self, job: Job, error: RunFailure, seen: Seen | Sights | None = None) -> bool | None:
        """Mark a job as failed; again if the lease of its run is held, as it is by a worker that is about to end.

        ``seen`` is for how long: a lease that is looked at for the first time is held.
        """
        self._given_up[job.label] = error
        return give_up(job, error, job.run.lease(seen), self._told, self._told.say)

    def _lost(self, job: Job, work: Future[bool | None], begun: Callable[[], bool]) -> RunFailure | None:
        """Why a job has to be tried again when its work has ended, if so; one that takes too long is ended."""
        limit, since = self._limit or self._limits.get(job.label), time.monotonic()
        is_late = False
        while wait([work], timeout=MESSAGE_SECONDS).not_done:
            if not begun() or job.label in self._waiting:
                since = time.monotonic()
            if limit is not None and time.monotonic() - since > limit:
                is_late = True
                self._crew.kill(work)
        error = work.exception()
        if isinstance(error, ShortOfMemory):
            return error
        if not isinstance(error, BrokenProcessPool):
            return None
        return too_late(job.label, limit) if is_late and limit is not None else _died(job.label)


def too_late(label: str, limit: float) -> RunFailure:
    """Why a job has no result that was stopped after so many seconds."""
    return RunFailure(
        f"it did not end within {limit:g} s and was stopped",
        where=label,
        next_step="see why it hangs, or give it more time (--time-limit)",
        option="time_limit",
    )


def _died(where: str) -> RunFailure:
    return RunFailure(
        "its worker process died, killed perhaps for its memory",
        where=where,
        next_step="run the same command again, with fewer workers if memory is short",
        option="workers",
    )


def _use_to_plan_by(
    plan: Sequence[Job],
    images: Images,
    crew: Crew,
    workers: int,
    threads: int,
    each: bool,
    stop: StopRequest,
    say: Callable[[str], None],
) -> dict[str, Use]:
    """What each unfinished job takes, or otherwise than ``each`` what the first such job of its method takes.

    Nothing is said of one whose timing fails, for the job will say why.
    """
    first = {} if each else first_of_kind(plan)
    measured = plan if each else list({job.label: job for job in first.values()}.values())
    why = "to begin with the longest runs" if each and order_matters(plan, workers) else "for their memory"

    def times(units: list[Unit]) -> list[Use]:
        with cores_for("timing", _threads_of(workers, threads), say, lambda: check_stop(stop)):
            say(f"{timing_line(units)} {why}")
            timings = _timings(crew, units, workers, stop)
        return [Use() if timing.exception() else timing.result() for timing in timings]

    meeting = _meeting(crew, workers)
    while wait(meeting, timeout=MESSAGE_SECONDS).not_done:
        check_stop(stop)
    here = [device.result() for device in meeting if not device.exception()]
    if not here:
        return {}
    use = estimate(measured, images, former_use(_store(plan), here[0]), times)
    return use if each else {label: use[job.label] for label, job in first.items()}


def _threads_of(workers: int, threads: int) -> int:
    """How many threads to claim cores for where workers with so many all compute at the same time."""
    return workers * threads if threads > 1 and claims_cores() else 1


@contextmanager
def _started(data_root: Path | None, workers: int, threads: int) -> Iterator[Crew]:
    """Worker processes with the study's images, each bound to a GPU if there are any; ended when anything is raised."""
    gpus = gpu_of_each(workers, os.environ.get(_VISIBLE_GPUS))
    try:
        with Crew(_become_worker, [(data_root, threads, gpu) for gpu in gpus]).at_work() as crew:
            yield crew
    except BrokenProcessPool as error:
        raise _died(f"one of {workers} workers") from error


def _store(plan: Sequence[Job]) -> Path:
    return plan[0].run.folder.parent


def _meeting(crew: Crew, workers: int) -> list[Future[str]]:
    """The device of each worker: when all have told theirs, none times a step alone."""
    return [crew.submit(_device) for _ in range(workers)]


def timing_line(units: list[Unit]) -> str:
    """What is said before units are timed."""
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
            timing = crew.submit(_time, units[place])
            _end_if_it_hangs(crew, timing)
            under_way[timing] = place
        for timing in wait(under_way, timeout=MESSAGE_SECONDS, return_when=FIRST_COMPLETED).done:
            first.setdefault(under_way.pop(timing), timing)
        check_stop(stop)
    return [first[place] for place in range(len(units))]


def _end_if_it_hangs(crew: Crew, timing: Future[Use]) -> None:
    """Also where nobody waits for it any more. Of one that was ended nothing is known; its job has its own limit."""
    timer = threading.Timer(_TIMING_SECONDS, crew.kill, [timing])
    timer.daemon = True
    timer.start()
    timing.add_done_callback(lambda _: timer.cancel())


class _Worker:
    """What a worker process keeps from one job to the next."""

    images: Images
    messages: Any
    stopped: Interrupted | None = None


def _become_worker(data_root: Path | None, threads: int, gpu: str | None, messages: Any) -> None:
    if gpu is not None:
        os.environ[_VISIBLE_GPUS] = gpu  # before anything here asks CUDA, which reads it once
    compute_with(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    end_with_parent()  # for otherwise the next command would find its run locked
    legible_warnings()
    load_plugins(warn=False)
    _Worker.images = Images(data_root, quiet=True)
    _Worker.messages = messages


def compute_with(threads: int) -> None:
    """Let this process, one of several side by side, compute with so many threads."""
    torch.set_num_threads(threads)
    share_cores(threads)
    # of the libraries behind numpy's matrices; those that are loaded later read the variables
    threadpool_limits(threads)
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)))


def _device() -> str:
    """The device of this process, with its number of threads."""
    return device_name(evaluation_device())


def _time(unit: Unit) -> Use:
    return measured_use(unit, _Worker.images)


def _work(job: Job, seen: Seen | Sights | None, alone: bool) -> bool | None:
    """Do a job, as `attempt` does. After a signal to stop, no further one is begun.

    ``seen`` is what the parent knows of the lease of the job's run. Raises ShortOfMemory unless it was ``alone``.
    """
    if _Worker.stopped is not None:
        raise _Worker.stopped
    told = Told(_Worker.messages)
    try:
        return attempt(
            job,
            _Worker.images,
            told,
            told.say,
            job.run.lease(seen),
            will_retry=not alone,
            threads=threads_to_claim(),
        )
    except Interrupted as error:
        _Worker.stopped = error
        raise
    finally:
        release_freed_memory()  # the jobs beside this worker have use for it
