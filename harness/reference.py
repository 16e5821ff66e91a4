"""The reference of protocols, a page that is made from the code: ``python -m twinbench.harness.reference FILE``."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from textwrap import fill

from twinbench.downstream.protocol import Protocol, protocol, protocol_names, replaced_by
from twinbench.foundation.files import write_atomically
from twinbench.harness.facts import FACTS, Facts
from twinbench.harness.plugins import load_plugins
from twinbench.reports.metrics import metric_of

_NEEDS = {
    "labels": "images with labels",
    "detection": "pictures with annotated objects",
    "images": "images without labels",
}
_INTRODUCTION = """\
# Protocols

A protocol says how an encoder is measured, to the last default. Its name is `family/variant-vN`; a changed default
is a new N, so two numbers under one name are comparable. A version that was replaced cannot be run any more, and what
it measured keeps its name. Commands take a bare family for its newest version where it has one variant (`knn`), and
studies the name in full.

This page is made from the code."""

_FACTS = """\
## Facts of trainings

Columns of tables name these as they name protocols. They are read from what a training left behind; there is nothing to
evaluate."""


def reference() -> str:
    """The page: every protocol with what it measures, its settings and the versions that it took the place of.

    Then the facts of trainings, which tables show beside them.
    """
    load_plugins()
    facts = [_section_of_facts(found) for found in FACTS.entries()]
    return "\n\n".join([_INTRODUCTION, *map(_section, protocol_names()), _FACTS, *facts]) + "\n"


def _section_of_facts(found: Facts) -> str:
    metrics = ", ".join(f"`{name}`{_unit(name)}" for name in found.metrics)
    return f"### {found.name}\n\n{fill(found.about, 120)}\n\n- Tells: {metrics}."


def _section(name: str) -> str:
    chosen = protocol(name)
    return "\n".join([f"## {name}", "", *_about(chosen), "", *_facts(chosen)])


def _about(chosen: Protocol) -> Iterator[str]:
    """The description in the code, with its cross-references as code."""
    text = inspect.cleandoc(type(chosen).__doc__ or "")
    yield re.sub(r"``(.+?)``", r"`\1`", text, flags=re.DOTALL)


def _facts(chosen: Protocol) -> Iterator[str]:
    metrics = ", ".join(f"`{name}`{_unit(name)}" for name in chosen.metrics)
    yield f"- Measures: {metrics}."
    yield f"- Needs: {_NEEDS[chosen.needs]}."
    if settings := list(_settings(chosen)):
        yield f"- Settings: {', '.join(settings)}."
    for old, why in sorted(replaced_by(chosen.name).items()):
        yield f"- Took the place of `{old}`: {why}."


def _unit(metric: str) -> str:
    unit = metric_of(metric).unit
    return f" ({unit})" if unit else ""


def _settings(of: object) -> Iterator[str]:
    """The fields of a protocol that is one of several of its kind."""
    if not is_dataclass(of):
        return
    for field in fields(of):
        value = getattr(of, field.name)
        if field.name in ("name", "needs", "metrics"):
            continue
        if is_dataclass(value):
            yield from _settings(value)
        else:
            shown = value.__name__.replace("_", " ") if callable(value) else value
            yield f"{field.name.replace('_', ' ')} {shown}"


if __name__ == "__main__":
    write_atomically(Path(sys.argv[1]), reference().encode("utf-8"))
