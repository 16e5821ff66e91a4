"""How long does a plan take, and how much memory, against its number of jobs? Both should grow no faster than jobs do.

    python benchmarks/planner.py --out planner.json --markdown docs/scaling.md

A study of all six methods with many learning rates and many seeds is written, read as any study's file is, and planned:
every run and its jobs, what each table needs, which job comes when. Nothing is trained. Each size is a fresh process,
whose processor time is counted (other programs do not lengthen it); its images are read before the clock starts. The
exponent is the slope of a line through the logarithms of jobs and seconds: 1 is linear, 2 quadratic.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
    peak_memory_mb,
    positive,
    publish,
    resident_mb,
    run_script,
    take_turns,
)

from twinbench.foundation.errors import RunFailure
from twinbench.harness.images import ImageChoice, Images
from twinbench.harness.plan import jobs, jobs_of_tables, plan_study
from twinbench.harness.plugins import load_plugins
from twinbench.harness.schedule import timetable, unfinished_runs
from twinbench.harness.studies import load_study

_IMAGE_SET = "digit-scenes"
_PROTOCOLS = ("knn/cosine-v1", "linear/cached-v1")
_WORKERS = 8
_LINEAR = 1.15
_PARTS = ("reading", "planning", "listing", "ordering")


def study_of(n: int) -> dict[str, Any]:
    """A study of about ``n`` jobs: as many learning rates as seeds, and for each a training and two evaluations."""
    each = max(1, round(math.sqrt(n / (len(METHODS) * (1 + len(_PROTOCOLS))))))
    rates = [round(0.01 * (place + 1), 2) for place in range(each)]
    return {
        "title": f"About {n} jobs",
        "description": "A study for timing the planner.",
        "image_set": _IMAGE_SET,
        "seeds": each,
        "tables": [
            {
                "name": "rates",
                "title": "Learning rates",
                "rows": [
                    {
                        "methods": list(METHODS),
                        "vary": [{"key": "optimizer.base_lr", "label": "rate", "values": rates}],
                    }
                ],
                "columns": [
                    {"protocol": name, "metric": "top1", "label": name.partition("/")[0]}
                    for name in _PROTOCOLS
                ],
            }
        ],
    }


def measure(n: int) -> Document:
    """Processor seconds of each part of a plan of about ``n`` jobs in this process, and the memory it took in MiB."""
    torch.set_num_threads(1)
    load_plugins(warn=False)
    images = Images(None)
    for split in ("train", "val", "test"):
        images[ImageChoice(_IMAGE_SET)].split(split)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "study.yaml"
        file.write_text(yaml.safe_dump(study_of(n)), encoding="utf-8")
        before, times = resident_mb(), [time.process_time()]
        study = load_study(str(file))
        times.append(time.process_time())
        planned = plan_study(study, images, Path(folder) / "runs", {})
        times.append(time.process_time())
        plan, tables = jobs(planned, images), jobs_of_tables(planned, images)
        times.append(time.process_time())
        runs = unfinished_runs(plan, {})
        _, end = timetable(lengths(runs), _WORKERS)
        times.append(time.process_time())
    parts = dict(zip(_PARTS, np.diff(times).tolist(), strict=True))
    return {
        "jobs": len(plan),
        "runs": len(runs),
        "of_tables": sum(map(len, tables.values())),
        "end": end,
        **parts,
        "seconds": times[-1] - times[0],
        "memory_mb": peak_memory_mb() - before,
    }


def lengths(runs: Sequence[Sequence[object]]) -> list[list[float]]:
    """Seconds for the jobs of each run: no two runs are equally long, as in a real plan."""
    return [[60.0 + place / len(runs) for _ in run] for place, run in enumerate(runs)]


def exponent(counts: Sequence[float], values: Sequence[float]) -> float:
    """The slope of the line of least squares through the logarithms; raises ValueError with fewer than two counts."""
    if len(set(counts)) < 2:
        raise ValueError("a slope needs two counts")
    return float(np.polyfit(np.log(counts), np.log(values), 1)[0])


def measure_all(sizes: Sequence[int], repetitions: int) -> Document:
    """Measure every size in fresh processes that take turns; returns the document that `render` shows."""
    answers = take_turns(__file__, [({"jobs": n}, {}) for n in sizes], repetitions)
    rows = [{**repeated[0], "answers": repeated} for repeated in answers]
    document: Document = {
        "facts": facts(),
        "device": device_description(),
        "repetitions": repetitions,
        "rows": rows,
    }
    if len(rows) > 1:
        counts = [row["jobs"] for row in rows]
        document["exponent"] = exponent(counts, [_spread(row, "seconds").median for row in rows])
    return document


def _spread(row: Document, key: str) -> Spread:
    return Spread.of([answer[key] for answer in row["answers"]])


def render(document: Document) -> str:
    """The table of a document, in Markdown."""
    rows = [
        [
            f"{row['jobs']:,}",
            f"{row['runs']:,}",
            *(_spread(row, key).text(2) for key in (*_PARTS, "seconds")),
            f"{1000 * _spread(row, 'seconds').median / row['jobs']:.2f}",
            _spread(row, "memory_mb").text(0),
        ]
        for row in document["rows"]
    ]
    header = [
        "jobs",
        "runs",
        "read the study",
        "plan it",
        "its jobs",
        "their order",
        "seconds",
        "ms a job",
        "MiB",
    ]
    text = f"Processor seconds, {document['repetitions']} repetitions: median (lowest to highest).\n\n"
    text += markdown_table(header, rows)
    if "exponent" in document:
        text += f"\n\nSeconds grow as the number of jobs to the power of {document['exponent']:.2f}."
    return f"{text}\n\n{footnote(document)}"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--jobs", type=positive, nargs="+", default=[1000, 10_000, 100_000], help="about so many jobs"
    )
    parser.add_argument("--repetitions", type=positive, default=1, help="of each size (default %(default)s)")
    parser.add_argument("--out", type=Path, help="write the measurements there as JSON")
    parser.add_argument("--markdown", type=Path, help="file whose block 'planner' gets the table")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    """Measure one size in a fresh process, or all of them and print the table.

    Raises RunFailure, after writing what was measured, where seconds grow faster than the jobs.
    """
    options = parse(sys.argv[1:])
    if options.job is not None:
        print(json.dumps(measure(json.loads(options.job)["jobs"])))
        return
    check_targets("planner", options.out, options.markdown)
    document = measure_all(options.jobs, options.repetitions)
    publish(document, render(document), "planner", options.out, options.markdown)
    if document.get("exponent", 1.0) > _LINEAR:
        raise RunFailure(
            f"planning is not linear: seconds grow as jobs to the power of {document['exponent']:.2f}",
            where=f"{document['rows'][-1]['jobs']:,} jobs",
            next_step="profile a size: python -m cProfile -s cumulative benchmarks/planner.py --job '{\"jobs\": 3000}'",
        )


if __name__ == "__main__":
    run_script(main)
