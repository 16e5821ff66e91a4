"""What the commands run, report and ls do, free of argument parsing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twinbench.data.catalogue import image_set_names, is_here
from twinbench.downstream.protocol import protocol_names
from twinbench.encoders.foreign.formats import format_names
from twinbench.foundation.errors import InputError
from twinbench.harness.carry_out import Execution, carry_out, write_report
from twinbench.harness.console import say
from twinbench.harness.facts import FACTS
from twinbench.harness.images import Images
from twinbench.harness.mirror import called, url_of
from twinbench.harness.outline import outline_lines
from twinbench.harness.plan import jobs, plan_study
from twinbench.harness.plan_text import plan_lines
from twinbench.harness.plugins import load_plugins
from twinbench.harness.ray_options import RayOptions, check_ray
from twinbench.harness.recipes import parse_overrides, recipe_names
from twinbench.harness.records import collect_stored
from twinbench.harness.store import check_writable, stored_runs
from twinbench.harness.studies import load_study, narrowed, study_names
from twinbench.harness.variants import told_apart
from twinbench.harness.workers import busy_workers, estimated_use
from twinbench.pretraining.method import method_names
from twinbench.reports.build import check_out
from twinbench.reports.metrics import metric_of
from twinbench.reports.records import Record
from twinbench.reports.study import ColumnSpec, FigureSpec, StudySpec, TableSpec
from twinbench.reports.unchanged import made_by


@dataclass(frozen=True)
class StudyRequest:
    """What `twinbench run` is asked for: a study by name or file, and what to change in it.

    ``seeds``, ``methods`` and ``image_set`` replace the study's, ``scale`` is one of its own, ``assignments``
    (``key=value``) change its recipes. ``out`` is ``results/<study>``, with the scale if one is given, unless it is
    said; ``workers`` what suits the machine; no job may take longer than ``job_minutes``. With ``ray`` that does the
    jobs.
    """

    study: str
    seeds: int | None = None
    methods: tuple[str, ...] = ()
    image_set: str | None = None
    scale: str | None = None
    assignments: tuple[str, ...] = ()
    data_root: Path | None = None
    runs: Path = Path("runs")
    out: Path | None = None
    workers: int | None = None
    job_minutes: float | None = None
    dry_run: bool = False
    debug: bool = False
    ray: RayOptions | None = None

    def command(self) -> str:
        """The command line that makes the report again; the data folder is the reader's own."""
        words = ["twinbench", "run", self.study]
        words += ["--seeds", str(self.seeds)] if self.seeds else []
        words += ["--methods", ",".join(self.methods)] if self.methods else []
        words += ["--image-set", self.image_set] if self.image_set else []
        words += ["--scale", self.scale] if self.scale else []
        words += [word for assignment in self.assignments for word in ("--set", assignment)]
        words += ["--runs", url_of(self.runs)] if self.runs != StudyRequest.runs else []
        words += ["--out", str(self.out)] if self.out else []
        return shlex.join(words) + (" --data-root DIR" if self.data_root else "")


def run_study(request: StudyRequest) -> None:
    """Plan a study, do what is missing, write its report, print its tables."""
    load_plugins()
    if request.ray is not None:
        check_ray(request.ray)
    study = narrowed(
        load_study(request.study, request.scale), request.seeds, request.methods, request.image_set
    )
    images = Images(request.data_root)
    if request.dry_run and not all(is_here(name, request.data_root) for name in study.image_sets()):
        print("\n".join(outline_lines(study, parse_overrides(request.assignments), request.runs)))
        return
    ranks = 1 if request.ray is None else request.ray.ranks
    planned = plan_study(study, images, request.runs, parse_overrides(request.assignments), ranks)
    out = request.out or Path("results") / "-".join([study.name, *([request.scale] if request.scale else [])])
    how = Execution(
        request.runs,
        out,
        request.command(),
        request.workers,
        request.debug,
        request.job_minutes,
        request.ray,
    )
    if request.dry_run:
        plan = jobs(planned, images)
        workers = how.at_once(plan)
        use = estimated_use(plan, images, workers, busy_workers(plan, workers), say)
        print("\n".join(plan_lines(study, planned, images, use, workers)))
        return
    _keep_another_report(request, out)
    carry_out(study, planned, images, how)


def _keep_another_report(request: StudyRequest, out: Path) -> None:
    """Raise InputError where a part of a study, or the study with other keys, would take the place of its report.

    ``--out`` says that it shall.
    """
    changed = request.methods or request.assignments or request.image_set
    there = made_by(out)
    if changed and not request.out and there not in ("", request.command()):
        raise InputError(
            f"the report here was made by another command: {there}",
            where=out,
            next_step="give a folder for this one, or this folder itself to replace that report",
            option="out",
        )


def report_runs(runs: Path, out: Path) -> None:
    """One report over every run in a run store, a table for each protocol that was measured."""
    stored = stored_runs(runs) if runs.is_dir() else []
    if not stored:
        raise InputError(
            "no runs here", where=url_of(runs), next_step="train something first: twinbench run quick"
        )
    variants = told_apart(stored)
    records, infos = collect_stored(stored, variants.names)
    done = [record for record in records if record.status == "done"]
    if all(record.protocol in FACTS for record in done):
        raise InputError(
            "no finished evaluation here", where=url_of(runs), next_step="twinbench evaluate ENCODER ..."
        )
    tables = [_table_of(name, done) for name in sorted({record.protocol for record in done})]
    study = StudySpec(
        title=f"Every run in {runs.name}",
        description="All runs of a run store; rows of one method differ in the recipe keys that they name.",
        tables=tuple(_with_note(tables, variants.note)),
        figures=tuple(
            FigureSpec(kind=kind, name=kind) for kind in ("loss_curves", "cross_correlation", "spectrum")
        ),
    )
    check_out(out)
    check_writable(out.parent)
    page = write_report(study, f"twinbench report {called(runs)} --out DIR", records, infos, out)
    print(f"report: {page}")


def _table_of(protocol: str, records: list[Record]) -> TableSpec:
    """A table of everything that was measured under a protocol."""
    metrics = dict.fromkeys(record.metric for record in records if record.protocol == protocol)
    columns = tuple(
        ColumnSpec(protocol=protocol, metric=metric, label=metric_of(metric).label) for metric in metrics
    )
    return TableSpec(name=protocol.replace("/", "-"), title=protocol, columns=columns)


def _with_note(tables: Sequence[TableSpec], note: str) -> list[TableSpec]:
    """The tables with a note that may be long, in full below the first one."""
    elsewhere = f"Variants in full: below the table {tables[0].heading}."
    return [
        table.model_copy(update={"note": note and (elsewhere if i else note)})
        for i, table in enumerate(tables)
    ]


def list_names(thing: str, as_json: bool, runs: Path) -> None:
    """Print the names of one kind of thing."""
    load_plugins()
    names = {
        "methods": method_names,
        "protocols": protocol_names,
        "image-sets": image_set_names,
        "recipes": recipe_names,
        "studies": study_names,
        "formats": format_names,
        "runs": lambda: [run.folder.name for run in stored_runs(runs)],
    }[thing]()
    print(json.dumps(names) if as_json else "\n".join(names))
