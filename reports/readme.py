"""Keeps the generated blocks of a README equal to the results."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from twinbench.foundation.errors import InputError, unknown_name
from twinbench.foundation.files import write_atomically

_BEGIN = re.compile(r"<!-- begin (\S+) -->")


def update_blocks(readme: Path, blocks: Mapping[str, str]) -> bool:
    """Replace the text between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` for every block.

    Returns whether the file changed. Raises InputError, and leaves the file as it was, where the file or a
    marker is missing, out of order or there twice.
    """
    if not readme.is_file():
        raise InputError("there is no such file", readme, next_step="name the README that holds the markers")
    old = readme.read_text(encoding="utf-8")
    new = old
    for name, content in blocks.items():
        new = _replace(new, name, content, readme)
    if new != old:
        write_atomically(readme, new.encode("utf-8"))
    return new != old


def _replace(text: str, name: str, content: str, readme: Path) -> str:
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if begin not in text:
        present = _BEGIN.findall(text)
        if present:
            raise unknown_name("block", name, present, readme)
        raise InputError(
            f"no marker {begin}", readme, next_step=f"add {begin} and {end} where the block belongs"
        )
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
        raise InputError(
            f"the block {name!r} needs one {begin} and one {end} after it",
            readme,
            next_step="correct the markers",
        )
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    return f"{head}{begin}\n{content.strip()}\n{end}{tail}"


def _main(arguments: list[str]) -> None:
    """``python -m twinbench.reports.readme README.md NAME=PATH ...``: tables into their blocks.

    A path is the folder of a report, all of whose tables make one block, or the file of one table in Markdown.
    """
    readme, *pairs = arguments
    blocks = {}
    for pair in pairs:
        name, _, path = pair.partition("=")
        tables = [Path(path)] if path.endswith(".md") else sorted((Path(path) / "tables").glob("*.md"))
        if not tables:
            raise InputError("no tables here", path, next_step=f"run the study first: twinbench run {name}")
        blocks[name] = "\n\n".join(table.read_text(encoding="utf-8").strip() for table in tables)
    update_blocks(Path(readme), blocks)


if __name__ == "__main__":
    _main(sys.argv[1:])
