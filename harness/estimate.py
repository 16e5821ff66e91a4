"""How long will the jobs take? As long as in earlier runs here, or as a few real steps say that are timed now.

Whoever times them lets as many processes compute at once as workers will: they share caches and the memory's bandwidth,
so each is slower than one alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from twinbench.data.image_sets import ImageSet
from twinbench.downstream.protocol import Protocol
from twinbench.encoders.backbones import build_backbone
from twinbench.harness.environment import takes_as_long
from twinbench.harness.images import ImageChoice, Images
from twinbench.harness.plan import Job
from twinbench.harness.source import ImportedSource, Source
from twinbench.harness.store import Run, read_record, stored_runs
from twinbench.pretraining.batches import steps_in_epoch
from twinbench.pretraining.memory import peak_memory_mb, reset_peak_memory
from twinbench.pretraining.recipe import BackboneSpec, Recipe
from twinbench.pretraining.train import pretrain_step_seconds

# Images of 32 pixels; fewer of larger ones.
_BATCH = 256
_LEAST_LIMIT, _LIMIT_TIMES = 3600.0, 10


@dataclass(frozen=True)
class Step:
    """A training step by a recipe."""

    recipe: Recipe
    trained_on: ImageChoice

    @property
    def key(self) -> str:
        """What its time depends on: not the seed, the number of epochs or how the values were found."""
        return _step_key(self.recipe)

    def seconds(self, images: Images) -> float:
        """Its time in this process."""
        return pretrain_step_seconds(self.recipe, images[self.trained_on])


def _step_key(recipe: Recipe) -> str:
    same = recipe.model_copy(update={"seed": 0, "epochs": 0, "tuning": None})
    return f"step {same.model_dump_json()}"


@dataclass(frozen=True)
class ForwardPass:
    """An image of ``size`` pixels through a backbone, forward only."""

    backbone: BackboneSpec
    size: int

    @property
    def key(self) -> str:
        """What its time depends on."""
        return f"forward {self.backbone} {self.size}"

    def seconds(self, images: Images) -> float:
        """Its time in this process, of random pixels."""
        spec = self.backbone
        backbone = build_backbone(spec.name, spec.width, spec.stem).eval()
        batch = torch.rand(max(4, _BATCH * 32**2 // self.size**2), 3, self.size, self.size)
        with torch.inference_mode():
            backbone(batch)
            started = time.perf_counter()
            backbone(batch)
        return (time.perf_counter() - started) / len(batch)


Unit = Step | ForwardPass
"""What is timed once for many jobs."""


class Use(NamedTuple):
    """What something takes: seconds of a worker, and at most so many MiB of memory, of the GPU where there is one."""

    seconds: float = 0.0
    memory_mb: float = 0.0


def time_limit(use: Use) -> float | None:
    """The seconds after which a job that takes so much counts as one that hangs; None where nothing is known of it.

    Ten times what it should take and at least an hour: a machine may be busy, and what was timed were steps.
    """
    return max(_LEAST_LIMIT, _LIMIT_TIMES * use.seconds) if use.seconds > 0 else None


def measured_use(unit: Unit, images: Images) -> Use:
    """What a unit takes in this process."""
    reset_peak_memory()
    seconds = unit.seconds(images)
    return Use(seconds, peak_memory_mb())


@dataclass(frozen=True)
class _Cost:
    """A job is ``amount`` units; ``key`` names what it took as a whole in earlier runs, if that is kept."""

    unit: Unit
    amount: float
    key: str = ""

    def use(self, known: dict[str, Use]) -> Use | None:
        if self.key in known:
            return known[self.key]
        unit = known.get(self.unit.key)
        return Use(unit.seconds * self.amount, unit.memory_mb) if unit else None


def estimate(
    plan: Sequence[Job],
    images: Images,
    known: dict[str, Use],
    measure: Callable[[list[Unit]], list[Use]],
) -> dict[str, Use]:
    """What each unfinished job takes, by its label.

    ``known`` is what `former_use` found; ``measure`` measures what it does not say.
    """
    left = [job for job in plan if not job.is_finished()]
    costs = {job.label: cost for job in left if (cost := _cost(job, images)) is not None}
    unknown = {cost.unit.key: cost.unit for cost in costs.values() if cost.use(known) is None}
    measured = measure(list(unknown.values())) if unknown else []
    known = known | dict(zip(unknown, measured, strict=True))
    return {job.label: (costs[job.label].use(known) if job.label in costs else None) or Use() for job in left}


def first_of_kind(plan: Sequence[Job]) -> dict[str, Job]:
    """For the label of each unfinished job the first such job of its method and, if it evaluates, its protocol.

    The trials of a search differ in values, their networks little: measuring one of a method does for all.
    """
    first: dict[tuple[str, str], Job] = {}
    return {job.label: first.setdefault(_kind(job), job) for job in plan if not job.is_finished()}


def _kind(job: Job) -> tuple[str, str]:
    return job.run.source.method, job.evaluation.protocol.name if job.evaluation else ""


def _cost(job: Job, images: Images) -> _Cost | None:
    """What a job consists of; None if it takes next to no time, as an import or a training of no epochs does."""
    source = job.run.source
    if job.evaluation is not None:
        chosen, image_set = job.evaluation.protocol, images[job.evaluation.images]
        size = _forward_size(chosen, source.image_size, image_set)
        passes = chosen.forward_passes(image_set)
        key = _evaluation_key(chosen.name, source, image_set.fingerprint)
        return _Cost(ForwardPass(source.backbone, size), passes, key)
    if isinstance(source, ImportedSource) or source.epochs == 0:
        return None
    return _Cost(Step(source, job.trained_on), _steps(source, images[job.trained_on]))


def _evaluation_key(protocol: str, source: Source, fingerprint: str) -> str:
    return f"{protocol} {source.backbone} {source.image_size} {fingerprint}"


def _forward_size(chosen: Protocol, input_size: int | None, measured_on: ImageSet) -> int:
    """The side in pixels of the image that a protocol counts its work in; ``input_size`` is the encoder's.

    Detection counts in images of the set's own size, the others in images as the encoder sees them.
    """
    if chosen.needs == "detection" or input_size is None:
        return measured_on.image_size
    return input_size


def _steps(recipe: Recipe, image_set: ImageSet) -> int:
    return recipe.epochs * steps_in_epoch(recipe, len(image_set.split("train")), image_set.name)


def former_use(root: Path, device: str) -> dict[str, Use]:
    """What a step and whole evaluations took in the runs of a store: the median of the seconds, the most memory.

    Only what the same versions of the packages measured on the same kind of machine, at any commit, and on ``device``,
    which has the number of threads and so of workers in its name.
    """
    found: dict[str, list[Use]] = {}
    for run in stored_runs(root):
        for key, use in _measured(run, device):
            found.setdefault(key, []).append(use)
    return {
        key: Use(median(use.seconds for use in uses), max(use.memory_mb for use in uses))
        for key, uses in found.items()
    }


def _measured(run: Run, device: str) -> Iterator[tuple[str, Use]]:
    """What a run's own training and evaluations took."""
    status, source = run.status() or {}, run.source
    if isinstance(source, Recipe) and _is_of_here(status, device) and status.get("images_per_second"):
        seconds = source.batch_size / status["images_per_second"]
        yield _step_key(source), Use(seconds, status.get("peak_memory_mb", 0.0))
    for file in (run.folder / "records").glob("*.json"):
        record = read_record(file) or {}
        if _is_of_here(record, device):
            yield (
                _evaluation_key(record["protocol"], source, record["image_set_fingerprint"]),
                Use(record["seconds"], record.get("peak_memory_mb", 0.0)),
            )


def _is_of_here(document: dict[str, Any], device: str) -> bool:
    """Whether a status or a record is that of a finished job of these versions on this device."""
    return (
        document.get("status") in {"done", "collapsed"}
        and takes_as_long(document.get("environment", {}))
        and document.get("device") == device
    )
