"""A study's tables as text, for the end of a run or a README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from twinbench.reports.layout import Table
from twinbench.reports.records import Record, RunInfo
from twinbench.reports.tables import build_tables
from twinbench.reports.writers import to_markdown, to_text


def render(table: Table, style: Literal["text", "markdown"] = "text") -> str:
    """The table as aligned plain text or as Markdown."""
    return to_markdown(table) if style == "markdown" else to_text(table)


def render_study(
    study: Mapping[str, Any],
    records: Sequence[Record],
    runs: Sequence[RunInfo] = (),
    style: Literal["text", "markdown"] = "text",
) -> dict[str, str]:
    """Every table of the study by name. Raises InputError where study and records do not fit each other."""
    return {table.name: render(table, style) for table in build_tables(study, records, runs)}
