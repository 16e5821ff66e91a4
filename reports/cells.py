"""One cell of a table: several seeds of one number, aggregated with its uncertainty and its provenance."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from twinbench.reports.records import Record, unique
from twinbench.reports.statistics import Basis, Sample, estimate, of_values

Kind = Literal[
    "seeds",
    "items",
    "interval over seeds",
    "interval over test items",
    "interval over seeds and test items",
    "",
]
_INTERVAL_OVER: dict[Basis, Kind] = {
    "seeds": "interval over seeds",
    "test items": "interval over test items",
    "seeds and test items": "interval over seeds and test items",
}
OF_SEVERAL_SEEDS: tuple[Kind, ...] = ("seeds", "interval over seeds and test items", "interval over seeds")
OF_ONE_SEED: tuple[Kind, ...] = ("interval over test items", "items")

Status = Literal["done", "failed", "collapsed", "not run", "missing", "quoted"]
_LOST = {
    "failed": "failed",
    "collapsed": "collapsed",
    "not run": "not run",
    "absent": "without this number",
}
"""What a seed without a number came to, in words."""


@dataclass(frozen=True)
class Failure:
    """A seed without a number: ``status`` is failed, collapsed, not run, or absent where nothing of these is so."""

    seed: int | None
    status: str
    reason: str


@dataclass(frozen=True)
class Cell:
    """A number of a table with all that is needed to trust it.

    ``value`` and ``uncertainty`` are in the metric's unit. ``kind`` says what the uncertainty is, and whatever tells a
    reader asks it: ``seeds`` is the sample standard deviation over ``n_seeds`` runs, ``items`` the sampling standard
    error over ``n_items`` test items of one run, and an interval, which `with_interval` puts in their place, half its
    width. ``interval`` is the 95 % interval of the mean, over what ``basis`` says, made from ``sample``. A cell whose
    status is not ``done`` or ``quoted`` has no value; where only some of its seeds collapsed, ``rest`` is the cell of
    those that are done. ``note`` is about this cell; ``remarks`` are its records'. ``values`` are those of the seeds.
    ``records`` are those that it was made from, one a seed, failed ones too.
    """

    status: Status
    value: float | None = None
    uncertainty: float | None = None
    kind: Kind = ""
    interval: tuple[float, float] | None = None
    basis: Basis | None = None
    sample: Sample | None = field(default=None, compare=False, repr=False)
    n_seeds: int = 0
    n_items: int | None = None
    origin: str = ""
    recipe_hashes: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    source: str = ""
    note: str = ""
    remarks: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    records: tuple[Record, ...] = ()
    rest: Cell | None = None

    @property
    def measured(self) -> Cell:
        """The cell with what was measured, which of a row that collapsed for some seeds is not its number."""
        return self.rest or self


MISSING = Cell("missing")


def aggregate(records: Sequence[Record], failures: Sequence[Failure] = ()) -> Cell:
    """Aggregate the records of one (method, protocol, metric): one per seed, plus seeds that failed
    elsewhere.

    The mean is over the seeds that are done; the others are kept in ``failures``. Where no seed is done, the
    status is the most frequent failure and the cell has no number; nor has one of which any seed collapsed, for the
    mean of those that did not would flatter it. Where the number is absent of every seed, a note says why.
    """
    done = list(
        {
            (r.seed, r.encoder_checksum): r for r in records if r.status == "done" and r.value is not None
        }.values()
    )
    lost = [*_failures(records), *failures]
    origin = next((record.origin for record in records), "")
    hashes = unique(record.recipe_hash for record in records)
    if not done:
        if all(failure.status == "absent" for failure in lost):
            return replace(MISSING, note="; ".join(unique(failure.reason for failure in lost)))
        return Cell(
            _lost_status(lost),
            origin=origin,
            recipe_hashes=hashes,
            failures=tuple(lost),
            records=tuple(records),
        )
    values = [record.value for record in done if record.value is not None]
    mean = statistics.fmean(values)
    n_items = max((record.n for record in done if record.n is not None), default=None)
    uncertainty, kind = _uncertainty(values, done[0].stderr)
    cell = Cell(
        "done",
        value=mean,
        uncertainty=uncertainty,
        kind=kind,
        n_seeds=len(values),
        n_items=n_items,
        origin=origin,
        recipe_hashes=hashes,
        failures=tuple(lost),
        values=tuple(values),
        remarks=unique(remark for record in done for remark in record.all_remarks),
        records=(*done, *(r for r in records if r.status != "done" or r.value is None)),
    )
    cell = with_sample(cell, of_values(values))
    return _collapsed(cell) if any(failure.status == "collapsed" for failure in lost) else cell


def with_sample(cell: Cell, sample: Sample) -> Cell:
    """The cell with the interval of the sample that its number is the mean of."""
    found = estimate(sample)
    interval = None if found.low is None or found.high is None else (found.low, found.high)
    cell = replace(cell, sample=sample, interval=interval, basis=found.basis)
    # a metric that is no mean of items, as an average precision, has no standard error of its own
    return with_interval(cell) if cell.n_seeds == 1 and cell.uncertainty is None else cell


def with_interval(cell: Cell) -> Cell:
    """The cell with half the width of its interval as the uncertainty; as it is where it has no interval."""
    if cell.rest is not None:
        return replace(cell, rest=with_interval(cell.rest))
    if cell.interval is None or cell.basis is None:
        return cell
    half = (cell.interval[1] - cell.interval[0]) / 2
    return replace(cell, uncertainty=half, kind=_INTERVAL_OVER[cell.basis])


def spread_words(kind: Kind, seeds: str = "seeds", items: str = "test items") -> str:
    """What the ± of a kind is, given how its seeds and items are called: ``std over 3 seeds``; empty where none is."""
    return {
        "seeds": f"std over {seeds}",
        "items": f"standard error over {items}",
        "interval over seeds": f"half the 95 % interval over {seeds}",
        "interval over test items": f"half the 95 % interval over {items}",
        "interval over seeds and test items": f"half the 95 % interval over {seeds} and {items}",
        "": "",
    }[kind]


def _collapsed(cell: Cell) -> Cell:
    """A cell of which some seeds collapsed: it has no number, only ``rest`` has."""
    return Cell(
        "collapsed",
        origin=cell.origin,
        recipe_hashes=cell.recipe_hashes,
        failures=cell.failures,
        records=cell.records,
        rest=replace(cell, failures=()),
    )


def _lost_status(lost: Sequence[Failure]) -> Status:
    """What most of the seeds that ran came to."""
    ran = [failure for failure in lost if failure.status in ("failed", "collapsed")]
    if not ran:
        return "not run"
    return "collapsed" if 2 * sum(failure.status == "collapsed" for failure in ran) >= len(ran) else "failed"


def _failures(records: Sequence[Record]) -> list[Failure]:
    found: dict[tuple[int | None, str], Failure] = {}
    for record in records:
        if record.status in _LOST:
            found[record.seed, record.encoder_checksum] = Failure(record.seed, record.status, record.reason)
        elif record.status == "done" and record.value is None:
            found[record.seed, record.encoder_checksum] = Failure(
                record.seed, "failed", "no finite value recorded"
            )
    return list(found.values())


def _uncertainty(values: Sequence[float], stderr: float | None) -> tuple[float | None, Kind]:
    if len(values) >= 2:
        return statistics.stdev(values), "seeds"
    return (stderr, "items") if stderr is not None else (None, "")


def number(value: float, digits: int = 1) -> str:
    """``value`` with ``digits`` decimals and no negative zero."""
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("-") and float(text) == 0 else text


def text(cell: Cell, digits: int = 1) -> str:
    """What a reader sees: ``71.4 ± 0.9`` with so many decimals, ``collapsed (2 of 3 seeds)``, ``failed`` or ``-``.

    A mean over some of the seeds says over how many: ``71.4 ± 0.9 (2 of 3 seeds)``.

    There is no ± where all seeds are equal, and a spread that would be rounded to nothing is ``± <0.1``.
    """
    if cell.status == "missing" or (cell.status == "quoted" and cell.value is None):
        return "-"
    if cell.value is None:
        return cell.status + _collapsed_share(cell)
    some = f" ({share(cell)})" if share(cell) else ""
    if not cell.uncertainty:
        return number(cell.value, digits) + some
    shown = number(cell.uncertainty, digits)
    if float(shown) == 0:  # "± 0.0" would claim certainty
        shown = f"<{10.0**-digits:.{digits}f}"
    return f"{number(cell.value, digits)} ± {shown}{some}"


def share(cell: Cell) -> str:
    """``2 of 3 seeds`` of a mean over some of the seeds; empty for any other cell."""
    return f"{cell.n_seeds} of {_count(cell)} seeds" if cell.value is not None and cell.failures else ""


def _collapsed_share(cell: Cell) -> str:
    """How many seeds collapsed, where others did not."""
    collapsed = sum(failure.status == "collapsed" for failure in cell.failures)
    total = _count(cell)
    return f" ({collapsed} of {total} seeds)" if cell.status == "collapsed" and collapsed < total else ""


def _count(cell: Cell) -> int:
    """How many seeds there are, with and without a number."""
    return cell.measured.n_seeds + len(cell.failures)


def describe_rest(cell: Cell, digits: int) -> str:
    """What the seeds came to that did not collapse: ``without the seeds that collapsed: 52.1 ± 1.1 (2 seeds)``."""
    assert cell.rest is not None
    seeds = f"{cell.rest.n_seeds} seeds" if cell.rest.n_seeds > 1 else "1 seed"
    kind = cell.rest.kind if cell.rest.uncertainty else ""
    # the note of the table tells of the std, which is the usual one
    spread = f", ± = {spread_words(kind)}" if kind not in ("seeds", "") else ""
    return f"without the seeds that collapsed: {text(cell.rest, digits)} ({seeds}{spread})"


def describe_failures(cell: Cell) -> str:
    """The cell's failed seeds in words, with their reasons: ``1 of 3 seeds failed (seed 2: loss is NaN)``."""
    total = _count(cell)
    parts = []
    for status, words in _LOST.items():
        group = [failure for failure in cell.failures if failure.status == status]
        if not group:
            continue
        reasons: dict[str, list[str]] = {}
        for failure in group:
            seed = "?" if failure.seed is None else str(failure.seed)
            unknown = "" if status == "not run" else "no reason recorded"
            reasons.setdefault(failure.reason or unknown, []).append(seed)
        listed = "; ".join(
            f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}{': ' if reason else ''}{reason}"
            for reason, seeds in reasons.items()
        )
        parts.append(f"{len(group)} of {total} seed{'s' if total > 1 else ''} {words} ({listed})")
    shown = ", ".join(parts)
    return f"{shown}; the mean is over the other {cell.n_seeds}" if cell.status == "done" and parts else shown
