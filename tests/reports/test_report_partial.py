"""A table of a study that has not run to its end: what is missing, and which command fills it."""

import pytest

from twinbench.reports.study import TableSpec
from twinbench.reports.tables import build_table

TABLE = TableSpec(
    name="t",
    columns=[
        {"protocol": "linear/cached-v1", "metric": "top1", "label": "linear"},
        {"protocol": "knn/cosine-v1", "metric": "top1", "label": "kNN"},
    ],
)
COMMAND = "twinbench run study --seeds 3"


@pytest.fixture
def partial(make_row):
    """SimCLR is done, BYOL has two of three seeds of one protocol, SwAV has not begun."""

    def missing(method, seed, protocol, reason=""):
        return make_row(method, None, seed, protocol, status="not run", reason=reason, stderr=None, n=None)

    rows = []
    for seed in range(3):
        for protocol in ("linear/cached-v1", "knn/cosine-v1"):
            rows.append(make_row("simclr", 60.0 + seed, seed, protocol))
            rows.append(missing("swav", seed, protocol))
        rows.append(make_row("byol", 50.0, seed, "knn/cosine-v1"))
        rows.append(
            missing("byol", 2, "linear/cached-v1", "stopped by SIGTERM")
            if seed == 2
            else make_row("byol", 50.0 + 2 * seed, seed)
        )
    return build_table(TABLE, rows, command=COMMAND)


def entries(table):
    return {row.method: row.entries for row in table.rows}


def test_what_was_not_run_says_so_and_is_no_failure(partial):
    assert [entry.text for entry in entries(partial)["swav"]] == ["not run", "not run"]
    assert [entry.text for entry in entries(partial)["simclr"]] == ["61.0 ± 1.0", "61.0 ± 1.0"]


def test_the_seeds_that_are_missing_of_a_mean_are_told_with_the_reason(partial):
    cell = entries(partial)["byol"][0]
    assert cell.text == "51.0 ± 1.4 (2 of 3 seeds)"
    (mark,) = cell.marks
    assert dict(partial.footnotes)[mark] == (
        "1 of 3 seeds not run (seed 2: stopped by SIGTERM); the mean is over the other 2"
    )


def test_a_note_counts_what_is_missing_and_names_the_command_that_fills_it(partial):
    (note,) = [note for note in partial.notes if note.startswith("Not run yet")]
    assert note == (
        "Not run yet, wholly or for some seeds: 3 of 6 numbers (SwAV: all; BYOL: linear). "
        f"They are filled by: {COMMAND}"
    )


def test_a_failed_seed_outweighs_those_that_were_not_run(make_row):
    lost = {"stderr": None, "n": None}
    rows = [make_row("byol", None, 0, status="failed", reason="no memory", **lost)]
    rows += [make_row("byol", None, seed, status="not run", **lost) for seed in (1, 2)]
    table = build_table(TABLE, rows)
    entry = entries(table)["byol"][0]
    assert entry.text == "failed"
    assert (
        "1 of 3 seeds failed (seed 0: no memory), 2 of 3 seeds not run (seeds 1, 2)"
        in dict(table.footnotes).values()
    )


def test_a_finished_table_has_no_such_note(make_row):
    table = build_table(TABLE, [make_row("byol", 50.0)], command=COMMAND)
    assert not [note for note in table.notes if "Not run" in note]
