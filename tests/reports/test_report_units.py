"""Numbers that are no percentages: units, decimals, which way is better, what is absent, and figures of them."""

import csv
import io
import re
from dataclasses import replace

import pytest
from scipy.stats import spearmanr

from twinbench.foundation.errors import InputError
from twinbench.reports.cells import aggregate, describe_failures, text
from twinbench.reports.check import check_study
from twinbench.reports.details import summary
from twinbench.reports.figures import draw_figures
from twinbench.reports.metrics import METRICS, metric_of
from twinbench.reports.tables import build_tables
from twinbench.reports.writers import to_csv, to_latex, to_markdown, to_text

COST, LINEAR = "cost/training-v1", "linear/cached-v1"
SPEEDS = {"simclr": 1000.0, "byol": 700.0, "barlow_twins": 1250.0, "moco_v2": 900.0}
ACCURACY = {"simclr": 60.0, "byol": 75.0, "barlow_twins": 61.0, "moco_v2": 62.0}
COLUMNS = [
    {"protocol": LINEAR, "metric": "top1", "label": "linear"},
    {"protocol": COST, "metric": "images_per_second", "label": "speed"},
    {"protocol": COST, "metric": "device_hours", "label": "pretraining"},
    {"protocol": COST, "metric": "parameters", "label": "size"},
    {"protocol": COST, "metric": "energy", "label": "energy"},
]
STUDY = {
    "tables": [{"name": "cost", "columns": COLUMNS}],
    "figures": [{"kind": "scatter", "column": "linear", "against": ["speed", "pretraining", "energy"]}],
}


@pytest.fixture
def rows(make_row):
    found = [make_row("random_init", 20.0, seed) for seed in range(2)]
    for method, speed in SPEEDS.items():
        for seed in range(2):
            cost = {"protocol": COST, "stderr": None, "n": None, "seed": seed}
            found += [
                make_row(method, ACCURACY[method] + seed, seed),
                make_row(method, speed + seed, metric="images_per_second", **cost),
                make_row(method, 10 / speed, metric="device_hours", **cost),
                make_row(method, 2.5398, metric="parameters", **cost),
                make_row(method, None, metric="energy", status="absent", reason="no counter", **cost),
            ]
    for metric in ("images_per_second", "device_hours", "parameters", "energy"):
        absent = {"status": "absent", "reason": "nothing is trained", "metric": metric, "protocol": COST}
        found += [make_row("random_init", None, seed, **absent) for seed in range(2)]
    return found


@pytest.fixture
def table(rows, spec):
    (built,) = build_tables(spec(STUDY), rows)
    return built


def texts(table, method):
    (row,) = (row for row in table.rows if row.method == method)
    return [entry.text for entry in row.entries]


def test_units_stand_in_headings_and_decimals_are_the_metrics(table):
    labels = ["linear", "speed (images/s)", "pretraining (device-hours)", "size (M)", "energy (kWh)"]
    assert [column.label for column in table.columns] == labels
    assert texts(table, "simclr") == ["60.5 ± 0.7", "1000 ± 1", "0.010", "2.54", "-"]
    for written in (to_markdown(table), to_latex(table), to_text(table)):
        assert "speed (images/s)" in written
        assert "1000" in written
        assert "1000.5" not in written


def test_what_has_no_spread_and_what_has_a_small_one_read_alike_in_every_form(
    make_row, spec, write, tmp_path
):
    small = [700.0 + 0.3 * seed for seed in range(2)]
    rows = [make_row("byol", value, i, COST, metric="images_per_second") for i, value in enumerate(small)]
    rows += [make_row("byol", 2.5398, i, COST, metric="parameters") for i in range(2)]
    study = {"tables": [{"name": "cost", "columns": [COLUMNS[1], COLUMNS[3]]}]}
    page = write(study, rows, [], tmp_path / "out").read_text()
    (table,) = build_tables(spec(study), rows)
    assert texts(table, "byol") == ["700 ± <1", "2.54"]
    assert "| 700 ± \\<1 | 2.54 |" in to_markdown(table)
    assert r"700 \ensuremath{\pm} \textless{}1 & 2.54 \\" in to_latex(table)
    assert re.search(r"700 ± <1 +2\.54$", to_text(table), re.M)
    assert '<span class="value">700 ± &lt;1</span>' in page
    assert '<span class="value">2.54</span>' in page
    spreads = [float(line["uncertainty"]) for line in csv.DictReader(io.StringIO(to_csv(table)))]
    assert spreads == [pytest.approx(0.3 / 2**0.5), 0.0]
    assert "Numbers without ± are of seeds, or of test items, that are all equal." in table.notes
    (row,) = table.rows
    assert "2 equal seeds" in summary(row.entries[1])
    assert "interval" not in summary(row.entries[1])
    assert summary(row.entries[0]).startswith(
        "mean and std of 2 seeds; 95 % interval 698.2 to 702.1 over seeds"
    )


def test_an_interval_that_its_decimals_cannot_show_says_so(make_row, spec):
    hours = [0.0172 + seed * 1e-7 for seed in range(2)]
    rows = [make_row("byol", value, i, COST, metric="device_hours") for i, value in enumerate(hours)]
    (table,) = build_tables(spec({"tables": [{"name": "cost", "columns": [COLUMNS[2]]}]}), rows)
    assert texts(table, "byol") == ["0.017 ± <0.001"]
    assert "95 % interval narrower than 0.0001 over seeds;" in summary(table.rows[0].entries[0])


def test_the_best_is_the_highest_the_lowest_or_none(table):
    best = [
        [row.method for row in table.rows if row.entries[place].best] for place in range(len(table.columns))
    ]
    # the hours of both seeds are equal, of which nothing follows
    assert best == [["byol"], ["barlow_twins"], [], [], []]
    (note,) = [note for note in table.notes if note.startswith("Nothing is marked as best")]
    assert "all seeds of a row came to the same number" in note


def test_an_absent_number_is_a_dash_with_its_reason_and_no_failure(table, rows, spec, study, write, tmp_path):
    notes = [text for _, text in table.footnotes]
    assert notes == ["nothing is trained", "no counter"]
    assert "| -<sup>b</sup> |" in to_markdown(table)
    page = write(STUDY, rows, [], tmp_path / "out").read_text()
    assert "None: every run ended well." in page


def test_a_seed_whose_number_is_absent_is_not_averaged_away(make_row):
    absent = make_row("byol", None, 2, status="absent", reason="an old run")
    cell = aggregate([make_row("byol", 3.0, 0), make_row("byol", 5.0, 1), absent])
    assert (cell.status, cell.value, cell.note) == ("done", 4.0, "")
    assert text(cell) == "4.0 ± 1.4 (2 of 3 seeds)"
    told = "1 of 3 seeds without this number (seed 2: an old run); the mean is over the other 2"
    assert describe_failures(cell) == told
    nothing = aggregate([replace(absent, seed=seed) for seed in range(3)])
    assert (text(nothing), nothing.note, nothing.failures) == ("-", "an old run", ())
    collapsed = aggregate([make_row("byol", None, 0, status="collapsed", reason="flat"), absent])
    assert (collapsed.status, len(collapsed.failures)) == ("collapsed", 2)


def test_a_row_of_which_a_seed_has_no_number_does_not_compete(make_row, spec):
    """Of the energy one seed counts none, and the record of one evaluation lacks the metric."""
    energy = {"protocol": COST, "metric": "energy", "stderr": None, "n": None}
    rows = [make_row("byol", 1.0 + seed / 10, seed, **energy) for seed in range(2)]
    rows += [make_row("byol", None, 2, **{**energy, "status": "absent", "reason": "no counter"})]
    rows += [
        make_row(m, 3.0 + i + s / 10, s, **energy) for i, m in enumerate(("swav", "simclr")) for s in range(3)
    ]
    rows += [make_row(m, v + s, s) for m, v in (("byol", 90), ("swav", 70), ("simclr", 60)) for s in range(3)]
    rows += [
        make_row(m, v + s, s, metric="top5") for m, v in (("swav", 80), ("simclr", 70)) for s in range(3)
    ]
    rows += [make_row("byol", 95.0 + seed, seed, metric="top5") for seed in range(2)]
    columns = [COLUMNS[0], {**COLUMNS[0], "metric": "top5", "label": "top-5"}, COLUMNS[4]]
    (table,) = build_tables(spec({"tables": [{"name": "t", "columns": columns}]}), rows)
    assert texts(table, "byol") == [
        "91.0 ± 1.0",
        "95.5 ± 0.7 (2 of 3 seeds)",
        "1.0500 ± 0.0707 (2 of 3 seeds)",
    ]
    byol = [row.method for row in table.rows].index("byol")
    assert [byol in found.rows for found in table.contests] == [True, False, False]
    told = "; ".join(text for _, text in table.footnotes)
    assert "1 of 3 seeds without this number (seed 2: its evaluation has no such number)" in told
    assert "1 of 3 seeds without this number (seed 2: no counter)" in told


def test_the_csv_has_units(table):
    lines = list(csv.DictReader(io.StringIO(to_csv(table))))
    units = {line["metric"]: line["unit"] for line in lines}
    assert units == {
        "top1": "%",
        "images_per_second": "images/s",
        "device_hours": "device-hours",
        "parameters": "M",
        "energy": "kWh",
    }


def test_an_interval_has_a_decimal_more_than_its_number(table):
    (row,) = (row for row in table.rows if row.method == "simclr")
    low, high = re.search(r"interval (\S+) to ([^\s;]+)", summary(row.entries[1])).groups()
    assert (low, high) == ("994.1", "1006.9")  # 1000.5 ± 12.706 * 0.7071 / sqrt(2)


def test_an_unknown_metric_is_a_percentage():
    assert (metric_of("top1").unit, metric_of("top1").digits, metric_of("top1").better) == ("%", 1, "higher")
    with pytest.raises(ValueError, match="already registered"):
        METRICS.add("energy", metric_of("top1"))


def test_a_scatter_says_the_rank_correlation_of_the_methods(table, rows, spec):
    (drawing,) = draw_figures(spec(STUDY), [table], [])
    assert set(drawing.files) == {"svg", "png", "pdf"}
    rho = spearmanr(list(SPEEDS.values()), [ACCURACY[method] for method in SPEEDS]).statistic
    assert f"speed (images/s) {rho:.2f} (n = 4)" in drawing.caption
    assert f"pretraining (device-hours) {-rho:.2f} (n = 4)" in drawing.caption
    assert "energy" not in drawing.caption, "nothing of it was measured"
    assert "no proof of a cause" in drawing.caption
    assert "Error bars: std over seeds" in drawing.caption


def test_a_scatter_of_two_tables_takes_the_rows_of_both(rows, spec, make_row):
    study = {
        "tables": [{"name": "a", "columns": COLUMNS[:1]}, {"name": "b", "columns": COLUMNS[1:]}],
        "figures": [{"kind": "scatter", "table": "a", "against": "speed", "against_table": "b"}],
    }
    found = spec(study)
    check_study(found)
    rows = [*rows, make_row("swav", 50.0)]
    (drawing,) = draw_figures(found, build_tables(found, rows), [])
    assert "speed (images/s) -0.80 (n = 4)" in drawing.caption
    study["figures"][0]["against"] = ["energy"]
    (drawing,) = draw_figures(spec(study), build_tables(spec(study), rows), [])
    assert drawing.files == {}
    assert drawing.caption == "Not drawn: no row has a number in both columns yet."


def test_two_methods_have_no_order(rows, spec):
    few = [row for row in rows if row.method in ("byol", "simclr", "random_init")]
    (drawing,) = draw_figures(spec(STUDY), build_tables(spec(STUDY), few), [])
    assert "speed (images/s) no order (n = 2)" in drawing.caption


def test_bars_go_below_zero(make_row, spec):
    columns = [{"protocol": "diagnostics/held-out-v1", "metric": "uniformity", "label": "uniformity"}]
    study = {"tables": [{"name": "t", "columns": columns}], "figures": [{"kind": "bars"}]}
    values = {"protocol": "diagnostics/held-out-v1", "metric": "uniformity", "stderr": None}
    rows = [make_row("byol", -2.125, **values), make_row("random_init", -0.5, **values)]
    (drawing,) = draw_figures(spec(study), build_tables(spec(study), rows), [])
    assert set(drawing.files) == {"svg", "png", "pdf"}


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        ({}, r"needs something to be drawn against(.|\n)*figures\[0\](.|\n)*`against"),
        ({"against": "sped"}, r"unknown column of the table cost 'sped'(.|\n)*nearest: speed"),
        ({"against": "speed", "against_table": "csot"}, r"unknown table 'csot'(.|\n)*nearest: cost"),
    ],
)
def test_a_mistake_in_a_scatter_is_named(spec, figure, message):
    study = {**STUDY, "figures": [{"kind": "scatter", **figure}]}
    with pytest.raises(InputError, match=message):
        check_study(spec(study))


@pytest.mark.parametrize(
    ("compare", "message"),
    [
        ({"top5": "linear"}, r"unknown quoted column 'top5'(.|\n)*nearest: top1"),
        ({"top1": "liner"}, r"unknown column of the table cost 'liner'(.|\n)*nearest: linear"),
    ],
)
def test_a_mistake_in_what_is_compared_is_named(spec, compare, message):
    quoted = {"file": "table1_imagenet_linear.csv", "columns": {"top1": "x"}, "compare": compare}
    with pytest.raises(InputError, match=message):
        check_study(spec({"tables": [{"name": "cost", "columns": COLUMNS, "quoted": quoted}]}))
