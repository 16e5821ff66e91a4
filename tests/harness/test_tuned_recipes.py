"""Recipes that say they were tuned: when that still holds, what records say of it, and the logs that ship."""

import csv
import json

import pytest

from twinbench.data.catalogue import load_image_set
from twinbench.downstream.protocol import protocol
from twinbench.harness.images import ImageChoice, Images
from twinbench.harness.plan import Evaluation, PlannedRun, table_recipes
from twinbench.harness.recipes import (
    load_recipe,
    read_yaml,
    recipe_folder,
    recipe_folder_names,
    recipe_hash,
    recipe_names,
)
from twinbench.harness.records import collect
from twinbench.harness.search import LOG_COLUMNS, load_search, settings
from twinbench.harness.source import ImportedSource
from twinbench.harness.store import Run, read_run
from twinbench.harness.studies import load_study
from twinbench.harness.tuning import PROTOCOLS
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
        ("optimizer.base_lr", 0.1, True),
        ("optimizer", {"base_lr": 0.1}, True),
        ("options", {"temperature": 0.3}, True),
        ("epochs", 1, True),
        ("accumulate", 1, True),  # from here on, defaults are spelled out
        ("views.jitter", 0.8, True),
        ("options.loss_scale", 1.0, True),
        ("precision", "fp32", True),
        ("optimizer.base_lr", 0.2, False),
        ("optimizer", {"base_lr": 0.2}, False),
        ("options.temperature", 0.1, False),
        ("options", {}, False),
        ("views.hue", 0.2, False),
        ("views", {"blur": 0.5}, False),
        ("epochs", 5, False),
        ("batch_size", 64, False),
        ("backbone.width", 8, False),
        ("precision", "bf16", False),
        ("optimizer.momentum", 0.5, False),
        ("options.projector", [64, 32], False),
    ],
)
def test_a_recipe_counts_as_tuned_until_an_override_changes_what_it_computes(tuned, key, value, still):
    whole = TuningSpec(trials=12, keys=("optimizer.base_lr", "options.temperature", "views.hue"))
    assert tuned().tuning == whole
    changed = tuned(**{key: value})
    hashes = {recipe_hash(resolve(recipe, 32, "print")) for recipe in (tuned(), changed)}
    assert (len(hashes) == 1) == still
    assert changed.tuning == (whole if still else None)
    assert tuned(**{key: value, "optimizer.base_lr": 0.3}).tuning is None


def test_seed_and_images_leave_a_recipe_tuned(tuned, tmp_path):
    recipe = load_recipe(str(tmp_path), "simclr", "folder:x", {"epochs": 1}, seed=3)
    assert recipe.tuning == tuned().tuning


def test_an_override_may_mend_a_recipe_which_is_then_another(tmp_path):
    (tmp_path / "simclr.yaml").write_text(TUNED.replace("epochs: 1", "epochs: -1"))
    recipe = load_recipe(str(tmp_path), "simclr", "digit-scenes", {"epochs": 1})
    assert (recipe.epochs, recipe.tuning) == (1, None)


@pytest.mark.parametrize(
    ("name", "of_the_recipe", "is_tuned"), [("fig2", "128", True), ("fig5", "0.00308", False)]
)
def test_of_a_study_that_varies_a_key_only_the_recipe_itself_is_tuned(name, of_the_recipe, is_tuned):
    """Figure 5 has the recipe's own lambda too, but with a longer warm-up than the trials had."""
    (table,) = load_study(name).tables
    tunings = {(row.method, row.variant): recipe.tuning for row, recipe in table_recipes(table, {})}
    assert {method for method, variant in tunings if variant == of_the_recipe} == {m for m, _ in tunings}
    for (method, variant), tuning in tunings.items():
        own = load_recipe(table.recipes, method, table.image_set, {}).tuning
        assert own is not None
        assert tuning == (own if is_tuned and variant == of_the_recipe else None)


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
    images, choice = Images(None), ImageChoice("digit-scenes")
    study = load_study("quick")
    evaluations = tuple(Evaluation(protocol(name), choice) for name, _ in study.tables[0].measured)

    def trials(source: Recipe | ImportedSource) -> int | None:
        run = Run(tmp_path / "run", source, "hash")
        records, _ = collect(study, [PlannedRun(run, choice, evaluations, "", study.tables[0].name)], images)
        (number,) = {record.tuning_trials for record in records}
        return number

    assert trials(resolve(tuned(), 32, "print")) == 12
    assert trials(resolve(tuned(**{"views.hue": 0.2}), 32, "print")) == 0
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
    assert set(rows[0]) == {*LOG_COLUMNS, *space, *PROTOCOLS}
    chosen = settings(space, {dimension: json.loads(rows[0][dimension]) for dimension in space})
    document = read_yaml(recipe_folder(folder) / f"{method}.yaml")
    assert {key: _at(document, key) for key in tuning.keys} == chosen


@pytest.mark.parametrize("method", sorted(load_search("digit-scenes")))
def test_the_trials_of_a_log_are_those_of_the_recipe_that_ships(method):
    images, space = load_image_set("val-of:digit-scenes"), load_search("digit-scenes")[method]
    log = recipe_folder("digit-scenes") / "tuning" / f"{method}.csv"
    for row in csv.DictReader(log.read_text().splitlines()):
        values = settings(space, {dimension: json.loads(row[dimension]) for dimension in space})
        recipe = load_recipe("digit-scenes", method, images.name, values, int(row["seed"]))
        assert recipe_hash(resolve(recipe, images.image_size, images.fingerprint)) == row["recipe_hash"]


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
