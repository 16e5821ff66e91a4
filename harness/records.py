"""Collect what the run store holds into the long form that reports read: one row a measured number."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from twinbench.downstream.protocol import require_current
from twinbench.harness.plan import PlannedRun
from twinbench.harness.source import ImportedSource
from twinbench.harness.store import Run, read_json
from twinbench.harness.studies import Study
from twinbench.pretraining.recipe import Recipe
from twinbench.reports.records import RunInfo

COLUMNS = (
    "study", "method", "variant", "image_set", "protocol", "metric", "value", "stderr", "n", "seed", "status",
    "reason", "origin", "source_name", "source", "recipe_hash", "encoder_checksum", "backbone",
    "parameters", "pretrained_on", "epochs", "batch_size", "images_per_second", "peak_memory_mb", "seconds", "device",
    "environment",
)  # fmt: skip


def collect(study: Study, planned: list[PlannedRun]) -> tuple[pd.DataFrame, list[RunInfo]]:
    """Rows for every cell of the study, failed and collapsed ones too, and the runs behind them."""
    rows: list[dict[str, Any]] = []
    for entry in planned:
        for chosen in entry.protocols:
            file = entry.run.record_file(chosen.name, entry.measured_on)
            record = entry.run.record(file)
            if record is not None and not entry.run.is_collapsed():
                # The file may have been made under another name of the same images.
                rows += _measured(entry.run, entry.variant, {**record, "image_set": entry.measured_on.name})
            else:
                metrics = {c.metric for c in study.columns() if c.protocol == chosen.name} or {""}
                missing = _missing(entry.run, entry.variant, chosen.name, metrics, file)
                rows += [{**row, "image_set": entry.measured_on.name} for row in missing]
    infos = [_run_info(entry.run, entry.variant) for entry in planned]
    return _frame(rows, study.name), infos


def collect_stored(runs: list[Run]) -> tuple[pd.DataFrame, list[RunInfo]]:
    """Rows for every record in the runs, told apart by the recipe keys in which runs of a method differ.

    Raises InputError for a record under a name that its protocol had before.
    """
    for run in runs:
        _require_current_names(run)
    variants = _variants(runs)
    records = {
        run.hash: [
            r for f in sorted((run.folder / "records").glob("*.json")) if (r := run.record(f)) is not None
        ]
        for run in runs
    }
    names = _image_set_names([record for found in records.values() for record in found])
    rows: list[dict[str, Any]] = []
    for run in runs:
        for record in records[run.hash]:
            if not run.is_collapsed():
                image_set = names[record["image_set_fingerprint"]]
                rows += _measured(run, variants[run.hash], {**record, "image_set": image_set})
        if run.is_collapsed():
            rows += _missing(run, variants[run.hash], "", {""}, None)
    return _frame(rows, "report"), [_run_info(run, variants[run.hash]) for run in runs]


def _require_current_names(run: Run) -> None:
    for file in sorted((run.folder / "records").glob("*.json")):
        if (record := run.record(file)) is not None:
            require_current(record["protocol"], where=file)


def _image_set_names(records: list[dict[str, Any]]) -> dict[str, str]:
    """For each fingerprint what its image set is called: versions of a set that share a name are told apart."""
    named = {record["image_set_fingerprint"]: record["image_set"] for record in records}
    shared = Counter(named.values())
    return {
        fingerprint: f"{name} ({fingerprint[:8]})" if shared[name] > 1 else name
        for fingerprint, name in named.items()
    }


def _frame(rows: list[dict[str, Any]], study: str) -> pd.DataFrame:
    return pd.DataFrame([{"study": study, **row} for row in rows], columns=list(COLUMNS))


def _common(run: Run, variant: str) -> dict[str, Any]:
    source, status = run.source, run.status() or {}
    spec = source.backbone
    imported = source if isinstance(source, ImportedSource) else None
    recipe = source if isinstance(source, Recipe) else None
    return {
        "method": source.method,
        "variant": variant,
        "image_set": source.image_set,
        "seed": source.seed,
        "origin": run.origin,
        "source_name": imported.name if imported else "",
        "source": _source(imported) if imported else "",
        "recipe_hash": run.hash,
        "backbone": f"{spec.name}, width {spec.width}, {spec.stem} stem",
        "pretrained_on": recipe.image_set if recipe and recipe.epochs else "",
        "epochs": recipe.epochs if recipe else None,
        "batch_size": recipe.batch_size if recipe else None,
        "parameters": status.get("parameters"),
        "images_per_second": status.get("images_per_second"),
    }


def _source(imported: ImportedSource) -> str:
    """Where an imported encoder is from, how it is fed, and what its import noted."""
    deviation = imported.deviation
    parts = [
        f"{imported.file} (SHA-256 {imported.sha256})",
        f"mean {imported.mean}, std {imported.std}",
        *([f"computing with {deviation}"] if deviation != "none" else []),
        *([imported.note] if imported.note else []),
    ]
    return ", ".join(parts)


def _measured(run: Run, variant: str, record: dict[str, Any]) -> list[dict[str, Any]]:
    copied = (
        "protocol", "image_set", "encoder_checksum", "peak_memory_mb", "seconds", "device", "status", "reason",
    )  # fmt: skip
    row = {
        **_common(run, variant),
        **{key: record[key] for key in copied},
        "environment": json.dumps(record["environment"], sort_keys=True),
    }
    return [{**row, **measurement} for measurement in record["measurements"]]


def _missing(
    run: Run, variant: str, protocol_name: str, metrics: set[str], file: Path | None
) -> list[dict[str, Any]]:
    row = {**_common(run, variant), "protocol": protocol_name, **_why_missing(run, file)}
    return [{**row, "metric": metric} for metric in sorted(metrics)]


def _why_missing(run: Run, file: Path | None) -> dict[str, str]:
    for document in (run.status(), None if file is None else read_json(file)):
        if document is not None and document["status"] in {"failed", "collapsed"}:
            return {"status": document["status"], "reason": document["reason"]}
    return {"status": "failed", "reason": "interrupted or not run"}


def _run_info(run: Run, variant: str) -> RunInfo:
    status = run.status() or {"status": "failed", "reason": "not run"}
    return RunInfo(
        method=run.source.method,
        variant=variant,
        seed=run.source.seed,
        status=status["status"],
        reason=status["reason"],
        folder=run.folder,
        origin=run.origin,
        seconds=status.get("seconds", 0.0),
    )


def _variants(runs: list[Run]) -> dict[str, str]:
    """For each run's hash, the recipe keys and values that set it apart from other runs of its method."""
    flat = {run.hash: _flat(run.source.model_dump(mode="json", exclude={"seed"})) for run in runs}
    variants = {}
    for run in runs:
        same = [other for other in runs if type(other.source) is type(run.source)]
        others = [flat[other.hash] for other in same if other.source.method == run.source.method]
        own = flat[run.hash]
        keys = [key for key in own if any(other.get(key) != own[key] for other in others)]
        variants[run.hash] = ", ".join(f"{key}={own[key]}" for key in keys if key != "image_set_fingerprint")
    return variants


def _flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat
