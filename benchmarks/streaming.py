"""A set of a million files: how long until the first batch, how much memory, how many images a second?

    python benchmarks/streaming.py --files 1000 10000 100000 1000000 --out streaming.json --markdown docs/scaling.md

Each size is made twice, in ``--classes`` classes: as a folder of names, which are hard links to a few generated JPEGs
of 500 x 375 pixels, and as tar files, the shards of WebDataset, whose members are as large as these JPEGs. The tar
files are sparse: they have every header and the pictures that will be read, and holes for the others. So what is
measured is what the number of files costs, and not a disk, for everything stays in the system's cache. The sets are
deleted afterwards.

Each is measured in a fresh process, in seconds of a processor, which other programs do not lengthen: listing the files,
of shards with the index of what is where; their fingerprint; both again, with the index that the first time left; the
way to the first batch with two workers; and images a second of a worker's processor. It needs the package webdataset.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
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
from twinbench.data.shards import list_shards
from twinbench.data.streaming import CropStream, StreamedImages
from twinbench.foundation.randomness import seeded_generator
from twinbench.pretraining.view_policies import asymmetric_views

_SIZE, _BATCH, _STEPS, _WORKERS = 224, 64, 4, 2
_LINKS = 50_000  # of one file; ext4 allows 65,000
_ORIGINALS = 32
_READ = (
    6  # pictures of each class that are in the shards: some are held out, and the first of the others is read
)
_SHARD = 10_000  # samples
KINDS = ("folder", "shards")
_SETTLED = 11.0  # seconds; what was written just now is not kept in the index (`data.contents`)


def write_folder(folder: Path, files: int, classes: int) -> None:
    """A training folder of so many names, spread over the classes, which are hard links to a few JPEGs."""
    sources = _originals(folder, max(_ORIGINALS, -(-files // _LINKS)))
    for place in range(min(classes, files)):
        inner = folder / "set" / "train" / f"class{place:04}"
        inner.mkdir(parents=True)
        for file in range(place, files, classes):
            os.link(sources[file % len(sources)], inner / f"{file:08}.jpg")


def write_shards(folder: Path, files: int, classes: int) -> None:
    """The same in tar files, with holes where the pictures after the first of each class would be."""
    contents = [path.read_bytes() for path in _originals(folder, _ORIGINALS)]
    (folder / "set").mkdir()
    for first in range(0, files, _SHARD):
        with (folder / "set" / f"train-{first // _SHARD:04}.tar").open("wb") as shard:
            for file in range(first, min(first + _SHARD, files)):
                content = contents[file % len(contents)]
                info = tarfile.TarInfo(f"class{file % classes:04}/{file:08}.jpg")
                info.size = len(content)
                shard.write(info.tobuf(tarfile.USTAR_FORMAT))
                if file < _READ * classes:
                    shard.write(content)
                    shard.seek(-info.size % tarfile.BLOCKSIZE, os.SEEK_CUR)
                else:
                    shard.seek(info.size + -info.size % tarfile.BLOCKSIZE, os.SEEK_CUR)
            shard.write(bytes(2 * tarfile.BLOCKSIZE))


def _originals(folder: Path, count: int) -> list[Path]:
    write_jpegs(folder / "originals", count)
    return sorted((folder / "originals").rglob("*.jpg"))


class _Rows:
    """Random rows of ``some`` for a step."""

    def __init__(self, some: Tensor) -> None:
        self.some = some

    def __call__(self, step: int) -> Tensor:
        return self.some[
            torch.randint(len(self.some), (_BATCH,), generator=seeded_generator(0, "order", step))
        ]


def measure(kind: str, folder: str) -> Document:
    """Everything about a set, whose index goes to the cache folder of the environment."""
    torch.set_num_threads(1)
    times, before = [time.process_time()], resident_mb()
    files = (list_shards if kind == "shards" else list_images)(Path(folder))
    times.append(time.process_time())
    files.fingerprint()
    times.append(time.process_time())
    count = len(files.splits["train"].paths)
    del files
    image_set = load_image_set(f"{kind}:{folder}", image_size=_SIZE, stream=True)
    split = image_set.split("train")
    _ = image_set.fingerprint
    times.append(time.process_time())
    held = resident_mb() - before
    assert isinstance(split.images, StreamedImages)
    first_of_class = np.unique(split.labels.numpy(), return_index=True)[1]
    return {
        "files": count,
        **dict(zip(("listing", "fingerprint", "again"), np.diff(times).tolist(), strict=True)),
        "held_mb": held,
        "peak_mb": peak_memory_mb(),
        **_first_batches(split.images, _Rows(torch.from_numpy(first_of_class))),
    }


def _first_batches(images: StreamedImages, rows: _Rows) -> Document:
    """The stream's first steps: seconds of this process until the first batch, images a worker's second, memory."""
    policies = asymmetric_views(_SIZE, "pillow")
    generator = partial(seeded_generator, 0, "views")
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
    """Measure every size of both kinds; each set is written, measured in fresh processes, and deleted."""
    rows = []
    for files in sizes:
        for kind, write in zip(KINDS, (write_folder, write_shards), strict=True):
            with tempfile.TemporaryDirectory(dir=place) as folder:
                write(Path(folder), files, classes)
                time.sleep(_SETTLED)
                # each repetition finds a cache folder without an index
                jobs = [
                    (
                        {"kind": kind, "folder": str(Path(folder, "set"))},
                        {"XDG_CACHE_HOME": f"{folder}/cache{i}"},
                    )
                    for i in range(repetitions)
                ]
                answers = [answer for (answer,) in take_turns(__file__, jobs, 1)]
            rows.append({"kind": kind, "files": files, "answers": answers})
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
            row["kind"],
            f"{row['files']:,}",
            *(Spread.of([answer[key] for answer in row["answers"]]).text(n) for key, n in keys.items()),
        ]
        for row in document["rows"]
    ]
    header = [
        "set", "files", "listing, s", "fingerprint, s", "both with the index, s", "first batch, s",
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
        print(json.dumps(measure(**json.loads(options.job))))
        return
    check_targets("streaming", options.out, options.markdown)
    document = measure_all(options.files, options.classes, options.repetitions, options.folder)
    publish(document, render(document), "streaming", options.out, options.markdown)


if __name__ == "__main__":
    run_script(main)
