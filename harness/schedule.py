"""Which job next? For the workers, and for how long they will take.

Longest first, so that no core idles at the end; but as long as more runs wait than there are workers, what has begun is
brought to its end first, so that tables fill up while the study runs.

A run's jobs go one after another: its evaluations need its encoder, share its features, and one process at a time works
in its folder. Of the runs that may go on it is the one with most seconds left. A job is (run, place): the place in the
run.

A job whose memory does not fit beside the jobs under way waits, and one that comes after it goes first. One that does
not fit at all is done alone.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Sequence
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

    Runs with as many seconds left go in their order. ``memory`` has what each job needs of a ``room`` that all share,
    in the same unit; without it nothing does.
    """

    def __init__(
        self,
        runs: Sequence[Sequence[float]],
        workers: int,
        memory: Sequence[Sequence[float]] | None = None,
        room: float = math.inf,
    ) -> None:
        self._workers = workers
        self._left = [_seconds_left(jobs) for jobs in runs]
        self._next = [0] * len(runs)
        self._memory, self._room = memory, room
        self._held: dict[int, float] = {}
        self._alone: set[int] = set()
        # heaps of the runs whose next job can be started now: (minus the seconds left, run)
        self._unbegun = [(-left[0], run) for run, left in enumerate(self._left) if left]
        self._begun: list[_Entry] = []
        heapq.heapify(self._unbegun)

    def start(self, but: Collection[int] = ()) -> tuple[int, int] | None:
        """The job to start now, of no run among ``but``; None if none can be, until `ended` is told of another."""
        entry = self._chosen(lambda run: run not in but and self._fits(run))
        if entry is None:
            return None
        run = entry[1]
        place = self._next[run]
        _take(self._begun if place else self._unbegun, entry)
        self._next[run] += 1
        self._held[run] = self._memory[run][place] if self._memory else 0.0
        return run, place

    def wanted(self, but: Collection[int] = ()) -> tuple[int, int] | None:
        """The job that `start` would give if memory were no matter."""
        entry = self._chosen(lambda run: run not in but)
        return None if entry is None else (entry[1], self._next[entry[1]])

    def is_one_alone(self) -> bool:
        """Whether the job under way is one that may have no other beside it."""
        return not self._alone.isdisjoint(self._held)

    def _chosen(self, may: Callable[[int], bool]) -> _Entry | None:
        begun, unbegun = (_first(heap, may) for heap in (self._begun, self._unbegun))
        if begun is None or unbegun is None:
            return begun or unbegun
        return begun if len(self._unbegun) > self._workers else min(begun, unbegun)

    def _fits(self, run: int) -> bool:
        """Whether the next job of a run fits beside those under way."""
        if not self._held:
            return True
        if run in self._alone or self.is_one_alone():
            return False
        if not self._memory:
            return True
        return sum(self._held.values()) + self._memory[run][self._next[run]] <= self._room

    def ended(self, run: int) -> None:
        """The job of this run that was under way has ended."""
        del self._held[run]
        self._alone.discard(run)
        place = self._next[run]
        if place < len(self._left[run]):
            heapq.heappush(self._begun, (-self._left[run][place], run))

    def put_back(self, run: int, alone: bool = False) -> None:
        """The job of this run that was started is to be started again, ``alone`` with no other under way beside it."""
        del self._held[run]
        if alone:
            self._alone.add(run)
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


def _first(heap: list[_Entry], may: Callable[[int], bool]) -> _Entry | None:
    """The smallest entry of a run that ``may`` start."""
    if not heap or may(heap[0][1]):
        return heap[0] if heap else None
    return min((entry for entry in heap if may(entry[1])), default=None)


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
    memory: Sequence[Sequence[float]] | None = None,
    room: float = math.inf,
) -> tuple[list[Start], float]:
    """When each job starts if each takes its seconds, in the order of starting, and when the last one ends.

    Otherwise than ``longest_first`` the runs begin in their order. The longest are so by the ``expected`` seconds, if
    jobs take others than one could know. ``memory`` and ``room`` are those of `Waiting`.
    """
    known = expected or runs
    order = known if longest_first else [[0.0] * len(jobs) for jobs in known]
    waiting = Waiting(order, workers, memory, room)
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
