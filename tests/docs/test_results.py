"""What docs/results.md shows is generated, complete and light, and its text says what the records do."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev

import pytest

from twinbench.harness.studies import load_study
from twinbench.reports.figures.drawing import Drawing
from twinbench.reports.page import render_page
from twinbench.reports.records import RunInfo, read_records
from twinbench.reports.tables import build_tables

DOCS = Path(__file__).parents[2] / "docs"
PAGE, RESULTS = DOCS / "results.md", DOCS / "results"
PAPER = RESULTS / "paper"
METHODS = {"barlow_twins", "moco_v2", "byol", "simclr", "swav", "simsiam"}
SEEDS = 3
FAR = 10.0  # points; the paper's own distance is 14


@pytest.fixture(scope="module")
def records() -> list[dict[str, str]]:
    """The rows behind the tables of the paper, as text."""
    file = PAPER / "records.csv"
    assert file.is_file(), f"{file} is missing: twinbench run paper --scale quick, then make readme SHOWN="
    with file.open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_every_table_and_figure_is_on_the_page_as_the_reports_have_it():
    text = PAGE.read_text(encoding="utf-8")
    blocks = dict(re.findall(r"<!-- begin (\S+) -->\n(.*?)\n?<!-- end \1 -->", text, re.DOTALL))
    expected: dict[str, list[Path]] = {}
    for file in sorted(RESULTS.glob("*/tables/*.md")):
        study = file.parents[1].name
        expected.setdefault(f"paper/{file.stem}" if study == "paper" else study, []).append(file)
    joined = {
        name: "\n\n".join(file.read_text(encoding="utf-8").strip() for file in files)
        for name, files in expected.items()
    }
    assert blocks == joined, "make readme writes it again"
    figures = {file.relative_to(DOCS).as_posix() for file in RESULTS.glob("*/figures/*")}
    assert set(re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)) == figures


def test_the_program_behind_make_readme_takes_a_report_or_one_of_its_tables(tmp_path):
    (tmp_path / "report" / "tables").mkdir(parents=True)
    for name in ("one", "two"):
        (tmp_path / "report" / "tables" / f"{name}.md").write_text(f"| {name} |\n")
    page, report = tmp_path / "page.md", tmp_path / "report"
    page.write_text(
        "<!-- begin all -->\n<!-- end all -->\n\n<!-- begin all/two -->\nold\n<!-- end all/two -->\n"
    )
    words = [f"all={report}", f"all/two={report / 'tables' / 'two.md'}"]
    subprocess.run([sys.executable, "-m", "twinbench.reports.readme", page, *words], check=True)
    assert page.read_text() == (
        "<!-- begin all -->\n| one |\n\n| two |\n<!-- end all -->\n\n"
        "<!-- begin all/two -->\n| two |\n<!-- end all/two -->\n"
    )


def test_every_number_of_the_paper_is_there_for_every_method(records):
    """A training may collapse, and an untrained network has no cost; nothing has failed or is left to be run."""
    assert {each["status"] for each in records} <= {"done", "collapsed", "absent"}
    done: dict[str, set[str]] = {}
    for each in records:
        if each["status"] == "done":
            done.setdefault(each["table"], set()).add(each["method"])
    of_one_method = {"table5", "table6", "table7", "fig4-depth", "fig5"}
    tables = {table.name for table in load_study("paper", "quick").tables}
    assert set(done) == tables
    assert {name for name in tables if not done[name] >= METHODS} == of_one_method


def test_the_page_of_the_paper_is_below_8_mb(records, tmp_path):
    """The figures as they are kept here, and logs, spectra and recipes as long as those of real runs."""
    study, found = load_study("paper", "quick"), read_records(PAPER / "records.csv")
    assert len(found) == len(records)
    drawings = [
        Drawing(
            figure.name, figure.title, "", {"svg": (PAPER / "figures" / f"{figure.name}.svg").read_bytes()}
        )
        for figure in study.figures
    ]
    steps = "\n".join(json.dumps({"step": 3 * i, "loss": 1000 / (i + 1.234567)}) for i in range(256))
    spectrum = [float(1 / (i + 1)) for i in range(1024)]
    runs = []
    for record in {record.recipe_hash: record for record in found}.values():
        folder = tmp_path / f"{record.method}-digit-scenes-{record.recipe_hash}"
        folder.mkdir()
        (folder / "metrics.jsonl").write_text(steps)
        (folder / "recipe.yaml").write_text("views.brightness: 0.502\n" * 60)
        (folder / "diagnostics.json").write_text(json.dumps({"spectrum": spectrum, "effective_rank": 3.0}))
        run = RunInfo(record.method, record.variant, record.seed or 0, "done", "", folder)
        runs.append(replace(run, recipe_hash=record.recipe_hash))
    assert len(runs) > 80
    tables = build_tables(study, found)
    page = render_page(study, tables, drawings, found, runs, "twinbench run paper --scale quick")
    assert len(page.encode()) < 8e6


@dataclass(frozen=True)
class Row:
    """Linear top-1 on test images of the seeds of a row, and how many of its seeds collapsed."""

    values: tuple[float, ...]
    collapsed: int

    @property
    def is_lost(self) -> bool:
        """Whether most seeds collapsed: the row then counts as below every other."""
        return 2 * self.collapsed > SEEDS

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def text(self) -> str:
        """What the page has to say of it."""
        return "collapse" if self.is_lost else f"{self.mean:.1f}"

    def is_above(self, other: Row, by: float = 0.0) -> bool:
        """Whether the mean is greater, by more than so many points and than two standard errors of the difference."""
        if self.is_lost or other.is_lost:
            return not self.is_lost
        error = sqrt(sum(stdev(row.values) ** 2 / len(row.values) for row in (self, other)))
        return self.mean - other.mean > max(by, 2 * error)


def row(records: list[dict[str, str]], table: str, method: str, variant: str) -> Row:
    """A row of a table, all of whose seeds must have come to something."""
    measure = {"table": table, "method": method, "variant": variant}
    measure |= {"protocol": "linear/cached-v1", "metric": "top1"}
    found = [each for each in records if measure.items() <= each.items()]
    assert sorted(each["seed"] for each in found) == ["0", "1", "2"], (table, method, variant)
    values = tuple(float(each["value"]) for each in found if each["status"] == "done")
    collapsed = sum(each["status"] == "collapsed" for each in found)
    assert len(values) + collapsed == SEEDS
    return Row(values, collapsed)


def varied(records: list[dict[str, str]], table: str) -> list[Row]:
    """The rows of Barlow Twins in a table that varies a number, from the smallest on."""
    variants = {
        each["variant"] for each in records if (each["table"], each["method"]) == (table, "barlow_twins")
    }
    assert len(variants) >= 3
    return [row(records, table, "barlow_twins", variant) for variant in sorted(variants, key=float)]


def directions(records: list[dict[str, str]]) -> dict[str, tuple[bool, list[Row]]]:
    """Each direction that the paper has, with whether these records have it, and the rows that it is about."""
    variants = ("Baseline", "Invariance term only", "Redundancy term only")
    baseline, invariance, redundancy = (row(records, "table5", "barlow_twins", name) for name in variants)
    untrained = row(records, "table5", "random_init", "")
    widths, lambdas = varied(records, "fig4-width"), varied(records, "fig5")
    best = max(lambdas, key=lambda each: -1.0 if each.is_lost else each.mean)
    ends = lambdas[0], lambdas[-1]
    return {
        "Invariance only collapses or falls far behind": (
            baseline.is_above(invariance, FAR),
            [baseline, invariance],
        ),
        "Redundancy reduction only fails": (
            baseline.is_above(redundancy) and not redundancy.is_above(untrained),
            [baseline, redundancy, untrained],
        ),
        "A wider projector is better": (widths[-1].is_above(widths[0]), [widths[0], widths[-1]]),
        "Lambda has an inner optimum": (all(best.is_above(end) for end in ends), [ends[0], best, ends[1]]),
    }


def claims() -> dict[str, str]:
    """What the page says of each direction, by its name: whether it holds, and the numbers."""
    text = PAGE.read_text(encoding="utf-8")
    _, section = text.split("### Which directions of the paper hold\n")
    points = [" ".join(point.split()) for point in section.partition("\n#")[0].split("\n- ")[1:]]
    found = dict(re.fullmatch(r"\*\*(.+?):(.*)", point).groups() for point in points)
    assert len(found) == len(points)
    return found


@pytest.mark.parametrize(
    "name",
    [
        "Invariance only collapses or falls far behind",
        "Redundancy reduction only fails",
        "A wider projector is better",
        "Lambda has an inner optimum",
    ],
)
def test_the_page_says_of_a_direction_what_the_records_do(records, name):
    holds, rows = directions(records)[name]
    verdict, numbers = "holds" if holds else "does not hold", [each.text for each in rows]
    said = claims()[name]
    assert said.startswith(f" {verdict}.**"), f"{said}; the records: {verdict}, {numbers}"
    assert [text for text in numbers if text not in said] == [], said


def test_the_page_tells_of_these_directions_and_no_others(records):
    assert set(claims()) == set(directions(records))
    assert "TODO" not in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("one", "other", "by", "above"),
    [
        (Row((60.0, 62.0, 64.0), 0), Row((50.0, 52.0, 54.0), 0), 0.0, True),
        (Row((60.0, 62.0, 64.0), 0), Row((50.0, 52.0, 54.0), 0), 10.5, False),
        # standard errors of 20 / sqrt(3) each: twice that of the difference is 32.7
        (Row((40.0, 60.0, 80.0), 0), Row((8.0, 28.0, 48.0), 0), 0.0, False),
        (Row((40.0, 60.0, 80.0), 0), Row((7.0, 27.0, 47.0), 0), 0.0, True),
        (Row((20.0,), 2), Row((10.0, 10.5, 11.0), 0), 0.0, False),
        (Row((10.0, 10.5, 11.0), 0), Row((20.0,), 2), 0.0, True),
        (Row((), 3), Row((), 3), 0.0, False),
        (Row((60.0, 62.0), 1), Row((50.0, 52.0, 54.0), 0), 0.0, True),
    ],
)
def test_a_row_is_above_another_beyond_two_standard_errors(one, other, by, above):
    assert one.is_above(other, by) == above
