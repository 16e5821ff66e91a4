"""A study that trains encoders on one image set and measures them on another."""

import json
import sys

import pandas as pd
import pytest

from twinbench.foundation.documents import unsealed

STUDY = """
title: Elsewhere
description: Encoders of one set, measured on another.
image_set: digit-scenes
recipes: digit-scenes
methods: [random_init, barlow_twins]
limit: {{train: 192, val: 32, test: 64}}
overrides: {{backbone.width: 8, epochs: 1, batch_size: 96, schedule.warmup_epochs: 0}}
tables:
  - name: main
    title: kNN
    columns:
      - {{protocol: knn/cosine-v1, metric: top1, label: kNN top-1, image_set: {measured_on}}}
"""


def write_study(path, measured_on):
    path.write_text(STUDY.format(measured_on=measured_on))
    return path


@pytest.mark.parametrize("workers", ["1", "2"])
def test_records_and_table_name_the_set_that_was_measured(cli, tmp_path, photos, workers):
    study = write_study(tmp_path / "elsewhere.yaml", f"folder:{photos}")
    outcome = cli("run", study, "--workers", workers)
    assert outcome.code == 0, outcome.err
    records = pd.read_csv(tmp_path / "results/elsewhere/records.csv", keep_default_na=False)
    assert set(records.status) == {"done"}
    assert set(records.image_set) == {f"folder:{photos}"}
    assert set(records.n.astype(float)) == {16.0}
    assert set(records.pretrained_on[records.method == "barlow_twins"]) == {"digit-scenes"}
    table = (tmp_path / "results/elsewhere/tables/main.md").read_text()
    assert "on digit-scenes, resnet10" in table
    assert f"on folder:{photos}" in table.replace("\\", "")


def test_remarks_on_other_training_images_say_whose_they_are(cli, tmp_path, photos):
    (photos / "train" / "dark" / ".hidden.png").write_text("left out")
    study = write_study(tmp_path / "elsewhere.yaml", "digit-scenes")
    study.write_text(study.read_text().replace("image_set: digit-scenes", f"image_set: folder:{photos}", 1))
    study.write_text(study.read_text().replace("batch_size: 96", "batch_size: 16"))
    outcome = cli("run", study)
    assert outcome.code == 0, outcome.err
    records = pd.read_csv(tmp_path / "results/elsewhere/records.csv", keep_default_na=False)
    remarks = dict(zip(records.method, records.remarks, strict=True))
    assert f"pretraining on folder:{photos}: left out as hidden" in remarks["barlow_twins"]


def test_the_two_studies_share_trainings_and_keep_both_records(cli, tmp_path, photos, monkeypatch):
    here = write_study(tmp_path / "here.yaml", '""')
    there = write_study(tmp_path / "there.yaml", f"folder:{photos}")
    assert cli("run", here).code == 0
    (run,) = (tmp_path / "runs").glob("barlow_twins-*")
    trained = (run / "encoder/encoder.safetensors").stat().st_mtime_ns
    assert cli("run", there).code == 0
    assert (run / "encoder/encoder.safetensors").stat().st_mtime_ns == trained
    measured = {p.name: json.loads(p.read_text())["image_set"] for p in (run / "records").glob("*.json")}
    assert measured.pop("knn--cosine-v1.json") == "digit-scenes"
    ((name, image_set),) = measured.items()
    assert name.startswith("knn--cosine-v1--on-folder-photos-")
    assert image_set == f"folder:{photos}"

    def refuse(*args, **kwargs):
        raise AssertionError("a finished job was done again")

    monkeypatch.setattr("twinbench.harness.execute.run_job", refuse)
    for study in (here, there):
        assert cli("run", study).code == 0
    first, second = (
        pd.read_csv(tmp_path / f"results/{name}/records.csv").n.unique() for name in ("here", "there")
    )
    assert (first.tolist(), second.tolist()) == ([64], [16])


def test_a_failed_measurement_names_its_image_set(cli, tmp_path, photos, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("the disk is gone")

    monkeypatch.setattr("twinbench.harness.execute.evaluate_encoder", fail)
    assert cli("run", write_study(tmp_path / "there.yaml", f"folder:{photos}")).code == 1
    records = pd.read_csv(tmp_path / "results/there/records.csv")
    assert set(records.status) == {"failed"}
    assert set(records.image_set) == {f"folder:{photos}"}
    assert records.reason.str.contains("the disk is gone").all()


def test_a_dry_run_says_both_sets(cli, tmp_path, photos):
    outcome = cli("run", write_study(tmp_path / "there.yaml", f"folder:{photos}"), "--dry-run")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("Elsewhere: 4 jobs\n")
    assert f"knn/cosine-v1 on folder:{photos} barlow_twins (seed 0)" in outcome.out


def test_a_set_without_what_the_protocol_needs_is_refused_before_any_work(cli, tmp_path, photos):
    study = write_study(tmp_path / "there.yaml", f"folder:{photos}")
    text = study.read_text().replace("knn/cosine-v1", "detection/c4-torchvision-v2")
    study.write_text(text.replace("metric: top1", "metric: box_ap"))
    outcome = cli("run", study)
    assert outcome.code == 2
    assert "this image set has no boxes or masks" in outcome.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["knn", "detection/c4"])
def test_a_study_names_protocols_in_full(cli, tmp_path, name):
    study = write_study(tmp_path / "short.yaml", '""')
    study.write_text(study.read_text().replace("knn/cosine-v1", name))
    outcome = cli("run", study)
    assert outcome.code == 2
    assert f"in full, not '{name}'" in outcome.err


def test_a_record_of_another_seed_is_not_the_studys(cli, tmp_path, photos):
    study = write_study(tmp_path / "there.yaml", f"folder:{photos}")
    assert cli("run", study).code == 0
    (run,) = (tmp_path / "runs").glob("barlow_twins-*")
    (file,) = (run / "records").glob("*.json")
    kept = file.read_bytes()
    evaluate = ("evaluate", run, "--protocol", "knn/cosine-v1", "--image-set", f"folder:{photos}")
    assert cli(*evaluate, "--seed", "7", "--out", "own.json").code == 0
    assert json.loads((tmp_path / "own.json").read_text())["seed"] == 7
    assert file.read_bytes() == kept, "the run keeps what its study made"
    file.write_text(json.dumps({**unsealed(kept), "seed": 7, "measurements": []}))
    assert cli("run", study).code == 0
    assert json.loads(file.read_text())["seed"] == 0, "such a record is made again"
    file.write_text("{}")
    assert cli("run", study).code == 0
    assert json.loads(file.read_text())["measurements"]


def test_a_report_tells_versions_of_an_image_set_apart(cli, tmp_path, photos):
    study = write_study(tmp_path / "there.yaml", f"folder:{photos}")
    assert cli("run", study).code == 0
    for path in (photos / "test").rglob("*_7.png"):
        path.unlink()
    assert cli("run", study).code == 0
    assert cli("report", "runs", "--out", "all").code == 0
    records = pd.read_csv(tmp_path / "all" / "records.csv")
    records = records[
        records.protocol == "knn/cosine-v1"
    ]  # what is known of the trainings themselves has no test items
    assert records.groupby("image_set").n.unique().map(list).to_list() in ([[16], [14]], [[14], [16]])
    assert records.image_set.str.startswith(f"folder:{photos} (").all()


def test_the_same_images_under_another_name_keep_the_studys_name(cli, tmp_path, photos, monkeypatch):
    study = write_study(tmp_path / "there.yaml", f"folder:{photos}")
    assert cli("run", study).code == 0
    (run,) = (tmp_path / "runs").glob("barlow_twins-*")
    arguments = ("--protocol", "knn/cosine-v1", "--image-set", "folder:photos")
    assert cli("evaluate", run, *arguments).code == 0
    assert len(list((run / "records").glob("*.json"))) == 1
    assert cli("run", study).code == 0
    records = pd.read_csv(tmp_path / "results/there/records.csv")
    assert set(records.image_set) == {f"folder:{photos}"}


def test_a_missing_library_is_said_before_any_training(cli, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    study = write_study(tmp_path / "here.yaml", '""')
    text = study.read_text().replace("knn/cosine-v1", "detection/c4-detectron2-v1")
    study.write_text(text.replace("metric: top1", "metric: box_ap"))
    outcome = cli("run", study)
    assert outcome.code == 2
    assert "needs Detectron2" in outcome.err
    assert not (tmp_path / "runs").exists()
