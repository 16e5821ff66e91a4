"""Jobs side by side against one after another: how long does a study take, and are the results the same bits?

    python benchmarks/side_by_side.py --out side_by_side.json --markdown benchmarks/README.md

A study of a training and two evaluations of each method is run by the command line as a user runs it, start and report
included, with an empty store: with as many workers as it has by default; one job after another with all
cores; and one after another with the threads that a worker has, which computes the same bits as the workers. A second
study has a single run, of which there is nothing to do side by side: it has all cores by default. Each is a process
of its own, and they take turns.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from measure import (
    METHODS,
    Document,
    Spread,
    check_targets,
    device_description,
    facts,
    footnote,
    markdown_table,
    positive,
    publish,
    run_script,
    take_turns,
)

from twinbench.foundation.cores import usable_cores
from twinbench.foundation.errors import RunFailure
from twinbench.harness.workers import threads_each, workers_here

_PLANS = {"six runs": METHODS, "one run": METHODS[:1]}
_SIDES = ("one after another, all cores", "one after another, a worker's threads", "side by side")
_MAIN = "from twinbench.harness.main import main; main()"


def study_of(methods: Sequence[str], epochs: int) -> dict[str, Any]:
    """A training of each method by its recipe for digit-scenes, but for the epochs, and two evaluations."""
    columns = [
        {"protocol": name, "metric": "top1", "label": name} for name in ("knn/cosine-v1", "linear/cached-v1")
    ]
    return {
        "title": "Side by side",
        "description": "A study for timing the workers.",
        "image_set": "digit-scenes",
        "methods": list(methods),
        "overrides": {"epochs": epochs, "schedule.warmup_epochs": 0},
        "tables": [{"name": "main", "title": "Methods", "columns": columns}],
    }


def measure(methods: Sequence[str], epochs: int, side: str) -> Document:
    """Wall-clock and processor seconds of a study done in one of the ways, and a digest of its weights and numbers."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    if "threads" in side:
        environment["OMP_NUM_THREADS"] = str(threads_each(min(workers_here(), len(methods))))
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder, "study.yaml")
        study.write_text(yaml.safe_dump(study_of(methods, epochs)), encoding="utf-8")
        words = ["run", str(study), "--runs", "runs", "--out", "results/side"]
        words += [] if side == "side by side" else ["--workers", "1"]
        started = time.monotonic()
        command = [sys.executable, "-c", _MAIN, *words]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        seconds = time.monotonic() - started
        if done.returncode:
            raise RunFailure(f"the study ended with exit code {done.returncode}", where=done.stderr[-2000:])
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {
            "seconds": seconds,
            "processor_seconds": used.ru_utime + used.ru_stime,
            "digest": results_digest(Path(folder, "runs")),
        }


def results_digest(runs: Path) -> str:
    """SHA-256 of the weights and the measurements of every run."""
    digest = hashlib.sha256()
    for file in sorted(runs.rglob("*")):
        if file.name == "encoder.safetensors":
            digest.update(file.read_bytes())
        elif file.parent.name == "records" and file.suffix == ".json":
            digest.update(json.dumps(json.loads(file.read_text())["measurements"]).encode())
    return digest.hexdigest()


def measure_all(epochs: int, repetitions: int) -> Document:
    """Every plan in every way, in turns."""
    load = os.getloadavg()[0]
    rows = []
    for plan, methods in _PLANS.items():
        jobs = [({"methods": list(methods), "epochs": epochs, "side": side}, {}) for side in _SIDES]
        answers = take_turns(__file__, jobs, repetitions)
        rows += [
            {"plan": plan, "side": side, "answers": each} for side, each in zip(_SIDES, answers, strict=True)
        ]
    return {
        "facts": facts(),
        "device": device_description(),
        "epochs": epochs,
        "repetitions": repetitions,
        "cores": usable_cores(),
        "workers": workers_here(),
        "load": load,
        "rows": rows,
    }


def render(document: Document) -> str:
    """The table of a document, in Markdown."""
    rows = document["rows"]
    slowest = {row["plan"]: row for row in rows if row["side"] == _SIDES[0]}
    digests = {
        row["plan"]: {answer["digest"] for answer in row["answers"]}
        for row in rows
        if row["side"] == _SIDES[2]
    }
    lines = []
    for row in rows:
        base = slowest[row["plan"]]["answers"]
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(base, row["answers"], strict=True)]
        same = {answer["digest"] for answer in row["answers"]} == digests[row["plan"]]
        lines.append(
            [
                row["plan"],
                row["side"],
                Spread.of([answer["seconds"] for answer in row["answers"]]).text(0),
                Spread.of([answer["processor_seconds"] for answer in row["answers"]]).text(0),
                Spread.of(ratios).text(2),
                "yes" if same else "no",
            ]
        )
    header = ["plan", "jobs", "seconds", "processor seconds", "times as fast", "bits of side by side"]
    return (
        f"{document['epochs']} epochs, {document['workers']} workers on {document['cores']} cores, "
        f"{document['repetitions']} repetitions; load average before: {document['load']:.1f}.\n\n"
        f"{markdown_table(header, lines)}\n\n{footnote(document)}"
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=positive, default=4, help="of each training (default %(default)s)")
    parser.add_argument("--repetitions", type=positive, default=3, help="default %(default)s")
    parser.add_argument("--out", type=Path, help="write the measurements there as JSON")
    parser.add_argument("--markdown", type=Path, help="file whose block 'side-by-side' gets the table")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    """Time one study in a fresh process, or all of them and print the table."""
    options = parse(sys.argv[1:])
    if options.job is not None:
        print(json.dumps(measure(**json.loads(options.job))))
        return
    check_targets("side-by-side", options.out, options.markdown)
    document = measure_all(options.epochs, options.repetitions)
    publish(document, render(document), "side-by-side", options.out, options.markdown)


if __name__ == "__main__":
    run_script(main)
