"""What each command does, free of argument parsing."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from twinbench.data.image_sets import image_set_names, load_image_set
from twinbench.downstream.label_lists import LabelList
from twinbench.downstream.protocol import Protocol, protocol, protocol_names
from twinbench.encoders.encoder import Encoder
from twinbench.encoders.foreign.formats import format_names
from twinbench.foundation.errors import InputError, RunFailure, unknown_name
from twinbench.harness.console import job_progress, say
from twinbench.harness.estimate import estimate_seconds
from twinbench.harness.execute import Training, evaluate_encoder, execute, run_job, train_run
from twinbench.harness.plan import (
    Job,
    StudyImages,
    corrupt_images,
    jobs,
    load_splits,
    load_training,
    plan_run,
    plan_study,
)
from twinbench.harness.published import encoder_folder
from twinbench.harness.recipes import load_recipe, parse_overrides, recipe_folder_names, recipe_names
from twinbench.harness.records import collect, collect_stored
from twinbench.harness.store import check_writable, encoder_in, record_place, stored_runs, write_json
from twinbench.harness.studies import Study, load_study, study_names
from twinbench.harness.workers import ImageSource, default_workers, execute_in_parallel, threads_each
from twinbench.pretraining.engine import Hardware, check_hardware, launch
from twinbench.pretraining.interrupt import Interrupted
from twinbench.pretraining.method import method_names
from twinbench.reports.build import build_report, check_out
from twinbench.reports.console import render_study
from twinbench.reports.records import RunInfo


@dataclass(frozen=True)
class StudyRequest:
    """What `twinbench run` is asked for: a study by name or file, and what to change in it.

    ``seeds``, ``methods`` and ``image_set`` replace the study's, ``assignments`` (``key=value``) change its recipes.
    ``out`` is ``results/<study>`` unless given, ``workers`` what suits the machine.
    """

    study: str
    seeds: int | None = None
    methods: tuple[str, ...] = ()
    image_set: str | None = None
    assignments: tuple[str, ...] = ()
    data_root: Path | None = None
    runs: Path = Path("runs")
    out: Path | None = None
    workers: int | None = None
    dry_run: bool = False
    debug: bool = False

    def command(self) -> str:
        """The command line that makes the report again; the data folder is the reader's own."""
        words = ["twinbench", "run", self.study]
        words += ["--seeds", str(self.seeds)] if self.seeds else []
        words += ["--methods", ",".join(self.methods)] if self.methods else []
        words += ["--image-set", self.image_set] if self.image_set else []
        words += [word for assignment in self.assignments for word in ("--set", assignment)]
        return shlex.join(words) + (" --data-root DIR" if self.data_root else "")

    def changed(self, study: Study) -> Study:
        """The study with what is narrowed, widened or replaced; raises InputError for a method that it has not."""
        for method in self.methods:
            if method not in study.methods:
                raise unknown_name("method", method, study.methods, where=f"study {study.name}")
        return study.model_copy(
            update={
                "seeds": self.seeds or study.seeds,
                "methods": list(self.methods) or study.methods,
                "image_set": self.image_set or study.image_set,
            }
        )


def run_study(request: StudyRequest) -> None:
    """Plan a study, do what is missing, write its report, print its tables."""
    started = time.monotonic()
    study, runs = request.changed(load_study(request.study)), request.runs
    overrides = parse_overrides(request.assignments)
    corrupt = corrupt_images(study, overrides)
    source = ImageSource(study.image_set, study.measure_on, request.data_root, study.limit, corrupt)
    images = source.load()
    planned = plan_study(study, images, runs, overrides, encoder_folder(study, request.data_root))
    plan = list(jobs(planned))
    workers = 1 if request.debug else request.workers or default_workers()
    if request.dry_run:
        _print_plan(study, plan, images, workers)
        return
    out = request.out or Path("results") / study.name
    check_out(out)
    for folder in (runs, out.parent):
        check_writable(folder)
    missing = sum(not job.is_finished() for job in plan)
    say(f"{study.name}: {len(plan)} jobs, {len(plan) - missing} already finished, {workers} at a time")
    with job_progress(missing) as start_job:
        if workers > 1 and missing:
            failures = execute_in_parallel(plan, source, workers, start_job, say)
        else:
            failures = execute(plan, images, start_job, say, request.debug)
    page = _write_report(study, request.command(), *collect(study, planned), out)
    say(f"done in {time.monotonic() - started:.0f} s")
    print(f"report: {page}")
    if failures:
        raise RunFailure(
            f"{failures} of {len(plan)} jobs failed; their cells say so",
            where=page,
            next_step="correct the cause and run the same command again: finished jobs are kept",
        )


def _print_plan(study: Study, plan: list[Job], images: StudyImages, workers: int) -> None:
    cache: dict[str, float] = {}
    torch.set_num_threads(threads_each(workers))
    measured = "" if images.measure is images.train else f", measured on {images.measure.name}"
    print(f"{study.title}: {len(plan)} jobs on {images.train.name}{measured}")
    total = 0.0
    for job in plan:
        seconds = estimate_seconds(job, images, cache)
        total += seconds
        when = "finished" if job.is_finished() else f"about {seconds:.0f} s"
        print(f"  {job.label:<60} {when}")
    print(
        f"estimated time: {total / workers / 60:.1f} min with {workers} at a time "
        "(timed on a few real steps, one at a time; nothing was written)"
    )


def _write_report(study: Study, command: str, records: pd.DataFrame, infos: list[RunInfo], out: Path) -> Path:
    page = build_report(study.as_document(command), records, infos, out)
    for text in render_study(study.as_document(command), records, infos).values():
        print(text + "\n")
    return page


@dataclass(frozen=True)
class PretrainRequest:
    """What `twinbench pretrain` is asked for; ``recipe`` is a folder, the image set's own unless given."""

    method: str
    image_set: str
    hardware: Hardware
    recipe: str | None = None
    seed: int = 0
    assignments: tuple[str, ...] = ()
    data_root: Path | None = None
    runs: Path = Path("runs")
    tensorboard: bool = False


def pretrain_one(request: PretrainRequest) -> None:
    """Train one encoder and print where it is; every rank calls this, rank 0 writes and prints."""
    if request.method not in method_names():
        raise unknown_name("method", request.method, method_names())
    folder = request.recipe or _own_recipes(request.image_set)
    overrides = parse_overrides(request.assignments)
    recipe = load_recipe(folder, request.method, request.image_set, overrides, request.seed)
    image_set = load_image_set(request.image_set, request.data_root, corrupt=recipe.corrupt_images)
    check_hardware(request.hardware, recipe.precision)
    load_training(image_set)
    run = plan_run(recipe, image_set, request.runs, request.hardware.ranks)
    check_writable(request.runs)
    if run.is_trained():
        say("already trained")
    else:
        engine = launch(request.hardware, recipe.precision)
        training = Training(engine, request.tensorboard)
        if not engine.is_main:
            with suppress(Interrupted):  # rank 0 says so
                train_run(run, image_set, training)
            return
        with run.locked(), job_progress(1) as start_job:
            job = Job(run)
            if not job.is_finished():  # by another process, while this one waited for the lock
                run_job(job, StudyImages(image_set, image_set), training, start_job(job.label), say)
    status = run.status() or {}
    if status["status"] == "collapsed":
        say(f"COLLAPSED: {status['reason']}")
    print(f"encoder: {run.encoder_folder}")


def _own_recipes(image_set_name: str) -> str:
    """The recipe folder of an image set; a set without one of its own uses that of any folder of images."""
    name = image_set_name.partition(":")[0]
    return name if name in recipe_folder_names() else "folder"


@dataclass(frozen=True)
class EvaluateRequest:
    """What `twinbench evaluate` is asked for: an encoder's folder, or the run's that holds it, and how to measure it.

    ``out`` is one more file for the record; ``own_list`` says that the list of labelled images is the user's own.
    """

    encoder: Path
    protocol: str
    image_set: str
    seed: int = 0
    data_root: Path | None = None
    out: Path | None = None
    label_list: Path | None = None
    own_list: bool = False


def evaluate_one(request: EvaluateRequest) -> None:
    """Evaluate one encoder, print the measurements; keep the record in its run and where ``out`` says.

    A record made with a label list, or with another seed than the run's, is kept only where ``out`` says: it is not
    what a study would make.
    """
    chosen = protocol(request.protocol)
    labelled = _label_list(chosen, request.label_list, request.own_list)
    folder = encoder_in(request.encoder)
    encoder = Encoder.load(folder)
    # Names on a list are those of files, which only a streamed set knows.
    image_set = load_image_set(request.image_set, request.data_root, stream=True if labelled else None)
    kept = None if labelled else record_place(folder.parent, chosen.name, image_set, request.seed)
    files = [file for file in (request.out, kept) if file is not None]
    for file in files:
        check_writable(file.parent)
    chosen.check(image_set)
    load_splits(image_set, (chosen,))
    with job_progress(1) as start_job:
        report = start_job(f"{chosen.name} {folder}")
        record = evaluate_encoder(encoder, chosen, image_set, request.seed, None, report, labelled)
    for file in files:
        write_json(file, record)
    source = f" from {encoder.info.source_file}" if encoder.info.source_file else ""
    print(
        f"{chosen.name} on {image_set.name}, encoder {encoder.checksum[:12]} ({encoder.info.method}{source})"
    )
    for measured in record["measurements"]:
        error = "" if measured["stderr"] is None else f" ± {measured['stderr']:.2f}"
        print(f"  {measured['metric']:<12} {measured['value']:.2f}{error}  (n = {measured['n']})")


def _label_list(chosen: Protocol, path: Path | None, own: bool) -> LabelList | None:
    if path is None and not own:
        return None
    if path is None:
        raise InputError("--own-list without a list", next_step="add --label-list FILE")
    if not chosen.uses_label_list:
        able = [name for name in protocol_names() if protocol(name).uses_label_list]
        raise InputError(
            f"{chosen.name} takes no list of labelled images",
            where="--label-list",
            next_step=f"use it with {', '.join(able)}",
        )
    return LabelList(path, own)


def report_runs(runs: Path, out: Path) -> None:
    """One report over every run in a run store, a table for each protocol that was measured."""
    stored = stored_runs(runs) if runs.is_dir() else []
    if not stored:
        raise InputError("no runs here", where=runs, next_step="train something first: twinbench run quick")
    records, infos = collect_stored(stored)
    done = records[records.status == "done"]
    if done.empty:
        raise InputError(
            "no finished evaluation here", where=runs, next_step="twinbench evaluate ENCODER ..."
        )
    measured = done.groupby("protocol").metric.unique()
    study = Study(
        name=out.name,
        title=f"Every run in {runs.name}",
        description="All runs of a run store; rows of one method differ in the recipe keys that they name.",
        image_set=", ".join(sorted(done.image_set.unique())),
        recipes="",
        methods=sorted(done.method.unique()),
        protocols=sorted(measured.index),
        tables=[_table_of(str(name), metrics) for name, metrics in measured.items()],
        figures=[{"kind": "loss_curves"}, {"kind": "cross_correlation"}, {"kind": "spectrum"}],
    )
    check_out(out)
    check_writable(out.parent)
    page = _write_report(study, f"twinbench report {runs.name} --out DIR", records, infos, out)
    print(f"report: {page}")


def _table_of(name: str, metrics: Iterable[str]) -> dict[str, Any]:
    columns = [{"protocol": name, "metric": metric, "label": metric} for metric in metrics]
    return {"name": name.replace("/", "-"), "title": name, "columns": columns}


def list_names(thing: str, as_json: bool, runs: Path) -> None:
    """Print the names of one kind of thing."""
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
