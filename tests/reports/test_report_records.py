"""records.csv: what is written comes back, and what is wrong in a file is named."""

import csv
import io
import json
from pathlib import Path

import pandas as pd
import pytest

from twinbench.foundation.errors import InputError
from twinbench.reports.records import COLUMNS, read_records, records_csv

SHOWN = sorted((Path(__file__).parents[2] / "docs" / "results").glob("*/records.csv"))
GOOD = {
    "method": "byol",
    "image_set": "x",
    "protocol": "p",
    "metric": "m",
    "value": "1.0",
    "seed": "0",
    "status": "done",
}


@pytest.fixture
def written(tmp_path):
    """Write rows of text as a CSV file."""

    def write(*rows):
        path = tmp_path / "records.csv"
        with path.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        return path

    return write


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: path.parent.name)
def test_the_shown_records_come_back_to_the_byte(path):
    records = read_records(path)
    with path.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [r.value for r in records] == [float(row["value"]) if row["value"] else None for row in rows]
    assert [r.seed for r in records] == [int(row["seed"]) for row in rows]
    assert all(json.loads(record.environment) for record in records if record.status == "done")
    assert records_csv(records).encode() == with_every_column(path)


def with_every_column(path: Path) -> bytes:
    """The file's content; a file from before there was a column of tables or of tuning gets it, empty."""
    with path.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def test_pandas_writes_the_same_with_and_without_empty_cells(make_row, tmp_path):
    rows = [make_row("byol", 0.1 + 0.2), make_row("swav", None, n=None, stderr=None, reason='a "b", c\nd')]
    for some in (rows, rows[:1]):
        assert records_csv(some) == pd.DataFrame(some).to_csv(index=False)
        (tmp_path / "records.csv").write_text(records_csv(some))
        assert read_records(tmp_path / "records.csv") == some


def test_no_records_are_a_header(tmp_path):
    (tmp_path / "records.csv").write_text(records_csv([]))
    assert (tmp_path / "records.csv").read_text().startswith("study,table,method,variant,image_set")
    assert read_records(tmp_path / "records.csv") == []


def test_numbers_that_say_nothing_are_none_and_whole_numbers_may_have_a_point(written):
    path = written(GOOD | {"value": "nan", "seed": "0.0"}, GOOD | {"value": "inf", "seed": "1.0"})
    first, second = read_records(path)
    assert (first.value, first.seed, first.origin, first.n) == (None, 0, "run", None)
    assert (second.value, second.seed) == (None, 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (GOOD | {"recipe_hsh": "a"}, r"recipe_hsh(.|\n)*nearest: recipe_hash"),
        ({k: v for k, v in GOOD.items() if k != "seed"}, "no column 'seed'"),
        (GOOD | {"status": "dune"}, r"unknown status(.|\n)*line 2(.|\n)*nearest: done"),
        (GOOD | {"origin": "ran"}, r"unknown origin(.|\n)*nearest: run"),
        (GOOD | {"value": "much"}, r"value is not a number: 'much'(.|\n)*line 2"),
    ],
)
def test_what_is_wrong_is_named(written, row, message):
    with pytest.raises(InputError, match=message):
        read_records(written(row))
