"""What a table varies: as numbers or words, and beside which published values it stands."""

from __future__ import annotations

import math
from collections.abc import Mapping

from twinbench.reports.study import RowKey, TableSpec, ValueSpec

_BUDGET_FIELDS = ("backbone", "epochs", "batch_size")


def varied_fields(table: TableSpec) -> tuple[str, ...]:
    """The budget's fields that the table varies on purpose: differing in them earns no mark."""
    parts = {part for key in table.varied_keys() for part in key.split(".")}
    return tuple(name for name in _BUDGET_FIELDS if name in parts)


def row_of(table: TableSpec, method: str, variant: str) -> RowKey | None:
    """The declared row of a method and variant, or None for one that only the records know."""
    return next((row for row in table.row_keys() if (row.method, row.variant) == (method, variant)), None)


def published_values(values: Mapping[str, ValueSpec], match: Mapping[str, str]) -> tuple[str, ...] | None:
    """What a published file calls the varied values, for each column of ``match``; None if one is not varied."""
    found = [values.get(axis) for axis in match.values()]
    if None in found:
        return None
    return tuple(value.published or value.label for value in found if value is not None)


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
