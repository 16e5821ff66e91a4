"""Records sorted into the rows of a table: one group per method, variant, origin and pretraining budget."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from twinbench.reports import names
from twinbench.reports.cells import Cell, Failure, aggregate
from twinbench.reports.records import Record, RunInfo, unique


@dataclass(frozen=True)
class Budget:
    """What a pretraining run cost, as far as it decides whether two rows compare fairly."""

    backbone: str = ""
    epochs: int | None = None
    batch_size: int | None = None
    pretrained_on: str = ""

    @property
    def known(self) -> bool:
        """Whether anything is recorded at all."""
        return bool(self.backbone or self.epochs or self.batch_size)

    def without(self, fields: Sequence[str]) -> Budget:
        """The budget with some fields blanked, for an ablation that varies them on purpose."""
        return Budget(
            "" if "backbone" in fields else self.backbone,
            None if "epochs" in fields else self.epochs,
            None if "batch_size" in fields else self.batch_size,
            self.pretrained_on,
        )

    def __str__(self) -> str:
        parts = [f"on {self.pretrained_on}"] if self.pretrained_on else []
        parts += [self.backbone] if self.backbone else []
        parts += [f"{self.epochs} epochs"] if self.epochs else []
        parts += [f"batch {self.batch_size}"] if self.batch_size else []
        return ", ".join(parts) or "not recorded"


@dataclass(frozen=True)
class Group:
    """The records and failed runs behind one row. ``suffix`` tells rows of one method apart; often empty."""

    method: str
    variant: str
    origin: str
    records: tuple[Record, ...]
    failed_runs: tuple[RunInfo, ...] = ()
    suffix: str = ""

    @property
    def label(self) -> str:
        """The method's pretty name with what tells it apart."""
        words = [] if self.origin == "run" else [self.origin]
        words += [self.suffix] if self.suffix else []
        return names.pretty(self.method) + (f" ({', '.join(words)})" if words else "")

    @property
    def is_reference(self) -> bool:
        """Whether this is a reference row."""
        return names.is_reference(self.method)

    def budgets(self) -> dict[str, Budget]:
        """The pretraining budget for each image set of the group's records."""
        found: dict[str, Budget] = {}
        for record in self.records:
            budget = _budget(record)
            if budget.known and record.image_set not in found:
                found[record.image_set] = budget
        return found

    @property
    def tuning_trials(self) -> int | None:
        """How many trials chose the settings, of differing seeds the fewest; None if there was nothing to choose."""
        return min((r.tuning_trials for r in self.records if r.tuning_trials is not None), default=None)

    def scales(self) -> tuple[str, ...]:
        """What the encoders of the group's records were trained at; none for those that never were."""
        return unique(r.scale for r in self.records)

    def sources(self) -> tuple[str, ...]:
        """Where the imported encoders of the group's records are from."""
        return unique(r.source for r in self.records if r.source)

    def cell(self, protocol: str, metric: str, image_set: str = "") -> Cell:
        """The cell of one metric on one image set (on the only one where ``image_set`` is empty).

        A record of a failure may name no metric or no protocol: it then counts for all of them, and so does a
        pretraining run that failed before any protocol could see it. A number measured on a run that
        collapsed is no result, whatever its record says. Where other seeds have the number, it is absent of one whose
        evaluation has none of this metric.
        """
        collapsed = {run.seed: run.reason for run in self.failed_runs if run.status == "collapsed"}
        scope = [
            replace(r, status="collapsed", value=None, reason=collapsed[r.seed] or r.reason)
            if r.seed in collapsed
            else r
            for r in self.records
            if not image_set or r.image_set in ("", image_set)
        ]
        exact = [r for r in scope if r.protocol == protocol and r.metric == metric]
        exact += _without_it(exact, [r for r in scope if r.protocol == protocol], metric)
        seen = {r.seed for r in exact}
        broad = [
            r
            for r in scope
            if r.status in ("failed", "collapsed")
            and r.seed not in seen
            and r.protocol in ("", protocol)
            and r.metric in ("", metric)
        ]
        seen |= {r.seed for r in broad}
        runs = [run for run in self.failed_runs if run.seed not in seen]
        return aggregate([*exact, *broad], [Failure(run.seed, run.status, run.reason) for run in runs])


def _without_it(exact: Sequence[Record], evaluations: Sequence[Record], metric: str) -> list[Record]:
    """A record for each seed that was evaluated and has none of the metric, if ``exact``, those that have, have it."""
    if all(record.value is None for record in exact):
        return []
    known = {record.seed for record in exact}
    lacking = {r.seed: r for r in evaluations if r.status == "done" and r.seed not in known}
    nothing = [replace(r, value=None, stderr=None, n=None, outcomes="", remarks="") for r in lacking.values()]
    reason = "its evaluation has no such number"
    return [replace(r, metric=metric, status="absent", reason=reason) for r in nothing]


def _budget(record: Record) -> Budget:
    return Budget(record.backbone, record.epochs, record.batch_size, record.pretrained_on)


def group_records(records: Sequence[Record], runs: Sequence[RunInfo] = ()) -> list[Group]:
    """Groups in the paper's order of methods. Seeds are pooled; budgets, origins and imported encoders never
    are.
    """
    by_name: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        by_name[record.method, record.variant, record.origin].append(record)
    failed: dict[tuple[str, str, str], list[RunInfo]] = defaultdict(list)
    for run in runs:
        if run.status in ("failed", "collapsed"):
            failed[run.method, run.variant, run.origin].append(run)
            by_name.setdefault((run.method, run.variant, run.origin), [])
    groups = []
    for (method, variant, origin), own in by_name.items():
        split = _split(own)
        lost = tuple(failed[method, variant, origin])
        # A failed run carries no budget: with several rows of one method it is shown in the first.
        first = replace(split[0], method=method, variant=variant, origin=origin, failed_runs=lost)
        groups += [first, *split[1:]]
    return sorted(groups, key=lambda g: (not g.is_reference, names.sort_key(g.method), g.origin != "run"))


def _split(records: Sequence[Record]) -> list[Group]:
    """Split records of one method where one image set has several budgets or several imported encoders."""
    if not records:
        return [Group("", "", "", ())]
    method, variant, origin = records[0].method, records[0].variant, records[0].origin
    per_image_set: dict[str, list[tuple[Budget, str]]] = defaultdict(list)
    for record in records:
        identity = _identity(record)
        if identity not in per_image_set[record.image_set] and (identity[0].known or identity[1]):
            per_image_set[record.image_set].append(identity)
    if all(len(identities) <= 1 for identities in per_image_set.values()):
        return [Group(method, variant, origin, tuple(records))]
    parts: dict[tuple[Budget, str], list[Record]] = defaultdict(list)
    for record in records:
        identity = _identity(record)
        if not (identity[0].known or identity[1]):
            identity = per_image_set[record.image_set][0] if per_image_set[record.image_set] else identity
        parts[identity].append(record)
    several_encoders = len({encoder for _, encoder in parts}) > 1
    return [
        Group(method, variant, origin, tuple(part), suffix=encoder if several_encoders else str(budget))
        for (budget, encoder), part in parts.items()
    ]


def _identity(record: Record) -> tuple[Budget, str]:
    """The budget and, of an imported encoder, its name in the study's folder: its weights alone are not the encoder."""
    return _budget(record), (
        record.source_name or record.encoder_checksum[:8]
    ) if record.origin == "imported" else ""


def image_sets(records: Sequence[Record]) -> tuple[str, ...]:
    """The image sets in order of appearance."""
    return unique(record.image_set for record in records)


def is_unmeasured(records: Sequence[Record], protocol: str, metric: str, image_set: str) -> bool:
    """Whether the protocol was measured on the image set and has no number of this metric there, nor says why."""
    measured = {
        r.metric
        for r in records
        if r.protocol == protocol and r.image_set == image_set and r.status in ("done", "absent")
    }
    return bool(measured) and metric not in measured


def usual_budgets(
    groups: Sequence[Group], image_sets: Sequence[str], varied: Sequence[str] = ()
) -> dict[str, Budget]:
    """For each image set the budget that most groups have (the first of equals); methods go before references."""
    usual = {}
    for image_set in image_sets:
        for pool in (
            [group for group in groups if not group.is_reference],
            [group for group in groups if group.method != "random_init"],
        ):
            found = [group.budgets().get(image_set) for group in pool]
            counts = Counter(budget.without(varied) for budget in found if budget is not None)
            if counts:
                usual[image_set] = counts.most_common(1)[0][0]
                break
    return usual


def usual_trials(groups: Sequence[Group]) -> int | None:
    """The number of trials that most tuned groups have (the first of equals); 0 if none is tuned.

    None if there was nothing to choose in any of them.
    """
    known = [group.tuning_trials for group in groups if group.tuning_trials is not None]
    tuned = Counter(number for number in known if number)
    return tuned.most_common(1)[0][0] if tuned else min(known, default=None)


def differs(group: Group, usual: Mapping[str, Budget], varied: Sequence[str] = ()) -> bool:
    """Whether the group was pretrained with another budget than the usual one, and so is no fair competitor."""
    if group.method == "random_init":  # never trained, so it has no budget to compare
        return False
    own = group.budgets()
    return any(
        image_set in own and own[image_set].without(varied) != budget for image_set, budget in usual.items()
    )
