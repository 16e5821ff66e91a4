"""Recipes that say they were tuned: when that still holds, what records say of it, and the logs that ship."""

import csv
import json

import pytest

from twinbench.data.catalogue import load_image_set
from twinbench.downstream.protocol import protocol
from twinbench.harness.plan import PlannedRun
from twinbench.harness.recipes import (
    load_recipe,
    read_yaml,
    recipe_folder,
    recipe_folder_names,
    recipe_hash,
    recipe_names,
)
from twinbench.harness.records import collect
from twinbench.harness.search import load_search, settings
from twinbench.harness.source import ImportedSource
from twinbench.harness.store import Run, read_run
from twinbench.harness.studies import load_study
from twinbench.pretraining.build import resolve
from twinbench.pretraining.recipe import Recipe, TuningSpec

TUNED = """
method: simclr
epochs: 1
optimizer: {base_lr: 0.1}
options: {temperature: 0.3}
tuning: {trials: 12, keys: [optimizer.base_lr, options.temperature, views.hue]}
"""


@pytest.fixture
def tuned(tmp_path):
    """Load a recipe that twelve trials chose, with overrides."""
    (tmp_path / "simclr.yaml").write_text(TUNED)

    def load(**overrides) -> Recipe:
        return load_recipe(str(tmp_path), "simclr", "digit-scenes", overrides)

    return load


@pytest.mark.parametrize(
    ("key", "value", "still"),
    [
        ("epochs", 5, True),
        ("optimizer.momentum", 0.5, True),
        ("options.projector", [64, 32], True),
        ("views.blur", 0.5, True),
        ("optimizer.base_lr", 0.2, False),
        ("optimizer", {"base_lr": 0.2}, False),
        ("options.temperature", 0.1, False),
        ("options", {}, False),
        ("views.hue", 0.1, False),
        ("views", {"blur": 0.5}, False),
    ],
)
def test_a_recipe_counts_as_tuned_until_a_key_that_was_tuned_is_overridden(tuned, key, value, still):
    whole = TuningSpec(trials=12, keys=("optimizer.base_lr", "options.temperature", "views.hue"))
    assert tuned().tuning == whole
    assert tuned(**{key: value}).tuning == (whole if still else None)
    assert tuned(precision="bf16", **{key: value}).tuning == (whole if still else None)


def test_tuning_is_in_the_run_and_not_in_its_hash(tuned, tmp_path):
    recipe = resolve(tuned(), 32, "print")
    more = recipe.model_copy(update={"tuning": TuningSpec(trials=99, keys=("epochs",))})
    assert recipe.tuning is not None
    assert (
        len({recipe_hash(recipe.model_copy(update={"tuning": None})), *map(recipe_hash, (recipe, more))}) == 1
    )
    Run(tmp_path / "run", recipe, recipe_hash(recipe)).begin()
    stored = read_run(tmp_path / "run")
    assert (stored.source.tuning, stored.hash) == (recipe.tuning, recipe_hash(recipe))


def test_a_record_says_how_many_trials_chose_the_recipe(tuned, tmp_path):
    images, knn = load_image_set("digit-scenes"), protocol("knn/cosine-v1")

    def trials(source: Recipe | ImportedSource) -> int | None:
        planned = PlannedRun(Run(tmp_path / "run", source, "hash"), "", (knn,), images)
        records, _ = collect(load_study("quick"), [planned])
        (number,) = {record.tuning_trials for record in records}
        return number

    assert trials(resolve(tuned(), 32, "print")) == 12
    assert trials(resolve(tuned(**{"views.hue": 0.1}), 32, "print")) == 0
    untrained = resolve(load_recipe("digit-scenes", "random_init", "digit-scenes", {}), 32, "print")
    assert trials(untrained) is None
    imported = ImportedSource(
        name="theirs",
        method="simclr",
        file="theirs.pth",
        format="plain",
        sha256="0",
        backbone=untrained.backbone,
        image_size=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        deviation="none",
        note="",
        image_set="digit-scenes",
        image_set_fingerprint="print",
        seed=0,
    )
    assert trials(imported) is None


@pytest.mark.parametrize("name", recipe_names())
def test_a_tuned_recipe_that_ships_is_the_best_row_of_its_log(name):
    folder, method = name.split("/")
    tuning = load_recipe(folder, method, "digit-scenes", {}).tuning
    log = recipe_folder(folder) / "tuning" / f"{method}.csv"
    assert log.is_file() == (tuning is not None), "a log without a key 'tuning', or a key without a log"
    if tuning is None:
        return
    rows = list(csv.DictReader(log.read_text().splitlines()))
    scores = [float(row["score"] or -1) for row in rows]
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, len(rows) + 1)]
    assert scores == sorted(scores, reverse=True)
    assert sorted(int(row["trial"]) for row in rows) == list(range(tuning.trials))
    space = load_search(folder)[method]
    chosen = settings(space, {dimension: json.loads(rows[0][dimension]) for dimension in space})
    document = read_yaml(recipe_folder(folder) / f"{method}.yaml")
    assert {key: _at(document, key) for key in tuning.keys} == chosen


def _at(document, dotted):
    for part in dotted.split("."):
        document = document[part]
    return document


@pytest.mark.parametrize("folder", recipe_folder_names())
def test_every_log_belongs_to_a_recipe_and_the_methods_of_a_folder_have_equally_many_trials(folder):
    methods = [name.removeprefix(f"{folder}/") for name in recipe_names() if name.startswith(f"{folder}/")]
    logs = recipe_folder(folder) / "tuning"
    found = {file.name for file in logs.iterdir()} if logs.is_dir() else set()
    assert found <= {f"{method}.csv" for method in methods}
    tunings = [load_recipe(folder, method, "digit-scenes", {}).tuning for method in methods]
    assert len({tuning.trials for tuning in tunings if tuning}) <= 1
