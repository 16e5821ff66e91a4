"""Collect what the run store holds into the records that reports read: one a measured number."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from twinbench.encoders.encoder import INFO_FILE
from twinbench.harness.facts import FACTS, Facts
from twinbench.harness.images import Images
from twinbench.harness.mirror import called
from twinbench.harness.plan import PlannedRun, record_of
from twinbench.harness.source import ImportedSource
from twinbench.harness.store import VIEWS_PICTURE, Run, outcomes_of, picture_of, read_json
from twinbench.harness.studies import Study, StudyTable
from twinbench.pretraining.recipe import Recipe
from twinbench.reports.records import REMARKS_BETWEEN, Record, RunInfo, finite, unique


def collect(
    study: Study, planned: Sequence[PlannedRun], images: Images
) -> tuple[list[Record], list[RunInfo]]:
    """Records for every cell of the study, failed and collapsed ones too, and the runs behind them.

    What several tables show has a record for each of them.
    """
    tables = {table.name: table for table in study.tables}
    records: list[Record] = []
    for entry in planned:
        table = tables[entry.table]
        known = replace(_nothing_measured(entry.run, study.name, entry.variant), table=table.name)
        for evaluation, (name, image_set) in zip(entry.evaluations, table.measured, strict=True):
            file = record_of(entry.run, evaluation, images)
            # The file may have been made under another name of the same images.
            nothing = replace(known, image_set=images[evaluation.images].name, protocol=name)
            document = entry.run.record(file)
            if document is not None and not entry.run.is_collapsed():
                records += _measured(nothing, document)
            else:
                lost = _lost(nothing, entry.run, file)
                metrics = {column.metric for column in table.columns_of(name, image_set)}
                records += [replace(lost, metric=metric) for metric in sorted(metrics)]
        for facts in table.facts:
            wanted = {column.metric for column in table.columns_of(facts.name, "")}
            nothing = replace(known, image_set=images[entry.trained_on].name, protocol=facts.name)
            records += [r for r in _facts(nothing, entry.run, facts) if r.metric in wanted]
    infos = [
        replace(
            _run_info(entry.run, entry.variant),
            table=entry.table,
            pictures=_pictures(entry, tables, images),
            outcomes=_outcomes(
                entry.run, (record_of(entry.run, evaluation, images) for evaluation in entry.evaluations)
            ),
        )
        for entry in planned
    ]
    return records, infos


def _outcomes(run: Run, records: Iterable[Path]) -> dict[str, Path]:
    """The files of outcomes of the evaluations of a run that count, by the SHA-256 that their records tell."""
    if run.is_collapsed():
        return {}
    found = ((file, run.record(file)) for file in records)
    return {
        document["outcomes"]["sha256"]: outcomes_of(file, document)
        for file, document in found
        if document is not None and "outcomes" in document
    }


def _pictures(
    entry: PlannedRun, tables: dict[str, StudyTable], images: Images
) -> dict[tuple[str, str], Path]:
    """The pictures that the run and its evaluations for the table have left."""
    found = {("", ""): entry.run.folder / VIEWS_PICTURE}
    for evaluation, (name, _) in zip(entry.evaluations, tables[entry.table].measured, strict=True):
        image_set = images[evaluation.images].name
        found[name, image_set] = picture_of(record_of(entry.run, evaluation, images))
    return {key: path for key, path in found.items() if path.is_file()}


def collect_stored(runs: list[Run], variants: Mapping[str, str]) -> tuple[list[Record], list[RunInfo]]:
    """Records for every evaluation in the runs, whose variants are given by their hashes (`variants.told_apart`).

    What was measured on one seed and not on another that differs in nothing else is lost of that one.
    """
    documents = {
        run.hash: {
            f: r for f in sorted((run.folder / "records").glob("*.json")) if (r := run.record(f)) is not None
        }
        for run in runs
    }
    names = _image_set_names([document for found in documents.values() for document in found.values()])
    rows: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        rows.setdefault(_row(run, variants), []).append(run)
    records: list[Record] = []
    for run in runs:
        nothing = _nothing_measured(run, "report", variants[run.hash])
        if run.is_collapsed():
            records.append(_lost(nothing, run, None))
            continue
        for document in documents[run.hash].values():
            image_set = names[document["image_set_fingerprint"]]
            records += _measured(replace(nothing, image_set=image_set), document)
        seeds = rows[_row(run, variants)]
        others = [documents[other.hash] for other in seeds if not other.is_collapsed()]
        for file, document in _not_measured(documents[run.hash], others):
            image_set = names[document["image_set_fingerprint"]]
            known = replace(nothing, image_set=image_set, protocol=document["protocol"])
            lost = _with_command(_lost(known, run, run.folder / "records" / file), run, document)
            records += [replace(lost, metric=m["metric"]) for m in document["measurements"]]
        if any(other.is_trained() for other in seeds):
            trained_on = names.get(run.source.image_set_fingerprint, run.source.image_set)
            for facts in FACTS.entries():
                records += _facts(replace(nothing, image_set=trained_on, protocol=facts.name), run, facts)
    infos = [
        replace(
            _run_info(run, variants[run.hash]),
            outcomes=_outcomes(run, sorted((run.folder / "records").glob("*.json"))),
        )
        for run in runs
    ]
    return records, infos


def _row(run: Run, variants: Mapping[str, str]) -> tuple[str, ...]:
    """What the runs of a row have in common: they differ in their seeds."""
    source = run.source
    return source.method, variants[run.hash], run.origin, source.image_set_fingerprint


def _not_measured(
    own: dict[Path, dict[str, Any]], others: Sequence[dict[Path, dict[str, Any]]]
) -> list[tuple[str, dict[str, Any]]]:
    """The evaluations of other seeds that a run lacks: the name that their file has in every run, and one of them."""
    measured = {_measure(document) for document in own.values()}
    found: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
    for documents in others:
        for file, document in documents.items():
            if _measure(document) not in measured:
                found.setdefault(_measure(document), (file.name, document))
    return list(found.values())


def _measure(document: dict[str, Any]) -> tuple[str, str]:
    """What tells evaluations of one encoder apart."""
    return document["protocol"], document["image_set_fingerprint"]


def _with_command(lost: Record, run: Run, document: dict[str, Any]) -> Record:
    """The record of what was not run with what would run it, if it says no reason of its own."""
    if lost.status != "not run" or lost.reason:
        return lost
    if not run.is_trained():
        return replace(lost, reason="its training has not ended")
    encoder = f"{called(run.folder.parent)}/{run.folder.name}/encoder"
    what = f"--protocol {document['protocol']} --image-set {document['image_set']}"
    return replace(lost, reason=f"twinbench evaluate {encoder} {what}")


def _image_set_names(records: list[dict[str, Any]]) -> dict[str, str]:
    """For each fingerprint what its image set is called: versions of a set that share a name are told apart."""
    named = {record["image_set_fingerprint"]: record["image_set"] for record in records}
    shared = Counter(named.values())
    return {
        fingerprint: f"{name} ({fingerprint[:8]})" if shared[name] > 1 else name
        for fingerprint, name in named.items()
    }


def _nothing_measured(run: Run, study: str, variant: str) -> Record:
    """What is known of a run's numbers before any is measured: how its encoder is made."""
    source, status = run.source, run.status() or {}
    spec = source.backbone
    imported = source if isinstance(source, ImportedSource) else None
    recipe = source if isinstance(source, Recipe) else None
    return Record(
        study=study,
        method=source.method,
        variant=variant,
        image_set=source.image_set,
        protocol="",
        metric="",
        value=None,
        seed=source.seed,
        status="not run",
        origin=run.origin,
        source_name=imported.name if imported else "",
        source=_source(imported) if imported else "",
        recipe_hash=run.hash,
        backbone=f"{spec.name}, width {spec.width}, {spec.stem} stem",
        parameters=status.get("parameters"),
        pretrained_on=recipe.image_set if recipe and recipe.epochs else "",
        epochs=recipe.epochs if recipe else None,
        batch_size=recipe.batch_size if recipe else None,
        tuning_trials=_tuning_trials(recipe) if recipe and recipe.epochs else None,
        images_per_second=finite(status.get("images_per_second")),
        trained_in=_environment(status) if recipe and recipe.epochs else "",
        remarks=REMARKS_BETWEEN.join(
            [*([imported.note] if imported and imported.note else []), *status.get("remarks", ())]
        ),
    )


def _environment(document: dict[str, Any]) -> str:
    return json.dumps(document["environment"], sort_keys=True) if document.get("environment") else ""


def _tuning_trials(recipe: Recipe) -> int:
    return recipe.tuning.trials if recipe.tuning else 0


def _source(imported: ImportedSource) -> str:
    """Where an imported encoder is from, and how it is fed."""
    deviation = imported.deviation
    parts = [
        f"{imported.file} (SHA-256 {imported.sha256})",
        f"mean {imported.mean}, std {imported.std}",
        *([f"computing with {deviation}"] if deviation != "none" else []),
    ]
    return ", ".join(parts)


def _measured(nothing: Record, document: dict[str, Any]) -> list[Record]:
    """The records in one JSON file of the run store, one for each of its measurements."""
    evaluated = replace(
        nothing,
        protocol=document["protocol"],
        status=document["status"],
        reason=document["reason"],
        remarks=REMARKS_BETWEEN.join(
            unique([*_of_training(nothing, document["image_set"]), *document.get("remarks", ())])
        ),
        encoder_checksum=document["encoder_checksum"],
        peak_memory_mb=finite(document["peak_memory_mb"]),
        seconds=finite(document["seconds"]),
        device=document["device"],
        environment=_environment(document),
        outcomes=document.get("outcomes", {}).get("sha256", ""),
        image_set_fingerprint=document["image_set_fingerprint"],
    )
    return [
        replace(
            evaluated,
            metric=m["metric"],
            value=finite(m["value"]),
            stderr=finite(m.get("stderr")),
            n=m.get("n"),
        )
        for m in document["measurements"]
    ]


def _facts(nothing: Record, run: Run, facts: Facts) -> list[Record]:
    """The records of a training's own facts, one for each of their metrics."""
    if run.is_collapsed() or not run.is_trained():
        return [replace(_lost(nothing, run, None), metric=metric) for metric in facts.metrics]
    status, info = run.status() or {}, read_json(run.encoder_folder / INFO_FILE) or {}
    known = replace(
        nothing,
        encoder_checksum=info.get("sha256", ""),
        device=status.get("device", ""),
        environment=_environment(status),
    )
    found = []
    for metric, value in facts.read(run).items():
        if isinstance(value, str):
            found.append(replace(known, metric=metric, status="absent", reason=value))
            continue
        remarks = REMARKS_BETWEEN.join([*known.all_remarks, *facts.remarks(run, metric)])
        found.append(
            replace(known, metric=metric, status="done", reason="", value=finite(value), remarks=remarks)
        )
    return found


def _of_training(nothing: Record, measured_on: str) -> tuple[str, ...]:
    """The remarks of the training or the import; those of a training on other images say so."""
    trained_on = nothing.pretrained_on
    if trained_on == measured_on or nothing.origin == "imported":
        return nothing.all_remarks
    return tuple(f"pretraining on {trained_on}: {remark}" for remark in nothing.all_remarks if trained_on)


def _lost(nothing: Record, run: Run, file: Path | None) -> Record:
    """The record of an evaluation that left no number, with the reason that its training or its file gives."""
    for document in (run.status(), None if file is None else read_json(file)):
        status = None if document is None else document.get("status")
        if document is not None and status in {"failed", "collapsed"}:
            return replace(nothing, status=status, reason=str(document.get("reason", "")))
        if document is not None and status == "interrupted":
            return replace(nothing, reason=str(document.get("reason", "")))
    return nothing


def _run_info(run: Run, variant: str) -> RunInfo:
    status = run.status() or {"status": "not run", "reason": ""}
    return RunInfo(
        method=run.source.method,
        variant=variant,
        seed=run.source.seed,
        status=status["status"],
        reason=status.get("reason", ""),
        folder=run.folder,
        origin=run.origin,
        seconds=status.get("seconds", 0.0),
        recipe_hash=run.hash,
    )
