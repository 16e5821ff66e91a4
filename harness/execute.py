"""Do the jobs of a plan, one after the other; one that fails marks its cells and the others go on."""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinbench.data.augment import Normalisation, augment
from twinbench.data.image_sets import ImageSet
from twinbench.data.pictures import small, tiled, write_picture
from twinbench.downstream.checkpoints import Checkpoints
from twinbench.downstream.features import FeatureStore
from twinbench.downstream.label_lists import LabelList
from twinbench.downstream.protocol import EvaluationContext, Protocol
from twinbench.encoders.encoder import DamagedEncoder, Encoder
from twinbench.foundation.checkpoint import remove_checkpoints
from twinbench.foundation.claims import claimed_cores
from twinbench.foundation.collectives import world_size
from twinbench.foundation.errors import ExplainedError, RunFailure, ShortOfMemory
from twinbench.foundation.files import slug
from twinbench.foundation.lease import LostLease
from twinbench.foundation.outcomes import Outcomes, pack
from twinbench.foundation.randomness import seeded_generator
from twinbench.harness.environment import environment
from twinbench.harness.images import Images
from twinbench.harness.plan import Job
from twinbench.harness.published import import_run
from twinbench.harness.record_files import replace_record
from twinbench.harness.source import ImportedSource
from twinbench.harness.store import LOOK_SECONDS, UNFINISHED, VIEWS_PICTURE, Run, RunLease, picture_of
from twinbench.harness.watch import Watch
from twinbench.pretraining.build import view_policies
from twinbench.pretraining.engine import Engine, threads_to_claim
from twinbench.pretraining.finite import Diverged
from twinbench.pretraining.interrupt import Interrupted
from twinbench.pretraining.memory import is_out_of_memory, peak_memory_mb, reset_peak_memory
from twinbench.pretraining.method import method_class
from twinbench.pretraining.recipe import Recipe
from twinbench.pretraining.train import (
    ReportProgress,
    TrainingSummary,
    device_name,
    pretrain,
)
from twinbench.reports.records import unique

OUTCOMES_OF = ("encoder_checksum", "protocol", "image_set", "image_set_fingerprint", "seed")
"""What of a record its outcomes say as well, so that they cannot be taken for another's."""
_SHOWN = 6  # training images in the picture of the views


@dataclass(frozen=True)
class Training:
    """How trainings are done: on several devices, with TensorBoard events. The default is one device."""

    engine: Engine | None = None
    tensorboard: bool = False


ONE_DEVICE = Training()


def execute(
    plan: Iterable[Job],
    images: Images,
    watch: Watch,
    say: Callable[[str], None],
    debug: bool = False,
) -> int:
    """Run every job that is not finished; returns how many failed. Raises Interrupted after a signal to stop.

    Jobs of a run in which another process works come after the others, when it has left the run.
    """
    failures, left, threads = 0, list(plan), threads_to_claim()
    leases = {job.run.folder: job.run.lease() for job in left}
    while left:
        later = list[Job]()
        elsewhere = set[Path]()  # what a run's job waits for, its next ones wait for too
        for job in left:
            folder = job.run.folder
            failed = None
            if folder not in elsewhere:
                failed = attempt(job, images, watch, say, leases[folder], debug, threads=threads)
            if failed is None:
                elsewhere.add(folder)
                later.append(job)
            else:
                failures += failed
        if len(later) == len(left):
            time.sleep(LOOK_SECONDS)
        left = later
    return failures


def cores_for(
    what: str, threads: int, say: Callable[[str], None], check: Callable[[], None] = lambda: None
) -> AbstractContextManager[None]:
    """`claimed_cores`, with a line for the user where ``what`` waits for them."""
    return claimed_cores(threads, lambda holder: say(f"{what} waits for {holder}") if holder else None, check)


def attempt(
    job: Job,
    images: Images,
    watch: Watch,
    say: Callable[[str], None],
    lease: RunLease,
    debug: bool = False,
    training: Training = ONE_DEVICE,
    will_retry: bool = False,
    threads: int = 1,
) -> bool | None:
    """Do a job unless it is finished; whether it failed, or None while another process is at work in its run's folder.

    Cores are claimed for so many ``threads``, before the lease, always: whoever has a lease waits for nothing. Raises
    Interrupted after a signal to stop, with ``debug`` what the job raises, and ShortOfMemory if the caller
    ``will_retry`` what ran out of it.
    """
    if job.is_finished():
        watch.end(job.label)
        return False
    if threads > 1 and (holder := job.run.at_work(lease)):  # it may be long before cores are of any use
        watch.waits(job.label, str(holder))
        return None
    try:
        with (
            claimed_cores(threads, lambda holder: watch.waits(job.label, holder)),
            job.run.working(lease) as ours,
        ):
            if not ours:
                watch.waits(job.label, str(job.run.at_work(lease) or ""))
                return None
            failed, why = _attempt(job, images, watch, say, training, debug, will_retry)
    except LostLease as error:  # at the end, too, when a store elsewhere gets the results
        say(f"LOST {job.label}: {error}")
        watch.waits(job.label, "the process that took it over")
        return None
    watch.end(job.label, why)
    return failed


def _attempt(
    job: Job,
    images: Images,
    watch: Watch,
    say: Callable[[str], None],
    training: Training,
    debug: bool,
    will_retry: bool,
) -> tuple[bool, str]:
    """Do a job, in whose run nobody else works; whether it failed, and why it has no result."""
    if job.is_finished():  # by another process, a moment ago
        return False, ""
    if job.evaluation is not None and not job.run.is_trained():
        return False, "there is no encoder"
    for file in job.run.altered(job.record):
        say(f"ALTERED {file}: it or what belongs to it is not as it was written; the job is done again")
    try:
        run_job(job, images, training, watch.start(job.label), say)
    except (Interrupted, LostLease):
        raise
    except Exception as error:
        if debug:
            raise
        if will_retry and is_out_of_memory(error):
            why = explained(error)
            raise ShortOfMemory(why.what, why.where or job.label) from error
        say(f"FAILED {job.label}: {explained(error)}")
        return True, explained(error).what
    return False, ""


def give_up(
    job: Job, error: RunFailure, lease: RunLease, watch: Watch, say: Callable[[str], None]
) -> bool | None:
    """Mark a job as failed that whoever did it could not; what `attempt` would have returned."""
    if job.is_finished():  # the moment before
        watch.end(job.label)
        return False
    with job.run.working(lease) as ours:
        if not ours:
            watch.waits(job.label, str(job.run.at_work(lease) or ""))
            return None
        try:
            mark_failed(job, error)
        except RunFailure as unwritable:
            say(str(unwritable))
    say(f"FAILED {job.label}: {error}")
    watch.end(job.label, error.what)
    return True


def run_job(
    job: Job, images: Images, training: Training, report: ReportProgress, say: Callable[[str], None]
) -> None:
    """Do one job and leave its result in the run store, or why there is none, and raise that."""
    try:
        _run_job(job, images, training, report, say)
    except Interrupted as error:
        with suppress(LostLease):
            job.run.write_status({"status": "interrupted", "reason": error.what, "recipe_hash": job.run.hash})
        raise
    except LostLease:  # what is written there is another's matter now
        raise
    except DamagedEncoder as error:
        # the next command makes it again; what was measured of it before is of the same bits and stays
        error.next_step = "run the same command again: it makes the encoder again"
        mark_failed(replace(job, evaluation=None, record=None), error)
        raise
    except Exception as error:
        mark_failed(job, error)
        raise


def _run_job(
    job: Job, images: Images, training: Training, report: ReportProgress, say: Callable[[str], None]
) -> None:
    if job.evaluation is not None and job.record is not None:
        evaluated = evaluate_run(job.run, job.evaluation.protocol, images[job.evaluation.images], report)
        if evaluated.picture is not None:
            write_picture(picture_of(job.record), evaluated.picture)
        evaluated.write(job.record)
        evaluated.checkpoints.remove()
        return
    if isinstance(job.run.source, ImportedSource):
        import_run(job.run, say)
        return
    job.run.begin()
    summary = train_run(job.run, images[job.trained_on], training, report, say)
    show_views(job.run, images[job.trained_on])
    finish_run(job.run, summary)


def train_run(
    run: Run,
    image_set: ImageSet,
    training: Training,
    report: ReportProgress = lambda fraction, text: None,
    say: Callable[[str], None] = lambda text: None,
) -> TrainingSummary:
    """Train a run, resuming where it was interrupted; on every rank."""
    assert isinstance(run.source, Recipe), "an imported encoder is not trained here"
    return pretrain(
        run.source,
        run.hash,
        image_set,
        run.folder,
        report,
        say=say,
        engine=training.engine,
        tensorboard=training.tensorboard,
    )


def show_views(run: Run, image_set: ImageSet) -> None:
    """Leave a picture of a few training images and of views as the method saw them.

    Of pictures that stay on disk they are cut from the centre, where training cuts them from the whole.
    """
    recipe = run.source
    if not isinstance(recipe, Recipe) or not method_class(recipe.method).trains:
        return
    policies, split = view_policies(recipe, image_set.image_size), image_set.split("train")
    images = split.images[torch.linspace(0, len(split) - 1, min(_SHOWN, len(split))).long()]
    generator = seeded_generator(run.source.seed, "picture", 0)
    # draws of its own, not those of the training
    as_it_is = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    views = [augment(images, policy, as_it_is, generator) for policy in policies]
    columns = [small(shown, images.shape[-1]) for shown in (images, *views)]
    write_picture(run.folder / VIEWS_PICTURE, tiled([[*row] for row in zip(*columns, strict=True)], apart=1))


def finish_run(run: Run, summary: TrainingSummary) -> None:
    """Mark a run as trained; its checkpoints are no longer needed."""
    run.write_status(
        {
            "status": summary.status,
            "reason": summary.reason,
            "recipe_hash": run.hash,
            "seconds": summary.seconds,
            "images_per_second": summary.images_per_second,
            "peak_memory_mb": summary.peak_memory_mb,
            "training_memory_mb": summary.training_memory_mb,
            "parameters": summary.parameters,
            "device": summary.device,
            "device_type": summary.device_type,
            "ranks": summary.ranks,
            "threads": summary.threads,
            "energy_joules": summary.energy_joules,
            "energy_unknown": summary.energy_unknown,
            "skipped_images": summary.skipped_images,
            "remarks": list(summary.remarks),
            "environment": environment(),
        }
    )
    remove_checkpoints(run.folder / "checkpoints")


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation leaves: its record, what became of each test item, and a picture, the latter two if any.

    Its ``checkpoints`` are to be removed once the record is written.
    """

    record: dict[str, Any]
    outcomes: Outcomes | None
    picture: Tensor | None
    checkpoints: Checkpoints

    def write(self, path: Path) -> None:
        """Write the record to a file and the outcomes beside it, in the place of those that are there."""
        if self.outcomes is None:
            replace_record(path, self.record)
            return
        about = {name: str(self.record[name]) for name in OUTCOMES_OF}
        about["reading"] = json.dumps(self.record["reading"], sort_keys=True)
        replace_record(path, self.record, pack(self.outcomes, about))


def evaluate_run(run: Run, protocol: Protocol, image_set: ImageSet, report: ReportProgress) -> Evaluated:
    """What the evaluation of a run's encoder under one protocol leaves."""
    encoder = Encoder.load(run.encoder_folder)
    return evaluate_encoder(
        encoder,
        protocol,
        image_set,
        run.source.seed,
        run.folder / "features",
        report,
        unfinished=run.folder / UNFINISHED,
    )


def evaluation_device() -> torch.device:
    """Where encoders are evaluated: on this rank's GPU, or on the CPU of a machine without."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def evaluate_encoder(
    encoder: Encoder,
    protocol: Protocol,
    image_set: ImageSet,
    seed: int,
    feature_folder: Path | None,
    report: ReportProgress,
    label_list: LabelList | None = None,
    unfinished: Path | None = None,
) -> Evaluated:
    """What the evaluation of one encoder under one protocol leaves; every rank calls this.

    What it trains is kept below ``unfinished`` meanwhile, if that is given, and gone on with by the next such call.
    """
    device = evaluation_device()
    checkpoints = _checkpoints(unfinished, encoder, protocol, image_set, seed, label_list)
    encoder.backbone.to(device)
    context = EvaluationContext(
        image_set=image_set,
        device=device,
        features=FeatureStore(feature_folder),
        seed=seed,
        progress=lambda fraction: report(fraction, ""),
        label_list=label_list,
        checkpoints=checkpoints,
    )
    reset_peak_memory()
    started = time.monotonic()
    measurements = protocol.evaluate(encoder, context)
    record = {
        "protocol": protocol.name,
        "image_set": image_set.name,
        "image_set_fingerprint": image_set.fingerprint,
        "reading": asdict(image_set.reading),
        "encoder_checksum": encoder.checksum,
        "encoder": asdict(encoder.info),
        "recipe_hash": encoder.info.recipe_hash,
        "origin": encoder.info.origin,
        "status": "done",
        "reason": "",
        "seed": seed,
        "seconds": time.monotonic() - started,
        "peak_memory_mb": peak_memory_mb(),
        "device": device_name(device, world_size()),
        "environment": environment(),
        "details": context.details,
        "remarks": list(
            unique(
                [
                    *image_set.remarks,
                    *context.features.remarks,
                    *_unmeasured(protocol, image_set),
                    *context.remarks,
                ]
            )
        ),
        "measurements": [
            {"metric": m.metric, "value": m.value, "n": m.n, "stderr": m.stderr} for m in measurements
        ],
    }
    return Evaluated(record, context.outcomes, context.picture, checkpoints)


def _checkpoints(
    folder: Path | None,
    encoder: Encoder,
    protocol: Protocol,
    image_set: ImageSet,
    seed: int,
    label_list: LabelList | None,
) -> Checkpoints:
    """Those of an evaluation, in a folder named after everything that changes its numbers and nothing else."""
    if folder is None:
        return Checkpoints()
    identity = {
        "encoder": [encoder.checksum, asdict(encoder.info)],
        "protocol": [protocol.name, {name: _shown(value) for name, value in sorted(vars(protocol).items())}],
        "image_set": [image_set.fingerprint, asdict(image_set.reading)],
        "seed": seed,
        "label_list": None if label_list is None else label_list.digest(),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return Checkpoints(folder / f"{slug(protocol.name)}-{digest}", identity)


def _shown(setting: object) -> str:
    """A protocol's setting as text; a function by its name."""
    return getattr(setting, "__qualname__", None) or repr(setting)


def _unmeasured(protocol: Protocol, image_set: ImageSet) -> list[str]:
    return [f"{metric} is not measured: {why}" for metric, why in protocol.unmeasured(image_set).items()]


def mark_failed(job: Job, error: Exception) -> None:
    """Leave the reason where the report finds it; a failed job is tried again by the next command.

    ``reason`` is what a table's footnote says; ``error`` has all parts.
    """
    failed = explained(error)
    place = "" if failed.where is None else f" ({failed.where})"
    failure = {
        "status": "failed",
        "reason": f"{failed.what}{place}",
        "error": failed.parts(),
        "diverged": isinstance(error, Diverged),
        "traceback": "".join(traceback.format_exception(error)),
    }
    if job.evaluation is None or job.record is None:
        job.run.write_status({**failure, "recipe_hash": job.run.hash})
    else:
        replace_record(
            job.record, {**failure, "protocol": job.evaluation.protocol.name, "encoder_checksum": ""}
        )


def explained(error: Exception) -> ExplainedError:
    """The error as one with parts: of one that nobody foresaw, its type and text are what happened."""
    return error if isinstance(error, ExplainedError) else RunFailure(f"{type(error).__name__}: {error}")
