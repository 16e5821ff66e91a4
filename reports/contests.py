"""Who beats whom in a column: the rows that compete, their differences, and which cannot be told from the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from twinbench.reports.cells import Cell
from twinbench.reports.outcomes import identity_of
from twinbench.reports.statistics import Comparison, Estimate, Sample, compare_all, of_values, tied_with_best

_SIGN = {"higher": 1, "lower": -1}
STUDENT, MCNEMAR = "Student's t", "McNemar's exact test of two rows of one seed each"
MIXED = (
    "rows of one seed compete with rows of several: their differences are over test items alone and leave out how much "
    "the seeds are known to differ"
)
_ALONE = "there is one seed and no record of its test items"
_OTHER_ITEMS = "the rows were not measured on the same test items"
_EQUAL_SEEDS = "all seeds of a row came to the same number, which tells nothing of their spread"
_NOTHING_SHARED = "other rows lack the seeds or the record of test items that a comparison takes"


@dataclass(frozen=True)
class Contest:
    """The competition in one column. ``rows`` are places in the table, the best mean first.

    ``comparisons`` are of all pairs, by places in ``rows``. ``tied`` are the best and the rows that were tested against
    it and cannot be told from it; none, not even the best, where none could be tested. ``tests`` names the tests that
    the probabilities are of. ``unmarked`` says where nothing is to be marked as the best, for a reason.
    """

    rows: tuple[int, ...]
    comparisons: tuple[Comparison, ...]
    tied: frozenset[int]
    tests: frozenset[str]
    unmarked: str

    @property
    def best(self) -> frozenset[int]:
        """The rows to mark as the best."""
        return frozenset() if self.unmarked else self.tied

    def of(self, first: int, second: int) -> Comparison:
        """The comparison of two different rows, by their places in the table, as the first minus the second."""
        a, b = self.rows.index(first), self.rows.index(second)
        found = next(c for c in self.comparisons if {c.first, c.second} == {a, b})
        return found if found.first == a else _turned(found)


def _turned(comparison: Comparison) -> Comparison:
    e = comparison.estimate
    low, high = (None if end is None else -end for end in (e.high, e.low))
    turned = Estimate(-e.value, low, high, e.stderr, e.df, e.p, e.basis)
    return Comparison(comparison.second, comparison.first, turned, comparison.p)


def contest(competing: Mapping[int, Cell], better: str) -> Contest | None:
    """The competition of cells by their rows; None if no way is better, or fewer than two compete."""
    sign = _SIGN.get(better)
    if sign is None or len(competing) < 2:
        return None
    rows = sorted(competing, key=lambda row: -sign * (competing[row].value or 0.0))
    known = [competing[row].sample or of_values([]) for row in rows]
    samples = _on_the_same_items(known)
    comparisons = compare_all(samples)
    tested = [c for c in comparisons if c.first == 0 and c.p is not None]
    alike = tied_with_best(samples, comparisons, sign) & {0, *(c.second for c in tested)} if tested else set()
    return Contest(
        tuple(rows),
        tuple(comparisons),
        frozenset(rows[place] for place in alike),
        frozenset(_test_of(c, samples) for c in comparisons if c.p is not None),
        _why_unmarked(samples, tested) if tested else _why_untested(known, samples),
    )


def _on_the_same_items(samples: Sequence[Sample]) -> Sequence[Sample]:
    """The samples, without their test items unless these are the same ones for all that have any."""
    known = {
        (identity_of(sample), sample.items, sample.deviations.shape[1])
        for sample in samples
        if sample.has_items
    }
    return samples if len(known) < 2 else [of_values(sample.values) for sample in samples]


def _test_of(comparison: Comparison, samples: Sequence[Sample]) -> str:
    """The test that `statistics.difference` does of a pair."""
    pair = samples[comparison.first], samples[comparison.second]
    return MCNEMAR if all(sample.has_items and sample.right is not None for sample in pair) else STUDENT


def _why_unmarked(samples: Sequence[Sample], tested: Sequence[Comparison]) -> str:
    """Why the best row is not to be marked though it was ``tested``; empty if it is.

    A row of several seeds shows how much trainings differ. A test over the items of one training each knows nothing of
    it, and would mark a lucky seed.
    """
    several = any(sample.seeds > 1 for sample in samples)
    return MIXED if several and any(c.estimate.basis == "test items" for c in tested) else ""


def _why_untested(known: Sequence[Sample], samples: Sequence[Sample]) -> str:
    """Why the best row, the first, was tested against no other: of what is ``known`` the ``samples`` were compared."""
    best, *others = known
    if best.seeds < 2 and not best.has_items:
        return _ALONE
    if best.seeds > 1 and any(other.seeds > 1 for other in others):
        return _EQUAL_SEEDS
    if best.has_items and not samples[0].has_items:
        return _OTHER_ITEMS
    return _NOTHING_SHARED
