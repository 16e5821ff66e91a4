"""Whether the numbers of a table come from one environment, and in what theirs differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from twinbench.foundation.documents import from_json
from twinbench.reports.records import Record

_NAMED = 4
_UNKNOWN = "not recorded"


def environment_notes(records: Iterable[Record]) -> list[str]:
    """A sentence for each of trainings and evaluations whose environments differ, with the values and their counts.

    Another says of how many the environment is not recorded, where it is of some.
    """
    measured = [record for record in records if record.value is not None]
    trainings = {(r.recipe_hash, r.trained_in) for r in measured if r.trained_in or _was_trained_here(r)}
    evaluations = {(r.recipe_hash, r.protocol, r.image_set, r.environment) for r in measured}
    notes = []
    for what, texts in (
        ("trainings", [environment for _, environment in sorted(trainings)]),
        ("evaluations", [environment for *_, environment in sorted(evaluations)]),
    ):
        known = [environment_facts(text) for text in texts if text]
        differing = _differing(known)
        if differing:
            notes.append(
                f"The {what} were not all done in one environment: they differ in {'; '.join(differing)}."
            )
        if known and len(known) < len(texts):
            unknown = f"that of {len(texts) - len(known)} of {len(texts)} is not recorded"
            notes.append(f"The {what} may not all have been done in one environment: {unknown}.")
    return notes


def _was_trained_here(record: Record) -> bool:
    """Whether there was a training whose environment could have been recorded."""
    return record.origin == "run" and bool(record.epochs)


def environment_facts(text: str) -> dict[str, Any]:
    """The facts of an environment by name; text that is no JSON object is one fact."""
    try:
        content = from_json(text)
    except ValueError:
        content = None
    return content if isinstance(content, dict) else {"environment": text}


def _differing(environments: list[dict[str, Any]]) -> list[str]:
    """``commit (0123: 5, 4567: 2)`` for each fact that is not the same in all."""
    facts = dict.fromkeys(name for environment in environments for name in environment)
    found = []
    for name in facts:
        counts = Counter(str(environment.get(name, _UNKNOWN)) for environment in environments)
        if len(counts) > 1:
            shown = [f"{value or 'none'}: {count}" for value, count in counts.most_common(_NAMED)]
            shown += [f"{len(counts) - _NAMED} more"] if len(counts) > _NAMED else []
            found.append(f"{name} ({', '.join(shown)})")
    return found
