"""What `twinbench tune` does: every method gets the same number of trials, measured on validation images.

A trial is a run like any other, in the usual run store: the recipe of its method with the values of one point of the
search space (`harness.search`), trained and measured on ``val-of:NAME`` (`data.validation`), whose test split is the
val of the real image set. Its score is the mean of two accuracies. `harness.trials` ranks the trials and writes
what came out.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinbench.data.image_sets import ImageSet
from twinbench.data.validation import VAL_OF
from twinbench.downstream.protocol import protocol
from twinbench.foundation.errors import InputError, RunFailure, unknown_name
from twinbench.harness.console import say
from twinbench.harness.estimate import first_of_kind
from twinbench.harness.execute import execute
from twinbench.harness.images import ImageChoice, Images
from twinbench.harness.plan import (
    Evaluation,
    Job,
    PlannedRun,
    agreed_on_corrupt_images,
    check_evaluations,
    jobs,
    load_training,
    plan_run,
)
from twinbench.harness.plugins import load_plugins
from twinbench.harness.recipes import (
    load_recipe,
    overlap,
    own_recipes,
    parse_overrides,
    recipe_folder_names,
)
from twinbench.harness.schedule import timetable, unfinished_runs
from twinbench.harness.search import Space, load_search, points, settings
from twinbench.harness.store import check_writable, prepare_store
from twinbench.harness.trials import (
    Budget,
    Outcome,
    Trial,
    check_installable,
    install,
    ranked,
    shipped_recipe,
    table_lines,
    write_outcome,
)
from twinbench.harness.watch import watched
from twinbench.harness.workers import (
    busy_workers,
    default_workers,
    estimated_use,
    execute_in_parallel,
)

PROTOCOLS = ("knn/cosine-v1", "linear/cached-v1")
"""What a trial is measured by; its score is the mean of their top-1."""


@dataclass(frozen=True)
class TuneRequest:
    """What `twinbench tune` is asked for.

    ``assignments`` (``key=value``) change all recipes, the winners too, but for the keys of the budget
    (`harness.trials.BUDGET_KEYS`), which are those of the trials alone. ``limits`` (``split=number``) cut splits of the
    image set that trials are measured on, for a smaller budget. ``recipe`` is a recipe folder, the image set's own
    unless given. ``write`` installs each winner with its log into that folder.
    """

    methods: tuple[str, ...]
    image_set: str
    trials: int
    recipe: str | None = None
    seed: int = 0
    assignments: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    data_root: Path | None = None
    runs: Path = Path("runs")
    out: Path | None = None
    workers: int | None = None
    write: bool = False
    dry_run: bool = False
    debug: bool = False

    @property
    def folder(self) -> str:
        """The recipe folder."""
        return self.recipe or own_recipes(self.image_set)

    def command(self, method: str) -> str:
        """The command line that tunes one of the methods again; folders are the reader's own."""
        kind, colon, _ = self.image_set.partition(":")
        images = f"{kind}:DIR" if colon else kind
        words = ["twinbench", "tune", method, "--image-set", images, "--trials", str(self.trials)]
        if self.recipe:
            words += ["--recipe", self.recipe if self.recipe in recipe_folder_names() else "DIR"]
        words += ["--seed", str(self.seed)] if self.seed else []
        words += [word for limit in self.limits for word in ("--limit", limit)]
        words += [word for assignment in self.assignments for word in ("--set", assignment)]
        return shlex.join(words) + (" --data-root DIR" if self.data_root else "")


def tune(request: TuneRequest) -> None:
    """Plan the trials, do what is missing, rank them, write the logs and the recipes that won.

    Raises RunFailure, when all is written, for trials that failed or were not run, and for a method without any score.
    """
    started = time.monotonic()
    load_plugins()
    spaces, overrides = _spaces(request), parse_overrides(request.assignments)
    images, choice = Images(request.data_root), _choice(request, overrides)
    trials = plan_trials(request, spaces, images, choice, overrides)
    plan = jobs([trial.planned for trial in trials], images)
    workers = 1 if request.debug else request.workers or default_workers(plan)
    if request.dry_run:
        busy = busy_workers(plan, workers)
        _print_plan(trials, plan, _estimated_seconds(plan, images, workers, busy), workers)
        return
    shipped = {method: shipped_recipe(request.folder, method) for method in request.methods}
    if request.write:
        check_installable(request.folder, shipped)
    out = request.out or Path("results") / _out_name(request, images[choice])
    prepare_store(request.runs)
    check_writable(out)
    missing = sum(not job.is_finished() for job in plan)
    say(
        f"{request.trials} trials of {', '.join(request.methods)} on {images[choice].name}: {len(plan)} jobs, "
        f"{len(plan) - missing} already finished, {workers} at a time"
    )
    tried = {
        method: [job.label for job in plan if job.run.source.method == method] for method in request.methods
    }
    with watched(tried, [job.label for job in plan if job.is_finished()]) as watch:
        if workers > 1 and missing:
            execute_in_parallel(plan, images, workers, watch, say, longest_first=False)
        else:
            execute(plan, images, watch, say, request.debug)
    say(f"done in {time.monotonic() - started:.0f} s")
    _conclude(request, spaces, trials, images, choice, shipped, out)


def _out_name(request: TuneRequest, image_set: ImageSet) -> str:
    """A folder for what recipes and images give together: neither shares it with others."""
    recipes = Path(request.folder).resolve().name
    return f"tune-{recipes}-{image_set.slug}-{image_set.fingerprint[:8]}"


def plan_trials(
    request: TuneRequest,
    spaces: dict[str, Space],
    images: Images,
    choice: ImageChoice,
    overrides: dict[str, Any],
) -> list[Trial]:
    """The trials, each checked before any work: the first of every method, then the second of every method.

    So the methods have had the same chance whenever the work is cut short.
    """
    evaluations = tuple(Evaluation(protocol(name), choice) for name in PROTOCOLS)
    check_evaluations(evaluations, images)
    load_training(images[choice])
    values = {m: points(space, m, request.seed, request.trials) for m, space in spaces.items()}
    trials = []
    for index in range(request.trials):
        for method, space in spaces.items():
            changes = {**overrides, **settings(space, values[method][index])}
            recipe = load_recipe(request.folder, method, choice.name, changes, request.seed)
            untuned = recipe.model_copy(update={"tuning": None})  # even at the values that won before
            run = plan_run(untuned, images[choice], request.runs)
            planned = PlannedRun(run, choice, evaluations, f"trial {index}")
            trials.append(Trial(method, index, values[method][index], planned))
    return trials


def _spaces(request: TuneRequest) -> dict[str, Space]:
    """The search space of each method; raises InputError for one that has none, and for ``--set`` of a searched key."""
    declared = load_search(request.folder)
    for method in request.methods:
        if method not in declared:
            raise unknown_name("method", method, declared, where=f"the search space of {request.folder}")
    spaces = {method: declared[method] for method in request.methods}
    searched = [
        (key, f"{name}, a dimension of {method} in {request.folder}")
        for method, space in spaces.items()
        for name, dimension in space.items()
        for key in dimension.templates
    ]
    for key in parse_overrides(request.assignments):
        for other, where in searched:
            if overlap(key, other):
                raise InputError(
                    f"--set {key} would fix a key that is searched",
                    where=where,
                    next_step="leave it out, or copy the recipe folder and take the dimension out of search.yaml",
                )
    return spaces


def _choice(request: TuneRequest, overrides: dict[str, Any]) -> ImageChoice:
    """The images of the trials: those of the set without its test split."""
    name = f"{VAL_OF}{request.image_set}"
    recipes = [load_recipe(request.folder, method, name, overrides) for method in request.methods]
    corrupt = agreed_on_corrupt_images(recipes, request.folder)
    return ImageChoice.of(name, _limits(request.limits), corrupt)


def _limits(limits: Sequence[str]) -> dict[str, int]:
    """``["train=2000"]`` as a mapping."""
    parsed = {}
    for text in limits:
        split, _, number = text.partition("=")
        if not number.isdecimal():
            raise InputError(
                f"cannot read --limit {text!r}", next_step="write it as split=number, e.g. --limit train=2000"
            )
        parsed[split] = int(number)
    return parsed


def _estimated_seconds(plan: Sequence[Job], images: Images, workers: int, busy: int) -> dict[str, float]:
    """The seconds of each unfinished job by its label: what the first such job of its method takes."""
    first = first_of_kind(plan)
    measured = {job.label: job for job in first.values()}
    use = estimated_use(list(measured.values()), images, workers, busy, say)
    return {label: use[job.label].seconds for label, job in first.items()}


def _print_plan(
    trials: Sequence[Trial], plan: Sequence[Job], seconds: dict[str, float], workers: int
) -> None:
    """The trials with their values, in the order in which they begin, and how long they take together."""
    runs = {jobs[0].run.folder: [seconds[job.label] for job in jobs] for jobs in unfinished_runs(plan, {})}
    for trial in trials:
        name = f"  {trial.method} trial {trial.index}"
        values = ", ".join(f"{dimension} {value}" for dimension, value in trial.values.items())
        left = runs.get(trial.planned.run.folder)
        print(f"{name}: {'finished' if left is None else f'about {sum(left):.0f} s'} ({values})")
    _, end = timetable(list(runs.values()), workers, longest_first=False)
    print(
        f"estimated time: {end / 60:.1f} min with {workers} at a time (from what earlier runs took, else a few real "
        f"steps of one trial a method timed {busy_workers(plan, workers)} at a time; nothing was written)"
    )


def _conclude(
    request: TuneRequest,
    spaces: dict[str, Space],
    trials: list[Trial],
    images: Images,
    choice: ImageChoice,
    shipped: dict[str, str],
    out: Path,
) -> None:
    """Print and write what came out for each method, and install it where nothing is wrong with it.

    Raises RunFailure for trials that failed or were not run, for a method without any score, and for one whose recipe
    (``shipped``) is no longer the one that the trials started from and would be written over.
    """
    wrong = []
    overrides, seen = parse_overrides(request.assignments), len(images[choice].split("train"))
    for method, space in spaces.items():
        outcomes = ranked([t for t in trials if t.method == method], images)
        print("\n".join([f"{method} on {images[choice].name}", *table_lines(outcomes)]))
        budget = Budget(request.command(method), request.seed, seen, shipped[method], overrides)
        files = write_outcome(out, space, outcomes, budget)
        found = _wrong(method, outcomes)
        if request.write and not found and shipped_recipe(request.folder, method) != shipped[method]:
            found = [f"the recipe of {method} has changed since the trials began"]
        if request.write and not found:
            files = install(request.folder, files)
        wrong += found
        print(f"{files}\n")
    if wrong:
        unwritten = " (nothing was written into the recipe folder for these)" if request.write else ""
        raise RunFailure(
            "; ".join(wrong) + unwritten,
            where=out,
            next_step="read the reasons in the logs, then correct the cause and run the same command again (what is "
            "finished is kept), or take values that cannot be trained out of search.yaml",
        )


def _wrong(method: str, outcomes: Sequence[Outcome]) -> list[str]:
    """Why the best of the trials is not the outcome of a whole search; nothing if it is."""
    lost = sum(not o.is_result for o in outcomes)
    found = [f"{lost} of {len(outcomes)} trials of {method} failed or were not run"] if lost else []
    return found + ([f"no trial of {method} has a score"] if outcomes[0].score is None else [])
