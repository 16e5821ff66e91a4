"""How many times faster is pretraining at one commit than at another?

    python benchmarks/compare_commits.py BASE [HEAD]     # HEAD is the commit checked out here unless given

Each side is a copy of its commit in a temporary folder and does `twinbench pretrain METHOD` by its own command line, as
one process with one thread. The sides take turns, and both train by the recipes of BASE, so that they do the same work:
what HEAD's own recipes, with another network or optimizer, gain or lose is not in the ratio. Each side has the images
of its own commit. What is compared are the images a second that a run writes into its status: the clock starts after
the first step.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
from measure import (
    METHODS,
    Document,
    Spread,
    check_targets,
    chosen,
    device_description,
    facts,
    markdown_table,
    positive,
    publish,
    run_script,
)

from twinbench.foundation.errors import InputError, RunFailure, unknown_name
from twinbench.foundation.files import machine_faults


@dataclass(frozen=True)
class Side:
    """One commit, its files in ``folder``, where Python finds its packages and which module has its ``main``."""

    commit: str
    folder: Path
    packages: Path
    main: str

    def images_per_second(self, method: str, recipes: Path, image_set: str, epochs: int) -> float:
        """Train ``method`` from nothing; raises RunFailure with the end of what it said if it fails."""
        arguments = ["pretrain", method, "--image-set", image_set, "--recipe", str(recipes)]
        arguments += ["--set", f"epochs={epochs}", "--set", "schedule.warmup_epochs=0"]
        code = f"import sys; sys.argv[0] = 'twinbench'; from {self.main} import main; main()"
        environment = {**os.environ, "PYTHONPATH": str(self.packages), "OMP_NUM_THREADS": "1"}
        with tempfile.TemporaryDirectory() as runs:
            done = subprocess.run(
                [sys.executable, "-c", code, *arguments, "--runs", runs],
                cwd=self.folder,
                env=environment,
                capture_output=True,
                text=True,
            )
            if done.returncode != 0:
                raise RunFailure(
                    f"{method} at {self.commit} ended with exit code {done.returncode}: {done.stderr[-2000:]}",
                    next_step="choose commits that both train by the recipes of the first",
                )
            (status,) = Path(runs).glob("*/status.json")
            return float(json.loads(status.read_text())["images_per_second"])


def check_out(commit: str, folder: Path) -> Side:
    """The files of a commit of this repository in ``folder``.

    Raises InputError if there is no such commit or it has no command ``twinbench``.
    """
    name = _git(commit, "rev-parse", "--verify", "--short=12", f"{commit}^{{commit}}").decode().strip()
    with tarfile.open(fileobj=BytesIO(_git(commit, "archive", name))) as archive:
        archive.extractall(folder, filter="data")
    project = folder / "pyproject.toml"
    document = tomllib.loads(project.read_text()) if project.exists() else {}
    main = document.get("project", {}).get("scripts", {}).get("twinbench", "").partition(":")[0]
    if not main:
        raise InputError(
            "this commit has no command twinbench", where=commit, next_step="name a later commit"
        )
    packages = folder / ".links"
    rooms = document.get("tool", {}).get("setuptools", {}).get("package-dir", {})
    for package, room in rooms.items():
        link = packages.joinpath(*package.split("."))
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder / room)
    return Side(name, folder, packages if rooms else folder, main)


def _git(commit: str, *arguments: str) -> bytes:
    with machine_faults("cannot run git", Path("git"), "install git"):
        done = subprocess.run(["git", *arguments], cwd=Path(__file__).parents[1], capture_output=True)
    if done.returncode != 0:
        raise InputError(
            f"git finds no commit {commit!r}: {done.stderr.decode().strip()}",
            where=Path(__file__).resolve().parents[1],
            next_step="name a commit of this repository; git log lists them",
        )
    return done.stdout


def require_recipes(side: Side, image_set: str, methods: Sequence[str]) -> Path:
    """The folder of the recipes that both sides train by; raises InputError if one of the methods has none there."""
    folders = sorted(path.name for path in (side.folder / "recipes").glob("*") if path.is_dir())
    if image_set not in folders:
        raise unknown_name("image set", image_set, folders, where=f"recipes of {side.commit}")
    recipes = side.folder / "recipes" / image_set
    chosen("recipe", ",".join(methods), sorted(path.stem for path in recipes.glob("*.yaml")))
    return recipes


def compare(
    sides: Sequence[Side], methods: Sequence[str], image_set: str, epochs: int, turns: int
) -> Document:
    """Train every method on both sides ``turns`` times; the second side goes first in every other turn."""
    rates: dict[str, dict[str, list[float]]] = {name: {"base": [], "head": []} for name in methods}
    recipes = require_recipes(sides[0], image_set, methods)
    named = list(zip(("base", "head"), sides, strict=True))
    for turn in range(turns):
        for method in methods:
            for name, side in named if turn % 2 == 0 else reversed(named):
                rate = side.images_per_second(method, recipes, image_set, epochs)
                rates[method][name].append(rate)
                print(
                    f"turn {turn + 1} of {turns}: {method} {side.commit} {rate:.0f} images/s", file=sys.stderr
                )
    commits = {name: side.commit for name, side in named}
    setting = {"image_set": image_set, "epochs": epochs, "turns": turns}
    return {"facts": facts(), "device": device_description(), **commits, **setting, "rates": rates}


def render(document: Document) -> str:
    """The document as Markdown: images a second and the ratio of medians, with the range of the turns."""
    rows = []
    for method, rates in document["rates"].items():
        base, head = Spread.of(rates["base"]), Spread.of(rates["head"])
        turns = [after / before for before, after in zip(rates["base"], rates["head"], strict=True)]
        ratio = f"{head.median / base.median:.2f} ({min(turns):.2f} to {max(turns):.2f})"
        rows.append([method, base.text(0), head.text(0), ratio])
    base, head = document["base"], document["head"]
    known = document["facts"]
    return "\n\n".join(
        [
            f"Images/s of pretraining on {document['image_set']} by the recipes of {base}, one thread, "
            f"{document['epochs']} epochs, {document['turns']} turns: median (lowest to highest); the ratio is of "
            "medians, its range that of the turns.",
            markdown_table(["method", base, head, "ratio"], rows),
            f"{document['device']}; {known['machine']}; Python {known['python']}, torch {known['torch']}; "
            f"{known['date']}; `{known['command']}`",
        ]
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", help="a commit, whose recipes both sides train by")
    parser.add_argument(
        "head", nargs="?", default="HEAD", help="the commit to compare it with (default: HEAD)"
    )
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated (default: %(default)s)")
    parser.add_argument(
        "--image-set", default="digit-scenes", help="and folder of recipes (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=positive, default=1, help="of each training (default: %(default)s)")
    parser.add_argument("--turns", type=positive, default=3, help="of each side (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file for everything measured")
    parser.add_argument("--markdown", type=Path, help="file whose block 'compare-commits' gets the table")
    return parser.parse_args()


def main() -> None:
    """Compare the two commits and print the table."""
    arguments = _arguments()
    methods = chosen("method", arguments.methods, METHODS)
    check_targets("compare-commits", arguments.out, arguments.markdown)
    torch.set_num_threads(1)  # what the description of the device says, as in the measurements
    with tempfile.TemporaryDirectory() as folder:
        sides = [
            check_out(commit, Path(folder) / name)
            for name, commit in (("base", arguments.base), ("head", arguments.head))
        ]
        document = compare(sides, methods, arguments.image_set, arguments.epochs, arguments.turns)
    publish(document, render(document), "compare-commits", arguments.out, arguments.markdown)


if __name__ == "__main__":
    run_script(main)
