"""What stands after the ±: its kind is a fact of each number, and every place that tells of it asks that."""

import csv
import hashlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save
from scipy import stats

from twinbench.reports.details import summary
from twinbench.reports.figures import draw_figures
from twinbench.reports.tables import build_tables
from twinbench.reports.writers import to_csv

N = 400
COLUMNS = [{"protocol": "linear/cached-v1", "metric": "top1", "label": "Linear"}]
AP = [{"protocol": "detection/x-v1", "metric": "box_ap", "label": "AP"}]


@pytest.fixture
def build(spec):
    def build(records, runs=(), columns=COLUMNS, **more):
        return build_tables(spec({"tables": [{"name": "t", "columns": columns}], **more}), records, runs)[0]

    return build


@pytest.fixture
def measured(tmp_path, make_row, make_run):
    """The record of a seed whose outcomes are kept, and its run: shares of hits, or replicates of an AP."""

    def measured(method, value, seed=0, replicates=None, **more):
        rng = np.random.default_rng(seed)
        items = {"rows": np.arange(N, dtype=np.int32)}
        if replicates is None:
            true, hits = np.zeros(N, np.int16), rng.permutation(N) < N * value / 100
            items |= {"true": true, "predicted": np.where(hits, 0, 1).astype(np.int16)[:, None]}
        else:
            items |= {"replicates/box_ap": replicates}
        content = save(items, {"about": json.dumps({"image_set_fingerprint": "print"})})
        sha256 = hashlib.sha256(content).hexdigest()
        path = tmp_path / f"{sha256}.safetensors"
        path.write_bytes(content)
        run = replace(make_run(method, seed=seed), outcomes={sha256: path})
        return make_row(method, value, seed, outcomes=sha256, n=N, **more), run

    return measured


def told(table, method, column=0):
    """The text of a number, its kind in the CSV, and the summary of its tooltip and dialog."""
    (entry,) = [row.entries[column] for row in table.rows if row.method == method]
    (line,) = [line for line in csv.DictReader(io.StringIO(to_csv(table))) if line["method"] == method]
    return entry.text, line["kind"], summary(entry)


def about_spread(table):
    return [note for note in table.notes if "±" in note or "test items." in note]


def test_a_deviation_is_over_seeds_and_the_note_counts_seeds_and_test_items(make_row, build):
    table = build([make_row("byol", 70.0 + seed, seed) for seed in range(3)])
    assert told(table, "byol")[:2] == ("71.0 ± 1.0", "seeds")
    assert told(table, "byol")[2].startswith(
        "mean and std of 3 seeds; 95 % interval 68.52 to 73.48 over seeds"
    )
    assert about_spread(table) == [
        "± = std over 3 seeds; the value is their mean.",
        "Measured on 2000 test items.",
    ]


def test_an_interval_over_seeds_is_no_deviation_anywhere(make_row, build):
    table = build([make_row("byol", 70.0 + seed, seed) for seed in range(3)], uncertainty="interval")
    half = stats.t.ppf(0.975, 2) / np.sqrt(3)
    shown, kind, words = told(table, "byol")
    assert (shown, kind) == (f"71.0 ± {half:.1f}", "interval over seeds")
    assert words.startswith("mean of 3 seeds; ± = half the 95 % interval over seeds; 95 % interval 68.52")
    assert about_spread(table) == [
        "± = half the 95 % interval over 3 seeds; the value is their mean.",
        "Measured on 2000 test items.",
    ]


def test_an_interval_over_seeds_and_items_names_the_numbers_of_both(measured, build):
    found = [measured("byol", value, seed) for seed, value in enumerate((70.0, 71.0, 72.0))]
    table = build([record for record, _ in found], [run for _, run in found], uncertainty="interval")
    _, kind, words = told(table, "byol")
    assert kind == "interval over seeds and test items"
    assert words.startswith("mean of 3 seeds; ± = half the 95 % interval over seeds and test items; 95 %")
    assert about_spread(table) == [
        "± = half the 95 % interval over 3 seeds and 400 test items; the value is their mean."
    ]


def test_one_seed_of_a_metric_without_a_standard_error_has_its_interval(measured, build):
    replicates = np.random.default_rng(0).normal(30.0, 2.0, 200)
    record, run = measured(
        "byol", 30.0, replicates=replicates, protocol="detection/x-v1", metric="box_ap", stderr=None
    )
    half = stats.t.ppf(0.975, N - 1) * replicates.std(ddof=1)
    table = build([record], [run], AP, uncertainty="interval")
    shown, kind, words = told(table, "byol")
    assert (shown, kind) == (f"30.0 ± {half:.1f}", "interval over test items")
    assert words.startswith("1 seed; ± = half the 95 % interval over test items; 95 % interval")
    assert about_spread(table) == ["± = half the 95 % interval over 400 test items (one seed)."]
    shown, kind, words = told(build([record], [run], AP), "byol")
    assert (shown, kind) == (f"30.0 ± {half:.1f}", "interval over test items"), "it has no standard error"
    assert "over test items" in words


def test_a_standard_error_of_an_earlier_record_is_not_called_an_interval(make_row, measured, build):
    record, run = measured("byol", 70.0)
    rows = [record, make_row("simclr", 60.0)]
    table = build(rows, [run], uncertainty="interval")
    assert told(table, "simclr")[:2] == ("60.0 ± 0.5", "items")
    assert told(table, "simclr")[2].startswith("1 seed; ± = standard error over test items")
    assert told(table, "byol")[1] == "interval over test items"
    assert about_spread(table) == ["± = half the 95 % interval over 400 test items (one seed)."]
    (entry,) = [row.entries[0] for row in table.rows if row.method == "simclr"]
    assert [dict(table.footnotes)[mark] for mark in entry.marks] == [
        "± = standard error over 2000 test items (one seed)"
    ]
    rows += [make_row("swav", 50.0 + seed, seed) for seed in range(3)]
    table = build(rows, [run], uncertainty="interval")
    assert about_spread(table)[0] == "± = half the 95 % interval over 3 seeds; the value is their mean."
    assert dict(table.footnotes)["§"] == "± = half the 95 % interval over 400 test items (one seed)"
    assert "± = standard error over 2000 test items (one seed)" in dict(table.footnotes).values()


def test_the_words_of_a_figure_are_of_the_kinds_that_it_shows(make_row, measured, spec):
    record, run = measured("byol", 70.0)
    rows = [record, make_row("simclr", 60.0), *(make_row("swav", 50.0 + seed, seed) for seed in range(3))]
    study = {"tables": [{"name": "t", "columns": COLUMNS}], "figures": [{"kind": "bars"}]}

    def words(**more):
        found = spec({**study, **more})
        return draw_figures(found, build_tables(found, rows, [run]), [run])[0].caption

    assert (
        "Error bars: half the 95 % interval over seeds, half the 95 % interval over test items where there is one "
        "seed, standard error over test items where there is one seed."
    ) in words(uncertainty="interval")
    assert "Error bars: std over seeds, standard error over test items where there is one seed." in words()


def test_the_rest_of_a_row_that_collapsed_says_what_its_spread_is(make_row, build):
    rows = [make_row("byol", 70.0 + 2 * seed, seed) for seed in range(2)]
    rows += [make_row("byol", None, 2, status="collapsed", reason="flat")]
    half = stats.t.ppf(0.975, 1)
    footnotes = dict(build(rows, uncertainty="interval").footnotes).values()
    assert (
        f"without the seeds that collapsed: 71.0 ± {half:.1f} (2 seeds, ± = half the 95 % interval over seeds)"
        in footnotes
    )
    assert "without the seeds that collapsed: 71.0 ± 1.4 (2 seeds)" in dict(build(rows).footnotes).values()
