"""Every recipe and study that ships can be used, and the hash covers what changes the numbers."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from data.image_sets import load_image_set
from downstream.protocol import protocol
from harness.recipes import load_recipe, parse_overrides, recipe_hash, recipe_names
from harness.studies import load_study, study_names
from pretraining.build import build_method, resolve
from pretraining.method import method_names
from pretraining.recipe import Recipe

SIZE = 32
SHOWN = Path(__file__).parents[2] / "docs" / "results"


def resolved(method: str = "barlow_twins", **overrides) -> Recipe:
    return resolve(load_recipe("digit-scenes", method, "digit-scenes", overrides), SIZE, "print")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_builds_its_method(name):
    folder, method = name.split("/")
    recipe = resolve(load_recipe(folder, method, "digit-scenes", {}), SIZE, "print")
    assert recipe.method == method
    assert build_method(recipe).backbone.feature_dim > 0


@pytest.mark.parametrize("name", study_names())
def test_every_study_names_recipes_methods_and_protocols_that_exist(name):
    study = load_study(name)
    assert set(study.methods) <= set(method_names())
    for chosen in study.protocols:
        assert protocol(chosen).name == chosen, "a study names the full version"
    for method in study.methods:
        load_recipe(study.recipes, method, study.image_set, {})


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 99},
        {"options.lambd": 0.123},
        {"optimizer.base_lr": 0.123},
        {"backbone.width": 8},
        {"views.grayscale": 0.9},
        {"precision": "fp32"},
        {"accumulate": 2},
        {"corrupt_images": "skip"},
        {"schedule.warmup_start": 0.1},
    ],
)
def test_the_hash_changes_with_everything_that_changes_the_numbers(change):
    assert recipe_hash(resolved(**change)) != recipe_hash(resolved())


def test_the_hash_covers_seed_and_image_set_but_no_path():
    base = resolved()
    assert recipe_hash(base.model_copy(update={"seed": 1})) != recipe_hash(base)
    assert recipe_hash(base.model_copy(update={"image_set_fingerprint": "other"})) != recipe_hash(base)
    here, there = (base.model_copy(update={"image_set": f"folder:{path}"}) for path in ("/here", "/there"))
    assert recipe_hash(here) == recipe_hash(there)


def test_a_default_written_out_does_not_change_the_hash():
    written = resolved(**{"options.loss_scale": 1.0})
    assert recipe_hash(written) == recipe_hash(resolved())


def test_the_shown_results_belong_to_the_recipes_as_they_are_now():
    """Hashes are stable: what the README shows was made by these very recipes."""
    records = pd.read_csv(SHOWN / "quick" / "records.csv")
    image_set = load_image_set("digit-scenes")
    for method, hashes in records.groupby("method").recipe_hash.unique().items():
        recipe = load_recipe("digit-scenes", str(method), image_set.name, {})
        assert list(hashes) == [recipe_hash(resolve(recipe, SIZE, image_set.fingerprint))]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("0.5", 0.5), ("7", 7), ("[1, 2]", [1, 2]), ("lars", "lars"), ("true", True)],
)
def test_set_reads_values_as_a_person_means_them(text, value):
    assert parse_overrides([f"key={text}"]) == {"key": value}


def test_the_fingerprint_of_the_embedded_set_is_in_the_recipe():
    image_set = load_image_set("digit-scenes")
    recipe = resolve(load_recipe("digit-scenes", "simclr", image_set.name, {}), SIZE, image_set.fingerprint)
    assert recipe.image_set_fingerprint == image_set.fingerprint
