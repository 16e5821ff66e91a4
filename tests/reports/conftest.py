"""A small synthetic study: six methods, references, seeds, a failure, a collapse, run folders."""

import json

import numpy as np
import pytest

from twinbench.reports.build import build_report
from twinbench.reports.records import Record, RunInfo
from twinbench.reports.study import StudySpec

LINEAR, KNN = "linear/cached-v1", "knn/cosine-v1"


def row(method, value, seed=0, protocol=LINEAR, **more):
    base = {
        "study": "s",
        "method": method,
        "variant": "",
        "image_set": "digit-scenes",
        "protocol": protocol,
        "metric": "top1",
        "value": value,
        "stderr": 0.5,
        "n": 2000,
        "seed": seed,
        "status": "done",
        "reason": "",
        "origin": "run",
        "recipe_hash": f"{method}-{seed}",
        "encoder_checksum": f"sum-{method}-{seed}",
        "backbone": "resnet18",
        "parameters": 11_000_000,
        "epochs": 50,
        "batch_size": 256,
        "images_per_second": 900.0,
        "peak_memory_mb": 1000.0,
        "seconds": 10.0,
        "device": "cpu",
        "environment": json.dumps({"torch": "2.9"}),
    }
    return Record(**{**base, **more})


@pytest.fixture
def make_row():
    return row


@pytest.fixture
def records():
    rows = [row("random_init", 30.0, epochs=0, batch_size=None), row("supervised", 90.0)]
    for seed in range(2):
        for protocol, shift in ((LINEAR, 0.0), (KNN, -5.0)):
            rows.append(row("barlow_twins", 70.0 + seed + shift, seed, protocol))
            rows.append(row("byol", 72.0 + seed + shift, seed, protocol))
            rows.append(row("moco_v2", 99.0 + shift, seed, protocol, epochs=200, batch_size=512))
            lost = {"status": "collapsed", "reason": "std_is_0 & 100 % <b>flat</b>"}
            rows.append(row("swav", None, seed, protocol, **lost))
        rows.append(row("simclr", 68.0, seed))
    return rows


@pytest.fixture
def make_run(tmp_path):
    def make(method, variant="", seed=0, status="done", reason=""):
        folder = tmp_path / "runs" / f"{method}-{variant}-{seed}"
        folder.mkdir(parents=True)
        steps = [{"step": i, "epoch": i / 4, "loss": 5.0 - i * 0.1, "lr": 0.1} for i in range(20)]
        lines = [json.dumps(step) for step in steps]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 20, "epo')  # cut off by a crash
        matrix = np.full((6, 6), 0.1) + 0.8 * np.eye(6)
        diagnostics = {
            "cross_correlation": matrix.tolist(),
            "spectrum": [4.0, 2.0, 1.0, 0.5],
            "feature_std": 0.1,
            "effective_rank": 3.2,
            "layer": "projector",
        }
        (folder / "diagnostics.json").write_text(json.dumps(diagnostics))
        return RunInfo(method, variant, seed, status, reason, folder)

    return make


@pytest.fixture
def study():
    columns = [
        {"protocol": LINEAR, "metric": "top1", "label": "Linear top-1"},
        {"protocol": KNN, "metric": "top1", "label": "kNN top-1"},
    ]
    quoted = {"file": "table1_imagenet_linear.csv", "columns": {"top1": "Linear top-1"}}
    return {
        "title": "A study & <more>",
        "description": "Six methods.",
        "tables": [{"name": "main", "title": "Accuracy_of 100 %", "columns": columns, "quoted": quoted}],
        "figures": [
            {"kind": "loss_curves"},
            {"kind": "cross_correlation"},
            {"kind": "spectrum"},
            {"kind": "bars"},
            {"kind": "bars", "name": "bars_knn", "column": "kNN top-1"},
        ],
    }


@pytest.fixture
def spec():
    """Parse a study; what its report does not depend on may be left out."""

    def parse(study):
        return StudySpec.model_validate({"title": "A study", "description": "", **study})

    return parse


@pytest.fixture
def write(spec):
    """Write the report of a study that is not parsed yet."""

    def write(study, records, runs, out):
        return build_report(spec(study), records, runs, out, "twinbench run s")

    return write
