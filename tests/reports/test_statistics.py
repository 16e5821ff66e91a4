"""The statistics against scipy, statsmodels, scikit-posthocs and loops by hand, and by simulated studies."""

from itertools import product

import numpy as np
import pytest
import scikit_posthocs
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from twinbench.reports import statistics as S

STUDIES = 2000
DIFFICULTY = 0.6


def hits(rng, seeds, items, spread, images=None):
    """Simulated outcomes [seeds, items]: easy and hard images, good and bad seeds, and chance."""
    images = rng.normal(size=items) if images is None else images
    return DIFFICULTY + rng.normal(0, spread, (seeds, 1)) + images + rng.normal(size=(seeds, items)) > 0


def true_accuracy(spread):
    """The accuracy over all seeds and images that there could be: a sum of normal variables is above zero."""
    return stats.norm.cdf(DIFFICULTY / np.sqrt(2 + spread**2))


def test_the_variance_is_that_of_the_two_way_layout_by_hand():
    rng = np.random.default_rng(0)
    y = hits(rng, 3, 40, 0.5).astype(float)
    n, m = y.shape
    grand = y.mean()
    of_seeds = m * sum((row.mean() - grand) ** 2 for row in y) / (n - 1)
    of_items = n * sum((y[:, i].mean() - grand) ** 2 for i in range(m)) / (m - 1)
    rest = [(y[s, i] - y[s].mean() - y[:, i].mean() + grand) ** 2 for s in range(n) for i in range(m)]
    residual = sum(rest) / ((n - 1) * (m - 1))
    expected = (of_seeds + of_items - residual) / (n * m)
    found = S.estimate(S.of_items(y))
    assert found.basis == "seeds and test items"
    assert found.stderr**2 == pytest.approx(expected, rel=1e-12)
    assert found.value == pytest.approx(grand)


def test_the_variance_is_that_of_a_bootstrap_of_seeds_and_items():
    rng = np.random.default_rng(1)
    y = hits(rng, 30, 60, 0.5).astype(float)
    means = [y[rng.integers(30, size=30)][:, rng.integers(60, size=60)].mean() for _ in range(4000)]
    # A bootstrap counts the residual twice over, once with each of its factors, so it is a little wider.
    assert S.estimate(S.of_items(y)).stderr == pytest.approx(np.std(means), rel=0.06)


def test_one_seed_is_a_t_interval_over_its_items_and_says_so():
    y = hits(np.random.default_rng(2), 1, 50, 0.0).astype(float)
    expected = stats.ttest_1samp(y[0], 0.0)
    found = S.estimate(S.of_items(y))
    assert found.basis == "test items"
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.p == pytest.approx(expected.pvalue)


def test_seeds_alone_are_a_t_interval_over_seeds():
    values = [70.1, 71.4, 69.0]
    expected = stats.ttest_1samp(values, 0.0)
    found = S.estimate(S.of_values(values))
    assert found.basis == "seeds"
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_one_seed_without_items_has_a_value_and_no_interval():
    assert S.estimate(S.of_values([70.0])) == S.Estimate(70.0)
    assert S.difference(S.of_values([70.0]), S.of_values([60.0, 61.0])) == S.Estimate(9.5)


def test_equal_numbers_have_no_width():
    found = S.estimate(S.of_values([5.0, 5.0, 5.0]))
    assert (found.low, found.high, found.stderr) == (5.0, 5.0, 0.0)
    assert S.difference(S.of_values([5.0, 5.0]), S.of_values([5.0, 5.0])).p == 1.0
    assert S.difference(S.of_values([5.0, 5.0]), S.of_values([6.0, 6.0])) == S.Estimate(-1.0), "no certainty"


@pytest.mark.parametrize("seeds", [1, 4])
def test_draws_of_labelled_images_widen_the_interval_of_one_seed_and_are_paired(seeds):
    rng = np.random.default_rng(15)
    items, draws = rng.normal(0, 20, (1, 200)), rng.normal(0, 3, (seeds, 40))

    def right(shift):
        """Percentages right [seeds, items, draws] of a method: images and draws are hard for all methods alike."""
        return 60 + shift + items[..., None] + draws[:, None] + rng.normal(0, 1, (seeds, 200, 40))

    first, second = (S.of_draws(y.mean(axis=2), y.mean(axis=1)) for y in (right(0.0), right(0.5)))
    of_items, of_draws = 20**2 / 200, 3**2 / 40 / seeds
    assert S.estimate(first).stderr == pytest.approx(
        np.sqrt(of_items + of_draws), rel=0.15 if seeds == 1 else 0.3
    )
    if seeds == 1:
        found = S.difference(first, second)
        assert found.stderr < 0.15 * S.estimate(first).stderr
        assert found.low < -0.5 < found.high


def test_test_sets_without_a_value_tell_nothing():
    rng = np.random.default_rng(16)
    replicates = 50 + rng.normal(size=(2, 100))
    with_gaps = replicates.copy()
    with_gaps[0, ::10] = np.nan
    kept = np.delete(replicates, np.arange(0, 100, 10), axis=1)
    values = replicates.mean(axis=1)
    found, expected = (S.estimate(S.of_replicates(values, r, 30)) for r in (with_gaps, kept))
    assert (found.value, found.stderr) == pytest.approx((expected.value, expected.stderr))
    assert not S.of_replicates(values, np.full((2, 100), np.nan), 30).has_items


@pytest.mark.parametrize("counts", [True, False])
def test_a_difference_of_one_seed_each_is_the_paired_t_test_and_of_two_classifiers_mcnemars(counts):
    rng = np.random.default_rng(3)
    images = rng.normal(size=80)
    a, b = (hits(rng, 1, 80, 0.3, images) for _ in range(2))
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    # percentages, as of hits, and numbers between them, as of items that are right in some of many draws
    a, b = (100.0 * x if counts else 100.0 * x + rng.normal(size=80) for x in (a, b))
    expected = stats.ttest_rel(a[0], b[0])
    found = S.difference(S.of_items(a), S.of_items(b))
    exact = statsmodels_mcnemar(table, exact=True).pvalue
    assert found.p == pytest.approx(exact if counts else expected.pvalue)
    assert exact != pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_a_difference_over_seeds_alone_is_welchs_t_test():
    a, b = [70.1, 71.4, 69.0], [65.0, 69.9, 66.1, 64.2]
    expected = stats.ttest_ind(a, b, equal_var=False)
    found = S.difference(S.of_values(a), S.of_values(b))
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_pairing_by_item_takes_out_what_the_images_share():
    rng = np.random.default_rng(4)
    images = 3 * rng.normal(size=300)
    a, b = (S.of_items(hits(rng, 3, 300, 0.05, images).astype(float)) for _ in range(2))
    paired, apart = S.difference(a, b), S.estimate(a).stderr * np.sqrt(2)
    assert paired.stderr < 0.7 * apart


def test_items_of_different_number_are_not_paired():
    a, b = S.of_items(np.eye(3)), S.of_items(np.ones((3, 4)))
    with pytest.raises(ValueError, match="cannot be paired"):
        S.difference(a, b)


def test_replicates_give_the_same_as_the_items_of_a_mean():
    rng = np.random.default_rng(5)
    y = hits(rng, 3, 200, 0.3).astype(float)
    weights = rng.multinomial(200, np.full(200, 1 / 200), size=4000)
    exact = S.estimate(S.of_items(y))
    resampled = S.estimate(S.of_replicates(y.mean(axis=1), y @ weights.T / 200, 200))
    assert resampled.stderr == pytest.approx(exact.stderr, rel=0.03)
    assert resampled.basis == exact.basis


@pytest.mark.parametrize("seeds", [1, 3, 5])
@pytest.mark.parametrize("spread", [0.03, 0.1, 0.3])
def test_intervals_cover_what_they_should(seeds, spread):
    """In 93 to 97 of 100 studies; of one seed, the accuracy of that encoder on all images that there could be."""
    rng = np.random.default_rng(1000 * seeds + int(100 * spread))
    covered = 0
    for _ in range(STUDIES):
        offset = rng.normal(0, spread) if seeds == 1 else 0.0
        y = hits(rng, seeds, 500, 0.0 if seeds == 1 else spread, rng.normal(size=500) + offset)
        truth = stats.norm.cdf((DIFFICULTY + offset) / np.sqrt(2)) if seeds == 1 else true_accuracy(spread)
        found = S.estimate(S.of_items(y))
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / STUDIES <= 0.97


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.1), (3, 0.3), (5, 0.1)])
def test_intervals_of_differences_cover_what_they_should(seeds, spread):
    """Of two methods on the same images, the second of which finds them a little harder."""
    rng = np.random.default_rng(70 + seeds)
    harder = 0.1
    truth = true_accuracy(spread) - stats.norm.cdf((DIFFICULTY - harder) / np.sqrt(2 + spread**2))
    covered = 0
    for _ in range(STUDIES):
        images = rng.normal(size=500)
        first = S.of_items(hits(rng, seeds, 500, spread, images))
        second = S.of_items(hits(rng, seeds, 500, spread, images - harder))
        found = S.difference(first, second)
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / STUDIES <= 0.97


def test_percentiles_of_a_bootstrap_of_three_seeds_cover_far_too_little():
    """Why the intervals are Student's."""
    rng = np.random.default_rng(6)
    covered, studies = 0, 300
    for _ in range(studies):
        y = hits(rng, 3, 300, 0.3).astype(float)
        seeds, weights = rng.integers(3, size=(300, 3)), rng.multinomial(300, np.full(300, 1 / 300), size=300)
        means = (y[seeds].mean(axis=1) * weights).sum(axis=1) / 300
        low, high = np.quantile(means, [0.025, 0.975])
        covered += low <= true_accuracy(0.3) <= high
    assert covered / studies < 0.88


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.1), (5, 0.1)])
def test_methods_that_do_not_differ_are_hardly_ever_told_apart(seeds, spread):
    """At most 5 % of the studies of six equal methods separate any pair of them."""
    rng = np.random.default_rng(7 + seeds)
    separated = 0
    for _ in range(STUDIES):
        images = rng.normal(size=300)
        samples = [S.of_items(hits(rng, seeds, 300, spread, images)) for _ in range(6)]
        separated += any(c.separates for c in S.compare_all(samples))
    assert separated / STUDIES <= 0.05


def test_mcnemar_is_statsmodels():
    rng = np.random.default_rng(8)
    images = rng.normal(size=60)
    a, b = (hits(rng, 1, 60, 0.5, images)[0] for _ in range(2))
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    assert S.mcnemar(a, b) == pytest.approx(statsmodels_mcnemar(table, exact=True).pvalue)
    assert S.mcnemar(a, a) == 1.0


def test_holm_is_statsmodels():
    p = np.random.default_rng(9).uniform(0, 0.2, 12).tolist()
    assert S.holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist())
    assert S.holm([]) == []


def test_ties_are_all_that_the_best_cannot_be_told_from():
    values = ([70, 71, 72], [69.5, 71, 72.5], [40, 41, 42], [70.5, 71.5, 71.1])
    samples = [S.of_values(v) for v in values]
    comparisons = S.compare_all(samples)
    assert S.tied_with_best(samples, comparisons, 1) == {0, 1, 3}
    assert S.tied_with_best(samples, comparisons, -1) == {2}


def test_friedman_and_the_critical_difference_are_those_of_others():
    scores = np.random.default_rng(10).normal(size=(8, 4)) + np.array([0.0, 0.5, 1.0, 3.0])
    found = S.rank(scores)
    assert found.p == pytest.approx(stats.friedmanchisquare(*scores.T).pvalue)
    by_hand = [[1 + sum(other > own for other in row) for own in row] for row in scores]
    assert found.ranks == pytest.approx(np.mean(by_hand, axis=0))
    nemenyi = scikit_posthocs.posthoc_nemenyi_friedman(scores).to_numpy()
    for a in range(4):
        for b in range(a):
            apart = abs(found.ranks[a] - found.ranks[b]) > found.critical_difference
            assert apart == (nemenyi[a, b] < 0.05)
    # Demsar 2006, table 5: q of four methods is 2.569
    assert found.critical_difference == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 8)), rel=1e-3)


def test_wilcoxon_counts_all_signs_that_the_ranks_could_have_and_equal_numbers_are_no_difference():
    d = np.random.default_rng(11).normal(0.4, 1, 9)
    ranks = [sum(abs(other) <= abs(own) for other in d) for own in d]
    sums = [sum(r for r, up in zip(ranks, signs, strict=True) if up) for signs in product([0, 1], repeat=9)]
    found, middle = sum(r for r, x in zip(ranks, d, strict=True) if x > 0), sum(ranks) / 2
    as_far = np.mean([abs(s - middle) >= abs(found - middle) for s in sums])
    assert S.wilcoxon(d) == pytest.approx(as_far)
    assert S.wilcoxon(np.zeros(5)) == 1.0


def test_the_bayesian_signed_rank_test_is_that_of_a_loop():
    d, rope = np.array([0.2, 1.5, -0.4, 0.9, 2.0]), 0.5
    rng, wins = np.random.default_rng(12), np.zeros(3)
    z = [0.0, *d]
    for _ in range(3000):
        w = rng.dirichlet([0.5, 1, 1, 1, 1, 1])
        mass = np.zeros(3)
        for i in range(6):
            for j in range(6):
                middle = (z[i] + z[j]) / 2
                mass[0 if middle > rope else 2 if middle < -rope else 1] += w[i] * w[j]
        wins[mass.argmax()] += 1
    found = S.bayesian_signed_rank(d, rope)
    assert (found.first, found.equal, found.second) == pytest.approx(tuple(wins / 3000), abs=0.03)
    assert found.first + found.equal + found.second == pytest.approx(1.0)
    assert S.bayesian_signed_rank(np.full(8, 0.1), 0.5).equal > 0.99


def test_the_probability_of_improvement_is_mann_whitneys():
    rng = np.random.default_rng(13)
    pairs = [(rng.integers(0, 9, 4).astype(float), rng.integers(0, 9, 5).astype(float)) for _ in range(3)]
    expected = [stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)) for a, b in pairs]
    assert S.probability_of_improvement(pairs) == pytest.approx(np.mean(expected))


def test_the_smallest_difference_is_found_in_four_of_five_studies():
    y = hits(np.random.default_rng(14), 1, 400, 0.0).astype(float)
    found = S.estimate(S.of_items(y))
    effect = found.smallest_difference() / np.std(y, ddof=1)
    assert TTestPower().power(effect, nobs=400, alpha=0.05) == pytest.approx(0.8, abs=0.002)
    few, rng = S.estimate(S.of_values([70.0, 71.5, 69.2])), np.random.default_rng(17)
    for comparisons in (1, 15):
        means = few.smallest_difference(comparisons) + few.stderr * rng.normal(size=100_000)
        errors = few.stderr * np.sqrt(rng.chisquare(2, size=100_000) / 2)
        found = means / errors > stats.t.ppf(1 - 0.025 / comparisons, 2)
        assert found.mean() == pytest.approx(0.8, abs=0.006)
