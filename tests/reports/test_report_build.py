"""The whole report: its files, the page, figures, atomicity, README blocks, quick import."""

import html.parser
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from reports import build
from reports.build import build_report
from reports.errors import ReportError
from reports.figures import correlation_facts, draw_figures, smoothed
from reports.page import duration, wall_seconds
from reports.readme import update_blocks
from reports.records import RunInfo, read_loss_curve, read_records
from reports.study import parse_study

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


def test_a_report_has_every_file(study, records, runs, tmp_path):
    page = build_report(study, records, runs, tmp_path / "out")
    assert page == tmp_path / "out" / "report.html"
    figures = ["bars", "bars_knn", "cross_correlation", "loss_curves", "spectrum"]
    expected = ["records.csv", "report.html"]
    expected += [f"figures/{name}.{suffix}" for name in figures for suffix in ("pdf", "png", "svg")]
    expected += [f"tables/main.{suffix}" for suffix in ("csv", "md", "tex")]
    assert listing(tmp_path / "out") == sorted(expected)
    assert (tmp_path / "out/figures/bars.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out/figures/bars.pdf").read_bytes().startswith(b"%PDF")
    back = pd.read_csv(tmp_path / "out/records.csv", keep_default_na=False, na_values=[""])
    assert list(back.columns) == list(records.columns)
    np.testing.assert_array_equal(back["value"], records["value"])
    assert list(tmp_path.glob(".out*")) == []


def test_the_page_is_self_contained_and_escaped(study, records, runs, tmp_path):
    text = build_report(study, records, runs, tmp_path / "out").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    links = [value for name, value in page.attributes if name in ("src", "href", "srcset", "data")]
    assert all(value.startswith(("data:", "#")) for value in links)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "http" not in text.lower()
    assert "url(" not in text
    assert "@import" not in text
    assert page.tags.count("img") == 5
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "A study &amp; &lt;more&gt;" in text
    assert "†: another pretraining budget than the others." in text
    for part in ("headline", "tables", "figures", "problems", "provenance", "regenerate"):
        assert f'id="{part}"' in text
    assert "twinbench run s" in text
    assert "barlow_twins-0"[:12] in text
    assert "sum-barlow_twins-0"[:12] in text


def test_an_ablation_study_draws_numbers_and_words(make_row, make_run, tmp_path):
    quoted = {"file": "fig_projector.csv", "x": "projector_out_dim", "y": "top1"}
    lost = {"status": "collapsed", "reason": "flat", "value": float("nan")}
    rows = [make_row("barlow_twins", 60.0 + i, variant=str(2**i)) for i in range(5, 9)]
    rows += [make_row("byol", 60.0, variant="32"), make_row("byol", 0.0, variant="64") | lost]
    column = {"protocol": "linear/cached-v1", "metric": "top1", "label": "Linear"}
    study = {
        "figures": [{"kind": "ablation", "name": "width"}, {"kind": "loss_curves"}],
        "ablation": {
            "key": "options.width",
            "values": [32, 64, 128, 256],
            "log_scale": True,
            "columns": [column],
            "quoted": quoted,
        },
    }
    runs = [make_run("byol", "64", status="collapsed"), make_run("byol", "32")]
    width, _ = draw_figures(parse_study(study), read_records(pd.DataFrame(rows)), runs)
    assert set(width.files) == {"svg", "png", "pdf"}
    assert "quoted, ImageNet ResNet-50, 300 epochs" in width.caption
    assert "BYOL at 64: collapsed" in width.caption
    words = [make_row("byol", 60.0, variant="baseline"), make_row("byol", 50.0, variant="no flip")]
    study["ablation"] = {
        "key": "views",
        "columns": [column],
        "quoted": {
            "file": "fig_augmentations.csv",
            "x": "augmentation",
            "y": "top1",
            "values": {"no flip": "Remove flip"},
        },
    }
    build_report(study, pd.DataFrame(words), [], tmp_path / "out")
    table = pd.read_csv(tmp_path / "out/tables/ablation.csv")
    assert list(table[table["origin"] == "quoted"]["value"]) == [72.5, 71.9]


def test_no_data_is_said_and_not_drawn(study, records, tmp_path):
    out = tmp_path / "out"
    text = build_report(study, records, [], out).read_text(encoding="utf-8")
    assert "Not drawn: no run has logged a loss." in text
    assert "figures/loss_curves.svg" not in listing(out)
    empty = build_report(study, pd.DataFrame(), [], tmp_path / "empty").read_text(encoding="utf-8")
    assert "Not drawn: no number" in empty
    assert (tmp_path / "empty/records.csv").read_text().startswith("study,method,variant")


def test_figures_do_not_depend_on_the_day(study, records, runs):
    study["figures"] = study["figures"][1:4]
    arguments = parse_study(study), read_records(records), runs
    first, second = draw_figures(*arguments), draw_figures(*arguments)
    for one, other in zip(first, second, strict=True):
        assert one.files == other.files, one.name
        assert b"<dc:date>" not in one.files["svg"]
        assert b"CreationDate" not in one.files["pdf"]


def test_stale_files_go_and_foreign_files_stay(study, records, tmp_path):
    study["figures"] = [{"kind": "bars"}]
    out = tmp_path / "out"
    build_report(study, records, [], out)
    (out / "notes.txt").write_text("mine")
    (out / "tables" / "old.csv").write_text("stale")
    study["tables"][0]["name"] = "renamed"
    build_report(study, records, [], out)
    assert (out / "notes.txt").read_text() == "mine"
    assert sorted(p.name for p in (out / "tables").iterdir()) == ["renamed.csv", "renamed.md", "renamed.tex"]
    assert list(tmp_path.glob(".out*")) == []


@pytest.mark.parametrize("broken", ["to_latex", "render_page", "_swap"])
def test_a_crash_leaves_the_old_report(study, records, tmp_path, monkeypatch, broken):
    study["figures"] = [{"kind": "bars"}]
    out = tmp_path / "out"
    build_report(study, records, [], out)
    before = {name: (out / name).read_bytes() for name in listing(out)}

    def crash(*arguments):
        raise OSError("disk full") if broken == "_swap" else RuntimeError("crash")

    monkeypatch.setattr(build, broken, crash)
    with pytest.raises((RuntimeError, ReportError)):
        build_report({**study, "title": "new"}, records, [], out)
    assert {name: (out / name).read_bytes() for name in listing(out)} == before
    assert list(tmp_path.glob(".out*")) == []


def test_a_swap_cut_short_is_undone(study, records, tmp_path):
    study["figures"] = [{"kind": "bars"}]
    out = tmp_path / "out"
    build_report(study, records, [], out)
    (out / "notes.txt").write_text("mine")
    out.rename(tmp_path / ".out.old")  # as if the process had died between the two renames
    build_report(study, records, [], out)
    assert (out / "notes.txt").read_text() == "mine"
    assert list(tmp_path.glob(".out*")) == []


def test_loss_curve_reading(tmp_path):
    lines = ['{"step": 0, "epoch": 0, "loss": 3}', '{"step": 1, "epoch": 1, "loss": 2}', "not json", "[]"]
    lines += ['{"step": 1, "epoch": 1, "loss": 1.5}', '{"step": 2, "epoch": 2, "loss": NaN}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    curve = read_loss_curve(tmp_path)
    assert (curve.epochs, curve.losses) == ((0.0, 1.0), (3.0, 1.5))
    assert read_loss_curve(tmp_path / "none") is None


def test_broken_diagnostics_are_named(study, records, tmp_path):
    (tmp_path / "diagnostics.json").write_text("{")
    with pytest.raises(ReportError, match=r"diagnostics\.json"):
        build_report(study, records, [RunInfo("byol", "", 0, "done", "", tmp_path)], tmp_path / "out")


def test_smoothing_and_correlation_facts():
    values = np.random.default_rng(0).normal(size=200)
    expected = pd.Series(values).rolling(11, center=True, min_periods=1).mean()  # 5 % of 200, either side
    np.testing.assert_allclose(smoothed(values), expected, atol=1e-12)
    matrix = np.random.default_rng(1).normal(size=(5, 5))
    off = matrix[~np.eye(5, dtype=bool)]
    assert correlation_facts(matrix) == pytest.approx((np.trace(matrix) / 5, np.sqrt((off**2).mean())))


def test_seconds_of_a_job_count_once(make_row):
    rows = [make_row("byol", 1.0), make_row("byol", 2.0, metric="top5"), make_row("byol", 1.0, seed=1)]
    assert wall_seconds(read_records(pd.DataFrame(rows))) == 20.0
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
    with pytest.raises(ReportError, match="nearest: one"):
        update_blocks(readme, {"two": "changed", "onne": "x"})
    assert readme.read_text() == expected
    readme.write_text("<!-- end one -->\n<!-- begin one -->")
    with pytest.raises(ReportError, match="needs one"):
        update_blocks(readme, {"one": "x"})


def test_no_torch_and_a_quick_import():
    modules = ["build", "console", "readme", "quoted", "study"]
    code = f"import sys, reports, {', '.join(f'reports.{m}' for m in modules)}\n"
    code += "rooms = 'torch data pretraining baselines downstream harness matplotlib.pyplot'.split()\n"
    code += "print(sorted(set(rooms) & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    bare = (
        "import sys, reports; print(len([m for m in sys.modules if m.startswith(('pandas', 'matplotlib'))]))"
    )
    found = subprocess.run([sys.executable, "-c", bare], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"0\s*", found.stdout)
