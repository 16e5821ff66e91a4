"""Who beats whom: ties, missing seeds, what is said of it, and the outcomes of test items that it rests on."""

import csv
import hashlib
import io
import json
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
    why = "there is one seed and no record of its test items"
    assert f"Nothing is marked as best where {why}." in table.notes
    assert not any("Holm" in note for note in table.notes), "nothing was tested"
    assert table.conclusions == (
        f"Linear: no difference can be tested, for {why}. The best number is that of BYOL.",
    )


def test_where_the_best_number_cannot_be_tested_the_others_still_are(make_row, build):
    rows = values(make_row, "byol", 90) + values(make_row, "simclr", 60, 61, 62)
    table = build(rows + values(make_row, "swav", 20, 21, 22))
    assert best(table) == set()
    (told,) = table.conclusions
    assert told.startswith(
        "Linear: no difference to the best number can be tested, for there is one seed and no"
    )
    assert "The best number is that of BYOL. Of 3 pairs 1 can be told apart at 5 %" in told
    table = build(
        values(make_row, "byol", 90, 91, 92) + values(make_row, "simclr", 60) + values(make_row, "swav", 20)
    )
    assert (
        "for other rows lack the seeds or the record of test items that a comparison takes"
        in table.conclusions[0]
    )


def test_a_row_without_one_of_its_seeds_says_so_and_is_not_ranked(make_row, build):
    lost = make_row("byol", None, 2, status="failed", reason="out of memory")
    rows = [*values(make_row, "byol", 90, 91), lost]
    table = build(rows + values(make_row, "simclr", 60, 61, 62) + values(make_row, "swav", 20, 21, 22))
    byol = next(row for row in table.rows if row.method == "byol")
    assert byol.entries[0].text == "90.5 ± 0.7 (2 of 3 seeds)"
    assert best(table) == {"simclr"}
    assert "BYOL" not in table.conclusions[0]


def outcomes(tmp_path, make_run, method, seed, hits, first_row=0, fingerprint="print"):
    """A run whose file of outcomes says which of some items were right, and its record's checksum."""
    true = np.zeros(len(hits), np.int16)
    predicted = np.where(hits, 0, 1).astype(np.int16)[:, None]
    rows = np.arange(first_row, first_row + len(hits), dtype=np.int32)
    about = {"about": json.dumps({"image_set_fingerprint": fingerprint})}
    content = save({"predicted": predicted, "true": true, "rows": rows}, about)
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


@pytest.fixture
def measured(tmp_path, make_row, make_run):
    """Records and runs of a method whose seeds are right on a share of 400 test items each."""

    def measured(method, *shares, **of):
        rng = np.random.default_rng(len(method))
        found = []
        for seed, share in enumerate(shares):
            hits = rng.permutation(400) < 400 * share
            run, sha256 = outcomes(tmp_path, make_run, method, seed, hits, **of)
            found.append((make_row(method, 100 * hits.mean(), seed, outcomes=sha256, n=400), run))
        return found

    return measured


def built(build, *methods, **more):
    pairs = [pair for method in methods for pair in method]
    return build([record for record, _ in pairs], [run for _, run in pairs], **more)


@pytest.mark.parametrize("other", [{"first_row": 400}, {"fingerprint": "another"}])
def test_as_many_other_test_items_are_not_paired(build, measured, other):
    byol = measured("byol", 0.9)
    same = built(build, byol, measured("simsiam", 0.5))
    assert [c.estimate.basis for c in same.contests[0].comparisons] == ["test items"]
    assert best(same) == {"byol"}
    table = built(build, byol, measured("simclr", 0.5, **other))
    (found,) = table.contests
    assert [c.p for c in found.comparisons] == [None]
    assert best(table) == set()
    assert "for the rows were not measured on the same test items" in table.conclusions[0]
    seeds = built(build, measured("swav", 0.9, 0.91, 0.92), measured("moco_v2", 0.5, 0.51, 0.52, **other))
    assert [c.estimate.basis for c in seeds.contests[0].comparisons] == ["seeds"], "their seeds are compared"
    assert best(seeds) == {"swav"}


def test_seeds_on_other_test_images_have_no_items_in_common(measured):
    (one, first), (two, second) = measured("byol", 0.5)[0], measured("simclr", 0.5, first_row=1)[0]
    files = OutcomeFiles([first, second])
    assert files.sample([one]).has_items
    assert not files.sample([one, two]).has_items


def test_one_seed_beside_several_is_told_and_nothing_is_marked(build, measured):
    alone = measured("simclr", 0.5)
    table = built(build, measured("byol", 0.90, 0.93, 0.96), alone)
    assert best(table) == set()
    assert any("rows of one seed compete with rows of several" in note for note in table.notes)
    (told,) = table.conclusions
    assert told.startswith("Linear: BYOL has the best number and beats SimCLR")
    assert "another training could come out otherwise" in told
    assert told.endswith("of the rows that have several, the standard deviation over seeds is up to 3.0.")
    assert "Nothing is marked" not in str(built(build, alone, measured("swav", 0.9)).notes), "one seed each"


def test_the_note_names_the_tests_that_were_done(build, measured):
    def note(*methods):
        (found,) = [note for note in built(build, *methods).notes if "Holm" in note]
        assert "intervals are of single comparisons" in found
        return ["Student's t" in found, "McNemar's exact test of two rows of one seed each" in found]

    assert note(measured("byol", 0.9), measured("simclr", 0.5)) == [False, True]
    three = measured("swav", 0.90, 0.91, 0.92)
    assert note(three, measured("moco_v2", 0.5, 0.51, 0.52)) == [True, False]
    assert note(three, measured("barlow_twins", 0.5), measured("simsiam", 0.6)) == [True, True]


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


def test_what_has_no_recorded_environment_is_counted(make_row, build):
    known = '{"torch": "2.9"}'
    rows = values(make_row, "byol", 70, 71, environment=known, trained_in=known)
    rows += values(make_row, "simclr", 60, 61, environment="", trained_in="")
    rows += values(
        make_row, "random_init", 10, 11, environment=known, epochs=0
    )  # of which there is no training
    assert [note for note in build(rows).notes if "environment" in note] == [
        "The trainings may not all have been done in one environment: that of 2 of 4 is not recorded.",
        "The evaluations may not all have been done in one environment: that of 2 of 6 is not recorded.",
    ]
    assert not [note for note in build(rows[:2] + rows[4:]).notes if "environment" in note]
    assert not [note for note in build(rows[2:4]).notes if "environment" in note], "nothing is known of any"


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
