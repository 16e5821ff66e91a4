"""Writes a study's report: page, tables, figures and records, all at once or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from reports.errors import ReportError
from reports.figures import Drawing, draw_figures
from reports.page import render_page
from reports.records import COLUMNS, RunInfo, read_records
from reports.study import parse_study
from reports.tables import Table, tables_of
from reports.writers import to_csv, to_latex, to_markdown

OWN_ENTRIES = ("report.html", "records.csv", "tables", "figures")


def build_report(study: Mapping[str, Any], records: pd.DataFrame, runs: Sequence[RunInfo], out: Path) -> Path:
    """Write ``out``/report.html, tables/, figures/ and records.csv; return the path of the page.

    Everything is made in a folder beside ``out`` and swapped in, so that a crash leaves the old report whole
    and no file of an older report stays behind. What else lies in ``out`` is kept. Raises ReportError for a
    study or records that no report can be made from, and where the folder cannot be written.
    """
    out = Path(os.path.abspath(out))
    spec = parse_study({"name": out.name, **study})
    rows = read_records(records)
    tables = tables_of(spec, rows, runs)
    drawings = draw_figures(spec, rows, runs)
    page = render_page(spec, tables, drawings, rows, runs)
    try:
        _recover(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.new-", dir=out.parent))
        try:
            staging.chmod(0o755)
            _write(staging, page, tables, drawings, records)
            _swap(staging, out)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise ReportError(
            f"the report cannot be written: {error.strerror or error}",
            where=out,
            next_step="free some space or give a writable folder",
        ) from error
    return out / "report.html"


def _write(
    folder: Path, page: str, tables: Sequence[Table], drawings: Sequence[Drawing], records: pd.DataFrame
) -> None:
    (folder / "tables").mkdir()
    (folder / "figures").mkdir()
    for table in tables:
        for suffix, text in (("csv", to_csv(table)), ("md", to_markdown(table)), ("tex", to_latex(table))):
            (folder / "tables" / f"{table.name}.{suffix}").write_text(text, encoding="utf-8")
    for drawing in drawings:
        for suffix, content in drawing.files.items():
            (folder / "figures" / f"{drawing.name}.{suffix}").write_bytes(content)
    long_form = records if len(records.columns) else pd.DataFrame(columns=list(COLUMNS))
    (folder / "records.csv").write_text(long_form.to_csv(index=False), encoding="utf-8")
    (folder / "report.html").write_text(page, encoding="utf-8")


def _old(out: Path) -> Path:
    return out.parent / f".{out.name}.old"


def _recover(out: Path) -> None:
    """Undo a swap that a crash cut short: the old report may stand aside with nothing, or a new one, in its
    place.
    """
    old = _old(out)
    if old.exists() and not out.exists():
        os.rename(old, out)
    elif old.exists():
        _keep_foreign(old, out)


def _swap(staging: Path, out: Path) -> None:
    old = _old(out)
    if not out.exists():
        os.rename(staging, out)
        return
    os.rename(out, old)
    try:
        os.rename(staging, out)
    except OSError:
        os.rename(old, out)
        raise
    _keep_foreign(old, out)


def _keep_foreign(old: Path, out: Path) -> None:
    """Move what is not the report's own from ``old`` to ``out``, then delete ``old``."""
    for entry in old.iterdir():
        if entry.name not in OWN_ENTRIES and not (out / entry.name).exists():
            os.rename(entry, out / entry.name)
    shutil.rmtree(old)
