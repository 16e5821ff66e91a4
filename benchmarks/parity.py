"""Do our methods train as their authors' code does? From the same weights on the same views, step for step, in fp64.

    python benchmarks/parity.py --official DIR --interpreter simclr=PATH --interpreter byol=PATH

DIR holds clones of the authors' repositories, made by you; nothing is downloaded, and what is missing is named with
the command that gets it. Their code is run on this machine, so look at what you clone. For each method their own
program trains for some steps on prepared views, and the weights it began with are copied into ours, which trains by
the functions of `twinbench.pretraining.train`. Compared are the loss and the learning rate of every step and the
weights after the last. docs/parity.md is the result, with what had to be set so that both do the same, and where our
recipes differ on purpose.

SimCLR's code needs TensorFlow and BYOL's JAX, which run in interpreters of yours: for SimCLR one with `tensorflow`,
`tf-keras` and `absl-py`, for BYOL one with `jax`, `dm-haiku`, `optax` and `dm-tree`. Without one the page says that
the method was not compared. ``--keep FILE`` keeps each comparison as it ends, and a second call goes on from there.
Exit code 1 if a method does not agree.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import (
    METHODS,
    chosen,
    device_description,
    facts,
    footnote,
    markdown_table,
    positive,
    run_script,
    without_folders,
)
from parity_methods import BATCH, SUBJECTS, Clone, Subject, translated
from parity_ours import Trajectory

from twinbench.foundation.errors import InputError, RunFailure, nearest_name, unknown_name
from twinbench.foundation.files import write_atomically
from twinbench.harness.environment import environment
from twinbench.harness.plugins import load_plugins

_HERE = Path(__file__).resolve().parent
PAGE = _HERE.parent / "docs" / "parity.md"

BAR = 1e-8
"""The largest relative difference with which a comparison still agrees.

fp64 rounds at 1e-16, and some dozens of steps through batch norm multiply that, by up to a million in what was
measured.
"""
STEPS = 30
_FEWEST_STEPS = 12  # the longest warm-up has ten
_STILL = 1e-3
"""Tensors that move less than this share of the median one are compared on this scale: rounding alone moves some."""


@dataclass(frozen=True)
class Differences:
    """The largest relative differences of two trainings."""

    loss: float
    weights: float
    rate: float

    @property
    def agree(self) -> bool:
        """Whether all are below the bar; NaN is not."""
        return all(value <= BAR for value in (self.loss, self.weights, self.rate))


def differences(theirs: Trajectory, ours: Trajectory) -> Differences:
    """How far two trainings with the same names of weights are from each other.

    Loss and learning rate: the largest difference at any step, relative to the largest value. Weights: for each tensor
    of ``theirs.final`` the largest difference of an element, relative to the farthest that any of its elements moved;
    the largest of these.
    """
    moves = {
        name: _largest(after - theirs.initial[name])
        for name, after in theirs.final.items()
        if after.dtype.kind == "f"
    }
    still = _STILL * float(np.median(list(moves.values())))
    weights = []
    for name, after in theirs.final.items():
        apart = _largest(after - ours.final[name])
        # a position in a queue is the same or it is not
        weights.append(apart / max(moves[name], still) if name in moves else apart * np.inf if apart else 0.0)
    return Differences(
        loss=_relative(theirs.losses, ours.losses),
        weights=float(np.max(weights)),
        rate=_relative(theirs.rates, ours.rates),
    )


def _relative(theirs: np.ndarray, ours: np.ndarray) -> float:
    return _largest(theirs - ours) / _largest(theirs)


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max())


@dataclass(frozen=True)
class Row:
    """One comparison; ``commits`` of the clones by folder, ``ours`` of this repository (empty outside a checkout)."""

    method: str
    processes: int
    steps: int
    commits: dict[str, str]
    ours: str
    first_loss: float
    last_loss: float
    loss: float
    weights: float
    rate: float
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def differences(self) -> Differences:
        """What was found."""
        return Differences(self.loss, self.weights, self.rate)

    def answers(self, asked: Row) -> bool:
        """Whether this is what another row asks for, and our code has not changed since."""
        parts = ("method", "processes", "steps", "commits")
        return all(getattr(self, part) == getattr(asked, part) for part in parts) and _is_unchanged(self.ours)


_COMPUTES = ("foundation", "data", "encoders", "pretraining", "baselines", "benchmarks/parity_*.py")


@cache
def _is_unchanged(commit: str) -> bool:
    """Whether what computes in this checkout is as it was in a commit of ours."""
    if not commit or commit.endswith("+changes"):
        return False
    command = ["git", "diff", "--quiet", commit, "--", *_COMPUTES]
    return subprocess.run(command, cwd=_HERE.parent, capture_output=True).returncode == 0


def check_clones(official: Path, methods: Sequence[str]) -> None:
    """Raise InputError for the first clone that is not there, or has not the files that are run."""
    if not official.is_dir():
        raise InputError(
            "no such folder",
            where=official,
            next_step="name the folder that your clones of the authors' repositories are in",
            option="official",
        )
    for method in methods:
        for clone in SUBJECTS[method].clones:
            _check_clone(official, clone, SUBJECTS[method])


def _check_clone(official: Path, clone: Clone, subject: Subject) -> None:
    folder = official / clone.folder
    if not folder.is_dir():
        there = [path.name for path in official.iterdir() if path.is_dir()]
        raise InputError(
            f"{subject.title} needs a clone in a folder named {clone.folder}",
            where=official,
            nearest=nearest_name(clone.folder, there),
            next_step=clone.command(official),
        )
    missing = [name for name in clone.files if not (folder / name).is_file()]
    if missing:
        checkout = f"git -C {folder} checkout {clone.commit}" if clone.commit else clone.command(official)
        raise InputError(
            f"this clone has no {', '.join(missing)}",
            where=folder,
            next_step=f"{checkout} ({subject.title})",
        )


def commit_of(folder: Path, files: Sequence[str]) -> str:
    """The commit of a clone, with ``+changes`` where the files that are run are not those of the commit."""
    status = _git(folder, "status", "--porcelain", "--", *{name.partition("/")[0] for name in files})
    return _git(folder, "rev-parse", "--short=12", "HEAD") + ("+changes" if status else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise InputError(
            f"git cannot tell its commit: {done.stderr.strip()}",
            where=folder,
            next_step="make it a clone, whose commit the page can name",
        )
    return done.stdout.strip()


def compare(official: Path, method: str, processes: int, steps: int, interpreter: str | None = None) -> Row:
    """Run both sides of one comparison, each in fresh processes. Raises RunFailure if one of them fails."""
    subject = SUBJECTS[method]
    with tempfile.TemporaryDirectory(prefix="twinbench-parity-") as folder:
        job = {
            "method": method,
            "official": str(official.resolve()),
            "processes": processes,
            "steps": steps,
            "epochs": steps // subject.steps_per_epoch,
            "steps_per_epoch": subject.steps_per_epoch,
            "batch": BATCH,
            "sizes": subject.sizes,
            "theirs": f"{folder}/theirs.npz",
            "ours": f"{folder}/ours.npz",
            **subject.settings,
        }
        if subject.runner is None:
            _torchrun(processes, "parity_theirs.py", job)
            versions = {}
        else:
            said = _run([str(interpreter), str(_HERE / subject.runner), json.dumps(job)], job)
            versions = json.loads(said.strip().splitlines()[-1])
        _torchrun(processes, "parity_ours.py", job)
        theirs, ours = Trajectory.load(Path(job["theirs"])), Trajectory.load(Path(job["ours"]))
    return _row(official, method, processes, theirs, ours, versions)


def _row(
    official: Path,
    method: str,
    processes: int,
    theirs: Trajectory,
    ours: Trajectory,
    versions: dict[str, str],
) -> Row:
    for name, recorded in (("losses", theirs.losses), ("rates", theirs.rates)):
        if len(recorded) != len(ours.losses):
            raise RunFailure(
                f"{len(recorded)} {name} were recorded in {len(ours.losses)} steps", where=method
            )
    found = differences(_as_ours(SUBJECTS[method], theirs, ours, processes), ours)
    ends = {"first_loss": float(theirs.losses[0]), "last_loss": float(theirs.losses[-1])}
    asked = _question(official, method, processes, len(ours.losses))
    return replace(asked, versions=versions, **ends, **asdict(found))


def _question(official: Path, method: str, processes: int, steps: int) -> Row:
    """A row that has nothing measured yet."""
    commits = {
        clone.folder: commit_of(official / clone.folder, clone.files) for clone in SUBJECTS[method].clones
    }
    nothing = dict.fromkeys(("first_loss", "last_loss", "loss", "weights", "rate"), float("nan"))
    return Row(method, processes, steps, commits, environment()["commit"], **nothing)


def _as_ours(subject: Subject, theirs: Trajectory, ours: Trajectory, processes: int) -> Trajectory:
    """The authors' trajectory under our names, without what is not compared."""
    shapes = {name: array.shape for name, array in ours.final.items()}
    initial, final = (translated(subject, weights, shapes) for weights in (theirs.initial, theirs.final))
    apart = subject.not_shared if processes > 1 else "(?!)"
    kept = [name for name in final if not re.search(apart, name)]
    return Trajectory(
        theirs.losses,
        theirs.rates,
        {name: initial[name] for name in kept},
        {name: final[name] for name in kept},
    )


def _torchrun(processes: int, script: str, job: Mapping[str, Any]) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    _run([*launcher, f"--nproc-per-node={processes}", str(_HERE / script), json.dumps(job)], job, ours=True)


def _run(command: list[str], job: Mapping[str, Any], ours: bool = False) -> str:
    """What a command prints, on a CPU with one thread for each process, out of any SLURM job."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    if not ours:
        kept.pop("PYTHONPATH", None)  # it is meant for this interpreter
    # Fabric asks torch to count GPUs by a function that the authors' side replaces: none is to be found
    kept.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    environment = kept | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RunFailure(
            f"{Path(command[-2]).name} ended with exit code {done.returncode}: {done.stderr.strip()[-3000:]}",
            where=f"{job['method']} on {job['processes']} process(es)",
            next_step="the first error in this text is the cause; the clone's commit may be too old or too new",
        )
    return done.stdout


def page(rows: Sequence[Row], not_compared: Sequence[str], document: Mapping[str, Any]) -> str:
    """The page: a table, how its numbers are made, and the notes on each method in it."""
    methods = [method for method in METHODS if method in {*not_compared, *(row.method for row in rows)}]
    lines = [_cells(row) for method in methods for row in rows if row.method == method]
    lines += [[SUBJECTS[m].title, *[""] * 7, "not compared: no interpreter given"] for m in not_compared]
    packages = sorted({f"{name} {found}" for row in rows for name, found in row.versions.items()})
    beside = f"; in the authors' interpreters {', '.join(packages)}" if packages else ""
    return f"""# Parity with the authors' code

Generated by `benchmarks/parity.py`, which trains each method twice in fp64: by the authors' own code, from a clone of
their repository, and by ours from a copy of the weights that theirs began with, on the same views. The columns loss,
weights and learning rate are the largest relative differences.

{markdown_table(_HEADER, lines)}

{footnote(dict(document))}{beside}

- *Loss* and *learning rate*: the largest difference at any step, relative to the largest value.
- *Weights*: after the last step, for each tensor the largest difference of an element, relative to the farthest that
  any of its elements moved (or to {_STILL:g} of this of the median tensor, if that is more), and the largest of
  these. Momentum encoders, queues and the running statistics of batch norm are among them where nothing else is said
  below.
- A comparison *agrees* if all three are at most {BAR:g}. fp64 rounds at 1e-16, and every step passes on what those
  before it have rounded.

{_notes({"What is set for all", *(SUBJECTS[method].title for method in methods)})}"""


_HEADER = (
    "method",
    "processes",
    "authors' commit",
    "steps",
    "their loss, first and last",
    "loss",
    "weights",
    "learning rate",
    "verdict",
)


def _cells(row: Row) -> list[str]:
    found = row.differences
    return [
        SUBJECTS[row.method].title,
        str(row.processes),
        ", ".join(f"{folder} {commit}" for folder, commit in row.commits.items()),
        str(row.steps),
        f"{row.first_loss:.3g}, {row.last_loss:.3g}",
        *(f"{value:.1e}" if value else "0" for value in (found.loss, found.weights, found.rate)),
        "agrees" if found.agree else "**does not agree**",
    ]


def _notes(headings: Container[str]) -> str:
    """The sections of parity_notes.md under these headings."""
    sections = (_HERE / "parity_notes.md").read_text(encoding="utf-8").split("## ")[1:]
    return "## ".join(["", *(text for text in sections if text.partition("\n")[0] in headings)])


def _interpreters(options: Sequence[str]) -> dict[str, str]:
    """``NAME=PATH`` of the methods that need an interpreter; raises InputError for anything else."""
    known = [method for method, subject in SUBJECTS.items() if subject.runner is not None]
    found = {}
    for option in options:
        name, equals, path = option.partition("=")
        if name not in known:
            raise unknown_name("method with an interpreter of its own", name, known, where="--interpreter")
        if not equals or not Path(path).is_file():
            raise InputError(
                f"no interpreter at {path!r}",
                where="--interpreter",
                next_step=f"write {name}=PATH, PATH being a python that can import what its authors' code needs",
            )
        found[name] = path
    return found


def _even(text: str) -> int:
    """The type of ``--steps``."""
    value = positive(text)
    if value % 2 or value < _FEWEST_STEPS:
        raise argparse.ArgumentTypeError(f"must be even and {_FEWEST_STEPS} or more, not {value}")
    return value


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--official", type=Path, required=True, metavar="DIR", help="the folder of your clones"
    )
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated [default: all]")
    parser.add_argument(
        "--interpreter", action="append", default=[], metavar="METHOD=PATH", help="of simclr and byol"
    )
    parser.add_argument(
        "--processes", default="1,2", help="numbers of processes, where torch trains [default: 1,2]"
    )
    parser.add_argument("--steps", type=_even, default=STEPS, help=f"[default: {STEPS}]")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="finished comparisons, a JSON line each")
    parser.add_argument(
        "--out", type=Path, default=PAGE, metavar="FILE", help="the page [default: docs/parity.md]"
    )
    return parser.parse_args()


def _kept(path: Path | None) -> list[Row]:
    if path is None or not path.exists():
        return []
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()]


def _processes_of(subject: Subject, numbers: Sequence[str]) -> list[int]:
    """On how many processes to compare; a method whose code is not in torch has no choice."""
    return [n for n in subject.processes if str(n) in numbers or len(subject.processes) == 1]


def _compared(asked: Row, arguments: argparse.Namespace, interpreters: Mapping[str, str]) -> Row:
    """The answer, kept if asked to."""
    print(f"{SUBJECTS[asked.method].title} on {asked.processes} process(es) ...", file=sys.stderr, flush=True)
    interpreter = interpreters.get(asked.method)
    row = compare(arguments.official, asked.method, asked.processes, asked.steps, interpreter)
    if arguments.keep is not None:
        with arguments.keep.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
    return row


def main() -> None:
    """Compare what is chosen, write the page, and end with 1 if something does not agree."""
    arguments = _arguments()
    methods = chosen("method", arguments.methods, METHODS)
    numbers = chosen("number of processes", arguments.processes, ("1", "2"))
    interpreters = _interpreters(arguments.interpreter)
    if arguments.out.is_dir():
        raise InputError("this is a folder", where=arguments.out, next_step="name a file in it")
    check_clones(arguments.official, methods)
    load_plugins()
    torch.set_num_threads(1)
    rows, kept = [], _kept(arguments.keep)
    not_compared = [m for m in methods if SUBJECTS[m].runner is not None and m not in interpreters]
    for method in (method for method in methods if method not in not_compared):
        for processes in _processes_of(SUBJECTS[method], numbers):
            asked = _question(arguments.official, method, processes, arguments.steps)
            row = next((row for row in kept if row.answers(asked)), None)
            rows.append(row or _compared(asked, arguments, interpreters))
    text = without_folders(page(rows, not_compared, {"facts": facts(), "device": device_description()}))
    print(text)
    write_atomically(arguments.out, text.encode())
    if not all(row.differences.agree for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
