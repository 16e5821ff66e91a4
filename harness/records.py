"""Collect what the run store holds into the records that reports read: one a measured number."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from twinbench.harness.plan import PlannedRun
from twinbench.harness.store import Run, read_json
from twinbench.harness.studies import Study
from twinbench.reports.records import Record, RunInfo, finite


def collect(study: Study, planned: list[PlannedRun]) -> tuple[list[Record], list[RunInfo]]:
    """Records for every cell of the study, failed and collapsed ones too, and the runs behind them."""
    records: list[Record] = []
    for entry in planned:
        for chosen in entry.protocols:
            file = entry.run.record_file(chosen.name, entry.measured_on)
            # The file may have been made under another name of the same images.
            nothing = replace(
                _nothing_measured(entry.run, study.name, entry.variant),
                image_set=entry.measured_on.name,
                protocol=chosen.name,
            )
            document = entry.run.record(file)
            if document is not None and not entry.run.is_collapsed():
                records += _measured(nothing, document)
            else:
                lost = _lost(nothing, entry.run, file)
                metrics = {c.metric for c in study.columns() if c.protocol == chosen.name} or {""}
                records += [replace(lost, metric=metric) for metric in sorted(metrics)]
    return records, [_run_info(entry.run, entry.variant) for entry in planned]


def collect_stored(runs: list[Run]) -> tuple[list[Record], list[RunInfo]]:
    """Records for every evaluation in the runs, told apart by the recipe keys in which runs of a method differ."""
    variants = _variants(runs)
    documents = {
        run.hash: [
            r for f in sorted((run.folder / "records").glob("*.json")) if (r := run.record(f)) is not None
        ]
        for run in runs
    }
    names = _image_set_names([document for found in documents.values() for document in found])
    records: list[Record] = []
    for run in runs:
        nothing = _nothing_measured(run, "report", variants[run.hash])
        if run.is_collapsed():
            records.append(_lost(nothing, run, None))
            continue
        for document in documents[run.hash]:
            image_set = names[document["image_set_fingerprint"]]
            records += _measured(replace(nothing, image_set=image_set), document)
    return records, [_run_info(run, variants[run.hash]) for run in runs]


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
    spec, status = run.recipe.backbone, run.status() or {}
    source = run.recipe.options.get("imported", {})
    trained = run.origin == "run"
    return Record(
        study=study,
        method=run.recipe.method,
        variant=variant,
        image_set=run.recipe.image_set,
        protocol="",
        metric="",
        value=None,
        seed=run.recipe.seed,
        status="failed",
        reason="interrupted or not run",
        origin=run.origin,
        source_name=source.get("name", ""),
        source=_source(source) if source else "",
        recipe_hash=run.hash,
        backbone=f"{spec.name}, width {spec.width}, {spec.stem} stem",
        parameters=status.get("parameters"),
        pretrained_on=run.recipe.image_set if trained and run.recipe.epochs else "",
        epochs=run.recipe.epochs if trained else None,
        batch_size=run.recipe.batch_size if trained else None,
        images_per_second=finite(status.get("images_per_second")),
    )


def _source(imported: dict[str, Any]) -> str:
    """Where an imported encoder is from, how it is fed, and what its import noted."""
    deviation = imported["deviation"]
    parts = [
        f"{imported['file']} (SHA-256 {imported['sha256']})",
        f"mean {tuple(imported['mean'])}, std {tuple(imported['std'])}",
        *([f"computing with {deviation}"] if deviation != "none" else []),
        *([imported["note"]] if imported["note"] else []),
    ]
    return ", ".join(parts)


def _measured(nothing: Record, document: dict[str, Any]) -> list[Record]:
    """The records in one JSON file of the run store, one for each of its measurements."""
    evaluated = replace(
        nothing,
        protocol=document["protocol"],
        status=document["status"],
        reason=document["reason"],
        encoder_checksum=document["encoder_checksum"],
        peak_memory_mb=finite(document["peak_memory_mb"]),
        seconds=finite(document["seconds"]),
        device=document["device"],
        environment=json.dumps(document["environment"], sort_keys=True),
    )
    return [
        replace(evaluated, metric=m["metric"], value=finite(m["value"]), stderr=finite(m["stderr"]), n=m["n"])
        for m in document["measurements"]
    ]


def _lost(nothing: Record, run: Run, file: Path | None) -> Record:
    """The record of an evaluation that left no number, with the reason that its training or its file gives."""
    for document in (run.status(), None if file is None else read_json(file)):
        if document is not None and document["status"] in {"failed", "collapsed"}:
            return replace(nothing, status=document["status"], reason=document["reason"])
    return nothing


def _run_info(run: Run, variant: str) -> RunInfo:
    status = run.status() or {"status": "failed", "reason": "not run"}
    return RunInfo(
        method=run.recipe.method,
        variant=variant,
        seed=run.recipe.seed,
        status=status["status"],
        reason=status["reason"],
        folder=run.folder,
        origin=run.origin,
        seconds=status.get("seconds", 0.0),
    )


def _variants(runs: list[Run]) -> dict[str, str]:
    """For each run's hash, the recipe keys and values that set it apart from other runs of its method."""
    flat = {run.hash: _flat(run.recipe.model_dump(mode="json", exclude={"seed"})) for run in runs}
    variants = {}
    for run in runs:
        others = [flat[other.hash] for other in runs if other.recipe.method == run.recipe.method]
        own = flat[run.hash]
        keys = [key for key in own if any(other.get(key) != own[key] for other in others)]
        variants[run.hash] = ", ".join(f"{key}={own[key]}" for key in keys if key != "image_set_fingerprint")
    return variants


def _flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat
