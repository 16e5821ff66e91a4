"""The training loop: from a recipe and an image set to an encoder on disk.

Read `pretrain` first: it is the whole story. Everything random is a function of (seed, step), never of how
often something was called before, so a run that was killed and resumed ends with the same bits as one that
was not.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from data.augment import ViewPolicy, augment
from data.errors import InputError, RunFailure
from data.files import write_atomically
from data.image_sets import ImageSet
from pretraining.build import build_method, view_policies
from pretraining.checkpoint import load_latest, save_checkpoint
from pretraining.diagnostics import Diagnostics, diagnose
from pretraining.encoder import Encoder, EncoderInfo
from pretraining.method import LossParts, Method, Progress
from pretraining.optim import build_optimizer, set_learning_rates
from pretraining.recipe import Recipe
from pretraining.schedules import lr_factor

_FABRIC_PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed"}
_CHECKPOINT_SECONDS = 30.0
_LOGGED_STEPS = 200
_DIAGNOSED_IMAGES = 1024

# Fabric announces the precision of every instance; the recipe already says it
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)

ReportProgress = Callable[[float, str], None]


@dataclass(frozen=True)
class TrainingSummary:
    """What a finished run leaves beside its encoder."""

    status: str
    reason: str
    seconds: float
    images_per_second: float
    peak_memory_mb: float
    parameters: int
    device: str


def pretrain(
    recipe: Recipe,
    recipe_hash: str,
    image_set: ImageSet,
    folder: Path,
    report: ReportProgress = lambda fraction, text: None,
    checkpoint_seconds: float = _CHECKPOINT_SECONDS,
) -> TrainingSummary:
    """Train the recipe's method, or go on where an interrupted run stopped, and write ``folder/encoder``.

    Raises InputError if the recipe does not fit the image set, RunFailure on a non-finite loss.
    """
    method = build_method(recipe)
    started = time.monotonic()
    rate = 0.0
    if method.trains and recipe.epochs > 0:
        rate = _optimise(_start(recipe, method, image_set), folder, report, checkpoint_seconds)
    device = _fabric(recipe).device
    diagnostics = _diagnose(
        method.to(device), view_policies(recipe, image_set.image_size), image_set, recipe.seed
    )
    write_atomically(folder / "diagnostics.json", json.dumps(diagnostics.as_dict()).encode())
    reason = diagnostics.collapse() if method.trains else None
    Encoder.save(folder / "encoder", method.backbone, _encoder_info(recipe, recipe_hash, method, image_set))
    return TrainingSummary(
        status="collapsed" if reason else "done",
        reason=reason or "",
        seconds=time.monotonic() - started,
        images_per_second=rate,
        peak_memory_mb=peak_memory_mb(),
        parameters=sum(p.numel() for p in method.parameters()),
        device=device_name(device),
    )


@dataclass
class _Session:
    """What every step of a run needs."""

    fabric: Fabric
    recipe: Recipe
    image_set: ImageSet
    policies: tuple[ViewPolicy, ...]
    method: Method
    model: Any
    optimizer: Any
    images: Tensor
    labels: Tensor
    steps_per_epoch: int
    total_steps: int

    def train_step(self, progress: Progress) -> LossParts:
        """One update; the order of hooks is the contract of `Method`."""
        factor = lr_factor(self.recipe.schedule, progress.step, self.total_steps, self.steps_per_epoch)
        set_learning_rates(self.optimizer, factor)
        rows = batch_rows(len(self.images), self.recipe.batch_size, self.recipe.seed, progress)
        views = _views(self.images[rows], self.policies, self.image_set, self.recipe.seed, progress.step)

        self.method.before_step(progress)
        loss: LossParts = self.model(views, self.labels[rows] if self.method.needs_labels else None, progress)
        _check_finite(loss.total, progress.step, self.optimizer.param_groups[0]["lr"])
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss.total)
        self.method.before_optimizer(progress)
        self.optimizer.step()
        self.method.after_step(progress)
        return loss


def _start(recipe: Recipe, method: Method, image_set: ImageSet) -> _Session:
    """Everything on its device, ready for the first step."""
    if recipe.optimizer is None:
        raise InputError(
            "the recipe has no optimizer", where=recipe.method, next_step="add the key 'optimizer'"
        )
    fabric = _fabric(recipe)
    train = image_set.split("train")
    steps_per_epoch = steps_in_epoch(recipe, len(train), image_set.name)
    method.to(memory_format=torch.channels_last)
    groups = method.parameter_groups(recipe.optimizer.weight_decay)
    optimizer = build_optimizer(recipe.optimizer, groups, recipe.batch_size)
    model, optimizer = fabric.setup(method, optimizer)
    model.train()
    return _Session(
        fabric=fabric,
        recipe=recipe,
        image_set=image_set,
        policies=view_policies(recipe, image_set.image_size),
        method=method,
        model=model,
        optimizer=optimizer,
        images=train.images.to(fabric.device),
        labels=train.labels.to(fabric.device),
        steps_per_epoch=steps_per_epoch,
        total_steps=steps_per_epoch * recipe.epochs,
    )


def _optimise(session: _Session, folder: Path, report: ReportProgress, checkpoint_seconds: float) -> float:
    """Take every step that is still to do; returns images per second."""
    recipe, total_steps = session.recipe, session.total_steps
    first_step = _resume(folder, session.method, session.optimizer)
    log = _MetricsLog(folder / "metrics.jsonl", first_step, max(1, total_steps // _LOGGED_STEPS))
    started = last_saved = time.monotonic()
    speed = 0.0
    for step in range(first_step, total_steps):
        progress = Progress(step, total_steps, session.steps_per_epoch)
        loss = session.train_step(progress)

        now = time.monotonic()
        speed = (step + 1 - first_step) * recipe.batch_size / (now - started)
        lr = session.optimizer.param_groups[0]["lr"]
        if log.wants(step, total_steps):
            log.write(progress, lr, speed, loss)
        if now - last_saved >= checkpoint_seconds and step + 1 < total_steps:
            _save(folder, step + 1, session.method, session.optimizer)
            last_saved = now
        report(
            (step + 1) / total_steps,
            f"epoch {progress.epoch + 1}/{recipe.epochs}  loss {loss.total.item():.4g}  lr {lr:.3g}  "
            f"{speed:.0f} images/s",
        )
    return speed


def pretrain_step_seconds(recipe: Recipe, image_set: ImageSet, steps: int = 3) -> float:
    """Seconds of one training step on this machine: the fastest of a few real ones, after a first."""
    method = build_method(recipe)
    if not method.trains:
        return 0.0
    session = _start(recipe, method, image_set)
    times = []
    for step in range(steps + 1):
        started = time.perf_counter()
        session.train_step(Progress(step, max(steps + 1, session.total_steps), session.steps_per_epoch))
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _fabric(recipe: Recipe) -> Fabric:
    return Fabric(accelerator="auto", devices=1, precision=_FABRIC_PRECISION[recipe.precision])


def steps_in_epoch(recipe: Recipe, images: int, where: str) -> int:
    """Full batches in an epoch; the partial last one is dropped, as the statistics of a batch are the method."""
    if images < recipe.batch_size:
        raise InputError(
            f"batch_size {recipe.batch_size} is larger than the {images} training images",
            where=where,
            next_step=f"set batch_size to {images} or less (--set batch_size={2 ** int(math.log2(max(2, images)))})",
        )
    return images // recipe.batch_size


def batch_rows(images: int, batch_size: int, seed: int, progress: Progress) -> Tensor:
    """Which images make up this step's batch: a fresh permutation every epoch, a function of (seed, step)."""
    order = torch.randperm(images, generator=_generator(seed, "order", progress.epoch))
    start = (progress.step % progress.steps_per_epoch) * batch_size
    return order[start : start + batch_size]


def _views(
    images: Tensor, policies: tuple[ViewPolicy, ...], image_set: ImageSet, seed: int, step: int
) -> list[Tensor]:
    generator = _generator(seed, "views", step)
    return [
        augment(images, policy, image_set.mean, image_set.std, generator).contiguous(
            memory_format=torch.channels_last
        )
        for policy in policies
    ]


_PURPOSES = {"order": 1, "views": 2, "diagnostics": 3}


def _generator(seed: int, purpose: str, counter: int) -> torch.Generator:
    """A generator that depends on nothing but its arguments; no two purposes share a stream."""
    return torch.Generator().manual_seed((seed * 4 + _PURPOSES[purpose]) * 2**32 + counter)


def _check_finite(loss: Tensor, step: int, lr: float) -> None:
    if not math.isfinite(loss.item()):
        raise RunFailure(
            f"the loss became {loss.item()}",
            where=f"step {step}, learning rate {lr:.3g}",
            next_step="lower optimizer.base_lr or lengthen schedule.warmup_epochs",
        )


def _save(folder: Path, step: int, method: Method, optimizer: Any) -> None:
    state = {"step": step, "method": method.state_dict(), "optimizer": optimizer.state_dict()}
    save_checkpoint(folder / "checkpoints", step, state)


def _resume(folder: Path, method: Method, optimizer: Any) -> int:
    state = load_latest(folder / "checkpoints")
    if state is None:
        return 0
    method.load_state_dict(state["method"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


class _MetricsLog:
    """metrics.jsonl: at most a few hundred rows a run; rows past a resumed step are dropped first."""

    def __init__(self, path: Path, first_step: int, every: int) -> None:
        self.path, self.every = path, every
        rows = path.read_text().splitlines() if path.exists() and first_step > 0 else []
        kept = [row for row in rows if _row_step(row) < first_step]
        write_atomically(path, "".join(row + "\n" for row in kept).encode())

    def wants(self, step: int, total_steps: int) -> bool:
        return step % self.every == 0 or step == total_steps - 1

    def write(self, progress: Progress, lr: float, speed: float, loss: LossParts) -> None:
        row = {"step": progress.step, "epoch": progress.epoch, "loss": loss.total.item(), "lr": lr}
        row["images_per_second"] = round(speed, 1)
        row.update({name: float(value) for name, value in loss.parts.items()})
        with self.path.open("a") as handle:
            handle.write(json.dumps(row) + "\n")


def _row_step(row: str) -> float:
    """The step of a log row; a row cut short by a kill counts as past everything."""
    try:
        return float(json.loads(row)["step"])
    except (ValueError, KeyError):
        return math.inf


def _diagnose(
    method: Method, policies: tuple[ViewPolicy, ...], image_set: ImageSet, seed: int
) -> Diagnostics:
    """Two views of held-out images through the method in evaluation mode; one view's policy if it has one."""
    held_out = image_set.split("val").images[:_DIAGNOSED_IMAGES]
    generator = _generator(seed, "diagnostics", 0)
    device = next(method.parameters()).device
    pair = (policies[0], policies[min(1, len(policies) - 1)])
    method.eval()
    with torch.no_grad():
        z_a, z_b = (
            _embed(method, augment(held_out, policy, image_set.mean, image_set.std, generator).to(device))
            for policy in pair
        )
    return diagnose(z_a, z_b)


def _embed(method: Method, views: Tensor) -> Tensor:
    return torch.cat([method.embed(chunk).float().cpu() for chunk in views.split(256)])


def _encoder_info(recipe: Recipe, recipe_hash: str, method: Method, image_set: ImageSet) -> EncoderInfo:
    spec = recipe.backbone
    return EncoderInfo(
        architecture=spec.name,
        width=spec.width,
        stem=spec.stem,
        feature_dim=method.backbone.feature_dim,
        input_size=view_policies(recipe, image_set.image_size)[0].size,
        mean=image_set.mean,
        std=image_set.std,
        method=recipe.method,
        recipe_hash=recipe_hash,
    )


def reset_peak_memory() -> None:
    """Let `peak_memory_mb` count from here; outside Linux a process keeps the peak of its lifetime."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """Peak memory in MiB: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def device_name(device: torch.device) -> str:
    """The name of the device as people know it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.get_num_threads()} threads)"
