"""Which numbers and which differences are real: intervals, paired tests, groups of ties, and ranks over protocols.

The model. A number of a method is ``y[s, i]`` averaged over seeds ``s`` and test items ``i``; both are samples, of the
trainings that could have been and of the images that could have been tested on. The variance of the mean is

    V = (variance of the seeds' means) / n  +  (variance over items of their mean over seeds) / m  -  residual / (n m)

where the residual, the interaction of seeds and items, is in both of the first two and so is taken off once (the
two-way layout with random effects; Searle, Casella, McCulloch, Variance Components, section 4.3). That is what a
bootstrap of seeds and items converges to, but with three seeds a bootstrap has ten different resamples of them and its
percentiles are far too narrow: `tests/reports/test_statistics.py` measures by how much. Student's t with degrees of
freedom as Satterthwaite (1946) counts them is not, and needs no random numbers. His are too many where a few seeds
happen to lie close together, so the part of n seeds counts n / (n - 1) times in them: simulated intervals of three
seeds and more then cover the truth in 94 to 96 of 100 whatever share of the variance is the seeds', of two seeds in 92
at worst.

A metric that is no mean of items, such as an average precision, comes with replicates: its values on resampled test
sets, the same ones for every seed and method. They give the second and third term.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

import numpy as np
import scipy  # whose parts are imported when first used: `stats` takes half a second of every command
from scipy import special

Numbers = np.ndarray[Any, np.dtype[np.float64]]
Basis = Literal["seeds and test items", "seeds", "test items"]

LEVEL = 0.95
_POWER = 0.8
_DRAWS = 20_000
_PRIOR_STRENGTH = 0.5


@dataclass(frozen=True)
class Sample:
    """A metric measured for ``n`` seeds on the same test items.

    ``values`` ``[n]``; ``deviations`` ``[n, k]``, whose rows' scalar products are the covariances of the values over
    test sets that could have been drawn (``k`` is 0 where items are not known); ``items`` is the number of test items.
    ``right`` ``[items]``, bool, are those of a single seed where each is right or wrong, else None.
    """

    values: Numbers
    deviations: Numbers
    items: int = 0
    right: Numbers | None = None

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return float(self.values.mean())

    @property
    def has_items(self) -> bool:
        """Whether the outcomes of test items are known, which two at least must be."""
        return self.items > 1 and self.deviations.shape[1] > 0


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference of means with its interval; ``basis`` says over what it could have come out otherwise.

    ``stderr`` has ``df`` degrees of freedom. ``p`` is the two-sided probability of a value as far from zero if it were
    zero. All but ``value`` are None where nothing is known of the spread: one seed without its test items.
    """

    value: float
    low: float | None = None
    high: float | None = None
    stderr: float | None = None
    df: float | None = None
    p: float | None = None
    basis: Basis | None = None

    def smallest_difference(self, comparisons: int = 1) -> float | None:
        """The smallest true difference that a test at 5 % would have found in four of five such studies.

        Of several ``comparisons`` it is what the first of Holm's steps finds, whatever the others come to.
        """
        if self.stderr is None or self.df is None:
            return None
        critical = special.stdtrit(self.df, 1 - (1 - LEVEL) / 2 / comparisons)
        return float(special.nctdtrinc(self.df, 1 - _POWER, critical) * self.stderr)


def of_items(outcomes: Numbers) -> Sample:
    """The sample of a mean: ``outcomes`` ``[n, m]`` of each seed and test item, in the metric's unit."""
    outcomes = np.asarray(outcomes, np.float64)
    values, m = outcomes.mean(axis=1), outcomes.shape[1]
    scale = np.sqrt(m * max(m - 1, 1))
    counts = len(outcomes) == 1 and bool(np.isin(outcomes, (0.0, outcomes.max())).all())
    return Sample(values, (outcomes - values[:, None]) / scale, m, outcomes[0] > 0 if counts else None)


def of_draws(by_item: Numbers, by_draw: Numbers) -> Sample:
    """The sample of a mean over test items and draws of labelled images, in the metric's unit.

    ``by_item`` ``[n, m]`` are the means of each seed over its draws, ``by_draw`` ``[n, d]`` those over the test items.
    Draws are shared by the methods and not by the seeds, so of several seeds they are a part of what these differ by.
    """
    items, draws = of_items(by_item), of_items(by_draw)
    return Sample(items.values, np.concatenate([items.deviations, draws.deviations], axis=1), items.items)


def of_replicates(values: Numbers, replicates: Numbers, items: int) -> Sample:
    """The sample of a metric with its ``values`` ``[n]`` and ``replicates`` ``[n, r]`` on resampled test sets.

    A test set on which it has no value (NaN), being without any object, tells nothing.
    """
    replicates = np.asarray(replicates, np.float64)
    known = ~np.isnan(replicates).any(axis=0)
    told = replicates[:, known]
    deviations = np.zeros_like(replicates)  # of as many as others have, to be paired with
    if told.size:
        deviations[:, known] = (told - told.mean(axis=1, keepdims=True)) / np.sqrt(max(told.shape[1] - 1, 1))
    return Sample(np.asarray(values, np.float64), deviations, items if told.size else 0)


def of_values(values: Sequence[float] | Numbers) -> Sample:
    """The sample of a metric whose test items are not known: ``values`` ``[n]``."""
    values = np.asarray(values, np.float64)
    return Sample(values, np.zeros((len(values), 0)))


def estimate(sample: Sample, level: float = LEVEL) -> Estimate:
    """The mean with its interval over seeds and items together; over one of them where the other is not known."""
    return _estimate(sample.mean, [sample], sample.deviations.mean(axis=0), level)


def difference(first: Sample, second: Sample, level: float = LEVEL) -> Estimate:
    """``first`` minus ``second``, paired by test item.

    Seeds are not paired: trainings of two methods share a seed's number and little else. What they do share (a drawn
    subset of labels, say) can only make the true interval narrower. Items are left out where they are not known of
    both, and seeds where one has a single one: the difference is then that of these encoders, not of the methods. Of
    two classifiers the probability is then the exact one of `mcnemar`. Nothing is known of the spread of seeds that all
    happen to be equal, where items are not known. Raises ValueError if the numbers of items differ.
    """
    paired = first.has_items and second.has_items
    if paired and (first.items, first.deviations.shape[1]) != (second.items, second.deviations.shape[1]):
        raise ValueError(f"{first.items} test items cannot be paired with {second.items}")
    samples = [first, second] if paired else [of_values(first.values), of_values(second.values)]
    deviations = samples[0].deviations.mean(axis=0) - samples[1].deviations.mean(axis=0)
    found = _estimate(first.mean - second.mean, samples, deviations, level)
    if found.basis == "seeds" and not found.stderr and found.value:
        return Estimate(found.value)
    if paired and first.right is not None and second.right is not None:
        return replace(found, p=mcnemar(first.right, second.right))
    return found


def _estimate(value: float, samples: Sequence[Sample], deviations: Numbers, level: float) -> Estimate:
    """The estimate of a signed sum of independent samples whose items deviate together by ``deviations`` ``[k]``."""
    several = all(sample.seeds > 1 for sample in samples)
    items = samples[0].items if all(sample.has_items for sample in samples) else 0
    if not several and not items:
        return Estimate(value)
    parts = [(float(s.values.var(ddof=1)) / s.seeds, s.seeds - 1) for s in samples] if several else []
    over_seeds = sum(part for part, _ in parts)
    over_items = float(deviations @ deviations) if items else 0.0
    shared = sum(_residual(sample) for sample in samples) if several and items else 0.0
    variance = over_seeds + max(over_items - shared, 0.0)
    basis: Basis = "seeds and test items" if several and items else "seeds" if several else "test items"
    if variance == 0:
        return Estimate(value, value, value, 0.0, None, float(value == 0), basis)
    df = _degrees_of_freedom(variance, parts, over_items, items)
    stderr = float(np.sqrt(variance))
    half = float(special.stdtrit(df, (1 + level) / 2)) * stderr
    p = float(2 * special.stdtr(df, -abs(value) / stderr))
    return Estimate(value, value - half, value + half, stderr, df, p, basis)


def _degrees_of_freedom(
    variance: float, seeds: Sequence[tuple[float, int]], over_items: float, items: int
) -> float:
    """Those of a variance whose parts ``seeds`` have some each and whose part ``over_items`` has ``items - 1``."""
    if not items:
        return variance**2 / sum(part**2 / freedom for part, freedom in seeds)
    weighted = sum((part * (freedom + 1) / freedom) ** 2 / freedom for part, freedom in seeds)
    together = variance**2 / (weighted + over_items**2 / (items - 1))
    over_seeds = sum(part for part, _ in seeds)
    # not fewer than the seeds alone would have
    alone = over_seeds**2 / sum(part**2 / freedom for part, freedom in seeds) if over_seeds else 1.0
    return max(together, alone)


def _residual(sample: Sample) -> float:
    """The variance of the mean that is due to the interaction of seeds and items."""
    mean = sample.deviations.mean(axis=0)
    each = float((sample.deviations**2).sum(axis=1).mean())
    return max(each - float(mean @ mean), 0.0) / (sample.seeds - 1)


def mcnemar(first: Numbers, second: Numbers) -> float:
    """The exact two-sided p of McNemar's test for two classifiers: hits bool ``[m]`` on the same items.

    1 where they are right on the same items (McNemar 1947; Dietterich 1998, section 3.1).
    """
    only_one = [int((first > second).sum()), int((second > first).sum())]
    # both tails, for which of the two it is that is right more often is not known before
    return min(1.0, float(2 * special.bdtr(min(only_one), sum(only_one), 0.5)))


def holm(p: Sequence[float]) -> list[float]:
    """The probabilities corrected for being several: each is at most 0.05 where Holm (1979) rejects at 5 %."""
    adjusted, highest = [0.0] * len(p), 0.0
    for place, index in enumerate(sorted(range(len(p)), key=lambda index: p[index])):
        highest = max(highest, min(1.0, (len(p) - place) * p[index]))
        adjusted[index] = highest
    return adjusted


@dataclass(frozen=True)
class Comparison:
    """Two of several methods: places ``first`` and ``second``, their difference, and its p corrected for all pairs."""

    first: int
    second: int
    estimate: Estimate
    p: float | None

    @property
    def separates(self) -> bool:
        """Whether the two differ at 5 % with all pairs in mind."""
        return self.p is not None and self.p <= 1 - LEVEL + 1e-12


def compare_all(samples: Sequence[Sample]) -> list[Comparison]:
    """Every pair once, corrected by `holm` over those whose spread is known."""
    pairs = list(combinations(range(len(samples)), 2))
    found = [difference(samples[a], samples[b]) for a, b in pairs]
    corrected = iter(holm([each.p for each in found if each.p is not None]))
    return [
        Comparison(a, b, each, None if each.p is None else next(corrected))
        for (a, b), each in zip(pairs, found, strict=True)
    ]


def tied_with_best(samples: Sequence[Sample], comparisons: Sequence[Comparison], sign: int) -> set[int]:
    """The best method and all that cannot be told from it; ``sign`` is 1 where higher is better, else -1.

    All pairs are corrected for, and not only those with the best: it was chosen by looking.
    """
    best = max(range(len(samples)), key=lambda place: sign * samples[place].mean)
    worse = {
        sum((c.first, c.second)) - best for c in comparisons if c.separates and best in (c.first, c.second)
    }
    return set(range(len(samples))) - worse


@dataclass(frozen=True)
class Ranking:
    """Mean ranks ``[k]`` of methods over protocols, 1 the best, and whether they differ.

    ``p`` is Friedman's; methods whose mean ranks are closer than ``critical_difference`` cannot be told apart
    (Nemenyi; Demsar 2006, section 3.2.2).
    """

    ranks: tuple[float, ...]
    protocols: int
    p: float
    critical_difference: float


def rank(scores: Numbers) -> Ranking:
    """The ranking of ``scores`` ``[protocols, methods]``, higher is better. Raises ValueError for fewer than 2 x 3."""
    protocols, methods = scores.shape
    if protocols < 2 or methods < 3:
        raise ValueError("ranks need two protocols and three methods at least")
    ranks = scipy.stats.rankdata(-scores, axis=1).mean(axis=0)
    equal = bool((scores == scores[:, :1]).all())
    p = 1.0 if equal else float(scipy.stats.friedmanchisquare(*scores.T).pvalue)
    quantile = scipy.stats.studentized_range.ppf(LEVEL, methods, np.inf) / np.sqrt(2)
    return Ranking(
        tuple(map(float, ranks)),
        protocols,
        p,
        float(quantile * np.sqrt(methods * (methods + 1) / (6 * protocols))),
    )


def wilcoxon(differences: Numbers) -> float:
    """The two-sided p of Wilcoxon's signed-rank test of differences ``[protocols]``; 1 where all are zero."""
    return float(scipy.stats.wilcoxon(differences).pvalue) if np.any(differences) else 1.0


@dataclass(frozen=True)
class Posterior:
    """The probabilities that the first method is better, that both are as good, and that the second is better."""

    first: float
    equal: float
    second: float


def bayesian_signed_rank(differences: Numbers, equivalent: float, seed: int = 0) -> Posterior:
    """The Bayesian signed-rank test of differences ``[protocols]``: a difference up to ``equivalent`` counts as none.

    A Dirichlet process with a prior observation at zero of strength 0.5, by Monte Carlo (Benavoli et al. 2014 and, with
    the region of practical equivalence, 2017, section 4.2).
    """
    z = np.concatenate([[0.0], np.asarray(differences, np.float64)])
    sums = z[:, None] + z[None, :]
    strength = np.array([_PRIOR_STRENGTH, *[1.0] * (len(z) - 1)])
    weights = np.random.default_rng(seed).dirichlet(strength, size=_DRAWS)
    regions = [sums > 2 * equivalent, np.abs(sums) <= 2 * equivalent, sums < -2 * equivalent]
    mass = np.stack([np.einsum("di,ij,dj->d", weights, r.astype(float), weights) for r in regions])
    most = mass == mass.max(axis=0)
    return Posterior(*map(float, (most / most.sum(axis=0)).mean(axis=1)))


def probability_of_improvement(pairs: Sequence[tuple[Numbers, Numbers]]) -> float:
    """How probable it is that a run of the first method beats one of the second, over protocols.

    ``pairs`` are the seeds' values of both methods for each protocol, higher is better; a draw counts half (Agarwal et
    al. 2021, section 4.3).
    """
    return float(np.mean([np.mean((np.sign(a[:, None] - b[None, :]) + 1) / 2) for a, b in pairs]))
