"""What images cannot give a number of is known before any work, and said where the numbers stand."""

import csv
import json

import pytest

TOP5 = "      - {protocol: knn/cosine-v1, metric: top5, label: kNN top-5}\n"


@pytest.fixture
def on_photos(tiny_study, photos):
    """The tiny study without training, on two classes."""
    text = tiny_study.read_text().replace("image_set: digit-scenes", f"image_set: folder:{photos}")
    text = text.replace("methods: [random_init, barlow_twins]", "methods: [random_init]")
    tiny_study.write_text(text)
    return tiny_study


def test_top5_of_two_classes_is_a_dash_and_everything_else_is_there(cli, on_photos, tmp_path, caplog):
    on_photos.write_text(on_photos.read_text() + TOP5)
    outcome = cli("run", on_photos, "--out", "results")
    assert outcome.code == 0, outcome.err
    assert "top5 of knn/cosine-v1 is not measured" in caplog.text
    with (tmp_path / "results" / "records.csv").open(newline="") as handle:
        measured = [(row["protocol"], row["metric"], row["remarks"]) for row in csv.DictReader(handle)]
    reason = "top5 is not measured: with 2 classes it is 100 whatever the features are"
    assert [row[:2] for row in measured] == [("knn/cosine-v1", "top1"), ("linear/cached-v1", "top1")]
    assert all(reason in row[2] for row in measured)
    table = (tmp_path / "results" / "tables" / "main.md").read_text()
    assert "| -<sup>a</sup> |" in table
    assert f"<sup>a</sup> knn/cosine-v1 has no top5 on folder:{tmp_path}/photos" in table.replace("\\", "")
    assert reason in table


def test_a_study_of_which_nothing_can_be_measured_ends_before_any_work(cli, on_photos, tmp_path):
    on_photos.write_text(on_photos.read_text().replace("metric: top1", "metric: top5"))
    outcome = cli("run", on_photos)
    assert outcome.code == 2
    assert "no number of the table can be measured" in outcome.err
    assert not (tmp_path / "runs").exists()


def test_a_study_of_accuracies_on_images_without_labels_ends_before_any_work(
    cli, on_photos, photos, tmp_path
):
    for split in ("train", "test"):
        for picture in sorted((photos / split).rglob("*.png")):
            picture.rename(photos / split / picture.name)
        for folder in ("dark", "light"):
            (photos / split / folder).rmdir()
    outcome = cli("run", on_photos)
    assert outcome.code == 2
    assert "has no labelled image" in outcome.err
    assert not (tmp_path / "runs").exists()


def test_accuracies_of_a_single_class_are_refused(cli, on_photos, photos, tmp_path):
    for split in ("train", "test"):
        for picture in (photos / split / "light").iterdir():
            picture.unlink()
        (photos / split / "light").rmdir()
    outcome = cli("run", on_photos)
    assert outcome.code == 2
    assert "one class only, 'dark'" in outcome.err
    assert not (tmp_path / "runs").exists()


def test_a_training_with_few_held_out_images_says_that_collapse_is_not_judged(cli, photos, tmp_path):
    small = ["backbone.width=8", "backbone.stem=small", "epochs=1", "batch_size=16", "precision=fp32"]
    changes = [word for change in small for word in ("--set", change)]
    outcome = cli("pretrain", "simclr", "--image-set", f"folder:{photos}", *changes)
    assert outcome.code == 0, outcome.err
    assert "collapse is not judged on 5 held-out images: it takes 8" in outcome.err
    (status,) = (tmp_path / "runs").glob("*/status.json")
    assert json.loads(status.read_text())["status"] == "done"
    assert json.loads(status.read_text())["remarks"] == [
        "collapse is not judged on 5 held-out images: it takes 8"
    ]
    outcome = cli(
        "evaluate", status.parent / "encoder", "--protocol", "knn", "--image-set", f"folder:{photos}"
    )
    assert outcome.code == 0, outcome.err
    assert "remark: the neighbours are all the 43 labelled training images" in outcome.out
    outcome = cli("report", "runs", "--out", "results")
    assert outcome.code == 0, outcome.err
    assert (
        "SimCLR: collapse is not judged" in outcome.out
        or "All numbers: collapse is not judged" in outcome.out
    )
