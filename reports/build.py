"""Writes a study's report: page, tables, figures and records, all at once or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from twinbench.foundation.files import machine_faults, write_synced
from twinbench.reports import unchanged
from twinbench.reports.figures import draw_figures, figures_to_come
from twinbench.reports.figures.drawing import Drawing
from twinbench.reports.layout import Table
from twinbench.reports.output import PAGE, check_out, recover, swap, write_list
from twinbench.reports.page import render_page
from twinbench.reports.records import Record, RunInfo, write_records
from twinbench.reports.source import write_source
from twinbench.reports.study import StudySpec
from twinbench.reports.tables import build_tables
from twinbench.reports.writers import differences_csv, to_csv, to_latex, to_markdown

__all__ = ["build_report", "check_out"]


def build_report(
    study: StudySpec,
    records: Sequence[Record],
    runs: Sequence[RunInfo],
    out: Path,
    command: str,
    draw: bool = True,
) -> Path:
    """Write ``out``/report.html, tables/, figures/, the records and what `source.read_source` reads; return the page.

    ``command`` is the line that makes the report again. Without ``draw`` a line stands in the place of each figure:
    that takes a second where the figures take many. A report that is there already, made of the same, stays as it is,
    with the figures that it has.
    Everything is made in a folder beside ``out`` and swapped in,
    so that a crash leaves the old report whole and no file of an older report stays behind. What else lies in ``out``
    is kept. Raises InputError for records or a folder that no report can be made from or in, before anything is
    changed, and RunFailure where the machine fails: a full disk, a folder that cannot be written.
    """
    check_out(out)
    target = out.resolve()
    with machine_faults("the report cannot be drawn", target, "check that the run folders can be read"):
        recover(target)
        digest = unchanged.digest_of(study, records, runs, command, draw)
        drawn = digest if draw else unchanged.digest_of(study, records, runs, command, draw=True)
        if any(unchanged.is_there(target, each) for each in (digest, drawn)):
            return Path(os.path.abspath(out)) / PAGE
        tables = build_tables(study, records, runs, command)
        drawings = draw_figures(study, tables, runs) if draw else figures_to_come(study)
        page = render_page(study, tables, drawings, records, runs, command)
    with machine_faults("the report cannot be written", target, "free some space or give a writable folder"):
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.new-", dir=target.parent))
        try:
            staging.chmod(0o755)
            _write(staging, page, tables, drawings, records)
            write_source(staging, study, runs, command)
            unchanged.note(staging, digest, command)
            write_list(staging)
            swap(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return Path(os.path.abspath(out)) / PAGE


def _write(
    folder: Path, page: str, tables: Sequence[Table], drawings: Sequence[Drawing], records: Sequence[Record]
) -> None:
    (folder / "tables").mkdir()
    (folder / "figures").mkdir()
    for table in tables:
        for name, text in table_files(table).items():
            write_synced(folder / "tables" / name, text.encode("utf-8"))
    for drawing in drawings:
        for suffix, content in drawing.files.items():
            write_synced(folder / "figures" / f"{drawing.name}.{suffix}", content)
    write_records(folder, records)
    write_synced(folder / PAGE, page.encode("utf-8"))


def table_files(table: Table) -> dict[str, str]:
    """The files of a table in the folder ``tables``, by name."""
    texts = {"csv": to_csv(table), "md": to_markdown(table), "tex": to_latex(table)}
    files = {f"{table.name}.{suffix}": text for suffix, text in texts.items()}
    return (
        {**files, f"{table.name}-differences.csv": differences_csv(table)} if any(table.contests) else files
    )
