"""What the commands pretrain and evaluate do: one encoder, free of argument parsing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from twinbench.data.catalogue import load_image_set
from twinbench.downstream.label_lists import LabelList
from twinbench.downstream.protocol import Protocol, protocol, protocol_names
from twinbench.encoders.encoder import Encoder
from twinbench.foundation.collectives import rank
from twinbench.foundation.errors import InputError, unknown_name
from twinbench.foundation.lease import LEASE_SECONDS
from twinbench.foundation.outcomes import OUTCOMES_SUFFIX, detections_file, is_outcomes
from twinbench.foundation.ranks import from_main
from twinbench.harness.console import say
from twinbench.harness.execute import Training, cores_for, evaluate_encoder, run_job, train_run
from twinbench.harness.images import ImageChoice, Images
from twinbench.harness.main import main
from twinbench.harness.plan import Job, load_splits, plan_run
from twinbench.harness.plugins import load_plugins
from twinbench.harness.recipes import load_recipe, parse_overrides
from twinbench.harness.record_files import outcomes_beside
from twinbench.harness.store import (
    UNFINISHED,
    Run,
    check_writable,
    encoder_in,
    keeping_run,
    prepare_store,
    read_json,
)
from twinbench.harness.watch import watched
from twinbench.pretraining.engine import (
    ONE_DEVICE,
    Engine,
    Hardware,
    check_hardware,
    divide_cores,
    launch,
    ranks_are_started,
    threads_to_claim,
)
from twinbench.pretraining.interrupt import Interrupted, ended_by_signals, raised_signals
from twinbench.pretraining.method import method_names
from twinbench.reports.cells import number
from twinbench.reports.metrics import metric_of

_RANK_0 = "TWINBENCH_RANK_0"
"""The variable by which the ranks that Fabric starts know the process that did."""


@dataclass(frozen=True)
class PretrainRequest:
    """What `twinbench pretrain` is asked for; ``recipe`` is a folder, the image set's own unless given."""

    method: str
    image_set: str
    hardware: Hardware
    recipe: str | None = None
    seed: int = 0
    assignments: tuple[str, ...] = ()
    data_root: Path | None = None
    runs: Path = Path("runs")
    tensorboard: bool = False


def pretrain_one(request: PretrainRequest) -> None:
    """Train one encoder and print where it is; every rank calls this, rank 0 writes and prints."""
    load_plugins()
    if request.method not in method_names():
        raise unknown_name("method", request.method, method_names())
    overrides = parse_overrides(request.assignments)
    recipe = load_recipe(request.recipe or "", request.method, request.image_set, overrides, request.seed)
    images, choice = Images(request.data_root), ImageChoice(request.image_set, corrupt=recipe.corrupt_images)
    image_set = images[choice]
    check_hardware(request.hardware, recipe.precision)
    run = plan_run(recipe, image_set, request.runs, request.hardware.ranks)
    prepare_store(request.runs)
    if run.is_trained():
        say("already trained")
    else:
        job = Job(run, choice, f"pretrain {recipe.method} (seed {recipe.seed})")
        with _cores_for_ranks(job.label, request.hardware):
            engine = _launched(request.hardware, recipe.precision)
            training = Training(engine, request.tensorboard)
            if not engine.is_main:
                with suppress(Interrupted):  # rank 0 says so
                    train_run(run, image_set, training)
                return
            with _held(job.label, run, request.hardware), watched({"": [job.label]}) as watch:
                if not job.is_finished():  # by another process, while this one waited
                    run_job(job, images, training, watch.start(job.label), say)
    status = run.status() or {}
    if status["status"] == "collapsed":
        say(f"COLLAPSED: {status['reason']}")
    print(f"encoder: {run.encoder_folder}")


@dataclass(frozen=True)
class EvaluateRequest:
    """What `twinbench evaluate` is asked for: an encoder's folder, or the run's that holds it, and how to measure it.

    ``out`` is one more file for the record, with that of the outcomes beside it (`record_files.replace_record`);
    ``own_list`` says that the list of labelled images is the user's own. Nothing measured depends on the ``hardware``.
    """

    encoder: Path
    protocol: str
    image_set: str
    seed: int = 0
    data_root: Path | None = None
    out: Path | None = None
    label_list: Path | None = None
    own_list: bool = False
    hardware: Hardware = ONE_DEVICE


def evaluate_one(request: EvaluateRequest) -> None:
    """Evaluate one encoder, print measurements and remarks; keep the record in its run and where ``out`` says.

    A record made with a label list, or with another seed than the run's, is kept only where ``out`` says: it is not
    what a study would make. What the run has already is printed as it is, unless ``out`` asks for one more record.
    Every rank calls this; rank 0 writes and prints.
    """
    load_plugins()
    check_hardware(request.hardware, "fp32")
    chosen = protocol(request.protocol)
    chosen.check_ranks(request.hardware.ranks)
    labelled = _label_list(chosen, request.label_list, request.own_list)
    folder = encoder_in(request.encoder)
    encoder = Encoder.load(folder)
    # Names on a list are those of files, which only a streamed set knows.
    image_set = load_image_set(request.image_set, request.data_root, stream=True if labelled else None)
    run = None if labelled else keeping_run(folder.parent, request.seed)
    kept = run.record_file(chosen.name, image_set) if run is not None else None
    if request.out is not None:
        _check_out(request.out)
    for file in _places(request.out, kept):
        check_writable(file.parent)
    chosen.check(image_set)
    load_splits(image_set, (chosen,))
    evaluate = partial(
        evaluate_encoder,
        encoder,
        chosen,
        image_set,
        request.seed,
        None,
        label_list=labelled,
        unfinished=_unfinished(run, request.out),
    )
    label = f"{chosen.name} {folder}"

    def finished() -> dict[str, Any] | None:
        return None if run is None or kept is None or request.out else run.record(kept)

    # of several ranks rank 0 has to ask, for all of them
    record = finished() if request.hardware.ranks == 1 else None
    if record is not None:
        say(f"already measured: {kept}")
        _print_record(record, encoder)
        return
    with _cores_for_ranks(label, request.hardware):
        if request.hardware.ranks > 1 and not _join_ranks(chosen, request.hardware):
            return
        if rank():
            with suppress(Interrupted), raised_signals():  # rank 0 says so
                if not from_main(False):
                    evaluate(lambda fraction, text: None)
            return
        with raised_signals(), _held(label, run, request.hardware), watched({"": [label]}) as watch:
            record = finished()  # by another process perhaps, while this one waited
            if not from_main(record is not None):
                evaluated = evaluate(watch.start(label))
                for file in _places(request.out, kept):
                    evaluated.write(file)
                evaluated.checkpoints.remove()
                record = evaluated.record
            else:
                say(f"already measured: {kept}")
    assert record is not None
    _print_record(record, encoder)


def _print_record(record: Mapping[str, Any], encoder: Encoder) -> None:
    """What an evaluation has measured, and its remarks."""
    info = encoder.info
    source = f" from {info.source_file}" if info.source_file else ""
    named = f"encoder {encoder.checksum[:12]} ({info.method}{source})"
    print(f"{record['protocol']} on {record['image_set']}, {named}")
    for measured in record["measurements"]:
        error = "" if measured["stderr"] is None else f" ± {measured['stderr']:.2f}"
        shown = number(measured["value"], metric_of(measured["metric"]).digits + 1)
        print(f"  {measured['metric']:<12} {shown}{error}  (n = {measured['n']})")
    for remark in record["remarks"]:
        print(f"  remark: {remark}")


def _launched(hardware: Hardware, precision: str) -> Engine:
    """`launch`, which a signal can end. Ranks that this one starts end with it."""
    if hardware.ranks == 1:
        return launch(hardware, precision)
    first = int(os.environ.setdefault(_RANK_0, str(os.getpid())))
    try:
        with ended_by_signals(None if first == os.getpid() else first):
            return launch(hardware, precision)
    finally:
        del os.environ[_RANK_0]


def _cores_for_ranks(what: str, hardware: Hardware) -> AbstractContextManager[None]:
    """The cores of this machine for several ranks: claimed before they meet, as they wait for each other."""
    return nullcontext() if hardware.ranks == 1 else cores_for(what, threads_to_claim(hardware), say)


def _held(what: str, run: Run | None, hardware: Hardware) -> AbstractContextManager[None]:
    """A run, if it is one, kept from other processes; of a single rank with its cores."""
    if hardware.ranks > 1:  # the others wait for this one meanwhile, and not for ever
        return nullcontext() if run is None else run.locked(say, 2 * LEASE_SECONDS)
    cores = partial(cores_for, what, threads_to_claim(hardware), say)
    return cores() if run is None else run.locked(say, cores=cores)


def _join_ranks(chosen: Protocol, hardware: Hardware) -> bool:
    """Become one of the ranks; False where a launcher of the protocol's own has started others, which have ended."""
    if dist.is_initialized():  # by that launcher
        divide_cores(hardware)
        return True
    with raised_signals():
        ended = None if ranks_are_started() else chosen.start_ranks(main, hardware.devices, hardware.nodes)
    if ended is None:
        _launched(hardware, "fp32")
    elif ended:
        raise SystemExit(ended)  # that rank has said why
    return ended is None


def _unfinished(run: Run | None, out: Path | None) -> Path | None:
    """Where to keep what is trained meanwhile: where the record will be, in the run or beside ``out``."""
    if run is not None:
        return run.folder / UNFINISHED
    return out.with_name(f"{out.name}.{UNFINISHED}") if out is not None else None


def _places(*files: Path | None) -> list[Path]:
    """The files, each once: the run's own may be the one that is asked for."""
    return list({file.parent.resolve() / file.name: file for file in files if file is not None}.values())


def _check_out(out: Path) -> None:
    """Raise InputError if a record in ``out``, or the outcomes beside it, would take the place of something else."""
    if out.is_dir():
        raise InputError(
            "this is a folder, and the record is a file",
            where=out,
            next_step=f"give a file, {out / 'record.json'} for example",
            option="out",
        )
    if out.suffix == OUTCOMES_SUFFIX:
        raise InputError(
            f"the record is JSON, and {OUTCOMES_SUFFIX} is what files of weights and of outcomes are called",
            where=out,
            next_step=f"give another name, {out.with_suffix('.json')} for example",
            option="out",
        )
    foreign = [
        file
        for beside in outcomes_beside(out)
        for file in (beside, detections_file(beside))
        if os.path.lexists(file) and not is_outcomes(beside)
    ]
    if os.path.lexists(out) and not _is_record(out):
        foreign.insert(0, out)
    if foreign:
        raise InputError(
            "a file is here already that no evaluation has made",
            where=foreign[0],
            next_step="give another name, or move it elsewhere",
            option="out",
        )


def _is_record(path: Path) -> bool:
    return {"protocol", "encoder_checksum"} <= (read_json(path) or {}).keys()


def _label_list(chosen: Protocol, path: Path | None, own: bool) -> LabelList | None:
    if path is None and not own:
        return None
    if path is None:
        raise InputError("--own-list without a list", next_step="add --label-list FILE")
    if not chosen.uses_label_list:
        able = [name for name in protocol_names() if protocol(name).uses_label_list]
        raise InputError(
            f"{chosen.name} takes no list of labelled images",
            where="--label-list",
            next_step=f"use it with {', '.join(able)}",
        )
    return LabelList(path, own)
