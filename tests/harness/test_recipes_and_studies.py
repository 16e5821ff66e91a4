"""Every recipe and study that ships can be used, and the hash covers what changes the numbers."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pandas as pd
import pytest
import torch

from twinbench.data.catalogue import load_image_set
from twinbench.downstream.protocol import protocol
from twinbench.foundation.errors import InputError
from twinbench.harness import plan
from twinbench.harness.facts import FACTS
from twinbench.harness.plan import table_recipes
from twinbench.harness.recipes import load_recipe, parse_overrides, recipe_hash, recipe_names
from twinbench.harness.records import collect_stored
from twinbench.harness.store import Run
from twinbench.harness.studies import load_study, study_names
from twinbench.harness.variants import told_apart
from twinbench.pretraining.build import build_method, resolve, view_policies
from twinbench.pretraining.method import Method, method_names
from twinbench.pretraining.optim import build_optimizer, resolved_lr, set_learning_rates
from twinbench.pretraining.recipe import Recipe
from twinbench.pretraining.schedules import lr_factor

SIZE = 32
SHOWN = Path(__file__).parents[2] / "docs" / "results"


def resolved(method: str = "barlow_twins", **overrides) -> Recipe:
    return resolve(load_recipe("digit-scenes", method, "digit-scenes", overrides), SIZE, "print")


def shipped(name: str) -> tuple[Recipe, Method]:
    """A recipe at the image size it is for, and its method without memory for the weights."""
    folder, method = name.split("/")
    size = 224 if folder.startswith("imagenet") else SIZE
    recipe = resolve(load_recipe(folder, method, "digit-scenes", {}), size, "print")
    with torch.device("meta"):
        return recipe, build_method(recipe)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_builds_its_method_and_passes_its_check(name):
    recipe, method = shipped(name)
    assert recipe.method == name.split("/")[1]
    method.check(recipe.batch_size, len(recipe.views))
    if method.trains:
        groups = method.parameter_groups(recipe.optimizer.weight_decay)
        optimizer = build_optimizer(recipe.optimizer, groups, recipe.batch_size)
        set_learning_rates(optimizer, lr_factor(recipe.schedule, 0, 100, 10))


def header(name: str) -> dict[str, str]:
    """The labelled comments that open a recipe, each with the lines that go on with it."""
    text = (files("twinbench.recipes") / f"{name}.yaml").read_text()
    comments = re.sub(r"\n#  +", " ", text[: text.index("\nmethod:")])
    return dict(re.findall(r"^# (\w+):\s+(.+)$", comments, flags=re.MULTILINE))


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_opens_with_command_hardware_time_score_and_source(name):
    folder, method = name.split("/")
    lines = header(name)
    assert {"Command", "Hardware", "Time", "Expected", "Source"} <= lines.keys()
    program, command, subject, *options = shlex.split(lines["Command"])
    values = dict(zip(options[::2], options[1::2], strict=True))
    assert program == "twinbench"
    if command == "run":
        study = load_study(subject)
        table = study.tables[0]
        assert (table.recipes, values["--methods"]) == (folder, method)
        assert method in {row.method for row in table.row_keys()}
    else:
        assert (command, subject) == ("pretrain", method)
        assert values.get("--recipe", values["--image-set"].partition(":")[0]) == folder


@pytest.mark.parametrize("name", recipe_names())
def test_every_expected_score_names_the_protocol_it_belongs_to(name):
    expected = header(name)["Expected"]
    named = re.findall(r"[\w-]+/[\w-]+-v\d+", expected)
    assert [protocol(each).name for each in named] == named
    if not named:
        assert re.search("none of ours|own classifier|no published number|no score is known", expected)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("imagenet/barlow_twins", "linear/sgd-v2"),
        ("imagenet-256/barlow_twins", "linear/sgd-v2"),
        ("imagenet/byol", "linear/byol-v1"),
        ("imagenet/moco_v2", "linear/moco-v1"),
        ("imagenet/simclr", "linear/simclr-v1"),
        ("imagenet/simsiam", "linear/simsiam-v1"),
        ("imagenet/swav", "linear/swav-v1"),
        ("imagenet-256/swav", "linear/swav-v1"),
        ("imagenet-two-crop/swav", "linear/swav-v1"),
    ],
)
def test_the_scores_on_imagenet_belong_to_the_authors_protocols(name, own):
    assert f"under {own}" in header(name)["Expected"]


@pytest.mark.parametrize(
    ("name", "peak", "first", "last"),
    [
        ("imagenet/barlow_twins", 1.6, 0.0, 0.0016),
        ("imagenet/simclr", 4.8, 0.0, 0.0),
        ("imagenet/byol", 3.2, 0.0, 0.0),
        ("imagenet/swav", 4.8, 0.3, 0.0048),
        ("imagenet-two-crop/swav", 4.8, 0.3, 0.0048),
        ("imagenet-256/swav", 0.6, 0.6, 0.0006),
        ("imagenet-256/barlow_twins", 0.4, 0.0, 0.0004),
        ("imagenet/simsiam", 0.1, 0.1, 0.0),
        ("imagenet/moco_v2", 0.03, 0.03, 0.0),
        ("cifar10/simclr", 0.06, 0.06, 0.0),
        ("cifar10/simsiam", 0.06, 0.06, 0.0),
        ("cifar10/swav", 0.001, 0.001, 0.0),
    ],
)
def test_learning_rates_are_the_published_ones(name, peak, first, last):
    """Peak, first step and end of the schedule as the official code hands them to its optimizer."""
    recipe, _ = shipped(name)
    steps = 1_281_167 // recipe.batch_size
    total = steps * recipe.epochs
    rate = resolved_lr(recipe.optimizer, recipe.batch_size)
    assert rate == pytest.approx(peak)
    assert rate * lr_factor(recipe.schedule, 0, total, steps) == pytest.approx(first)
    assert rate * lr_factor(recipe.schedule, total, total, steps) == pytest.approx(last, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "part", "parameters"),
    [
        ("imagenet/barlow_twins", "backbone", 23_508_032),
        ("imagenet/barlow_twins", "projector", 150_994_944 + 32_768),
        ("imagenet/simclr", "projector", 4_460_672),
        ("imagenet/byol", "projector", 9_449_472),
        ("imagenet/byol", "predictor", 2_109_440),
        ("imagenet/swav", "projector", 4_462_720),
        ("imagenet/swav", "prototypes", 384_000),
        ("imagenet/simsiam", "predictor", 2_100_224),
        ("imagenet/moco_v2", "projector", 4_458_624),
        ("cifar10/simclr", "backbone", 11_168_832),
    ],
)
def test_networks_have_the_published_sizes(name, part, parameters):
    _, method = shipped(name)
    assert sum(p.numel() for p in getattr(method, part).parameters() if p.requires_grad) == parameters


def test_norm_parameters_of_barlow_twins_have_the_published_rate_and_swav_excludes_nothing():
    for name, weights, norms in (("imagenet/barlow_twins", 1.6, 0.0384), ("imagenet/swav", 4.8, 4.8)):
        recipe, method = shipped(name)
        groups = method.parameter_groups(recipe.optimizer.weight_decay)
        first, second = build_optimizer(recipe.optimizer, groups, recipe.batch_size).param_groups
        assert (first["lr"], second["lr"]) == pytest.approx((weights, norms))
        assert (first["weight_decay"], second["weight_decay"]) == (1e-6, 0 if norms < weights else 1e-6)
        assert (first["lars_exclude"], second["lars_exclude"]) == (False, norms < weights)


@pytest.mark.parametrize(
    ("name", "factor", "rate"), [("cifar10/byol", 4.0, 0.06), ("cifar10/moco_v2", 0.5, 0.06)]
)
def test_a_loss_that_differs_by_a_factor_gets_the_sgd_of_its_source(name, factor, rate):
    """Ours is ``factor`` times the source's loss; the same parameters must come out of several steps."""
    recipe, _ = shipped(name)
    spec = recipe.optimizer
    start = torch.linspace(-1, 1, 5, dtype=torch.float64)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    group = {"params": [ours], "weight_decay": spec.weight_decay, "lr_scale": 1.0}
    optimizers = [
        build_optimizer(spec, [group], recipe.batch_size),
        torch.optim.SGD([theirs], lr=rate, momentum=0.9, weight_decay=5e-4),
    ]
    for step in range(4):
        for p, scale, optimizer in zip((ours, theirs), (factor, 1.0), optimizers, strict=True):
            p.grad = scale * torch.cos(p.detach() * (step + 1))
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", study_names())
def test_every_study_names_recipes_methods_and_protocols_that_exist(name):
    study = load_study(name)
    for table in study.tables:
        for column in table.columns:
            measured = FACTS[column.protocol] if column.protocol in FACTS else protocol(column.protocol)
            assert measured.name == column.protocol, "a study names the full version"
            assert column.metric in measured.metrics
        for row in table.row_keys():
            assert row.method in method_names()
            changes = {key: value for each in row.values.values() for key, value in each.set.items()}
            load_recipe(table.recipes, row.method, table.image_set, changes)


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
        {"optimizer.exclude_nothing": True},
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


def test_an_option_that_came_later_leaves_the_hashes_from_before():
    """A recipe that was stored before SimCLR had a ``loss_scale`` is the same run as one that has it at 1."""
    now = resolved("simclr")
    before = now.model_copy(update={"options": {k: v for k, v in now.options.items() if k != "loss_scale"}})
    assert before.options != now.options
    assert recipe_hash(before) == recipe_hash(now)
    assert recipe_hash(resolved("simclr", **{"options.loss_scale": 2.0})) != recipe_hash(now)
    assert recipe_hash(resolved(**{"options.loss_scale": 2.0})) != recipe_hash(resolved())


@pytest.mark.parametrize(
    ("method", "size", "changed"),
    [
        ("barlow_twins", 32, False),
        ("barlow_twins", 96, True),
        ("simclr", 96, False),
        ("byol", 224, False),
        ("supervised", 224, False),
        ("moco_v2", 224, True),
    ],
)
def test_the_kernel_of_the_blur_changes_the_hash_of_recipes_that_blur_by_another_than_before(
    method, size, changed
):
    now = resolve(load_recipe("folder", method, "digit-scenes", {}), size, "print")
    views = [{k: v for k, v in view.items() if k != "blur_kernel"} for view in now.views]
    assert (recipe_hash(now) != recipe_hash(now.model_copy(update={"views": views}))) == changed
    hashes = [
        recipe_hash(
            now.model_copy(update={"views": [{**view, "blur": 0.5, "blur_kernel": kernel} for view in views]})
        )
        for kernel in ("pillow", "truncated")
    ]
    assert hashes[0] != hashes[1]


def test_a_report_does_not_tell_runs_apart_by_an_option_that_came_later(tmp_path):
    now = resolved("simclr")
    options = {k: v for k, v in now.options.items() if k != "loss_scale"}
    before = now.model_copy(update={"options": options, "seed": 1})
    doubled = resolved("simclr", **{"options.loss_scale": 2.0})
    recipes = [now, before, doubled]
    runs = [Run(tmp_path / str(i), r, recipe_hash(r)) for i, r in enumerate(recipes)]
    _, infos = collect_stored(runs, told_apart(runs).names)
    assert [info.variant for info in infos] == ["", "", "options.loss_scale=2.0"]


def test_the_shown_results_belong_to_the_recipes_as_they_are_now():
    """Hashes are stable: what docs/results.md shows was made by these very recipes."""
    records = pd.read_csv(SHOWN / "quick" / "records.csv")
    image_set = load_image_set("digit-scenes")
    for (method, seed), hashes in records.groupby(["method", "seed"]).recipe_hash.unique().items():
        recipe = load_recipe("digit-scenes", str(method), image_set.name, {}, seed)
        assert list(hashes) == [recipe_hash(resolve(recipe, SIZE, image_set.fingerprint))]


def test_the_shown_paper_is_made_of_the_rows_and_recipes_that_its_study_has_now():
    file = SHOWN / "paper" / "records.csv"
    assert file.is_file(), f"{file} is missing: twinbench run paper --scale quick, then make readme SHOWN="
    records = pd.read_csv(file, dtype=str, keep_default_na=False)
    keys = ["table", "method", "variant", "seed", "recipe_hash"]
    fingerprint = load_image_set("digit-scenes").fingerprint
    planned = {
        (
            table.name,
            row.method,
            row.variant,
            str(recipe.seed),
            recipe_hash(resolve(recipe, SIZE, fingerprint)),
        )
        for table in load_study("paper", "quick").tables
        for row, recipe in table_recipes(table, {})
    }
    assert set(records[keys].itertuples(index=False, name=None)) == planned


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("0.5", 0.5), ("7", 7), ("[1, 2]", [1, 2]), ("lars", "lars"), ("true", True)],
)
def test_set_reads_values_as_a_person_means_them(text, value):
    assert parse_overrides([f"key={text}"]) == {"key": value}


def test_a_key_of_views_that_are_listed_is_set_in_each_of_them():
    """SwAV's recipe for ImageNet lists its eight views: two large ones and six small."""
    plain, changed = (
        view_policies(load_recipe("imagenet", "swav", "imagenet", changes), 224)
        for changes in ({}, {"views.grayscale": 0.0})
    )
    assert [policy.size for policy in changed] == [224] * 2 + [96] * 6
    assert {policy.grayscale for policy in changed} == {0.0} != {policy.grayscale for policy in plain}
    assert [replace(policy, grayscale=0.2) for policy in changed] == [
        replace(policy, grayscale=0.2) for policy in plain
    ]
    with pytest.raises(InputError, match="cannot set 'grayscale' below 'views'"):
        load_recipe("imagenet", "swav", "imagenet", {"views": [], "views.grayscale": 0.0})


def test_the_fingerprint_of_the_embedded_set_is_in_the_recipe():
    image_set = load_image_set("digit-scenes")
    recipe = resolve(load_recipe("digit-scenes", "simclr", image_set.name, {}), SIZE, image_set.fingerprint)
    assert recipe.image_set_fingerprint == image_set.fingerprint


def test_a_study_without_recipes_takes_those_of_its_image_set_not_the_users_files(tmp_path, monkeypatch):
    """The current folder, whose files may have such names, is no recipe folder."""
    (tmp_path / "simclr.yaml").write_text("method: simclr\nepochs: 77\n")
    monkeypatch.chdir(tmp_path)
    assert load_recipe("", "simclr", "digit-scenes", {}) == load_recipe(
        "digit-scenes", "simclr", "digit-scenes", {}
    )
    assert (
        load_recipe("", "simclr", "folder:x", {}).epochs
        == load_recipe("folder", "simclr", "folder:x", {}).epochs
    )


def test_a_recipe_of_another_method_is_refused(tmp_path):
    (tmp_path / "byol.yaml").write_text("method: simclr\nepochs: 1\n")
    with pytest.raises(InputError, match="the recipe of byol says method: simclr") as error:
        load_recipe(str(tmp_path), "byol", "digit-scenes", {})
    assert error.value.where == tmp_path / "byol.yaml"


def test_a_study_file_that_is_not_there_is_no_unknown_study():
    with pytest.raises(InputError, match="there is no such file"):
        load_study("nowhere.yaml")


def test_recipes_that_differ_in_their_seeds_alone_are_checked_once():
    table = load_study("fig2").tables[0]
    recipes = [recipe for _, recipe in table_recipes(table, {})]
    checked = plan._apart_from_seeds(recipes)
    assert {recipe.seed for recipe in recipes} == {0, 1, 2}
    assert [(r.method, r.batch_size, r.seed) for r in checked] == [
        (r.method, r.batch_size, 0) for r in recipes if r.seed == 0
    ]
    assert len(checked) == 6 * 3  # methods and batch sizes
    for recipe in recipes:
        loaded = load_recipe(
            table.recipes, recipe.method, table.image_set, {"batch_size": recipe.batch_size}, recipe.seed
        )
        assert recipe == loaded
