"""`twinbench tune` by its command line: trials, log, recipe; what was done before, and what fails."""

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
import torch
import yaml

from twinbench.data import scenes
from twinbench.data.catalogue import load_image_set
from twinbench.harness.recipes import load_recipe, recipe_folder
from twinbench.harness.store import read_run
from twinbench.pretraining.train import TrainingSummary

from .conftest import GENERATED

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
    out = tmp_path / "results" / "tune-mine"
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
    """The installed recipe has the best row's values and the shipped budget, and says where they are from."""
    best, shipped = log[0], load_recipe("digit-scenes", "simclr", "digit-scenes", {})
    recipe = load_recipe(str(folder), "simclr", "digit-scenes", {})
    assert recipe.optimizer.base_lr == float(best["base_lr"])
    assert recipe.optimizer.weight_decay == float(best["weight_decay"])
    assert recipe.options == {
        "projector": [int(best["projector"]), 128],
        "temperature": float(best["temperature"]),
    }
    kept = ("epochs", "batch_size", "backbone", "schedule", "precision")
    assert [getattr(recipe, key) for key in kept] == [getattr(shipped, key) for key in kept]
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


def test_a_trial_that_fails_or_collapses_is_ranked_last_with_its_reason(cli, tmp_path, monkeypatch):
    """Of four trials the first diverges and the second collapses."""
    from twinbench.harness import execute

    train, seen = execute.pretrain, []

    def broken(recipe, *arguments, **options) -> TrainingSummary:
        seen.append(recipe)
        if len(seen) == 1:
            raise ArithmeticError("the loss is infinite")
        summary = train(recipe, *arguments, **options)
        if len(seen) == 2:
            return replace(summary, status="collapsed", reason="all the same")
        return summary

    monkeypatch.setattr(execute, "pretrain", broken)
    ended = cli("tune", "simclr", *SMALL, "--trials", "4", "--workers", "1")
    assert ended.code == 0, ended.err
    log = rows(tmp_path / "results" / "tune-digit-scenes" / "simclr.csv")
    assert [row["status"] for row in log] == ["done", "done", "failed", "collapsed"]
    assert [row["trial"] for row in log[2:]] == ["0", "1"]
    assert [row["reason"] for row in log[2:]] == ["ArithmeticError: the loss is infinite", "all the same"]
    assert [row["score"] for row in log[2:]] == ["", ""]
    assert "collapsed: all the same" in ended.out
    header = (tmp_path / "results" / "tune-digit-scenes" / "simclr.yaml").read_text()
    assert "the best of 4 trials on val, 1 failed, 1 collapsed" in header.replace("\n#            ", " ")


def test_without_a_single_score_there_is_no_recipe(cli, tmp_path, monkeypatch, own_recipes):
    from twinbench.harness import execute

    def broken(*arguments, **options):
        raise ArithmeticError("the loss is infinite")

    monkeypatch.setattr(execute, "pretrain", broken)
    before = (own_recipes / "simclr.yaml").read_text()
    ended = cli(
        "tune", "simclr", *SMALL, "--trials", "1", "--workers", "1", "--recipe", own_recipes, "--write"
    )
    assert ended.code == 1
    assert "no trial of simclr has a score" in ended.err
    assert [path.name for path in (tmp_path / "results" / "tune-mine").iterdir()] == ["simclr.csv"]
    assert (own_recipes / "simclr.yaml").read_text() == before
    assert not (own_recipes / "tuning").exists()


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

    program = [sys.executable, "-c", "from twinbench.harness.main import main; main()"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([*program, *command("killed")], cwd=tmp_path, env=environment)
    wait_for(lambda: list(tmp_path.glob("killed/*/records/knn--cosine-v1.json")), process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for name in ("killed", "whole"):
        ended = cli(*command(name))
        assert ended.code == 0, ended.err
        assert ("6 jobs, 0 already finished" in ended.err) == (name == "whole")
    resumed, whole = (
        [{**row, "seconds": ""} for row in rows(tmp_path / f"out-{name}" / "simclr.csv")]
        for name in ("killed", "whole")
    )
    assert resumed == whole
