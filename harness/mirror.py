"""The run store in an object store: ``--runs s3://bucket/prefix``, shared by any number of hosts.

Below the URL lie the folders of runs as in a folder on disk. Each account of a host has a mirror of them in its cache
folder, ``twinbench/stores/<URL>-<hash>/<last part of the URL>/``, which is a run store on disk like any other: all of
the house reads and writes there, and this module alone knows of the other side.

Who works in a run holds two leases: that of its folder here, which keeps away other processes with the same mirror,
and one in the object store, of the same protocol (`foundation.lease`). Under both, the run is fetched when work
begins (`MirroredLease.take`), checkpoints are sent once a minute while it goes on, and everything is sent when it ends.
Of a run in which nobody of this mirror works, readers fetch what has changed; without its checkpoints and weights,
which only work needs.

- Objects appear whole and each has its place in the order of sending: outcomes before the record that names them, an
  encoder before the status that says it is done, and what a record has replaced goes last. So at every moment what is
  there may be trusted as far as what a killed process leaves on a disk, by the same checksums.
- Before each object the lease is asked for (`LostLease`). As on a disk, there is a moment after the answer in which
  nothing can be asked; what is written then is a whole file of the same job.
- ``.mirror.json`` in a run's folder has, for each file, the store's sign of it and the file's size, time and inode,
  when the two were last the same. What differs from it here was changed here, what differs there was changed there.
- While work goes on, and after it has ended without everything being sent (a kill, a lost connection), the mirror is
  marked ``unsent``: what was changed here counts, is kept, and is sent by the next command that may write. Where both
  sides have changed, another host has taken the run over, and its files win. Of a mirror without the mark the store is
  right in every case: it is a cache, and may be deleted.
- The object ``.store`` is a word that tells the store from another one with its URL, at another endpoint or after it
  was emptied; a mirror of one is never taken for that of the other.
- Nothing is removed from the store but what replaces itself, checkpoints and outcomes, so no cleaner of cache folders
  can remove a result.

Features are not kept there; they are computed again from the encoder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from twinbench.encoders.encoder import WEIGHTS_FILE
from twinbench.foundation.documents import from_json
from twinbench.foundation.errors import InputError, RunFailure, unknown_name
from twinbench.foundation.files import machine_faults, slug, user_cache, write_atomically
from twinbench.foundation.lease import Holder, Lease, LostLease, Seen
from twinbench.foundation.object_store import KINDS, LeaseObjects, ObjectStore, Stored

SEND_SECONDS = 60.0
"""How long after one checkpoint was sent the next one is."""
ASK_SECONDS = 10.0
"""How often the store is asked whether another host has left a run: each question is paid for."""
_AT_ONCE = 8  # objects fetched
_INDEX = ".mirror.json"
_URL_FILE, _NAME_FILE = "url", "name"
_NAME = ".store"
_NOT_KEPT = "features/"
_SOURCES = ("recipe.yaml", "source.yaml")
_FOR_WORK = ("checkpoints/", f"encoder/{WEIGHTS_FILE}")
_WHILE_TRAINING = ("checkpoints/", "metrics.jsonl", "recipe.yaml")
_log = logging.getLogger(__name__)

Names = tuple[str, ...]


def store_at(text: str | Path) -> Path:
    """The folder of a run store: a path as it is, or the mirror of a URL with what its readers need, as of now.

    Raises InputError for a URL that no store can have, RunFailure where the store does not answer.
    """
    url = _as_url(text)
    if url is None:
        return Path(str(text).removeprefix("file://"))
    root = _root_of(url)
    _store_of(root).refresh()
    return root


def inside_store(text: str | Path) -> Path:
    """The folder of a run, or of the encoder in it: a path as it is, or that in the mirror of a URL, fetched whole."""
    url = _as_url(text)
    if url is None:
        return Path(str(text).removeprefix("file://"))
    run, inner = (url.removesuffix("/encoder"), "encoder") if url.endswith("/encoder") else (url, "")
    above, _, name = run.rpartition("/")
    if not urlsplit(above).netloc or not _is_sound(name):
        raise InputError(
            "this names no run in an object store", where=url, next_step="write it as s3://BUCKET/STORE/RUN"
        )
    root = _root_of(above)
    _store_of(root).refresh(name)
    if not (root / name).is_dir():
        raise InputError("there is no such run", where=url, next_step=f"twinbench ls runs --runs {above}")
    return root / name / inner


def store_or_run_at(text: str | Path) -> Path:
    """As `store_at`, or as `inside_store` where the URL is that of a run."""
    url = _as_url(text)
    if url is not None and urlsplit(url).path.strip("/"):
        store = ObjectStore(url, _stores())
        found = _listed(store)
        if not found.keys().isdisjoint(_SOURCES):
            return inside_store(url)
    return store_at(text)


def url_of(path: Path) -> str:
    """What a user calls a path: the URL of what it mirrors, or itself."""
    for above in (path, *path.parents):
        if (store := mirrored(above)) is not None:
            return "/".join([store.url, *path.relative_to(above).parts])
    return str(path)


def called(root: Path) -> str:
    """What the commands in a report call a run store: the name of its folder, or its URL."""
    return root.name if mirrored(root) is None else url_of(root)


def mirrored(root: Path) -> MirroredStore | None:
    """The object store of which a folder is the mirror, if it is one.

    That is said beside it and not in it, and believed in the user's own cache folder alone: a run store that somebody
    sends has no say in where results go.
    """
    cached = user_cache()
    if cached is None or root.parent.parent != cached / "stores":
        return None
    return _store_of(root)


@cache
def _store_of(root: Path) -> MirroredStore:
    try:
        return MirroredStore((root.parent / _URL_FILE).read_text(encoding="utf-8"), root)
    except FileNotFoundError as error:
        raise InputError(
            "nothing says which object store this is the mirror of",
            where=root,
            next_step="name the store by its URL on this machine, too: twinbench ls runs --runs URL",
        ) from error


def _as_url(text: str | Path) -> str | None:
    """A URL of an object store, without a slash at its end; None for a path. Raises InputError for any other URL."""
    url = str(text)
    kind, separator, rest = url.partition("://")
    mistyped, colon, place = url.partition(":/")
    if not separator and colon and mistyped in KINDS:
        raise InputError(
            "a URL has two slashes",
            where=url,
            nearest=f"{mistyped}://{place}",
            next_step="write it with both",
        )
    if not separator or kind == "file":
        return None
    if kind not in KINDS:
        raise unknown_name("kind of object store", kind, KINDS, where=url)
    parts = rest.rstrip("/").split("/")
    if not all(_is_sound(part) for part in parts) or "@" in parts[0]:
        raise InputError(
            "this names no place in an object store",
            where=url,
            next_step="write it as s3://BUCKET/STORE, without credentials, which belong in the environment",
        )
    return f"{kind}://{'/'.join(parts)}"


def _is_sound(part: str) -> bool:
    """Whether a part of a name may be that of a file or folder of a run."""
    return bool(part) and not part.startswith(".") and "\\" not in part and part.isprintable()


def _stores() -> Path:
    cached = user_cache()
    if cached is None:
        raise InputError(
            "there is no folder for the mirror of an object store",
            next_step="say where in XDG_CACHE_HOME, or use a run store on disk",
        )
    return cached / "stores"


def _root_of(url: str) -> Path:
    """The mirror of a URL, made if it is not there."""
    digest = hashlib.sha256(url.encode()).hexdigest()[:12]
    root = _stores() / f"{slug(url)[:60]}-{digest}" / url.rpartition("/")[2]
    if not (root.parent / _URL_FILE).is_file():
        write_atomically(root.parent / _URL_FILE, url.encode())
    with machine_faults("cannot make the mirror of an object store", root, "say where in XDG_CACHE_HOME"):
        root.mkdir(exist_ok=True)
    return root


def _listed(store: ObjectStore, below: str = "") -> dict[str, Stored]:
    """The objects, patiently asked for. Raises InputError where there is no such bucket."""
    try:
        return store.patiently(lambda: store.objects(below))
    except FileNotFoundError as error:
        raise _gone(store) from error


def _gone(store: ObjectStore) -> InputError:
    return InputError("there is no such bucket", where=store, next_step="create it, or check the name")


class MirroredStore:
    """The mirror of an object store, in a folder of the user's cache."""

    def __init__(self, url: str, root: Path) -> None:
        self.url = url
        self._root = root
        self.objects = ObjectStore(url, root)

    def refresh(self, whole: str = "") -> None:
        """Fetch what its readers need and is not here as it is there; of the run ``whole`` everything.

        Raises InputError where another store answers than the one that is mirrored.
        """
        self._check_name()
        runs: dict[str, dict[str, Stored]] = {
            folder.name: {} for folder in self._root.iterdir() if (folder / _INDEX).is_file()
        }
        for name, stored in _listed(self.objects, whole).items():
            run, _, file = name.partition("/")
            if _is_sound(run) and file:
                runs.setdefault(run, {})[file] = stored
        with (
            machine_faults(
                "cannot use the mirror of an object store",
                self._root,
                "free space or say another place in XDG_CACHE_HOME",
            ),
            _alone_with(self._root),
        ):
            for run, there in runs.items():
                if whole in ("", run):
                    self._refresh_run(self._root / run, there, whole=bool(whole))

    def _refresh_run(self, folder: Path, there: Mapping[str, Stored], whole: bool) -> None:
        copy = _Copy(folder, self.objects)
        if not copy.differs(there, whole):
            return
        lease = Lease(folder)
        if not lease.take():  # who works in it has fetched it, and what is here is newer
            return
        try:
            copy = _Copy(folder, self.objects)
            copy.fetch(there, whole)
        finally:
            lease.release()
        if copy.is_empty():
            shutil.rmtree(folder, ignore_errors=True)

    def prepare(self) -> None:
        """Before work: raise where the store cannot be shared or written; send what an earlier command could not."""
        self.objects.prove()
        self._check_name()
        self.objects.patiently(lambda: self.objects.create(_NAME, uuid.uuid4().hex.encode()))
        self._check_name()
        for folder in sorted(self._root.iterdir()):
            if (folder / _INDEX).is_file() and _Copy(folder, self.objects).unsent:
                lease = self.lease(folder)
                if lease.take():
                    _log.warning("%s: sends what an earlier command could not", folder.name)
                    lease.release()
                else:
                    _log.warning(
                        "%s: cannot send what is here, for %s works in it", folder.name, lease.holder()
                    )

    def _check_name(self) -> None:
        file = self._root.parent / _NAME_FILE
        known = file.read_bytes() if file.is_file() else b""
        try:
            name = self.objects.patiently(lambda: self.objects.read(_NAME))
        except FileNotFoundError:  # nobody has worked there yet
            name = b""
        if known and name != known:
            raise InputError(
                "another object store answers at this URL than before, or it was emptied",
                where=self.url,
                next_step="use the same endpoint as before (AWS_ENDPOINT_URL); or, if this is right, delete the mirror "
                f"of the former: {self._root.parent} (with what was never sent, if anything was not)",
            )
        if not known and name:
            write_atomically(file, name)

    def lease(self, folder: Path, seen: Sights | None = None) -> MirroredLease:
        """The leases of the run in a folder of the mirror."""
        return MirroredLease(folder, self.objects, seen or Sights(None, None))


@contextmanager
def _alone_with(root: Path) -> Iterator[None]:
    """Wait for other processes that refresh the same mirror: the ranks of a training shall all see it whole."""
    lease = Lease(root.parent)
    while not lease.take():
        time.sleep(0.1)
    try:
        yield
    finally:
        lease.release()


class _Here(NamedTuple):
    """What tells a file from the one before it in its place."""

    size: int
    mtime_ns: int
    inode: int


class _Same(NamedTuple):
    """A file when it was last the same on both sides: the sign of the object, and the file."""

    sign: str
    here: _Here


class _Copy:
    """The folder of a run here, beside its objects; for whoever holds the lease of the folder."""

    def __init__(self, folder: Path, store: ObjectStore) -> None:
        self._folder, self._store = folder, store
        self.unsent, self._same = _read_index(folder / _INDEX)

    def differs(self, there: Mapping[str, Stored], whole: bool) -> bool:
        """Whether something is to be fetched, or has gone there."""
        return bool(self._to_fetch(there, whole) or self._gone_there(there))

    def fetch(self, there: Mapping[str, Stored], whole: bool) -> None:
        """Make the folder what the store has, but for what is unsent: changed here, and not there."""
        if self.unsent and _changed(self._same.get("status.json"), there.get("status.json")):
            self._drop_checkpoints(there)
        for name in self._gone_there(there):
            if not self.unsent or self._here(name) == self._same[name].here:
                (self._folder / name).unlink(missing_ok=True)
            del self._same[name]
        names = self._to_fetch(there, whole)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for name, same in zip(names, pool.map(partial(self._fetch, there), names), strict=True):
                self._same.pop(name, None)
                if same is not None:
                    self._same[name] = same
        self._write_index()

    def mark(self, unsent: bool) -> None:
        """Say whether what is changed here counts."""
        self.unsent = unsent
        self._write_index()

    def send(
        self, check: Callable[[], None], ask: Callable[[Callable[[], Any]], Any], begin: Names = ("",)
    ) -> None:
        """Send what was changed here of the files whose names ``begin`` so, and remove what they have replaced.

        ``check`` is called before each object, ``ask`` with each question to the store.
        """
        here = {name: found for name in self._files(begin) if (found := self._here(name)) is not None}
        for name in sorted(here, key=_turn):
            if name in self._same and self._same[name].here == here[name]:
                continue
            check()
            try:
                stored = ask(partial(self._store.send, self._folder / name, self._object(name)))
            except FileNotFoundError as error:
                if (self._folder / name).exists():
                    raise _gone(self._store) from error
                continue  # a checkpoint, which a newer one has replaced
            self._same[name] = _Same(stored.sign, here[name])
            self._write_index()
        replaced = [name for name in self._same if name.startswith(begin) and self._is_replaced(name)]
        if begin == _WHILE_TRAINING and not self._files(("checkpoints/",)):
            return  # it is an encoder that has replaced them, which is not there yet
        for name in replaced:
            check()
            ask(partial(self._store.remove, self._object(name)))
            del self._same[name]
            self._write_index()

    def is_empty(self) -> bool:
        """Whether nothing is here and nothing there."""
        return not self._same and not self.unsent and not self._files()

    def _to_fetch(self, there: Mapping[str, Stored], whole: bool) -> list[str]:
        wanted = [name for name in there if _is_kept(name) and (whole or not name.startswith(_FOR_WORK))]
        return [name for name in wanted if self._is_to_fetch(name, there[name])]

    def _is_to_fetch(self, name: str, stored: Stored) -> bool:
        same, here = self._same.get(name), self._here(name)
        if same is None or same.sign != stored.sign:
            return True
        if self.unsent:
            return here is None and not _replaces(name)
        return here != same.here

    def _gone_there(self, there: Mapping[str, Stored]) -> list[str]:
        return [name for name in self._same if name not in there]

    def _drop_checkpoints(self, there: Mapping[str, Stored]) -> None:
        """Remove those that were not sent before another host went on from elsewhere."""
        for name in self._files(("checkpoints/",)):
            if name not in there:
                (self._folder / name).unlink()

    def _fetch(self, there: Mapping[str, Stored], name: str) -> _Same | None:
        """Put an object in its place; None if it was another one by then, which the next command fetches."""
        file = self._folder / name
        with machine_faults("cannot write", file, "free some space"):
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
            os.close(descriptor)
            try:
                self._store.patiently(partial(self._store.fetch, self._object(name), Path(temporary)))
                if os.path.getsize(temporary) != there[name].size:
                    return None
                os.chmod(temporary, 0o644)
                os.replace(temporary, file)
            except FileNotFoundError:
                return None
            finally:
                Path(temporary).unlink(missing_ok=True)
            return _Same(there[name].sign, _here(file))

    def _files(self, begin: Names = ("",)) -> list[str]:
        """The files here that belong into the store."""
        found = (
            file.relative_to(self._folder).as_posix() for file in self._folder.rglob("*") if file.is_file()
        )
        return [name for name in found if name.startswith(begin) and _is_kept(name)]

    def _here(self, name: str) -> _Here | None:
        try:
            return _here(self._folder / name)
        except FileNotFoundError:
            return None

    def _is_replaced(self, name: str) -> bool:
        return _replaces(name) and self._here(name) is None

    def _object(self, name: str) -> str:
        return f"{self._folder.name}/{name}"

    def _write_index(self) -> None:
        content = json.dumps({"unsent": self.unsent, "same": self._same}, indent=0, sort_keys=True)
        write_atomically(self._folder / _INDEX, content.encode())


class Sights(NamedTuple):
    """What a process saw of the two leases of a run."""

    here: Seen | None
    there: Seen | None


class MirroredLease:
    """The leases of a run here and in the store, with what is to be done when they are taken and released.

    It has the methods of `Lease`, and raises RunFailure where the store does not answer.
    """

    def __init__(self, folder: Path, store: ObjectStore, seen: Sights) -> None:
        self._folder, self._store = folder, store
        self._here = Lease(folder, seen=seen.here)
        self._there = Lease(LeaseObjects(store, folder.name), seen=seen.there)
        self._copy: _Copy | None = None
        self._lost: LostLease | None = None
        self._stop = threading.Event()
        self._sender = threading.Thread()
        self._told: Holder | None = None
        self._asked = 0.0

    @property
    def seen(self) -> Sights:
        """What this process saw of them, from which others of the machine may go on."""
        return Sights(self._here.seen, self._there.seen)

    def holder(self) -> Holder | None:
        """Who works in the run; of another host, as it was when the store was last asked."""
        here = self._here.holder()
        if here is not None:
            return here
        if self._told is None or time.monotonic() - self._asked >= ASK_SECONDS:
            self._told, self._asked = self._store.patiently(self._there.holder), time.monotonic()
        return self._told

    def take(self) -> bool:
        """Begin to work in the run, if nobody does, with all that the store has of it."""
        if self.holder() is not None or not self._here.take():
            return False
        try:
            if self._store.patiently(self._there.take):
                copy = _Copy(self._folder, self._store)
                copy.fetch(_files_of(self._store, self._folder.name), whole=True)
                copy.mark(unsent=True)
                self._copy = copy
        finally:
            if self._copy is None:
                self._let_go()
        if self._copy is None:
            return False
        self._lost, self._stop = None, threading.Event()
        self._sender = threading.Thread(
            target=self._send_checkpoints, args=(self._copy, self._stop), daemon=True
        )
        self._sender.start()
        return True

    def check(self) -> None:
        """Raise LostLease if this process may write nothing more into the folder."""
        if self._lost is not None:
            raise self._lost
        self._here.check()

    def release(self) -> None:
        """Send what was changed, and end the work. What cannot be sent is kept as unsent, and raised."""
        if self._copy is None:
            return
        self._stop.set()
        self._sender.join()
        copy, self._copy = self._copy, None
        try:
            copy.send(self._check_both, self._store.patiently)
            copy.mark(unsent=False)
        finally:
            self._let_go()

    def _check_both(self) -> None:
        self.check()
        self._store.patiently(self._there.check)

    def _let_go(self) -> None:
        self._there.release()
        self._here.release()

    def _send_checkpoints(self, copy: _Copy, stop: threading.Event) -> None:
        """So that another host can go on from them; whatever fails is tried again, and for good at the end."""

        def check() -> None:
            self.check()
            self._there.check()

        while not stop.wait(SEND_SECONDS):
            try:
                copy.send(check, lambda question: question(), _WHILE_TRAINING)
            except LostLease as error:
                self._lost = error  # the next file of the work raises it
                return
            except (OSError, RunFailure) as error:
                _log.warning("%s: no checkpoint could be sent: %s", self._folder.name, error)


def _files_of(store: ObjectStore, run: str) -> dict[str, Stored]:
    return {name.partition("/")[2]: stored for name, stored in _listed(store, run).items()}


def _is_kept(name: str) -> bool:
    """Whether a file of a run is kept on both sides; none that leads out of the folder is."""
    return all(_is_sound(part) for part in name.split("/")) and not name.startswith(_NOT_KEPT)


def _replaces(name: str) -> bool:
    """Whether files of this kind come and go: the record that a result has, and all else, is only ever replaced."""
    return name.startswith("checkpoints/") or (name.startswith("records/") and not name.endswith(".json"))


def _turn(name: str) -> tuple[int, str]:
    """The place of a file in the order of sending: after what it speaks of."""
    if name.startswith("records/") and name.endswith(".json"):
        return 3, name
    if name == "status.json":
        return 2, name
    return int(name.endswith(".json") or name.startswith("checkpoints/")), name


def _changed(same: _Same | None, stored: Stored | None) -> bool:
    return stored is not None and (same is None or same.sign != stored.sign)


def _here(file: Path) -> _Here:
    status = file.stat()
    return _Here(status.st_size, status.st_mtime_ns, status.st_ino)


def _read_index(file: Path) -> tuple[bool, dict[str, _Same]]:
    """What an index says; of none, and of a damaged one, that nothing is known."""
    try:
        document = from_json(file.read_bytes())
        same = {
            name: _Same(str(sign), _Here(*map(int, here))) for name, (sign, here) in document["same"].items()
        }
        return bool(document["unsent"]), {name: entry for name, entry in same.items() if _is_kept(name)}
    except FileNotFoundError:
        return False, {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        _log.warning("%s is damaged: the run is fetched again", file)
        return False, {}
