"""The plan of a study: its runs, and the jobs each of them still needs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinbench.data.folders import Corrupt
from twinbench.data.image_sets import ImageSet
from twinbench.downstream.protocol import Protocol, protocol
from twinbench.foundation.errors import InputError, inside, unknown_name
from twinbench.harness.facts import FACTS
from twinbench.harness.images import ImageChoice, Images
from twinbench.harness.published import encoder_folder, imported_runs
from twinbench.harness.recipes import load_recipe, overlap, read_value
from twinbench.harness.source import ImportedSource
from twinbench.harness.store import Run, open_run
from twinbench.harness.studies import Study, StudyTable
from twinbench.pretraining.batches import steps_in_epoch
from twinbench.pretraining.build import build_method, check_accumulation, resolve
from twinbench.pretraining.engine import check_shares
from twinbench.pretraining.method import method_class
from twinbench.pretraining.recipe import Recipe
from twinbench.reports.study import RowKey

_OF_THE_UNTRAINED = ("backbone", "corrupt_images", "options")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """A protocol, and the images that it measures encoders on."""

    protocol: Protocol
    images: ImageChoice


@dataclass(frozen=True)
class PlannedRun:
    """One training or import for a row of a table, and what its encoder goes through for the table's columns.

    ``variant`` is what the row varies; ``table`` is empty where there is only one.
    """

    run: Run
    trained_on: ImageChoice
    evaluations: tuple[Evaluation, ...]
    variant: str = ""
    table: str = ""


@dataclass(frozen=True)
class Job:
    """One node of the plan: train or import a run, or evaluate its encoder (which needs that).

    ``record`` is the file for the result of an evaluation. No two jobs of a plan share a ``label``, which is how
    progress lines call them.
    """

    run: Run
    trained_on: ImageChoice
    label: str
    evaluation: Evaluation | None = None
    record: Path | None = None

    @property
    def key(self) -> Path:
        """The file or folder that it leaves in the run store, and no other job does."""
        return self.record or self.run.folder

    def is_finished(self) -> bool:
        """Whether the run store already holds its result; a collapsed run is not evaluated."""
        if self.record is None:
            return self.run.is_trained()
        return self.run.is_collapsed() or self.run.record(self.record) is not None


def plan_study(
    study: Study, images: Images, runs_root: Path, overrides: dict[str, Any], ranks: int = 1
) -> list[PlannedRun]:
    """Every run of every table, each checked against its method's contract and the image set before any work.

    Each training is to have so many ``ranks``. Runs that several tables need are the same run in each. Raises
    InputError for whatever a recipe, a protocol name, an override or a checkpoint gets wrong.
    """
    check_overrides(study, overrides)
    planned = []
    for table in study.tables:
        with inside(f"table {table.name}"):
            planned += _plan_table(table, images, runs_root, overrides, ranks)
    return planned


def _plan_table(
    table: StudyTable, images: Images, runs_root: Path, overrides: dict[str, Any], ranks: int
) -> list[PlannedRun]:
    assert table.image_set is not None
    assert table.recipes is not None
    recipes = list(table_recipes(table, overrides))
    check_columns(table)
    corrupt = agreed_on_corrupt_images([recipe for _, recipe in recipes], table.recipes)
    trained_on = ImageChoice.of(table.image_set, table.limit or {}, corrupt)
    evaluations = tuple(
        Evaluation(protocol(name), trained_on.whole(image_set)) for name, image_set in table.measured
    )
    folder = encoder_folder(table, images.data_root)
    imported = imported_runs(folder, images[trained_on], runs_root, table.seeds or 1) if folder else []
    runs = [("", run) for run in imported]
    runs += [(row.variant, _open(recipe, images[trained_on], runs_root)) for row, recipe in recipes]
    planned = [PlannedRun(run, trained_on, evaluations, variant, table.name) for variant, run in runs]
    # images of finished work are not read: a report of it takes seconds
    if not all(job.is_finished() for job in jobs(planned, images)):
        check_evaluations(evaluations, images)
        _say_unmeasured(table, evaluations, images)
        for recipe in _apart_from_seeds(recipe for _, recipe in recipes):
            check_training(recipe, images[trained_on], ranks)
    return planned


def _apart_from_seeds(recipes: Iterable[Recipe]) -> list[Recipe]:
    """Each recipe once, whatever its seeds: a check builds the network, and finds the same for every seed."""
    of_one_seed = [recipe.model_copy(update={"seed": 0}) for recipe in recipes]
    return list({recipe.model_dump_json(): recipe for recipe in of_one_seed}.values())


def check_evaluations(evaluations: Iterable[Evaluation], images: Images) -> None:
    """Read the images that protocols need, so that a bad one ends the command before any work."""
    for evaluation in evaluations:
        evaluation.protocol.check(images[evaluation.images])
        load_splits(images[evaluation.images], (evaluation.protocol,))


def table_recipes(table: StudyTable, overrides: dict[str, Any]) -> Iterator[tuple[RowKey, Recipe]]:
    """Every recipe of the table with the row it stands for, once for each seed."""
    rows = [
        (row, row.seeds or block.seeds or table.seeds or 1)
        for block in table.rows
        for row in block.row_keys()
    ]
    for row, seeds in rows:
        changes = {key: _value(value) for each in row.values.values() for key, value in each.set.items()}
        merged = {**(table.overrides or {}), **changes, **overrides}
        if not method_class(row.method).trains:
            # what changes a training alone would make another run of the same encoder
            merged = {key: value for key, value in merged.items() if key.split(".")[0] in _OF_THE_UNTRAINED}
        recipe = load_recipe(table.recipes or "", row.method, table.image_set or "", merged)
        for seed in range(seeds):
            yield row, recipe.model_copy(update={"seed": seed})


def _value(value: Any) -> Any:
    """A varied value; text such as ``1e-3`` is the number a person means."""
    return read_value(value) if isinstance(value, str) else value


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
    run = _open(recipe, image_set, runs_root)
    check_training(recipe, image_set, ranks)
    return run


def _open(recipe: Recipe, image_set: ImageSet, runs_root: Path) -> Run:
    return open_run(runs_root, resolve(recipe, image_set.image_size, image_set.fingerprint), image_set)


def check_training(recipe: Recipe, image_set: ImageSet, ranks: int = 1) -> None:
    """Raise InputError unless a recipe fits the images, which are read, and the number of ranks."""
    load_training(image_set)
    resolved = resolve(recipe, image_set.image_size, image_set.fingerprint)
    method = build_method(resolved)
    if not method.trains:
        return
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
    if any(chosen.needs == "images" for chosen in protocols):
        image_set.split("val")
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


def check_columns(table: StudyTable) -> None:
    """Raise InputError for a protocol or metric that there is not.

    A study names its protocols with their versions: it has to mean the same on every machine.
    """
    for name in dict.fromkeys(column.protocol for column in table.columns if column.protocol not in FACTS):
        chosen = protocol(name, others=FACTS.names())
        if chosen.name != name:
            raise InputError(
                f"a study names its protocols in full, not {name!r}",
                nearest=chosen.name,
                next_step="write that",
            )
    for column in table.columns:
        is_fact = column.protocol in FACTS
        metrics = FACTS[column.protocol].metrics if is_fact else protocol(column.protocol).metrics
        if column.metric not in metrics:
            raise unknown_name("metric", column.metric, metrics, f"column {column.heading!r}")
        if is_fact and column.image_set:
            raise InputError(
                f"{column.protocol} tells of the training, and is measured on no other images",
                where=f"column {column.heading!r}",
                next_step="leave its image_set out",
            )


def _say_unmeasured(table: StudyTable, evaluations: Sequence[Evaluation], images: Images) -> None:
    """Say which numbers of the table its image sets have none of; raise InputError if they have none at all."""
    found = []
    for (name, image_set), evaluation in zip(table.measured, evaluations, strict=True):
        reasons = evaluation.protocol.unmeasured(images[evaluation.images])
        metrics = dict.fromkeys(column.metric for column in table.columns_of(name, image_set))
        found += [
            (metric, name, images[evaluation.images].name, reasons[metric])
            for metric in metrics
            if metric in reasons
        ]
    for metric, name, where, reason in found:
        _log.warning("%s of %s is not measured on %s: %s", metric, name, where, reason)
    if len(found) == len({(c.protocol, c.image_set, c.metric) for c in table.columns}):
        metric, name, where, reason = found[0]
        raise InputError(
            f"no number of the table can be measured on these images: {metric} of {name} is not, since {reason}",
            where=where,
            next_step="choose another image set, or give the table another metric",
        )


def check_overrides(study: Study, overrides: dict[str, Any]) -> None:
    """Raise InputError for an override of what the study varies, or of an option that only some of its methods have."""
    _check_varied_keys(study, overrides)
    _check_options(study, [key.split(".")[1] for key in overrides if key.startswith("options.")])


def _check_options(study: Study, options: Sequence[str]) -> None:
    """What no method has is left to the check of each recipe, which knows the nearest name."""
    rows = (row.method for table in study.tables for row in table.row_keys())
    methods = [method for method in dict.fromkeys(rows) if method_class(method).trains]
    for option in options:
        having = [method for method in methods if option in method_class(method).Options.model_fields]
        lacking = [method for method in methods if method not in having]
        if having and lacking:
            raise InputError(
                f"{', '.join(lacking)} of this study {'has' if len(lacking) == 1 else 'have'} no option {option!r}",
                where=f"--set options.{option}",
                next_step=f"narrow the study to what has it: --methods {','.join(having)}",
            )


def _check_varied_keys(study: Study, overrides: dict[str, Any]) -> None:
    """Raise InputError if an override has the key of something that the study varies."""
    for table in study.tables:
        for key, varied in ((key, varied) for key in overrides for varied in sorted(table.varied_keys())):
            if overlap(key, varied):
                raise InputError(
                    f"--set {key} would overwrite a key that this study varies",
                    where=f"table {table.name} of {study.name}: {varied}",
                    next_step="leave it out, or write a study of your own with other values",
                )


def jobs(planned: Sequence[PlannedRun], images: Images) -> list[Job]:
    """Every job, each training before its evaluations; what several rows and tables share comes once."""
    found: dict[object, Job] = {}
    labels: set[str] = set()
    for entry in planned:
        for evaluation in (None, *entry.evaluations):
            key = (entry.run.folder, evaluation and (evaluation.protocol.name, evaluation.images))
            if key not in found:
                label = _label(entry, evaluation)
                label += f" [{entry.run.hash}]" if label in labels else ""
                labels.add(label)
                record = record_of(entry.run, evaluation, images) if evaluation else None
                found[key] = Job(entry.run, entry.trained_on, label, evaluation, record)
    return list(found.values())


def jobs_of_tables(planned: Sequence[PlannedRun], images: Images) -> dict[str, list[Job]]:
    """The jobs that each table needs, by its name; one that several need is in each."""
    known = {job.key: job for job in jobs(planned, images)}
    entries: dict[str, list[PlannedRun]] = {}
    for entry in planned:
        entries.setdefault(entry.table, []).append(entry)
    return {name: [known[job.key] for job in jobs(own, images)] for name, own in entries.items()}


def record_of(run: Run, evaluation: Evaluation, images: Images) -> Path:
    """Where the result of an evaluation of a run's encoder is, or will be."""
    return run.record_file(evaluation.protocol.name, images[evaluation.images])


def _label(entry: PlannedRun, evaluation: Evaluation | None) -> str:
    source = entry.run.source
    variant = f" {entry.variant}" if entry.variant else ""
    name = f"{source.method}{variant} (seed {source.seed})"
    begin = "pretrain"
    if isinstance(source, ImportedSource):
        name, begin = f"{name} from {source.name}", "import"
    if evaluation is None:
        return f"{begin} {name}"
    where = "" if evaluation.images == entry.trained_on else f" on {evaluation.images.name}"
    return f"{evaluation.protocol.name}{where} {name}"
