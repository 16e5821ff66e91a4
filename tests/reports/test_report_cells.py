"""Aggregation against pandas and scipy, and what a cell shows for every status."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from twinbench.reports.cells import Cell, Failure, aggregate, describe_failures, describe_rest, number, text
from twinbench.reports.records import Record


def record(value, seed, status="done", **more):
    base = {
        "method": "byol",
        "image_set": "digit-scenes",
        "protocol": "knn/cosine-v1",
        "metric": "top1",
        "stderr": 0.4,
        "n": 5000,
        "recipe_hash": f"h{seed}",
    }
    return Record(value=value, seed=seed, status=status, **{**base, **more})


def test_seeds_agree_with_pandas_and_scipy():
    values = np.random.default_rng(3).normal(70, 2, size=5)
    cell = aggregate([record(float(v), seed) for seed, v in enumerate(values)])
    series = pd.Series(values)
    assert cell.value == pytest.approx(series.mean(), abs=1e-12)
    assert cell.uncertainty == pytest.approx(series.std(ddof=1), abs=1e-12)
    low, high = scipy.stats.t.interval(0.95, 4, loc=series.mean(), scale=scipy.stats.sem(values))
    assert cell.interval == pytest.approx((low, high), abs=1e-9)
    assert (cell.kind, cell.n_seeds, cell.n_items) == ("seeds", 5, 5000)
    assert cell.recipe_hashes == ("h0", "h1", "h2", "h3", "h4")


def test_two_seeds_by_hand():
    cell = aggregate([record(70.0, 0), record(72.0, 1)])
    assert cell.uncertainty == pytest.approx(2**0.5)
    # t(1 degree of freedom, 97.5 %) = 12.7062, standard error = 1
    assert cell.interval == pytest.approx((71 - 12.7062, 71 + 12.7062), abs=1e-3)
    assert text(cell) == "71.0 ± 1.4"


def test_one_seed_shows_the_sampling_error():
    cell = aggregate([record(71.44, 0)])
    assert (cell.kind, cell.uncertainty, cell.interval, cell.n_items) == ("items", 0.4, None, 5000)
    assert text(cell) == "71.4 ± 0.4"
    assert text(aggregate([record(71.44, 0, stderr=None)])) == "71.4"


@pytest.mark.parametrize("status", ["failed", "collapsed"])
def test_a_broken_run_never_shows_a_number(status):
    cell = aggregate([record(68.0, 0, status, reason="feature std is 0")])
    assert (cell.status, cell.value) == (status, None)
    assert text(cell) == status
    assert describe_failures(cell) == f"1 of 1 seed {status} (seed 0: feature std is 0)"


def test_one_of_three_seeds_failed():
    cell = aggregate([record(70.0, 0), record(72.0, 1), record(None, 2, "failed", reason="loss is NaN")])
    assert (cell.status, cell.value, cell.n_seeds) == ("done", 71.0, 2)
    expected = "1 of 3 seeds failed (seed 2: loss is NaN); the mean is over the other 2"
    assert describe_failures(cell) == expected


def test_a_cell_of_which_a_seed_collapsed_has_no_number_but_keeps_those_of_the_others():
    cell = aggregate([record(70.0, 0), record(72.0, 1), record(None, 2, "collapsed", reason="flat")])
    assert (cell.status, cell.value, cell.uncertainty, cell.interval, cell.values) == (
        "collapsed",
        None,
        None,
        None,
        (),
    )
    assert text(cell) == "collapsed (1 of 3 seeds)"
    assert describe_failures(cell) == "1 of 3 seeds collapsed (seed 2: flat)"
    assert describe_rest(cell, 1) == "without the seeds that collapsed: 71.0 ± 1.4 (2 seeds)"
    assert (cell.rest.value, cell.rest.n_seeds, cell.measured) == (71.0, 2, cell.rest)
    assert [(r.seed, r.status) for r in cell.records] == [(0, "done"), (1, "done"), (2, "collapsed")]


def test_one_seed_is_left_of_three():
    cell = aggregate([record(20.1, 0), record(None, 1, "failed")], [Failure(2, "collapsed", "flat")])
    assert text(cell) == "collapsed (1 of 3 seeds)"
    assert (
        describe_rest(cell, 1)
        == "without the seeds that collapsed: 20.1 ± 0.4 (1 seed, ± = standard error over test items)"
    )
    everything = aggregate([record(None, seed, "collapsed") for seed in range(3)])
    assert (text(everything), everything.rest, everything.measured) == ("collapsed", None, everything)
    begun = aggregate([record(None, 0, "collapsed"), record(None, 1, "not run"), record(None, 2, "not run")])
    assert text(begun) == "collapsed (1 of 3 seeds)"


def test_failures_from_elsewhere_and_the_majority_decides():
    cell = aggregate([record(None, 0, "collapsed")], [Failure(1, "failed", "x"), Failure(2, "failed", "x")])
    assert cell.status == "failed"
    assert "2 of 3 seeds failed (seeds 1, 2: x)" in describe_failures(cell)
    assert "1 of 3 seeds collapsed (seed 0: no reason recorded)" in describe_failures(cell)


def test_nothing_is_missing_and_done_without_a_value_is_failed():
    assert text(aggregate([])) == "-"
    assert aggregate([record(None, 0)]).status == "failed"


def test_a_repeated_seed_counts_once():
    cell = aggregate([record(60.0, 0), record(70.0, 0), record(72.0, 1)])
    assert (cell.value, cell.n_seeds) == (71.0, 2)


@pytest.mark.parametrize(
    ("value", "uncertainty", "digits", "shown"),
    [
        (65.0, 0.02, 1, "65.0 ± <0.1"),
        (65.0, 0.06, 1, "65.0 ± 0.1"),
        (0.02, 0.003, 1, "0.0 ± <0.1"),
        (0.0172, 0.00004, 3, "0.017 ± <0.001"),
        (0.439888, 0.0000001, 2, "0.44 ± <0.01"),
        (700.2, 0.3, 0, "700 ± <1"),
        (0.439888, 0.0, 2, "0.44"),
        (65.0, 0.0, 1, "65.0"),
    ],
)
def test_a_spread_is_never_rounded_to_nothing_and_none_is_not_shown(value, uncertainty, digits, shown):
    assert text(Cell("done", value=value, uncertainty=uncertainty), digits) == shown


def test_no_number_is_a_negative_zero():
    assert number(-0.01) == "0.0"
    assert number(-0.06) == "-0.1"
