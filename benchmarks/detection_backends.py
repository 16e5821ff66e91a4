"""Detection with Detectron2 and with torchvision on the same small data: AP and processor time, side by side.

Every encoder goes through the protocols with the schedule for CPUs (`downstream.detection.schedules.TINY`), seed after
seed. The libraries differ in their losses, sampling and alignment of regions, so equal numbers are not expected; what
should agree is the order of the encoders.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from measure import Document, device, device_description, facts, markdown_table, run_script

from data.image_sets import ImageSet, load_image_set
from downstream.features import FeatureStore
from downstream.protocol import EvaluationContext, protocol
from pretraining.encoder import Encoder

PROTOCOLS = ("detection/c4-detectron2-v1", "detection/c4-torchvision-v1")
METRICS = ("box_ap", "box_ap50", "box_ap75")


@dataclass(frozen=True)
class Row:
    """The measurements of one encoder under one protocol: a value for each seed in percent, CPU seconds a run."""

    encoder: str
    protocol: str
    values: dict[str, list[float]]
    seconds: list[float]


def main() -> None:
    """Measure, write the JSON document and the Markdown page."""
    arguments = _arguments()
    image_set = load_image_set(arguments.image_set, arguments.data_root)
    encoders = [Encoder.load(folder) for folder in arguments.encoders]
    rows = [measure(encoder, name, image_set, arguments.seeds) for encoder in encoders for name in PROTOCOLS]
    document: Document = {
        "facts": {**facts(), "command": _command(arguments), "detectron2": version("detectron2")},
        "device": device_description(),
        "image_set": arguments.title or image_set.name.partition(":")[0],
        "fingerprint": image_set.fingerprint,
        "images": {split: len(image_set.detection(split)) for split in ("train", "test")},
        "rows": [vars(row) for row in rows],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n")
    arguments.out.with_suffix(".md").write_text(page(document))


def measure(encoder: Encoder, name: str, image_set: ImageSet, seeds: int) -> Row:
    """Run one protocol for every seed from 0."""
    row = Row(encoder.info.method, name, {metric: [] for metric in METRICS}, [])
    for seed in range(seeds):
        context = EvaluationContext(image_set, FeatureStore(None), seed, device=device())
        started = time.process_time()
        found = {m.metric: m.value for m in protocol(name).evaluate(encoder, context)}
        row.seconds.append(time.process_time() - started)
        for metric in METRICS:
            row.values[metric].append(found[metric])
        print(
            f"{row.encoder} {name} seed {seed}: {found['box_ap']:.1f} AP, {row.seconds[-1]:.0f} s", flush=True
        )
    return row


def page(document: Document) -> str:
    """The document as a Markdown page: mean and standard deviation over the seeds."""
    known, images = document["facts"], document["images"]
    header = ("encoder", "protocol", "AP", "AP50", "AP75", "CPU s a run")
    table = markdown_table(header, [_cells(row) for row in document["rows"]])
    seeds = len(document["rows"][0]["seconds"])
    return (
        f"# Detection backends on {document['image_set']}\n\n"
        f"{images['train']} training and {images['test']} test images; mean ± standard deviation of {seeds} seeds; "
        "the protocols' schedule for CPUs. The rows of different protocols do not compare: they show how far apart the "
        "libraries are, and whether they put the encoders in the same order.\n\n"
        f"{table}\n\n"
        f"{document['device']}; Python {known['python']}, torch {known['torch']}, torchvision {known['torchvision']}, "
        f"Detectron2 {known['detectron2']}; {known['date']}; fingerprint of the image set "
        f"{document['fingerprint'][:12]}; `{known['command']}`.\n"
    )


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    def spread(values: list[float]) -> str:
        deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{deviation}"

    cells = [spread(row["values"][metric]) for metric in METRICS]
    return (row["encoder"], f"`{row['protocol']}`", *cells, f"{statistics.median(row['seconds']):.0f}")


def _command(arguments: argparse.Namespace) -> str:
    """The command as another machine would type it: where encoders, data and results lie is left open."""
    name, _, path = arguments.image_set.partition(":")
    shown = f"{name}:DIR" if path else name
    return (
        f"python {Path(__file__).name} ENCODER ... --image-set {shown} --seeds {arguments.seeds} --out FILE"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("encoders", nargs="+", type=Path, metavar="ENCODER", help="folders with encoder.json")
    parser.add_argument("--image-set", default="digit-scenes", help="an image set with annotated objects")
    parser.add_argument("--title", help="what the page calls the image set")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="the path of the documents, without ending")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
