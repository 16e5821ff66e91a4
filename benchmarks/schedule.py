"""The whole paper on a cluster, simulated: what it takes, when it ends, and what failures and checkpoints cost.

    python benchmarks/schedule.py --out schedule.json --markdown docs/scaling.md

The jobs and their GPU-hours are those that `twinbench run paper --scale imagenet --seeds 3 --dry-run` tells: published
costs of each method times epochs. Nothing is trained, and no cluster has run it. The order of the jobs is that of the
project's own workers (`harness.schedule`). A training takes a machine of eight GPUs, and its time is its GPU-hours
through eight; an evaluation takes one GPU. Either a machine does one job at a time, and while it evaluates seven of its
GPUs are idle; or evaluations are packed onto as few machines as have room, as a cluster's scheduler does.

The GPUs of a machine fail one independently of the other, at a constant rate, and a failure of one ends the job. A
training goes on from its last checkpoint after ``--restart`` minutes; an evaluation begins again. A checkpoint is
written after every interval of training and takes its bytes through ``--writing`` MB/s, while which nothing is trained.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from measure import (
    METHODS,
    Document,
    check_targets,
    device_description,
    facts,
    footnote,
    markdown_table,
    positive,
    publish,
    run_script,
)

from twinbench.data.catalogue import KNOWN_SETS
from twinbench.foundation.errors import InputError
from twinbench.harness.outline import OutlinedJob, outlined_jobs
from twinbench.harness.plugins import load_plugins
from twinbench.harness.recipes import load_recipe
from twinbench.harness.schedule import Waiting, timetable
from twinbench.harness.studies import load_study, narrowed
from twinbench.pretraining.build import build_method, resolve
from twinbench.pretraining.recipe import Recipe
from twinbench.pretraining.train import seconds_between_checkpoints

MACHINE = 8
"""GPUs."""
CLUSTERS = (8, 64, 512)
"""GPUs."""
OWN = 0.0
INTERVALS = (0.5, 5.0, 15.0, 60.0, OWN)
"""Minutes of training between checkpoints; `OWN` is what a training does (`seconds_between_checkpoints`)."""
BETWEEN_FAILURES = 54 * 24 * 16384 / 419
"""Hours of one GPU, 50,676: 419 unexpected interruptions of 16,384 H100 in 54 days (arXiv:2407.21783 section 3.3.4)."""

FAILING = (BETWEEN_FAILURES, BETWEEN_FAILURES / 10)
"""The published rate, and ten times as many failures."""

_BLOCKS = ("paper-plan", "paper-network", "paper-schedule")
_FLOAT = 4
_HOUR, _DAY = 3600.0, 86400.0
_STATES = {"adamw": 2}  # numbers that an optimizer keeps for each parameter; the others keep a momentum


# A job among failures


@dataclass(frozen=True)
class Work:
    """A job without failures: ``seconds`` on so many GPUs; ``saving`` seconds for a checkpoint, None if it has none."""

    seconds: float
    gpus: int
    saving: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a job took among failures, in seconds: all of it, and of that lost work, restarts and checkpoints."""

    seconds: float
    lost: float = 0.0
    restarts: float = 0.0
    saving: float = 0.0
    failures: int = 0


@dataclass(frozen=True)
class Faults:
    """Hours between the failures of one GPU on average (inf: it never fails), and seconds until a job goes on."""

    hours: float
    restart: float

    def gaps(self, gpus: int, draw: random.Random) -> Iterator[float]:
        """Seconds until the next failure of any of so many GPUs, again and again."""
        while True:
            yield math.inf if math.isinf(self.hours) else draw.expovariate(gpus / (self.hours * _HOUR))


def endure(work: Work, interval: float, restart: float, gaps: Iterator[float]) -> Outcome:
    """What a job takes if it fails after each of the ``gaps`` (seconds since it began or went on) that it lives to see.

    A checkpoint follows each ``interval`` seconds of work but the last, after which the job is done.
    """
    saves = work.saving is not None
    each, saving = (interval, work.saving or 0.0) if saves else (math.inf, 0.0)
    left, spent, lost, saved, failures = work.seconds, 0.0, 0.0, 0.0, 0
    while True:
        checkpoints = max(0, math.ceil(left / each) - 1)
        whole = left + checkpoints * saving
        gap = next(gaps)
        if gap >= whole:
            return Outcome(spent + whole, lost, failures * restart, saved + checkpoints * saving, failures)
        kept = int(gap // (each + saving))
        left -= kept * each if kept else 0.0
        saved += kept * saving
        lost += gap - kept * (each + saving) if kept else gap
        spent += gap + restart
        failures += 1


def own_interval(work: Work) -> float:
    """Seconds between the checkpoints of a training as it is built here."""
    return seconds_between_checkpoints(work.saving or 0.0)


@dataclass(frozen=True)
class Simulation:
    """One simulated study: GPU-seconds of each kind, failures, and the seconds until its last job ends.

    ``end`` is for a job a machine, ``packed_end`` where evaluations share machines.
    """

    end: float
    packed_end: float
    lost: float
    restarts: float
    saving: float
    failures: int


def simulate(
    runs: Sequence[Sequence[Work]], machines: int, interval: float, faults: Faults, seed: int
) -> Simulation:
    """The jobs of a study on so many machines, in the order of the project's workers, who expect no failure.

    ``interval`` is in seconds, `OWN` for that of each training.
    """
    draw = random.Random(seed)
    found = [
        [
            endure(work, interval or own_interval(work), faults.restart, faults.gaps(work.gpus, draw))
            for work in run
        ]
        for run in runs
    ]
    took = [[each.seconds for each in run] for run in found]
    expected = [[work.seconds for work in run] for run in runs]
    _, end = timetable(took, machines, expected=expected)
    pairs = [
        pair for run, outcomes in zip(runs, found, strict=True) for pair in zip(run, outcomes, strict=True)
    ]
    return Simulation(
        end=end,
        packed_end=packed_end(runs, took, machines, expected),
        lost=sum(work.gpus * each.lost for work, each in pairs),
        restarts=sum(work.gpus * each.restarts for work, each in pairs),
        saving=sum(work.gpus * each.saving for work, each in pairs),
        failures=sum(each.failures for _, each in pairs),
    )


def packed_end(
    runs: Sequence[Sequence[Work]],
    took: Sequence[Sequence[float]],
    machines: int,
    expected: Sequence[Sequence[float]],
) -> float:
    """When the last job ends if each takes its seconds and is placed where so many GPUs are free of one machine.

    Of such machines it is the one with fewest free. A job that has room nowhere waits, and one after it goes first.
    """
    waiting, free, now = Waiting(expected, machines), [MACHINE] * machines, 0.0
    places = [0] * len(runs)
    under_way: list[tuple[float, int, int]] = []
    while True:
        while True:
            room = max(free)
            too_large = {
                run
                for run, jobs in enumerate(runs)
                if places[run] < len(jobs) and jobs[places[run]].gpus > room
            }
            job = waiting.start(too_large)
            if job is None:
                break
            run, place = job
            gpus = runs[run][place].gpus
            machine = min((each for each in range(machines) if free[each] >= gpus), key=free.__getitem__)
            free[machine] -= gpus
            places[run] += 1
            heapq.heappush(under_way, (now + took[run][place], run, machine))
        if not under_way:
            return now
        now, run, machine = heapq.heappop(under_way)
        free[machine] += runs[run][places[run] - 1].gpus
        waiting.ended(run)


def lower_bound(runs: Sequence[Sequence[Work]], gpus: int) -> float:
    """Seconds below which no schedule of these jobs ends: all GPUs busy, or the longest run, without any failure."""
    work = sum(job.gpus * job.seconds for run in runs for job in run)
    return max(work / gpus, max(sum(job.seconds for job in run) for run in runs))


def best_interval(saving: float, between: float) -> float:
    """Young's interval in seconds, for seconds of a checkpoint and between failures: the root of twice their product.

    J. W. Young, Communications of the ACM 17, 1974.
    """
    return math.sqrt(2 * saving * between)


# The jobs of the paper


@dataclass(frozen=True)
class Network:
    """The parameters of a method: those that are trained, whose gradients go around, and bytes of a checkpoint."""

    trained: int
    checkpoint_bytes: int


def network(recipe: Recipe) -> Network:
    """Counted on the method itself, without memory for its weights."""
    same = recipe.model_copy(update={"seed": 0, "epochs": 1, "tuning": None, "cost": None})
    return _network(same.model_dump_json())


@cache
def _network(document: str) -> Network:
    recipe = Recipe.model_validate_json(document)
    with torch.device("meta"):
        method = build_method(resolve(recipe, 224, ""))
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    state = sum(tensor.nbytes for tensor in method.state_dict().values())
    name = recipe.optimizer.name if recipe.optimizer else "sgd"
    return Network(trained, state + _FLOAT * trained * _STATES.get(name, 1))


def work_of(jobs: Sequence[OutlinedJob], writing: float) -> list[list[Work]]:
    """The jobs of each run, its training first, then the longest evaluation; checkpoints at so many bytes a second."""
    runs: dict[str, list[tuple[bool, float, Work]]] = defaultdict(list)
    for job in jobs:
        hours = job.gpu_hours
        if hours is None:
            raise InputError(
                f"nobody knows the GPU-hours of {job.recipe.method} on {job.recipe.image_set}",
                next_step="choose a scale whose recipes quote their cost: --scale imagenet",
                option="scale",
            )
        if job.protocol is None and hours:
            saving = network(job.recipe).checkpoint_bytes / writing
            runs[job.run].append((False, -hours, Work(hours * _HOUR / MACHINE, MACHINE, saving)))
        elif hours:
            runs[job.run].append((True, -hours, Work(hours * _HOUR, 1)))
    return [[work for _, _, work in sorted(run, key=lambda entry: entry[:2])] for run in runs.values()]


# Tables


def plan_rows(tables: dict[str, list[OutlinedJob]]) -> list[Document]:
    """What each table takes beyond those before it, with the largest checkpoint of its trainings, in bytes."""
    rows = []
    features: dict[tuple[str, str], int] = {}
    for name, jobs in tables.items():
        new = {key: size for key, size in _features(jobs).items() if not features.get(key)}
        features |= new
        trainings = [job for job in jobs if job.protocol is None and job.gpu_hours]
        evaluations = [job for job in jobs if job.protocol is not None]
        rows.append(
            {
                "table": name,
                "trainings": len(trainings),
                "evaluations": len(evaluations),
                "training_hours": sum(job.gpu_hours or 0.0 for job in trainings),
                "evaluation_hours": sum(job.gpu_hours or 0.0 for job in evaluations),
                "encoder_bytes": sum(job.kept_bytes() for job in jobs if job.protocol is None),
                "feature_bytes": sum(new.values()),
                "checkpoint_bytes": max(
                    (network(job.recipe).checkpoint_bytes for job in trainings), default=0
                ),
            }
        )
    return rows


def _features(jobs: Sequence[OutlinedJob]) -> dict[tuple[str, str], int]:
    """Bytes of the features of each run on each image set, which its protocols share."""
    return {(job.run, job.image_set): job.kept_bytes() for job in jobs if job.protocol is not None}


def network_rows(gpus: Sequence[int]) -> list[Document]:
    """For each method by its ImageNet recipe what a step sends, on so many GPUs.

    In a ring each GPU sends 2 (N - 1) / N of the gradients' bytes in a step (fp32). Seconds of a step are the published
    GPU-hours of an epoch through GPUs and steps.
    """
    rows = []
    for method in METHODS:
        recipe = load_recipe("imagenet", method, "imagenet", {})
        found, cost = network(recipe), recipe.cost
        assert cost is not None
        steps = KNOWN_SETS["imagenet"].train // recipe.batch_size
        for n in gpus:
            if recipe.batch_size % n:
                continue
            seconds = cost.gpu_hours_per_epoch * _HOUR / n / steps
            sent = 2 * (n - 1) / n * _FLOAT * found.trained
            rows.append(
                {
                    "method": method,
                    "trained": found.trained,
                    "checkpoint_bytes": found.checkpoint_bytes,
                    "gpus": n,
                    "images": recipe.batch_size // n,
                    "step_seconds": seconds,
                    "sent_bytes": sent,
                    "bytes_per_second": sent / seconds,
                }
            )
    return rows


def schedule_rows(
    runs: Sequence[Sequence[Work]],
    clusters: Sequence[int],
    intervals: Sequence[float],
    rates: Sequence[float],
    restart: float,
    repetitions: int,
) -> list[Document]:
    """Every cluster, hours between failures and interval, simulated ``repetitions`` times with the seeds from 0 on."""
    rows = []
    for gpus in clusters:
        bound = lower_bound(runs, gpus)
        for hours in rates:
            # without failures there is nothing to save for
            for interval in intervals if math.isfinite(hours) else (math.inf,):
                faults = Faults(hours, restart)
                seeds = range(repetitions if math.isfinite(hours) else 1)
                found = [simulate(runs, gpus // MACHINE, interval * 60, faults, seed) for seed in seeds]
                rows.append(
                    {
                        "gpus": gpus,
                        "bound": bound,
                        "between_failures": hours if math.isfinite(hours) else None,
                        "interval": interval if math.isfinite(hours) else None,
                        "ends": [each.end for each in found],
                        "packed_ends": [each.packed_end for each in found],
                        "lost": [each.lost for each in found],
                        "restarts": [each.restarts for each in found],
                        "saving": [each.saving for each in found],
                        "failures": [each.failures for each in found],
                    }
                )
    return rows


def best_intervals(runs: Sequence[Sequence[Work]], rates: Sequence[float]) -> list[Document]:
    """For hours between the failures of a GPU, Young's interval in minutes for the smallest and largest checkpoint."""
    trainings = [work for run in runs for work in run if work.saving]
    rows = []
    for hours in rates:
        found = [best_interval(work.saving or 0.0, hours * _HOUR / work.gpus) / 60 for work in trainings]
        rows.append({"between_failures": hours, "smallest": min(found), "largest": max(found)})
    return rows


def _spread(values: Sequence[float], digits: int) -> str:
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:,.{digits}f}"
    return f"{mean:,.{digits}f} ± {statistics.stdev(values):,.{digits}f}"


def render_plan(document: Document) -> str:
    """The table of what each table takes, in Markdown."""
    counted = ("trainings", "evaluations", "training_hours", "evaluation_hours")
    sized = ("encoder_bytes", "feature_bytes")
    rows = document["plan"]
    lines = [
        [
            row["table"],
            *(f"{row[key]:,.0f}" for key in counted),
            *(f"{row[key] / 2**30:,.1f}" for key in sized),
            f"{row['checkpoint_bytes'] / 2**30:.1f}" if row["checkpoint_bytes"] else "",
        ]
        for row in rows
    ]
    totals = {key: sum(row[key] for row in rows) for key in (*counted, *sized)}
    largest = max(row["checkpoint_bytes"] for row in rows)
    lines.append(
        [
            "together",
            *(f"{totals[key]:,.0f}" for key in counted),
            *(f"{totals[key] / 2**30:,.1f}" for key in sized),
            f"{largest / 2**30:.1f}",
        ]
    )
    header = [
        "table", "trainings", "evaluations", "GPU-hours of trainings", "of evaluations",
        "encoders, GiB", "features, GiB", "largest checkpoint, GiB",
    ]  # fmt: skip
    return markdown_table(header, lines)


def render_network(document: Document) -> str:
    """The table of what a step sends, in Markdown."""
    lines = [
        [
            row["method"],
            f"{row['trained'] / 1e6:,.1f}",
            f"{row['checkpoint_bytes'] / 2**30:.2f}",
            f"{row['gpus']}",
            f"{row['images']}",
            f"{row['step_seconds']:.2f}",
            f"{row['sent_bytes'] / 2**20:,.0f}",
            f"{row['bytes_per_second'] / 1e6:,.0f}",
        ]
        for row in document["network"]
    ]
    header = [
        "method", "trained parameters, millions", "checkpoint, GiB", "GPUs", "images on each", "seconds of a step",
        "MiB sent by each in a step", "MB/s",
    ]  # fmt: skip
    return markdown_table(header, lines)


def render_schedule(document: Document) -> str:
    """The table of the simulations, in Markdown."""
    lines = []
    for row in document["schedule"]:
        never = row["between_failures"] is None
        lines.append(
            [
                f"{row['gpus']}",
                "never" if never else f"{row['between_failures']:,.0f}",
                "none" if never else f"{row['interval']:g}" if row["interval"] != OWN else "own",
                f"{row['bound'] / _DAY:,.1f}",
                *(
                    text
                    for ends in (row["ends"], row["packed_ends"])
                    for text in (
                        _spread([end / _DAY for end in ends], 1),
                        f"{statistics.fmean(ends) / row['bound']:.3f}",
                    )
                ),
                _spread(row["failures"], 0),
                *(_spread([each / _HOUR for each in row[key]], 0) for key in ("lost", "restarts", "saving")),
            ]
        )
    header = [
        "GPUs", "hours between failures of a GPU", "minutes between checkpoints", "bound, days",
        "a job a machine: end, days", "end / bound", "packed: end, days", "end / bound",
        "failures", "GPU-hours lost", "in restarts", "in checkpoints",
    ]  # fmt: skip
    best = "; ".join(
        f"{row['smallest']:.0f} to {row['largest']:.0f} minutes where a GPU fails every "
        f"{row['between_failures']:,.0f} hours"
        for row in document["best_intervals"]
    )
    return (
        f"{document['repetitions']} simulations each: mean ± standard deviation.\n\n{markdown_table(header, lines)}\n\n"
        f"Young's interval, by the sizes of checkpoints: {best}."
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", default="paper")
    parser.add_argument("--scale", default="imagenet")
    parser.add_argument("--seeds", type=positive, default=3, help="of the study (default %(default)s)")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="the store; what it holds is not done again"
    )
    parser.add_argument(
        "--repetitions", type=positive, default=20, help="of a simulation (default %(default)s)"
    )
    parser.add_argument("--restart", type=float, default=10.0, help="minutes (default %(default)s)")
    parser.add_argument("--writing", type=float, default=500.0, help="MB/s to the disk (default %(default)s)")
    parser.add_argument("--out", type=Path, help="write everything there as JSON")
    parser.add_argument(
        "--markdown", type=Path, help=f"file whose blocks {', '.join(_BLOCKS)} get the tables"
    )
    return parser.parse_args(arguments)


def main() -> None:
    """Outline the study, simulate it, and print the tables."""
    options = parse(sys.argv[1:])
    for block in _BLOCKS:
        check_targets(block, options.out, options.markdown)
    load_plugins(warn=False)
    study = narrowed(load_study(options.study, options.scale), options.seeds, (), None)
    tables = outlined_jobs(study, {}, options.runs)
    runs = work_of([job for jobs in tables.values() for job in jobs], options.writing * 1e6)
    document: Document = {
        "facts": facts(),
        "device": device_description(),
        "repetitions": options.repetitions,
        "plan": plan_rows(tables),
        "network": network_rows(CLUSTERS),
        "best_intervals": best_intervals(runs, FAILING),
        "schedule": schedule_rows(
            runs,
            CLUSTERS,
            INTERVALS,
            (math.inf, *FAILING),
            options.restart * 60,
            options.repetitions,
        ),
    }
    renderers = (render_plan, render_network, render_schedule)
    for block, renderer in zip(_BLOCKS, renderers, strict=True):
        text = f"{renderer(document)}\n\n{footnote(document)}"
        publish(document, text, block, options.out, options.markdown)


if __name__ == "__main__":
    run_script(main)
