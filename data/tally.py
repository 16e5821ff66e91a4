"""Counting cases for a remark."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Tally:
    """How often something happened, and the first case."""

    count: int = 0
    first: str = ""

    def add(self, case: str) -> None:
        """Count a case."""
        self.count += 1
        self.first = self.first or case

    def of(self, total: int, kind: str) -> str:
        """The count and the first case in words: ``3 of 20 pictures (a.jpg for one)``."""
        return f"{self.count} of {total} {kind} ({self.first} for one)"
