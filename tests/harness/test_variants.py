"""What rows of one method are called: short, unique, and in full below the table."""

from itertools import permutations

import pytest

from twinbench.harness.recipes import load_recipe, recipe_hash
from twinbench.harness.store import Run
from twinbench.harness.variants import told_apart
from twinbench.pretraining.build import resolve


@pytest.fixture
def run(tmp_path):
    """A run that nobody trained."""

    def make(folder="digit-scenes", method="barlow_twins", seed=0, **overrides):
        recipe = resolve(load_recipe(folder, method, "digit-scenes", overrides, seed), 32, "print")
        return Run(tmp_path / recipe_hash(recipe), recipe, recipe_hash(recipe))

    return make


def listed(note):
    """The keys and values of each name in a note."""
    assert note.startswith("Variants in full: ")
    assert note.endswith(".")
    parts = note.removeprefix("Variants in full: ").removesuffix(".").split("; ")
    return {name + ")": text for name, text in (part.split("): ", 1) for part in parts)}


def test_few_keys_are_named_whole(run):
    one, other = run(), run(**{"options.lambd": 0.5, "epochs": 3, "views.flip": 0.25})
    found = told_apart([one, other])
    assert found.names[other.hash] == "epochs=3, options.lambd=0.5, views.flip=0.25"
    assert found.names[one.hash] == "epochs=12, options.lambd=0.00308, views.flip=0.5"
    assert found.note == ""


def test_a_run_that_differs_from_none_of_its_method_has_no_name(run):
    one, seed, other = run(), run(seed=1), run(method="byol", epochs=3)
    assert set(told_apart([one, seed, other]).names.values()) == {""}


def test_very_different_recipes_have_short_names_and_stand_below_in_full(run):
    runs = [run(), run("imagenet"), run("cifar10")]
    found = told_apart(runs)
    names = [found.names[each.hash] for each in runs]
    assert len(set(names)) == 3
    whole = listed(found.note)
    assert list(whole) == [f"Barlow Twins ({name})" for name in names]
    for each, name, text in zip(runs, names, whole.values(), strict=True):
        assert len(name) < 120
        assert name.count("=") == 3
        assert text.count("=") == 3 + int(name.split(" and ")[1].removesuffix(" more"))
        recipe = each.source
        assert f"optimizer.base_lr={recipe.optimizer.base_lr}" in text
        assert f"options.projector={recipe.options['projector']}" in text
        assert f"backbone.name={recipe.backbone.name}" in text
        sizes = [view["brightness"] for view in recipe.views]
        assert f"views.brightness={sizes[0]}" in text
        assert len(set(sizes)) == 1


def test_names_do_not_depend_on_the_order_of_the_runs(run):
    runs = [run(), run("imagenet"), run("cifar10"), run(seed=1), run("imagenet", epochs=7)]
    names = told_apart(runs).names
    assert names[runs[0].hash] == names[runs[3].hash]
    assert len(set(names.values())) == 4
    for turned in permutations(runs):
        assert told_apart(turned).names == names


def test_what_few_runs_share_is_named_first(run):
    """Each of twelve runs differs from the others in one key: that one is in its name."""
    changes = {
        "epochs": 3, "batch_size": 64, "accumulate": 2, "precision": "fp32", "backbone.width": 8,
        "optimizer.base_lr": 0.5, "optimizer.momentum": 0.5, "schedule.final_factor": 0.5, "options.lambd": 0.5,
        "options.loss_scale": 0.5, "views.blur": 0.5, "views.flip": 0.25,
    }  # fmt: skip
    runs = {key: run(**{key: value}) for key, value in changes.items()}
    found = told_apart(list(runs.values()))
    assert len(set(found.names.values())) == len(runs)
    for key, each in runs.items():
        assert f"{key}={changes[key]}" in found.names[each.hash]


def test_values_that_are_cut_to_the_same_are_numbered(run):
    long = [64] * 12
    runs = [run(**{"options.projector": [*long, last]}) for last in (1, 2, 3)]
    found = told_apart(runs)
    cut = "options.projector=[64, 64, 64, 64, 64, 64…"
    assert sorted(found.names.values()) == [f"{cut} ({i})" for i in (1, 2, 3)]
    for each in runs:
        assert f"options.projector={each.source.options['projector']}" in found.note
    assert told_apart(runs[::-1]).names == found.names


def test_recipes_that_differ_in_the_number_of_equal_views_are_told_apart(run):
    one = run()
    view = one.source.views[0]
    other = one.source.model_copy(update={"views": [view] * 4})
    found = told_apart([one, Run(one.folder, other, recipe_hash(other))])
    assert list(found.names.values()) == ["views=2", "views=4"]


def test_views_that_differ_among_themselves_have_a_value_each(run):
    one = run()
    first, second = one.source.views
    other = one.source.model_copy(update={"views": [first, {**second, "solarize": 0.2}]})
    found = told_apart([one, Run(one.folder, other, recipe_hash(other))])
    assert list(found.names.values()) == ["views.solarize=0.0", "views.solarize=[0.0, 0.2]"]
