"""Several runs at once: worker processes on one machine, each with its share of the cores.

A narrow network gains next to nothing from a second thread, so two processes with one core each do nearly twice
the work of one process with two. A task is a whole run, its training and then its evaluations. The number of
workers and threads depends on the machine alone, never on what is left to do, so a resumed study computes the
same bits.
"""

from __future__ import annotations

import logging
import multiprocessing
import queue
import signal
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from twinbench.data.catalogue import read_image_set
from twinbench.data.image_sets import Reading
from twinbench.data.worker_processes import end_with_parent
from twinbench.foundation.cores import usable_cores
from twinbench.foundation.errors import RunFailure
from twinbench.harness.execute import StartJob, execute
from twinbench.harness.plan import Job, StudyImages
from twinbench.harness.plugins import load_plugins
from twinbench.pretraining.interrupt import Interrupted, StopRequest
from twinbench.pretraining.train import ReportProgress

_MOST_WORKERS = 8
_MESSAGE_SECONDS = 0.2


@dataclass(frozen=True)
class ImageSource:
    """What a worker needs to load the study's images for itself; ``measure_on`` is empty for one and the same set.

    Another set to measure on is read whole.
    """

    name: str
    measure_on: str
    data_root: Path | None
    reading: Reading

    def load(self) -> StudyImages:
        """The image sets; raises InputError as `load_image_set` does."""
        train = read_image_set(self.name, self.data_root, self.reading)
        if self.measure_on in ("", self.name):
            return StudyImages(train, train)
        whole = replace(self.reading, limit={})
        return StudyImages(train, read_image_set(self.measure_on, self.data_root, whole))


def default_workers() -> int:
    """One worker for each core of a machine without GPU, at most eight; a single one where there is a GPU."""
    return 1 if torch.cuda.is_available() else min(_MOST_WORKERS, usable_cores())


def threads_each(workers: int) -> int:
    """The threads of each of so many workers."""
    return max(1, usable_cores() // workers)


def execute_in_parallel(
    plan: Iterable[Job],
    source: ImageSource,
    workers: int,
    start_job: StartJob,
    say: Callable[[str], None],
) -> int:
    """Do every unfinished job with ``workers`` processes; returns how many jobs failed.

    Raises RunFailure if a worker dies (of too little memory, say); what was finished is kept. Raises
    Interrupted after a signal to stop, when every worker has saved.
    """
    # not the context of loaders: these have threads of their own, and signals that make them save
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    arguments = (source, threads_each(workers), messages)
    with StopRequest() as stop, ProcessPoolExecutor(workers, context, _become_worker, arguments) as pool:
        futures = [pool.submit(_work, task) for task in _unfinished_runs(plan)]
        try:
            _follow(futures, messages, start_job, say, stop)
            return sum(future.result() for future in futures)
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


def _unfinished_runs(plan: Iterable[Job]) -> list[list[Job]]:
    """The jobs that are left, grouped by run in the order of the plan."""
    runs: dict[Path, list[Job]] = {}
    for job in plan:
        if not job.is_finished():
            runs.setdefault(job.run.folder, []).append(job)
    return list(runs.values())


def _follow(
    futures: list[Future[int]],
    messages: Any,
    start_job: StartJob,
    say: Callable[[str], None],
    stop: StopRequest,
) -> None:
    """Show what the workers tell until every task has ended."""
    reports: dict[str, ReportProgress] = {}
    while True:
        if stop.name is not None:
            raise Interrupted(
                f"stopped by {stop.name}; every training has saved",
                next_step="run the same command again: it goes on from there",
            )
        ended = all(future.done() for future in futures)
        try:
            kind, label, content = messages.get(timeout=_MESSAGE_SECONDS)
        except queue.Empty:
            if ended:
                return
            continue
        if kind == "start":
            reports[label] = start_job(label)
        elif kind == "progress":
            reports[label](*content)
        else:
            say(content)


class _Worker:
    """What a worker process keeps from one task to the next."""

    images: StudyImages
    messages: Any
    stopped: Interrupted | None = None


def _become_worker(source: ImageSource, threads: int, messages: Any) -> None:
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    end_with_parent()  # for otherwise the next command would find its run locked
    load_plugins(warn=False)
    logging.disable(logging.WARNING)  # the parent has said what is odd about the list of images
    _Worker.images = source.load()
    logging.disable(logging.NOTSET)
    _Worker.messages = messages


def _work(task: list[Job]) -> int:
    """The jobs of one run; returns how many failed. After a signal to stop, no further task is begun."""
    if _Worker.stopped is not None:
        raise _Worker.stopped
    try:
        return execute(task, _Worker.images, _announce, lambda text: _Worker.messages.put(("say", "", text)))
    except Interrupted as error:
        _Worker.stopped = error
        raise


def _announce(label: str) -> ReportProgress:
    messages = _Worker.messages
    messages.put(("start", label, None))
    last = 0.0

    def report(fraction: float, text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= _MESSAGE_SECONDS:
            last = time.monotonic()
            messages.put(("progress", label, (fraction, text)))

    return report
