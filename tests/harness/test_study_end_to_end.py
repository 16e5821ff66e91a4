"""One command from nothing to the tables, and what a second one does not repeat."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

# Drawn in every format these take longer than the study itself: for a test that looks at them.
FIGURES = """
figures:
  - {kind: loss_curves}
  - {kind: cross_correlation}
  - {kind: spectrum}
"""


def test_a_study_leaves_records_tables_figures_and_a_page(cli, tiny_study, tmp_path):
    tiny_study.write_text(tiny_study.read_text() + FIGURES)
    outcome = cli("run", tiny_study)
    assert outcome.code == 0, outcome.err
    results = tmp_path / "results" / "tiny"
    records = pd.read_csv(results / "records.csv")
    assert set(records.method) == {"random_init", "barlow_twins"}
    assert set(records.protocol) == {"knn/cosine-v1", "linear/cached-v1"}
    assert (records.status == "done").all()
    assert records.value.between(0, 100).all()
    for name in ("report.html", "tables/main.csv", "tables/main.md", "tables/main.tex"):
        assert (results / name).stat().st_size > 0
    assert {p.suffix for p in (results / "figures").iterdir()} == {".svg", ".png", ".pdf"}
    assert str(Path("results/tiny/report.html")) in outcome.out


def test_a_second_run_trains_and_evaluates_nothing(cli, tiny_study, finished, tmp_path, monkeypatch):
    before = pd.read_csv(tmp_path / "results/tiny/records.csv")

    def refuse(*args, **kwargs):
        raise AssertionError("a finished job was done again")

    monkeypatch.setattr("twinbench.harness.execute.run_job", refuse)
    outcome = cli("run", tiny_study)
    assert outcome.code == 0, outcome.err
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "results/tiny/records.csv"), before)


def test_the_same_recipe_gives_the_same_numbers_elsewhere(cli, tiny_study, finished, tmp_path):
    again = cli("run", tiny_study, "--runs", "second", "--out", "again/tiny")
    assert "6 jobs, 0 already finished" in again.err
    key = ["method", "protocol", "metric"]
    first, second = (
        pd.read_csv(tmp_path / side / "tiny/records.csv")[[*key, "value", "encoder_checksum"]]
        for side in ("results", "again")
    )
    pd.testing.assert_frame_equal(first, second)


def test_a_dry_run_prints_every_job_and_writes_nothing(cli, tiny_study, tmp_path):
    outcome = cli("run", tiny_study, "--dry-run")
    assert outcome.code == 0, outcome.err
    for label in ("pretrain barlow_twins", "knn/cosine-v1 random_init", "estimated time"):
        assert label in outcome.out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.yaml"]


def test_seeds_and_methods_narrow_or_widen_a_study(cli, tiny_study, tmp_path):
    outcome = cli("run", tiny_study, "--methods", "random_init", "--seeds", "2")
    assert outcome.code == 0, outcome.err
    records = pd.read_csv(tmp_path / "results/tiny/records.csv")
    assert set(records.method) == {"random_init"}
    assert set(records.seed) == {0, 1}
    assert records.encoder_checksum.nunique() == 2


@pytest.fixture
def photos(tmp_path):
    """Forty images in two classes, as a user would have them."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 4)):
        for label in ("cats", "dogs"):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "photos"


def test_pretrain_evaluate_and_report_on_ones_own_images(cli, photos, tmp_path):
    own = ["--image-set", f"folder:{photos}"]
    tiny = ["--set", "backbone.width=8", "--set", "epochs=1", "--set", "batch_size=8"]
    for head in ("64", "32"):
        projector = f"options.projector=[{head},{head}]"
        trained = cli("pretrain", "barlow_twins", *own, *tiny, "--set", projector)
        assert trained.code == 0, trained.err
        encoder = trained.out.strip().removeprefix("encoder: ")
        measured = cli("evaluate", encoder, "--protocol", "knn", *own, "--out", "knn.json")
        assert measured.code == 0, measured.err
    assert "knn/cosine-v1 on folder:" in measured.out
    record = json.loads((tmp_path / "knn.json").read_text())
    assert {m["metric"] for m in record["measurements"]} == {"top1"}, "top-5 of two classes says nothing"
    assert record["environment"]["torch"]
    elsewhere = cli("evaluate", encoder, "--protocol", "knn", "--image-set", "digit-scenes")
    assert elsewhere.code == 0, elsewhere.err

    reported = cli("report", "runs", "--out", "results/mine")
    assert reported.code == 0, reported.err
    records = pd.read_csv(tmp_path / "results/mine/records.csv", keep_default_na=False)
    assert set(records.image_set) == {f"folder:{photos}", "digit-scenes"}
    assert set(records.variant) == {"options.projector=[64, 64]", "options.projector=[32, 32]"}


def test_an_ablation_gives_rows_for_every_value(cli, tiny_study, tmp_path):
    axis = "{key: options.lambd, label: lambda, values: [0.001, 1e-2], log_scale: true}"
    rows = f"    rows: [{{methods: [barlow_twins], vary: [{axis}]}}]\n"
    tiny_study.write_text(tiny_study.read_text() + rows)
    outcome = cli("run", tiny_study)
    assert outcome.code == 0, outcome.err
    records = pd.read_csv(tmp_path / "results/tiny/records.csv", dtype={"variant": str})
    assert set(records.variant) == {"0.001", "1e-2"}
    assert records.recipe_hash.nunique() == 2


@pytest.mark.parametrize("thing", ["methods", "protocols", "image-sets", "recipes", "studies", "runs"])
def test_ls_prints_a_json_list(cli, thing):
    outcome = cli("ls", thing, "--json")
    assert outcome.code == 0, outcome.err
    assert isinstance(json.loads(outcome.out), list)


def test_doctor_names_the_device_and_what_is_missing(cli):
    outcome = cli("doctor")
    assert outcome.code == 0, outcome.err
    for word in ("device", "Detectron2", "digit-scenes: found", "cifar10: not found"):
        assert word in outcome.out
