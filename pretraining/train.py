"""The training loop: from a recipe and an image set to an encoder on disk.

Read `pretrain` first: it is the whole story. Everything random is a function of (seed, step), never of how
often something was called before, so a run that was killed and resumed ends with the same bits as one that
was not.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from twinbench.data.augment import ViewPolicy, augment
from twinbench.data.image_sets import ImageSet
from twinbench.encoders.encoder import Encoder, EncoderInfo
from twinbench.encoders.geometry import HELD_OUT_IMAGES, Geometry, geometry
from twinbench.foundation.checkpoint import load_latest, save_checkpoint
from twinbench.foundation.collectives import all_reduce_sum, mean_over_ranks
from twinbench.foundation.documents import sealed
from twinbench.foundation.errors import InputError, RunFailure
from twinbench.foundation.files import write_atomically
from twinbench.foundation.randomness import seed_for, seeded_generator
from twinbench.pretraining.batches import Batches, MicroBatch
from twinbench.pretraining.build import build_method, check_accumulation, view_policies
from twinbench.pretraining.diagnostics import diagnose, embeddings_document, probe, unjudged
from twinbench.pretraining.engine import Engine, Hardware, check_shares, launch
from twinbench.pretraining.finite import LossWatch, check_parameters
from twinbench.pretraining.interrupt import Interrupted, StopRequest
from twinbench.pretraining.memory import peak_memory_mb, peak_working_memory_mb, reset_peak_memory
from twinbench.pretraining.method import LossParts, Method, Progress
from twinbench.pretraining.metrics_log import MetricsLog, wants_probe, wants_row
from twinbench.pretraining.optim import build_optimizer, set_learning_rates
from twinbench.pretraining.recipe import Recipe
from twinbench.pretraining.schedules import lr_factor
from twinbench.pretraining.spent import Spent, spent_on

_CHECKPOINT_SECONDS = 30.0
_SAVING_SHARE = 0.01
_PROBED_IMAGES = 256

ReportProgress = Callable[[float, str], None]
"""Takes the fraction that is done and a line about it."""


@dataclass(frozen=True)
class TrainingSummary:
    """What a finished run leaves beside its encoder.

    ``seconds`` are those of all its parts, also before an interruption. It used ``ranks`` devices of ``device_type``,
    each with so many ``threads`` if they are CPUs. ``peak_memory_mb`` is that of the process, and
    ``training_memory_mb`` what the training added to it, without images and libraries; None if the system does not
    tell. ``energy_joules`` is None where ``energy_unknown`` says why.
    """

    status: str
    reason: str
    seconds: float
    images_per_second: float
    peak_memory_mb: float
    training_memory_mb: float | None
    parameters: int
    device: str
    skipped_images: int
    device_type: str
    ranks: int
    threads: int
    energy_joules: float | None
    energy_unknown: str
    remarks: tuple[str, ...] = ()


def pretrain(
    recipe: Recipe,
    recipe_hash: str,
    image_set: ImageSet,
    folder: Path,
    report: ReportProgress = lambda fraction, text: None,
    *,
    say: Callable[[str], None] = lambda text: None,
    engine: Engine | None = None,
    tensorboard: bool = False,
    checkpoint_seconds: float | None = None,
) -> TrainingSummary:
    """Train the recipe's method, or go on where an interrupted run stopped, and write ``folder/encoder``.

    Every rank of ``engine`` calls this; rank 0 writes. Raises InputError if the recipe does not fit the image
    set or the hardware, RunFailure on a non-finite loss, Interrupted after a signal to stop.
    """
    engine = engine or launch(Hardware(), recipe.precision)
    # now: a bad image must not end a finished training, and images are no memory of the method's
    held_out = image_set.split("val").images[:HELD_OUT_IMAGES]
    image_set.split("train")
    reset_peak_memory()
    held_mb = peak_working_memory_mb()
    method = build_method(recipe)
    spent = spent_on(engine.device, counts=engine.counts_energy)
    rate, skipped, first_step = 0.0, 0, 0
    if method.trains and recipe.epochs > 0:
        session = start_session(recipe, method, image_set, engine)
        session.spent = spent
        first_step = _resume(folder, session)
        rate = _optimise(session, first_step, held_out, folder, report, say, tensorboard, checkpoint_seconds)
        skipped = session.batches.skipped_images()
    policies = view_policies(recipe, image_set.image_size)
    method.to(engine.device)
    pair = (policies[0], policies[min(1, len(policies) - 1)])
    diagnostics = diagnose(*_embed_held_out(method, held_out, pair, image_set, recipe.seed))
    if engine.is_main:
        measured = _compared(method, held_out, policies[0].size, image_set, recipe.seed)
        document = diagnostics.as_dict() | {"embeddings": embeddings_document(measured, len(held_out))}
        write_atomically(folder / "diagnostics.json", sealed(document))
        Encoder.save(
            folder / "encoder", method.backbone, _encoder_info(recipe, recipe_hash, method, image_set)
        )
    reason = diagnostics.collapse() if method.trains else None
    doubt = unjudged(diagnostics.samples) if method.trains else None
    if doubt and engine.is_main:
        say(f"{_called(recipe)}: {doubt}")
    partial = _partial_count(image_set, first_step, engine.hardware.ranks)
    joules, working_mb = _joules(engine, spent), peak_working_memory_mb()
    return TrainingSummary(
        status="collapsed" if reason else "done",
        reason=reason or "",
        seconds=spent.seconds,
        images_per_second=rate,
        peak_memory_mb=peak_memory_mb(),
        training_memory_mb=None if working_mb is None or held_mb is None else working_mb - held_mb,
        parameters=sum(p.numel() for p in method.parameters()),
        device=device_name(engine.device, engine.hardware.ranks),
        skipped_images=skipped,
        device_type=engine.device.type,
        ranks=engine.hardware.ranks,
        threads=torch.get_num_threads(),
        energy_joules=None if math.isnan(joules) else joules,
        energy_unknown=(spent.unknown or "another device does not tell its energy")
        if math.isnan(joules)
        else "",
        remarks=(*image_set.remarks, *[remark for remark in (partial, doubt) if remark]),
    )


@dataclass
class Session:
    """What every step of a run needs."""

    recipe: Recipe
    image_set: ImageSet
    engine: Engine
    method: Method
    model: Any
    optimizer: Optimizer
    batches: Batches
    spent: Spent = field(default_factory=Spent)

    def progress(self, step: int) -> Progress:
        """Where a step is in the run."""
        return Progress(step, self.batches.total_steps, self.batches.steps_per_epoch)

    def gradients(self, batch: list[MicroBatch], progress: Progress) -> LossParts:
        """The first half of a step, up to the gradients of the global batch; returns the mean loss.

        The order of hooks here and in `update` is the contract of `Method`.
        """
        factor = lr_factor(
            self.recipe.schedule, progress.step, progress.total_steps, progress.steps_per_epoch
        )
        set_learning_rates(self.optimizer, factor)
        _seed_everything(self.recipe.seed, progress.step)
        self.method.before_step(progress)
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for index, (views, labels) in enumerate(batch):
            is_last = index == len(batch) - 1
            with self.engine.without_averaging(self.model, enabled=not is_last):
                loss = self.model(views, labels if self.method.needs_labels else None, progress)
                self.engine.backward(loss.total / len(batch))
            losses.append(loss)
        return _mean_loss(losses)

    def update(self, progress: Progress) -> None:
        """The second half of a step."""
        self.method.before_optimizer(progress)
        self.optimizer.step()
        self.method.after_step(progress)


def start_session(recipe: Recipe, method: Method, image_set: ImageSet, engine: Engine) -> Session:
    """Everything on its device, ready for the first step."""
    spec = recipe.optimizer
    if spec is None:
        raise InputError(
            "the recipe has no optimizer", where=recipe.method, next_step="add the key 'optimizer'"
        )
    policies = view_policies(recipe, image_set.image_size)
    method.check(recipe.batch_size, len(policies), engine.hardware.ranks)
    check_shares(recipe.batch_size, recipe.accumulate, engine.hardware.ranks)
    check_accumulation(recipe, method)
    batches = Batches(recipe, policies, image_set, engine)
    model, optimizer = engine.setup(
        method,
        lambda method: build_optimizer(
            spec, method.parameter_groups(spec.weight_decay), recipe.batch_size, recipe.precision
        ),
    )
    return Session(recipe, image_set, engine, method, model, optimizer, batches)


def _optimise(
    session: Session,
    first_step: int,
    held_out: Tensor,
    folder: Path,
    report: ReportProgress,
    say: Callable[[str], None],
    tensorboard: bool,
    checkpoint_seconds: float | None,
) -> float:
    """Take every step from the first that is still to do; returns images per second."""
    recipe, batches, optimizer = session.recipe, session.batches, session.optimizer
    total_steps = batches.total_steps
    say(_launch_line(session, first_step))
    losses = LossWatch(session.model, session.engine)
    keeper = _Keeper(session, held_out, folder, first_step, say, tensorboard, checkpoint_seconds)
    started = speed = 0.0
    feed = batches.from_step(first_step)
    with StopRequest() as stop:
        batch, error = _next_batch(feed)
        is_unreadable, is_time = session.engine.any_rank_each(error is not None, keeper.is_time())
        _require_readable(is_unreadable, error)
        for step in range(first_step, total_steps):
            progress = session.progress(step)
            due = _due(progress, is_time)
            assert batch is not None
            loss = session.gradients(batch, progress)
            losses.add(loss.total, progress, optimizer.param_groups[0]["lr"])
            # while the device still works, its next views queue up
            current, (batch, error) = batch, _next_batch(feed)
            if losses.each_step or any(due):
                losses.check(current, progress)
            session.update(progress)

            if step == first_step:
                started = time.monotonic()  # the first step also allocates, or compiles
            speed = (step - first_step) * recipe.batch_size / max(time.monotonic() - started, 1e-9)
            keeper.after_step(progress, loss, speed, due)
            # all that the ranks must agree on, asked once a step, for the answer is waited for
            is_unreadable, is_time, is_stopped = session.engine.any_rank_each(
                error is not None, keeper.is_time(), stop.name is not None
            )
            if is_stopped:
                losses.check(current, session.progress(step + 1))
                keeper.save(step + 1)
                session.engine.barrier()  # a launcher ends all ranks when the first has left
                raise Interrupted(
                    f"stopped by {stop.name or 'a signal to another rank'} after step {step + 1}; saved",
                    where=folder,
                    next_step="run the same command again: it goes on from there",
                )
            _require_readable(is_unreadable, error)
            report((step + 1) / total_steps, _progress_line(session, progress, losses.latest, speed))
    check_parameters(session.method, total_steps)
    return speed


_Unreadable = InputError | RunFailure


def _next_batch(feed: Iterator[list[MicroBatch]]) -> tuple[list[MicroBatch] | None, _Unreadable | None]:
    """The next batch, None after the last, and why this rank cannot read it, if so."""
    try:
        return next(feed, None), None
    except (InputError, RunFailure) as error:
        return None, error


def _require_readable(is_unreadable: bool, error: _Unreadable | None) -> None:
    """What one rank cannot read ends the run on every rank, each with its own error if it has one."""
    if is_unreadable:
        raise error or RunFailure(
            "another rank could not read its images", next_step="see that rank's message for the file"
        )


class _Due(NamedTuple):
    """What is to be written after a step."""

    row: bool
    checkpoint: bool


def _due(progress: Progress, is_time: bool) -> _Due:
    """``is_time``: the last checkpoint is old; after the last step there is an encoder in its place."""
    return _Due(
        row=wants_row(progress.step, progress.total_steps),
        checkpoint=is_time and progress.step + 1 < progress.total_steps,
    )


def seconds_between_checkpoints(saving: float, least: float = _CHECKPOINT_SECONDS) -> float:
    """How long a training goes on after a checkpoint that took ``saving`` seconds: at least ``least``, 0 for always.

    Saving takes at most a hundredth of the time: a gigabyte on a slow disk is not written every half minute.
    """
    return least and max(least, saving / _SAVING_SHARE)


class _Keeper:
    """What rank 0 does after a step: log rows, measure collapse, write checkpoints."""

    def __init__(
        self,
        session: Session,
        held_out: Tensor,
        folder: Path,
        first_step: int,
        say: Callable[[str], None],
        tensorboard: bool,
        checkpoint_seconds: float | None,
    ) -> None:
        self._session, self._folder, self._say = session, folder, say
        self._held_out = held_out[:_PROBED_IMAGES]
        self._seconds = _CHECKPOINT_SECONDS if checkpoint_seconds is None else checkpoint_seconds
        self._last_saved, self._wait = time.monotonic(), self._seconds
        self._warned = False
        self._log = MetricsLog(folder, first_step, tensorboard) if session.engine.is_main else None

    def is_time(self) -> bool:
        """Whether this rank saved its last checkpoint long ago."""
        return time.monotonic() - self._last_saved >= self._wait

    def after_step(self, progress: Progress, loss: LossParts, speed: float, due: _Due) -> None:
        """Called after every step, on every rank; the rows speak of the global batch."""
        if due.row:
            row = {"step": progress.step, "epoch": progress.epoch, "loss": loss.total.item()}
            row["lr"] = self._session.optimizer.param_groups[0]["lr"]
            row["images_per_second"] = round(speed, 1)
            row.update({name: mean_over_ranks(value.detach()).item() for name, value in loss.parts.items()})
            if self._log is not None:
                self._log.write({**row, **self._probe(progress)})
        self._session.spent.keep_count()
        if due.checkpoint:
            self.save(progress.step + 1)

    def save(self, step: int) -> None:
        """Write a checkpoint of the state after ``step`` steps, on rank 0; it must be finite."""
        started = time.monotonic()
        check_parameters(self._session.method, step)
        joules = _joules(self._session.engine, self._session.spent)
        if self._session.engine.is_main:
            _save(self._folder, step, self._session, joules)
        self._last_saved = time.monotonic()
        self._wait = seconds_between_checkpoints(self._last_saved - started, self._seconds)

    def _probe(self, progress: Progress) -> dict[str, float]:
        session = self._session
        if not wants_probe(progress.step, progress.total_steps):
            return {}
        one = session.batches.policies[:1]
        (z,) = _embed_held_out(session.method, self._held_out, one, session.image_set, session.recipe.seed)
        session.model.train()
        if not z.isfinite().all():
            return {}  # the next step's loss will say what went wrong
        measured = probe(z)
        reason = measured.collapse(len(z))
        if reason and not self._warned:
            self._say(f"{_called(session.recipe)}: COLLAPSING at step {progress.step}: {reason}")
        self._warned = self._warned or reason is not None
        return measured._asdict()


def _partial_count(image_set: ImageSet, first_step: int, ranks: int) -> str | None:
    """What the counts of odd pictures leave out, where a set is decoded as it is trained on; or None."""
    parts = [f"from step {first_step} on"] if first_step else []
    parts += [f"by one of {ranks} processes"] if ranks > 1 else []
    if not image_set.streamed or not parts:
        return None
    return f"pictures that are odd or were left out are counted here as they were met {' and '.join(parts)}"


def _called(recipe: Recipe) -> str:
    return f"{recipe.method} (seed {recipe.seed})"


def _mean_loss(losses: list[LossParts]) -> LossParts:
    """The mean over micro-batches."""
    if len(losses) == 1:
        return losses[0]
    total = torch.stack([loss.total.detach() for loss in losses]).mean()
    parts = {name: torch.stack([loss.parts[name] for loss in losses]).mean() for name in losses[0].parts}
    return LossParts(total, parts)


def _seed_everything(seed: int, step: int) -> None:
    """Makes whatever a method draws from the global generators a function of (seed, step) too."""
    mixed = seed_for(seed, "method", step)
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def _launch_line(session: Session, first_step: int) -> str:
    recipe, hardware = session.recipe, session.engine.hardware
    rates = ", ".join(f"{group['name']} {group['peak_lr']:.4g}" for group in session.optimizer.param_groups)
    steps = f"{session.batches.total_steps} steps" + (f" from {first_step}" if first_step else "")
    share = recipe.batch_size // hardware.ranks // recipe.accumulate
    micro = f" x {recipe.accumulate} micro-batches" if recipe.accumulate > 1 else ""
    return (
        f"{recipe.method} (seed {recipe.seed}): peak learning rate {rates}; {steps}, "
        f"{device_name(session.engine.device, hardware.ranks)} x {share} images{micro}, {recipe.precision}"
    )


def _progress_line(session: Session, progress: Progress, loss: float | None, speed: float) -> str:
    lr = session.optimizer.param_groups[0]["lr"]
    known = "-" if loss is None else f"{loss:.4g}"
    return (
        f"epoch {progress.epoch + 1}/{session.recipe.epochs}  loss {known}  lr {lr:.3g}  {speed:.0f} images/s"
    )


def pretrain_step_seconds(recipe: Recipe, image_set: ImageSet, steps: int = 3) -> float:
    """Seconds of one training step on this machine: the median of a few real ones, after a first."""
    method = build_method(recipe)
    if not method.trains:
        return 0.0
    long_enough = recipe.model_copy(update={"epochs": max(recipe.epochs, steps + 1)})
    session = start_session(long_enough, method, image_set, launch(Hardware(), recipe.precision))
    times = []
    feed = session.batches.from_step(0)
    for step in range(steps + 1):
        started = time.perf_counter()
        session.gradients(next(feed), session.progress(step)).total.item()
        session.update(session.progress(step))
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def _joules(engine: Engine, spent: Spent) -> float:
    """The energy that all ranks have taken until now, NaN if one does not know; every rank must ask."""
    spent.keep_count(at_once=True)
    return all_reduce_sum(torch.tensor(spent.joules, dtype=torch.float64, device=engine.device)).item()


def _save(folder: Path, step: int, session: Session, joules: float) -> None:
    state = {
        "step": step,
        "method": session.method.state_dict(),
        "optimizer": session.optimizer.state_dict(),
        "precision": session.engine.precision_state(),
        "spent": {"seconds": session.spent.seconds, "joules": joules},
    }
    save_checkpoint(folder / "checkpoints", step, state)


def _resume(folder: Path, session: Session) -> int:
    """Load the newest intact checkpoint on every rank; returns how many steps lie before it."""
    engine = session.engine
    if engine.is_main:
        load_latest(folder / "checkpoints")  # drops damaged files before another rank may read them
    engine.barrier()
    state = load_latest(folder / "checkpoints")
    step = 0 if state is None else int(state["step"])
    if engine.any_rank(step != engine.from_main(step)):
        raise InputError(
            "the ranks do not see the same checkpoints",
            where=folder,
            next_step="keep the runs in a folder that all nodes share",
            option="runs",
        )
    if state is not None:
        session.method.load_state_dict(state["method"])
        session.optimizer.load_state_dict(state["optimizer"])
        engine.load_precision_state(state["precision"])
        # checkpoints of earlier versions tell nothing of it
        session.spent.go_on(state.get("spent", {"seconds": 0.0, "joules": math.nan}), engine.is_main)
    return step


def _compared(method: Method, held_out: Tensor, size: int, image_set: ImageSet, seed: int) -> Geometry | None:
    """The geometry of the embeddings of views that are the same for every method; None if it has none."""
    if not method.has_embeddings:
        return None
    method.eval()
    device = next(method.parameters()).device
    return geometry(method.embed, held_out, size, image_set.normalisation, seed, device)


@torch.no_grad()
def _embed_held_out(
    method: Method, held_out: Tensor, policies: tuple[ViewPolicy, ...], image_set: ImageSet, seed: int
) -> list[Tensor]:
    """A view of held-out images ``[N, 3, H, W]`` for each policy, embedded in evaluation mode."""
    generator = seeded_generator(seed, "diagnostics", 0)
    device = next(method.parameters()).device
    method.eval()
    return [
        _embed(method, augment(held_out.to(device), policy, image_set.normalisation, generator))
        for policy in policies
    ]


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
        mean=image_set.normalisation.mean,
        std=image_set.normalisation.std,
        method=recipe.method,
        recipe_hash=recipe_hash,
    )


def device_name(device: torch.device, count: int = 1) -> str:
    """The name of the device as people know it, and how many of them."""
    times = f"{count} x " if count > 1 else ""
    if device.type == "cuda":
        return times + torch.cuda.get_device_name(device)
    return f"{times}CPU ({torch.get_num_threads()} threads)"
