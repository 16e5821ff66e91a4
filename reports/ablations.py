"""What an ablation varied: its methods and values, and which published point stands beside one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from twinbench.reports import quoted
from twinbench.reports.groups import Group
from twinbench.reports.records import unique
from twinbench.reports.study import AblationQuoted, StudySpec


def varied_fields(spec: StudySpec) -> tuple[str, ...]:
    """The budget's fields that the ablation varies on purpose: differing in them earns no mark."""
    if spec.ablation is None:
        return ()
    parts = spec.ablation.key.split(".")
    return tuple(name for name in ("backbone", "epochs", "batch_size") if name in parts)


def ablation_methods(groups: Sequence[Group]) -> tuple[str, ...]:
    """Every method that has a variant."""
    return unique(group.method for group in groups if group.variant)


def quoted_point(source: AblationQuoted, curve: quoted.QuotedCurve, value: str) -> quoted.QuotedPoint | None:
    """The published point at one of our values, or None if the paper has none."""
    published = next((theirs for ours, theirs in source.values.items() if same_value(ours, value)), value)
    return next((point for point in curve.points if same_value(point.x, published)), None)


def same_value(one: str, other: str) -> bool:
    """Whether two spellings mean the same value: 0.0051 and 5.1e-3 do, true and True do."""
    a, b = as_number(one), as_number(other)
    if a is not None and b is not None:
        return math.isclose(a, b, rel_tol=1e-9)
    return one.lower() == other.lower()


def as_number(value: str) -> float | None:
    """The number that a varied value spells, or None."""
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
