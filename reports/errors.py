"""The errors that a report can raise: what happened, where, the nearest valid name and one next step."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class _Explained(Exception):
    """What happened, where, the nearest valid name and one next step."""

    def __init__(
        self, what: str, where: object = None, nearest: str | None = None, next_step: str | None = None
    ) -> None:
        self.what, self.where, self.nearest, self.next_step = what, where, nearest, next_step
        super().__init__(what)

    def __reduce__(self) -> tuple[type, tuple[str, object, str | None, str | None]]:
        """Keep every part when the error crosses a process boundary."""
        return type(self), (self.what, self.where, self.nearest, self.next_step)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where is not None:
            lines.append(f"  where:   {self.where}")
        if self.nearest is not None:
            lines.append(f"  nearest: {self.nearest}")
        if self.next_step is not None:
            lines.append(f"  next:    {self.next_step}")
        return "\n".join(lines)


class ReportError(_Explained, ValueError):
    """Wrong use: records, runs, a study description or a folder that no report can be made from or in."""


class ReportFailure(_Explained, RuntimeError):
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
