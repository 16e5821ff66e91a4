"""A set of a million files: how long until the first batch, how much memory, how many images a second?

    python benchmarks/streaming.py --files 1000 10000 100000 1000000 --out streaming.json --markdown docs/scaling.md

Each size is a folder of so many names in ``--classes`` class folders, which are hard links to a few generated JPEGs of
500 x 375 pixels: what is measured is what the number of files costs, and not a disk, for the pictures stay in the
system's cache. The folder is deleted afterwards. Each size is measured in a fresh process, in seconds of a processor,
which other programs do not lengthen: listing the files; their fingerprint, first and then with the index that the first
left; the way to the first batch with two workers; and images a second of a worker's processor.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from augmentation import write_jpegs
from measure import (
    Document,
    Spread,
    check_targets,
    device_description,
    facts,
    footnote,
    markdown_table,
    peak_memory_mb,
    positive,
    processor_seconds,
    publish,
    resident_mb,
    run_script,
    shared_out_mb,
    take_turns,
)
from torch import Tensor

from twinbench.data.catalogue import load_image_set
from twinbench.data.folders import list_images
from twinbench.data.streaming import CropStream, StreamedImages
from twinbench.foundation.randomness import seeded_generator
from twinbench.pretraining.view_policies import asymmetric_views

_SIZE, _BATCH, _STEPS, _WORKERS = 224, 64, 4, 2
_LINKS = 50_000  # of one file; ext4 allows 65,000
_ORIGINALS = 32
_SETTLED = 11.0  # seconds; what was written just now is not kept in the index (`data.contents`)


def write_set(folder: Path, files: int, classes: int) -> None:
    """A training folder of so many names, spread over the classes, which are hard links to a few JPEGs."""
    originals = max(_ORIGINALS, -(-files // _LINKS))
    write_jpegs(folder / "originals", originals)
    sources = sorted((folder / "originals").rglob("*.jpg"))
    for place in range(min(classes, files)):
        inner = folder / "set" / "train" / f"class{place:04}"
        inner.mkdir(parents=True)
        for file in range(place, files, classes):
            os.link(sources[file % originals], inner / f"{file:08}.jpg")


class _Rows:
    """Random rows for a step."""

    def __init__(self, images: int) -> None:
        self.images = images

    def __call__(self, step: int) -> Tensor:
        return torch.randint(self.images, (_BATCH,), generator=seeded_generator(0, "order", step))


def measure(folder: str) -> Document:
    """Everything about the set in a folder, whose index of contents goes to the cache folder of the environment."""
    torch.set_num_threads(1)
    times, before = [time.process_time()], resident_mb()
    list_images(Path(folder))
    times.append(time.process_time())
    image_set = load_image_set(f"folder:{folder}", stream=True)
    images = image_set.split("train").images
    assert isinstance(images, StreamedImages)
    times.append(time.process_time())
    _ = image_set.fingerprint
    times.append(time.process_time())
    same = load_image_set(f"folder:{folder}", stream=True)
    started = time.process_time()
    _ = same.fingerprint
    again = time.process_time() - started
    held = resident_mb() - before
    return {
        "files": len(images) + len(image_set.split("val")),
        "listing": times[1] - times[0],
        "fingerprint": times[3] - times[2],
        "again": again,
        "held_mb": held,
        "peak_mb": peak_memory_mb(),
        **_first_batches(images),
    }


def _first_batches(images: StreamedImages) -> Document:
    """The stream's first steps: seconds of this process until the first batch, images a worker's second, memory."""
    policies = asymmetric_views(_SIZE, "pillow")
    rows, generator = _Rows(len(images)), partial(seeded_generator, 0, "views")
    started = time.process_time()
    batches = iter(CropStream(images, policies, rows, generator, 0, _STEPS, _WORKERS))
    next(batches)
    first = time.process_time() - started
    for _ in range(_STEPS - 1):
        next(batches)
    # every step is done, and the workers, who wait for more, are still there
    workers = [process.pid for process in multiprocessing.active_children() if process.pid]
    assert len(workers) == _WORKERS
    return {
        "first_batch": first,
        "images_per_second": _STEPS * _BATCH / sum(map(processor_seconds, workers)),
        "worker_mb": max(map(shared_out_mb, workers)),
    }


def measure_all(sizes: Sequence[int], classes: int, repetitions: int, place: Path | None) -> Document:
    """Measure every size; each folder is written, measured in fresh processes, and deleted."""
    rows = []
    for files in sizes:
        with tempfile.TemporaryDirectory(dir=place) as folder:
            started = time.process_time()
            write_set(Path(folder), files, classes)
            written = time.process_time() - started
            time.sleep(_SETTLED)
            jobs = [({"folder": str(Path(folder, "set"))}, {"XDG_CACHE_HOME": str(Path(folder, "cache"))})]
            (answers,) = take_turns(__file__, jobs, repetitions)
        rows.append({"files": files, "writing": written, "answers": answers})
    return {
        "facts": facts(),
        "device": device_description(),
        "repetitions": repetitions,
        "classes": classes,
        "rows": rows,
    }


def render(document: Document) -> str:
    """The table of a document, in Markdown."""
    keys = {
        "listing": 2,
        "fingerprint": 2,
        "again": 2,
        "first_batch": 2,
        "images_per_second": 0,
        "held_mb": 0,
        "worker_mb": 0,
    }
    lines = [
        [
            f"{row['files']:,}",
            *(Spread.of([answer[key] for answer in row["answers"]]).text(n) for key, n in keys.items()),
        ]
        for row in document["rows"]
    ]
    header = [
        "files", "listing, s", "fingerprint, s", "with the index, s", "first batch, s",
        "images a worker's second", "list and labels, MiB", "a worker, MiB",
    ]  # fmt: skip
    return (
        f"{document['classes']} classes, two views of {_SIZE} pixels, {document['repetitions']} repetitions.\n\n"
        f"{markdown_table(header, lines)}\n\n{footnote(document)}"
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--files", type=positive, nargs="+", default=[1000, 10_000, 100_000, 1_000_000], help="of each set"
    )
    parser.add_argument("--classes", type=positive, default=1000, help="folders (default %(default)s)")
    parser.add_argument("--repetitions", type=positive, default=1, help="of each size (default %(default)s)")
    parser.add_argument(
        "--folder", type=Path, help="where to make the sets (default: the system's temporary folder)"
    )
    parser.add_argument("--out", type=Path, help="write the measurements there as JSON")
    parser.add_argument("--markdown", type=Path, help="file whose block 'streaming' gets the table")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    """Measure one set in a fresh process, or make and measure all of them and print the table."""
    options = parse(sys.argv[1:])
    if options.job is not None:
        print(json.dumps(measure(json.loads(options.job)["folder"])))
        return
    check_targets("streaming", options.out, options.markdown)
    document = measure_all(options.files, options.classes, options.repetitions, options.folder)
    publish(document, render(document), "streaming", options.out, options.markdown)


if __name__ == "__main__":
    run_script(main)
