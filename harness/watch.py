"""Watching a plan while it is carried out: the whole plan live on a terminal, plain lines where nobody watches."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from twinbench.harness.console import console, say
from twinbench.pretraining.train import ReportProgress

_LINE_SECONDS = 10.0
_FAILURES_SHOWN = _WAITING_SHOWN = 5
_REBUILD_SECONDS, _REBUILD_SHARE = 60.0, 1 / 20


class Watch(Protocol):
    """Where the progress of jobs goes; a job is called by its label."""

    def start(self, label: str) -> ReportProgress:
        """A job begins; returns where its progress goes."""
        ...

    def end(self, label: str, failure: str = "") -> None:
        """A job has ended, or was found finished or impossible; ``failure`` says why it has no result."""
        ...

    def waits(self, label: str, holder: str) -> None:
        """A job cannot begin or go on, for ``holder`` has what it needs, as a process does that is at work in its run.

        May be told again; where that is empty, it waits for its turn alone.
        """
        ...


@contextmanager
def watched(tables: Mapping[str, Sequence[str]], finished: Collection[str] = ()) -> Iterator[Watch]:
    """Shows the jobs of each table, some of which several tables may need, until the block ends."""
    if not sys.stderr.isatty():
        yield PlainLines({label for labels in tables.values() for label in labels} - set(finished))
        return
    view = LiveView(tables, finished)
    # two times a second are enough for people, and cost the jobs nothing
    with Live(get_renderable=view.render, console=console, refresh_per_second=2):
        yield view


class PlainLines:
    """A line when a job begins, numbered among those that are ``left``, and one now and then while it runs."""

    def __init__(self, left: Collection[str]) -> None:
        self._left, self._total = set(left), len(left)
        self._waits: dict[str, str] = {}

    def start(self, label: str) -> ReportProgress:
        """The line of a job that begins."""
        self._left.discard(label)
        prefix = f"[{self._total - len(self._left)}/{self._total}] {label}"
        say(prefix)
        running = _Running(time.monotonic())
        last_line = time.monotonic()

        def report(fraction: float, text: str) -> None:
            nonlocal last_line
            running.update(fraction, text)
            now = time.monotonic()
            if (
                now - last_line >= _LINE_SECONDS
                and fraction < 1
                and (left := running.seconds_left()) is not None
            ):
                last_line = now
                say(f"{prefix}: {fraction:.0%}, ETA {left:.0f} s  {text}")

        return report

    def end(self, label: str, failure: str = "") -> None:
        """No line: what failed has had one. A job that never begins, as its run collapsed, counts as well."""
        self._left.discard(label)

    def waits(self, label: str, holder: str) -> None:
        """A line when a job begins to wait, and when it does for another process."""
        if holder and self._waits.get(label) != holder:
            self._waits[label] = holder
            say(f"{label} waits for {holder}")


@dataclass
class _Running:
    """How far a job is. Its time left follows from what it did since it was first heard of: it may be a resumed one."""

    since: float
    fraction: float = 0.0
    text: str = ""
    first: tuple[float, float] | None = None

    def update(self, fraction: float, text: str) -> None:
        self.fraction, self.text = fraction, text
        self.first = self.first or (time.monotonic(), fraction)

    def seconds_left(self) -> float | None:
        """None before it is known how fast the job is."""
        if self.first is None or self.fraction <= self.first[1]:
            return None
        return (time.monotonic() - self.first[0]) * (1 - self.fraction) / (self.fraction - self.first[1])


class LiveView:
    """The plan table by table: what is done, running, waiting and failed, then the jobs under way with their ETA."""

    def __init__(self, tables: Mapping[str, Sequence[str]], finished: Collection[str] = ()) -> None:
        self._tables = {name: list(dict.fromkeys(labels)) for name, labels in tables.items()}
        self._labels = list(dict.fromkeys(label for labels in tables.values() for label in labels))
        self._done = set(finished) & set(self._labels)
        self._running: dict[str, _Running] = {}
        self._failed: dict[str, str] = {}
        self._waits: dict[str, str] = {}
        self._took = defaultdict[str, list[float]](list)
        self._most_at_once = 1

    def start(self, label: str) -> ReportProgress:
        """A job moves from waiting to running."""
        self._waits.pop(label, None)
        running = self._running[label] = _Running(time.monotonic())
        self._most_at_once = max(self._most_at_once, len(self._running))
        return running.update

    def end(self, label: str, failure: str = "") -> None:
        """A job moves to done or failed."""
        self._waits.pop(label, None)
        running = self._running.pop(label, None)
        if failure:
            self._failed[label] = failure
            return
        self._done.add(label)
        if running is not None:
            self._took[_kind(label)].append(time.monotonic() - running.since)

    def waits(self, label: str, holder: str) -> None:
        """A job goes on waiting, or waits again."""
        self._running.pop(label, None)
        self._waits[label] = holder

    def render(self) -> Group:
        """What the terminal shows now."""
        parts = [self._plan(), self._under_way()] if self._running else [self._plan()]
        return Group(*parts, *self._waiting(), *self._failures())

    def _plan(self) -> Table:
        grid = Table(box=None, pad_edge=False)
        grid.add_column("")
        for heading in ("done", "running", "waiting", "failed"):
            grid.add_column(heading, justify="right")
        grid.add_column("")
        rows = self._tables if len(self._tables) > 1 else {}
        for name, labels in {**rows, "all": self._labels}.items():
            grid.add_row(
                *self._counts(name, labels), ProgressBar(len(labels), self._count(labels, self._done), 20)
            )
        left = self.seconds_left()
        grid.caption = "" if left is None else f"about {_duration(left)} left"
        grid.caption_justify = "left"
        return grid

    def _counts(self, name: str, labels: Sequence[str]) -> tuple[Text, ...]:
        done, running, failed = (self._count(labels, of) for of in (self._done, self._running, self._failed))
        waiting = len(labels) - done - running - failed
        return (
            Text(name),
            Text(f"{done} of {len(labels)}"),
            *(Text(str(count) if count else "-") for count in (running, waiting)),
            Text(str(failed) if failed else "-", style="red" if failed else ""),
        )

    @staticmethod
    def _count(labels: Sequence[str], among: Collection[str]) -> int:
        return sum(label in among for label in labels)

    def _under_way(self) -> Table:
        grid = Table(box=None, pad_edge=False, show_header=False)
        for label, job in self._running.items():
            left = job.seconds_left()
            eta = "" if left is None else f"ETA {_duration(left)}"
            bar = ProgressBar(1.0, job.fraction, 20)
            grid.add_row(Text(label), bar, f"{job.fraction:.0%}", eta, Text(job.text))
        return grid

    def _waiting(self) -> list[Text]:
        shown = [(label, holder) for label, holder in self._waits.items() if holder]
        more = len(shown) - _WAITING_SHOWN
        lines = [Text(f"{label} waits for {holder}") for label, holder in shown[:_WAITING_SHOWN]]
        return [*lines, Text(f"waiting for other processes beside these: {more}")] if more > 0 else lines

    def _failures(self) -> list[Text]:
        shown = list(self._failed.items())[-_FAILURES_SHOWN:]
        lines = [Text(f"failed: {label}: {why}", style="red") for label, why in shown]
        more = len(self._failed) - len(shown)
        return [Text(f"failed before these: {more}", style="red"), *lines] if more else lines

    def seconds_left(self) -> float | None:
        """Until all are done, if jobs take as long as others of their kind did; None until each kind has been seen,
        and at the end."""
        gone = {*self._done, *self._failed, *self._running}
        kinds = [_kind(label) for label in self._labels if label not in gone]
        if not kinds and not self._running:
            return None
        under_way = [job.seconds_left() for job in self._running.values()]
        known = [seconds for seconds in under_way if seconds is not None]
        if len(known) < len(under_way) or not all(self._took.get(kind) for kind in kinds):
            return None
        waiting = sum(median(self._took[kind]) for kind in kinds)
        return max((waiting + sum(known)) / self._most_at_once, max(known, default=0.0))


def _kind(label: str) -> str:
    """What jobs have in common that take about as long: that they pretrain, or their protocol."""
    return label.partition(" ")[0]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    )


class Rebuilding:
    """A watch that also has the report made again as results come in, for at most a twentieth of the time."""

    def __init__(self, watch: Watch, rebuild: Callable[[], None]) -> None:
        self._watch, self._rebuild = watch, rebuild
        self._due = time.monotonic() + _REBUILD_SECONDS

    def start(self, label: str) -> ReportProgress:
        """As the watch does."""
        return self._watch.start(label)

    def end(self, label: str, failure: str = "") -> None:
        """As the watch does; then the report, if it is time."""
        self._watch.end(label, failure)
        started = time.monotonic()
        if started >= self._due:
            self._rebuild()
            now = time.monotonic()
            self._due = now + max(_REBUILD_SECONDS, (now - started) / _REBUILD_SHARE)

    def waits(self, label: str, holder: str) -> None:
        """As the watch does."""
        self._watch.waits(label, holder)
