"""Every command in the pages of docs/ does what its page says: it runs, in the order of the page, in an empty folder.

A block that begins with the name of a file, as a comment, is a file that the page asks for. A block of commands after
``<!-- not run: why -->`` is left out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from twinbench.harness.reference import reference

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>.+?) -->\n)?```(?P<kind>\w+)\n(?P<text>(?:# (?P<title>\S+\.\w+)\n)?.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def blocks(page: Path) -> list[re.Match[str]]:
    return list(_BLOCK.finditer(page.read_text(encoding="utf-8")))


def runnable(page: Path) -> bool:
    return any(block["kind"] == "sh" and not block["why"] for block in blocks(page))


PAGES = [page for page in sorted(DOCS.rglob("*.md")) if runnable(page)]


def environment(folder: Path) -> dict[str, str]:
    """That of a user whose environment has twinbench, in which pages may install without touching that of the tests."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (site / "tests.pth").write_text(
        "".join(f"import site; site.addsitedir({path!r})\n" for path in _packages())
    )
    program = folder / "bin" / "twinbench"
    program.write_text(
        f'#!{python}\nfrom twinbench.harness.main import main\nif __name__ == "__main__":\n    main()\n'
    )
    program.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # which is how pip spells that there is none
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def _packages() -> list[str]:
    """Where the packages of the tests are installed."""
    return [path for path in sys.path if path.endswith("-packages")]


@pytest.mark.docs
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run_as_they_stand(page, tmp_path):
    where = tmp_path / "work"
    where.mkdir()
    variables = environment(tmp_path / "environment")
    for block in blocks(page):
        if block["title"]:
            file = where / block["title"]
            file.parent.mkdir(exist_ok=True)
            file.write_text(block["text"], encoding="utf-8")
        elif block["kind"] == "sh" and not block["why"]:
            done = subprocess.run(
                ["bash", "-euc", block["text"]], cwd=where, env=variables, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{block['text']}\n{done.stdout}\n{done.stderr}"
    assert not list(where.rglob("*.tmp"))


def test_the_reference_of_protocols_is_that_of_the_code():
    assert (DOCS / "protocols.md").read_text(encoding="utf-8") == reference(), "make docs writes it again"


def test_every_page_is_in_the_contents_and_every_task_has_commands_that_run():
    contents = set((DOCS / "index.md").read_text(encoding="utf-8").splitlines())
    pages = {page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.rglob("*.md")}
    assert {page for page in pages if not page.startswith("results/")} - contents == {"index"}
    assert {page.name for page in (DOCS / "tasks").iterdir()} <= {page.name for page in PAGES}
