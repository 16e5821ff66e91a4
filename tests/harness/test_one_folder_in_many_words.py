"""A folder of images is one image set, however its path is written: what is finished for it is not done again."""

from pathlib import Path

import pandas as pd
import pytest

STUDY = """
title: Photos
description: Two rows on a few photos.
image_set: folder:photos
recipes: digit-scenes
methods: [random_init, barlow_twins]
overrides: {backbone.width: 8, epochs: 1, batch_size: 16, schedule.warmup_epochs: 0}
tables:
  - name: main
    title: kNN
    columns:
      - {protocol: knn/cosine-v1, metric: top1, label: kNN top-1}
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "photos.yaml"
    path.write_text(STUDY)
    return path


def run_folders(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "runs").iterdir())


def test_a_study_is_done_once_for_every_spelling_of_its_folder(cli, tmp_path, photos, study, monkeypatch):
    runs = ("--runs", tmp_path / "runs")
    assert cli("run", study, *runs, "--out", tmp_path / "first").code == 0
    finished = run_folders(tmp_path)
    assert [name.rpartition("-")[0] for name in finished] == [
        "barlow_twins-folder-photos",
        "random_init-folder-photos",
    ]

    def refuse(*args, **kwargs):
        raise AssertionError("a finished job was done again")

    monkeypatch.setattr("twinbench.harness.execute.run_job", refuse)
    (tmp_path / "link").symlink_to(photos)
    monkeypatch.chdir(photos)
    for i, path in enumerate((photos, ".", "../photos/", tmp_path / "link")):
        out = tmp_path / f"again{i}"
        outcome = cli("run", study, "--image-set", f"folder:{path}", *runs, "--out", out)
        assert outcome.code == 0, outcome.err
        records = pd.read_csv(out / "records.csv", keep_default_na=False)
        assert set(records.status) == {"done"}
        assert set(records.image_set) == {f"folder:{path}"}
    assert run_folders(tmp_path) == finished


def test_another_folder_of_the_same_name_is_another_run(cli, tmp_path, photos, study):
    runs = ("--runs", tmp_path / "runs", "--methods", "random_init")
    assert cli("run", study, *runs).code == 0
    (photos / "train" / "dark" / "dark_0.png").unlink()
    assert cli("run", study, *runs).code == 0
    first, second = run_folders(tmp_path)
    assert first.rpartition("-")[0] == second.rpartition("-")[0] == "random_init-folder-photos"
