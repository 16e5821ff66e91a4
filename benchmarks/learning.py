"""What does a method learn in a second? kNN accuracy on validation images against seconds of training.

    python benchmarks/learning.py "backbone.width=16 epochs=12" "backbone.width=32 epochs=7"

Each argument is a variant: recipe keys that are set for every method, as ``--set`` does. A measurement is a process of
its own with one thread, which stops its clock while the features are looked at. The variants take turns, or run
side by side (``--at-once 2`` for two of them), as the workers of a study do. What a variant does not set is the
recipe's, and so may have been tuned for another network or length.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
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
    run_fresh,
    run_script,
)
from torch import Tensor

from twinbench.data.catalogue import load_image_set
from twinbench.data.image_sets import ImageSet
from twinbench.data.views import plain_views
from twinbench.downstream.knn import knn_scores
from twinbench.encoders.backbones import ResNet
from twinbench.harness.plugins import load_plugins
from twinbench.harness.recipes import load_recipe, parse_overrides
from twinbench.pretraining.build import build_method, resolve
from twinbench.pretraining.engine import Hardware, launch
from twinbench.pretraining.recipe import Recipe
from twinbench.pretraining.train import start_session

matplotlib.use("svg")
from matplotlib import pyplot as plt

_LOOKS = 4


@dataclass(frozen=True)
class Job:
    """One training: the recipe of a method with the keys of a variant, ``key=value`` each."""

    method: str
    variant: str
    seed: int
    image_set: str
    recipes: str
    data_root: str | None = None
    limit: int | None = None

    def images(self) -> ImageSet:
        """The images, read as the limit says."""
        limit = {"train": self.limit, "val": self.limit} if self.limit else None
        return load_image_set(self.image_set, Path(self.data_root) if self.data_root else None, limit=limit)

    def recipe(self, image_set: ImageSet) -> Recipe:
        """The method's recipe with the keys of the variant; raises InputError for a method or key that it has not."""
        overrides = parse_overrides(self.variant.split())
        recipe = load_recipe(self.recipes, self.method, image_set.name, overrides, self.seed)
        return resolve(recipe, image_set.image_size, image_set.fingerprint)


def measure(job: Job) -> Document:
    """Train once; seconds and kNN accuracy in percent after each quarter of the steps."""
    torch.set_num_threads(1)
    image_set = job.images()
    recipe = job.recipe(image_set)
    method = build_method(recipe)
    session = start_session(recipe, method, image_set, launch(Hardware(), recipe.precision))
    steps = session.batches.total_steps
    looks = {round(steps * (i + 1) / _LOOKS) for i in range(_LOOKS)}
    points, spent, started = [], 0.0, time.perf_counter()
    for step, batch in enumerate(session.batches.from_step(0)):
        session.gradients(batch, session.progress(step)).total.item()
        session.update(session.progress(step))
        if step + 1 in looks:
            spent += time.perf_counter() - started
            points.append({"seconds": spent, "knn": _knn(method.backbone, image_set)})
            method.train()
            started = time.perf_counter()
    return {"points": points, "images_per_second": steps * recipe.batch_size / spent}


@torch.no_grad()
def _knn(backbone: ResNet, image_set: ImageSet) -> float:
    """Top-1 in percent on ``val``, by the neighbours in ``train``, with the backbone as it is."""
    bank, labels = _features(backbone, image_set, "train")
    queries, truth = _features(backbone, image_set, "val")
    found = knn_scores(queries, bank, labels, len(image_set.classes)).argmax(dim=1)
    return 100 * float((found == truth).double().mean())


def _features(backbone: ResNet, image_set: ImageSet, split: str) -> tuple[Tensor, Tensor]:
    backbone.eval()
    images = image_set.split(split)
    rows = torch.arange(len(images))
    views = plain_views(
        images.images, rows, image_set.image_size, image_set.normalisation, torch.device("cpu")
    )
    return torch.cat([backbone(view) for view in views]), images.labels


def measure_all(jobs: Sequence[Job], at_once: int) -> Document:
    """Every job once, ``at_once`` at a time; jobs that differ in the variant alone follow each other."""
    rows = []
    for start in range(0, len(jobs), at_once):
        group = jobs[start : start + at_once]
        with ThreadPoolExecutor(at_once) as pool:
            answers = pool.map(lambda job: run_fresh(__file__, asdict(job), {"OMP_NUM_THREADS": "1"}), group)
            rows += [{**_shown(job), **found} for job, found in zip(group, answers, strict=True)]
        print(f"\r{len(rows)}/{len(jobs)} trainings", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    torch.set_num_threads(1)  # what the description of the device says
    return {"rows": rows, "at_once": at_once, "device": device_description(), "facts": facts()}


def _shown(job: Job) -> Document:
    """What others need to know of a job: not where the images lie here."""
    return {key: value for key, value in asdict(job).items() if key != "data_root"}


def render(document: Document) -> str:
    """A row for each method and variant: images a second, seconds and kNN in the end, over the seeds."""
    rows = []
    for method, variant, found in _groups(document):
        seconds = [row["points"][-1]["seconds"] for row in found]
        scores = [row["points"][-1]["knn"] for row in found]
        spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
        rates = [row["images_per_second"] for row in found]
        rows.append(
            [
                method,
                variant,
                f"{statistics.median(rates):.0f}",
                f"{statistics.median(seconds):.0f}",
                f"{statistics.mean(scores):.1f}{spread}",
            ]
        )
    seeds = len({row["seed"] for row in document["rows"]})
    setting = (
        f"kNN on val after training, {seeds} seeds: mean ± standard deviation; the median of speeds and seconds. "
        f"Trainings at a time: {document['at_once']}."
    )
    header = ["method", "variant", "images/s", "seconds", "kNN top-1"]
    return "\n\n".join([setting, markdown_table(header, rows), footnote(document)])


def draw(document: Document, path: Path) -> None:
    """A panel for each method: kNN against seconds, a line for each variant, a faint one for each seed."""
    groups = _groups(document)
    methods = list(dict.fromkeys(method for method, _, _ in groups))
    figure, axes = plt.subplots(
        1, len(methods), figsize=(2.6 * len(methods), 2.8), sharey=True, squeeze=False
    )
    colours = {
        variant: f"C{i}" for i, variant in enumerate(dict.fromkeys(variant for _, variant, _ in groups))
    }
    for method, variant, found in groups:
        panel = axes[0][methods.index(method)]
        panel.set_title(method)
        panel.set_xlabel("seconds of training")
        curves = [[(point["seconds"], point["knn"]) for point in row["points"]] for row in found]
        for curve in curves:
            panel.plot(*zip(*curve, strict=True), color=colours[variant], alpha=0.3, linewidth=1)
        mean = [
            [statistics.mean(values) for values in zip(*at, strict=True)] for at in zip(*curves, strict=True)
        ]
        panel.plot(*zip(*mean, strict=True), color=colours[variant], label=variant, marker="o", markersize=3)
    axes[0][0].set_ylabel("kNN top-1 on val (%)")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _groups(document: Document) -> list[tuple[str, str, list[Document]]]:
    """The rows of each method and variant, in the order of the document."""
    found: dict[tuple[str, str], list[Document]] = {}
    for row in document["rows"]:
        found.setdefault((row["method"], row["variant"]), []).append(row)
    return [(method, variant, rows) for (method, variant), rows in found.items()]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variants", nargs="*", help="recipe keys, e.g. 'backbone.width=32 epochs=7'")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--at-once", type=positive, default=1, help="trainings at a time, one thread each")
    parser.add_argument("--image-set", default="digit-scenes")
    parser.add_argument("--recipes", help="folder of recipes (default: that of the image set)")
    parser.add_argument("--data-root", help="as for twinbench run")
    parser.add_argument(
        "--limit", type=positive, help="the most images of train and of val, for a quick look"
    )
    parser.add_argument("--out", type=Path, help="JSON file for everything measured")
    parser.add_argument("--markdown", type=Path, help="file whose block 'learning' gets the table")
    parser.add_argument("--figure", type=Path, help="SVG file for the curves")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure one job if asked to by a parent process, else every method, variant and seed."""
    arguments = _arguments()
    load_plugins(warn=False)
    if arguments.job:
        print(json.dumps(measure(Job(**json.loads(arguments.job)))))
        return
    jobs = [
        Job(
            method=method,
            variant=variant,
            seed=seed,
            image_set=arguments.image_set,
            recipes=arguments.recipes or arguments.image_set,
            data_root=arguments.data_root,
            limit=arguments.limit,
        )
        for seed in range(arguments.seeds)
        for method in arguments.methods.split(",")
        for variant in arguments.variants or ["epochs=12"]
    ]
    check_targets("learning", arguments.out, arguments.markdown)
    image_set = jobs[0].images()
    for job in jobs:
        job.recipe(image_set)  # what is wrong with one is said before any is trained
    document = measure_all(jobs, arguments.at_once)
    publish(document, render(document), "learning", arguments.out, arguments.markdown)
    if arguments.figure is not None:
        arguments.figure.parent.mkdir(parents=True, exist_ok=True)
        draw(document, arguments.figure)


if __name__ == "__main__":
    run_script(main)
