"""An object store, by fsspec: whole objects under names, and no file system.

What is asked of it: an object that is read is whole, as somebody has written it; a name can be given once only, of
several that try (``If-None-Match`` in S3); whoever lists or reads sees what was written before. S3 keeps that, and
`ObjectStore.prove` asks for the second at the beginning, for not every server that speaks S3 does.

A store that does not answer is asked again, for two minutes; then a RunFailure says so. Whatever a library raises is
an OSError here: FileNotFoundError and FileExistsError mean what they say, and all others that the store did not answer.
"""

from __future__ import annotations

import errno
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from twinbench.foundation.errors import ExplainedError, InputError, RunFailure
from twinbench.foundation.lease import FOLDER

KINDS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
"""Of fsspec's protocols those of stores whose objects appear whole."""
PATIENCE_SECONDS = 120.0
"""For so long a store that has answered before is asked again."""
_FIRST_SECONDS = 5.0  # and so long at first: a wrong name or address is no lost connection
_LONGEST_WAIT = 30.0
_DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EFBIG,
)  # faults of this machine's disk, not of the store
_SIGNS = (
    "ETag",
    "etag",
    "md5Hash",
    "generation",
    "created",
)  # what changes with the content, as libraries call it
_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


class Stored(NamedTuple):
    """What a store says of an object: its bytes, and a sign that is another one when it is written again."""

    size: int
    sign: str


class ObjectStore:
    """The objects below a URL, by their names relative to it; what could not be sent is ``kept`` in a folder here."""

    def __init__(self, url: str, kept: Path) -> None:
        self.url = url
        self._kept = kept
        self._has_answered = False

    def __str__(self) -> str:
        return self.url

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system of fsspec, and the path in it. Raises InputError if its library is not here."""
        from fsspec.core import url_to_fs  # a second that few commands need

        try:
            files, path = url_to_fs(self.url, use_listings_cache=False, **_options(self.url))
        except ImportError as error:
            raise InputError(
                f"the library for this kind of store is not installed: {error}",
                where=self.url,
                next_step="pip install 'twinbench[objects]' (for s3://; gcsfs for gs://, adlfs for az://)",
            ) from error
        return files, path.rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._opened[1]}/{name}" if name else self._opened[1]

    def objects(self, below: str = "") -> dict[str, Stored]:
        """Every object whose name begins with ``below/``, by its whole name."""
        files, root = self._opened
        with _in_our_terms():
            found = files.find(self._path(below), detail=True)
        return {
            path[len(root) + 1 :]: Stored(info["size"], _sign(info))
            for path, info in found.items()
            if info["type"] == "file" and path.startswith(f"{self._path(below)}/") and not path.endswith("/")
        }

    def read(self, name: str) -> bytes:
        """The content of a small object."""
        with _in_our_terms():
            content: bytes = self._opened[0].cat_file(self._path(name))
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a small object, over one that is there."""
        with _in_our_terms():
            self._opened[0].pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Write a small object unless there is one; whether it was written."""
        try:
            with _in_our_terms():
                self._opened[0].pipe_file(self._path(name), content, mode="create")
        except FileExistsError:
            return False
        return True

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        with suppress(FileNotFoundError), _in_our_terms():
            self._opened[0].rm_file(self._path(name))

    def fetch(self, name: str, file: Path) -> None:
        """Copy an object to a file."""
        with _in_our_terms():
            self._opened[0].get_file(self._path(name), str(file))

    def send(self, file: Path, name: str) -> Stored:
        """Copy a file to an object; what the store then says of it."""
        files, path = self._opened[0], self._path(name)
        with _in_our_terms():
            files.put_file(str(file), path)
            info = files.info(path)
        return Stored(info["size"], _sign(info))

    def prove(self) -> None:
        """Raise InputError if the store cannot be written, or lets a name be given twice, so that nothing is safe."""
        probe = f".writable-{uuid.uuid4().hex}"
        first, second = (self.patiently(lambda: self.create(probe, b"twinbench")) for _ in range(2))
        self.patiently(lambda: self.remove(probe))
        if second or not first:
            raise InputError(
                "this object store lets two processes create the same object, so several could not share it",
                where=self.url,
                next_step="use one with conditional writes (If-None-Match), as Amazon S3 has, or a folder",
                option="runs",
            )

    def patiently(self, ask: Callable[[], _Answer]) -> _Answer:
        """What the store answers, after a while if need be. Raises RunFailure if it does not, or refuses.

        FileNotFoundError and FileExistsError are answers.
        """
        until, wait = time.monotonic() + (PATIENCE_SECONDS if self._has_answered else _FIRST_SECONDS), 1.0
        while True:
            try:
                answer = ask()
            except (FileNotFoundError, FileExistsError):
                self._has_answered = True
                raise
            except OSError as error:
                if error.errno in _DISK:
                    raise
                if isinstance(error, PermissionError) or time.monotonic() >= until:
                    raise self._failure(error) from error
                _log.warning("%s does not answer, and is asked again in %g s: %s", self.url, wait, error)
                time.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)
            else:
                self._has_answered = True
                return answer

    def _failure(self, error: OSError) -> RunFailure:
        if not self._has_answered:
            return RunFailure(
                f"this object store cannot be used: {error}",
                where=self.url,
                next_step="check the URL, the credentials and, if it is not Amazon's, AWS_ENDPOINT_URL",
            )
        lost = "refuses access" if isinstance(error, PermissionError) else "does not answer any more"
        return RunFailure(
            f"the object store {lost}: {error}",
            where=self.url,
            next_step="nothing that was finished is lost, for what could not be sent is kept in "
            f"{self._kept}: when the store can be reached, run the same command again, which sends it and goes on",
        )


class LeaseObjects:
    """The files of the lease of what is ``below`` a name in a store (`lease.LeaseFiles`).

    The first line of each is the content; the rest is a word that nobody else has, and a count of the touches.
    """

    def __init__(self, store: ObjectStore, below: str) -> None:
        self._store, self._below = store, below
        self._mine, self._touches = b"", 0

    def __str__(self) -> str:
        return f"{self._store}/{self._below}"

    def names(self) -> list[str]:
        """All there are."""
        return [name.rpartition("/")[2] for name in self._store.objects(f"{self._below}/{FOLDER}")]

    def create(self, name: str, content: bytes) -> bool:
        """The answer to a request may be lost and the library ask again: then what is there already may be ours."""
        mine = content + b"\n" + uuid.uuid4().hex.encode()
        if not self._store.create(self._name(name), mine):
            try:
                if self._store.read(self._name(name)) != mine:
                    return False
            except FileNotFoundError:
                return False
        self._mine, self._touches = mine, 0
        return True

    def read(self, name: str) -> tuple[bytes, object]:
        """The content, and what follows it."""
        content, _, sign = self._store.read(self._name(name)).partition(b"\n")
        return content, sign

    def touch(self, name: str) -> None:
        """Write it again with a higher count; also where it has gone, which its number makes harmless."""
        self._touches += 1
        self._store.write(self._name(name), self._mine + b" %d" % self._touches)

    def rename(self, name: str, other: str) -> None:
        """Write the other, then remove the one: of two with one number, that which is held counts."""
        self._store.write(self._name(other), self._mine)
        self._store.remove(self._name(name))

    def remove(self, name: str) -> None:
        """Remove it."""
        self._store.remove(self._name(name))

    def _name(self, name: str) -> str:
        return f"{self._below}/{FOLDER}/{name}"


def _options(url: str) -> dict[str, Any]:
    """For S3, that botocore asks once: s3fs asks it five times, each for 15 s, and we ask s3fs again."""
    if not url.startswith("s3"):
        return {}
    from fsspec.config import conf

    own = conf.get("s3", {}).get("config_kwargs", {})
    return {"config_kwargs": {"retries": {"total_max_attempts": 1}, **own}}


def _sign(info: dict[str, Any]) -> str:
    sign = next((info[key] for key in _SIGNS if info.get(key) is not None), "")
    return str(
        sign.timestamp() if isinstance(sign, datetime) else sign
    )  # one library lists it so, and tells it so


@contextmanager
def _in_our_terms() -> Iterator[None]:
    """Raise OSError for whatever a library of fsspec raises."""
    try:
        yield
    except (OSError, ExplainedError):
        raise
    except Exception as error:
        raise ConnectionError(f"{type(error).__name__}: {error}") from error
