"""Aggregation against pandas and scipy, and what a cell shows for every status."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from twinbench.reports.cells import Cell, Failure, aggregate, describe_failures, number, text
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


def test_rounding_never_claims_certainty_or_negative_zero():
    assert text(Cell("done", value=65.0, uncertainty=0.02)) == "65.0 ± 0.02"
    assert text(Cell("done", value=65.0, uncertainty=0.0)) == "65.0 ± 0.0"
    assert number(-0.01) == "0.0"
    assert number(-0.06) == "-0.1"
