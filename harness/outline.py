"""What a study would take where its images are not here: GPU-hours as measured here before, else as published.

Nothing is read but recipes, the published sizes of the image sets (`data.catalogue.KNOWN_SETS`) and the run store, so
the answer comes at once. Evaluations are scaled from the time of the pretraining: both in forward passes of an image of
full size, a trained image counting three.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any, cast

from twinbench.data.catalogue import KNOWN_SETS, KnownSet
from twinbench.data.detection import DetectionSplit
from twinbench.data.image_sets import ImageSet, val_count
from twinbench.downstream.protocol import Protocol, protocol
from twinbench.harness.images import ImageChoice, Images
from twinbench.harness.plan import check_columns, check_overrides, table_recipes
from twinbench.harness.plan_text import FLOAT, network_size
from twinbench.harness.recipes import recipe_hash
from twinbench.harness.source import has_training
from twinbench.harness.store import Run, stored_runs
from twinbench.harness.studies import Study, StudyTable
from twinbench.pretraining.build import resolve, view_policies
from twinbench.pretraining.recipe import BackboneSpec, CostSpec, Recipe

_SIZE = 224
_TRAINED = 3.0  # passes of a trained image
_HOUR = 3600.0


@dataclass(frozen=True)
class _Count:
    """A split of which only the number of images is known."""

    count: int

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True)
class _Sizes:
    """An image set of which only the sizes are known: as much of one as `Protocol.forward_passes` asks for."""

    known: KnownSet
    image_size: int = _SIZE

    def split(self, name: str) -> _Count:
        held_out = val_count(self.known.train)
        return _Count({"train": self.known.train - held_out, "val": held_out, "test": self.known.test}[name])

    def detection(self, name: str) -> _Count:
        return _Count(self.known.train if name == "train" else self.known.test)


@dataclass(frozen=True)
class _Here:
    """An image set that is here. To count its images none is drawn or decoded; only scenes are looked at."""

    images: ImageSet

    @property
    def image_size(self) -> int:
        return self.images.image_size

    def split(self, name: str) -> _Count:
        return _Count(self.images.count(name))

    def detection(self, name: str) -> DetectionSplit:
        return self.images.detection(name)


@cache
def _sizes(name: str) -> ImageSet:
    """The sizes of a set; an embedded one is here."""
    known = KNOWN_SETS.get(name)
    return cast(ImageSet, _Sizes(known) if known else _Here(Images(None)[ImageChoice(name)]))


class _Store:
    """What a run store holds of recipes whose images are not here: those of its own images count for them."""

    def __init__(self, root: Path) -> None:
        self._runs = {run.hash: run for run in stored_runs(root) if run.is_trained()}
        self._images = defaultdict[str, set[tuple[int, str]]](set)
        self._measured = defaultdict[tuple[str, BackboneSpec, str], list[Run]](list)
        for run in self._runs.values():
            recipe = run.source
            if isinstance(recipe, Recipe) and recipe.image_size:
                self._images[recipe.image_set].add((recipe.image_size, recipe.image_set_fingerprint))
                if (run.status() or {}).get("device_type") == "cuda":
                    self._measured[_kind(recipe)].append(run)

    def run_of(self, recipe: Recipe) -> Run | None:
        """The finished run of a recipe."""
        for images in self._images.get(recipe.image_set, ()):
            if run := self._runs.get(recipe_hash(resolve(recipe, *images))):
                return run
        return None

    def cost_of(self, recipe: Recipe) -> CostSpec | None:
        """GPU-hours of an epoch by the runs of this method, network and image set on a GPU, if there are any."""
        runs = [run for run in self._measured.get(_kind(recipe), ()) if _speed(run) > 0]
        if not runs or recipe.image_set not in KNOWN_SETS:
            return None
        images = KNOWN_SETS[recipe.image_set].train
        hours = [images * (run.status() or {}).get("ranks", 1) / _speed(run) / _HOUR for run in runs]
        device = (runs[0].status() or {})["device"]
        return CostSpec(
            gpu_hours_per_epoch=median(hours), gpu=device, source=f"measured here, {len(runs)} runs"
        )

    def memory_of(self, recipe: Recipe) -> float:
        """The most MiB that such a run took of a GPU; 0 if none is known."""
        runs = self._measured.get(_kind(recipe), ())
        return max(((run.status() or {}).get("peak_memory_mb") or 0.0 for run in runs), default=0.0)


def _kind(recipe: Recipe) -> tuple[str, BackboneSpec, str]:
    return recipe.method, recipe.backbone, recipe.image_set


def _speed(run: Run) -> float:
    return (run.status() or {}).get("images_per_second") or 0.0


@dataclass(frozen=True)
class OutlinedJob:
    """A job whose images are not here: training by a recipe, or an evaluation of the encoder by a ``protocol``.

    ``run`` is the same for the jobs of one run; ``gpu_hours`` are None where nobody knows them.
    """

    run: str
    recipe: Recipe
    gpu_hours: float | None
    is_finished: bool
    protocol: Protocol | None = None
    image_set: str = ""

    def kept_bytes(self) -> int:
        """What it leaves behind: the encoder, or the features of every image if the protocol keeps them."""
        parameters, features = network_size(self.recipe.backbone)
        if self.protocol is None:
            return FLOAT * parameters
        if not self.protocol.keeps_features:
            return 0
        images = sum(len(_sizes(self.image_set).split(split)) for split in ("train", "val", "test"))
        return FLOAT * features * images


@dataclass
class _Totals:
    """What one table takes, or all."""

    trainings: int = 0
    evaluations: int = 0
    finished: int = 0
    unknown: int = 0
    hours: float = 0.0
    memory_mb: float = 0.0
    kept: dict[tuple[str, str], int] = field(default_factory=dict)
    """Bytes by run and by image set: encoders, and features."""

    def add(self, job: OutlinedJob, memory_mb: float) -> None:
        """Count what a job takes that is left, ``memory_mb`` of a GPU if it is a training."""
        if job.is_finished:
            self.finished += 1
            return
        self.hours += job.gpu_hours or 0.0
        self.unknown += job.gpu_hours is None
        if job.protocol is None:
            self.trainings += has_training(job.recipe)
            self.memory_mb = max(self.memory_mb, memory_mb)
        else:
            self.evaluations += 1
        if kept := job.kept_bytes():
            self.kept[job.run, job.image_set] = kept

    def plus(self, other: _Totals) -> _Totals:
        """Both together."""
        return _Totals(
            self.trainings + other.trainings,
            self.evaluations + other.evaluations,
            self.finished + other.finished,
            self.unknown + other.unknown,
            self.hours + other.hours,
            max(self.memory_mb, other.memory_mb),
            self.kept | other.kept,
        )

    def words(self) -> str:
        """For a line of the outline."""
        parts = [
            f"{self.trainings} trainings, {self.evaluations} evaluations: {self.hours:,.0f} GPU-hours"
            + (f", and {self.unknown} jobs of unknown length" if self.unknown else "")
        ]
        if self.trainings or self.evaluations:
            parts += [f"{sum(self.kept.values()) / 2**30:,.1f} GiB of disk"]
            parts += [f"{self.memory_mb:,.0f} MiB of GPU memory"] if self.memory_mb else []
        parts += [f"{self.finished} jobs finished"] if self.finished else []
        return "; ".join(parts)


def outline_lines(study: Study, overrides: dict[str, Any], runs: Path) -> Iterator[str]:
    """For every table what it takes beyond the tables before it; then all together, and where the times are from.

    Raises InputError for what a study or an override gets wrong, as a plan does.
    """
    recipes = _recipes_of(study, overrides)
    costs = _Costs(recipes, _Store(runs))
    yield f"{study.title}: an outline, as not all of its images are here"
    total = _Totals()
    for name, jobs in _jobs_of(study, recipes, costs):
        own = _Totals()
        for job in jobs:
            own.add(job, costs.store.memory_of(job.recipe))
        total = total.plus(own)
        yield f"{name}: {own.words()}"
    yield f"together: {total.words()}"
    if costs.sources:
        yield "GPU-hours are those of each method's pretraining, an evaluation by its number of forward passes:"
        yield from (f"  {method}: {source}" for method, source in costs.sources.items())
    if total.unknown:
        yield _unknown_hours_line(study)
    yield "disk: encoders, and the features that some protocols keep"
    yield from _memory_lines(recipes, costs)


def outlined_jobs(study: Study, overrides: dict[str, Any], runs: Path) -> dict[str, list[OutlinedJob]]:
    """For every table the jobs that no table before it needs, each run's training before its evaluations.

    Raises InputError as `outline_lines` does.
    """
    recipes = _recipes_of(study, overrides)
    return {name: list(jobs) for name, jobs in _jobs_of(study, recipes, _Costs(recipes, _Store(runs)))}


def _recipes_of(study: Study, overrides: dict[str, Any]) -> dict[str, list[Recipe]]:
    """The recipes of every table; raises InputError for what a study or an override gets wrong."""
    check_overrides(study, overrides)
    for table in study.tables:
        check_columns(table)
    return {table.name: [recipe for _, recipe in table_recipes(table, overrides)] for table in study.tables}


def _unknown_hours_line(study: Study) -> str:
    """Why jobs have no GPU-hours, and what gives them."""
    away = [name for name in study.image_sets() if name in KNOWN_SETS]
    places = "; ".join(f"{name}: {KNOWN_SETS[name].source}" for name in away)
    return (
        "jobs of unknown length: no run of their network on a GPU is in this run store, and no publication says what "
        "an epoch takes; give a folder with the images (--data-root DIR), and this command times a few steps of each "
        f"method; they come from: {places}"
    )


def _memory_lines(recipes: dict[str, list[Recipe]], costs: _Costs) -> Iterator[str]:
    """Of which methods no run here tells the memory of a GPU, what was published of it, and how to find out."""
    unknown = {
        recipe.method: recipe
        for own in recipes.values()
        for recipe in own
        if has_training(recipe) and not costs.store.memory_of(recipe)
    }
    if not unknown:
        return
    published = [
        f"{method} {each.cost.memory}" for method, each in unknown.items() if each.cost and each.cost.memory
    ]
    of_one = next(iter(unknown.values()))
    yield (
        f"GPU memory of {', '.join(unknown)}: no run on a GPU is here to tell it, and it depends on how many images "
        "a GPU holds at a time"
        + (f" (published: {', '.join(published)}; their sources as above)" if published else "")
        + "; "
        f"a short run tells: twinbench pretrain METHOD --image-set {of_one.image_set} --set epochs=1 "
        "--data-root DIR"
    )


class _Costs:
    """What trainings take by what is known: measured here, published, or nothing."""

    def __init__(self, recipes: dict[str, list[Recipe]], store: _Store) -> None:
        self.store = store
        self.sources: dict[str, str] = {}
        self._of: dict[tuple[str, BackboneSpec, str], CostSpec] = {}
        self._forward: dict[BackboneSpec, float] = {}
        for recipe in chain.from_iterable(recipes.values()):
            known = store.cost_of(recipe) or recipe.cost
            if known is not None and _kind(recipe) not in self._of:
                self._of[_kind(recipe)] = known
                self.sources[recipe.method] = f"{known.gpu}, {known.source}"
                # a network costs in an evaluation what it costs in a training, whoever made it
                self._forward.setdefault(
                    recipe.backbone, known.gpu_hours_per_epoch / _passes_of_an_epoch(recipe)
                )

    def of_training(self, recipe: Recipe) -> float | None:
        """GPU-hours of a whole training, None where nobody knows them."""
        if not has_training(recipe):
            return 0.0
        known = self._of.get(_kind(recipe))
        return None if known is None else known.gpu_hours_per_epoch * recipe.epochs

    def of_evaluation(self, recipe: Recipe, chosen: Protocol, image_set: str) -> float | None:
        """GPU-hours of an evaluation of the recipe's network. Its passes are counted only if one's time is known."""
        each = self._forward.get(recipe.backbone)
        return None if each is None else each * chosen.forward_passes(_sizes(image_set))


def _passes_of_an_epoch(recipe: Recipe) -> float:
    """Forward passes of a full image: smaller views are parts of one."""
    areas = [policy.size**2 / _SIZE**2 for policy in view_policies(recipe, _SIZE)]
    return _TRAINED * sum(areas) * KNOWN_SETS[recipe.image_set].train


def _jobs_of(
    study: Study, recipes: dict[str, list[Recipe]], costs: _Costs
) -> Iterator[tuple[str, Iterator[OutlinedJob]]]:
    """Every table with the jobs that no table before it has, to be taken in this order."""
    seen: set[tuple[str, ...]] = set()
    for table in study.tables:
        yield (
            table.name,
            chain.from_iterable(_jobs_of_row(r, table, costs, seen) for r in recipes[table.name]),
        )


def _jobs_of_row(
    recipe: Recipe, table: StudyTable, costs: _Costs, seen: set[tuple[str, ...]]
) -> Iterator[OutlinedJob]:
    """The jobs of a recipe that are not ``seen``, to which they are added."""
    name, run = recipe_hash(recipe), costs.store.run_of(recipe)
    if (name,) not in seen:
        seen.add((name,))
        hours = costs.of_training(recipe) if run is None else 0.0
        yield OutlinedJob(name, recipe, hours, run is not None)
    for chosen, where in ((protocol(each), where or recipe.image_set) for each, where in table.measured):
        if (name, chosen.name, where) in seen:
            continue
        seen.add((name, chosen.name, where))
        finished = run is not None and _is_evaluated(run, chosen, where)
        hours = 0.0 if finished else costs.of_evaluation(recipe, chosen, where)
        yield OutlinedJob(name, recipe, hours, finished, chosen, where)


def _is_evaluated(run: Run, chosen: Protocol, image_set: str) -> bool:
    """Whether the run has a record of the protocol on a set of this name; a collapsed one needs none."""
    records, stem = run.folder / "records", chosen.name.replace("/", "--")
    own = image_set == run.source.image_set
    files = [records / f"{stem}.json"] if own else records.glob(f"{stem}--on-{image_set}-*.json")
    return run.is_collapsed() or any(run.record(file) is not None for file in files)
