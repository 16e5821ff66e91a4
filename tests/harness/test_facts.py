"""Cost and diagnostics of trainings, from one command to the tables: numbers, dashes with reasons, and old runs."""

import csv
import json
import re

import pytest

from twinbench.foundation.documents import unsealed

ROWS = "[random_init, supervised, barlow_twins, simclr]"
TABLES = """
tables:
  - name: cost
    columns:
      - {protocol: knn/cosine-v1, metric: top1, label: kNN top-1}
      - {protocol: cost/training-v1, metric: images_per_second, label: speed}
      - {protocol: cost/training-v1, metric: device_hours, label: pretraining}
      - {protocol: cost/training-v1, metric: peak_memory, label: memory}
      - {protocol: cost/training-v1, metric: parameters, label: parameters}
  - name: features
    columns:
      - {protocol: diagnostics/held-out-v1, metric: effective_rank, label: effective rank}
      - {protocol: diagnostics/held-out-v1, metric: alignment, label: alignment}
      - {protocol: diagnostics/held-out-v1, metric: uniformity, label: uniformity}
      - {protocol: diagnostics/held-out-v1, metric: diagonal_mean, label: mean diagonal}
      - {protocol: diagnostics/held-out-v1, metric: off_diagonal_rms, label: off-diagonal RMS}
      - {protocol: diagnostics/held-out-v1, metric: feature_spread, label: feature spread}
  - name: embeddings
    columns:
      - {protocol: diagnostics/embeddings-v1, metric: effective_rank, label: effective rank}
      - {protocol: diagnostics/embeddings-v1, metric: alignment, label: alignment}
figures:
  - {kind: scatter, name: speed, column: kNN top-1, against: speed}
  - {kind: scatter, name: rank, table: features, column: alignment, against: effective rank, against_table: embeddings}
"""


@pytest.fixture
def study(tiny_study):
    text = tiny_study.read_text().replace("[random_init, barlow_twins]", ROWS)
    tiny_study.write_text(text[: text.index("tables:")] + TABLES)
    return tiny_study


def records(folder):
    with (folder / "records.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def value(found, method, protocol, metric):
    (row,) = (r for r in found if (r["method"], r["protocol"], r["metric"]) == (method, protocol, metric))
    return row["value"], row["status"], row["reason"]


def test_a_study_of_cost_and_diagnostics(cli, study, tmp_path):
    outcome = cli("run", study)
    assert outcome.code == 0, outcome.err
    found = records(tmp_path / "results/tiny")
    (folder,) = (tmp_path / "runs").glob("barlow_twins-*")
    status = json.loads((folder / "status.json").read_text())
    own = ("barlow_twins", "cost/training-v1")
    assert float(value(found, *own, "images_per_second")[0]) == status["images_per_second"]
    hours = status["seconds"] * status["threads"] / 3600
    assert float(value(found, *own, "device_hours")[0]) == pytest.approx(hours)
    assert float(value(found, *own, "parameters")[0]) == status["parameters"] / 1e6
    untrained = "nothing was trained, or one step only"
    assert value(found, "random_init", own[1], "device_hours") == ("", "absent", untrained)

    measures = json.loads((folder / "diagnostics.json").read_text())["embeddings"]["measures"]
    embeddings = "diagnostics/embeddings-v1"
    assert float(value(found, "barlow_twins", embeddings, "alignment")[0]) == measures["alignment"]
    for method in ("random_init", "supervised"):
        assert value(found, method, embeddings, "alignment")[1:] == ("absent", "the method has no projector")
    features = {
        r["method"]: float(r["value"]) for r in found if r["metric"] == "effective_rank" and r["value"]
    }
    assert set(features) == {"random_init", "supervised", "barlow_twins", "simclr"}
    assert not list((tmp_path / "runs").glob("*/records/cost--*")), "there is no evaluation of it"

    tables = tmp_path / "results/tiny/tables"
    cost = (tables / "cost.md").read_text()
    assert "| speed (images/s) | pretraining (device-hours) | memory (MiB) | parameters (M) |" in cost
    assert re.search(r"</sup> nothing was trained", cost)
    assert "those of heads and of the slow copies" in cost
    assert "no projector" in (tables / "embeddings.md").read_text()
    for name in ("speed", "rank"):
        assert (tmp_path / f"results/tiny/figures/{name}.svg").stat().st_size > 0

    status_files = list((tmp_path / "runs").glob("*/status.json"))
    for file in status_files:  # as the runs of earlier versions are
        document = unsealed(file.read_text())
        for key in ("device_type", "ranks", "threads", "energy_joules", "energy_unknown"):
            document.pop(key)
        file.write_text(json.dumps(document))
        diagnostics = unsealed((file.parent / "diagnostics.json").read_text())
        diagnostics.pop("embeddings")
        (file.parent / "diagnostics.json").write_text(json.dumps(diagnostics))
    outcome = cli("run", study, "--out", "old")
    assert outcome.code == 0, outcome.err
    found = records(tmp_path / "old")
    earlier = "the run is of an earlier version of twinbench, which did not record it"
    assert value(found, *own, "device_hours") == ("", "absent", earlier)
    assert value(found, "simclr", embeddings, "alignment") == ("", "absent", earlier)
    assert value(found, *own, "images_per_second")[1] == "done"
    outcome = cli("report", "runs", "--out", "all")
    assert outcome.code == 0, outcome.err
    names = {file.stem for file in (tmp_path / "all/tables").glob("*.md")}
    assert names == {"knn-cosine-v1", "diagnostics-held-out-v1", "cost-training-v1"}
    written = (tmp_path / "all/tables/cost-training-v1.md").read_text()
    assert "| speed (images/s) | peak memory (MiB) | parameters (M) |" in written


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("{protocol: cost/trainng-v1, metric: energy}", "nearest: cost/training-v1"),
        ("{protocol: cost/training-v1, metric: enrgy}", "nearest: energy"),
        ("{protocol: cost/training-v1, metric: energy, image_set: letter-scenes}", "leave its image_set out"),
        ("{protocol: diagnostics/embeddings-v1, metric: alignmnt}", "nearest: alignment"),
    ],
)
def test_a_mistake_in_such_a_column_is_named_before_any_work(cli, tiny_study, tmp_path, column, message):
    tiny_study.write_text(tiny_study.read_text() + f"      - {column}\n")
    outcome = cli("run", tiny_study)
    assert outcome.code == 2
    assert re.search(rf"{re.escape(message)}", outcome.err)
    assert not (tmp_path / "runs").exists()


def test_diagnostics_need_no_labels(cli, tiny_study, photos, tmp_path):
    for split in ("train", "test"):
        for picture in sorted((photos / split).rglob("*.png")):
            picture.rename(photos / split / picture.name)
        for folder in ("dark", "light"):
            (photos / split / folder).rmdir()
    text = tiny_study.read_text().replace("image_set: digit-scenes", f"image_set: folder:{photos}")
    text = text.replace("[random_init, barlow_twins]", "[random_init]")
    column = "      - {protocol: diagnostics/held-out-v1, metric: alignment}\n"
    tiny_study.write_text(text[: text.index("      - {protocol")] + column)
    outcome = cli("run", tiny_study)
    assert outcome.code == 0, outcome.err
    number, status, _ = value(
        records(tmp_path / "results/tiny"), "random_init", "diagnostics/held-out-v1", "alignment"
    )
    assert status == "done"
    assert float(number) > 0
