"""Hand out the jobs of a plan to other processes, and show what they tell.

How such processes are had is a matter of each executor: `harness.workers` starts them on this machine,
`harness.ray_executor` has Ray do so. `harness.schedule` says which job comes next.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from twinbench.foundation.lease import Seen
from twinbench.harness.mirror import Sights
from twinbench.harness.plan import Job
from twinbench.harness.schedule import Waiting
from twinbench.harness.store import LOOK_SECONDS, RunLease
from twinbench.harness.watch import Watch
from twinbench.pretraining.interrupt import Interrupted, StopRequest
from twinbench.pretraining.train import ReportProgress

MESSAGE_SECONDS = 0.2
"""For so long the one who shows messages waits for the next, and a worker between two about one job's progress."""


class Messages(Protocol):
    """A queue from the processes that do jobs to the one that shows them; its items are (kind, label, content)."""

    def put(self, item: tuple[str, str, Any]) -> None:
        """Append a message."""
        ...

    def get(self, *, timeout: float) -> tuple[str, str, Any]:
        """The next message; raises queue.Empty if none comes for so many seconds."""
        ...


Submit = Callable[[Job, Seen | Sights | None], "Future[bool | None]"]
"""Gives a job to a process, with what is known of the lease of its run; the future has what `attempt` returns."""


def hand_out(
    runs: Sequence[Sequence[Job]],
    waiting: Waiting,
    at_once: Callable[[], int],
    submit: Submit,
    messages: Messages,
    watch: Watch,
    say: Callable[[str], None],
    stop: StopRequest,
    alone: Collection[str] = (),
) -> int:
    """Have every job of the ``runs`` done, in the order of ``waiting``, which is of these; returns how many failed.

    ``at_once`` says how many jobs may be given out at the moment. Raises Interrupted after a signal to stop, and
    whatever a future raises. ``alone`` are, at any time, the labels of jobs that may have none beside them.
    """
    ready = _Ready(runs, waiting, watch, alone)
    under_way: dict[Future[bool | None], int] = {}
    failures = 0
    terminal = _Terminal(messages, watch, say)
    while True:
        check_stop(stop)
        for future in [future for future in under_way if future.done()]:
            ready.ended(under_way.pop(future), future.result())
            failures += future.result() or 0
        while len(under_way) < at_once() and (found := ready.next()) is not None:
            run, job, lease = found
            future = submit(job, lease.seen)
            future.add_done_callback(lambda _: messages.put(("wake", "", None)))  # wakes the terminal
            under_way[future] = run
        if not terminal.show_next() and not under_way and not waiting.has_left():
            return failures


def check_stop(stop: StopRequest | None) -> None:
    """Raise Interrupted after a signal to stop."""
    if stop is not None and stop.name is not None:
        raise Interrupted(
            f"stopped by {stop.name}; every training has saved",
            next_step="run the same command again: it goes on from there",
        )


class _Ready:
    """The jobs that may start now, which are those of runs that no other process works in."""

    def __init__(
        self, runs: Sequence[Sequence[Job]], waiting: Waiting, watch: Watch, alone: Collection[str]
    ) -> None:
        self._runs, self._waiting, self._watch, self._alone = runs, waiting, watch, alone
        self._leases = [jobs[0].run.lease() for jobs in runs]
        self._look_again: dict[int, float] = {}

    def next(self) -> tuple[int, Job, RunLease] | None:
        """The run's place, its job and what is known of its lease; None if no job may start."""
        now = time.monotonic()
        while True:
            elsewhere = [run for run, at in self._look_again.items() if now < at]
            wanted, place = self._waiting.wanted(elsewhere), self._waiting.start(elsewhere)
            if wanted is not None and wanted != place:
                label = self._runs[wanted[0]][wanted[1]].label
                self._watch.waits(label, self._why(label))
            if place is None:
                return None
            run, job = place[0], self._runs[place[0]][place[1]]
            holder = job.run.at_work(self._leases[run])
            if holder is None:
                return run, job, self._leases[run]
            self._watch.waits(job.label, str(holder))
            self._put_back(run)

    def _why(self, label: str) -> str:
        """What a job waits for that is next, and may not begin beside those under way."""
        if label in self._alone:
            return "the jobs under way, to be done with nothing beside it"
        return "a job that is done alone" if self._waiting.is_one_alone() else "memory that running jobs need"

    def ended(self, run: int, failed: bool | None) -> None:
        """A job has ended, or it is None that failed: it is to be begun again, as where another process was quicker."""
        if failed is None:
            self._put_back(run)
        else:
            self._waiting.ended(run)

    def _put_back(self, run: int) -> None:
        alone = any(job.label in self._alone for job in self._runs[run])
        self._waiting.put_back(run, alone)
        self._look_again[run] = time.monotonic() + LOOK_SECONDS


class _Terminal:
    """Where the progress of jobs goes that other processes do."""

    def __init__(self, messages: Messages, watch: Watch, say: Callable[[str], None]) -> None:
        self._messages, self._watch, self._say = messages, watch, say
        self._reports: dict[str, ReportProgress] = {}

    def show_next(self) -> bool:
        """Show what a worker tells next; False if for some time none tells anything."""
        try:
            kind, label, content = self._messages.get(timeout=MESSAGE_SECONDS)
        except queue.Empty:
            return False
        if kind == "start":
            self._reports[label] = self._watch.start(label)
        elif kind == "progress" and label in self._reports:  # a queue elsewhere may have lost that it began
            self._reports[label](*content)
        elif kind == "end":
            self._watch.end(label, content)
        elif kind == "waits":
            self._watch.waits(label, content)
        elif kind == "say":
            self._say(content)
        return True


class Told:
    """The watch of a process that does jobs, which tells what there is to see, at most once in so many seconds."""

    def __init__(self, messages: Messages, seconds: float = MESSAGE_SECONDS) -> None:
        self._messages, self._seconds = messages, seconds

    def start(self, label: str) -> ReportProgress:
        """A job begins; returns where its progress goes."""
        self._messages.put(("start", label, None))
        last = 0.0

        def report(fraction: float, text: str) -> None:
            nonlocal last
            if time.monotonic() - last >= self._seconds:
                last = time.monotonic()
                self._messages.put(("progress", label, (fraction, text)))

        return report

    def end(self, label: str, failure: str = "") -> None:
        """A job has ended; ``failure`` says why it has no result."""
        self._messages.put(("end", label, failure))

    def waits(self, label: str, holder: str) -> None:
        """A job waits for another process, ``holder``."""
        self._messages.put(("waits", label, holder))

    def say(self, text: str) -> None:
        """One line for the user."""
        self._messages.put(("say", "", text))
