"""What the rows of a table of runs are called: the recipe keys in which runs of one method differ."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twinbench.harness.recipes import identity
from twinbench.harness.store import Run
from twinbench.reports import names

_NAMED = 3  # keys in a name
_CHARACTERS = 24  # of a value in a name
_SHARED = ("image_set_fingerprint", "seed")
"""In what seeds, and versions of an image set, differ: rows are told apart by these elsewhere."""


@dataclass(frozen=True)
class Variants:
    """``names`` by the hash of a run: empty where it differs from no other run of its method, else unique among them.

    ``note`` has in full what the names leave out; empty if that is nothing.
    """

    names: Mapping[str, str]
    note: str


def told_apart(runs: Sequence[Run]) -> Variants:
    """The recipe keys and values that set runs apart from others of their method, at most a few of them in a name.

    These are the ones whose values fewest other runs share. Runs that differ in their seeds alone have one name.
    """
    flat = {run.hash: _flat(identity(run.source)) for run in runs}
    methods: dict[tuple[type, str], list[str]] = defaultdict(list)
    for run in runs:
        methods[type(run.source), run.source.method].append(run.hash)
    found: dict[str, str] = {}
    cut: dict[str, str] = {}
    for (_, method), hashes in methods.items():
        differences = _differences({each: flat[each] for each in hashes})
        short = _unique_names(list(differences.values()))
        for each, difference in differences.items():
            whole = _text(difference)
            found[each] = short[whole]
            if short[whole] != whole:
                cut[f"{names.pretty(method)} ({short[whole]})"] = whole
    note = "; ".join(f"{name}: {whole}" for name, whole in cut.items())
    return Variants(found, f"Variants in full: {note}." if note else "")


_Difference = Mapping[str, tuple[str, int]]
"""For each key in which a run differs from some other: its value, and how many of the runs share it."""


def _differences(flat: Mapping[str, Mapping[str, Any]]) -> dict[str, _Difference]:
    keys = dict.fromkeys(key for own in flat.values() for key in own if key not in _SHARED)
    counts = {key: Counter(repr(own.get(key)) for own in flat.values()) for key in keys}
    return {
        each: {
            key: (str(own[key]), counts[key][repr(own[key])])
            for key in keys
            if key in own and len(counts[key]) > 1
        }
        for each, own in flat.items()
    }


def _text(difference: _Difference) -> str:
    return ", ".join(f"{key}={value}" for key, (value, _) in difference.items())


def _unique_names(differences: Sequence[_Difference]) -> dict[str, str]:
    """For the text of each difference a short one, with a number where several would be the same."""
    short = {_text(difference): _short(difference) for difference in differences}
    same: dict[str, list[str]] = defaultdict(list)
    for whole, name in short.items():
        same[name].append(whole)
    return {
        whole: f"{name} ({sorted(same[name]).index(whole) + 1})" if len(same[name]) > 1 else name
        for whole, name in short.items()
    }


def _short(difference: _Difference) -> str:
    rarest = sorted(difference, key=lambda key: difference[key][1])[:_NAMED]
    shown = [f"{key}={_cut(value)}" for key, (value, _) in difference.items() if key in rarest]
    more = len(difference) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _cut(value: str) -> str:
    return value if len(value) <= _CHARACTERS else f"{value[: _CHARACTERS - 1]}…"


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values by dotted keys, as `--set` takes them; of a list of mappings those of each, or the one of all."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            flat[f"{prefix}{key}"] = len(value)
            flat.update(_flat(_merged(value), f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _merged(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    merged = {}
    for key in dict.fromkeys(key for item in items for key in item):
        values = [item.get(key) for item in items]
        merged[key] = values[0] if all(value == values[0] for value in values) else values
    return merged
