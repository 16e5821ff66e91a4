"""records.csv: what is written comes back, and what is wrong in a file is named."""

import csv
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from twinbench.foundation.errors import InputError
from twinbench.reports.records import read_records, records_csv, write_records

DOCS = Path(__file__).parents[2] / "docs"
SHOWN = sorted((DOCS / "results").glob("*/records.csv"))
HERE, THERE = '{"machine": "h\\u00e9re", "torch": "2.9"}', '{"commit": "", "torch": "2.10"}'
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
def test_the_shown_records_come_back_to_the_byte(path, tmp_path):
    records = read_records(path)
    with path.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [r.value for r in records] == [float(row["value"]) if row["value"] else None for row in rows]
    assert [r.seed for r in records] == [int(row["seed"]) for row in rows]
    assert all(json.loads(record.environment)["torch"] for record in records if record.status == "done")
    write_records(tmp_path, records)
    for name in ("records.csv", "environments.json"):
        assert (tmp_path / name).read_bytes() == path.with_name(name).read_bytes()


def test_pandas_writes_the_same_with_and_without_empty_cells(make_row, tmp_path):
    nowhere = {"environment": "", "trained_in": ""}
    rows = [
        make_row("byol", 0.1 + 0.2, **nowhere),
        make_row("swav", None, n=None, stderr=None, reason='a "b", c\nd', **nowhere),
    ]
    for some in (rows, rows[:1]):
        assert records_csv(some) == pd.DataFrame(some).to_csv(index=False)
        write_records(tmp_path, some)
        assert read_records(tmp_path / "records.csv") == some


def test_no_records_are_a_header(tmp_path):
    write_records(tmp_path, [])
    assert (tmp_path / "records.csv").read_text().startswith("study,table,method,variant,image_set")
    assert json.loads((tmp_path / "environments.json").read_text()) == {}
    assert read_records(tmp_path / "records.csv") == []


@pytest.fixture
def of_two(make_row, tmp_path):
    """The file of four records from two environments, and the records."""
    records = [
        make_row("byol", 1.0, environment=HERE, trained_in=THERE),
        make_row("byol", 2.0, seed=1, environment=HERE, trained_in=HERE),
        make_row("random_init", 3.0, environment=THERE),
        make_row("swav", None, status="not run", environment=""),
    ]
    write_records(tmp_path, records)
    return tmp_path / "records.csv", records


def test_every_environment_is_there_once_under_the_digest_of_its_facts(of_two):
    path, records = of_two
    assert read_records(path) == records
    kept = json.loads(path.with_name("environments.json").read_text())
    assert sorted(kept.values(), key=lambda facts: facts["torch"]) == [json.loads(THERE), json.loads(HERE)]
    for digest, facts in kept.items():
        text = json.dumps(facts, sort_keys=True).encode()
        assert digest == f"sha256:{hashlib.sha256(text).hexdigest()[:12]}"
    table = pd.read_csv(path, keep_default_na=False)
    assert set(table.environment) | set(table.trained_in) == {*kept, ""}
    write_records(path.parent, [*records[::-1]])
    assert list(json.loads(path.with_name("environments.json").read_text()).items()) == list(kept.items())


def test_facts_in_another_order_are_the_same_environment(of_two):
    path, records = of_two
    turned = json.dumps(dict(reversed(json.loads(HERE).items())))
    assert turned != HERE
    before = path.with_name("environments.json").read_bytes()
    write_records(
        path.parent, [replace(r, environment=turned) if r.environment == HERE else r for r in records]
    )
    assert path.with_name("environments.json").read_bytes() == before
    assert read_records(path) == records


def test_an_environment_that_is_not_that_of_its_digest_is_named(of_two):
    path, _ = of_two
    file = path.with_name("environments.json")
    file.write_text(file.read_text().replace("2.10", "2.11"))
    with pytest.raises(
        InputError, match=r"facts under sha256:\w{12} are not(.|\n)*environments\.json(.|\n)*next:"
    ):
        read_records(path)


@pytest.mark.parametrize("content", ["{", "[]", "7", b"\xff"])
def test_environments_that_cannot_be_read_are_named(of_two, content):
    path, _ = of_two
    path.with_name("environments.json").write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    with pytest.raises(InputError, match=r"environments cannot be read(.|\n)*environments\.json(.|\n)*next:"):
        read_records(path)


def without_one(path):
    kept = json.loads(path.read_text())
    path.write_text(
        json.dumps({digest: facts for digest, facts in kept.items() if facts != json.loads(HERE)})
    )


@pytest.mark.parametrize("harm", [Path.unlink, without_one])
def test_a_digest_of_no_environment_is_named_with_its_line(of_two, harm):
    path, _ = of_two
    harm(path.with_name("environments.json"))
    message = (
        r"'sha256:\w{12}' that environments\.json does not have(.|\n)*line 2(.|\n)*next:.*beside the records"
    )
    with pytest.raises(InputError, match=message):
        read_records(path)


@pytest.mark.parametrize("cell", ["torch", "[]", '"{}"', "2.9"])
def test_text_that_is_neither_a_digest_nor_facts_is_no_environment(written, cell):
    with pytest.raises(InputError, match=r"does not have(.|\n)*line 2"):
        read_records(written(GOOD | {"environment": cell}))


def test_records_of_an_earlier_version_have_the_facts_in_each_row(written):
    (record,) = read_records(written(GOOD | {"environment": HERE, "trained_in": ""}))
    assert (record.environment, record.trained_in) == (HERE, "")


def facts_of(record: dict[str, object], prefix: str) -> dict[str, object]:
    named = {name.removeprefix(prefix): value for name, value in record.items() if name.startswith(prefix)}
    return {name: value for name, value in named.items() if not pd.isna(value)}


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: path.parent.name)
def test_the_lines_of_the_page_join_the_environments_to_the_records(path, monkeypatch):
    text = (DOCS / "tasks" / "tell-what-is-real.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found: dict[str, object] = {}
    monkeypatch.chdir(path.parent)
    exec(block, found)
    records = read_records(path)
    for row, record in zip(found["records"].to_dict("records"), records, strict=True):
        assert facts_of(row, "measured: ") == json.loads(record.environment or "{}")
        assert facts_of(row, "trained: ") == json.loads(record.trained_in or "{}")


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
