"""Progress on the terminal: a bar with an ETA, or plain lines where nobody watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from twinbench.harness.execute import StartJob
from twinbench.pretraining.train import ReportProgress

_LINE_SECONDS = 10.0

console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line for the user; results go to standard output, everything else to standard error."""
    console.print(text, markup=False)


@contextmanager
def job_progress(total_jobs: int) -> Iterator[StartJob]:
    """Where the progress of jobs goes, one after the other."""
    if not sys.stderr.isatty():
        yield _plain_lines(total_jobs)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=console) as bars:
        count = 0

        def start(label: str) -> ReportProgress:
            nonlocal count
            count += 1
            task = bars.add_task(f"[{count}/{total_jobs}] {label}", total=1.0, text="")
            return lambda fraction, text: bars.update(task, completed=fraction, text=text)

        yield start


def _plain_lines(total_jobs: int) -> StartJob:
    count = 0

    def start(label: str) -> ReportProgress:
        nonlocal count
        count += 1
        prefix = f"[{count}/{total_jobs}] {label}"
        say(prefix)
        last_line = time.monotonic()
        first: tuple[float, float] | None = None

        def report(fraction: float, text: str) -> None:
            nonlocal last_line, first
            now = time.monotonic()
            first = first or (now, fraction)  # a resumed job does not begin at 0
            if now - last_line >= _LINE_SECONDS and first[1] < fraction < 1:
                last_line = now
                remaining = (now - first[0]) * (1 - fraction) / (fraction - first[1])
                say(f"{prefix}: {fraction:.0%}, ETA {remaining:.0f} s  {text}")

        return report

    return start
