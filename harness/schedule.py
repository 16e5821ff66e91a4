"""Which job next? For the workers, and for how long they will take.

Longest first, so that no core idles at the end; but as long as more runs wait than there are workers, what has begun is
brought to its end first, so that tables fill up while the study runs.

A run's jobs go one after another: its evaluations need its encoder, share its features, and one process at a time works
in its folder. Of the runs that may go on it is the one with most seconds left. A job is (run, place): the place in the
run.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from typing import NamedTuple

from twinbench.harness.plan import Job


class Start(NamedTuple):
    """A job of a timetable: it starts so many ``seconds`` after the first."""

    seconds: float
    run: int
    place: int


class Waiting:
    """The jobs that nobody has started, for so many workers; ``runs`` has the seconds of each job of each run.

    Runs with as many seconds left go in their order.
    """

    def __init__(self, runs: Sequence[Sequence[float]], workers: int) -> None:
        self._runs, self._workers = runs, workers
        self._next = [0] * len(runs)
        self._busy: set[int] = set()

    def start(self, but: Collection[int] = ()) -> tuple[int, int] | None:
        """The job to start now, of no run among ``but``; None if none can be, until `ended` is told of another."""
        ready = [
            run
            for run, jobs in enumerate(self._runs)
            if run not in self._busy and run not in but and self._next[run] < len(jobs)
        ]
        if not ready:
            return None
        begun = [run for run in ready if self._next[run]]
        if begun and self._next.count(0) > self._workers:
            ready = begun
        run = max(ready, key=lambda run: sum(self._runs[run][self._next[run] :]))
        self._busy.add(run)
        self._next[run] += 1
        return run, self._next[run] - 1

    def ended(self, run: int) -> None:
        """The job of this run that was under way has ended."""
        self._busy.remove(run)

    def put_back(self, run: int) -> None:
        """The job of this run that was started is to be started again."""
        self.ended(run)
        self._next[run] -= 1

    def has_left(self) -> bool:
        """Whether there is a job that nobody has started."""
        return any(place < len(jobs) for place, jobs in zip(self._next, self._runs, strict=True))


def timetable(
    runs: Sequence[Sequence[float]], workers: int, longest_first: bool = True
) -> tuple[list[Start], float]:
    """When each job starts if each takes its seconds, in the order of starting, and when the last one ends.

    Otherwise than ``longest_first`` the runs begin in their order.
    """
    waiting = Waiting(runs if longest_first else [[0.0] * len(jobs) for jobs in runs], workers)
    starts, now = list[Start](), 0.0
    under_way: list[tuple[float, int]] = []
    while True:
        while len(under_way) < workers and (job := waiting.start()) is not None:
            starts.append(Start(now, *job))
            run, place = job
            heapq.heappush(under_way, (now + runs[run][place], run))
        if not under_way:
            return starts, now
        now, run = heapq.heappop(under_way)
        waiting.ended(run)


def order_matters(plan: Sequence[Job], workers: int) -> bool:
    """Whether some run waits until another has ended, so that the longest should begin."""
    return workers > 1 and len(unfinished_runs(plan, {})) > workers


def unfinished_runs(plan: Sequence[Job], seconds: dict[str, float]) -> list[list[Job]]:
    """The jobs that are left, grouped by run in the order of the plan: its training, then the longest evaluation first.

    ``seconds`` are those of each job by its label.
    """
    runs: dict[object, list[Job]] = {}
    for job in plan:
        if not job.is_finished():
            runs.setdefault(job.run.folder, []).append(job)
    return [
        sorted(jobs, key=lambda job: (job.evaluation is not None, -seconds.get(job.label, 0.0)))
        for jobs in runs.values()
    ]
