"""``environments.json``: the facts of each environment, once, under the digests that ``records.csv`` has of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from twinbench.foundation.documents import from_json
from twinbench.foundation.errors import InputError
from twinbench.reports.output import ENVIRONMENTS

_DIGITS = 12
_AGAIN = "make the report again"


def digest_of(text: str) -> str:
    """``sha256:`` and the first 12 hexadecimal digits of the SHA-256 of some JSON in its canonical form; "" for "".

    The word before the digits is for programs that would read a column of digits alone as numbers.
    """
    if not text:
        return ""
    return f"sha256:{hashlib.sha256(_canonical(json.loads(text)).encode()).hexdigest()[:_DIGITS]}"


def environments_json(texts: Iterable[str]) -> str:
    """The content of ``environments.json`` for environments as JSON text, in the order of their digests."""
    facts = {digest_of(text): json.loads(text) for text in texts if text}
    return json.dumps(facts, indent=1, sort_keys=True) + "\n"


def read_environments(file: Path) -> dict[str, str]:
    """The environments in a file as canonical JSON text, by digest; none if there is no file.

    Raises InputError for a file that cannot be read, and for facts that are not those of their digest.
    """
    if not file.is_file():
        return {}
    try:
        texts = {digest: _canonical(facts) for digest, facts in from_json(file.read_bytes()).items()}
    except (ValueError, AttributeError) as error:
        raise InputError(f"the environments cannot be read: {error}", where=file, next_step=_AGAIN) from error
    for digest, text in texts.items():
        if digest_of(text) != digest:
            raise InputError(
                f"the facts under {digest} are not those that it is the digest of",
                where=file,
                next_step=_AGAIN,
            )
    return texts


def environment_of(cell: str, known: Mapping[str, str], where: str) -> str:
    """The environment that a cell of ``records.csv`` stands for, as JSON text, given those in ``environments.json``.

    A cell that is a JSON object is the environment itself: reports had no ``environments.json`` at first. Raises
    InputError for anything else that is not known.
    """
    if not cell or cell in known or _is_object(cell):
        return known.get(cell, cell)
    raise InputError(
        f"the records name an environment {cell!r} that {ENVIRONMENTS} does not have",
        where=where,
        next_step=f"put the {ENVIRONMENTS} of the same report beside the records, or {_AGAIN}",
    )


def _canonical(facts: object) -> str:
    return json.dumps(facts, sort_keys=True)


def _is_object(cell: str) -> bool:
    try:
        return isinstance(from_json(cell), dict)
    except ValueError:
        return False
