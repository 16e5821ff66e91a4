"""Several runs at once: worker processes on one machine, each with its share of the cores.

A narrow network gains next to nothing from a second thread, so two processes with one core each do nearly twice
the work of one process with two. `harness.schedule` says which job a free worker gets. The number of workers and
threads depends on the machine alone, never on what is left to do, so a resumed study computes the same bits.
"""

from __future__ import annotations

import itertools
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from twinbench.data.worker_processes import end_with_parent
from twinbench.foundation.cores import usable_cores
from twinbench.foundation.errors import RunFailure
from twinbench.foundation.lease import Lease, Seen
from twinbench.harness.console import legible_warnings
from twinbench.harness.dispatch import MESSAGE_SECONDS, Told, check_stop, hand_out
from twinbench.harness.estimate import Step, Unit, Use, estimate, former_use, measured_use
from twinbench.harness.execute import attempt, evaluation_device
from twinbench.harness.images import Images
from twinbench.harness.plan import Job
from twinbench.harness.plugins import load_plugins
from twinbench.harness.schedule import order_matters, unfinished_runs
from twinbench.harness.watch import Watch
from twinbench.pretraining.interrupt import Interrupted, StopRequest
from twinbench.pretraining.train import device_name

_MOST_WORKERS = 8


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
        say(timing_line(units))
        return [measured_use(unit, images) for unit in units]

    if workers == 1:
        return estimate(plan, images, former_use(_store(plan), _device()), here)
    with _started(images.data_root, busy, threads_each(workers)) as (pool, _):

        def side_by_side(units: list[Unit]) -> list[Use]:
            say(timing_line(units))
            return [timing.result() for timing in _timings(pool, units, busy)]

        device = _meeting(pool, busy)[0].result()
        return estimate(plan, images, former_use(_store(plan), device), side_by_side)


def execute_in_parallel(
    plan: Sequence[Job],
    images: Images,
    workers: int,
    watch: Watch,
    say: Callable[[str], None],
    longest_first: bool = True,
) -> int:
    """Do every unfinished job with ``workers`` processes; returns how many jobs failed.

    The runs with most seconds left go first; where earlier runs do not tell how long jobs take, a few steps of each
    method are timed before. Otherwise than ``longest_first`` runs begin in the order of the plan.

    Raises RunFailure if a worker dies (of too little memory, say); what was finished is kept. Raises Interrupted after
    a signal to stop, when every worker has saved.
    """
    with (
        StopRequest() as stop,
        _started(images.data_root, workers, threads_each(workers)) as (pool, messages),
    ):
        seconds: dict[str, float] = {}
        if longest_first and order_matters(plan, workers):
            use = _use_to_order_by(plan, images, pool, workers, stop, say)
            seconds = {label: each.seconds for label, each in use.items()}

        def submit(job: Job, seen: Seen | None) -> Future[bool | None]:
            return pool.submit(_work, job, seen)

        return hand_out(plan, seconds, workers, lambda: workers, submit, messages, watch, say, stop)


def _use_to_order_by(
    plan: Sequence[Job],
    images: Images,
    pool: ProcessPoolExecutor,
    workers: int,
    stop: StopRequest,
    say: Callable[[str], None],
) -> dict[str, Use]:
    """What each unfinished job takes; nothing is said of one whose timing fails, for the job will say why."""

    def times(units: list[Unit]) -> list[Use]:
        say(f"{timing_line(units)} to begin with the longest runs")
        timings = _timings(pool, units, workers, stop)
        return [Use() if timing.exception() else timing.result() for timing in timings]

    meeting = _meeting(pool, workers)
    while wait(meeting, timeout=MESSAGE_SECONDS).not_done:
        check_stop(stop)
    return estimate(plan, images, former_use(_store(plan), meeting[0].result()), times)


@contextmanager
def _started(data_root: Path | None, workers: int, threads: int) -> Iterator[tuple[ProcessPoolExecutor, Any]]:
    """Worker processes with the study's images, and the queue of what they tell; ended when anything is raised."""
    # not the context of loaders: these have threads of their own, and signals that make them save
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    arguments = (data_root, threads, messages, context.Barrier(workers))
    with ProcessPoolExecutor(workers, context, _become_worker, arguments) as pool:
        try:
            yield pool, messages
        except BrokenProcessPool as error:
            raise RunFailure(
                "a worker process died",
                where=f"one of {workers} workers",
                next_step="run the same command again, with fewer workers if memory is short",
                option="workers",
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()  # a training saves first; leaving the pool waits for it
            raise


def _store(plan: Sequence[Job]) -> Path:
    return plan[0].run.folder.parent


def _meeting(pool: ProcessPoolExecutor, workers: int) -> list[Future[str]]:
    return [pool.submit(_meet) for _ in range(workers)]


def timing_line(units: list[Unit]) -> str:
    """What is said before some units are timed."""
    methods = len({unit.recipe.method for unit in units if isinstance(unit, Step)})
    if not methods:
        return "timing a forward pass"
    return f"timing a few steps of {methods} method{'s' if methods > 1 else ''}"


def _timings(
    pool: ProcessPoolExecutor, units: list[Unit], busy: int, stop: StopRequest | None = None
) -> list[Future[Use]]:
    """The first timing of each unit, done, during all of which ``busy`` workers computed.

    When each unit is being timed, those that are free time them again, for no other end than to be busy.
    """
    first: dict[int, Future[Use]] = {}
    under_way: dict[Future[Use], int] = {}
    turns = itertools.cycle(range(len(units)))
    while len(first) < len(units):
        while len(under_way) < busy:
            place = next(turns)
            under_way[pool.submit(_time, units[place])] = place
        for timing in wait(under_way, timeout=MESSAGE_SECONDS, return_when=FIRST_COMPLETED).done:
            first.setdefault(under_way.pop(timing), timing)
        check_stop(stop)
    return [first[place] for place in range(len(units))]


class _Worker:
    """What a worker process keeps from one job to the next."""

    images: Images
    messages: Any
    all_here: Any
    stopped: Interrupted | None = None


def _become_worker(data_root: Path | None, threads: int, messages: Any, all_here: Any) -> None:
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    end_with_parent()  # for otherwise the next command would find its run locked
    legible_warnings()
    load_plugins(warn=False)
    _Worker.images = Images(data_root, quiet=True)
    _Worker.messages, _Worker.all_here = messages, all_here


def _device() -> str:
    """The device of this process, with its number of threads."""
    return device_name(evaluation_device())


def _meet() -> str:
    """Wait until every worker is there, so that none times a step alone; returns the device of each."""
    _Worker.all_here.wait()
    return _device()


def _time(unit: Unit) -> Use:
    return measured_use(unit, _Worker.images)


def _work(job: Job, seen: Seen | None) -> bool | None:
    """Do a job, as `attempt` does. After a signal to stop, no further one is begun.

    ``seen`` is what the parent knows of the lease of the job's run.
    """
    if _Worker.stopped is not None:
        raise _Worker.stopped
    lease = Lease(job.run.folder, seen=seen)
    try:
        told = Told(_Worker.messages)
        return attempt(job, _Worker.images, told, told.say, lease)
    except Interrupted as error:
        _Worker.stopped = error
        raise
