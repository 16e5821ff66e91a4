"""The errors a user can cause: each says what happened, where, the nearest valid name and one next step."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from typing import ClassVar

from twinbench.foundation.texts import legible

_LONGEST_PART = 4000  # characters: a name from outside may be as long as its file


class ExplainedError(Exception):
    """An error whose message is assembled from what, where, nearest and next_step.

    ``option`` is what the next step is about, if that is a parameter (``data_root``) or a key of a recipe with a value
    (``epochs=5``). The text is written for every caller; the command line adds how to write the option there.
    ``exit_code`` is that of a command which ends with this error.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        what: str,
        where: object = None,
        nearest: str | None = None,
        next_step: str | None = None,
        option: str | None = None,
    ) -> None:
        self.what, self.where, self.nearest, self.next_step = what, where, nearest, next_step
        self.option = option
        super().__init__(what)

    def __reduce__(self) -> tuple[type, tuple[str, object, str | None, str | None, str | None]]:
        """Keep every part when the error crosses a process boundary."""
        return type(self), (self.what, self.where, self.nearest, self.next_step, self.option)

    def parts(self) -> dict[str, str]:
        """What there is of ``what``, ``where``, ``nearest`` and ``next``, as text that no terminal obeys."""
        named = {"what": self.what, "where": self.where, "nearest": self.nearest, "next": self.next_step}
        return {name: legible(str(part), _LONGEST_PART) for name, part in named.items() if part is not None}

    def message(self, hint: str = "") -> str:
        """The parts line by line, with a hint in brackets after the next step."""
        parts = self.parts()
        if hint and "next" in parts:
            parts["next"] += f" ({hint})"
        lines = (f"  {name + ':':<8} {part}" for name, part in parts.items() if name != "what")
        return "\n".join([parts["what"], *lines])

    def __str__(self) -> str:
        return self.message()


class InputError(ExplainedError):
    """Wrong use or bad input: the command ends with exit code 2."""

    exit_code = 2


class RunFailure(ExplainedError):
    """The work itself failed, with a non-finite loss or a full disk for example: the command ends with exit code 1."""


class ShortOfMemory(RunFailure):
    """Memory was too little for the work; with more to itself it may not fail."""


@contextlib.contextmanager
def inside(place: object) -> Iterator[None]:
    """Say ``place`` before the ``where`` of an InputError that leaves the block."""
    try:
        yield
    except InputError as error:
        where = place if error.where is None else f"{place}, {error.where}"
        raise InputError(error.what, where, error.nearest, error.next_step, error.option) from error


def nearest_name(name: str, valid: Iterable[str]) -> str | None:
    """The valid name most like ``name``, or None if nothing is near."""
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
