"""Names and what they stand for, one law for all: methods, protocols, image sets, formats and kinds of figures."""

from __future__ import annotations

from typing import Generic, TypeVar

from twinbench.foundation.errors import unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """What is registered under which name; ``kind`` is what error messages call an entry ("method").

    Registering happens when a module is imported. Which modules those are is the harness' business.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        """Make ``entry`` available under ``name`` and return it.

        Raises ValueError where the name is empty or belongs to another entry: with two things under one name, every
        number under it would be doubtful.
        """
        if not name:
            raise ValueError(f"a {self.kind} needs a name")
        known = self._entries.setdefault(name, entry)
        if known is not entry:
            raise ValueError(f"{self.kind} {name!r} is already registered by {_origin(known)}")
        return entry

    def __getitem__(self, name: str) -> T:
        """The entry called ``name``; raises InputError with the nearest name where there is none."""
        if name not in self._entries:
            raise unknown_name(self.kind, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def names(self) -> list[str]:
        """Every registered name, sorted."""
        return sorted(self._entries)


def _origin(entry: object) -> str:
    """Where an entry was defined, as well as it can say."""
    named = entry if hasattr(entry, "__qualname__") else type(entry)
    return f"{named.__module__}.{getattr(named, '__qualname__', named)}"
