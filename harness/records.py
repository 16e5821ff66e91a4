"""Collect what the run store holds into the long form that reports read: one row a measured number."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from harness.plan import PlannedRun
from harness.store import Run, read_json
from harness.studies import Study
from reports.records import RunInfo

COLUMNS = (
    "study", "method", "variant", "image_set", "protocol", "metric", "value", "stderr", "n", "seed", "status",
    "reason", "origin", "recipe_hash", "encoder_checksum", "backbone", "parameters", "epochs", "batch_size",
    "images_per_second", "peak_memory_mb", "seconds", "device", "environment",
)  # fmt: skip


def collect(study: Study, planned: list[PlannedRun]) -> tuple[pd.DataFrame, list[RunInfo]]:
    """Rows for every cell of the study, failed and collapsed ones too, and the runs behind them."""
    rows: list[dict[str, Any]] = []
    infos = []
    for entry in planned:
        status = entry.run.status() or {"status": "failed", "reason": "not run"}
        for chosen in entry.protocols:
            rows += _rows(study, entry.run, entry.variant, chosen.name, status)
        infos.append(
            RunInfo(
                method=entry.run.recipe.method,
                variant=entry.variant,
                seed=entry.run.recipe.seed,
                status=status["status"],
                reason=status["reason"],
                folder=entry.run.folder,
            )
        )
    return pd.DataFrame(rows, columns=list(COLUMNS)), infos


def _rows(
    study: Study, run: Run, variant: str, protocol_name: str, status: dict[str, Any]
) -> list[dict[str, Any]]:
    spec = run.recipe.backbone
    common = {
        "study": study.name,
        "method": run.recipe.method,
        "variant": variant,
        "image_set": run.recipe.image_set,
        "protocol": protocol_name,
        "seed": run.recipe.seed,
        "origin": "run",
        "recipe_hash": run.hash,
        "backbone": f"{spec.name}, width {spec.width}, {spec.stem} stem",
        "epochs": run.recipe.epochs,
        "batch_size": run.recipe.batch_size,
        **{key: status.get(key) for key in ("parameters", "images_per_second")},
    }
    record = run.record(protocol_name)
    if status["status"] == "done" and record is not None:
        measured = {
            **{key: record[key] for key in ("encoder_checksum", "peak_memory_mb", "seconds", "device")},
            "environment": json.dumps(record["environment"], sort_keys=True),
            "status": "done",
            "reason": "",
        }
        return [{**common, **measured, **measurement} for measurement in record["measurements"]]
    outcome = _why_missing(run, protocol_name, status)
    metrics = {c.metric for c in study.columns() if c.protocol == protocol_name} or {""}
    return [{**common, **outcome, "metric": metric} for metric in sorted(metrics)]


def _why_missing(run: Run, protocol_name: str, status: dict[str, Any]) -> dict[str, str]:
    if status["status"] in {"failed", "collapsed"}:
        return {"status": status["status"], "reason": status["reason"]}
    record = read_json(run.record_file(protocol_name)) or {}
    if record.get("status") == "failed":
        return {"status": "failed", "reason": record["reason"]}
    return {"status": "failed", "reason": "interrupted or not run"}
