"""The terminal: results go to standard output, everything else to standard error."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import IO, TextIO, cast

from rich.console import Console

from twinbench.foundation.errors import RunFailure
from twinbench.foundation.texts import legible


def _silence(stream: TextIO | None) -> None:
    """Let go nowhere what is still to be written: the last flush would fail else, and the exit code be 120."""
    if stream is not None:
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


class _StandardError(io.TextIOBase):
    """Standard error as it is now, or nothing where it cannot be written: a closed terminal, a log on a full disk.

    Nobody's training may fail because nobody hears how far it is.
    """

    def write(self, text: str) -> int:
        """Write the text, if that can be."""
        stream = self._stream()
        try:
            if stream is not None:
                stream.write(text)
        except (OSError, ValueError):
            _silence(stream)
        return len(text)

    def flush(self) -> None:
        """Flush the stream behind this one, if that can be."""
        stream = self._stream()
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            _silence(stream)

    def isatty(self) -> bool:
        """Whether the stream behind this one is a terminal."""
        stream = self._stream()
        return stream is not None and stream.isatty()

    def _stream(self) -> TextIO | None:
        # while a live view is shown, rich has put in its place what leads here again
        return cast("TextIO | None", getattr(sys.stderr, "rich_proxied_file", sys.stderr))


standard_error = _StandardError()
console = Console(file=cast("IO[str]", standard_error), highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line for the user."""
    console.print(legible(text), markup=False)


class LegibleOutput(io.TextIOBase):
    """A stream on which names from outside, such as those of tensors or classes, cannot make a terminal do anything.

    None, as Python has it for standard output that was closed, is a stream that nobody reads.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = io.StringIO() if stream is None else stream

    def write(self, text: str) -> int:
        """Write the text with what does not print, or has no place in the stream's encoding, written out.

        Here and in `flush` raises RunFailure where the stream cannot be written, BrokenPipeError if nobody reads it.
        """
        encoding = self._stream.encoding or "utf-8"
        with self._explained():
            self._stream.write(legible(text).encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flush the stream behind this one."""
        with self._explained():
            self._stream.flush()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            _silence(self._stream)
            raise RunFailure(
                f"cannot print: {error.strerror}",
                where="standard output",
                next_step="print to another place; what was computed is kept",
            ) from error

    def fileno(self) -> int:
        """That of the stream behind this one."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Whether the stream behind this one is a terminal."""
        return self._stream.isatty()


class _LegibleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """The line of a warning."""
        return legible(super().format(record))


def legible_warnings() -> None:
    """Write out, in warnings of this process, what a terminal would obey."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_LegibleFormatter())
