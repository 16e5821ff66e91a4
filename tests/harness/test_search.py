"""The search spaces that ship, the points tried in them, and files with mistakes."""

import math
from pathlib import Path

import numpy as np
import pytest

from twinbench.foundation.errors import InputError
from twinbench.harness.recipes import load_recipe, recipe_names
from twinbench.harness.search import LOG_COLUMNS, Dimension, load_search, points, settings
from twinbench.harness.tuning import PROTOCOLS
from twinbench.pretraining.build import build_method, resolve

SHIPPED = ("digit-scenes", "cifar10-cpu")
TUNED = ["barlow_twins", "byol", "moco_v2", "simclr", "simsiam", "supervised", "swav"]

TAKEN = (*LOG_COLUMNS, *PROTOCOLS)

SEARCH = """
search:
  common:
    base_lr: {log: [0.001, 0.1], set: optimizer.base_lr}
  methods:
    simclr:
      head: {choice: [64, 128], set: {options.projector: [x, x/2]}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "simclr.yaml").write_text("method: simclr\nepochs: 1\noptimizer: {base_lr: 0.1}\n")
    (tmp_path / "search.yaml").write_text(SEARCH)
    return tmp_path


@pytest.mark.parametrize("name", SHIPPED)
def test_every_method_that_trains_has_about_as_many_dimensions(name):
    spaces = load_search(name)
    assert sorted(spaces) == TUNED
    counts = [len(space) for space in spaces.values()]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("method", TUNED)
def test_every_trial_of_a_shipped_space_is_a_sound_recipe_and_sets_what_it_says(name, method):
    space = load_search(name)[method]
    for values in points(space, method, seed=0, trials=16):
        changes = settings(space, values)
        recipe = resolve(load_recipe(name, method, "digit-scenes", changes), 32, "print")
        build_method(recipe).check(recipe.batch_size, len(recipe.views))
        assert recipe.optimizer.base_lr == values["base_lr"]
        assert all(view["crop_scale"] == (values["smallest_crop"], 1.0) for view in recipe.views)
        assert all(view["contrast"] == values["colour"] for view in recipe.views)
        for key, value in changes.items():
            part, _, rest = key.partition(".")
            if part == "options":
                assert recipe.options[rest] == value


def test_a_search_file_is_no_recipe():
    assert not [name for name in recipe_names() if name.endswith("/search")]


@pytest.mark.parametrize("method", TUNED)
def test_values_lie_in_their_ranges_and_reach_through_them(method):
    space = load_search("digit-scenes")[method]
    trials = points(space, method, seed=3, trials=64)
    for name, dimension in space.items():
        drawn = [values[name] for values in trials]
        if dimension.choice is not None:
            assert set(drawn) == set(dimension.choice)
            continue
        low, high = dimension.log or dimension.linear
        assert low <= min(drawn) <= max(drawn) <= high
        scale = math.log if dimension.log else float
        places = (np.array([scale(v) for v in drawn]) - scale(low)) / (scale(high) - scale(low))
        # of 64 points of a Sobol sequence, 8 lie in each eighth of every dimension, but for the rounding
        assert np.all(np.abs(np.histogram(places, bins=8, range=(0, 1))[0] - 8) <= 1)


def test_points_are_a_function_of_seed_method_and_index():
    space = load_search("digit-scenes")["simclr"]
    twelve = points(space, "simclr", seed=0, trials=12)
    assert points(space, "simclr", seed=0, trials=16)[:12] == twelve
    assert points(space, "simclr", seed=0, trials=1) == twelve[:1]
    assert points(space, "simclr", seed=1, trials=12) != twelve
    assert points(space, "byol", seed=0, trials=12) != twelve
    assert len({tuple(values.values()) for values in twelve}) == 12


def test_a_value_has_three_digits_and_is_the_one_that_is_used():
    rate = Dimension(log=(0.001, 0.1), set="optimizer.base_lr")
    assert [rate.at(place) for place in (0.0, 0.5, 1.0)] == [0.001, 0.01, 0.1]
    assert rate.at(1 / 3) == 0.00464  # 10 ** (-3 + 2 / 3) = 0.0046416
    assert rate.settings(0.00464) == {"optimizer.base_lr": 0.00464}
    tau = Dimension(log=(0.001, 0.1), set={"options.tau_base": "1-x"})
    assert tau.settings(0.00464) == {"options.tau_base": 0.99536}
    head = Dimension(choice=(256, 512), set={"options.projector": ["x", 128], "views.hue": "x/4"})
    assert head.settings(512) == {"options.projector": [512, 128], "views.hue": 128}
    assert [head.at(place) for place in (0.0, 0.49, 0.5, 0.999)] == [256, 256, 512, 512]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("log:", "logg:", "unknown key 'search.common.base_lr.logg'"),
        ("search:", "serch:", "unknown key 'serch'"),
        ("optimizer.base_lr", "optimizer.base_rl", "'optimizer.base_rl' is no recipe key to search"),
        ("options.projector", "options.lambd", "'options.lambd' is no recipe key to search"),
        ("optimizer.base_lr", "epochs", "'epochs' is no recipe key to search"),
        ("optimizer.base_lr", "batch_size", "'batch_size' is no recipe key to search"),
        ("optimizer.base_lr", "accumulate", "'accumulate' is no recipe key to search"),
        ("optimizer.base_lr", "precision", "'precision' is no recipe key to search"),
        ("optimizer.base_lr", "corrupt_images", "'corrupt_images' is no recipe key to search"),
        ("optimizer.base_lr", "backbone.width", "'backbone.width' is no recipe key to search"),
        ("optimizer.base_lr", "views.size", "'views.size' is no recipe key to search"),
        ("optimizer.base_lr", "optimizer", "'optimizer' is no recipe key to search"),
        ("optimizer.base_lr", "seed", "'seed' is no recipe key to search"),
        *(("base_lr:", f"{name}:", f"no dimension can be called '{name}'") for name in TAKEN),
        ("optimizer.base_lr", "options.projector", "two dimensions set 'options.projector'"),
        ("    simclr:", "    simclear:", "unknown method 'simclear'"),
        ("[0.001, 0.1]", "[0.1, 0.001]", "the lower end comes first"),
        ("[0.001, 0.1]", "[0, 0.1]", "both ends of a logarithmic scale are positive"),
        ("log: [0.001, 0.1]", "log: [0.001, 0.1], linear: [0, 1]", "give one of log, linear and choice"),
        ("[64, 128]", "[64]", "a choice has two values or more"),
        ("x/2", "x/3", "'x/3' is none of x, 1-x, x/2, x/4"),
    ],
)
def test_a_file_with_a_mistake_is_refused_by_its_name(folder, old, new, message):
    load_search(str(folder))
    assert old in SEARCH
    (folder / "search.yaml").write_text(SEARCH.replace(old, new))
    with pytest.raises(InputError) as caught:
        load_search(str(folder))
    assert message in str(caught.value)
    assert str(folder / "search.yaml") in str(caught.value)


def test_a_method_may_give_a_common_dimension_another_range(folder):
    before = load_search(str(folder))["simclr"]
    own = "    simclr:\n      base_lr: {log: [1, 100], set: optimizer.base_lr}"
    (folder / "search.yaml").write_text(SEARCH.replace("    simclr:", own))
    after = load_search(str(folder))["simclr"]
    assert list(after) == list(before) == ["base_lr", "head"]
    for new, old in zip(points(after, "simclr", 0, 8), points(before, "simclr", 0, 8), strict=True):
        # the same place of the sequence, a thousand times as high
        assert new["base_lr"] == pytest.approx(1000 * old["base_lr"], rel=0.01)
        assert new["head"] == old["head"]


def test_a_wrong_key_is_refused_with_the_nearest(folder):
    (folder / "search.yaml").write_text(SEARCH.replace("optimizer.base_lr", "optimizer.base_rl"))
    with pytest.raises(InputError) as caught:
        load_search(str(folder))
    assert caught.value.nearest == "optimizer.base_lr"


def test_a_folder_without_a_space_names_those_that_have_one():
    with pytest.raises(InputError, match="declares nothing to search") as caught:
        load_search("imagenet")
    assert "cifar10-cpu, digit-scenes" in str(caught.value)
