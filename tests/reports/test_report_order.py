"""What competes: a row of another budget, or without one of its seeds, has no place in any order, and each says so."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

from twinbench.reports.figures import draw_figures, ranks
from twinbench.reports.figures.drawing import Drawing
from twinbench.reports.tables import build_tables

LINEAR, KNN, SEMI = ("linear/cached-v1", "top1"), ("knn/cosine-v1", "top1"), ("semi-1pct/finetune-v2", "top1")
TOP5, SPEED = ("linear/cached-v1", "top5"), ("cost/training-v1", "images_per_second")
LABELS = {LINEAR: "linear", TOP5: "top-5", KNN: "kNN", SEMI: "few labels", SPEED: "speed"}
COMPETING = {
    "simclr": {LINEAR: 60.0, TOP5: 90.0, KNN: 50.0, SEMI: 20.0, SPEED: 100.0},
    "simsiam": {LINEAR: 55.0, TOP5: 91.0, KNN: 52.0, SEMI: 10.0, SPEED: 200.0},
    "swav": {LINEAR: 65.0, TOP5: 92.0, KNN: 55.0, SEMI: 15.0, SPEED: 300.0},
    "barlow_twins": {LINEAR: 70.0, TOP5: 93.0, KNN: 61.0, SEMI: 18.0, SPEED: 400.0},
}
RANKED = [LINEAR, KNN, SEMI]
LEFT_OUT = "Left out, for a missing number or seed or for another budget: MoCo v2, BYOL."
STUDY = {
    "tables": [
        {
            "name": "t",
            "columns": [{"protocol": p, "metric": m, "label": label} for (p, m), label in LABELS.items()],
            "quoted": {"file": "table1_imagenet_linear.csv", "columns": {"top1": "linear"}},
        }
    ],
}


def row_of(make_row, method, values, seed, **more):
    """The records of a seed, one a column."""
    return [make_row(method, v + seed / 10, seed, p, metric=m, **more) for (p, m), v in values.items()]


@pytest.fixture
def rows(make_row):
    """Four rows that compete; the best of all lacks a seed of one column, or was trained for longer."""
    better = dict.fromkeys(LABELS, 99.0)
    found = []
    for seed in range(3):
        for method, values in COMPETING.items():
            found += row_of(make_row, method, values, seed)
        found += row_of(make_row, "moco_v2", better, seed, epochs=200)
        found += row_of(make_row, "byol", better, seed)
        found += row_of(make_row, "random_init", dict.fromkeys(LABELS, 5.0), seed, epochs=0)
    (lost,) = [r for r in found if (r.method, r.seed, r.protocol, r.metric) == ("byol", 2, *LINEAR)]
    found.remove(lost)
    return [*found, make_row("byol", None, 2, LINEAR[0], status="failed", reason="no memory")]


@pytest.fixture
def caption(rows, spec):
    """The caption of a figure of the table."""

    def caption(**figure):
        study = spec({**STUDY, "figures": [figure]})
        return draw_figures(study, build_tables(study, rows), [])[0].caption

    return caption


def test_the_contest_is_among_those_that_compete(rows, spec):
    (table,) = build_tables(spec(STUDY), rows)
    assert {table.rows[row].method for row in table.contests[0].rows} == set(COMPETING)
    of_byol = next(row.entries for row in table.rows if row.method == "byol")
    assert [entry.competes for entry in of_byol] == [False, True, True, True, True, False]
    assert not any(entry.competes for row in table.rows if row.method == "moco_v2" for entry in row.entries)


def test_the_order_is_compared_with_the_published_one_of_those_that_compete(rows, spec):
    (table,) = build_tables(spec(STUDY), rows)
    (note,) = [note for note in table.notes if note.startswith("Order of linear")]
    published = [69.3, 71.3, 71.8, 73.2]  # SimCLR, SimSiam, SwAV, Barlow Twins in Table 1
    tau = stats.kendalltau([values[LINEAR] for values in COMPETING.values()], published).statistic
    assert f"Kendall's tau-b {tau:.2f} over 4 methods" in note
    assert note.endswith(LEFT_OUT)


def test_a_scatter_correlates_those_that_compete(caption):
    said = caption(kind="scatter", column="linear", against=["kNN"])
    numbers = [[values[column] for values in COMPETING.values()] for column in (LINEAR, KNN)]
    assert (
        f"(reference rows left out): kNN {stats.spearmanr(*numbers).statistic:.2f} (n = 4). {LEFT_OUT}"
        in said
    )


def test_bars_say_of_how_many_seeds_a_mean_is(caption):
    assert "Means over some seeds only: BYOL 2 of 3 seeds." in caption(kind="bars", column="linear")
    assert "2 of 3 seeds" not in caption(kind="bars", column="kNN")


def test_ranks_are_of_one_percentage_an_evaluation_and_of_those_that_compete(caption):
    said = caption(kind="ranks")
    scores = np.array([[values[column] for values in COMPETING.values()] for column in RANKED])
    assert "Mean rank over 3 columns (linear, kNN, few labels), 1 the best." in said
    assert f"Friedman: p = {stats.friedmanchisquare(*scores.T).pvalue:.2g}." in said
    # q of four methods at 5 % in Table 5 of Demsar (2006) is 2.569
    assert f"critical difference of {2.569 * np.sqrt(4 * 5 / (6 * 3)):.2f} " in said
    p = stats.wilcoxon(scores[:, 3] - scores[:, 2]).pvalue
    assert (
        f"Barlow Twins against SwAV, a pair chosen by its ranks, which nothing corrects for: Wilcoxon's signed ranks "
        f"p = {p:.2g};"
    ) in said
    assert "Not counted, since another number of the same evaluation is: top-5." in said
    assert said.endswith(LEFT_OUT)
    assert "speed" not in said


def test_ranks_are_drawn_from_the_best_down_and_joined_where_they_cannot_be_told_apart(caption, monkeypatch):
    figure = Figure((6.4, 3.0))
    FigureCanvasAgg(figure)

    def paint_only(spec, title, said, size, paint):
        paint(figure)
        return Drawing(spec.name, title, said, {})

    monkeypatch.setattr(ranks, "draw", paint_only)
    caption(kind="ranks")
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["Barlow Twins", "SwAV", "SimCLR", "SimSiam"]
    points, bars = axes.lines[:4], axes.lines[4:]
    expected = [stats.rankdata([-values[column] for values in COMPETING.values()]) for column in RANKED]
    assert [point.get_xdata()[0] for point in points] == pytest.approx(sorted(np.mean(expected, axis=0)))
    assert [list(bar.get_ydata()) for bar in bars] == [[-0.3, 3.3]], "all lie within the critical difference"


def test_too_few_that_compete_are_not_ranked(rows, spec):
    study = spec({**STUDY, "figures": [{"kind": "ranks"}]})
    few = [row for row in rows if row.method not in ("swav", "simclr")]
    (drawing,) = draw_figures(study, build_tables(study, few), [])
    assert drawing.files == {}
    assert drawing.caption == "Not drawn: 2 methods compete in all of 3 columns, too few to rank."
