"""A report whose numbers are computed again, and what became of test items in forms that other tools read."""

import csv
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import precision_recall_curve

from twinbench.downstream import voc_svm
from twinbench.foundation.documents import unsealed
from twinbench.reports.records import read_records

RESULTS = "results/tiny"


@pytest.fixture
def done(finished):
    return finished / RESULTS


def test_every_number_follows_also_without_the_run_store(cli, done, tmp_path):
    shutil.rmtree(tmp_path / "runs")
    outcome = cli("verify", RESULTS)
    assert outcome.code == 0, outcome.err
    records = read_records(done / "records.csv")
    assert f"{len(records)} numbers follow from the outcomes of their test items" in outcome.out
    assert "files of tables follow from the records" in outcome.out
    assert "not computed again" not in outcome.out


def test_a_number_that_was_changed_is_named(cli, done):
    records = pd.read_csv(done / "records.csv")
    text = (done / "records.csv").read_text()
    value = records.value[records.protocol == "linear/cached-v1"].iloc[0]
    (done / "records.csv").write_text(text.replace(repr(float(value)), "99.5"))
    outcome = cli("verify", RESULTS)
    assert outcome.code == 2
    assert "records.csv: not as the report was written" in outcome.err
    assert "99.5 is recorded, its outcomes give" in outcome.err
    assert "tables/main.csv: the records give another table" in outcome.err


def test_a_table_that_was_changed_is_named(cli, done):
    table = done / "tables" / "main.md"
    table.write_text(table.read_text().replace("linear", "Linear"))
    outcome = cli("verify", RESULTS)
    assert outcome.code == 2
    assert "tables/main.md: not as the report was written" in outcome.err
    assert "tables/main.md: the records give another table" in outcome.err
    assert "main.csv" not in outcome.err


def test_outcomes_that_were_exchanged_or_lost_are_named(cli, done):
    first, second, *_ = sorted((done / "outcomes").iterdir())
    second.write_bytes(first.read_bytes())
    first.unlink()
    outcome = cli("verify", RESULTS)
    assert outcome.code == 2
    assert "the outcomes are not there" in outcome.err
    assert "the outcomes are not those of their record" in outcome.err


def test_a_folder_that_is_no_report_is_refused(cli, tmp_path):
    outcome = cli("verify", tmp_path)
    assert outcome.code == 2
    assert "this is no report" in outcome.err


def test_predictions_are_exported_and_give_the_number(cli, done, tmp_path):
    outcome = cli("export-results", "runs", "--out", "exported")
    assert outcome.code == 0, outcome.err
    files = sorted((tmp_path / "exported").rglob("*.csv"))
    assert len(files) == 4
    records = read_records(done / "records.csv")
    for file in files:
        rows = list(csv.DictReader(file.read_text().splitlines()))
        top1 = 100 * np.mean([row["true"] == row["predicted_1"] for row in rows])
        method = "barlow_twins" if "barlow_twins" in file.parent.name else "random_init"
        protocol = file.name.partition("--on-")[0].replace("--", "/")
        (record,) = [r for r in records if (r.method, r.protocol, r.metric) == (method, protocol, "top1")]
        assert top1 == pytest.approx(record.value)
        assert len(rows) == record.n == 64
        for name in ("protocol", "image_set", "image_set_fingerprint", "encoder_checksum", "seed"):
            assert {row[name] for row in rows} == {str(getattr(record, name))}


def exported(cli, tmp_path, protocol: str, metric: str, image_set: str) -> tuple[pd.DataFrame, float]:
    """What is exported of an evaluation of an untrained network, and the number that was measured."""
    (tmp_path / "other.yaml").write_text(
        f"title: Other\ndescription: Other.\nimage_set: {image_set}\nrecipes: digit-scenes\nmethods: [random_init]\n"
        "limit: {train: 160, val: 32, test: 96}\n"
        f"tables: [{{name: main, columns: [{{protocol: {protocol}, metric: {metric}}}]}}]\n"
    )
    outcome = cli("run", "other.yaml")
    assert outcome.code == 0, outcome.err
    assert cli("export-results", "runs", "--out", "exported").code == 0
    (file,) = (tmp_path / "exported").rglob("*.csv")
    records = read_records(tmp_path / "results/other/records.csv")
    return pd.read_csv(file), next(record.value for record in records if record.metric == metric)


def test_how_often_draws_had_an_image_right_is_exported_and_gives_the_number(cli, tmp_path):
    drawn, value = exported(cli, tmp_path, "few-shot/5-v1", "top1", "digit-scenes")
    assert list(drawn)[:4] == ["row", "draws", "right_top1", "right_top5"]
    assert len(drawn) == 96
    assert (100 * drawn.right_top1 / drawn.draws).mean() == pytest.approx(value)


def test_scores_of_support_vector_machines_are_exported_and_give_the_number(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(voc_svm, "PENALTIES", (0.01, 1.0))
    scored, value = exported(cli, tmp_path, "svm/voc07-v2", "map_all_points", "shape-scenes")
    assert len(scored) == 96
    precisions = []
    for name in (name for name in scored if name.startswith("truth_")):
        counted = scored[scored[name] != 0]
        scores = counted[name.replace("truth", "score")]
        precision, recall, _ = precision_recall_curve(counted[name] > 0, scores)
        # VOC's precision is the best at this recall or a higher one, and the curve begins at the highest
        precisions.append(-np.sum(np.diff(recall) * np.maximum.accumulate(precision)[:-1]))
    assert 100 * np.mean(precisions) == pytest.approx(value)


def test_an_evaluation_without_its_outcomes_is_done_again(cli, tiny_study, done, tmp_path):
    (lost, *_) = sorted((tmp_path / "runs").glob("barlow*/records/*.safetensors"))
    before = lost.read_bytes()
    lost.unlink()
    outcome = cli("run", tiny_study)
    assert outcome.code == 0, outcome.err
    assert lost.read_bytes() == before


def test_a_store_without_outcomes_has_nothing_to_export(cli, done, tmp_path):
    for record in (tmp_path / "runs").glob("*/records/*.json"):
        document = unsealed(record.read_text())
        del document["outcomes"]
        record.write_text(json.dumps(document))
    outcome = cli("export-results", "runs", "--out", "exported")
    assert outcome.code == 2
    assert "there are no outcomes of test items here" in outcome.err
