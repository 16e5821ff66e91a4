"""What came out of the trials of `harness.tuning`: ranked, as a log fit for committing, and as the recipe that won."""

from __future__ import annotations

import csv
import io
import json
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from twinbench.foundation.errors import InputError
from twinbench.foundation.files import write_atomically
from twinbench.harness.images import Images
from twinbench.harness.plan import PlannedRun, record_of
from twinbench.harness.recipes import read_yaml, recipe_folder, set_dotted
from twinbench.harness.search import Number, Space, settings
from twinbench.harness.store import check_writable, read_json

_WIDTH = 110
_COLUMN = "            "


@dataclass(frozen=True)
class Trial:
    """One point of a method's search space, and the run that tries it."""

    method: str
    index: int
    values: dict[str, Number]
    planned: PlannedRun


@dataclass(frozen=True)
class Outcome:
    """What a trial gave: the top-1 on val under each protocol, in percent, or why there is none.

    ``seconds`` are those of its training; ``commit`` and ``machine`` say on what that was done.
    """

    trial: Trial
    status: str
    reason: str
    top1: dict[str, float | None]
    seconds: float | None
    commit: str
    machine: str

    @property
    def score(self) -> float | None:
        """The mean of the accuracies; None for a trial that failed or collapsed."""
        values = [value for value in self.top1.values() if value is not None]
        return sum(values) / len(values) if self.status == "done" else None


@dataclass(frozen=True)
class Budget:
    """What a log does not say by itself: the command, the seed, and how many images a trial trains on."""

    command: str
    seed: int
    images: int


def ranked(trials: Sequence[Trial], images: Images) -> list[Outcome]:
    """The outcomes, best score first; those without a score last, in the order of the trials."""
    outcomes = [_outcome(trial, images) for trial in sorted(trials, key=lambda trial: trial.index)]
    return sorted(outcomes, key=lambda o: (o.score is None, -(o.score or 0.0)))


def _outcome(trial: Trial, images: Images) -> Outcome:
    planned = trial.planned
    run, status = planned.run, planned.run.status() or {}
    files = {e.protocol.name: record_of(run, e, images) for e in planned.evaluations}
    top1 = {name: _top1(run.record(file)) for name, file in files.items()}
    lost: dict[str, Any] = {"status": "done", "reason": ""}
    if run.is_collapsed() or None in top1.values():
        lost = next(
            (
                d
                for d in (status, *map(read_json, files.values()))
                if d and d["status"] in ("failed", "collapsed")
            ),
            {"status": "not run", "reason": "interrupted or not run"},
        )
    environment = status.get("environment", {})
    return Outcome(
        trial=trial,
        status=lost["status"],
        reason=lost["reason"],
        top1=top1,
        seconds=status.get("seconds"),
        commit=environment.get("commit", ""),
        machine=environment.get("machine", ""),
    )


def _top1(record: dict[str, Any] | None) -> float | None:
    measured = record["measurements"] if record else ()
    return next((float(m["value"]) for m in measured if m["metric"] == "top1"), None)


def _rows(outcomes: Sequence[Outcome]) -> list[dict[str, str]]:
    """The log, a row for each trial; the searched values are exactly those that were used."""
    return [
        {
            "rank": str(rank),
            "trial": str(o.trial.index),
            **{name: json.dumps(value) for name, value in o.trial.values.items()},
            **{protocol: _decimals(value) for protocol, value in o.top1.items()},
            "score": _decimals(o.score),
            "status": o.status,
            "reason": o.reason,
            "seconds": "" if o.seconds is None else f"{o.seconds:.0f}",
            "seed": str(o.trial.planned.run.source.seed),
            "recipe_hash": o.trial.planned.run.hash,
            "commit": o.commit,
        }
        for rank, o in enumerate(outcomes, start=1)
    ]


def _decimals(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def table_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """The log for the terminal, in columns; the reason stands in place of a score."""
    hidden = {"seed", "commit", "reason"}
    rows = [
        {key: value for key, value in row.items() if key not in hidden}
        | {"score": row["score"] or "-", "status": f"{row['status']}: {row['reason']}".rstrip(": ")}
        for row in _rows(outcomes)
    ]
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]


@dataclass(frozen=True)
class Files:
    """What is written for one method; no recipe where no trial has a score."""

    log: Path
    recipe: Path | None

    def __str__(self) -> str:
        return ", ".join(str(path) for path in (self.log, self.recipe) if path is not None)


def write_outcome(out: Path, folder: str, space: Space, outcomes: Sequence[Outcome], budget: Budget) -> Files:
    """Write the log and the recipe that won to ``<out>/<method>.csv`` and ``.yaml``."""
    best = outcomes[0]
    files = Files(out / f"{best.trial.method}.csv", out / f"{best.trial.method}.yaml")
    write_atomically(files.log, _csv(_rows(outcomes)).encode())
    if best.score is None or files.recipe is None:
        return Files(files.log, None)
    shipped = recipe_folder(folder) / f"{best.trial.method}.yaml"
    write_atomically(files.recipe, recipe_text(shipped, space, outcomes, budget).encode())
    return files


def check_installable(folder: str) -> None:
    """Fail now, not after hours of trials, if the recipe folder cannot be written."""
    check_writable(_on_disk(folder))


def install(folder: str, files: Files) -> Files:
    """Copy log and recipe into the recipe folder, over the recipe that is there."""
    assert files.recipe is not None, "there is something to install"
    place = _on_disk(folder)
    installed = Files(place / "tuning" / files.log.name, place / files.recipe.name)
    assert installed.recipe is not None
    write_atomically(installed.log, files.log.read_bytes())
    write_atomically(installed.recipe, files.recipe.read_bytes())
    return installed


def _on_disk(folder: str) -> Path:
    place = recipe_folder(folder)
    if not isinstance(place, Path) and not Path(str(place)).is_dir():
        raise InputError(
            "this recipe folder is inside an archive and cannot be written",
            where=place,
            next_step="give a recipe folder of your own",
            option="recipe",
        )
    return Path(str(place))


def _csv(rows: list[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def recipe_text(
    shipped: Path | Traversable, space: Space, outcomes: Sequence[Outcome], budget: Budget
) -> str:
    """The shipped recipe with the best trial's values, a header that says how they were found, and what was tuned.

    What shortened the budget of the trials stays out of it.
    """
    document = read_yaml(shipped)
    chosen = settings(space, outcomes[0].trial.values)
    for key, value in chosen.items():
        set_dotted(document, key, value)
    document["tuning"] = {"trials": len(outcomes), "keys": list(chosen)}
    body = "".join(f"{key}: {_on_one_line(value)}\n" for key, value in document.items())
    return f"{_header(shipped.read_text(encoding='utf-8'), space, outcomes, budget)}\n\n{body}"


def _on_one_line(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
    return text.removesuffix("...\n").strip()


def _header(text: str, space: Space, outcomes: Sequence[Outcome], budget: Budget) -> str:
    """The labelled comments that open the shipped recipe, with what is known of the values that won."""
    opening = re.match(r"(?:#.*\n)*", text)
    comments = re.sub(r"\n#  +", " ", opening[0].rstrip() if opening else "")
    labelled = dict(re.findall(r"^# (\w+):\s+(.+)$", comments, flags=re.MULTILINE))
    best = outcomes[0]
    measured = ", ".join(f"{_decimals(value)} under {name}" for name, value in best.top1.items())
    labelled["Expected"] = f"no score is known on the test split; on val top-1 {measured} (the best trial)"
    labelled["Tuning"] = _account(space, outcomes, budget)
    return "\n".join(
        textwrap.fill(
            f"# {label + ':':<10} {content}",
            _WIDTH,
            subsequent_indent=f"#{_COLUMN}",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for label, content in labelled.items()
    )


def _account(space: Space, outcomes: Sequence[Outcome], budget: Budget) -> str:
    """How the values were found, in sentences."""
    recipe, best = outcomes[0].trial.planned.run.source, outcomes[0]
    counts = Counter(o.status for o in outcomes if o.score is None)
    lost = "".join(f", {n} {status}" for status, n in counts.items())
    dimensions = "; ".join(f"{name} {dimension}" for name, dimension in space.items())
    machines = sorted({f"{o.machine}, commit {o.commit}" for o in outcomes if o.machine})
    return (
        f"the best of {len(outcomes)} trials on val{lost} (trial {best.trial.index}); the score is the mean of the "
        f"two top-1. Log: tuning/{best.trial.method}.csv. Command: {budget.command}. Points: scrambled Sobol, seed "
        f"{budget.seed}, the seed of the trainings too. Space: {dimensions}. Budget of a trial: "
        f"{getattr(recipe, 'epochs', 0)} x {budget.images} images. Made on {'; '.join(machines)}."
    )
