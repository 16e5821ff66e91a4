"""What jobs took is read from records: each job once, its training from the fact of its cost."""

import csv
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def job_costs(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import job_costs

    return job_costs


def row(protocol, metric, value, seconds="", memory="", table="a", run="1", status="done"):
    return {
        "study": "s",
        "table": table,
        "method": "simclr",
        "image_set": "digits",
        "protocol": protocol,
        "metric": metric,
        "value": value,
        "seconds": seconds,
        "peak_memory_mb": memory,
        "status": status,
        "recipe_hash": run,
        "device": "CPU",
    }


def test_a_job_counts_once_however_many_tables_and_metrics_show_it(job_costs, tmp_path):
    rows = [
        *(
            row("knn/cosine-v1", metric, 50, 4, 900, table)
            for metric in ("top1", "top5")
            for table in ("a", "b")
        ),
        row("knn/cosine-v1", "top1", 50, 8, 950, run="2"),
        row("knn/cosine-v1", "top1", "", 99, 99, run="3", status="failed"),
        *(
            row("cost/training-v1", metric, value)
            for metric, value in (("device_hours", 0.5), ("peak_memory", 70))
        ),
    ]
    file = tmp_path / "records.csv"
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    text = job_costs.render(job_costs.read(file))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    assert ["training, simclr", "1", "1800.0", "70", "0.50"] in cells
    assert ["knn/cosine-v1 on digits", "2", "6.0 (4.0 to 8.0)", "950", "0.00"] in cells
    assert len(cells) == 4


def test_the_records_of_the_repository_have_the_costs_of_every_method(job_costs):
    rows = job_costs.read(BENCHMARKS.parent / "docs" / "results" / "paper" / "records.csv")
    found = job_costs.trainings(rows)
    assert {"barlow_twins", "simclr", "byol", "swav", "simsiam", "moco_v2"} <= set(found)
    assert all(len(uses) == 3 for uses in found.values())


def test_another_file_is_refused(job_costs, tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    for file in (tmp_path / "x.csv", tmp_path / "none.csv"):
        with pytest.raises(job_costs.InputError, match="records"):
            job_costs.read(file)
