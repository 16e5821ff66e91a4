"""What came out of the trials of `harness.tuning`: ranked, as a log fit for committing, and as the recipe that won."""

from __future__ import annotations

import csv
import io
import json
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from twinbench.foundation.errors import InputError
from twinbench.foundation.files import write_atomically
from twinbench.harness.images import Images
from twinbench.harness.plan import PlannedRun, record_of
from twinbench.harness.recipes import recipe_folder, set_dotted
from twinbench.harness.search import Number, Space, settings
from twinbench.harness.store import check_writable, read_json

BUDGET_KEYS = ("epochs", "schedule.warmup_epochs")
"""What ``--set`` changes for the trials alone: the recipe that wins keeps the shipped budget."""

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

    ``status`` is that of the run, and ``diverged`` for one that failed because its numbers were no longer finite.

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

    @property
    def is_result(self) -> bool:
        """Whether the trial says something about its values; one that failed or was not run does not."""
        return self.status in ("done", "collapsed", "diverged")


@dataclass(frozen=True)
class Budget:
    """What a log does not say by itself: the command, the seed, and how many images a trial trains on.

    ``shipped`` is the text of the recipe that all trials start from; ``overrides`` are what the command changed in it,
    by dotted key.
    """

    command: str
    seed: int
    images: int
    shipped: str
    overrides: dict[str, Any]


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
                if d and d.get("status") in ("failed", "collapsed")
            ),
            {"status": "not run", "reason": "interrupted or not run"},
        )
    environment = status.get("environment", {})
    return Outcome(
        trial=trial,
        status="diverged" if lost.get("diverged") else lost["status"],
        reason=lost.get("reason", ""),
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


def write_outcome(out: Path, space: Space, outcomes: Sequence[Outcome], budget: Budget) -> Files:
    """Write the log and the recipe that won to ``<out>/<method>.csv`` and ``.yaml``; no other recipe stays there."""
    best = outcomes[0]
    log, recipe = (out / f"{best.trial.method}.{kind}" for kind in ("csv", "yaml"))
    recipe.unlink(missing_ok=True)
    write_atomically(log, _csv(_rows(outcomes)).encode())
    if best.score is None:
        return Files(log, None)
    write_atomically(recipe, recipe_text(space, outcomes, budget).encode())
    return Files(log, recipe)


def shipped_recipe(folder: str, method: str) -> str:
    """The text of a recipe that is there."""
    return (recipe_folder(folder) / f"{method}.yaml").read_text(encoding="utf-8")


def check_installable(folder: str, shipped: dict[str, str]) -> None:
    """Fail now, not after hours of trials, if a recipe (method: text) cannot be replaced without losing a comment."""
    place = _on_disk(folder)
    check_writable(place)
    for method, text in shipped.items():
        lost = _comments_among_keys(text)
        if lost:
            raise InputError(
                f"{len(lost)} comment{'s' * (len(lost) > 1)} among the keys of this recipe would be lost: "
                + "; ".join(lost),
                where=place / f"{method}.yaml",
                next_step="move what shall stay above the first key, where comments are kept",
            )


def _comments_among_keys(text: str) -> list[str]:
    """The comments below the header, each with its line: what begins with # in no token."""
    end, found = len(_opening(text)), []
    for token in yaml.scan(text):
        for comment in re.finditer("#.*", text[end : token.start_mark.index]):
            line = text.count("\n", 0, end + comment.start()) + 1
            found.append(f"line {line}: {comment[0]}")
        end = max(end, token.end_mark.index)
    return found


def _opening(text: str) -> str:
    """The comments and empty lines before the first key."""
    opening = re.match(r"(?:[ \t]*(?:#.*)?\n)*", text)
    assert opening is not None, "nothing at all matches"
    return opening[0]


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


def recipe_text(space: Space, outcomes: Sequence[Outcome], budget: Budget) -> str:
    """The recipe that the best trial ran, a header that says how it was found, and what was tuned.

    It is the shipped recipe with what the command changed and with the trial's values; what changed the budget of the
    trials stays out of it. ``tuning`` counts the trials that have a result.
    """
    before, document = yaml.safe_load(budget.shipped), yaml.safe_load(budget.shipped)
    for key, value in deepcopy(budget.overrides).items():
        set_dotted(document, key, value)
    for key in BUDGET_KEYS:
        _restore(document, before, key)
    chosen = settings(space, outcomes[0].trial.values)
    for key, value in chosen.items():
        set_dotted(document, key, value)
    document["tuning"] = {"trials": sum(o.is_result for o in outcomes), "keys": list(chosen)}
    body = "".join(f"{key}: {_on_one_line(value)}\n" for key, value in document.items())
    return f"{_header(space, outcomes, budget)}\n\n{body}"


def _restore(document: dict[str, Any], shipped: dict[str, Any], dotted: str) -> None:
    """Give a key the value that it has in the shipped recipe, which may be none."""
    *path, last = dotted.split(".")
    for part in path:
        document, shipped = document.get(part) or {}, shipped.get(part) or {}
    if last in shipped:
        document[last] = shipped[last]
    else:
        document.pop(last, None)


def _on_one_line(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
    return text.removesuffix("...\n").strip()


def _header(space: Space, outcomes: Sequence[Outcome], budget: Budget) -> str:
    """The comments that open the shipped recipe, but for two of them: what is known of the values that won."""
    measured = ", ".join(f"{_decimals(value)} under {name}" for name, value in outcomes[0].top1.items())
    known = {
        "Expected": f"no score is known on the test split; on val top-1 {measured} (the best trial)",
        "Tuning": _account(space, outcomes, budget),
    }
    header = _opening(budget.shipped).rstrip() + "\n"
    for label, content in known.items():
        paragraph = textwrap.fill(
            f"# {label + ':':<10} {content}",
            _WIDTH,
            subsequent_indent=f"#{_COLUMN}",
            break_long_words=False,
            break_on_hyphens=False,
        )
        kept = re.split(rf"^# {label}:.*\n(?:#  +.*\n)*", header, maxsplit=1, flags=re.MULTILINE)
        header = f"{paragraph}\n".join(kept if len(kept) > 1 else [header, ""])
    return header.strip()


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
