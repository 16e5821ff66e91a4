"""The benchmark of the workers: its study is a real one, and its table compares within a plan and a turn."""

import json
from pathlib import Path

import pytest
import yaml

from twinbench.harness.studies import load_study

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def side_by_side(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import side_by_side

    return side_by_side


def test_the_study_is_one_that_the_harness_reads(side_by_side, tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(side_by_side.study_of(side_by_side.METHODS, 4)))
    (table,) = load_study(str(file)).tables
    assert len(table.columns) == 2


def test_the_digest_is_of_weights_and_numbers_alone(side_by_side, tmp_path):
    records, encoder = tmp_path / "run" / "records", tmp_path / "run" / "encoder"
    records.mkdir(parents=True)
    encoder.mkdir()

    def digest(weights, value, seconds):
        (encoder / "encoder.safetensors").write_bytes(weights)
        record = {"measurements": [{"value": value}], "seconds": seconds}
        (records / "knn.json").write_text(json.dumps(record))
        return side_by_side.results_digest(tmp_path)

    first = digest(b"a", 1.0, 3.0)
    assert digest(b"a", 1.0, 4.0) == first
    assert digest(b"b", 1.0, 3.0) != first
    assert digest(b"a", 2.0, 3.0) != first


def test_the_table_compares_each_turn_with_one_after_another(side_by_side):
    def row(side, seconds, digest):
        answers = [{"seconds": s, "processor_seconds": 1.0, "digest": digest} for s in seconds]
        return {"plan": "six runs", "side": side, "answers": answers}

    all_cores, threads, beside = side_by_side._SIDES
    rows = [row(all_cores, [10, 20], "x"), row(threads, [20, 20], "y"), row(beside, [5, 16], "y")]
    text = side_by_side.render(
        {
            "facts": dict.fromkeys(("machine", "python", "torch", "commit", "date", "command"), "x"),
            "device": "a processor",
            "epochs": 1,
            "repetitions": 2,
            "cores": 2,
            "workers": 2,
            "load": 0.5,
            "groups": True,
            "rows": rows,
        }
    )
    cells = [
        [cell.strip() for cell in line.split("|")[2:-1]] for line in text.splitlines() if "six runs" in line
    ]
    assert [[line[0], *line[3:]] for line in cells] == [
        [all_cores, "1.00", "no"],
        [threads, "0.75 (0.50 to 1.00)", "yes"],
        [beside, "1.62 (1.25 to 2.00)", "yes"],
    ]
