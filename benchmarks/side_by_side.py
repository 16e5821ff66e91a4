"""Jobs side by side against one after another: how long does a study take, and are the results the same bits?

    python benchmarks/side_by_side.py --out side_by_side.json --markdown benchmarks/README.md

A study of a training and two evaluations of each method is run by the command line as a user runs it, start and report
included, with an empty store: with as many workers as it has by default; one job after another with all
cores; and one after another with the threads that a worker has, which computes the same bits as the workers. A second
study has a single run, of which there is nothing to do side by side: it has all cores by default. Two such studies are
begun at once, each in a session of its own as from a terminal of its own: they take turns on the cores, and without
turns they do not, for each has another temporary folder. Each way is a process of its own, and they take turns.
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
from collections.abc import Mapping, Sequence
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

_SIDES = ("one after another, all cores", "one after another, a worker's threads", "side by side")
_TWO = ("one after the other", "at once, without turns", "at once, in turns")
_PLANS = {
    "six runs": (METHODS, _SIDES),
    "one run": (METHODS[:1], _SIDES),
    "two studies of one run": (METHODS[:1], _TWO),
}
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
    if side == _SIDES[1]:
        environment["OMP_NUM_THREADS"] = str(threads_each(min(workers_here(), len(methods))))
    one_after_another = ["--workers", "1"] if side in _SIDES[:2] else []
    with tempfile.TemporaryDirectory() as top:
        folders = [Path(top, str(number)) for number in range(2 if side in _TWO else 1)]
        started = time.monotonic()
        commands = []
        for folder in folders:
            folder.mkdir()
            (folder / "study.yaml").write_text(yaml.safe_dump(study_of(methods, epochs)), encoding="utf-8")
            if side == "at once, without turns":
                environment["TMPDIR"] = str(folder)
            commands.append(_begun(folder, one_after_another, environment))
            if side == "one after the other":
                commands[-1].wait()
        for folder, command in zip(folders, commands, strict=True):
            if code := command.wait():
                raise RunFailure(
                    f"the study ended with exit code {code}", where=(folder / "said").read_text()[-2000:]
                )
        seconds = time.monotonic() - started
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        digests = {results_digest(folder / "runs") for folder in folders}
        return {
            "seconds": seconds,
            "processor_seconds": used.ru_utime + used.ru_stime,
            "digest": " ".join(sorted(digests)),
        }


def _begun(folder: Path, more: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    words = ["run", "study.yaml", "--runs", "runs", "--out", "results/side", *more]
    with (folder / "said").open("w") as said:
        return subprocess.Popen(
            [sys.executable, "-c", _MAIN, *words],
            cwd=folder,
            env=environment,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )


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
    for plan, (methods, sides) in _PLANS.items():
        jobs = [({"methods": list(methods), "epochs": epochs, "side": side}, {}) for side in sides]
        answers = take_turns(__file__, jobs, repetitions)
        rows += [
            {"plan": plan, "side": side, "answers": each} for side, each in zip(sides, answers, strict=True)
        ]
    return {
        "facts": facts(),
        "device": device_description(),
        "epochs": epochs,
        "repetitions": repetitions,
        "cores": usable_cores(),
        "workers": workers_here(),
        "load": load,
        "groups": _schedules_sessions_apart(),
        "rows": rows,
    }


def _schedules_sessions_apart() -> bool:
    """Whether the kernel shares the cores among sessions, each of which then shares its part among its threads."""
    setting = Path("/proc/sys/kernel/sched_autogroup_enabled")
    return setting.is_file() and setting.read_text().strip() == "1"


def render(document: Document) -> str:
    """The table of a document, in Markdown."""
    rows = document["rows"]
    first = {row["plan"]: row for row in reversed(rows)}
    digests = {
        row["plan"]: {answer["digest"] for answer in row["answers"]} for row in rows
    }  # of its last way
    lines = []
    for row in rows:
        base = first[row["plan"]]["answers"]
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
    header = ["plan", "jobs", "seconds", "processor seconds", "times as fast", "bits of the last way"]
    groups = "each session's processes as a group" if document["groups"] else "all processes as one group"
    return (
        f"{document['epochs']} epochs, {document['workers']} workers on {document['cores']} cores, "
        f"{document['repetitions']} repetitions; load average before: {document['load']:.1f}; the kernel schedules "
        f"{groups}.\n\n{markdown_table(header, lines)}\n\n{footnote(document)}"
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
