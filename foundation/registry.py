"""Names and what they stand for, one law for all: methods, protocols, image sets, formats and kinds of figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from twinbench.foundation.errors import InputError, unknown_name

T = TypeVar("T")

_added: list[tuple[Registry[Any], str]] = []
"""Every entry of every registry in the order of registration, so that the last ones can be undone."""


class Registry(Generic[T]):
    """What is registered under which name; ``kind`` is what error messages call an entry ("method").

    Registering happens when a module is imported. Which modules those are is the harness' business; ``filled_by``
    tells who finds nothing registered at all what would import them.
    """

    def __init__(self, kind: str, filled_by: str = "importing the modules that register them") -> None:
        self.kind = kind
        self._filled_by = filled_by
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        """Make ``entry`` available under ``name`` and return it.

        Raises ValueError if the name is empty or belongs to another entry: with two things under one name, every
        number under it would be doubtful.
        """
        if not name:
            raise ValueError(f"a {self.kind} needs a name")
        if name not in self._entries:
            self._entries[name] = entry
            _added.append((self, name))
        known = self._entries[name]
        if known is not entry:
            raise ValueError(f"{self.kind} {name!r} is already registered by {_origin(known)}")
        return entry

    def __getitem__(self, name: str) -> T:
        """The entry called ``name``; raises InputError with the nearest name if there is none."""
        if name not in self._entries:
            raise self.unknown(name)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def names(self) -> list[str]:
        """Every registered name, sorted."""
        return sorted(self._entries)

    def entries(self) -> list[T]:
        """Every entry, in the order of registration."""
        return list(self._entries.values())

    def unknown(self, name: str, others: Iterable[str] = ()) -> InputError:
        """The error for a name that no entry has; ``others`` are names that would be valid as well."""
        if not self._entries:
            return InputError(
                f"unknown {self.kind} {name!r}: no {self.kind} is registered in this process",
                next_step=f"fill the registry by {self._filled_by}",
            )
        return unknown_name(self.kind, name, {*self._entries, *others})


@contextmanager
def all_or_nothing() -> Iterator[None]:
    """Undo whatever the block registered, in any registry, if it ends with an exception."""
    before = len(_added)
    try:
        yield
    except BaseException:
        for registry, name in _added[before:]:
            del registry._entries[name]
        del _added[before:]
        raise


def _origin(entry: object) -> str:
    """Where an entry was defined, as well as it can say."""
    named = entry if hasattr(entry, "__qualname__") else type(entry)
    return f"{named.__module__}.{getattr(named, '__qualname__', named)}"
