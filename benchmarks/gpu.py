"""What a GPU has to show, in one command of a few minutes: is it right, is it fast, does it learn?

    python benchmarks/gpu.py --data-root DIR

1. The tests marked ``gpu`` (tests/gpu): losses, views, trainings in every precision, resuming, evaluations, against the
   CPU.
2. Throughput of pretraining: ResNet-18 with the 3x3 stem at 32 pixels and ResNet-50 at 224, lightly's loop beside them
   where it is installed, once with torch.compile, and the roofs: the operations of a step over the rate of large matrix
   products, and its bytes over the rate of a large copy, both measured on the card.
3. With the time that is left, all six methods by the recipes of recipes/cifar10, for as many epochs as fit, measured by
   kNN and linear. ``--data-root`` holds CIFAR-10; without it the images are digit-scenes.

``--plan`` prints what would be done, how long it is expected to take, and what would be left out for want of time. What
was measured is written as soon as it is known, so an early end loses only what was going on. Without a GPU, or with
``--small``, everything happens at a small size, and the files say that their numbers mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from gpu_report import PROTOCOLS, publish
from measure import (
    METHODS,
    Document,
    chosen,
    device_description,
    facts,
    has_lightly,
    markdown_table,
    run_script,
    synchronise,
)
from throughput import DOCUMENTED_WORKERS, Job

from twinbench.data.catalogue import load_image_set
from twinbench.data.image_sets import ImageSet
from twinbench.downstream.protocol import protocol
from twinbench.encoders.encoder import Encoder
from twinbench.foundation.cores import usable_cores
from twinbench.foundation.errors import ExplainedError, InputError
from twinbench.harness.execute import evaluate_encoder
from twinbench.harness.plugins import load_plugins
from twinbench.harness.recipes import load_recipe, recipe_hash
from twinbench.pretraining.build import build_method, resolve
from twinbench.pretraining.engine import Hardware, launch
from twinbench.pretraining.memory import reset_peak_memory
from twinbench.pretraining.recipe import Recipe
from twinbench.pretraining.train import pretrain, start_session

HERE = Path(__file__).resolve().parent
PARTS = ("tests", "throughput", "training")

_KEPT = 20.0  # seconds for starting and for writing
_TRAINING_SHARE = 0.2  # of all the time, which the other parts may not use
_PATIENCE = 3  # a process is ended after so many times what it is expected to take
_TEST_WORKERS = 4
_CAUTION = 1.2  # a part may take so many times what was measured of it
_TINY: dict[str, Any] = {
    "backbone.name": "resnet10",
    "backbone.width": 8,
    "backbone.stem": "stride2",
    "batch_size": 64,
}


# Parts 1 and 2: what is run, each in a process of its own


@dataclass(frozen=True)
class Measurement:
    """A process to run: ``seconds`` is what it is expected to take, and it is ended after ``limit``.

    ``skipped`` says why it is not run whatever time is left, if so.
    """

    part: str
    title: str
    command: list[str]
    seconds: float
    limit: float
    environment: dict[str, str] = field(default_factory=dict)
    job: Job | None = None
    skipped: str = ""


@dataclass(frozen=True)
class Outcome:
    """The lines that a process printed, and why they are not all that it was to print, if so."""

    lines: list[str]
    trouble: str = ""
    seconds: float = 0.0

    def documents(self) -> list[Document]:
        """The lines that are JSON objects."""
        return [json.loads(line) for line in self.lines if line.startswith("{") and line.endswith("}")]


def run_process(command: Sequence[str], limit: float, environment: dict[str, str] | None = None) -> Outcome:
    """Run a command, and end it with its children after ``limit`` seconds: what it printed until then counts.

    It runs in the root of the repository, from which pytest names the tests.
    """
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            command,
            cwd=HERE.parent,
            env={**os.environ, **(environment or {})},
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        trouble = ""
        try:
            code = process.wait(timeout=max(limit, 0.1))
        except subprocess.TimeoutExpired:
            trouble, code = f"ended after {limit:.0f} s", 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        err.seek(0)
        if code != 0:
            trouble = f"exit code {code}: {err.read().strip()[-1500:]}"
        return Outcome(out.read().splitlines(), trouble, time.monotonic() - started)


def tests_measurement(small: bool) -> Measurement:
    """The tests of a GPU; at small size a few of them, rehearsed on the CPU."""
    # a warning of a version of torch that is new here must not hide what the card computes
    command = [sys.executable, "-m", "pytest", "-vv", "-W", "default", "-m", "gpu", "-p", "no:cacheprovider"]
    if small:
        command += [str(HERE.parent / "tests" / "gpu"), "-k", "sent_together or without_randomness"]
        return Measurement("tests", "tests", command, 30, 300, {"TWINBENCH_TEST_GPU": "cpu"})
    command.append(str(HERE.parent / "tests" / "gpu"))
    environment = {"TWINBENCH_TEST_GPU": "cuda"}
    with contextlib.suppress(ImportError):
        import xdist  # noqa: F401

        command += ["-n", str(_TEST_WORKERS), "--dist", "worksteal"]
        # each trains on the CPU too, to compare: with all cores for every worker they wait for each other
        environment["OMP_NUM_THREADS"] = str(max(1, usable_cores() // _TEST_WORKERS))
    return Measurement("tests", "tests", command, 90, 240, environment)


def throughput_measurements(small: bool) -> list[Measurement]:
    """Every row of the throughput table, those first that matter most."""
    base = Job("twinbench", "barlow_twins", "bf16", 512, warm_up=30, steps=120, planned=20_000)
    photos = replace(base, network="resnet50", size=224, batch_size=256, warm_up=8, steps=30)
    if small:
        base = replace(base, batch_size=8, warm_up=1, steps=1)
        photos = replace(photos, size=64, batch_size=4, warm_up=1, steps=1)
    # half the steps at 32 pixels, where lightly's take longer
    tuned = {"side": "lightly", "workers": 1 if small else usable_cores()}
    theirs = replace(base, **tuned, steps=max(1, base.steps // 2))
    documented = replace(theirs, precision="fp32", channels_last=False, workers=DOCUMENTED_WORKERS)
    missing = "" if has_lightly() else "the package lightly is not installed"
    too_long = "compiling takes longer than everything else at small size" if small else ""
    stood_for = "lightly tuned stands for it at small size" if small else ""
    rows = [
        _row("twinbench", base, 25),
        _row("twinbench", photos, 25),
        _row("roof", replace(base, side="roof"), 20),
        _row("roof", replace(photos, side="roof"), 20),
        _row("lightly tuned", theirs, 30, missing),
        _row("lightly tuned", replace(photos, **tuned), 35, missing),
        _row("twinbench", replace(base, batch_size=2 * base.batch_size), 25),
        _row("twinbench compiled", replace(base, compile=True), 55, too_long),
        _row("lightly as documented", documented, 30, missing or stood_for),
    ]
    return [replace(row, limit=300) for row in rows] if small else rows


def _row(name: str, job: Job, seconds: float, skipped: str = "") -> Measurement:
    command = [sys.executable, str(HERE / "throughput.py"), "--job", json.dumps(asdict(job))]
    limit = _PATIENCE * seconds
    return Measurement("throughput", name, command, seconds, limit, job=job, skipped=skipped)


_STATUS = "PASSED|FAILED|ERROR|SKIPPED"
_TEST_LINE = re.compile(rf"^(?:\[gw\d+\].*?({_STATUS}) (tests/.+?)|(tests/.+?) ({_STATUS}))(?:\s.*)?$")


def tests_found(lines: Sequence[str]) -> Document:
    """How many tests passed, failed and were skipped, and the names of those that failed, from pytest's lines."""
    outcomes: dict[str, str] = {}
    for line in lines:
        if match := _TEST_LINE.match(line.strip()):
            before, name_after, name_before, after = match.groups()
            outcomes[name_after or name_before] = before or after
    failed = sorted(name for name, outcome in outcomes.items() if outcome in ("FAILED", "ERROR"))
    counts = {status: list(outcomes.values()).count(status.upper()) for status in ("passed", "skipped")}
    return {**counts, "failed": failed}


# Part 3: all six methods, in a process that prints a line as soon as a method is measured


@dataclass(frozen=True)
class Comparison:
    """What the third part does: ``seconds`` are all that it may take; ``methods`` in this order."""

    data_root: str | None
    seconds: float
    small: bool
    methods: tuple[str, ...] = METHODS

    def images(self) -> ImageSet:
        """CIFAR-10, or digit-scenes without a data root; at small size a few of them."""
        limit = {"train": 256, "val": 32, "test": 64} if self.small else None
        name = "cifar10" if self.data_root else "digit-scenes"
        return load_image_set(name, Path(self.data_root) if self.data_root else None, limit=limit)

    def recipe(self, method: str, images: ImageSet, epochs: int) -> Recipe:
        """The method's recipe of recipes/cifar10, but for the epochs."""
        changes = {"epochs": epochs, **(_TINY if self.small else {})}
        return resolve(
            load_recipe("cifar10", method, images.name, changes), images.image_size, images.fingerprint
        )


def compare(plan: Comparison) -> Iterator[Document]:
    """A document for the images, one for the reference row and one for each method, as they become known."""
    ends = time.monotonic() + plan.seconds - _KEPT / 2
    load_plugins()
    images = plan.images()
    yield {"images": images.name, "train": len(images.split("train")), "test": len(images.split("test"))}
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        reference = plan.recipe("random_init", images, epochs=0)
        yield train_and_measure(reference, images, Path(folder, "random_init"), ends)
        measuring = time.monotonic() - started
        epoch = sum(epoch_seconds_if_any(plan.recipe(method, images, 1), images) for method in plan.methods)
        left = ends - time.monotonic() - _CAUTION * measuring * len(plan.methods)
        epochs = 1 if plan.small else max(1, int(left / (_CAUTION * epoch)))
        for method in plan.methods:
            yield train_and_measure(plan.recipe(method, images, epochs), images, Path(folder, method), ends)


def epoch_seconds(recipe: Recipe, images: ImageSet, steps: int = 12) -> float:
    """Seconds of an epoch, from a few steps after the first ones, which nobody waits for one by one."""
    longer = recipe.model_copy(update={"epochs": recipe.epochs + 2 * steps})
    session = start_session(longer, build_method(recipe), images, launch(Hardware(), recipe.precision))
    feed = session.batches.from_step(0)
    started = 0.0
    for step in range(2 * steps):
        if step == steps:
            synchronise()
            started = time.monotonic()
        session.gradients(next(feed), session.progress(step))
        session.update(session.progress(step))
    synchronise()
    return (time.monotonic() - started) / steps * session.batches.steps_per_epoch


def epoch_seconds_if_any(recipe: Recipe, images: ImageSet) -> float:
    """As `epoch_seconds`; 0 for a method that fails, with the reason in the error output."""
    try:
        return epoch_seconds(recipe, images)
    except Exception as error:
        print(f"{recipe.method} cannot be timed: {type(error).__name__}: {error}", file=sys.stderr)
        return 0.0
    finally:
        _free_memory()


class _TimeIsUp(Exception):
    """The time of this part has ended within a training."""


def train_and_measure(recipe: Recipe, images: ImageSet, folder: Path, ends: float) -> Document:
    """Train by the recipe and measure kNN and linear; at the moment ``ends`` a training stops, unmeasured.

    Whatever fails, for want of memory for example, becomes the row's status: the other methods go on.
    """
    row: Document = {"method": recipe.method, "epochs": recipe.epochs, "precision": recipe.precision}
    try:
        for found in _trained_and_measured(recipe, images, folder, ends):
            row |= found
    except Exception as error:
        kind = "" if isinstance(error, _TimeIsUp | ExplainedError) else f"{type(error).__name__}: "
        row["status"] = ("trained; then " if "seconds" in row else "") + kind + str(error)
    _free_memory()
    return row


def _trained_and_measured(recipe: Recipe, images: ImageSet, folder: Path, ends: float) -> Iterator[Document]:
    """What is known of a method, as it becomes known."""

    def report(fraction: float, text: str) -> None:
        if time.monotonic() > ends:
            raise _TimeIsUp(f"the time was up after {fraction:.0%} of the training")

    summary = pretrain(recipe, recipe_hash(recipe), images, folder, report)
    yield {
        "status": summary.status,
        "seconds": summary.seconds,
        "images_per_second": summary.images_per_second,
        "peak_memory_mb": summary.peak_memory_mb,
    }
    for name in PROTOCOLS:
        encoder = Encoder.load(folder / "encoder")
        evaluated = evaluate_encoder(
            encoder, protocol(name), images, recipe.seed, folder / "features", lambda fraction, text: None
        )
        yield {name: next(m["value"] for m in evaluated.record["measurements"] if m["metric"] == "top1")}


def _free_memory() -> None:
    """Nothing of one method is to be in the way of the next, or counted as its memory."""
    gc.collect()
    torch.cuda.empty_cache()
    reset_peak_memory()


# The whole run


@dataclass(frozen=True)
class Order:
    """What was asked for."""

    minutes: float
    small: bool
    parts: tuple[str, ...]
    data_root: str | None
    commit: str

    def measurements(self) -> list[Measurement]:
        """The processes of the first two parts."""
        wanted = [tests_measurement(self.small), *throughput_measurements(self.small)]
        return [one for one in wanted if one.part in self.parts]

    @property
    def kept_for_training(self) -> float:
        """Seconds that the first two parts may not use."""
        share = _TRAINING_SHARE if len(self.parts) > 1 else 1.0
        return share * 60 * self.minutes if "training" in self.parts else 0.0

    def room(self, spent: float) -> float:
        """Seconds that the first two parts have left after so many."""
        return 60 * self.minutes - _KEPT - self.kept_for_training - spent

    def reason_to_leave_out(self, one: Measurement, spent: float) -> str:
        """Why a measurement is not made when so many seconds are spent; empty if it is."""
        expected = f"{one.seconds:.0f} s expected, {max(self.room(spent), 0):.0f} left"
        return one.skipped or ("" if one.seconds <= self.room(spent) else expected)

    def comparison(self, seconds: float) -> Comparison:
        """The third part, with the seconds that are left for it."""
        return Comparison(self.data_root, seconds, self.small)


def plan_table(order: Order) -> str:
    """What would be done, in which order and for how long."""
    rows, spent = [], 0.0
    for one in order.measurements():
        reason = order.reason_to_leave_out(one, spent)
        spent += 0 if reason else one.seconds
        seconds = ["", f"left out: {reason}"] if reason else [f"{one.seconds:.0f}", f"{one.limit:.0f}"]
        rows.append([one.part, describe(one), *seconds])
    if "training" in order.parts:
        images = "CIFAR-10" if order.data_root else "digit-scenes, as there is no --data-root"
        what = f"{', '.join(METHODS)} on {images}: as many epochs as fit, then {' and '.join(PROTOCOLS)}"
        left = 60 * order.minutes - _KEPT - spent
        rows.append(["training", what, f"{max(left, 0):.0f}", "what is left"])
    size = "at small size, " if order.small else ""
    return (
        markdown_table(["part", "what", "seconds expected", "ended after"], rows)
        + f"\n\n{size}{order.minutes:g} minutes in all, {_KEPT:.0f} s of them for starting and writing"
    )


def describe(one: Measurement) -> str:
    """A measurement in words."""
    if one.job is None:
        return one.title
    job = one.job
    return f"{one.title}: {job.network} at {job.size} px, batch {job.batch_size}, {job.precision}"


def carry_out(order: Order, write: Callable[[Document], None], started: float) -> Document:
    """Do everything in the order of the plan; ``write`` gets the document whenever there is more in it."""
    document = new_document(order)
    for one in order.measurements():
        spent = time.monotonic() - started
        if reason := order.reason_to_leave_out(one, spent):
            document["left_out"].append(f"{describe(one)}: {reason}")
            continue
        print(f"{describe(one)} ...", file=sys.stderr, flush=True)
        add(document, one, run_process(one.command, min(one.limit, order.room(spent)), one.environment))
        write(document)
    if "training" in order.parts:
        plan = order.comparison(started + 60 * order.minutes - _KEPT - time.monotonic())
        print(f"six methods, {plan.seconds:.0f} s ...", file=sys.stderr, flush=True)
        command = [sys.executable, str(HERE / "gpu.py"), "--compare", json.dumps(asdict(plan))]
        add_training(document, run_process(command, plan.seconds))
        write(document)
    return document


def new_document(order: Order) -> Document:
    """The facts, and nothing measured yet."""
    known = facts()
    known["commit"] = order.commit or known["commit"]
    # it is no part of what another machine would type
    known["command"] = re.sub(r" --commit[ =]\S+", "", known["command"])
    return {
        "facts": known,
        "device": device_description(),
        "driver": driver(),
        "small": order.small,
        "minutes": order.minutes,
        "tests": None,
        "throughput": [],
        "training": None,
        "left_out": [],
    }


def driver() -> str:
    """The version of the GPU's driver, empty where there is none."""
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def add(document: Document, one: Measurement, outcome: Outcome) -> None:
    """Put what a process of the first two parts printed into the document."""
    if one.job is None:
        found = tests_found(outcome.lines)
        # pytest's exit code 1 says that tests failed, which their names say better, if there are any
        is_said = found["failed"] and outcome.trouble.startswith("exit code 1:")
        trouble = "" if is_said else outcome.trouble
        log = outcome.lines[-200:] if found["failed"] or trouble else []
        document["tests"] = {**found, "seconds": outcome.seconds, "log": log}
        if trouble:
            document["left_out"].append(f"{describe(one)}: {trouble}")
        return
    answers = outcome.documents()
    if outcome.trouble or not answers:
        document["left_out"].append(f"{describe(one)}: {outcome.trouble or 'no answer'}")
        return
    job = {key: value for key, value in asdict(one.job).items() if key != "data_root"}
    document["throughput"].append({"name": one.title, **job, **answers[-1], "seconds": outcome.seconds})


def add_training(document: Document, outcome: Outcome) -> None:
    """Put what the third part printed into the document."""
    found = outcome.documents()
    if outcome.trouble:
        document["left_out"].append(f"training: {outcome.trouble}")
    if found:
        document["training"] = {**found[0], "rows": found[1:], "seconds": outcome.seconds}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, help="folder that holds CIFAR-10 (default: digit-scenes)")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything (default: %(default)s)")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="a small size of everything, on any machine")
    parser.add_argument("--plan", action="store_true", help="print what would be done")
    parser.add_argument("--out", type=Path, default=HERE / "gpu", help="folder for <device>.json and .md")
    parser.add_argument("--commit", default="", help="the commit, for a copy of the files without .git")
    parser.add_argument("--compare", help=argparse.SUPPRESS)
    return parser.parse_args()


def _compare(asked: str) -> None:
    """Do the third part for a parent process, one JSON document a line."""
    out, values = sys.stdout, json.loads(asked)
    with contextlib.redirect_stdout(sys.stderr):
        for document in compare(Comparison(**{**values, "methods": tuple(values["methods"])})):
            print(json.dumps(document), file=out, flush=True)


def _order(arguments: argparse.Namespace) -> Order:
    """What was asked for; raises InputError for what will not do, before anything is measured."""
    if not arguments.minutes > 0:
        raise InputError(
            f"{arguments.minutes:g} minutes are none", where="--minutes", next_step="give more than 0"
        )
    order = Order(
        minutes=arguments.minutes,
        small=arguments.small or not torch.cuda.is_available(),
        parts=tuple(chosen("part", arguments.parts, PARTS)),
        data_root=str(arguments.data_root.resolve()) if arguments.data_root else None,
        commit=arguments.commit,
    )
    if order.data_root and not Path(order.data_root).is_dir():
        raise InputError(
            "there is no such folder", where=order.data_root, next_step="name the folder that holds CIFAR-10"
        )
    return order


def main() -> None:
    """Do one thing for a parent process, print the plan, or do everything."""
    started = time.monotonic()
    arguments = _arguments()
    if arguments.compare:
        _compare(arguments.compare)
        return
    order = _order(arguments)
    if arguments.plan:
        print(plan_table(order))
        return
    document = carry_out(order, lambda so_far: publish(so_far, arguments.out), started)
    print(publish(document, arguments.out).read_text())


if __name__ == "__main__":
    run_script(main)
