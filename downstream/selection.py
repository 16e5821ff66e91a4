"""What protocols that choose a value on held-out images have to say of the choice."""

from __future__ import annotations

from collections.abc import Sequence


def edge_remarks(
    protocol: str, what: str, chosen: float, tried: Sequence[float], least: float = 0.0
) -> list[str]:
    """A sentence if ``chosen`` is the smallest or the largest of the values tried, for one beyond might be better.

    Nothing lies beyond ``least``, and of one value nothing was chosen.
    """
    ends = {"smallest": min(tried), "largest": max(tried)}
    return [
        f"{protocol} chose on val the {end} {what} of its grid, {value:g}: one beyond might be better"
        for end, value in ends.items()
        if chosen == value and value != least and len(tried) > 1
    ]
