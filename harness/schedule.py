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
from itertools import accumulate
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
        self._workers = workers
        self._left = [_seconds_left(jobs) for jobs in runs]
        self._next = [0] * len(runs)
        # heaps of the runs whose next job can be started now: (minus the seconds left, run)
        self._unbegun = [(-left[0], run) for run, left in enumerate(self._left) if left]
        self._begun: list[_Entry] = []
        heapq.heapify(self._unbegun)

    def start(self, but: Collection[int] = ()) -> tuple[int, int] | None:
        """The job to start now, of no run among ``but``; None if none can be, until `ended` is told of another."""
        begun, unbegun = (_first(heap, but) for heap in (self._begun, self._unbegun))
        found = [entry for entry in (begun, unbegun) if entry is not None]
        if not found:
            return None
        ends_begun = begun is not None and len(self._unbegun) > self._workers
        entry = begun if begun is not None and ends_begun else min(found)
        _take(self._begun if entry is begun else self._unbegun, entry)
        run = entry[1]
        self._next[run] += 1
        return run, self._next[run] - 1

    def ended(self, run: int) -> None:
        """The job of this run that was under way has ended."""
        place = self._next[run]
        if place < len(self._left[run]):
            heapq.heappush(self._begun, (-self._left[run][place], run))

    def put_back(self, run: int) -> None:
        """The job of this run that was started is to be started again."""
        self._next[run] -= 1
        place = self._next[run]
        heapq.heappush(self._begun if place else self._unbegun, (-self._left[run][place], run))

    def has_left(self) -> bool:
        """Whether there is a job that nobody has started."""
        return any(place < len(jobs) for place, jobs in zip(self._next, self._left, strict=True))


def _seconds_left(jobs: Sequence[float]) -> list[float]:
    """Before each job of a run, that of itself and of all after it."""
    return list(accumulate(reversed(jobs)))[::-1]


_Entry = tuple[float, int]


def _first(heap: list[_Entry], but: Collection[int]) -> _Entry | None:
    """The smallest entry of no run among ``but``."""
    if not but:
        return heap[0] if heap else None
    return min((entry for entry in heap if entry[1] not in but), default=None)


def _take(heap: list[_Entry], entry: _Entry) -> None:
    if entry == heap[0]:
        heapq.heappop(heap)
    else:
        heap.remove(entry)
        heapq.heapify(heap)


def timetable(
    runs: Sequence[Sequence[float]],
    workers: int,
    longest_first: bool = True,
    expected: Sequence[Sequence[float]] | None = None,
) -> tuple[list[Start], float]:
    """When each job starts if each takes its seconds, in the order of starting, and when the last one ends.

    Otherwise than ``longest_first`` the runs begin in their order. The longest are so by the ``expected`` seconds, if
    jobs take others than one could know.
    """
    known = expected or runs
    waiting = Waiting(known if longest_first else [[0.0] * len(jobs) for jobs in known], workers)
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
