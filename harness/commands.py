"""What each command does, free of argument parsing."""

from __future__ import annotations

import json
import shlex
import time
from contextlib import suppress
from pathlib import Path

import torch

from twinbench.data.image_sets import image_set_names, load_image_set
from twinbench.downstream.label_lists import LabelList
from twinbench.downstream.protocol import Protocol, protocol, protocol_names
from twinbench.encoders.encoder import INFO_FILE, Encoder
from twinbench.encoders.foreign.formats import format_names
from twinbench.foundation.errors import InputError, RunFailure, unknown_name
from twinbench.harness.console import job_progress, say
from twinbench.harness.estimate import estimate_seconds
from twinbench.harness.execute import Training, evaluate_encoder, execute, train_run
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
from twinbench.harness.store import check_writable, record_place, stored_runs, write_json
from twinbench.harness.studies import Study, load_study, study_names
from twinbench.harness.workers import ImageSource, default_workers, execute_in_parallel, threads_each
from twinbench.pretraining.engine import Hardware, check_hardware, launch
from twinbench.pretraining.interrupt import Interrupted
from twinbench.pretraining.method import method_names
from twinbench.reports.build import build_report, check_out
from twinbench.reports.console import render_study
from twinbench.reports.records import Record, RunInfo
from twinbench.reports.study import ColumnSpec, FigureSpec, StudySpec, TableSpec


def run_study(
    name: str,
    *,
    seeds: int | None,
    methods: list[str] | None,
    image_set_name: str | None,
    assignments: list[str],
    data_root: Path | None,
    runs: Path,
    out: Path | None,
    workers: int | None,
    dry_run: bool,
    debug: bool,
) -> None:
    """Plan a study, do what is missing, write its report, print its tables."""
    started = time.monotonic()
    command = _command(name, seeds, methods, image_set_name, assignments, data_root)
    study = _chosen(load_study(name), seeds, methods, image_set_name)
    overrides = parse_overrides(assignments)
    corrupt = corrupt_images(study, overrides)
    source = ImageSource(study.image_set, study.measure_on, data_root, study.limit, corrupt)
    images = source.load()
    planned = plan_study(study, images, runs, overrides, encoder_folder(study, data_root))
    plan = list(jobs(planned))
    workers = 1 if debug else workers or default_workers()
    if dry_run:
        _print_plan(study, plan, images, workers)
        return
    out = out or Path("results") / study.name
    check_out(out)
    for folder in (runs, out.parent):
        check_writable(folder)
    missing = sum(not job.is_finished() for job in plan)
    say(f"{study.name}: {len(plan)} jobs, {len(plan) - missing} already finished, {workers} at a time")
    with job_progress(missing) as start_job:
        if workers > 1 and missing:
            failures = execute_in_parallel(plan, source, workers, start_job, say)
        else:
            failures = execute(plan, images, start_job, say, debug)
    page = _write_report(study, command, *collect(study, planned), out)
    say(f"done in {time.monotonic() - started:.0f} s")
    print(f"report: {page}")
    if failures:
        raise RunFailure(
            f"{failures} of {len(plan)} jobs failed; their cells say so",
            where=page,
            next_step="correct the cause and run the same command again: finished jobs are kept",
        )


def _command(
    name: str,
    seeds: int | None,
    methods: list[str] | None,
    image_set_name: str | None,
    assignments: list[str],
    data_root: Path | None,
) -> str:
    """The command line that makes the report again; the data folder is the reader's own."""
    words = ["twinbench", "run", name]
    words += ["--seeds", str(seeds)] if seeds else []
    words += ["--methods", ",".join(methods)] if methods else []
    words += ["--image-set", image_set_name] if image_set_name else []
    words += [word for assignment in assignments for word in ("--set", assignment)]
    return shlex.join(words) + (" --data-root DIR" if data_root else "")


def _chosen(study: Study, seeds: int | None, methods: list[str] | None, image_set_name: str | None) -> Study:
    """The study with what the command line narrowed, widened or replaced."""
    for method in methods or []:
        if method not in study.methods:
            raise unknown_name("method", method, study.methods, where=f"study {study.name}")
    return study.model_copy(
        update={
            "seeds": seeds or study.seeds,
            "methods": methods or study.methods,
            "image_set": image_set_name or study.image_set,
        }
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


def _write_report(
    study: StudySpec, command: str, records: list[Record], infos: list[RunInfo], out: Path
) -> Path:
    page = build_report(study, records, infos, out, command)
    for text in render_study(study, records, infos):
        print(text + "\n")
    return page


def pretrain_one(
    method: str,
    image_set_name: str,
    recipe_folder: str | None,
    seed: int,
    assignments: list[str],
    data_root: Path | None,
    runs: Path,
    hardware: Hardware,
    tensorboard: bool,
) -> None:
    """Train one encoder and print where it is; every rank calls this, rank 0 writes and prints."""
    if method not in method_names():
        raise unknown_name("method", method, method_names())
    folder = recipe_folder or _own_recipes(image_set_name)
    recipe = load_recipe(folder, method, image_set_name, parse_overrides(assignments), seed)
    image_set = load_image_set(image_set_name, data_root, corrupt=recipe.corrupt_images)
    check_hardware(hardware, recipe.precision)
    load_training(image_set)
    run = plan_run(recipe, image_set, runs, hardware.ranks)
    check_writable(runs)
    if run.is_trained():
        say("already trained")
    else:
        engine = launch(hardware, recipe.precision)
        training = Training(engine, tensorboard)
        if not engine.is_main:
            with suppress(Interrupted):  # rank 0 says so
                train_run(run, image_set, training)
            return
        with job_progress(1) as start_job:
            images = StudyImages(image_set, image_set)
            failures = execute([Job("pretrain", run)], images, start_job, say, training=training)
        if failures:
            reason = (run.status() or {})["reason"]
            raise RunFailure(
                f"the training failed: {reason}", where=run.folder, next_step="correct it and run again"
            )
    status = run.status() or {}
    if status["status"] == "collapsed":
        say(f"COLLAPSED: {status['reason']}")
    print(f"encoder: {run.encoder_folder}")


def _own_recipes(image_set_name: str) -> str:
    """The recipe folder of an image set; a set without one of its own uses that of any folder of images."""
    name = image_set_name.partition(":")[0]
    return name if name in recipe_folder_names() else "folder"


def evaluate_one(
    folder: Path,
    protocol_name: str,
    image_set_name: str,
    seed: int,
    data_root: Path | None,
    out: Path | None,
    label_list: Path | None,
    own_list: bool,
) -> None:
    """Evaluate one encoder, print the measurements; keep the record in its run and where ``out`` says.

    A record made with a label list, or with another seed than the run's, is kept only where ``out`` says: it is not
    what a study would make.
    """
    chosen = protocol(protocol_name)
    labelled = _label_list(chosen, label_list, own_list)
    if not (folder / INFO_FILE).is_file() and (folder / "encoder").is_dir():
        folder = folder / "encoder"
    encoder = Encoder.load(folder)
    # Names on a list are those of files, which only a streamed set knows.
    image_set = load_image_set(image_set_name, data_root, stream=True if labelled else None)
    kept = None if labelled else record_place(folder.parent, chosen.name, image_set, seed)
    for file in (out, kept):
        if file is not None:
            check_writable(file.parent)
    chosen.check(image_set)
    load_splits(image_set, (chosen,))
    with job_progress(1) as start_job:
        report = start_job(f"{chosen.name} {folder}")
        record = evaluate_encoder(encoder, chosen, image_set, seed, None, report, labelled)
    for file in (out, kept):
        if file is not None:
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
    done = [record for record in records if record.status == "done"]
    if not done:
        raise InputError(
            "no finished evaluation here", where=runs, next_step="twinbench evaluate ENCODER ..."
        )
    study = StudySpec(
        title=f"Every run in {runs.name}",
        description="All runs of a run store; rows of one method differ in the recipe keys that they name.",
        tables=tuple(_table_of(name, done) for name in sorted({record.protocol for record in done})),
        figures=tuple(FigureSpec(kind=kind) for kind in ("loss_curves", "cross_correlation", "spectrum")),
    )
    check_out(out)
    check_writable(out.parent)
    page = _write_report(study, f"twinbench report {runs.name} --out DIR", records, infos, out)
    print(f"report: {page}")


def _table_of(protocol: str, records: list[Record]) -> TableSpec:
    """A table of everything that was measured under a protocol."""
    metrics = dict.fromkeys(record.metric for record in records if record.protocol == protocol)
    columns = tuple(ColumnSpec(protocol=protocol, metric=metric, label=metric) for metric in metrics)
    return TableSpec(name=protocol.replace("/", "-"), title=protocol, columns=columns)


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
