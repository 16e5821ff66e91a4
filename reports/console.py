"""A study's tables as text, for the end of a run."""

from __future__ import annotations

from collections.abc import Sequence

from twinbench.reports.records import Record, RunInfo
from twinbench.reports.study import StudySpec
from twinbench.reports.tables import build_tables
from twinbench.reports.writers import to_text


def render_study(
    study: StudySpec, records: Sequence[Record], runs: Sequence[RunInfo] = (), command: str = ""
) -> list[str]:
    """Every table of the study; ``command`` is what would fill it.

    Raises InputError if study and records do not fit each other.
    """
    return [to_text(table) for table in build_tables(study, records, runs, command)]
