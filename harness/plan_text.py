"""What a plan would do, in words: for every table its jobs, hours, memory and disk, then all jobs in their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from twinbench.encoders.backbones import build_backbone
from twinbench.harness.estimate import Use
from twinbench.harness.images import Images
from twinbench.harness.plan import Job, PlannedRun, jobs, jobs_of_tables
from twinbench.harness.room import room_for
from twinbench.harness.schedule import order_matters, timetable, unfinished_runs
from twinbench.harness.studies import Study
from twinbench.harness.workers import busy_workers
from twinbench.pretraining.recipe import BackboneSpec

FLOAT = 4
"""Bytes of a number."""


def plan_lines(
    study: Study, planned: Sequence[PlannedRun], images: Images, use: dict[str, Use], workers: int
) -> Iterator[str]:
    """The tables of a study with what each still takes, then its jobs, and how long all of them take together."""
    plan = jobs(planned, images)
    needed = jobs_of_tables(planned, images)
    yield f"{study.title}: {len(plan)} jobs"
    seen: set[Path] = set()
    for name, own in needed.items():
        yield from _table_lines(name, own, seen, images, use)
        seen |= {job.key for job in own}
    yield from _job_lines(plan, use, workers)


def _table_lines(
    name: str, own: Sequence[Job], seen: set[Path], images: Images, use: dict[str, Use]
) -> Iterator[str]:
    """What a table needs, and what it takes beyond the tables before it (``seen``)."""
    trainings = [job for job in own if job.evaluation is None]
    new = [job for job in own if job.key not in seen]
    left = [job for job in new if not job.is_finished()]
    parts = [f"{len(trainings)} runs, {len(own) - len(trainings)} evaluations"]
    parts += [f"{len(own) - len(new)} jobs shared with tables above"] if len(new) < len(own) else []
    parts += [f"{len(new) - len(left)} finished"] if len(left) < len(new) else []
    if left:
        found = [use.get(job.label, Use()) for job in left]
        hours = sum(each.seconds for each in found) / 3600
        memory = max(each.memory_mb for each in found)
        parts.append(
            f"{hours:.2f} h of one worker, {memory:.0f} MiB of memory, {_disk_mb(left, images):.0f} MiB of disk"
        )
    yield f"{name}: {'; '.join(parts)}"


def _disk_mb(left: Sequence[Job], images: Images) -> float:
    """What the jobs leave behind in MiB: encoders, and the features of each encoder on each image set, once."""
    kept = {
        str(job.run.folder): FLOAT * network_size(job.run.source.backbone)[0]
        for job in left
        if not job.evaluation
    }
    for job in left:
        if job.evaluation is None or not job.evaluation.protocol.keeps_features:
            continue
        image_set = images[job.evaluation.images]
        count = sum(len(image_set.split(split)) for split in ("train", "val", "test"))
        kept[f"{job.run.folder} {image_set.fingerprint}"] = (
            FLOAT * count * network_size(job.run.source.backbone)[1]
        )
    return sum(kept.values()) / 2**20


@cache
def network_size(spec: BackboneSpec) -> tuple[int, int]:
    """How many parameters a backbone has, and how many features it gives."""
    backbone = build_backbone(spec.name, spec.width, spec.stem)
    return sum(parameter.numel() for parameter in backbone.parameters()), backbone.feature_dim


def _job_lines(plan: Sequence[Job], use: dict[str, Use], workers: int) -> Iterator[str]:
    """The finished jobs, then the others in the order in which they would start, each with its estimate."""
    for job in plan:
        if job.is_finished():
            yield f"  {job.label:<70} finished"
    if all(job.is_finished() for job in plan):
        yield "nothing is left to do"
        return
    seconds = {label: each.seconds for label, each in use.items()}
    longest_first = order_matters(plan, workers)
    # one at a time they go in the order of the plan, as a single run would
    runs = [[job for job in plan if not job.is_finished()]]
    if workers > 1:
        runs = unfinished_runs(plan, seconds if longest_first else {})
    lengths = [[seconds[job.label] for job in run] for run in runs]
    room = room_for(busy_workers(plan, workers))
    memory = room.of(runs, use)
    starts, end = timetable(lengths, workers, longest_first, memory=memory, room=room.together_mb)
    for start in starts:
        job = runs[start.run][start.place]
        yield f"  {job.label:<70} about {seconds[job.label]:.0f} s, {start.seconds / 60:.1f} min after the start"
    if workers > 1 and (alone := room.too_large(use)):
        yield alone
    yield (
        f"estimated time: {end / 60:.1f} min with {workers} at a time (from what earlier runs took, else a few real "
        f"steps timed {busy_workers(plan, workers)} at a time; nothing was written)"
    )
