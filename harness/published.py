"""The encoders from elsewhere that a study evaluates: checkpoint files and encoder folders, all in one folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from twinbench.data.image_sets import ImageSet
from twinbench.encoders.backbones import ResNet
from twinbench.encoders.encoder import INFO_FILE, Encoder, EncoderInfo
from twinbench.encoders.foreign.importer import read_foreign
from twinbench.foundation.errors import InputError, RunFailure
from twinbench.foundation.files import slug
from twinbench.harness.environment import environment
from twinbench.harness.recipes import recipe_hash
from twinbench.harness.source import ImportedSource
from twinbench.harness.store import Run
from twinbench.harness.studies import StudyTable
from twinbench.pretraining.recipe import BackboneSpec

_log = logging.getLogger(__name__)

_SUFFIXES = {".pth", ".pt", ".tar", ".torch", ".ckpt", ".bin", ".pkl", ".safetensors"}


def encoder_folder(table: StudyTable, data_root: Path | None) -> Path | None:
    """Where a table's checkpoints are, None for a table without; raises InputError if no data root is given."""
    if not table.encoders:
        return None
    if data_root is None:
        raise InputError(
            f"the table {table.name} shows the checkpoints in a folder",
            next_step=f"give the data root DIR, with the files in DIR/{table.encoders}",
            option="data_root",
        )
    return data_root / table.encoders


def imported_runs(folder: Path, image_set: ImageSet, runs_root: Path, seeds: int) -> list[Run]:
    """A run for each checkpoint file and encoder folder in a folder, by name, and seed; nothing is written yet.

    The seeds are those of the evaluations. Raises InputError if there is no checkpoint, and for the first that
    cannot be imported as it stands; other files are named in a warning.
    """
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    sources = [path for path in found if path.suffix.lower() in _SUFFIXES or (path / INFO_FILE).is_file()]
    if others := [path.name for path in found if path not in sources]:
        _log.warning("not taken for checkpoints: %s", ", ".join(others))
    if not sources:
        raise InputError(
            "no checkpoint here",
            where=folder,
            next_step="put in files as their projects publish them, or encoders that `twinbench import` made of them",
        )
    described = [(source, _read(source)[1]) for source in sources]
    return [
        _planned(source, info, image_set, runs_root, seed)
        for source, info in described
        for seed in range(seeds)
    ]


def imported_run(source: Path, image_set: ImageSet, runs_root: Path, seed: int) -> Run:
    """The run of one checkpoint file or encoder folder; nothing is written yet."""
    return _planned(source, _read(source)[1], image_set, runs_root, seed)


def _planned(source: Path, info: EncoderInfo, image_set: ImageSet, runs_root: Path, seed: int) -> Run:
    """The run of a checkpoint, which its SHA-256 and how it is fed identify."""
    described = ImportedSource(
        name=source.name,
        method=info.method,
        file=info.source_file,
        format=info.source_format,
        sha256=info.source_sha256,
        backbone=BackboneSpec(name=info.architecture, width=info.width, stem=info.stem),
        image_size=info.input_size,
        mean=info.mean,
        std=info.std,
        deviation=info.deviation,
        note=info.source_note,
        image_set=image_set.name,
        image_set_fingerprint=image_set.fingerprint,
        seed=seed,
    )
    digest = recipe_hash(described)
    folder = f"imported-{slug(source.stem)}-{image_set.slug}-{digest}"
    return Run(runs_root / folder, described, digest, source)


def _read(source: Path) -> tuple[ResNet, EncoderInfo, tuple[str, ...]]:
    """The backbone of a checkpoint file or an encoder folder, described as imported, and what to know of it."""
    if source.is_file():
        foreign = read_foreign(source)
        return foreign.backbone, foreign.info, foreign.accounting.notes
    encoder = Encoder.load(source)
    info = encoder.info
    if info.origin == "imported":
        return encoder.backbone, info, ()
    described = replace(
        info,
        origin="imported",
        source_file=source.name,
        source_format="twinbench",
        source_sha256=encoder.checksum,
    )
    return encoder.backbone, described, ()


def import_run(run: Run, say: Callable[[str], None]) -> None:
    """Make the encoder of a planned run from its checkpoint, saying what its import noted.

    Raises RunFailure if the source changed since the plan was made.
    """
    assert isinstance(run.source, ImportedSource)
    assert run.checkpoint is not None
    started = time.monotonic()
    run.begin()
    backbone, info, notes = _read(run.checkpoint)
    for note in notes:
        say(f"{run.checkpoint.name}: {note}")
    if info.source_sha256 != run.source.sha256:
        raise RunFailure(
            "the checkpoint changed while it was used", where=run.checkpoint, next_step="run it again"
        )
    Encoder.save(run.encoder_folder, backbone, info)
    run.write_status(
        {
            "status": "done",
            "reason": "",
            "recipe_hash": run.hash,
            "seconds": time.monotonic() - started,
            "parameters": sum(p.numel() for p in backbone.parameters()),
            "environment": environment(),
        }
    )
