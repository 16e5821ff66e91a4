"""The whole report: its files, the page, figures, atomicity, README blocks, quick import."""

import html.parser
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from twinbench.foundation.errors import InputError, RunFailure
from twinbench.foundation.files import write_atomically
from twinbench.reports import build
from twinbench.reports.build import build_report, check_out
from twinbench.reports.cells import Cell
from twinbench.reports.figures import draw_figures
from twinbench.reports.figures.bars import _label_references
from twinbench.reports.figures.runs import correlation_facts, smoothed
from twinbench.reports.names import pretty
from twinbench.reports.page import duration, wall_seconds
from twinbench.reports.readme import update_blocks
from twinbench.reports.records import RunInfo, read_loss_curve, read_records
from twinbench.reports.tables import build_tables

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(html.parser.HTMLParser):
    """Collects the attributes and checks that elements nest."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def runs(make_run):
    return [
        make_run("barlow_twins"),
        make_run("byol", seed=1),
        make_run("swav", status="collapsed", reason="<script>alert(1)</script>"),
        make_run("supervised"),
    ]


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_report_has_every_file(study, records, runs, tmp_path, write):
    page = write(study, records, runs, tmp_path / "out")
    assert page == tmp_path / "out" / "report.html"
    figures = ["bars", "bars_knn", "cross_correlation", "loss_curves", "spectrum"]
    expected = [
        ".report-files.json",
        ".report-made-of.json",
        "environments.json",
        "records.csv",
        "report.html",
    ]
    expected += [f"figures/{name}.{suffix}" for name in figures for suffix in ("pdf", "png", "svg")]
    expected += [f"tables/main{suffix}" for suffix in (".csv", ".md", ".tex", "-differences.csv")]
    expected += ["study.json"]
    assert listing(tmp_path / "out") == sorted(expected)
    assert (tmp_path / "out/figures/bars.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out/figures/bars.pdf").read_bytes().startswith(b"%PDF")
    assert read_records(tmp_path / "out/records.csv") == records
    assert list(tmp_path.glob(".out*")) == []


def test_a_report_that_is_there_stays_until_something_that_it_is_made_of_changes(
    study, records, runs, tmp_path, write, monkeypatch
):
    out = tmp_path / "out"
    study["figures"] = [{"kind": "bars"}]  # of several, each of these reports would take a second
    write(study, records, runs, out)
    drawn = []
    draw = build.draw_figures
    monkeypatch.setattr(build, "draw_figures", lambda *of: drawn.append(1) or draw(*of))

    def is_drawn(again=records):
        drawn.clear()
        write(study, again, runs, out)
        return bool(drawn)

    assert not is_drawn()
    assert is_drawn(records[:-1])
    assert is_drawn()
    (out / "figures" / "bars.svg").unlink()
    assert is_drawn(), "a file of it is gone"
    (out / "tables" / "main.md").write_text("| mine |")
    assert is_drawn(), "somebody changed a file of it"
    with (runs[0].folder / "metrics.jsonl").open("a") as log:
        log.write("\n")
    assert is_drawn(), "a file of a run has changed"
    study["title"] = "Another"
    assert is_drawn()
    assert not is_drawn()


def test_the_page_is_self_contained_and_escaped(study, records, runs, tmp_path, write):
    text = write(study, records, runs, tmp_path / "out").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    text = re.sub(r'src="data:image/svg[^"]*"', "src", text)  # drawings, which name the namespace of SVG
    assert page.open == []
    links = [value for name, value in page.attributes if name in ("src", "href", "srcset", "data")]
    assert all(value.startswith(("data:", "#")) for value in links)
    assert not {"link", "iframe", "object", "embed"} & set(page.tags)
    assert text.count("<script") == page.tags.count("script") == 2  # the data, which is not run, and our own
    assert "http" not in text.lower().replace('http-equiv="content-security-policy"', "", 1)
    assert "url(" not in text
    assert "@import" not in text
    assert page.tags.count("img") == 5
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "A study &amp; &lt;more&gt;" in text
    assert "†: another pretraining budget than the others." in text
    parts = ["headline", "tables", "table-main", "problems", "provenance", "regenerate"]
    parts += [
        f"figure-{name}" for name in ("bars", "bars_knn", "cross_correlation", "loss_curves", "spectrum")
    ]
    places = [text.index(f'id="{part}"') for part in (*parts[:3], *parts[6:], *parts[3:6])]
    assert places[:3] == sorted(places[:3])
    assert max(places[3:8]) < text.index('id="problems"')  # the figures stand in the section of their table
    assert "twinbench run s" in text
    assert "barlow_twins-0"[:12] in text
    assert "sum-barlow_twins-0"[:12] in text


def test_an_ablation_study_draws_numbers_and_words(make_row, make_run, tmp_path, write, spec):
    quoted = {
        "file": "fig_projector.csv",
        "match": {"projector_out_dim": "width"},
        "columns": {"top1": "top-1"},
    }
    rows = [make_row("barlow_twins", 60.0 + i, variant=str(2**i)) for i in range(5, 9)]
    rows += [
        make_row("byol", 60.0, variant="32"),
        make_row("byol", None, variant="64", status="collapsed", reason="flat"),
    ]
    column = {"protocol": "linear/cached-v1", "metric": "top1", "label": "Linear"}
    axis = {"key": "options.width", "label": "width", "values": [32, 64, 128, 256], "log_scale": True}
    table = {
        "name": "width",
        "rows": [{"methods": ["barlow_twins", "byol"], "vary": [axis]}],
        "columns": [column],
        "quoted": quoted,
    }
    study = {"tables": [table], "figures": [{"kind": "ablation", "name": "width"}, {"kind": "loss_curves"}]}
    runs = [make_run("byol", "64", status="collapsed"), make_run("byol", "32")]
    width, _ = draw_figures(spec(study), build_tables(spec(study), rows, runs), runs)
    assert set(width.files) == {"svg", "png", "pdf"}
    assert "quoted, ImageNet ResNet-50, 300 epochs" in width.caption
    assert "BYOL at 64: collapsed" in width.caption
    words = [make_row("byol", 60.0, variant="baseline"), make_row("byol", 50.0, variant="no flip")]
    values = [
        {"label": "baseline"},
        {"label": "no flip", "set": {"views.flip": 0}, "published": "Remove flip"},
    ]
    table["rows"] = [{"methods": ["byol"], "vary": [{"label": "views", "values": values}]}]
    table["quoted"] = {
        "file": "fig_augmentations.csv",
        "match": {"augmentation": "views"},
        "columns": {"top1": "top-1"},
    }
    write(study, words, [], tmp_path / "out")
    table = pd.read_csv(tmp_path / "out/tables/width.csv")
    assert list(table[table["origin"] == "quoted"]["value"]) == [72.5, 71.9]


def test_a_report_of_a_running_study_has_a_line_for_each_figure(study, records, runs, spec, tmp_path):
    def build(draw):
        page = build_report(spec(study), records, runs, tmp_path / "out", "twinbench run s", draw=draw)
        return page.read_text(encoding="utf-8")

    line = "Not drawn: the study is still running, and its end draws it."
    names = ("bars", "bars_knn", "cross_correlation", "loss_curves", "spectrum")
    early = build(draw=False)
    assert early.count(line) == 5
    for name in names:
        figure = early[early.index(f'id="figure-{name}"') :].split("</figure>")[0]
        assert line in figure
        assert "<img" not in figure
    assert not [name for name in listing(tmp_path / "out") if name.startswith("figures/")]
    assert "72.5 ± 0.7" in early
    late = build(draw=True)
    assert line not in late
    assert late.count("<img") == 5
    drawn = {f"figures/{name}.{suffix}" for name in names for suffix in ("svg", "png", "pdf")}
    assert drawn < set(listing(tmp_path / "out"))
    assert build(draw=False) == late, "made of the same, it keeps its figures"


def test_no_data_is_said_and_not_drawn(study, records, tmp_path, write):
    out = tmp_path / "out"
    text = write(study, records, [], out).read_text(encoding="utf-8")
    assert "Not drawn: no run has logged a loss." in text
    assert "figures/loss_curves.svg" not in listing(out)
    empty = write(study, [], [], tmp_path / "empty").read_text(encoding="utf-8")
    assert "Not drawn: no number" in empty
    assert (tmp_path / "empty/records.csv").read_text().startswith("study,table,method,variant")


def test_figures_do_not_depend_on_the_day(study, records, runs, spec):
    study["figures"] = study["figures"][1:4]
    arguments = spec(study), build_tables(spec(study), records, runs), runs
    first, second = draw_figures(*arguments), draw_figures(*arguments)
    for one, other in zip(first, second, strict=True):
        assert one.files == other.files, one.name
        assert b"<dc:date>" not in one.files["svg"]
        assert b"CreationDate" not in one.files["pdf"]


@pytest.fixture
def small(study):
    """A study that is drawn in no time."""
    return {**study, "figures": []}


def tree(folder):
    return {name: (folder / name).read_bytes() for name in listing(folder)}


def test_stale_files_go_and_foreign_files_stay(small, records, tmp_path, write):
    out = tmp_path / "out"
    write(small, records, [], out)
    foreign = ["notes.txt", "tables/mine.csv", "figures/deep/photo.svg", "data/numbers.csv"]
    for name in foreign:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(name)
    (out / "empty").mkdir()
    (out / "tables" / "link.csv").symlink_to(tmp_path / "nowhere")
    small["tables"][0]["name"] = "renamed"
    for _ in range(2):
        write(small, records, [], out)
        assert all((out / name).read_text() == name for name in foreign)
        assert (out / "empty").is_dir()
        names = sorted(p.name for p in (out / "tables").iterdir())
        files = ["renamed-differences.csv", "renamed.csv", "renamed.md", "renamed.tex"]
        assert names == ["link.csv", "mine.csv", *files]
    written = json.loads((out / ".report-files.json").read_text())
    own = [".report-made-of.json", "environments.json", "records.csv", "report.html", "study.json"]
    assert written == own + [f"tables/{name}" for name in files]
    assert list(tmp_path.glob(".out*")) == []


def test_a_report_without_a_list_gives_up_only_what_is_replaced(small, records, tmp_path, write):
    out = tmp_path / "out"
    page = write(small, records, [], out)
    (out / ".report-files.json").unlink()
    (out / "tables" / "mine.csv").write_text("mine")
    write({**small, "title": "Second"}, records, [], out)
    assert "Second" in page.read_text()
    assert (out / "tables" / "mine.csv").read_text() == "mine"
    assert list(tmp_path.glob(".out*")) == []


@pytest.mark.parametrize(
    "name",
    [
        "tables/a.csv",
        "figures/a.png",
        "records.csv",
        "environments.json",
        "report.html",
        "tables",
        "figures/sub/a",
    ],
)
def test_a_folder_that_is_no_report_is_refused(small, records, tmp_path, name, write):
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("<html>mine</html>")
    before = tree(tmp_path)
    for refused in (lambda: check_out(out), lambda: write(small, records, [], out)):
        with pytest.raises(InputError, match=r"no report of twinbench(.|\n)*where:(.|\n)*next:"):
            refused()
    assert tree(tmp_path) == before


def test_a_file_and_the_current_folder_are_refused(small, records, tmp_path, monkeypatch, write):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "here" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here" / "below")
    before = tree(tmp_path)
    for out in ("../../file", "../../file/out", ".", "..", "../below", "../../link", tmp_path, "/"):
        with pytest.raises(InputError, match=r"where:(.|\n)*next:"):
            check_out(Path(out))
        with pytest.raises(InputError):
            write(small, records, [], Path(out))
    assert tree(tmp_path) == before
    check_out(Path("new/er"))
    assert tree(tmp_path) == before
    assert not Path("new").exists()


def test_a_folder_of_other_files_and_a_linked_folder_are_taken(small, records, tmp_path, write):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for _ in range(2):
        page = write(small, records, [], tmp_path / "link")
        assert page == tmp_path / "link" / "report.html"
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real" / "report.html").is_file()
        assert (tmp_path / "real" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("clash", ["tables/renamed.md", "tables/renamed.md/sub"])
def test_a_foreign_file_with_a_name_of_the_new_report_is_refused(small, records, tmp_path, clash, write):
    out = tmp_path / "out"
    write(small, records, [], out)
    (out / clash).parent.mkdir(exist_ok=True)
    (out / clash).write_text("mine")
    before = tree(tmp_path)
    small["tables"][0]["name"] = "renamed"
    with pytest.raises(InputError, match=r"renamed\.md"):
        write(small, records, [], out)
    assert tree(tmp_path) == before


def test_a_linked_tables_folder_is_not_emptied(small, records, tmp_path, write):
    out = tmp_path / "out"
    write(small, records, [], out)
    (out / "tables").rename(tmp_path / "elsewhere")
    (out / "tables").symlink_to(tmp_path / "elsewhere")
    before = tree(tmp_path)
    small["title"] = "Another"
    with pytest.raises(InputError, match="tables"):
        write(small, records, [], out)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("broken", ["to_latex", "render_page", "swap"])
def test_a_crash_leaves_the_old_report(study, records, tmp_path, monkeypatch, broken, write):
    study["figures"] = [{"kind": "bars"}]
    out = tmp_path / "out"
    write(study, records, [], out)
    before = {name: (out / name).read_bytes() for name in listing(out)}

    def crash(*arguments):
        raise OSError("disk full") if broken == "swap" else RuntimeError("crash")

    monkeypatch.setattr(build, broken, crash)
    with pytest.raises(RunFailure if broken == "swap" else RuntimeError, match=r"disk full|crash"):
        write({**study, "title": "new"}, records, [], out)
    assert {name: (out / name).read_bytes() for name in listing(out)} == before
    assert list(tmp_path.glob(".out*")) == []


def test_a_swap_cut_short_is_undone(study, records, tmp_path, write):
    study["figures"] = [{"kind": "bars"}]
    out = tmp_path / "out"
    write(study, records, [], out)
    (out / "notes.txt").write_text("mine")
    out.rename(tmp_path / ".out.old")  # as if the process had died between the two renames
    write(study, records, [], out)
    assert (out / "notes.txt").read_text() == "mine"
    assert list(tmp_path.glob(".out*")) == []


def test_a_swap_cut_short_after_the_new_report_is_in_place(small, records, tmp_path, write):
    out = tmp_path / "out"
    write(small, records, [], out)
    (out / "tables" / "mine.csv").write_text("mine")
    out.rename(tmp_path / ".out.old")
    small["tables"][0]["name"] = "renamed"
    write(small, records, [], tmp_path / "new")
    (tmp_path / "new").rename(out)  # as if the process had died before the old report was cleared away
    write(small, records, [], out)
    names = {p.stem.removesuffix("-differences") for p in (out / "tables").iterdir()}
    assert names == {"mine", "renamed"}
    assert list(tmp_path.glob(".out*")) == []


def test_a_fault_of_the_machine_is_no_wrong_use(small, records, tmp_path, monkeypatch, write):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    out = tmp_path / "out"
    write(small, records, [], out)
    readme = tmp_path / "README.md"
    readme.write_text("old")
    before = tree(tmp_path)
    small["title"] = "Another"
    monkeypatch.setattr(os, "fsync", full)
    for fail in (lambda: write(small, records, [], out), lambda: write_atomically(readme, b"new")):
        with pytest.raises(RunFailure, match=r"No space left(.|\n)*where:(.|\n)*next:") as caught:
            fail()
        assert not isinstance(caught.value, InputError)
    assert tree(tmp_path) == before
    failure = RunFailure("what", "where", "nearest", "next")
    copy = pickle.loads(pickle.dumps(failure))
    assert (type(copy), str(copy)) == (RunFailure, str(InputError("what", "where", "nearest", "next")))


def test_every_file_is_synced_before_the_swap(small, records, tmp_path, monkeypatch, write):
    small["figures"] = [{"kind": "bars"}]
    synced, at_swap = set(), []
    fsync, swap = os.fsync, build.swap

    def note(descriptor):
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def watch(staging, out):
        at_swap.extend((path.name, path.stat().st_ino in synced) for path in staging.rglob("*.*"))
        swap(staging, out)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(build, "swap", watch)
    write(small, records, [], tmp_path / "out")
    assert len(at_swap) == len(listing(tmp_path / "out")) == 13
    assert all(done for _, done in at_swap), at_swap


def test_loss_curve_reading(tmp_path):
    lines = ['{"step": 0, "epoch": 0, "loss": 3}', '{"step": 1, "epoch": 1, "loss": 2}', "not json", "[]"]
    lines += ['{"step": 1, "epoch": 1, "loss": 1.5}', '{"step": 2, "epoch": 2, "loss": NaN}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    curve = read_loss_curve(tmp_path)
    assert (curve.steps, curve.losses) == ((0, 1), (3.0, 1.5))
    assert read_loss_curve(tmp_path / "none") is None


def test_broken_diagnostics_are_named(study, records, tmp_path, write):
    (tmp_path / "diagnostics.json").write_text("{")
    with pytest.raises(InputError, match=r"diagnostics\.json"):
        write(study, records, [RunInfo("byol", "", 0, "done", "", tmp_path)], tmp_path / "out")


def test_smoothing_and_correlation_facts():
    values = np.random.default_rng(0).normal(size=200)
    expected = pd.Series(values).rolling(11, center=True, min_periods=1).mean()  # 5 % of 200, either side
    np.testing.assert_allclose(smoothed(values), expected, atol=1e-12)
    matrix = np.random.default_rng(1).normal(size=(5, 5))
    off = matrix[~np.eye(5, dtype=bool)]
    assert correlation_facts(matrix) == pytest.approx((np.trace(matrix) / 5, np.sqrt((off**2).mean())))


def test_seconds_of_a_job_count_once(make_row, tmp_path):
    rows = [make_row("byol", 1.0), make_row("byol", 2.0, metric="top5"), make_row("byol", 1.0, seed=1)]
    assert wall_seconds(rows) == 20.0
    shared = [RunInfo("byol", variant, 0, "done", "", tmp_path / "0", seconds=100.0) for variant in ("", "a")]
    other = RunInfo("byol", "", 1, "collapsed", "flat", tmp_path / "1", seconds=7.5)
    unknown = RunInfo("byol", "", 2, "failed", "not run", tmp_path / "2")
    assert wall_seconds(rows, [*shared, other, unknown]) == 127.5
    assert duration(3942) == "3942 s (1 h 05 min)"
    assert duration(75) == "75 s (1 min 15 s)"


def test_readme_blocks(tmp_path):
    readme = tmp_path / "README.md"
    text = "a\n<!-- begin one -->\nold\n<!-- end one -->\nb\n<!-- begin two --><!-- end two -->\n"
    readme.write_text(text)
    assert update_blocks(readme, {"one": "| x |\n", "two": r"\1 new"})
    expected = (
        "a\n<!-- begin one -->\n| x |\n<!-- end one -->\nb\n<!-- begin two -->\n\\1 new\n<!-- end two -->\n"
    )
    assert readme.read_text() == expected
    assert not update_blocks(readme, {"one": "| x |"})
    with pytest.raises(InputError, match="nearest: one"):
        update_blocks(readme, {"two": "changed", "onne": "x"})
    assert readme.read_text() == expected
    readme.write_text("<!-- end one -->\n<!-- begin one -->")
    with pytest.raises(InputError, match="needs one"):
        update_blocks(readme, {"one": "x"})


def test_no_torch_and_a_quick_import():
    modules = ["build", "console", "readme", "quoted", "study"]
    rooms = (
        "torch matplotlib.pyplot twinbench.data twinbench.encoders twinbench.pretraining twinbench.harness"
    )
    code = f"import sys, {', '.join(f'twinbench.reports.{module}' for module in modules)}\n"
    code += f"print(sorted(set({rooms.split()}) & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    bare = "import sys, twinbench.reports; print({'pandas', 'matplotlib', 'torch'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", bare], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_a_name_with_dollars_is_no_formula(make_row, study, spec):
    """As a formula the first would be set in italics and the second could not be drawn at all."""
    study["figures"] = [{"kind": "bars"}]
    rows = [make_row("byol", 50.0, variant=variant) for variant in ("$x_1$", "$\\frac$")]
    (drawing,) = draw_figures(spec(study), build_tables(spec(study), rows), [])
    # matplotlib writes every text into the SVG as a comment before its outlines
    assert all(f"<!-- {name} -->".encode() in drawing.files["svg"] for name in ("$x_1$", "$\\frac$"))


def test_names_of_reference_lines_that_are_close_do_not_overlap():
    figure = Figure((8.5, 3.6))
    renderer = FigureCanvasAgg(figure).get_renderer()
    axes = figure.add_subplot()
    axes.set_ylim(0, 40)
    values = (("random_init", 36.4), ("supervised", 36.1))
    references = [
        (SimpleNamespace(method=method, labels=(pretty(method),)), Cell(value=value, status="done"))
        for method, value in values
    ]
    _label_references(axes, references)
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert not boxes[0].overlaps(boxes[1])
    assert [text.get_text() for text in axes.texts] == ["Supervised 36.1", "Random init 36.4"]
