"""twinbench compare: runs, encoder folders and checkpoints of others in one table."""

import pandas as pd
import pytest
import torch
import torchvision

KNN = ("--protocol", "knn", "--image-set", "digit-scenes")


@pytest.fixture
def theirs(tmp_path):
    """A checkpoint as torchvision writes it, in the current folder."""
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "theirs.pth")


@pytest.fixture
def made(finished, theirs):
    """A trained run and a random one, beside the checkpoint."""
    return {path.name.split("-")[0]: path for path in (finished / "runs").iterdir()}


@pytest.fixture
def records(tmp_path):
    return lambda: pd.read_csv(tmp_path / "results/compare/records.csv", keep_default_na=False)


def test_everything_that_is_an_encoder_has_a_row(cli, made, photos, tmp_path, records):
    trained, random = made["barlow_twins"], made["random_init"]
    # few images: the whole network of torchvision takes its time for each
    arguments = (
        trained,
        random / "encoder",
        "theirs.pth",
        "--protocol",
        "knn",
        "--image-set",
        f"folder:{photos}",
    )
    ended = cli("compare", *arguments, "--workers", "1")
    assert ended.code == 0, ended.err
    found = records()
    assert set(found.metric) == {"top1"}, "with two classes the top five say nothing"
    assert set(found.status) == {"done"}
    assert dict(zip(found.method, found.origin, strict=True)) == {
        "barlow_twins": "run",
        "random_init": "run",
        "theirs.pth": "imported",
    }
    # a run's own evaluation on other images is kept in the run, as every evaluation is
    assert len(list((trained / "records").glob("knn--cosine-v1--on-*photos-*.json"))) == 1
    again = cli("compare", *arguments, "--workers", "1")
    assert "6 jobs, 6 already finished" in again.err
    page = (tmp_path / "results/compare/report.html").read_text()
    assert "twinbench compare" in page


def test_an_encoder_that_is_named_twice_has_one_row_and_the_command_names_the_folders(
    cli, made, photos, tmp_path, records
):
    trained, few = made["barlow_twins"], ("--protocol", "knn", "--image-set", f"folder:{photos}")
    ended = cli("compare", trained, trained / "encoder", *few, "--workers", "1", "--out", "results/compare")
    assert ended.code == 0, ended.err
    assert "2 jobs, 1 already finished" in ended.err, "the training, which is done, and one evaluation"
    assert len(records()) == 1, "top-1 of one encoder; of two classes the top five say nothing"
    ended = cli("compare", trained, *few, "--workers", "1", "--out", "elsewhere")
    assert ended.code == 0, ended.err
    assert "--out elsewhere" in (tmp_path / "elsewhere/report.html").read_text()


def test_runs_of_one_method_are_told_apart_by_what_differs(cli, made, tiny_study, photos, records):
    few = ("--protocol", "knn", "--image-set", f"folder:{photos}")
    changes = ("--set", "epochs=1", "--set", "options.lambd=0.5", "--runs", "more")
    assert cli("run", tiny_study, "--methods", "barlow_twins", *changes, "--out", "more-results").code == 0
    (other,) = (made["barlow_twins"].parents[1] / "more").iterdir()
    ended = cli("compare", made["barlow_twins"], other, *few, "--workers", "1")
    assert ended.code == 0, ended.err
    variants = set(records().variant)
    assert len(variants) == 2
    assert all("options.lambd=" in variant for variant in variants)


def test_very_different_recipes_have_short_names_and_the_page_says_in_full_what_differs(
    cli, made, photos, tmp_path, records
):
    """Figures of long names warn that there is no room, and a warning is an error here."""
    few = ("--protocol", "knn", "--image-set", f"folder:{photos}")
    small = ("backbone.name=resnet10", "backbone.width=4", "options.projector=[32, 16]", "views.size=32")
    short = ("epochs=1", "batch_size=16", "schedule.warmup_epochs=0")
    options = [word for key in (*small, *short) for word in ("--set", key)]
    images = ("--image-set", f"folder:{photos}")
    outcome = cli("pretrain", "barlow_twins", *images, "--recipe", "imagenet", *options)
    assert outcome.code == 0, outcome.err
    runs = sorted((made["barlow_twins"].parent).glob("barlow_twins-*"))
    assert len(runs) == 2
    ended = cli("compare", *runs, *few, "--workers", "1")
    assert ended.code == 0, ended.err
    variants = set(records().variant)
    assert len(variants) == 2
    assert all(len(variant) < 120 and variant.endswith(" more") for variant in variants)
    _, said, note = (tmp_path / "results/compare/report.html").read_text().partition("Variants in full: ")
    assert said not in note
    for whole in ("weight_decay=1e-06", "projector=[32, 16]", "lambd=0.0051", "crop_scale=[0.08, 1.0]"):
        assert note.count(whole) == 1, "of the ImageNet recipe"
    assert cli("verify", "results/compare").code == 0
    assert cli("report", "runs", "--out", "results/all").code == 0
    page = (tmp_path / "results/all/report.html").read_text()
    assert page.count("optimizer.weight_decay=1e-06") == 1, "once, below the first table"
    assert "Variants in full: below the table cost/training-v1." in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.pth", *KNN], "no such file"),
        (["runs", *KNN], "neither a run nor an encoder"),
        (
            ["theirs.pth", "--protocol", "knn/cosin-v1", "--image-set", "digit-scenes"],
            "nearest: knn/cosine-v1",
        ),
        (["theirs.pth", "--protocol", "knn", "--image-set", "digit-scene"], "nearest: digit-scenes"),
    ],
)
def test_what_cannot_be_compared_is_said_before_any_work(cli, theirs, tmp_path, arguments, words):
    (tmp_path / "runs").mkdir()
    ended = cli("compare", *arguments)
    assert ended.code == 2
    assert words in ended.err
    assert not (tmp_path / "results" / "compare").exists()
