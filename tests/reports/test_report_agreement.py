"""Kendall's tau-b against scipy and by hand, and the sentence about it below a table."""

import re
from itertools import permutations

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
    """tau, the number of methods, and p."""
    found = re.search(r"tau-b (-?[\d.]+) over (\d) methods \(p [=<] ([\d.]+) by permutations", text)
    assert found, text
    return [float(number) for number in found.groups()]


def interval(text):
    found = re.search(r"95 % bootstrap interval (-?[\d.]+) to (-?[\d.]+), resampling the methods", text)
    assert found, text
    return [float(number) for number in found.groups()]


def test_the_note_compares_the_means_and_leaves_references_out(note):
    values = {method: [PUBLISHED[method] - 0.01, PUBLISHED[method] + 0.01] for method in METHODS}
    values["byol"], values["barlow_twins"] = values["barlow_twins"], values["byol"]
    (text,) = note(values)
    expected = kendalltau(list(PUBLISHED.values()), [np.mean(values[method]) for method in METHODS])
    assert parts(text) == [
        pytest.approx(expected.statistic, abs=0.005),
        6,
        pytest.approx(expected.pvalue, rel=0.05),
    ]
    assert text.startswith("Order of Linear top-1 with the quoted Linear top-1: ")
    assert "; 0.87 to 0.87 seed by seed)" in text
    assert "With 6 methods one pair in the other order changes it by 0.13." in text  # 2 of 15 pairs


@pytest.mark.parametrize("seed", range(4))
def test_p_is_exact_with_and_without_ties(note, seed):
    rng = np.random.default_rng(seed)
    ours = rng.integers(0, 4, size=6) if seed % 2 else rng.normal(size=6)
    (text,) = note({method: [50.0 + value] for method, value in zip(METHODS, ours, strict=True)})
    published = list(PUBLISHED.values())
    taus = np.array([kendalltau(permuted, published).statistic for permuted in permutations(ours)])
    tau = kendalltau(ours, published).statistic
    p = 2 * min((taus <= tau + 1e-9).mean(), (taus >= tau - 1e-9).mean())
    assert parts(text)[2] == pytest.approx(min(1, p), rel=0.05)


def test_the_taus_of_single_seeds_are_told(note):
    rng = np.random.default_rng(5)
    values = {method: list(PUBLISHED[method] + rng.normal(0, 2, size=3)) for method in METHODS}
    (text,) = note(values)
    taus = [
        kendalltau([values[method][seed] for method in METHODS], list(PUBLISHED.values())).statistic
        for seed in range(3)
    ]
    assert f"; {min(taus):.2f} to {max(taus):.2f} seed by seed)" in text
    assert note(values) == [text], "a bootstrap that is seeded"
    values["swav"] = values["swav"][:1]
    assert "seed by seed" not in note(values)[0]


def test_the_interval_is_what_resampling_the_methods_gives(note):
    values = {method: [60.0 + (i * 7) % 5] for i, method in enumerate(METHODS)}
    (text,) = note(values)
    own, published = np.random.default_rng(99), list(PUBLISHED.values())
    taus = []
    for _ in range(1000):
        chosen = own.integers(6, size=6)
        taus.append(
            kendalltau(
                [values[METHODS[place]][0] for place in chosen], [published[place] for place in chosen]
            ).statistic
        )
    assert interval(text) == pytest.approx(np.nanquantile(taus, [0.025, 0.975]), abs=0.15)


def test_methods_in_one_order_have_no_interval_of_no_width(note):
    methods = METHODS[:4]
    (text,) = note({method: [80.0 - PUBLISHED[method]] for method in methods})
    assert parts(text) == [-1.0, 4, 0.083]  # 2 of the 24 orders are as far from any
    assert "interval" not in text


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
