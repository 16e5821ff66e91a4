"""Every text of a report that others choose, hostile: the page, its figures, tables and records keep their form."""

import csv
import io
import json
import re
from dataclasses import fields, replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from twinbench.foundation.texts import legible
from twinbench.reports.records import Record, read_records
from twinbench.reports.writers import escape_tex

HOSTILE = {
    "elements": "</td></tr></table></style></script></svg><script>alert(1)</script><img src=x onerror=alert(2)>",
    "attributes": "\" onmouseover=\"alert(1)\" x='y' ' onfocus='alert(2)' autofocus `",
    "addresses": "javascript:alert(1) data:text/html,<script>alert(1)</script> [x](javascript:alert(1))",
    "templates": "{{ 7 * 7 }} {% raw %} ${7*7} #{7*7} <%= 7 %> <!-- --> ]]> <![CDATA[",
    "directions": "\u202ecod.exe\u202c \u2066x\u2069 \u200f\u061c\x1b[31m \x07",
    "LaTeX": "\\input{/etc/passwd} \\write18{touch x} ^^5cinput \\end{table} %\n$\\def\\x{$ &",
    "Markdown": "| x |\n\n# heading\n- list\n```\n<b>x</b> ![x](http://x)",
    "formulas": "=cmd|' /C calc'!A0",
}
TEXTS = [
    f.name
    for f in fields(Record)
    if f.type == "str" and f.name not in ("protocol", "metric", "status", "origin")
]


class Elements(HTMLParser):
    """The elements of a page with the names of their attributes, and those attributes that hold an address."""

    def __init__(self):
        super().__init__()
        self.found, self.addresses = [], []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, tuple(sorted(name for name, _ in attributes))))
        self.addresses += [value for name, value in attributes if name in ("href", "src", "action")]


def elements(page):
    parser = Elements()
    parser.feed(page.read_text(encoding="utf-8"))
    parser.close()
    return parser


@pytest.fixture
def report(study, make_row, make_run, write, tmp_path):
    """Write a report in which a text stands wherever others choose one; the folder."""

    def make(text, name):
        run = make_run("byol", name)
        (run.folder / "recipe.yaml").write_text(f"method: {text}", encoding="utf-8")
        known = {key: text for key in TEXTS if key not in ("study", "table", "recipe_hash", "outcomes")}
        known |= {"environment": json.dumps({text: text}), "trained_in": json.dumps({text: [text]})}
        one = {**known, "method": "byol", "image_set": text, "recipe_hash": "byol-0", "reason": ""}
        rows = [
            make_row(**{"method": "byol", "value": 50.0} | one),
            make_row(**{"value": 60.0} | known | {"method": f"{text}", "reason": ""}),
            make_row(**{"value": 40.0} | known | {"method": "simclr", "origin": "imported", "reason": ""}),
            make_row(**{"value": None, "status": "failed"} | known | {"method": "swav", "seed": 1}),
        ]
        changed = json.loads(json.dumps(study))
        changed |= {"title": text, "description": text}
        changed["tables"][0] |= {"title": text, "note": text, "quoted": None}
        changed["tables"][0]["columns"][0]["label"] = text
        changed["figures"] = [{"kind": "bars"}]
        runs = [
            replace(run, variant=text, recipe_hash="byol-0"),
            replace(make_run("swav", name), variant="", status="failed", reason=text),
        ]
        page = write(changed, rows, runs, tmp_path / name)
        return page.parent

    return make


def test_a_hostile_text_is_a_text_wherever_it_stands(report):
    plain = report("a plain text", "plain")
    expected = elements(plain / "report.html")
    for kind, text in HOSTILE.items():
        hostile = report(text, kind)
        found = elements(hostile / "report.html")
        assert {tag for tag, _ in found.found} == {tag for tag, _ in expected.found}, kind
        assert len(found.found) == len(expected.found), kind
        assert not [name for _, names in found.found for name in names if name.startswith("on")], kind
        known = r"#|data:(image/svg\+xml|text/plain)[;,]"
        assert all(re.match(known, address) for address in found.addresses), kind
        page = (hostile / "report.html").read_text(encoding="utf-8")
        assert not {c for c in page if not c.isprintable() and c != "\n"}, (
            f"{kind}: letters are turned around"
        )
        _check_figures(plain, hostile)
        _check_files(hostile, text)


def _check_figures(plain, hostile):
    """A figure with a hostile name has elements of the same kinds: no script, no link, no event."""
    for path in (hostile / "figures").glob("*.svg"):
        tree = ElementTree.parse(path)
        known = {each.tag for each in ElementTree.parse(plain / "figures" / path.name).iter()}
        assert {each.tag for each in tree.iter()} <= known
        names = {name for each in tree.iter() for name in each.attrib}
        assert not [name for name in names if name.rpartition("}")[2].startswith("on")]


def _check_files(folder, text):
    tex = "".join(path.read_text(encoding="utf-8") for path in (folder / "tables").glob("*.tex"))
    assert not re.search(r"\\(input|write|def|include|immediate|openout|catcode)\b", tex)
    assert "^^" not in tex
    for path in (folder / "tables").glob("*.md"):
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [line for line in lines if line.startswith("|")]
        bars = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
        assert len(bars) == 1, "every row has as many cells"
        assert not [line for line in lines if re.match(r"#|```|- |\d+\. ", line)]
        assert not re.search(r"(?<!\\)<(?!/?sup>)", "\n".join(lines))
        assert not re.search(r"(?<!\\)\]\(", "\n".join(lines))
    for path in (folder / "tables").glob("*.csv"):
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
        assert len({len(row) for row in rows}) == 1
    assert legible(text) in {record.method for record in read_records(folder / "records.csv")}


@pytest.mark.parametrize("text", HOSTILE.values())
def test_latex_has_no_command_of_a_text(text):
    written = escape_tex(text)
    commands = set(re.findall(r"\\([A-Za-z]+)", written))
    assert commands <= {"textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar",
                        "textquotedbl", "ensuremath"}  # fmt: skip
