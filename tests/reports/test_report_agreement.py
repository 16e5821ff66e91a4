"""Kendall's tau-b against scipy and by hand, and the sentence about it below a table."""

import re

import numpy as np
import pytest
from scipy.stats import kendalltau

from twinbench.reports.agreement import tau_b
from twinbench.reports.tables import build_tables

METHODS = ("simclr", "moco_v2", "simsiam", "swav", "byol", "barlow_twins")
# top-1 of Table 1 of the paper: SimCLR 69.3, MoCo v2 71.1, SimSiam 71.3, SwAV without multi-crop 71.8, BYOL 74.3,
# Barlow Twins 73.2
PUBLISHED = dict(zip(METHODS, (69.3, 71.1, 71.3, 71.8, 74.3, 73.2), strict=True))


def test_by_hand():
    # of the six pairs of 1 2 3 4 and 1 3 2 4 five agree and one does not
    assert tau_b(np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 4])) == pytest.approx(4 / 6)
    # a tie on one side: 4 agree, 1 does not, of 6 pairs and of 5 that are not tied
    assert tau_b(np.array([1.0, 2, 2, 3]), np.array([1.0, 2, 3, 2.5])) == pytest.approx(3 / np.sqrt(6 * 5))
    assert tau_b(np.array([1.0, 2, 3]), np.array([9.0, 8, 7])) == -1
    assert np.isnan(tau_b(np.array([1.0, 1, 1]), np.array([1.0, 2, 3])))


@pytest.mark.parametrize("n", [2, 3, 6, 13])
def test_it_equals_scipy_with_and_without_ties_one_or_many_at_a_time(n):
    rng = np.random.default_rng(n)
    ours = np.concatenate([rng.normal(size=(20, n)), rng.integers(0, 4, size=(20, n))])
    published = rng.integers(0, 5, size=n).astype(float)
    found = tau_b(ours, published)
    expected = [kendalltau(row, published).statistic for row in ours]
    np.testing.assert_allclose(found, expected, rtol=1e-12, equal_nan=True)


@pytest.fixture
def note(make_row, spec, study):
    """The sentence about the order below the table of a study of these values, a list of them for each seed."""

    def make(values, quoted=None, **column):
        study["tables"][0] |= {"quoted": quoted} if quoted else {}
        rows = [make_row("random_init", 10.0), make_row("supervised", 95.0)]
        rows += [
            make_row(method, value, seed)
            for method, found in values.items()
            for seed, value in enumerate(found)
        ]
        (table,) = build_tables(spec(study), rows)
        return [note for note in table.notes if note.startswith("Order of ")]

    return make


def parts(text):
    found = re.search(
        r"tau-b (-?[\d.]+) over (\d) methods \(95 % bootstrap interval (-?[\d.]+) to (-?[\d.]+)", text
    )
    assert found, text
    return [float(number) for number in found.groups()]


def test_the_note_compares_the_means_and_leaves_references_out(note):
    values = {method: [PUBLISHED[method] - 0.01, PUBLISHED[method] + 0.01] for method in METHODS}
    values["byol"], values["barlow_twins"] = values["barlow_twins"], values["byol"]
    (text,) = note(values)
    expected = kendalltau(list(PUBLISHED.values()), [np.mean(values[method]) for method in METHODS]).statistic
    assert parts(text) == [pytest.approx(expected, abs=0.005), 6, *[pytest.approx(expected, abs=0.005)] * 2]
    assert text.startswith("Order of Linear top-1 with the quoted Linear top-1: ")
    assert "resampling the seeds" in text
    assert "With 6 methods one pair in the other order changes it by 0.13." in text  # 2 of 15 pairs


def test_the_interval_over_seeds_is_what_resampling_them_gives(note):
    rng = np.random.default_rng(5)
    values = {method: list(PUBLISHED[method] + rng.normal(0, 2, size=3)) for method in METHODS}
    (text,) = note(values)
    own = np.random.default_rng(99)
    taus = [
        kendalltau(
            [np.mean(own.choice(values[method], size=3)) for method in METHODS], list(PUBLISHED.values())
        ).statistic
        for _ in range(1000)
    ]
    _, _, low, high = parts(text)
    assert [low, high] == pytest.approx(np.quantile(taus, [0.025, 0.975]), abs=0.14)  # a pair more or less
    assert note(values) == [text], "a bootstrap that is seeded"


def test_methods_are_resampled_where_one_has_a_single_seed(note):
    values = {method: [60.0 + i, 60.1 + i] for i, method in enumerate(METHODS)}
    values["swav"] = [63.0]
    (text,) = note(values)
    assert "resampling the methods, of which some have one seed" in text
    tau, n, low, high = parts(text)
    assert n == 6
    assert low < tau <= high <= 1


def test_what_has_no_number_is_left_out_and_too_few_are_said_to_be(note, make_row):
    assert note({}) == []
    (text,) = note({"byol": [70.0], "simclr": [60.0]})
    assert text == (
        "Order of Linear top-1 with the quoted Linear top-1: only 2 methods have both numbers, too few to compare."
    )
    (text,) = note({method: [70.0] for method in METHODS})
    assert "the 6 methods have equal numbers, so there is no order to compare" in text


def test_a_row_of_which_a_seed_collapsed_has_no_place_in_the_order(make_row, spec, study):
    rows = [make_row(method, PUBLISHED[method], seed) for method in METHODS for seed in range(2)]
    rows = [row for row in rows if (row.method, row.seed) != ("byol", 1)]
    rows += [make_row("byol", None, 1, status="collapsed", reason="flat")]
    (table,) = build_tables(spec(study), rows)
    (text,) = [note for note in table.notes if note.startswith("Order of Linear")]
    assert parts(text)[:2] == [1.0, 5]


def test_a_study_says_which_columns_are_compared(note):
    values = {method: [PUBLISHED[method]] for method in METHODS}
    quoted = {"file": "table1_imagenet_linear.csv", "columns": {"top5": "published"}}
    assert note(values, quoted) == [], "no column has this label or metric"
    (text,) = note(values, quoted | {"compare": {"top5": "Linear top-1"}})
    assert text.startswith("Order of Linear top-1 with the quoted published: ")
