"""What a table can and cannot tell, in plain words with its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import stdev

from twinbench.reports.cells import number
from twinbench.reports.contests import MIXED, Contest
from twinbench.reports.layout import Column, Row, name_of
from twinbench.reports.statistics import Comparison

_NAMED = 6


def conclude(
    columns: Sequence[Column], rows: Sequence[Row], contests: Sequence[Contest | None]
) -> tuple[str, ...]:
    """A paragraph for each column in which rows compete."""
    return tuple(
        f"{column.label}: {_conclusion(position, rows, found)}"
        for position, (column, found) in enumerate(zip(columns, contests, strict=True))
        if found is not None
    )


def _conclusion(position: int, rows: Sequence[Row], found: Contest) -> str:
    best, *others = found.rows
    digits = rows[best].entries[position].digits
    if best not in found.tied:
        tested = any(c.p is not None for c in found.comparisons)
        which = "difference to the best number" if tested else "difference"
        sentences = [f"no {which} can be tested, for {found.unmarked}."]
        sentences += [f"The best number is that of {name_of(rows[best])}."]
        return " ".join(sentences + (_about_the_rest(found, digits) if tested else []))
    against = {row: found.of(best, row) for row in others}
    ties = [row for row in others if row in found.tied]
    beaten = [row for row in others if against[row].separates]
    untested = [row for row in others if against[row].p is None]
    said = [f"{name_of(rows[best])} has the best number"]
    said += [f"cannot be told from {_listed(ties, rows, against, digits)}"] if ties else []
    said += [f"beats {_listed(beaten, rows, against, digits)}"] if beaten else []
    middle = " but " if ties else " and "
    sentences = [said[0] + middle + ", and ".join(said[1:]) + "."]
    sentences += [f"Not tested: {_listed(untested, rows, against, digits)}."] if untested else []
    sentences += _about_the_rest(found, digits)
    if found.unmarked == MIXED:
        seeds = [rows[row].entries[position].cell.values for row in found.rows]
        spread = number(max(stdev(values) for values in seeds if len(values) > 1), digits)
        sentences.append(
            f"They leave out how much seeds differ, and nothing is marked as best: of the rows that have several, the "
            f"standard deviation over seeds is up to {spread}."
        )
    return " ".join(sentences)


def _listed(places: Sequence[int], rows: Sequence[Row], against: dict[int, Comparison], digits: int) -> str:
    shown = [f"{name_of(rows[place])} ({_difference(against[place], digits)})" for place in places[:_NAMED]]
    more = len(places) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _difference(comparison: Comparison, digits: int) -> str:
    """``by 2.1, 95 % interval -0.3 to 4.5, p = 0.21``."""
    e = comparison.estimate
    if e.low is None or e.high is None or comparison.p is None:
        return f"by {number(abs(e.value), digits)}"
    # the difference is told as a lead, so an interval of a metric of which less is better is turned
    low, high = (e.low, e.high) if e.value >= 0 else (-e.high, -e.low)
    interval = f"{number(low, digits)} to {number(high, digits)}"
    return f"by {number(abs(e.value), digits)}, 95 % interval {interval}, {probability(comparison.p)}"


def probability(p: float) -> str:
    """``p = 0.21``, or ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _about_the_rest(found: Contest, digits: int) -> list[str]:
    pairs = [c for c in found.comparisons if c.p is not None]
    apart = sum(c.separates for c in pairs)
    smallest = sorted(s for c in pairs if (s := c.estimate.smallest_difference(len(pairs))) is not None)
    bases = {c.estimate.basis for c in pairs}
    sentences = [f"Of {len(found.comparisons)} pairs {apart} can be told apart at 5 %, all pairs in mind."]
    if smallest:
        typical = number(smallest[len(smallest) // 2], digits)
        sentences.append(
            f"A true difference of {typical} would have been found in four of five such studies, all pairs in mind."
        )
    if "test items" in bases:
        sentences.append(
            "Comparisons with a row of one seed are over its test items alone: they are about these encoders, and "
            "another training could come out otherwise."
        )
    return sentences
