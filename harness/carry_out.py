"""Do what is missing of a plan, write the study's report, print its tables."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from twinbench.foundation.errors import RunFailure
from twinbench.foundation.files import machine_faults
from twinbench.foundation.lease import Lease
from twinbench.harness.console import say
from twinbench.harness.execute import execute
from twinbench.harness.images import Images
from twinbench.harness.mirror import mirrored
from twinbench.harness.plan import Job, PlannedRun, jobs, jobs_of_tables
from twinbench.harness.ray_options import RayOptions, prepare_for_ray
from twinbench.harness.records import collect
from twinbench.harness.store import LOOK_SECONDS, check_writable, prepare_store
from twinbench.harness.studies import Study
from twinbench.harness.watch import Rebuilding, watched
from twinbench.harness.workers import default_workers, execute_in_parallel
from twinbench.pretraining.interrupt import Interrupted, raised_signals
from twinbench.reports.build import build_report, check_out
from twinbench.reports.console import render_study
from twinbench.reports.records import Record, RunInfo
from twinbench.reports.study import StudySpec


@dataclass(frozen=True)
class Execution:
    """How a plan is carried out: the run store, the report's folder, and the ``command`` that makes it again.

    ``workers`` are those that suit the machine and the plan unless given; with ``debug`` one job at a time, and the
    first failure ends it. No job may take longer than ``job_minutes``: it is then watched from another process, also if
    it is the only one.
    With ``ray`` that does the jobs, each with as many threads as one of so many workers here would have.
    """

    runs: Path
    out: Path
    command: str
    workers: int | None = None
    debug: bool = False
    job_minutes: float | None = None
    ray: RayOptions | None = None

    def at_once(self, plan: Sequence[Job]) -> int:
        """How many jobs of a plan compute at a time."""
        return 1 if self.debug else self.workers or default_workers(plan)


def carry_out(study: Study, planned: Sequence[PlannedRun], images: Images, how: Execution) -> None:
    """Do the jobs that are not finished, then report; raises RunFailure if some failed.

    Raises Interrupted after a signal to stop, when the tables and the page show what is finished.
    """
    started = time.monotonic()
    check_out(how.out)
    check_writable(how.out.parent)
    plan = jobs(planned, images)
    tables = {name: [job.label for job in needed] for name, needed in jobs_of_tables(planned, images).items()}
    finished = [job.label for job in plan if job.is_finished()]
    # a folder need not be writable for a report of what is finished; of an object store something may be left to send
    if len(finished) < len(plan) or mirrored(how.runs) is not None:
        prepare_store(how.runs)
    workers = how.at_once(plan)
    at_once = f"{workers} at a time" if how.ray is None else "as many at a time as Ray has room for"
    say(f"{study.name}: {len(plan)} jobs, {len(finished)} already finished, {at_once}")

    def rebuild() -> None:
        try:
            with _alone_at(how.out):
                build_report(study, *collect(study, planned, images), how.out, how.command, draw=False)
        except Exception as error:  # the results are safe, and the report at the end raises what is wrong
            say(f"the report was not made again: {type(error).__name__}: {error}")

    try:
        with raised_signals(), watched(tables, finished) as shown:
            watch = Rebuilding(shown, rebuild)
            seconds = None if how.job_minutes is None else 60 * how.job_minutes
            watches = seconds is not None and not how.debug
            if how.ray is not None and len(finished) < len(plan):
                prepare_for_ray(how.ray)  # before it is imported, which is here and nowhere else
                from twinbench.harness.ray_executor import execute_on_ray

                failures = execute_on_ray(plan, images, how.workers, how.ray, watch, say, seconds)
            elif (workers > 1 or watches) and len(finished) < len(plan):
                failures = execute_in_parallel(plan, images, workers, watch, say, job_seconds=seconds)
            else:
                failures = execute(plan, images, watch, say, how.debug)
    except Interrupted:
        say(f"stopped: {how.out} is made again with what is finished, without figures")
        rebuild()
        raise
    with _alone_at(how.out):
        page = write_report(study, how.command, *collect(study, planned, images), how.out)
    say(f"done in {time.monotonic() - started:.0f} s")
    print(f"report: {page}")
    if failures:
        raise RunFailure(
            f"{failures} of {len(plan)} jobs failed; their cells say so",
            where=page,
            next_step="correct the cause and run the same command again: finished jobs are kept",
        )


@contextmanager
def _alone_at(out: Path) -> Iterator[None]:
    """Wait for another command that writes the same report, which ends with the same last job."""
    place = out.resolve()
    lease = Lease(place.parent / f".{place.name}.lock")
    with machine_faults("cannot write a report here", out, "make the folder writable, or give another one"):
        while not lease.take():
            time.sleep(LOOK_SECONDS)
    try:
        yield
    finally:
        lease.release()


def write_report(
    study: StudySpec, command: str, records: list[Record], infos: list[RunInfo], out: Path
) -> Path:
    """Write a report and print its tables; returns the path of the page."""
    page = build_report(study, records, infos, out, command)
    for text in render_study(study, records, infos, command):
        print(text + "\n")
    return page
