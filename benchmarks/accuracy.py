"""Are encoders as good as those of another library? Every method trained twice, by twinbench and by lightly's parts.

Both sides have the same network from the same first weights, the same images and number of steps, and the same settings
of views, heads, losses and optimizer. The code of all these is each side's own: lightly's is put together as its
documentation does. Both encoders are measured by twinbench's kNN and linear protocol. The table has the difference of
every method over the seeds, with its interval; README.md in this folder says what differs on purpose.

A training that is finished leaves a JSON file in the folder `--out`, and a second call with the same settings goes on
where the first one stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from measure import (
    METHODS,
    Document,
    check_targets,
    chosen,
    device,
    device_description,
    facts,
    footnote,
    markdown_table,
    positive,
    publish,
    require_lightly,
    run_fresh,
    run_script,
    without_folders,
)
from scipy.special import stdtrit
from throughput import PilImages
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from twinbench.data.catalogue import load_image_set
from twinbench.data.image_sets import ImageSet
from twinbench.downstream.features import FeatureStore
from twinbench.downstream.protocol import EvaluationContext, protocol
from twinbench.encoders.backbones import ResNet, build_backbone
from twinbench.encoders.encoder import Encoder, EncoderInfo
from twinbench.foundation.cores import usable_cores
from twinbench.foundation.errors import InputError, RunFailure
from twinbench.foundation.files import write_atomically
from twinbench.harness.plugins import load_plugins
from twinbench.harness.recipes import recipe_hash
from twinbench.pretraining.build import resolve
from twinbench.pretraining.engine import Hardware, launch
from twinbench.pretraining.recipe import BackboneSpec, OptimizerSpec, Recipe, ScheduleSpec
from twinbench.pretraining.train import pretrain

SIDES = ("twinbench", "lightly")
PROTOCOLS = {"kNN": "knn/cosine-v1", "linear": "linear/cached-v1"}

# The network of recipes/cifar10-cpu, small enough for a CPU.
_BACKBONE = BackboneSpec(name="resnet10", width=32, stem="stride2")
# Of lightly's benchmark on CIFAR-10 (docs/source/getting_started/benchmarks/cifar10_benchmark.py), as recipes/cifar10
# has them: SGD at 0.06 for batch 128 with decay on every tensor and a cosine by the epoch; SwAV by Adam.
_SGD_RATE, _ADAM_RATE, _REFERENCE_BATCH = 0.06, 0.001, 128
_MOMENTUM, _SGD_DECAY, _ADAM_DECAY = 0.9, 5e-4, 1e-6
# The views of that benchmark: SimCLR's at half strength, for every method.
_VIEWS: dict[str, Any] = {
    "crop_scale": (0.08, 1.0),
    "flip": 0.5,
    "jitter": 0.8,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "grayscale": 0.2,
    "blur": 0.0,
    "solarize": 0.0,
    "interpolation": "bilinear",
}
# Heads for the 256 features of this network, and what only one method has.
_OPTIONS: dict[str, dict[str, Any]] = {
    "barlow_twins": {"projector": [512, 512, 512], "lambd": 0.005},
    "simclr": {"projector": [256, 128], "temperature": 0.5},
    "byol": {"projector": [512, 128], "predictor_hidden": 512, "tau_base": 0.99},
    "swav": {"projector": [256, 128], "prototypes": 512, "freeze_prototypes_steps": 0},
    "simsiam": {"projector": [512, 512, 512], "predictor_hidden": 128},
    "moco_v2": {
        "projector": [256, 128],
        "queue_length": 4096,
        "momentum": 0.99,
        "temperature": 0.1,
        "bn_splits": 1,
    },
}
# Our loss of BYOL is four times lightly's: a quarter of the rate and four times the decay are the same SGD.
_TIMES_LIGHTLYS_LOSS = {"byol": 4.0}


@dataclass(frozen=True)
class Job:
    """One training and its measurements. Without a data root the images are digit-scenes, to try the program out."""

    method: str
    side: str
    seed: int
    images: int
    epochs: int
    batch_size: int
    precision: Literal["bf16", "fp32"]
    data_root: str | None = None

    @property
    def settings(self) -> Document:
        """What others need to know of it, and what a finished training must have been made with to count."""
        kept = {key: value for key, value in asdict(self).items() if key != "data_root"}
        return {**kept, "image_set": self.image_set_name}

    @property
    def image_set_name(self) -> str:
        """CIFAR-10 from the data root, else the embedded set of the same size."""
        return "digit-scenes" if self.data_root is None else "cifar10"

    def image_set(self) -> ImageSet:
        """The images, of which as many train as the job says."""
        root = Path(self.data_root) if self.data_root else None
        return load_image_set(self.image_set_name, root, limit={"train": self.images})


def measure(job: Job) -> Document:
    """Train once and measure the encoder: top-1 in percent by each protocol, and the seconds of the training."""
    images = job.image_set()
    for split in ("train", "val", "test"):
        images.split(split)  # read now, since whoever reads first would take longer
    started = time.perf_counter()
    encoder = (train_twinbench if job.side == "twinbench" else train_lightly)(job, images)
    seconds = time.perf_counter() - started
    encoder.backbone.to(device())
    store, found = FeatureStore(None), {}
    for name, full_name in PROTOCOLS.items():
        context = EvaluationContext(images, store, seed=job.seed, device=device())
        measured = protocol(full_name).evaluate(encoder, context)
        found[name] = next(each.value for each in measured if each.metric == "top1")
    return {
        **job.settings,
        **found,
        "seconds": seconds,
        "device": device_description(),
        "commit": facts()["commit"],
    }


# twinbench's side


def recipe(job: Job, images: ImageSet) -> Recipe:
    """The training as a recipe."""
    scale = _TIMES_LIGHTLYS_LOSS.get(job.method, 1.0)
    name, rate, decay = "sgd", _SGD_RATE / scale, _SGD_DECAY * scale
    if job.method == "swav":
        name, rate, decay = "adamw", _ADAM_RATE, _ADAM_DECAY
    optimizer = {
        "name": name,
        "base_lr": rate * 256 / _REFERENCE_BATCH,
        "momentum": _MOMENTUM,
        "weight_decay": decay,
        "exclude_nothing": True,
    }
    document = Recipe(
        method=job.method,
        image_set=images.name,
        backbone=_BACKBONE,
        epochs=job.epochs,
        batch_size=job.batch_size,
        optimizer=OptimizerSpec.model_validate(optimizer),
        schedule=ScheduleSpec(per="epoch"),
        precision=job.precision,
        seed=job.seed,
        options=_OPTIONS[job.method],
        views={"size": images.image_size, **_VIEWS},
    )
    return resolve(document, images.image_size, images.fingerprint)


def train_twinbench(job: Job, images: ImageSet) -> Encoder:
    """`pretraining.train.pretrain`, from the recipe to the encoder on disk."""
    work = recipe(job, images)
    engine = launch(Hardware(), work.precision)
    with tempfile.TemporaryDirectory() as folder:
        pretrain(work, recipe_hash(work), images, Path(folder), engine=engine)
        return Encoder.load(Path(folder) / "encoder")


# lightly's side


class Peer(nn.Module):
    """A method made of lightly's parts on a backbone.

    What its loss sees is fp32 whatever precision the network computes in, as on our side.
    """

    def __init__(self, backbone: ResNet, options: dict[str, Any], precision: str) -> None:
        super().__init__()
        self.backbone, self.options, self.precision = backbone, options, precision
        self.build(backbone.feature_dim)

    def build(self, features: int) -> None:
        """Add the heads, for so many features, and the loss."""
        raise NotImplementedError

    def loss(self, x0: Tensor, x1: Tensor) -> Tensor:
        """The loss of two views ``[N, 3, H, W]``."""
        raise NotImplementedError

    def before_step(self, epoch: int, epochs: int) -> None:
        """What the loop does before the forward passes of a step."""

    def constant_rate(self) -> list[nn.Parameter]:
        """Parameters whose learning rate stays at its peak."""
        return []

    def through(self, batch: Tensor, *modules: nn.Module) -> Tensor:
        """The fp32 output of modules in turn."""
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            for module in modules:
                batch = module(batch)
        return batch.float()


class PeerBarlowTwins(Peer):
    """Barlow Twins."""

    def build(self, features: int) -> None:
        """One head for both views."""
        from lightly.loss import BarlowTwinsLoss
        from lightly.models.modules import BarlowTwinsProjectionHead

        hidden, _, out = self.options["projector"]
        self.projection = BarlowTwinsProjectionHead(features, hidden, out)
        self.criterion = BarlowTwinsLoss(lambda_param=self.options["lambd"])

    def loss(self, x0: Tensor, x1: Tensor) -> Tensor:
        """One view after the other."""
        z0, z1 = (self.through(x, self.backbone, self.projection) for x in (x0, x1))
        return self.criterion(z0, z1)


class PeerSimCLR(Peer):
    """SimCLR."""

    def build(self, features: int) -> None:
        """One head for both views."""
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead

        self.projection = SimCLRProjectionHead(features, *self.options["projector"])
        self.criterion = NTXentLoss(temperature=self.options["temperature"])

    def loss(self, x0: Tensor, x1: Tensor) -> Tensor:
        """One view after the other."""
        z0, z1 = (self.through(x, self.backbone, self.projection) for x in (x0, x1))
        return self.criterion(z0, z1)


class PeerSimSiam(Peer):
    """SimSiam."""

    def build(self, features: int) -> None:
        """A projection and a prediction."""
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead

        hidden, _, out = self.options["projector"]
        self.projection = SimSiamProjectionHead(features, hidden, out)
        self.prediction = SimSiamPredictionHead(out, self.options["predictor_hidden"], out)
        self.criterion = NegativeCosineSimilarity()

    def loss(self, x0: Tensor, x1: Tensor) -> Tensor:
        """The mean of both directions."""
        z0, z1 = (self.through(x, self.backbone, self.projection) for x in (x0, x1))
        p0, p1 = (self.through(z, self.prediction) for z in (z0, z1))
        return 0.5 * (self.criterion(p0, z1.detach()) + self.criterion(p1, z0.detach()))

    def constant_rate(self) -> list[nn.Parameter]:
        """The predictor's, as in the paper."""
        return list(self.prediction.parameters())


class PeerBYOL(Peer):
    """BYOL."""

    def build(self, features: int) -> None:
        """The online network with its prediction, and a copy that follows it."""
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
        from lightly.models.utils import deactivate_requires_grad

        hidden, out = self.options["projector"]
        self.projection = BYOLProjectionHead(features, hidden, out)
        self.prediction = BYOLPredictionHead(out, self.options["predictor_hidden"], out)
        self.slow = nn.ModuleList([deepcopy(self.backbone), deepcopy(self.projection)])
        deactivate_requires_grad(self.slow)
        self.criterion = NegativeCosineSimilarity()

    def before_step(self, epoch: int, epochs: int) -> None:
        """Move the copy, whose momentum goes to 1 by the epoch."""
        from lightly.models.utils import update_momentum
        from lightly.utils.scheduler import cosine_schedule

        momentum = cosine_schedule(epoch, epochs, self.options["tau_base"], 1)
        for online, slow in zip((self.backbone, self.projection), self.slow, strict=True):
            update_momentum(online, slow, m=momentum)

    def loss(self, x0: Tensor, x1: Tensor) -> Tensor:
        """The mean of both directions."""
        p0, p1 = (self.through(x, self.backbone, self.projection, self.prediction) for x in (x0, x1))
        with torch.no_grad():
            z0, z1 = (self.through(x, *self.slow) for x in (x0, x1))
        return 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))


class PeerMoCo(Peer):
    """MoCo v2."""

    def build(self, features: int) -> None:
        """The queries' network, a copy for the keys, and a loss that holds the queue."""
        from lightly.loss import NTXentLoss
        from lightly.models.modules import MoCoProjectionHead
        from lightly.models.utils import deactivate_requires_grad

        hidden, out = self.options["projector"]
        self.projection = MoCoProjectionHead(features, hidden, out)
        self.slow = nn.ModuleList([deepcopy(self.backbone), deepcopy(self.projection)])
        deactivate_requires_grad(self.slow)
        self.criterion = NTXentLoss(
            temperature=self.options["temperature"], memory_bank_size=(self.options["queue_length"], out)
        )

    def before_step(self, epoch: int, epochs: int) -> None:
        """Move the keys' network."""
        from lightly.models.utils import update_momentum

        for online, slow in zip((self.backbone, self.projection), self.slow, strict=True):
            update_momentum(online, slow, m=self.options["momentum"])

    def loss(self, x0: Tensor, x1: Tensor) -> Tensor:
        """Queries of one view, keys of the other."""
        query = self.through(x0, self.backbone, self.projection)
        with torch.no_grad():
            key = self.through(x1, *self.slow)
        return self.criterion(query, key)


class PeerSwaV(Peer):
    """SwAV, without multi-crop."""

    def build(self, features: int) -> None:
        """A head and the prototypes."""
        from lightly.loss import SwaVLoss
        from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes

        hidden, out = self.options["projector"]
        self.projection = SwaVProjectionHead(features, hidden, out)
        self.prototypes = SwaVPrototypes(out, self.options["prototypes"])
        self.criterion = SwaVLoss()

    def before_step(self, epoch: int, epochs: int) -> None:
        """Bring the prototypes back to unit length."""
        self.prototypes.normalize()

    def loss(self, x0: Tensor, x1: Tensor) -> Tensor:
        """Swapped prediction, one view after the other."""
        embedded = [normalize(self.through(x, self.backbone, self.projection), dim=1) for x in (x0, x1)]
        return self.criterion([self.prototypes(z) for z in embedded], []).squeeze()


_PEERS: dict[str, type[Peer]] = {
    "barlow_twins": PeerBarlowTwins,
    "simclr": PeerSimCLR,
    "byol": PeerBYOL,
    "swav": PeerSwaV,
    "simsiam": PeerSimSiam,
    "moco_v2": PeerMoCo,
}


def build_peer(job: Job) -> Peer:
    """lightly's side of a job before its first step, on the backbone that ours starts from."""
    # as in `build_method`, whose first draws are the backbone's
    torch.manual_seed(job.seed)
    backbone = build_backbone(_BACKBONE.name, _BACKBONE.width, _BACKBONE.stem)
    return _PEERS[job.method](backbone, _OPTIONS[job.method], job.precision)


def peer_optimizer(
    peer: Peer, job: Job
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """The optimizer of lightly's benchmark, and its cosine, stepped once an epoch."""
    scale = job.batch_size / _REFERENCE_BATCH
    constant = peer.constant_rate()
    kept = {id(parameter) for parameter in constant}
    scheduled = [p for p in peer.parameters() if p.requires_grad and id(p) not in kept]
    groups = [{"params": params} for params in (scheduled, constant) if params]
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam(groups, lr=_ADAM_RATE * scale, weight_decay=_ADAM_DECAY)
        if job.method == "swav"
        else torch.optim.SGD(groups, lr=_SGD_RATE * scale, momentum=_MOMENTUM, weight_decay=_SGD_DECAY)
    )

    def cosine(epoch: int) -> float:
        return (1 + math.cos(math.pi * epoch / job.epochs)) / 2

    factors = [cosine, lambda epoch: 1.0][: len(groups)]
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factors)


def peer_loader(job: Job, images: ImageSet) -> DataLoader[Any]:
    """Two views of each image by lightly's SimCLR transform, shuffled, without the partial last batch."""
    from lightly.transforms.simclr_transform import SimCLRTransform

    mean, std = images.normalisation.mean, images.normalisation.std
    transform = SimCLRTransform(
        input_size=images.image_size,
        cj_strength=0.5,
        gaussian_blur=0.0,
        normalize={"mean": list(mean), "std": list(std)},
    )
    data = PilImages(images, transform, len(images.split("train")))
    return DataLoader(data, job.batch_size, shuffle=True, drop_last=True)


def train_lightly(job: Job, images: ImageSet) -> Encoder:
    """The loop of lightly's documentation; raises RunFailure if a loss is not finite."""
    random.seed(job.seed)
    np.random.seed(job.seed)
    peer = build_peer(job).to(device()).to(memory_format=torch.channels_last)
    optimizer, scheduler = peer_optimizer(peer, job)
    loader = peer_loader(job, images)
    peer.train()
    for epoch in range(job.epochs):
        total = torch.zeros((), device=device())
        for (x0, x1), _ in loader:
            peer.before_step(epoch, job.epochs)
            loss = peer.loss(*(x.to(device(), memory_format=torch.channels_last) for x in (x0, x1)))
            total += loss.detach()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
        if not torch.isfinite(total):
            raise RunFailure(f"the loss of epoch {epoch + 1} is not finite", where=f"lightly, {job.method}")
    backbone = peer.backbone.cpu()
    info = EncoderInfo(
        architecture=_BACKBONE.name,
        width=_BACKBONE.width,
        stem=_BACKBONE.stem,
        feature_dim=backbone.feature_dim,
        input_size=images.image_size,
        mean=images.normalisation.mean,
        std=images.normalisation.std,
        method=job.method,
        recipe_hash="lightly",
    )
    return Encoder(backbone, info, checksum=f"lightly-{job.method}-{job.seed}")


# All trainings, each once


def measure_all(jobs: Sequence[Job], folder: Path, at_once: int) -> list[Document]:
    """The rows of all jobs; those that a file of the folder has are not trained again, and each new one is kept there.

    Raises InputError before any training if a file is of other settings.
    """
    rows = {job: row for job in jobs if (row := _kept(job, folder)) is not None}
    waiting = [job for job in jobs if job not in rows]
    if rows:
        print(f"{len(rows)} of {len(jobs)} trainings are in {folder}", file=sys.stderr)
    threads = {"OMP_NUM_THREADS": str(max(1, usable_cores() // at_once))}

    has_failed = threading.Event()

    def train(job: Job) -> Document | None:
        """The row; None where another training has failed, after which none is begun."""
        if has_failed.is_set():
            return None
        try:
            row = run_fresh(__file__, asdict(job), threads)
        except BaseException:
            has_failed.set()
            raise
        write_atomically(_file(job, folder), (json.dumps(without_folders(row), indent=1) + "\n").encode())
        return row

    with ThreadPoolExecutor(at_once) as pool:
        for job, row in zip(waiting, pool.map(train, waiting), strict=True):
            if row is not None:
                rows[job] = row
            print(f"\r{len(rows)}/{len(jobs)} trainings", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return [rows[job] for job in jobs]


def _file(job: Job, folder: Path) -> Path:
    return folder / f"{job.method}-{job.side}-{job.seed}.json"


def _kept(job: Job, folder: Path) -> Document | None:
    """The row of a finished training; None if there is none."""
    path = _file(job, folder)
    if not path.is_file():
        return None
    row: Document = json.loads(path.read_text(encoding="utf-8"))
    differing = [key for key, value in job.settings.items() if row.get(key) != value]
    if differing:
        key = differing[0]
        raise InputError(
            f"this training had {key} {row.get(key)}, not {job.settings[key]}",
            where=path,
            next_step="give --out another folder, or the settings of this one",
        )
    return row


# The table


@dataclass(frozen=True)
class Difference:
    """The mean difference of pairs (ours less theirs) and the half width of its 95% interval, nan for one pair."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Difference:
        """By Student's t over the pairs, which are the seeds."""
        pairs = [a - b for a, b in zip(ours, theirs, strict=True)]
        if len(pairs) < 2:
            return cls(pairs[0], math.nan)
        error = statistics.stdev(pairs) / math.sqrt(len(pairs))
        return cls(statistics.mean(pairs), float(stdtrit(len(pairs) - 1, 0.975)) * error)

    @property
    def is_behind(self) -> bool:
        """Whether we are behind by more than the half width."""
        return self.mean < -self.half_width

    @property
    def text(self) -> str:
        """With its sign, and the half width if there is one."""
        width = "" if math.isnan(self.half_width) else f" ± {self.half_width:.1f}"
        return f"{self.mean:+.1f}{width}"


def render(document: Document) -> str:
    """A row for each method: both sides by each protocol, and the difference with its interval."""
    rows = document["rows"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    table, behind = [], []
    for method in methods:
        cells = [method]
        for name in PROTOCOLS:
            ours, theirs = (_values(rows, method, side, name) for side in SIDES)
            difference = Difference.of(ours, theirs)
            cells += [_mean_and_spread(ours), _mean_and_spread(theirs), difference.text]
            behind += [f"{method} by {name}"] * difference.is_behind
        seconds = [statistics.median(_values(rows, method, side, "seconds")) for side in SIDES]
        table.append([*cells, " / ".join(f"{each:.0f}" for each in seconds)])
    header = ["method", *(f"{name}{end}" for name in PROTOCOLS for end in ("", " of lightly", " difference"))]
    verdict = f"Behind by more than the half width of the interval: {', '.join(behind) or 'none'}."
    parts = [_setting(rows), markdown_table([*header, "seconds"], table)]
    if _seeds(rows) > 1:
        parts.append(verdict)
    return "\n\n".join([*parts, footnote(document)])


def _setting(rows: Sequence[Document]) -> str:
    first, seeds = rows[0], _seeds(rows)
    commits = sorted({str(row["commit"] or "unknown") for row in rows})
    return (
        f"{first['images']} images of {first['image_set']}, {first['epochs']} epochs, batch {first['batch_size']}, "
        f"{first['precision']}, {_BACKBONE.name} of width {_BACKBONE.width}; {seeds} seeds. Top-1 on the test images: "
        "mean ± standard deviation; the difference is the mean of the pairs, ours less lightly's, ± the half width of "
        "its 95% interval by Student's t over the seeds. Seconds of one training, ours / lightly's: the median. "
        f"Trained at commit {', '.join(commits)}."
    )


def _seeds(rows: Sequence[Document]) -> int:
    return len({row["seed"] for row in rows})


def _values(rows: Sequence[Document], method: str, side: str, key: str) -> list[float]:
    """In the order of the seeds."""
    found = [row for row in rows if (row["method"], row["side"]) == (method, side)]
    return [row[key] for row in sorted(found, key=lambda row: row["seed"])]


def _mean_and_spread(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, help="folder that holds CIFAR-10 (default: digit-scenes)")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument(
        "--images", type=positive, default=20000, help="to train on, at most (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=positive, default=12)
    parser.add_argument("--batch-size", type=positive, default=128)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument(
        "--at-once",
        type=positive,
        default=1 if torch.cuda.is_available() else usable_cores(),
        help="trainings at a time (default: one for each core, or one on a GPU)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results/accuracy"),
        help="folder that keeps a JSON file of every finished training (default: %(default)s)",
    )
    parser.add_argument("--markdown", type=Path, help="file whose block 'accuracy' gets the table")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Train and measure once if asked to by a parent process, else every method on both sides with every seed."""
    arguments = _arguments()
    load_plugins(warn=False)
    if arguments.job:
        with contextlib.redirect_stdout(sys.stderr):
            answer = measure(Job(**json.loads(arguments.job)))
        print(json.dumps(answer))
        return
    jobs = [
        Job(
            method=method,
            side=side,
            seed=seed,
            images=arguments.images,
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            precision=arguments.precision,
            data_root=str(arguments.data_root) if arguments.data_root else None,
        )
        for seed in range(arguments.seeds)
        for method in chosen("method", arguments.methods, METHODS)
        for side in SIDES
    ]
    check_targets("accuracy", None, arguments.markdown)
    require_lightly()
    jobs[0].image_set()  # what is wrong with the images is said before any training
    rows = measure_all(jobs, arguments.out, arguments.at_once)
    document = {"rows": rows, "device": rows[0]["device"], "facts": facts()}
    publish(document, render(document), "accuracy", None, arguments.markdown)


if __name__ == "__main__":
    run_script(main)
