"""The errors that a report can raise: what happened, where, the nearest valid name and one next step."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from twinbench.foundation.errors import InputError, RunFailure


class ReportError(InputError, ValueError):
    """Wrong use: records, runs, a study description or a folder that no report can be made from or in."""


class ReportFailure(RunFailure, RuntimeError):
    """A fault of the machine, such as a full disk, while a correct report was being made."""


def unknown_name(kind: str, name: str, valid: Iterable[str], where: object = None) -> ReportError:
    """The error for a name that is none of ``valid``; lists them and suggests the nearest."""
    names = sorted(set(valid))
    by_lower = {candidate.lower(): candidate for candidate in names}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.4)
    return ReportError(
        f"unknown {kind} {name!r}",
        where=where,
        nearest=by_lower[matches[0]] if matches else None,
        next_step=f"use one of: {', '.join(names)}",
    )
