"""The terminal: results go to standard output, everything else to standard error."""

from __future__ import annotations

import io
import logging
from typing import TextIO

from rich.console import Console

from twinbench.foundation.texts import legible

console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line for the user."""
    console.print(legible(text), markup=False)


class LegibleOutput(io.TextIOBase):
    """A stream on which names from outside, such as those of tensors or classes, cannot make a terminal do anything."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text with what does not print written out."""
        self._stream.write(legible(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream behind this one."""
        self._stream.flush()

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
