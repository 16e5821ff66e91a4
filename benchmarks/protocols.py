"""How long each evaluation protocol of a study takes, and where the time goes.

Every measurement is a fresh process, as a worker of a study is, with one thread by default. It reads as many images as
the study does. Without ``--encoder`` the
backbone of the study's recipes is evaluated as it is initialised: what is computed hardly depends on the weights
(a detector that finds nothing saves a little in its masks and in the average precision). For the times of an earlier
version run this file with that version on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from measure import (
    Document,
    Spread,
    check_targets,
    device_description,
    facts,
    footnote,
    markdown_table,
    positive,
    publish,
    run_script,
    take_turns,
)
from torch import Tensor

from twinbench.data.catalogue import load_image_set
from twinbench.data.image_sets import ImageSet
from twinbench.downstream.features import FeatureStore
from twinbench.downstream.protocol import EvaluationContext, protocol
from twinbench.encoders.encoder import Encoder, EncoderInfo
from twinbench.harness.plugins import load_plugins
from twinbench.harness.recipes import load_recipe
from twinbench.harness.studies import Study, load_study
from twinbench.pretraining.build import build_method, resolve


@dataclass(frozen=True)
class Job:
    """One evaluation. ``limit`` maps splits to the most images of each; ``encoder`` may be empty."""

    protocol: str
    image_set: str
    recipes: str
    encoder: str = ""
    threads: int = 1
    data_root: str | None = None
    limit: dict[str, int] = field(default_factory=dict)


class TimedStore(FeatureStore):
    """A feature store in memory that knows how many seconds the features took."""

    def __init__(self) -> None:
        super().__init__(None)
        self.seconds = 0.0

    def get(self, encoder: Encoder, image_set: ImageSet, split: str) -> tuple[Tensor, Tensor]:
        """`FeatureStore.get`, timed."""
        started = time.perf_counter()
        found = super().get(encoder, image_set, split)
        self.seconds += time.perf_counter() - started
        return found


def measure(job: Job) -> Document:
    """Evaluate once, and say how many seconds each part took: ``processor_seconds`` are of all threads together.

    ``reading`` is the image set, ``features`` the frozen ones, and ``evaluation`` the whole of the protocol's part,
    features included.
    """
    torch.set_num_threads(job.threads)
    chosen = protocol(job.protocol)
    started = time.perf_counter()
    image_set = load_image_set(
        job.image_set, Path(job.data_root) if job.data_root else None, limit=job.limit or None
    )
    of_split = image_set.detection if chosen.needs == "detection" else image_set.split
    for split in ("train", "test") if chosen.needs == "detection" else ("train", "val", "test"):
        of_split(split)
    reading = time.perf_counter() - started
    encoder = Encoder.load(Path(job.encoder)) if job.encoder else untrained_encoder(job.recipes, image_set)
    store = TimedStore()
    context = EvaluationContext(image_set, store)
    started, used = time.perf_counter(), time.process_time()
    measurements = chosen.evaluate(encoder, context)
    return {
        "reading": reading,
        "features": store.seconds,
        "evaluation": time.perf_counter() - started,
        "processor_seconds": time.process_time() - used,
        "measurements": {m.metric: m.value for m in measurements},
    }


def untrained_encoder(recipes: str, image_set: ImageSet) -> Encoder:
    """The backbone of a folder's recipe ``random_init``, as it is initialised."""
    recipe = load_recipe(recipes, "random_init", image_set.name, {})
    recipe = resolve(recipe, image_set.image_size, image_set.fingerprint)
    backbone = build_method(recipe).backbone
    info = EncoderInfo(
        architecture=recipe.backbone.name,
        width=recipe.backbone.width,
        stem=recipe.backbone.stem,
        feature_dim=backbone.feature_dim,
        input_size=image_set.image_size,
        mean=image_set.normalisation.mean,
        std=image_set.normalisation.std,
        method=recipe.method,
        recipe_hash="none",
    )
    return Encoder(backbone, info, checksum="untrained")


def jobs_of(study: Study, names: Sequence[str], most: int | None, shared: Document) -> list[Job]:
    """The evaluations of the named protocols, or of all of the study, on its images.

    Not more than ``most`` of a split if it is given, else as many as the study reads: a set that it only measures on is
    never cut. ``shared`` are the values of a `Job` that all have in common. Raises InputError for an unknown protocol.
    """
    wanted = [protocol(name).name for name in names]
    cut = dict.fromkeys(("train", "val", "test"), most) if most else None
    found: dict[tuple[str, str], Job] = {}
    for table in study.tables:
        for name, elsewhere in table.measured:
            if wanted and name not in wanted:
                continue
            images = elsewhere or table.image_set
            limit = cut or ({} if elsewhere else table.limit)
            job = Job(protocol=name, image_set=images, recipes=table.recipes, limit=limit, **shared)
            found.setdefault((name, images), job)
    return list(found.values())


def measure_all(jobs: Sequence[Job], repetitions: int) -> Document:
    """Every job so many times, taking turns."""
    environment = {"OMP_NUM_THREADS": str(jobs[0].threads)}
    answers = take_turns(__file__, [(asdict(job), environment) for job in jobs], repetitions)
    rows = [{"protocol": job.protocol, "answers": found} for job, found in zip(jobs, answers, strict=True)]
    torch.set_num_threads(jobs[0].threads)  # what the description of the device says
    return {
        "rows": rows,
        "repetitions": repetitions,
        "limit": jobs[0].limit,
        "encoder": "given" if jobs[0].encoder else "untrained",
        "device": device_description(),
        "facts": facts(),
    }


def render(document: Document) -> str:
    """The table of a document of `measure_all`, with the sum of the medians in the last row."""
    parts = ("evaluation", "processor_seconds", "features", "reading")
    rows, sums = [], dict.fromkeys(parts, 0.0)
    for row in document["rows"]:
        spreads = {part: Spread.of([answer[part] for answer in row["answers"]]) for part in parts}
        for part, spread in spreads.items():
            sums[part] += spread.median
        rows.append([row["protocol"], *(spread.text() for spread in spreads.values())])
    rows.append(["sum", *(f"{total:.1f}" for total in sums.values())])
    header = ["protocol", "seconds", "of a processor", "of them features", "reading the images"]
    limit = "".join(f", at most {n:,} images of {split}" for split, n in document["limit"].items())
    repetitions = f"{document['repetitions']} repetitions: median (lowest to highest)"
    setting = f"Encoder {document['encoder']}{limit}, {repetitions}."
    return "\n\n".join([setting, markdown_table(header, rows), footnote(document)])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--study", default="quick", help="whose protocols, images and recipes (default: quick)"
    )
    parser.add_argument("--protocols", help="comma-separated (default: all of the study)")
    parser.add_argument(
        "--encoder", default="", help="folder of a trained encoder (default: an untrained one)"
    )
    parser.add_argument("--data-root", help="as for twinbench run")
    parser.add_argument("--threads", type=positive, default=1, help="of each process (default: 1)")
    parser.add_argument(
        "--limit",
        type=positive,
        help="the most images of each split, for a quick look (default: the study's)",
    )
    parser.add_argument(
        "--repetitions", type=positive, default=3, help="measurements of each row, taking turns"
    )
    parser.add_argument("--out", type=Path, help="JSON file for everything measured")
    parser.add_argument("--markdown", type=Path, help="file whose block 'protocols' gets the table")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure one job if asked to by a parent process, else every protocol."""
    arguments = _arguments()
    load_plugins(warn=False)
    if arguments.job:
        print(json.dumps(measure(Job(**json.loads(arguments.job)))))
        return
    names = arguments.protocols.split(",") if arguments.protocols else []
    shared = {
        "encoder": arguments.encoder,
        "threads": arguments.threads,
        "data_root": arguments.data_root,
    }
    jobs = jobs_of(load_study(arguments.study), names, arguments.limit, shared)
    check_targets("protocols", arguments.out, arguments.markdown)
    if arguments.encoder:
        Encoder.load(Path(arguments.encoder))  # what is wrong with it is said before anything is measured
    document = measure_all(jobs, arguments.repetitions)
    publish(document, render(document), "protocols", arguments.out, arguments.markdown)


if __name__ == "__main__":
    run_script(main)
