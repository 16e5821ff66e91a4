"""What jobs took in the studies whose records are kept: seconds and memory of every kind of training and evaluation.

    python benchmarks/job_costs.py docs/results/paper/records.csv --markdown docs/scaling.md

Nothing is measured now: a record says how long its evaluation took, and the fact `cost/training-v1` what its training
did. What several tables show counts once.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from measure import Spread, check_targets, markdown_table, publish, run_script

from twinbench.foundation.errors import InputError

_TRAINING = "cost/training-v1"
_NEEDED = {
    "method",
    "protocol",
    "image_set",
    "metric",
    "value",
    "seconds",
    "peak_memory_mb",
    "status",
    "recipe_hash",
}

Row = Mapping[str, str]


def read(file: Path) -> list[Row]:
    """The finished rows of a records.csv; raises InputError for a file that is none."""
    if not file.is_file():
        raise InputError("there is no such file", where=file, next_step="name the records.csv of a report")
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    if not rows or not rows[0].keys() >= _NEEDED:
        raise InputError(
            "not the records of a report", where=file, next_step="name the records.csv of a report"
        )
    return [row for row in rows if row["status"] == "done"]


def trainings(rows: Iterable[Row]) -> dict[str, list[tuple[float, float]]]:
    """Seconds and MiB of each training of each method."""
    own = [row for row in rows if row["protocol"] == _TRAINING]
    hours = {_run(row): float(row["value"]) for row in own if row["metric"] == "device_hours"}
    memory = {_run(row): float(row["value"]) for row in own if row["metric"] == "peak_memory"}
    found = defaultdict(list)
    for (method, run), value in hours.items():
        if value:
            found[method].append((3600 * value, memory[method, run]))
    return found


def evaluations(rows: Iterable[Row]) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Seconds and MiB of each evaluation under each protocol on each image set."""
    jobs = {
        (row["protocol"], row["image_set"], *_run(row)): (float(row["seconds"]), float(row["peak_memory_mb"]))
        for row in rows
        if row["seconds"] and row["protocol"] != _TRAINING
    }
    found = defaultdict(list)
    for (protocol, image_set, *_), use in jobs.items():
        found[protocol, image_set].append(use)
    return found


def _run(row: Row) -> tuple[str, str]:
    return row["method"], row["recipe_hash"]


def render(rows: Sequence[Row]) -> str:
    """The table, in Markdown."""
    kinds = [(f"training, {method}", uses) for method, uses in trainings(rows).items()]
    kinds += [(f"{name} on {images}", uses) for (name, images), uses in sorted(evaluations(rows).items())]
    lines = [
        [
            kind,
            f"{len(uses)}",
            Spread.of([seconds for seconds, _ in uses]).text(),
            f"{max(memory for _, memory in uses):,.0f}",
            f"{sum(seconds for seconds, _ in uses) / 3600:.2f}",
        ]
        for kind, uses in kinds
    ]
    devices = " or ".join(dict.fromkeys(row["device"] for row in rows if row.get("device")))
    table = markdown_table(
        ["job", "jobs", "seconds: median (lowest to highest)", "most MiB", "hours together"], lines
    )
    return f"{table}\n\nDevice: {devices}; taken from the records of the study `{rows[0]['study']}`."


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", type=Path, help="records.csv of a report")
    parser.add_argument("--markdown", type=Path, help="file whose block 'job-costs' gets the table")
    return parser.parse_args(arguments)


def main() -> None:
    """Print the table of the jobs in a file of records."""
    options = parse(sys.argv[1:])
    check_targets("job-costs", None, options.markdown)
    publish({}, render(read(options.records)), "job-costs", None, options.markdown)


if __name__ == "__main__":
    run_script(main)
