"""Who beats whom: ties, missing seeds, what is said of it, and the outcomes of test items that it rests on."""

import csv
import hashlib
import io
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save
from scipy import stats

from twinbench.foundation.errors import InputError
from twinbench.reports.contests import contest
from twinbench.reports.figures.ranks import cliques
from twinbench.reports.matrix import matrix_of
from twinbench.reports.outcomes import OutcomeFiles
from twinbench.reports.tables import build_tables
from twinbench.reports.writers import differences_csv, to_markdown, to_text

COLUMNS = [{"protocol": "linear/cached-v1", "metric": "top1", "label": "Linear"}]


@pytest.fixture
def build(spec):
    def build(records, runs=(), **more):
        study = spec({"tables": [{"name": "t", "columns": COLUMNS}], **more})
        return build_tables(study, records, runs)[0]

    return build


def values(make_row, method, *numbers, **more):
    return [make_row(method, number, seed, **more) for seed, number in enumerate(numbers)]


def best(table):
    return {row.method for row in table.rows if row.entries[0].best}


def test_every_row_that_cannot_be_told_from_the_best_is_marked(make_row, build):
    rows = values(make_row, "byol", 70, 71, 72) + values(make_row, "simclr", 70.5, 71, 71)
    table = build(rows + values(make_row, "swav", 20, 21, 20.5))
    assert best(table) == {"byol", "simclr"}
    assert any(note.startswith("Marked as best") for note in table.notes)
    (told,) = table.conclusions
    assert told.startswith("Linear: BYOL has the best number but cannot be told from SimCLR (by 0.2,")
    assert "beats SwAV" in told
    assert "Of 3 pairs 2 can be told apart" in told


def test_one_seed_without_its_items_is_not_tested_and_nothing_is_marked(make_row, build):
    table = build(values(make_row, "byol", 70) + values(make_row, "simclr", 60))
    assert best(table) == set()
    assert any("no difference can be tested" in note for note in table.notes)
    assert "no difference can be tested" in table.conclusions[0]


def test_a_row_without_one_of_its_seeds_says_so_and_is_not_ranked(make_row, build):
    lost = make_row("byol", None, 2, status="failed", reason="out of memory")
    rows = [*values(make_row, "byol", 90, 91), lost]
    table = build(rows + values(make_row, "simclr", 60, 61, 62) + values(make_row, "swav", 20, 21, 22))
    byol = next(row for row in table.rows if row.method == "byol")
    assert byol.entries[0].text == "90.5 ± 0.7 (2 of 3 seeds)"
    assert best(table) == {"simclr"}
    assert "BYOL" not in table.conclusions[0]


def outcomes(tmp_path, make_run, method, seed, hits):
    """A run whose file of outcomes says which of some items were right, and its record's checksum."""
    true = np.zeros(len(hits), np.int16)
    predicted = np.where(hits, 0, 1).astype(np.int16)[:, None]
    content = save({"predicted": predicted, "true": true})
    path = tmp_path / f"{method}-{seed}.safetensors"
    path.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    return replace(make_run(method, seed=seed), outcomes={sha256: path}), sha256


def test_differences_are_paired_by_the_items_of_the_outcomes(tmp_path, make_row, make_run, build):
    rng = np.random.default_rng(0)
    shared = rng.normal(size=400)
    right = {m: shared + 0.3 * rng.normal(size=400) > at for m, at in (("byol", -0.3), ("simclr", -0.1))}
    runs, records = [], []
    for method, hits in right.items():
        run, sha256 = outcomes(tmp_path, make_run, method, 0, hits)
        runs.append(run)
        records.append(make_row(method, 100 * hits.mean(), outcomes=sha256))
    table = build(records, runs)
    (line,) = csv.DictReader(io.StringIO(differences_csv(table)))
    expected = stats.ttest_rel(100.0 * right["byol"], 100.0 * right["simclr"])
    only = [(right[a] & ~right[b]).sum() for a, b in (("byol", "simclr"), ("simclr", "byol"))]
    assert float(line["p"]) == pytest.approx(stats.binomtest(int(only[0]), int(sum(only))).pvalue)
    assert float(line["interval_low"]) == pytest.approx(expected.confidence_interval(0.95).low)
    assert line["basis"] == "test items"
    assert "another training could come out otherwise" in table.conclusions[0]
    assert best(table) == {"byol"}


def test_outcomes_that_are_not_those_of_the_record_are_refused(tmp_path, make_row, make_run):
    run, sha256 = outcomes(tmp_path, make_run, "byol", 0, np.ones(5, bool))
    next(iter(run.outcomes.values())).write_bytes(b"something else")
    with pytest.raises(InputError, match="not those of their record"):
        OutcomeFiles([run]).sample([make_row("byol", 100.0, outcomes=sha256)])


def test_seeds_on_other_items_are_compared_without_them(tmp_path, make_row, make_run):
    first, one = outcomes(tmp_path, make_run, "byol", 0, np.ones(5, bool))
    second, two = outcomes(tmp_path, make_run, "byol", 1, np.ones(6, bool))
    rows = [make_row("byol", 100.0, 0, outcomes=one), make_row("byol", 100.0, 1, outcomes=two)]
    assert not OutcomeFiles([first, second]).sample(rows).has_items


def test_intervals_take_the_place_of_deviations_where_the_study_says_so(make_row, build):
    rows = values(make_row, "byol", 70, 71, 72) + values(make_row, "simclr", 60, 61, 62)
    table = build(rows, uncertainty="interval")
    half = stats.t.ppf(0.975, 2) / np.sqrt(3)
    assert table.rows[0].entries[0].text == f"61.0 ± {half:.1f}"
    assert "± = half the 95 % interval over 3 seeds; the value is their mean." in table.notes
    assert "± = std over 3 seeds; the value is their mean." in build(rows).notes


def test_the_matrix_has_each_difference_in_both_directions(make_row, build):
    table = build(values(make_row, "byol", 70, 71, 72) + values(make_row, "simclr", 60, 61, 62))
    square = matrix_of(table, table.columns[0], table.contests[0])
    assert square.names == ("BYOL", "SimCLR")
    (_, (nothing, up)), (_, (down, _)) = square.lines
    assert nothing is None
    assert (up.difference, up.verdict) == ("+10.0", "wins")
    assert (down.difference, down.verdict) == ("-10.0", "loses")


def test_less_is_better_where_it_is(make_row, spec):
    columns = [{"protocol": "cost", "metric": "device_hours", "label": "Hours"}]
    study = spec({"tables": [{"name": "t", "columns": columns}]})
    more = {"protocol": "cost", "metric": "device_hours"}
    rows = values(make_row, "byol", 3.0, 3.1, 3.05, **more) + values(
        make_row, "simclr", 1.0, 1.1, 1.05, **more
    )
    (table,) = build_tables(study, rows)
    assert best(table) == {"simclr"}
    assert "SimCLR has the best number and beats BYOL (by 2.000" in table.conclusions[0]


def test_nothing_competes_where_one_row_is_left():
    assert contest({}, "higher") is None


def test_what_is_concluded_is_in_every_form(make_row, build):
    table = build(values(make_row, "byol", 70, 71, 72) + values(make_row, "simclr", 60, 61, 62))
    for text in (to_markdown(table), to_text(table)):
        assert "BYOL has the best number and beats SimCLR" in text


def test_tables_of_several_environments_say_so(make_row, build):
    rows = values(make_row, "byol", 70, 71, environment='{"torch": "2.9", "commit": "a"}')
    rows += values(make_row, "simclr", 60, 61, environment='{"torch": "2.10", "commit": "a"}')
    (note,) = [note for note in build(rows).notes if "environment" in note]
    assert "they differ in torch (2.9: 2, 2.10: 2)." in note
    assert "commit" not in note


@pytest.mark.parametrize(
    ("ranks", "critical", "expected"),
    [
        ([1, 2, 3], 5, [(0, 2)]),
        ([1, 2, 3], 0.5, []),
        ([1, 1.5, 3, 3.4, 6], 2.0, [(0, 1), (1, 3)]),
    ],
)
def test_bars_join_what_ranks_cannot_tell_apart(ranks, critical, expected):
    assert cliques(ranks, critical) == expected
