"""The tables of a report in LaTeX: hostile names neither break their groups nor, where there is a LaTeX, a document."""

import re
import shutil
import subprocess

import pytest

from tests.reports.hostile import NASTY
from twinbench.reports.writers import escape_tex

COMPILER = next(filter(None, map(shutil.which, ("tectonic", "latexmk", "pdflatex"))), None)
OPTIONS = {
    "tectonic": ["--keep-logs"],
    "latexmk": ["-pdf", "-interaction=nonstopmode", "-halt-on-error"],
    "pdflatex": ["-interaction=nonstopmode", "-halt-on-error"],
}
DOCUMENT = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage{booktabs}
\begin{document}
%s
\end{document}
"""


@pytest.fixture
def tables(study, records, make_row, write, tmp_path):
    """The .tex files of a report: a table as it should be, and two in which everything that can be is hostile."""
    nasty = {"title": NASTY, "columns": [{**study["tables"][0]["columns"][0], "label": NASTY}]}
    study["tables"] += [{**study["tables"][0], **nasty, "name": "nasty"}]
    study["tables"] += [{**nasty, "name": "nasty.and_varied"}]
    study["figures"] = []
    rows = [
        make_row(NASTY, 50.0, backbone=NASTY, remarks=NASTY),
        make_row(f"*{NASTY}", 50.0, variant=NASTY, epochs=7),
        make_row(f"[{NASTY}]", 50.0, variant=NASTY, origin="imported", source=NASTY, source_name=NASTY),
        make_row("simclr", 50.0, 0, variant=NASTY, remarks=NASTY),
        make_row("simclr", None, 1, variant=NASTY, status="collapsed", reason=NASTY),
    ]
    write(study, [*records, *rows], [], tmp_path / "out")
    return sorted((tmp_path / "out" / "tables").glob("*.tex"))


def test_braces_and_environments_are_balanced_and_nothing_special_is_left(tables):
    assert len(tables) == 3
    for path in tables:
        text = path.read_text(encoding="utf-8").split("\n", 1)[1]  # the first line is a comment
        opened, closed = re.findall(r"\\begin\{(\w+)\}", text), re.findall(r"\\end\{(\w+)\}", text)
        assert sorted(opened) == sorted(closed) == ["minipage", "table", "tabular"]
        bare = text.replace("\\\\", "")
        depth = 0
        for brace in re.findall(r"(?<!\\)[{}]", bare):
            depth += 1 if brace == "{" else -1
            assert depth >= 0
        assert depth == 0
        assert not re.findall(r"(?<!\\)[%#$_~^]", bare)
        assert not re.findall(r"\\textbf\{\\?\$", text), "the command in the name"
        tabular = text.split(r"\begin{tabular}")[1].split(r"\end{tabular}")[0]
        rows = [line for line in tabular.splitlines() if line.endswith(r"\\")]
        assert len({len(re.findall(r"(?<!\\)&", line)) for line in rows}) == 1
        assert not [line for line in rows if line.startswith(("[", "*"))], (
            "read as an option of the row before"
        )
        assert text.isascii()


@pytest.mark.parametrize(
    ("label", "needed", "not_needed"),
    [
        ("plain ± λ", ["[T1]{fontenc}", "booktabs"], ["XeLaTeX"]),
        ("Žluťoučký \u2013 naïve…", ["[T1]{fontenc}"], ["XeLaTeX"]),
        ("模型 and моя", ["XeLaTeX or LuaLaTeX", "я", "模", "型", "fontspec", "booktabs"], ["fontenc"]),
    ],
)
def test_the_first_line_names_the_engine_that_sets_the_characters(
    study, make_row, write, tmp_path, label, needed, not_needed
):
    columns = [{**study["tables"][0]["columns"][0], "label": label}]
    study = {**study, "tables": [{"name": "main", "columns": columns}], "figures": []}
    write(study, [make_row("byol", 50.0)], [], tmp_path / "out")
    first = (tmp_path / "out" / "tables" / "main.tex").read_text(encoding="utf-8").split("\n")[0]
    assert first.startswith("% needs ")
    assert all(word in first for word in needed)
    assert not any(word in first for word in not_needed)


def test_control_characters_become_spaces():
    assert escape_tex("a\x00b\nc\td") == "a b c d"


@pytest.mark.skipif(COMPILER is None, reason="needs a LaTeX: tectonic, latexmk or pdflatex")
def test_a_document_of_the_tables_compiles(tables, tmp_path):
    assert COMPILER is not None
    inputs = "\n".join(rf"\input{{out/tables/{path.name}}}\clearpage" for path in tables)
    (tmp_path / "all.tex").write_text(DOCUMENT % inputs)
    name = COMPILER.rsplit("/", 1)[-1]
    command = [COMPILER, *OPTIONS[name], "all.tex"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    assert (tmp_path / "all.pdf").read_bytes().startswith(b"%PDF")
