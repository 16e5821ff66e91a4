"""`twinbench tune` by its command line: trials, log, recipe; what was done before, and what fails."""

import csv
import json
import os
import shlex
from dataclasses import replace
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
import torch
import yaml

from tests.forks import COMMAND, Fork
from twinbench.data import scenes
from twinbench.data.catalogue import load_image_set
from twinbench.harness import execute, tuning
from twinbench.harness.images import ImageChoice
from twinbench.harness.plan import PlannedRun
from twinbench.harness.recipes import load_recipe, parse_overrides, recipe_folder, recipe_hash
from twinbench.harness.search import load_search, points, settings
from twinbench.harness.store import Run, read_run
from twinbench.harness.trials import Budget, Outcome, Trial, recipe_text
from twinbench.harness.tuning import TuneRequest
from twinbench.pretraining.build import resolve
from twinbench.pretraining.finite import Diverged
from twinbench.pretraining.recipe import Recipe
from twinbench.pretraining.train import TrainingSummary

from .conftest import GENERATED

SHIPPED = recipe_folder("digit-scenes") / "simclr.yaml"
SMALL = [
    *("--image-set", "digit-scenes"),
    *("--limit", "train=128", "--limit", "val=32", "--limit", "test=64"),
    *("--set", "epochs=1", "--set", "schedule.warmup_epochs=0", "--set", "backbone.width=8"),
]


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as lines:
        return list(csv.DictReader(lines))


@pytest.fixture
def own_recipes(tmp_path: Path) -> Path:
    """A copy of the recipe folder, to be written into."""
    return copytree(str(recipe_folder("digit-scenes")), tmp_path / "mine", ignore=ignore_patterns("tuning"))


def test_two_methods_get_the_same_trials_on_val_and_more_trials_go_on(
    cli, tmp_path, own_recipes, monkeypatch
):
    def without_test(split, *how):
        assert split != "test", "a trial must not see test images"
        return GENERATED(split, *how)

    monkeypatch.setattr(scenes, "classification", without_test)
    tune = ["tune", "simclr", "supervised", *SMALL, "--recipe", own_recipes, "--workers", "1"]
    ended = cli(*tune, "--trials", "2", "--dry-run")
    assert ended.code == 0, ended.err
    assert ended.out.count("about") == 4
    assert not (tmp_path / "runs").exists()

    ended = cli(*tune, "--trials", "2")
    assert ended.code == 0, ended.err
    assert "12 jobs, 0 already finished" in ended.err
    (out,) = (tmp_path / "results").iterdir()
    assert sorted(file.name for file in out.iterdir()) == [
        f"{method}.{kind}" for method in ("simclr", "supervised") for kind in ("csv", "yaml")
    ]
    real, val = (load_image_set(f"{prefix}digit-scenes").split for prefix in ("", "val-of:"))
    assert torch.equal(real("val").images, val("test").images)
    logs = {method: rows(out / f"{method}.csv") for method in ("simclr", "supervised")}
    assert {len(log) for log in logs.values()} == {2}
    for method, log in logs.items():
        check_log(method, log, tmp_path / "runs", own_recipes)

    first = {method: (out / f"{method}.csv").read_bytes() for method in logs}
    ended = cli(*tune, "--trials", "2")
    assert "12 jobs, 12 already finished" in ended.err
    assert {method: (out / f"{method}.csv").read_bytes() for method in logs} == first

    ended = cli(*tune, "--trials", "3", "--write")
    assert ended.code == 0, ended.err
    assert "18 jobs, 12 already finished" in ended.err
    log = rows(own_recipes / "tuning" / "simclr.csv")
    assert [row["rank"] for row in log] == ["1", "2", "3"]
    before = {row["trial"]: {**row, "rank": ""} for row in logs["simclr"]}
    assert {row["trial"]: {**row, "rank": ""} for row in log if row["trial"] != "2"} == before
    check_winner(own_recipes, log)


def check_log(method: str, log: list[dict[str, str]], runs: Path, folder: Path) -> None:
    """Each row against the files of its run, which belong to the images for tuning and to no other."""
    assert [float(row["score"]) for row in log] == sorted((float(row["score"]) for row in log), reverse=True)
    for row in log:
        (run,) = (read_run(path) for path in runs.glob(f"{method}-val-of-digit-scenes-{row['recipe_hash']}"))
        assert run.source.image_set == "val-of:digit-scenes"
        assert run.source.optimizer.base_lr == float(row["base_lr"])
        assert run.source.views[0]["hue"] == pytest.approx(float(row["colour"]) / 2)
        assert run.source.views[0]["crop_scale"] == [float(row["smallest_crop"]), 1.0]
        top1 = []
        for name in ("knn/cosine-v1", "linear/cached-v1"):
            record = json.loads((run.folder / "records" / f"{name.replace('/', '--')}.json").read_text())
            assert record["image_set"] == "val-of:digit-scenes"
            assert record["measurements"][0]["n"] == 64
            top1.append(record["measurements"][0]["value"])
            assert f"{top1[-1]:.2f}" == row[name]
        assert float(row["score"]) == pytest.approx(sum(top1) / 2, abs=0.0051)
        assert (row["status"], row["reason"], row["seed"]) == ("done", "", "0")


def check_winner(folder: Path, log: list[dict[str, str]]) -> None:
    """The installed recipe is the one that ran but for the budget, which is the shipped one, and says so."""
    best, shipped = log[0], load_recipe("digit-scenes", "simclr", "digit-scenes", {})
    recipe = load_recipe(str(folder), "simclr", "digit-scenes", {})
    assert recipe.optimizer.base_lr == float(best["base_lr"])
    assert recipe.optimizer.weight_decay == float(best["weight_decay"])
    assert recipe.options == {
        "projector": [int(best["projector"]), 128],
        "temperature": float(best["temperature"]),
    }
    kept = ("epochs", "batch_size", "schedule", "precision")
    assert [getattr(recipe, key) for key in kept] == [getattr(shipped, key) for key in kept]
    assert recipe.backbone == shipped.backbone.model_copy(update={"width": 8})
    limit = {"train": 128, "val": 32, "test": 64}
    images = load_image_set("val-of:digit-scenes", limit=limit)
    shortened = {"epochs": 1, "schedule.warmup_epochs": 0}
    again = load_recipe(str(folder), "simclr", images.name, shortened)
    assert recipe_hash(resolve(again, images.image_size, images.fingerprint)) == best["recipe_hash"]
    assert recipe.views["grayscale"] == shipped.views["grayscale"]
    assert recipe.tuning.trials == 3
    assert {"optimizer.base_lr", "views.hue", "options.temperature"} < set(recipe.tuning.keys)
    text = (folder / "simclr.yaml").read_text()
    words = " ".join(text[: text.index("\nmethod:")].replace("\n#", " ").split())
    assert f"the best of 3 trials on val (trial {best['trial']})" in words
    assert "--trials 3" in words
    assert "seed 0" in words
    assert "temperature 0.05 to 0.5 (log)" in words
    assert "1 x 128 images" in words
    assert f"{best['knn/cosine-v1']} under knn/cosine-v1" in words
    assert max(map(len, text[: text.index("\nmethod:")].splitlines())) <= 110
    assert yaml.safe_load(text)["method"] == "simclr"


def test_a_trial_that_fails_or_collapses_is_ranked_last_with_its_reason(
    cli, tmp_path, monkeypatch, own_recipes
):
    """Of four trials the first fails, and is done by the next command; the second collapses, the third diverges."""
    train, seen = execute.pretrain, []

    def broken(recipe, *arguments, **options) -> TrainingSummary:
        seen.append(recipe)
        if len(seen) == 1:
            raise OSError("the disk is full")
        if len(seen) >= 3 and recipe == seen[2]:
            raise Diverged("the loss became nan")
        summary = train(recipe, *arguments, **options)
        if len(seen) == 2:
            return replace(summary, status="collapsed", reason="all the same")
        return summary

    monkeypatch.setattr(execute, "pretrain", broken)
    before = {file.name: file.read_bytes() for file in own_recipes.iterdir()}
    command = [
        "tune",
        "simclr",
        *SMALL,
        "--recipe",
        own_recipes,
        "--trials",
        "4",
        "--workers",
        "1",
        "--write",
    ]
    ended = cli(*command, "--out", "out")
    assert ended.code == 1
    assert "1 of 4 trials of simclr failed or were not run" in ended.err
    assert {file.name: file.read_bytes() for file in own_recipes.iterdir()} == before
    log = rows(tmp_path / "out" / "simclr.csv")
    assert [row["status"] for row in log] == ["done", "failed", "collapsed", "diverged"]
    assert [row["trial"] for row in log[1:]] == ["0", "1", "2"]
    reasons = ["OSError: the disk is full", "all the same", "the loss became nan"]
    assert [row["reason"] for row in log[1:]] == reasons
    assert [row["score"] for row in log[1:]] == ["", "", ""]
    assert "collapsed: all the same" in ended.out
    recipe = (tmp_path / "out" / "simclr.yaml").read_text()
    assert "the best of 4 trials on val, 1 failed, 1 collapsed, 1 diverged" in recipe.replace(
        "\n#            ", " "
    )
    assert yaml.safe_load(recipe)["tuning"]["trials"] == 3

    ended = cli(*command, "--out", "out")
    assert ended.code == 0, ended.err
    log = rows(own_recipes / "tuning" / "simclr.csv")
    assert [row["status"] for row in log] == ["done", "done", "collapsed", "diverged"]
    assert load_recipe(str(own_recipes), "simclr", "digit-scenes", {}).tuning.trials == 4


def test_without_a_single_score_there_is_no_recipe(cli, tmp_path, monkeypatch, own_recipes):
    def broken(*arguments, **options):
        raise ArithmeticError("the loss is infinite")

    monkeypatch.setattr(execute, "pretrain", broken)
    before = (own_recipes / "simclr.yaml").read_text()
    out = tmp_path / "out"
    out.mkdir()
    (out / "simclr.yaml").write_text("of an earlier search")
    command = ["tune", "simclr", *SMALL, "--trials", "1", "--workers", "1", "--recipe", own_recipes]
    ended = cli(*command, "--out", "out", "--write")
    assert ended.code == 1
    assert "no trial of simclr has a score" in ended.err
    assert [path.name for path in out.iterdir()] == ["simclr.csv"]
    assert (own_recipes / "simclr.yaml").read_text() == before
    assert not (own_recipes / "tuning").exists()


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search whose jobs are all passed over."""
    monkeypatch.setattr(tuning, "execute", lambda *arguments: 0)


def test_image_sets_and_recipe_folders_have_folders_of_their_own(
    cli, tmp_path, photos, own_recipes, nothing_runs
):
    other = copytree(photos, tmp_path / "other" / "photos")
    (other / "test" / "dark" / "dark_0.png").unlink()
    (other / "train" / "dark" / "dark_0.png").unlink()
    small = ["--trials", "2", "--workers", "1", "--set", "batch_size=16"]
    for images in ("digit-scenes", f"folder:{photos}", f"folder:{other}"):
        for recipes in ("digit-scenes", own_recipes):
            ended = cli("tune", "simclr", "--image-set", images, "--recipe", recipes, *small)
            assert ended.code == 1
            assert "2 of 2 trials of simclr failed or were not run" in ended.err
    folders = list((tmp_path / "results").iterdir())
    assert len(folders) == 6
    for folder in folders:
        assert [file.name for file in folder.iterdir()] == ["simclr.csv"]
        assert [row["status"] for row in rows(folder / "simclr.csv")] == ["not run", "not run"]


def test_a_comment_among_the_keys_is_named_before_it_would_be_lost(cli, own_recipes, nothing_runs):
    recipe = own_recipes / "simclr.yaml"
    body = (
        "# about the\n\n# method\nmethod: simclr  # kept?\nepochs: 1\nbatch_size: 64\nprecision: fp32\n"
        "optimizer:\n  # of LARS\n  base_lr: 0.1\n# end"
    )
    recipe.write_text(body)
    command = ["tune", "simclr", *SMALL, "--recipe", own_recipes, "--trials", "1", "--workers", "1"]
    ended = cli(*command, "--write")
    assert ended.code == 2
    assert "3 comments among the keys" in ended.err
    assert "line 4: # kept?; line 9: # of LARS; line 11: # end" in ended.err
    assert recipe.read_text() == body
    assert cli(*command).code == 1  # nothing is written over it, so it is done


def test_a_recipe_that_changes_while_trials_run_is_not_written_over(cli, own_recipes, monkeypatch):
    recipe = own_recipes / "simclr.yaml"

    def edited(*arguments, **options) -> TrainingSummary:
        recipe.write_text("# mine\n" + recipe.read_text())
        return train(*arguments, **options)

    train = execute.pretrain
    monkeypatch.setattr(execute, "pretrain", edited)
    command = ["tune", "simclr", *SMALL, "--recipe", own_recipes, "--trials", "1", "--workers", "1"]
    ended = cli(*command, "--write")
    assert ended.code == 1
    assert "the recipe of simclr has changed since the trials began" in ended.err
    assert recipe.read_text().startswith("# mine")
    assert not (own_recipes / "tuning").exists()


@pytest.mark.parametrize(
    ("assignments", "budget"),
    [
        ([], {}),
        (["optimizer.name=sgd"], {}),
        (["batch_size=64", "precision=fp32", "backbone={name: resnet18}"], {}),
        (["epochs=2", "schedule.warmup_epochs=0.5"], {"epochs": 2, "schedule.warmup_epochs": 0.5}),
        (["schedule={warmup_epochs: 0.5, final_factor: 0.1}"], {"schedule.warmup_epochs": 0.5}),
        (["schedule={final_factor: 0.1}"], {"schedule.warmup_epochs": 0}),
    ],
)
def test_the_recipe_that_wins_is_the_one_that_ran_but_for_its_budget(tmp_path, assignments, budget):
    text, ran = winner(tmp_path, SHIPPED.read_text(), assignments)
    (tmp_path / "simclr.yaml").write_text(text)
    again = load_recipe(str(tmp_path), "simclr", "digit-scenes", budget)
    assert recipe_hash(resolve(again, 32, "print")) == recipe_hash(ran)
    installed, shipped = yaml.safe_load(text), yaml.safe_load(SHIPPED.read_text())
    assert installed["epochs"] == shipped["epochs"]
    assert installed["schedule"]["warmup_epochs"] == shipped["schedule"]["warmup_epochs"]
    assert list(installed) == list(shipped)


def test_every_comment_above_the_keys_stays_but_for_what_the_search_found(tmp_path):
    opening = """# Mine, with a first line
# that has no label.
# Seen before: in another project,
#              for a year
# Expected:  12.3
#            some day
# Source:    arXiv:2002.05709:
#            loss

# Tuning:    none
# a last line
"""
    text, _ = winner(tmp_path, opening + "\nmethod: simclr\nepochs: 1\noptimizer: {base_lr: 0.1}\n", [])
    header = text[: text.index("\n\nmethod:")].splitlines()
    before, after = "# Expected:  no score is known", "# Tuning:    the best of 1 trials on val"
    (expected,) = (i for i, line in enumerate(header) if line.startswith(before))
    (tuned,) = (i for i, line in enumerate(header) if line.startswith(after))
    found = [line for line in header if line in opening.splitlines()]
    assert found == [
        line
        for line in opening.splitlines()
        if line not in ("# Expected:  12.3", "#            some day", "# Tuning:    none")
    ]
    assert (
        header.index("#              for a year")
        < expected
        < header.index("# Source:    arXiv:2002.05709:")
        < tuned
    )
    assert header[-1] == "# a last line"
    again, _ = winner(tmp_path, text, [])
    assert again == text


def winner(tmp_path: Path, shipped: str, assignments: list[str]) -> tuple[str, Recipe]:
    """What is made of a shipped recipe when its only trial wins, and what that trial ran."""
    (tmp_path / "simclr.yaml").write_text(shipped)
    space, overrides = load_search("digit-scenes")["simclr"], parse_overrides(assignments)
    (values,) = points(space, "simclr", 0, 1)
    changes = {**overrides, **settings(space, values)}
    ran = resolve(load_recipe(str(tmp_path), "simclr", "digit-scenes", changes), 32, "print")
    run = Run(tmp_path / "run", ran, recipe_hash(ran))
    trial = Trial("simclr", 0, values, PlannedRun(run, ImageChoice("digit-scenes"), (), "trial 0"))
    outcome = Outcome(trial, "done", "", {"knn/cosine-v1": 50.0}, 1.0, "abc", "a machine")
    return recipe_text(space, [outcome], Budget("twinbench tune", 0, 128, shipped, overrides)), ran


def test_a_command_that_is_committed_names_no_folder_of_this_machine():
    def command(**changes) -> list[str]:
        return shlex.split(TuneRequest(("byol",), "digit-scenes", 3, **changes).command("byol"))

    shown = "twinbench tune byol --image-set digit-scenes --trials 3"
    assert command() == shlex.split(shown)
    assert command(recipe="cifar10-cpu") == shlex.split(f"{shown} --recipe cifar10-cpu")
    assert command(recipe="/home/me/recipes") == shlex.split(f"{shown} --recipe DIR")
    assert command(recipe="mine", data_root=Path("/data")) == shlex.split(
        f"{shown} --recipe DIR --data-root DIR"
    )
    images = TuneRequest(("byol",), "folder:/home/me/photos", 3).command("byol")
    assert images == "twinbench tune byol --image-set folder:DIR --trials 3"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["random_init"], "unknown method 'random_init'"),
        (["simclear"], "nearest: simclr"),
        (
            ["simclr", "--set", "optimizer.base_lr=0.1"],
            "--set optimizer.base_lr would fix a key that is searched",
        ),
        (["simclr", "--set", "views={blur: 1}"], "--set views would fix a key that is searched"),
        (["simclr", "--limit", "train"], "cannot read --limit 'train'"),
        (["simclr", "--limit", "trian=5"], "nearest: train"),
        (["simclr", "--recipe", "imagenet"], "declares nothing to search"),
        (["simclr", "--recipe", "digit-scene"], "nearest: digit-scenes"),
    ],
)
def test_wrong_use_ends_before_any_work(cli, tmp_path, arguments, message):
    ended = cli("tune", *arguments, "--image-set", "digit-scenes", "--trials", "2")
    assert ended.code == 2
    assert message in " ".join(ended.err.split())
    assert not list(tmp_path.iterdir())


def test_a_killed_search_goes_on_and_ends_with_the_same_numbers(cli, tmp_path, photos, wait_for):
    def command(name: str) -> list[str]:
        small = ["--set", "epochs=2", "--set", "batch_size=16", "--set", "backbone.width=8"]
        images = ["--image-set", f"folder:{photos}", "--recipe", "digit-scenes", *small]
        options = ["--trials", "2", "--workers", "1", "--runs", name, "--out", f"out-{name}"]
        return ["tune", "simclr", *images, *options]

    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = Fork(COMMAND, *command("killed"), cwd=tmp_path, env=environment)
    wait_for(lambda: list(tmp_path.glob("killed/*/records/knn--cosine-v1.json")), process)
    process.kill()
    assert process.wait() == -9
    for name in ("killed", "whole"):
        ended = cli(*command(name))
        assert ended.code == 0, ended.err
        assert ("6 jobs, 0 already finished" in ended.err) == (name == "whole")
    resumed, whole = (
        [{**row, "seconds": ""} for row in rows(tmp_path / f"out-{name}" / "simclr.csv")]
        for name in ("killed", "whole")
    )
    assert resumed == whole
