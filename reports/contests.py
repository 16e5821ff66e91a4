"""Who beats whom in a column: the rows that compete, their differences, and which cannot be told from the best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from twinbench.reports.cells import Cell
from twinbench.reports.statistics import Comparison, Estimate, Sample, compare_all, of_values, tied_with_best

_SIGN = {"higher": 1, "lower": -1}


@dataclass(frozen=True)
class Contest:
    """The competition in one column. ``rows`` are places in the table, the best mean first.

    ``comparisons`` are of all pairs, by places in ``rows``. ``tied`` are the best and the rows that were tested against
    it and cannot be told from it; none, not even the best, where none could be tested.
    """

    rows: tuple[int, ...]
    comparisons: tuple[Comparison, ...]
    tied: frozenset[int]

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
    samples = _on_the_same_items([competing[row].sample or of_values([]) for row in rows])
    comparisons = compare_all(samples)
    tested = {c.second for c in comparisons if c.first == 0 and c.p is not None}
    alike = tied_with_best(samples, comparisons, sign) & {0, *tested} if tested else set()
    return Contest(tuple(rows), tuple(comparisons), frozenset(rows[place] for place in alike))


def _on_the_same_items(samples: list[Sample]) -> list[Sample]:
    """The samples, without their test items unless these are the same number for all."""
    shapes = {(sample.items, sample.deviations.shape[1]) for sample in samples if sample.has_items}
    return samples if len(shapes) < 2 else [of_values(sample.values) for sample in samples]
