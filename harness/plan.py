"""The plan of a study: its runs, and the jobs each of them still needs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinbench.data.folders import Corrupt
from twinbench.data.image_sets import ImageSet
from twinbench.downstream.protocol import Protocol, protocol
from twinbench.foundation.errors import InputError, unknown_name
from twinbench.harness.published import imported_runs
from twinbench.harness.recipes import load_recipe, read_value
from twinbench.harness.source import ImportedSource
from twinbench.harness.store import Run, open_run
from twinbench.harness.studies import Study
from twinbench.pretraining.batches import steps_in_epoch
from twinbench.pretraining.build import build_method, check_accumulation, resolve
from twinbench.pretraining.engine import check_shares
from twinbench.pretraining.recipe import Recipe

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyImages:
    """The images that a study trains on, and those that it measures encoders on: the same unless it says otherwise."""

    train: ImageSet
    measure: ImageSet


@dataclass(frozen=True)
class PlannedRun:
    """One training of a study, the protocols its encoder goes through, and the images that they measure it on.

    ``variant`` is the ablated value.
    """

    run: Run
    variant: str
    protocols: tuple[Protocol, ...]
    measured_on: ImageSet


@dataclass(frozen=True)
class Job:
    """One node of the plan: train or import a run, or evaluate its encoder under a protocol (which needs that).

    ``record`` is the file for the result of an evaluation.
    """

    run: Run
    protocol: Protocol | None = None
    variant: str = ""
    record: Path | None = None

    @property
    def label(self) -> str:
        """How the job is called in progress lines; no two jobs of a plan share it."""
        variant = f" {self.variant}" if self.variant else ""
        source = self.run.source
        name = f"{source.method}{variant} (seed {source.seed})"
        begin = "pretrain"
        if isinstance(source, ImportedSource):
            name, begin = f"{name} from {source.name}", "import"
        return f"{begin} {name}" if self.protocol is None else f"{self.protocol.name} {name}"

    def is_finished(self) -> bool:
        """Whether the run store already holds its result; a collapsed run is not evaluated."""
        if self.record is None:
            return self.run.is_trained()
        return self.run.is_collapsed() or self.run.record(self.record) is not None


def plan_study(
    study: Study,
    images: StudyImages,
    runs_root: Path,
    overrides: dict[str, Any],
    encoders: Path | None = None,
) -> list[PlannedRun]:
    """Every run of the study, each checked against its method's contract and the image set before any work.

    ``encoders`` is the folder of checkpoints to import. Raises InputError for whatever a recipe, a protocol name, an
    override or a checkpoint gets wrong.
    """
    protocols = tuple(_protocol_in_full(name) for name in study.protocols)
    _check_metrics(study, protocols)
    _check_ablated_key(study, overrides)
    for chosen in protocols:
        chosen.check(images.measure)
    if study.methods:
        load_training(images.train)
    load_splits(images.measure, protocols)
    _say_unmeasured(study, protocols, images.measure)
    imported = imported_runs(encoders, images.measure, runs_root, study.seeds) if encoders else []
    trained = [(v, plan_run(recipe, images.train, runs_root)) for v, recipe in _recipes(study, overrides)]
    return [
        PlannedRun(run, variant, protocols, images.measure)
        for variant, run in [*(("", run) for run in imported), *trained]
    ]


def _protocol_in_full(name: str) -> Protocol:
    """The protocol of a study, which must give the version: a study has to mean the same on every machine."""
    chosen = protocol(name)
    if chosen.name != name:
        raise InputError(
            f"a study names its protocols in full, not {name!r}", nearest=chosen.name, next_step="write that"
        )
    return chosen


def _recipes(study: Study, overrides: dict[str, Any]) -> Iterator[tuple[str, Recipe]]:
    """Every recipe of the study with the variant it stands for."""
    for variant, changes in _variants(study):
        for method in study.methods:
            for seed in range(study.seeds):
                merged = {**study.overrides, **changes, **overrides}
                yield variant, load_recipe(study.recipes, method, study.image_set, merged, seed)


def corrupt_images(study: Study, overrides: dict[str, Any]) -> Corrupt:
    """What the study's recipes say about corrupt images; raises InputError unless they agree."""
    return agreed_on_corrupt_images([recipe for _, recipe in _recipes(study, overrides)], study.recipes)


def agreed_on_corrupt_images(recipes: Iterable[Recipe], folder: str) -> Corrupt:
    """What recipes for the same images say about corrupt ones; raises InputError unless they agree."""
    modes = {recipe.corrupt_images for recipe in recipes}
    if len(modes) > 1:
        raise InputError(
            "the recipes differ in corrupt_images, but the methods see the same images",
            where=f"recipes/{folder}",
            next_step="set it for all of them",
            option="corrupt_images=skip",
        )
    return modes.pop() if modes else "refuse"


def plan_run(recipe: Recipe, image_set: ImageSet, runs_root: Path, ranks: int = 1) -> Run:
    """Resolve and check one recipe for a number of ranks, and open its run."""
    resolved = resolve(recipe, image_set.image_size, image_set.fingerprint)
    method = build_method(resolved)
    if method.trains:
        train = image_set.split("train")
        steps_in_epoch(resolved, len(train), image_set.name)
        method.check(resolved.batch_size, len(resolved.views or ()), ranks)
        check_shares(resolved.batch_size, resolved.accumulate, ranks)
        check_accumulation(resolved, method)
        if method.needs_labels and bool((train.labels < 0).any()):
            raise InputError(
                f"{resolved.method} needs labels, but training images have none",
                where=image_set.name,
                next_step="sort them into train/<class>/ folders, or choose another method",
            )
    return open_run(runs_root, resolved, image_set)


def load_training(image_set: ImageSet) -> None:
    """Read the images that a training needs, so that a bad one ends the command before any work."""
    image_set.split("train")
    image_set.split("val")


def load_splits(image_set: ImageSet, protocols: tuple[Protocol, ...]) -> None:
    """Read the images that protocols need, so that a bad one ends the command before any work."""
    if any(chosen.needs == "labels" for chosen in protocols):
        load_training(image_set)
        image_set.split("test")
        _require_labels(image_set)
    if any(chosen.needs == "detection" for chosen in protocols):
        image_set.detection("train")
        image_set.detection("test")


def _require_labels(image_set: ImageSet) -> None:
    if len(image_set.classes) == 1:
        raise InputError(
            f"there is one class only, {image_set.classes[0]!r}: every accuracy would be 100 whatever the features are",
            where=image_set.name,
            next_step="sort the images into the folders of two classes or more",
        )
    for name in ("train", "test"):
        if not bool((image_set.split(name).labels >= 0).any()):
            raise InputError(
                f"the split {name!r} has no labelled image",
                where=image_set.name,
                next_step="sort its images into one folder per class, or leave out the protocols that need labels",
            )


def _check_metrics(study: Study, protocols: tuple[Protocol, ...]) -> None:
    metrics = {chosen.name: chosen.metrics for chosen in protocols}
    for column in study.columns():
        if column.metric not in metrics[column.protocol]:
            raise unknown_name(
                "metric", column.metric, metrics[column.protocol], f"the tables of {study.name}"
            )


def _say_unmeasured(study: Study, protocols: tuple[Protocol, ...], image_set: ImageSet) -> None:
    """Say which numbers of the study this image set has none of; raise InputError if it has none at all."""
    reasons = {chosen.name: chosen.unmeasured(image_set) for chosen in protocols}
    columns = [(column.protocol, column.metric) for column in study.columns()]
    unmeasured = [(name, metric) for name, metric in dict.fromkeys(columns) if metric in reasons[name]]
    for name, metric in unmeasured:
        _log.warning(
            "%s of %s is not measured on %s: %s", metric, name, image_set.name, reasons[name][metric]
        )
    if columns and len(unmeasured) == len(set(columns)):
        name, metric = unmeasured[0]
        raise InputError(
            f"no number of the study {study.name} can be measured on these images: "
            f"{metric} of {name} is not, since {reasons[name][metric]}",
            where=image_set.name,
            next_step="choose another image set, or give the tables another metric",
        )


def _check_ablated_key(study: Study, overrides: dict[str, Any]) -> None:
    if study.ablation is None:
        return
    varied = study.ablation.key
    for key in overrides:
        if f"{varied}.".startswith(f"{key}.") or f"{key}.".startswith(f"{varied}."):
            raise InputError(
                f"--set {key} would overwrite the key that this study varies",
                where=f"ablation.key of {study.name}: {varied}",
                next_step="leave it out, or write a study of your own with other values",
            )


def jobs(planned: list[PlannedRun]) -> Iterator[Job]:
    """Every job, each training before its evaluations; a run that several variants share comes once."""
    seen = set()
    for entry in planned:
        for job in (Job(entry.run, None, entry.variant), *_evaluations(entry)):
            key = (entry.run.folder, job.protocol.name if job.protocol else None)
            if key not in seen:
                seen.add(key)
                yield job


def _evaluations(entry: PlannedRun) -> Iterator[Job]:
    for chosen in entry.protocols:
        record = entry.run.record_file(chosen.name, entry.measured_on)
        yield Job(entry.run, chosen, entry.variant, record)


def _variants(study: Study) -> list[tuple[str, dict[str, Any]]]:
    ablation = study.ablation
    if ablation is None:
        return [("", {})]
    return [(value, {ablation.key: read_value(value)}) for value in ablation.values]
