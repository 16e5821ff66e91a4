"""The errors a user can cause: each says what happened, where, the nearest valid name and one next step."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class _ExplainedError(Exception):
    """An error whose message is assembled from what, where, nearest and next_step."""

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


class InputError(_ExplainedError):
    """Wrong use or bad input: the command ends with exit code 2."""


class RunFailure(_ExplainedError):
    """The work itself failed, a non-finite loss or a full disk say: the command ends with exit code 1."""


@contextlib.contextmanager
def inside(place: object) -> Iterator[None]:
    """Say ``place`` before the ``where`` of an InputError that leaves the block."""
    try:
        yield
    except InputError as error:
        where = place if error.where is None else f"{place}, {error.where}"
        raise InputError(error.what, where, error.nearest, error.next_step) from error


def nearest_name(name: str, valid: Iterable[str]) -> str | None:
    """The valid name most like ``name``, or None where nothing is near."""
    candidates = list(valid)
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.4)
    return by_lower[matches[0]] if matches else None


def unknown_name(kind: str, name: str, valid: Iterable[str], where: object = None) -> InputError:
    """The error for a name that is none of ``valid``; lists them and suggests the nearest."""
    names = sorted(set(valid))
    return InputError(
        f"unknown {kind} {name!r}",
        where=where,
        nearest=nearest_name(name, names),
        next_step=f"use one of: {', '.join(names)}",
    )
