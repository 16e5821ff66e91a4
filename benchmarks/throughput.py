"""Pretraining throughput: twinbench and lightly side by side, and the roof over both.

The same work on every side: two views of CIFAR-10 images, ResNet-18 with the small stem, the same head, batch
256, plain SGD. README.md in this folder says what each row is. Every measurement is a fresh process; the clock
runs from the end of the last warm-up step to the end of the last step.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from augmentation import smooth_picture
from measure import (
    KEEP_FREED_MEMORY,
    START_METHOD,
    Document,
    Spread,
    bytes_of,
    check_targets,
    chosen,
    copy_rate,
    device,
    device_description,
    facts,
    flops_of,
    footnote,
    markdown_table,
    matmul_rate,
    peak_memory_mb,
    positive,
    publish,
    require_lightly,
    run_fresh,
    run_script,
    synchronise,
    take_turns,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

# These two register the methods; all that the harness loads besides would count as their memory.
import twinbench.baselines.simclr
import twinbench.pretraining.barlow_twins  # noqa: F401
from twinbench.data.catalogue import load_image_set
from twinbench.data.image_sets import IMAGENET_NORMALISATION, ImageSet, Reading
from twinbench.foundation.cores import usable_cores
from twinbench.harness.recipes import recipe_hash
from twinbench.pretraining.batches import MicroBatch
from twinbench.pretraining.build import build_method, resolve
from twinbench.pretraining.engine import Hardware, launch
from twinbench.pretraining.recipe import BackboneSpec, OptimizerSpec, Recipe
from twinbench.pretraining.train import Session, pretrain, start_session

METHODS = ("barlow_twins", "simclr")  # those that this file has lightly's heads and losses for
DOCUMENTED_WORKERS = 8  # num_workers in all of lightly's examples
# Shapes of the heads in lightly's examples for CIFAR-10.
_OPTIONS: dict[str, dict[str, Any]] = {
    "barlow_twins": {"projector": [2048, 2048, 2048]},
    "simclr": {"projector": [512, 128], "temperature": 0.5},
}
# Small enough for any of the losses from random weights; its value changes no cost.
_LEARNING_RATE = 1e-3
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

# Dense bf16 peak in FLOP/s by the name CUDA gives, from the makers' data sheets.
_PEAK_BF16 = {
    "H200": 989e12,
    "H100 80GB HBM3": 989e12,
    "H100 PCIe": 756e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}


@dataclass(frozen=True)
class Job:
    """One measurement. ``channels_last`` and ``workers`` are choices of lightly's user; the others fix theirs.

    Views of 32 pixels are of CIFAR-10 or digit-scenes, with the 3x3 stem; larger ones of generated pictures, with
    ImageNet's stem, and blurred. Where ``planned`` is more than the timed steps, these are part of a run of so many,
    whose log has a row far more seldom than every step; it ends when the clock has stopped. ``compile`` is for
    twinbench alone, and is what ``twinbench pretrain --compile`` does.
    """

    side: str
    method: str
    precision: str
    batch_size: int
    warm_up: int
    steps: int
    channels_last: bool = True
    workers: int = 0
    data_root: str | None = None
    network: str = "resnet18"
    size: int = 32
    planned: int = 0
    compile: bool = False

    @property
    def is_small(self) -> bool:
        """Whether the images are of 32 pixels, and so the network's stem is the 3x3 convolution."""
        return self.size == 32

    @property
    def last_step(self) -> int:
        """The step that the clock stops after."""
        return self.warm_up + self.steps


class Stopwatch:
    """Times the steps after the warm-up; both sides call `step_done` after every step."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._started = self._stopped = self.peak_memory_mb = math.nan

    def step_done(self, step: int, workers: Sequence[int] = ()) -> None:
        """``step`` counts from 1; ``workers`` are the processes that prepare data."""
        if step == self._job.warm_up:
            synchronise()
            self._started = time.perf_counter()
        if step == self._job.last_step:
            synchronise()
            self._stopped = time.perf_counter()
            self.peak_memory_mb = peak_memory_mb(workers)

    @property
    def has_stopped(self) -> bool:
        """Whether all timed steps are done."""
        return not math.isnan(self._stopped)

    def pairs_per_second(self) -> float:
        """Images a second, each of them a pair of views."""
        return self._job.steps * self._job.batch_size / (self._stopped - self._started)


def image_set(job: Job) -> ImageSet:
    """CIFAR-10 from the data root, else the embedded set at the same size.

    As many images as one step more than the timed ones needs: the loop prepares the next views during a step,
    so the last step of all has less to do. Few held-out images: collapse is measured at every tenth of a run,
    which here is every step and in a real run one of thousands.
    """
    if not job.is_small:
        return Pictures(job.size * 8 // 7, 2 * job.batch_size)
    limits = {"train": (job.last_step + 1) * job.batch_size, "val": 16}
    name = "digit-scenes" if job.data_root is None else "cifar10"
    return load_image_set(name, Path(job.data_root) if job.data_root else None, limit=limits)


class Pictures(ImageSet):
    """So many generated pictures to train on, of which a training sees each many times, and a few held out."""

    name, classes, content = "pictures", ("picture",), "pictures"
    normalisation = IMAGENET_NORMALISATION

    def __init__(self, side: int, n: int) -> None:
        super().__init__(Reading())
        self.image_size = side
        self._counts = {"train": n, "val": 16, "test": 16}

    def _labels(self, name: str) -> np.ndarray:
        return np.zeros(self._counts[name], dtype=np.int64)

    def _images(self, name: str, index: np.ndarray) -> np.ndarray:
        side, few = self.image_size, 64  # different enough: what is in a picture costs nothing
        made = torch.stack([smooth_picture(seed, side, side) for seed in range(min(few, len(index)))]).numpy()
        return made[index % len(made)]


def recipe(job: Job, images: ImageSet) -> Recipe:
    """The work as a recipe; views are bilinear, as lightly's are."""
    steps_per_epoch = max(1, len(images.split("train")) // job.batch_size)
    document = Recipe(
        method=job.method,
        image_set=images.name,
        backbone=BackboneSpec(name=job.network, width=64, stem="small" if job.is_small else "imagenet"),
        epochs=math.ceil(max(job.last_step + 1, job.planned) / steps_per_epoch),
        batch_size=job.batch_size,
        optimizer=OptimizerSpec(name="sgd", base_lr=_LEARNING_RATE, momentum=0.0),
        precision="bf16" if job.precision == "bf16" else "fp32",
        options=_OPTIONS[job.method],
        views={"size": job.size, "interpolation": "bilinear"},
    )
    return resolve(document, images.image_size, images.fingerprint)


def measure_twinbench(job: Job) -> Document:
    """The real thing: `pretraining.train.pretrain` from the recipe to the encoder on disk."""
    images = image_set(job)
    work = recipe(job, images)
    planned = work.epochs * (len(images.split("train")) // job.batch_size)
    watch = Stopwatch(job)

    def report(fraction: float, text: str) -> None:
        watch.step_done(round(fraction * planned))
        if job.planned and watch.has_stopped:
            raise _Enough

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_Enough):
        engine = launch(Hardware(compile=job.compile), work.precision)
        pretrain(work, recipe_hash(work), images, Path(folder), report, engine=engine)
    parameters = sum(p.numel() for p in build_method(work).parameters())
    return {"parameters": parameters, "images": images.name, **_answer(watch)}


class _Enough(Exception):
    """The clock has stopped before the end of the run."""


def measure_lightly(job: Job) -> Document:
    """lightly's example loop: its transforms, its head, its loss, a DataLoader, plain SGD."""
    torch.manual_seed(0)
    images = image_set(job)
    model, criterion = lightly_model(job.method, job.network), lightly_loss(job.method)
    layout = torch.channels_last if job.channels_last else torch.contiguous_format
    model.to(device()).to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=_LEARNING_RATE)
    # Workers run two batches each ahead; more batches than are used keep them at work until the end.
    batches_in_all = job.last_step + 2 * job.workers + 1
    loader = DataLoader(
        PilImages(images, lightly_transform(job.method, job.size), batches_in_all * job.batch_size),
        batch_size=job.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=job.workers,
        multiprocessing_context=START_METHOD if job.workers else None,
    )
    watch = Stopwatch(job)
    batches = iter(loader)
    for step, (views, _) in enumerate(islice(batches, job.last_step), start=1):
        x0, x1 = (view.to(device(), memory_format=layout) for view in views)
        with torch.autocast(device().type, torch.bfloat16, enabled=job.precision == "bf16"):
            loss = criterion(model(x0), model(x1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        watch.step_done(step, [worker.pid for worker in getattr(batches, "_workers", [])])
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "images": images.name, **_answer(watch)}


def measure_without_data(job: Job) -> Document:
    """twinbench's steps on two random views that never change: no data work, no log, no checks."""
    session = start(job)
    watch = Stopwatch(job)
    batch = [random_batch(job, job.size)]
    for step in range(job.last_step):
        session.gradients(batch, session.progress(step))
        session.update(session.progress(step))
        watch.step_done(step + 1)
    return {"parameters": _parameters(session), "images": "random", **_answer(watch)}


def measure_roof(job: Job) -> Document:
    """What a step would take if it were nothing but its products and convolutions, at the rate of large products.

    ``flops_per_pair`` and ``bytes_per_pair`` are counted in whole training steps. The rates that bound a step are
    measured: ``product_rate`` in FLOP/s, in the job's precision, and ``copy_rate`` in bytes/s.
    """
    session = start(job)
    batch = [random_batch(job, job.size)]

    def step() -> None:
        session.gradients(batch, session.progress(0))
        session.update(session.progress(0))

    flops = flops_of(step) / job.batch_size
    moved = bytes_of(step) / job.batch_size
    rate = matmul_rate(device(), _DTYPES[job.precision])
    return {
        "parameters": _parameters(session),
        "images": "none",
        "pairs_per_second": rate / flops,
        "peak_memory_mb": None,
        "device": device_description(),
        "flops_per_pair": flops,
        "bytes_per_pair": moved,
        "product_rate": rate,
        "copy_rate": copy_rate(device()),
    }


def start(job: Job) -> Session:
    """A training of the job's recipe before its first step."""
    images = image_set(job)
    work = recipe(job, images)
    return start_session(work, build_method(work), images, launch(Hardware(), work.precision))


def random_batch(job: Job, size: int) -> MicroBatch:
    """Two float32 views ``[N, 3, size, size]`` in the layout that convolutions prefer, and no labels."""
    views = [
        torch.randn(job.batch_size, 3, size, size, device=device()).contiguous(
            memory_format=torch.channels_last
        )
        for _ in range(2)
    ]
    return MicroBatch(views, torch.full((job.batch_size,), -1, device=device()))


def _parameters(session: Session) -> int:
    return sum(p.numel() for p in session.method.parameters())


def _answer(watch: Stopwatch) -> Document:
    return {
        "pairs_per_second": watch.pairs_per_second(),
        "peak_memory_mb": watch.peak_memory_mb,
        "device": device_description(),
    }


# lightly's side


class PilImages(Dataset[tuple[list[Tensor], int]]):
    """Images in memory, each handed to the transform as a PIL image, like torchvision's CIFAR10.

    ``length`` items over and over, so that a run is one epoch and workers start once.
    """

    def __init__(self, images: ImageSet, transform: Callable[..., Any], length: int) -> None:
        split = images.split("train")
        assert isinstance(split.images, Tensor), "these images are in memory"
        self._arrays = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self._labels = split.labels.tolist()
        self._transform, self._length = transform, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[list[Tensor], int]:
        from PIL import Image

        place = index % len(self._arrays)
        return self._transform(Image.fromarray(self._arrays[place])), self._labels[place]


def lightly_transform(method: str, size: int = 32) -> Callable[..., Any]:
    """The transforms of lightly's CIFAR-10 examples, at the colour strength it recommends for small images.

    Views of another size are lightly's defaults for ImageNet.
    """
    from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
    from lightly.transforms.simclr_transform import SimCLRTransform

    if size != 32:
        twins = BYOLTransform(BYOLView1Transform(input_size=size), BYOLView2Transform(input_size=size))
        return SimCLRTransform(input_size=size) if method == "simclr" else twins
    if method == "simclr":
        return SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)
    return BYOLTransform(
        BYOLView1Transform(input_size=32, gaussian_blur=0.0),
        BYOLView2Transform(input_size=32, gaussian_blur=0.0),
    )


def lightly_model(method: str, network: str = "resnet18") -> nn.Module:
    """torchvision's network and lightly's head, as its examples put them together; ResNet-18 with the small stem."""
    import torchvision
    from lightly.models.modules import BarlowTwinsProjectionHead, SimCLRProjectionHead

    resnet = torchvision.models.get_model(network)
    width = resnet.fc.in_features
    if network == "resnet18":
        resnet.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        resnet.maxpool = nn.Identity()
    backbone = nn.Sequential(*list(resnet.children())[:-1], nn.Flatten())
    if method == "simclr":
        return nn.Sequential(backbone, SimCLRProjectionHead(width, 512, 128))
    head = BarlowTwinsProjectionHead(width, 2048, 2048)
    # The authors' head has no bias here; without it both sides have the same parameters.
    head.layers[-1].register_parameter("bias", None)
    return nn.Sequential(backbone, head)


def lightly_loss(method: str) -> nn.Module:
    """lightly's loss at twinbench's hyperparameters."""
    from lightly.loss import BarlowTwinsLoss, NTXentLoss

    loss: nn.Module = (
        NTXentLoss(temperature=0.5) if method == "simclr" else BarlowTwinsLoss(lambda_param=0.0051)
    )
    return loss


_SIDES = {
    "twinbench": measure_twinbench,
    "lightly": measure_lightly,
    "without data": measure_without_data,
    "roof": measure_roof,
}


# The whole run


@dataclass(frozen=True)
class Row:
    """A line of the table: a name, what is measured, and the environment it runs in."""

    name: str
    job: Job
    keeps_freed_memory: bool = False

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of the measurement."""
        return KEEP_FREED_MEMORY if self.keeps_freed_memory else {}


def rows_of(job: Job, workers: int) -> list[Row]:
    """Everything measured for ``job.method``; ``workers`` is what serves lightly best here."""
    ours = replace(job, side="twinbench")
    documented = replace(job, side="lightly", channels_last=False, workers=DOCUMENTED_WORKERS)
    tuned = replace(job, side="lightly", workers=workers)
    without_data, roof = replace(job, side="without data"), replace(job, side="roof")
    return [
        Row("twinbench", replace(ours, precision="fp32")),
        Row("twinbench", replace(ours, precision="bf16")),
        Row("lightly as documented", replace(documented, precision="fp32")),
        Row("lightly tuned", replace(tuned, precision="fp32")),
        Row("lightly tuned", replace(tuned, precision="bf16")),
        Row("lightly tuned + allocator", replace(tuned, precision="bf16"), keeps_freed_memory=True),
        Row("twinbench without data", replace(without_data, precision="fp32")),
        Row("twinbench without data", replace(without_data, precision="bf16")),
        Row("roof: products alone", replace(roof, precision="fp32")),
        Row("roof: products alone", replace(roof, precision="bf16")),
    ]


def best_workers(job: Job) -> int:
    """The number of data workers that makes lightly fastest here, each tried once, in bf16."""
    cores = usable_cores()
    rates = {}
    for workers in sorted({0, 1, 2, cores // 2, cores}):
        tried = replace(job, side="lightly", precision="bf16", workers=workers)
        rates[workers] = run_fresh(__file__, asdict(tried))["pairs_per_second"]
    print("lightly, pairs/s by workers:", {n: round(rate, 1) for n, rate in rates.items()}, file=sys.stderr)
    return max(rates, key=lambda workers: rates[workers])


def measure_all(job: Job, methods: Sequence[str], repetitions: int) -> Document:
    """Measure every row of every method; returns the document that `render` shows."""
    workers = best_workers(replace(job, method=methods[0]))
    rows = [row for method in methods for row in rows_of(replace(job, method=method), workers)]
    jobs = [(asdict(row.job), row.environment) for row in rows]
    answers = take_turns(__file__, jobs, repetitions)
    results = [
        {
            "name": row.name,
            "keeps_freed_memory": row.keeps_freed_memory,
            **{key: value for key, value in asdict(row.job).items() if key != "data_root"},
            **_merged(repeated),
        }
        for row, repeated in zip(rows, answers, strict=True)
    ]
    _check_same_network(results)
    return {"facts": facts(), "device": answers[0][0]["device"], "repetitions": repetitions, "rows": results}


def _merged(repeated: Sequence[Document]) -> Document:
    """Repeated answers as one: lists of what varies, the first of what does not."""
    varying = ("pairs_per_second", "peak_memory_mb", "product_rate", "copy_rate")
    return {
        **repeated[0],
        **{key: [answer[key] for answer in repeated] for key in varying if key in repeated[0]},
    }


def _check_same_network(results: Sequence[Document]) -> None:
    for method in {row["method"] for row in results}:
        counts = {row["name"]: row["parameters"] for row in results if row["method"] == method}
        assert len(set(counts.values())) == 1, f"{method}: the sides differ in parameters: {counts}"


def _rate(rows: Sequence[Document]) -> Spread:
    """The fastest of some rows, by its median."""
    return max((Spread.of(row["pairs_per_second"]) for row in rows), key=lambda spread: spread.median)


def ratios(rows: Sequence[Document]) -> dict[str, float]:
    """The ratios of one method's medians that the goals speak of, by what they compare."""

    def rate(name: str, precision: str | None = None) -> float:
        chosen = [row for row in rows if row["name"] == name and precision in (None, row["precision"])]
        return _rate(chosen).median

    documented = rate("lightly as documented")
    return {
        "twinbench / lightly as documented": rate("twinbench") / documented,
        "fp32: twinbench / the faster lightly": rate("twinbench", "fp32")
        / max(documented, rate("lightly tuned", "fp32")),
        "bf16: twinbench / lightly tuned": rate("twinbench", "bf16") / rate("lightly tuned", "bf16"),
        "each at its best, allocator included": rate("twinbench")
        / max(rate("lightly tuned"), rate("lightly tuned + allocator")),
        **{
            f"{precision}: twinbench / {name}": rate("twinbench", precision) / rate(name, precision)
            for name in ("twinbench without data", "roof: products alone")
            for precision in ("fp32", "bf16")
        },
    }


def render(document: Document) -> str:
    """The document as Markdown: what was measured, then the ratios of the medians."""
    rows = document["rows"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    measured = markdown_table(
        ["method", "side", "precision", "layout", "workers", "pairs/s", "peak memory, MiB"],
        [_line(row) for row in rows],
    )
    compared = {method: ratios([row for row in rows if row["method"] == method]) for method in methods}
    names = list(compared[methods[0]])
    summary = markdown_table(
        ["ratio of medians", *methods],
        [[name, *(f"{compared[method][name]:.2f}" for method in methods)] for name in names],
    )
    first = rows[0]
    images = "CIFAR-10" if first["images"] == "cifar10" else f"{first['images']} (32 pixels, as CIFAR-10)"
    setting = (
        f"Images: {images}. Batch {first['batch_size']}, {first['warm_up']} warm-up and {first['steps']} timed "
        f"steps, {document['repetitions']} repetitions: median (lowest to highest)."
    )
    return "\n\n".join(
        [setting, measured, summary, *_operations(rows, document["device"]), footnote(document)]
    )


def _line(row: Document) -> list[str]:
    lightly = row["side"] == "lightly"
    return [
        row["method"],
        row["name"],
        row["precision"],
        "channels last" if row["channels_last"] else "channels first",
        str(row["workers"]) if lightly else "none",
        Spread.of(row["pairs_per_second"]).text(1),
        "" if None in row["peak_memory_mb"] else Spread.of(row["peak_memory_mb"]).text(0),
    ]


def _operations(rows: Sequence[Document], name: str) -> list[str]:
    """For each method and precision what a step does, and how long it takes beside its products alone."""
    peak = next((peak for known, peak in _PEAK_BF16.items() if known in name), None)
    lines = []
    for roof in (row for row in rows if row["side"] == "roof"):
        same = [
            row for row in rows if (row["method"], row["precision"]) == (roof["method"], roof["precision"])
        ]
        rate = _rate([row for row in same if row["side"] == "twinbench"]).median
        flops, batch, roof_rate = roof["flops_per_pair"], roof["batch_size"], _rate([roof]).median
        share = (
            f", {rate * flops / peak:.0%} of the card's dense peak"
            if peak and roof["precision"] == "bf16"
            else ""
        )
        lines.append(
            f"- {roof['method']} in {roof['precision']}: {roof['parameters']:,} parameters on every side, "
            f"{flops / 1e9:.2f} GFLOP a pair. A step takes {1000 * batch / rate:.1f} ms ({rate * flops / 1e12:.3f} "
            f"TFLOP/s{share}); its products alone at {Spread.of(roof['product_rate']).median / 1e12:.3f} TFLOP/s, as "
            f"large ones have, {1000 * batch / roof_rate:.1f} ms; the step takes {roof_rate / rate:.1f} times that."
        )
    return ["\n".join(lines)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, help="folder that holds CIFAR-10 (default: digit-scenes)")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--batch-size", type=positive, default=256)
    parser.add_argument(
        "--steps", type=positive, default=2, help="timed steps of a measurement (GPU: 100 or more)"
    )
    parser.add_argument(
        "--warm-up", type=positive, default=1, help="steps before the clock (GPU: 20 or more)"
    )
    parser.add_argument(
        "--repetitions", type=positive, default=3, help="measurements of each row, taking turns"
    )
    parser.add_argument("--out", type=Path, help="JSON file for everything measured")
    parser.add_argument("--markdown", type=Path, help="file whose block 'throughput' gets the tables")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure one job if asked to by a parent process, else everything."""
    arguments = _arguments()
    if arguments.job:
        job = Job(**json.loads(arguments.job))
        with contextlib.redirect_stdout(sys.stderr):
            answer = _SIDES[job.side](job)
        print(json.dumps(answer))
        return
    methods = chosen("method", arguments.methods, METHODS)
    check_targets("throughput", arguments.out, arguments.markdown)
    require_lightly()
    job = Job(
        side="twinbench",
        method="",
        precision="fp32",
        batch_size=arguments.batch_size,
        warm_up=arguments.warm_up,
        steps=arguments.steps,
        data_root=str(arguments.data_root) if arguments.data_root else None,
    )
    document = measure_all(job, methods, arguments.repetitions)
    publish(document, render(document), "throughput", arguments.out, arguments.markdown)


if __name__ == "__main__":
    run_script(main)
