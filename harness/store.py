"""The run store: one folder a run, named by its recipe hash; what is finished there is never done twice.

``runs/<method>-<image set>-<hash>/`` holds recipe.yaml, status.json, metrics.jsonl, diagnostics.json,
checkpoints/, encoder/, features/ and records/, one JSON file for each evaluation; unfinished/ has the checkpoints of
those that are under way. That of an imported encoder,
``runs/imported-<file>-<image set>-<hash>/``, has source.yaml for a recipe.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from twinbench.data.image_sets import ImageSet
from twinbench.encoders.encoder import INFO_FILE
from twinbench.foundation.documents import sealed, unsealed
from twinbench.foundation.errors import InputError, RunFailure
from twinbench.foundation.files import fenced, machine_faults, read_document, write_atomically
from twinbench.foundation.lease import Holder, Lease, Seen
from twinbench.foundation.models import explain_validation
from twinbench.foundation.outcomes import is_whole
from twinbench.harness.mirror import MirroredLease, Sights, mirrored
from twinbench.harness.recipes import read_yaml, recipe_hash
from twinbench.harness.source import ImportedSource, Source
from twinbench.pretraining.recipe import Recipe

LOOK_SECONDS = 1.0
"""How often to look whether another process has left a run."""
_SOURCE_FILES: dict[str, type[Source]] = {"recipe.yaml": Recipe, "source.yaml": ImportedSource}
_log = logging.getLogger(__name__)

RunLease = Lease | MirroredLease

_Count = Annotated[int, Field(ge=0, le=2**53)]


class _Stored(BaseModel):
    """What others take from a file of the store; a file that has something else in these places is damaged."""

    model_config = ConfigDict(strict=True)


class _Status(_Stored):
    """A status.json."""

    status: str
    reason: str = ""
    seconds: FiniteFloat = 0.0
    parameters: _Count | None = None
    images_per_second: float | None = None
    training_memory_mb: float | None = None
    peak_memory_mb: float | None = None
    energy_joules: float | None = None
    energy_unknown: str | None = None
    device: str = ""
    device_type: str = ""
    ranks: _Count = 1
    threads: _Count = 1
    remarks: list[str] = []
    environment: dict[str, Any] = {}


class _OutcomesOfRecord(_Stored):
    file: str
    sha256: str


class _Measured(_Stored):
    metric: str
    value: float | None
    stderr: float | None = None
    n: _Count | None = None


class _RecordFile(_Stored):
    """The record of a finished evaluation."""

    protocol: str
    image_set: str
    image_set_fingerprint: str
    encoder_checksum: str
    seed: int
    status: str
    reason: str
    seconds: float | None
    peak_memory_mb: float | None
    device: str
    environment: dict[str, Any] = {}
    remarks: list[str] = []
    measurements: list[_Measured]
    outcomes: _OutcomesOfRecord | None = None


def _fits(document: dict[str, Any] | None, model: type[BaseModel]) -> bool:
    try:
        model.model_validate(document)
    except ValidationError:
        return False
    return True


@dataclass(frozen=True)
class Run:
    """Where an encoder comes from, and the folder where its results live.

    ``checkpoint`` is the file or folder that a planned run imports.
    """

    folder: Path
    source: Source
    hash: str
    checkpoint: Path | None = None

    @property
    def origin(self) -> str:
        """``imported`` where the encoder comes from a checkpoint, ``run`` where it is trained here."""
        return "imported" if isinstance(self.source, ImportedSource) else "run"

    @property
    def encoder_folder(self) -> Path:
        """Where the encoder is, once trained."""
        return self.folder / "encoder"

    def status(self) -> dict[str, Any] | None:
        """The content of status.json, or None before the run began or where the file is damaged."""
        status = read_json(self.folder / "status.json")
        return status if _fits(status, _Status) else None

    def is_trained(self) -> bool:
        """Whether there is an encoder that later jobs may use."""
        status = self.status()
        return (
            status is not None
            and status["status"] in {"done", "collapsed"}
            and (self.encoder_folder / INFO_FILE).is_file()
        )

    def is_collapsed(self) -> bool:
        """Whether training ended with embeddings that say nothing."""
        status = self.status()
        return status is not None and status["status"] == "collapsed"

    def write_status(self, status: dict[str, Any]) -> None:
        """Replace status.json."""
        write_json(self.folder / "status.json", status)

    def begin(self) -> None:
        """Write the resolved recipe, or what is imported, and mark the run as begun."""
        document = self.source.model_dump(mode="json")
        file = next(name for name, kind in _SOURCE_FILES.items() if isinstance(self.source, kind))
        write_atomically(self.folder / file, yaml.safe_dump(document, sort_keys=False).encode())
        self.write_status({"status": "running", "reason": "", "recipe_hash": self.hash})

    def record_file(self, protocol: str, image_set: ImageSet) -> Path:
        """Where the result record of a protocol is, or will be.

        An evaluation on other images than those the run was planned for has their name and fingerprint.
        """
        file = self.folder / "records" / f"{protocol.replace('/', '--')}.json"
        if self.source.image_set_fingerprint == image_set.fingerprint:
            return file
        return file.with_stem(f"{file.stem}--on-{image_set.slug}-{image_set.fingerprint[:8]}")

    def record(self, file: Path) -> dict[str, Any] | None:
        """The finished evaluation in a record file, if it is of the encoder that is there now and its seed, or None.

        None also where what became of its test items is lost, or is not what it was: it is then evaluated again.
        """
        record = read_json(file)
        info = read_json(self.encoder_folder / INFO_FILE)
        if record is None or info is None or record.get("status") != "done":
            return None
        same = record.get("encoder_checksum") == info.get("sha256") and record.get("seed") == self.source.seed
        return record if same and _fits(record, _RecordFile) and has_its_outcomes(file, record) else None

    def altered(self, record: Path | None) -> list[Path]:
        """The files of the training that are there but not as they were written, or a ``record`` of which that is so.

        A record's outcomes belong to it.
        """
        if record is not None:
            content = read_json(record)
            fits = not record.is_file() if content is None else has_its_outcomes(record, content)
            return [] if fits else [record]
        files = (self.folder / "status.json", self.encoder_folder / INFO_FILE)
        return [file for file in files if file.is_file() and read_json(file) is None]

    def lease(self, seen: Seen | Sights | None = None) -> RunLease:
        """What a process holds that works in the folder; ``seen`` is what another of the machine knows of it."""
        store = mirrored(self.folder.parent)
        if store is not None:
            return store.lease(self.folder, seen if isinstance(seen, Sights) else None)
        return Lease(self.folder, seen=seen if isinstance(seen, Seen) else None)

    @contextmanager
    def working(self, lease: RunLease) -> Iterator[bool]:
        """Keep other processes out of the folder; False if one is at work in it.

        Should another take it over, as after a long sleep, the next file of this one raises LostLease. Of a run store
        elsewhere everything is sent at the end, and what cannot be is a RunFailure.
        """
        with self._usable():
            ours = lease.take()
        try:
            with fenced(self.folder, lease.check) if ours else nullcontext():
                yield ours
        except BaseException:
            try:
                lease.release()
            except RunFailure as error:
                _log.warning("%s: the next command sends what was done: %s", self.folder.name, error.what)
            raise
        lease.release()

    def at_work(self, lease: RunLease) -> Holder | None:
        """Which other process is at work in the folder, if one is."""
        with self._usable():
            return lease.holder()

    @contextmanager
    def locked(
        self,
        say: Callable[[str], None],
        patience: float = math.inf,
        cores: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Iterator[None]:
        """Keep other processes out of the folder; waits for one that is at work in it, and says so.

        With the ``cores`` that are claimed when nobody seems to be: not while this process waits, nor with the lease in
        hand. Raises InputError after so many seconds of ``patience``.
        """
        lease, given_up, told = self.lease(), time.monotonic() + patience, ""
        while True:
            if self.at_work(lease) is None:
                with cores(), self.working(lease) as ours:
                    if ours:
                        yield
                        return
            holder = self.at_work(lease)
            if time.monotonic() >= given_up:
                raise InputError(
                    f"another twinbench process is working on this run: {holder}",
                    where=self.folder,
                    next_step="wait for it, or stop it",
                )
            if holder is not None:
                if str(holder) != told:
                    told = str(holder)
                    say(f"waits for {told}, which works in {self.folder}")
                time.sleep(LOOK_SECONDS)

    @contextmanager
    def _usable(self) -> Iterator[None]:
        with machine_faults(
            "cannot use the run's folder", self.folder, "make it writable, or use another run store", "runs"
        ):
            yield


UNFINISHED = "unfinished"
"""Where in a run's folder the checkpoints of evaluations are that train and have not ended."""
VIEWS_PICTURE = "pictures/views.png"
"""Where in a run's folder the picture of its views is."""


def picture_of(record: Path) -> Path:
    """Where the picture of an evaluation is, given the file of its record."""
    return record.parent.parent / "pictures" / f"{record.stem}.png"


def has_its_outcomes(file: Path, record: Mapping[str, Any]) -> bool:
    """Whether what became of the test items is there as it was, if anything was kept of them."""
    if "outcomes" not in record:
        return True
    try:
        return is_whole(outcomes_of(file, record), record["outcomes"]["sha256"])
    except (KeyError, TypeError, ValueError):  # a damaged record, or one that names no file
        return False


def outcomes_of(record: Path, content: Mapping[str, Any]) -> Path:
    """Where the outcomes of an evaluation are that has some, given the file of its record and what is in it."""
    return record.with_name(Path(content["outcomes"]["file"]).name)


def open_run(root: Path, recipe: Recipe, image_set: ImageSet) -> Run:
    """The run under ``root`` of a recipe that was resolved for an image set; nothing is written yet."""
    digest = recipe_hash(recipe)
    return Run(root / f"{recipe.method}-{image_set.slug}-{digest}", recipe, digest)


def stored_runs(root: Path) -> list[Run]:
    """Every run under ``root`` whose source can be read, by name; a warning names every folder that is left out."""
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return [run for folder in folders if (run := _readable_run(folder)) is not None]


def _readable_run(folder: Path) -> Run | None:
    """The run in a folder, or None with a warning."""
    try:
        return read_run(folder)
    except InputError as error:
        _log.warning("%s is left out: %s", folder, error)
        return None


def read_run(folder: Path) -> Run:
    """The run in a folder; raises InputError if none can be read."""
    found = [name for name in _SOURCE_FILES if (folder / name).is_file()]
    if len(found) != 1:
        what = f"no {' or '.join(_SOURCE_FILES)} here" if not found else f"both {' and '.join(found)} here"
        raise InputError(
            f"not a run: {what}", where=folder, next_step="delete the folder, or run its study again"
        )
    file, kind = folder / found[0], _SOURCE_FILES[found[0]]
    try:
        source: Source = kind.model_validate(read_yaml(file))
    except ValidationError as error:
        raise explain_validation(error, kind, file) from error
    if isinstance(source, Recipe) and "imported" in source.options:
        raise InputError(
            "an encoder that an earlier version of twinbench imported",
            where=file,
            next_step="run its study again, which imports it again",
        )
    return Run(folder, source, recipe_hash(source))


def holds_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return any((folder / name).is_file() for name in _SOURCE_FILES)


def encoder_in(folder: Path) -> Path:
    """The folder of an encoder, given that or the run which holds it."""
    inner = folder / "encoder"
    return inner if not (folder / INFO_FILE).is_file() and inner.is_dir() else folder


def keeping_run(folder: Path, seed: int) -> Run | None:
    """The run in ``folder``, if it keeps what is measured of its encoder with this seed.

    None if that is not a run, or one of another seed: a study would not have made this record.
    """
    run = _readable_run(folder) if holds_run(folder) else None
    return run if run is not None and run.source.seed == seed else None


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file, or None if it is missing or damaged."""
    try:
        content = unsealed(read_document(path))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def read_record(path: Path) -> dict[str, Any] | None:
    """The record of a finished evaluation in a file, of whatever encoder; None if it is none, missing or damaged."""
    record = read_json(path)
    return record if _fits(record, _RecordFile) else None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a mapping as sealed JSON, whole or not at all."""
    write_atomically(path, sealed(content))


def prepare_store(root: Path) -> None:
    """Fail now, not after an hour of work; and send what an earlier command could not, if the store is elsewhere."""
    check_writable(root)
    if (store := mirrored(root)) is not None:
        store.prepare()


def check_writable(folder: Path) -> None:
    """Fail now, not after an hour of work; raises RunFailure naming the folder."""
    probe = folder / ".writable"
    try:
        write_atomically(probe, b"twinbench")
    except RunFailure as error:
        error.where = folder
        raise
    probe.unlink(missing_ok=True)  # another rank may have been here at the same time
