"""What figures draw: ablations along two axes and of seeds that collapsed, and how a figure becomes files."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image

from twinbench.reports.figures import ablation, draw_figures
from twinbench.reports.figures.drawing import _STYLE, draw
from twinbench.reports.study import AxisSpec
from twinbench.reports.tables import build_tables


def asymmetry(make_row, spec):
    """A study as Table 6 is declared, in blocks that share their axes, with records of all its rows."""
    words = {name: {"label": name} for name in ("no", "yes")}

    def block(gradients, predictors):
        axes = [("Stop-gradient", gradients), ("Predictor", predictors)]
        varied = [{"label": label, "values": [words[name] for name in values]} for label, values in axes]
        return {"methods": ["barlow_twins"], "vary": varied}

    match = {"stop_gradient": "Stop-gradient", "predictor": "Predictor"}
    table = {
        "name": "table6",
        "rows": [block(["no"], ["no"]), block(["yes"], ["no"]), block(["no", "yes"], ["yes"])],
        "columns": [{"protocol": "linear/cached-v1", "metric": "top1", "label": "Linear"}],
        "quoted": {"file": "table6_asymmetry.csv", "match": match, "columns": {"top1": "top-1"}},
    }
    values = {"no, no": 64.0, "yes, no": 62.0, "no, yes": 61.0, "yes, yes": 40.0}
    rows = [make_row("barlow_twins", value, variant=variant) for variant, value in values.items()]
    rows += [make_row("barlow_twins", None, 1, variant="yes, yes", status="collapsed", reason="flat")]
    return spec({"tables": [table], "figures": [{"kind": "ablation", "name": "table6"}]}), rows


@pytest.fixture
def panels(monkeypatch):
    """What an ablation figure draws: for each panel the points (x, y) of each line that has a label."""

    def panels(study, rows):
        painted = []

        def paint(spec, title, caption, size, paint):
            figure = Figure(size)
            FigureCanvasAgg(figure)
            paint(figure)
            painted.append(figure)
            return caption

        monkeypatch.setattr(ablation, "draw", paint)
        (caption,) = draw_figures(study, build_tables(study, rows), [])
        found = []
        for axes in painted[0].axes:
            handles, labels = axes.get_legend_handles_labels()
            lines = [handle[0] if isinstance(handle, tuple) else handle for handle in handles]
            found.append({name: line.get_xydata() for name, line in zip(labels, lines, strict=True)})
        return found, caption

    return panels


def test_two_axes_have_a_published_curve_for_each_value_of_the_other(make_row, spec, panels):
    (_, published), caption = panels(*asymmetry(make_row, spec))
    path = Path(ablation.__file__).parents[1] / "published" / "table6_asymmetry.csv"
    printed = pd.read_csv(path)
    assert len(printed) == 4
    for predictor in ("no", "yes"):
        rows = printed[printed.predictor == predictor].sort_values("stop_gradient")
        points = published.pop(f"Barlow Twins, Predictor {predictor}, quoted, 300 epochs")
        assert list(points[:, 0]) == list(rows.top1)
        assert list(points[:, 1].round()) == [0, 1]  # the places of no and yes
    assert published == {}
    assert "arXiv:2103.03230v3 Table 6" in caption


def test_axes_that_rows_share_are_drawn_with_the_values_of_all(make_row, spec, panels):
    (ours, _), caption = panels(*asymmetry(make_row, spec))
    assert sorted(ours) == ["Barlow Twins, Predictor no", "Barlow Twins, Predictor yes"]
    assert list(ours["Barlow Twins, Predictor no"][:, 0]) == [64.0, 62.0]
    assert list(ours["Barlow Twins, Predictor yes"][:, 0]) == [61.0], "the other collapsed for one seed"
    lost = "Barlow Twins, Predictor yes at yes: collapsed (1 of 2 seeds), without the seeds that collapsed: 40.0 ± 0.5"
    assert lost in caption
    study, _ = asymmetry(make_row, spec)
    assert {label: [v.label for v in axis.values] for label, axis in study.tables[0].axes.items()} == {
        "Stop-gradient": ["no", "yes"],
        "Predictor": ["no", "yes"],
    }


def test_a_point_of_which_a_seed_collapsed_is_marked_on_a_line(make_row, spec, panels):
    axis = {"key": "options.lambd", "label": "lambda", "values": [0.001, 0.01, 0.1], "log_scale": True}
    columns = [{"protocol": "linear/cached-v1", "metric": "top1", "label": "Linear"}]
    table = {"name": "t", "rows": [{"methods": ["byol"], "vary": [axis]}], "columns": columns}
    rows = [make_row("byol", 60.0, seed, variant=v) for v in ("0.001", "0.01", "0.1") for seed in range(2)]
    rows += [make_row("byol", None, 2, variant="0.01", status="collapsed", reason="flat")]
    (found,), caption = panels(spec({"tables": [table], "figures": [{"kind": "ablation"}]}), rows)
    assert list(found["BYOL"][:, 0]) == [0.001, 0.1]
    assert list(found["BYOL, failed or collapsed"][:, 0]) == [0.01]
    assert (
        "Without a number: BYOL at 0.01: collapsed (1 of 3 seeds), without the seeds that collapsed: 60.0"
        in caption
    )


def test_a_point_of_which_a_seed_failed_says_of_how_many_seeds_it_is(make_row, spec, panels):
    study, _ = asymmetry(make_row, spec)
    rows = [
        make_row("barlow_twins", 60.0, seed, variant=v) for v in ("no, no", "yes, no") for seed in range(2)
    ]
    rows += [make_row("barlow_twins", None, 2, variant="yes, no", status="failed", reason="no memory")]
    (ours, _), caption = panels(study, rows)
    assert list(ours["Barlow Twins, Predictor no"][:, 0]) == [60.0, 60.0]
    assert "Means over some seeds only: Barlow Twins, Predictor no at yes 2 of 3 seeds." in caption


def test_a_figure_is_laid_out_and_cut_as_matplotlib_itself_would(spec):
    """Doing both once, for all formats, is faster and changes nothing."""

    def paint(figure):
        for place in (1, 2):
            axes = figure.add_subplot(1, 2, place)
            axes.plot([1, 10, 100], [0.1, 5, 20], label="a line with a long name")
            axes.set_ylabel("two\nlines")
            axes.set_title("title")
            axes.annotate("outside", (1.0, 5.0), xycoords=("axes fraction", "data"))
        figure.legend(loc="outside lower center", ncols=2)

    figure = spec({"figures": [{"kind": "bars"}]}).figures[0]
    drawing = draw(figure, "", "", (6.0, 3.0), paint)
    with mpl.rc_context(_STYLE):
        reference = Figure((6.0, 3.0), layout="constrained")
        FigureCanvasAgg(reference)
        paint(reference)
        buffer = io.BytesIO()
        reference.savefig(buffer, format="png", dpi=160, bbox_inches="tight")
    ours, theirs = (imread(io.BytesIO(content)) for content in (drawing.files["png"], buffer.getvalue()))
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).mean() < 1e-3


def test_ticks_of_a_few_counts_are_whole_and_those_of_other_numbers_are_matplotlibs():
    def ticks(points):
        axes = Figure((5.0, 3.0)).add_subplot()
        axes.plot(points, points)
        ablation._finish_axis(axes, AxisSpec(label="depth", values=[{"label": 1}]), points)
        return list(axes.get_xticks())

    assert ticks([1.0, 2.0, 3.0]) == [1, 2, 3]
    assert ticks([1.0, 4.0]) == [1, 2, 3, 4]
    assert any(tick % 1 for tick in ticks([0.5, 1.0, 1.5]))
    assert len(ticks([100.0, 2000.0])) < 20


@pytest.fixture
def pictured(make_run, tmp_path, make_row, spec):
    """A study of the pictures of one run; ``pixels`` are saved as its picture."""

    def pictured(pixels):
        path = tmp_path / "picture.png"
        Image.fromarray(pixels).save(path)
        run = replace(make_run("byol"), pictures={("", ""): path})
        columns = [{"protocol": "linear/cached-v1", "metric": "top1", "label": "Linear"}]
        figures = [{"kind": "views"}, {"kind": "bars"}]
        study = spec({"tables": [{"name": "t", "columns": columns}], "figures": figures})
        return study, [make_row("byol", 50.0)], [run]

    return pictured


def embedded(drawing):
    """The pixels of the one image in the SVG, without transparency."""
    (content,) = re.findall(r'<image[^>]*base64,([^"]*)"', drawing.files["svg"].decode(), re.S)
    picture = Image.open(io.BytesIO(base64.b64decode(content)))
    assert picture.mode == "P", "of so few colours a palette takes least"
    return np.asarray(picture.convert("RGB"))


def test_a_picture_that_was_enlarged_is_carried_small_and_any_other_whole(pictured):
    noise = np.random.default_rng(0).integers(0, 2, (40, 60, 3), np.uint8) * 255  # of eight colours
    enlarged = noise.repeat(2, axis=0).repeat(2, axis=1)
    changed = enlarged.copy()
    changed[11, 11] ^= 255
    sizes = []
    for pixels, expected in ((enlarged, noise), (changed, changed), (noise, noise)):
        study, rows, runs = pictured(pixels)
        views, _ = draw_figures(study, build_tables(study, rows, runs), runs)
        found = embedded(views)
        # matplotlib may turn an image upside down and say so in the SVG
        assert any(np.array_equal(side, expected) for side in (found, found[::-1]))
        sizes.append(Image.open(io.BytesIO(views.files["png"])).size)
        runs[0].folder.rename(runs[0].folder.with_suffix(f".{len(sizes)}"))
    assert sizes[0] == sizes[1], "shown as large"


def test_a_photograph_of_many_colours_keeps_them_true_in_few_bytes(pictured):
    """A wide picture of smooth colours: within a few levels of what was drawn, and no more than a byte a pixel."""
    y, x = np.mgrid[0:240, 0:600]
    smooth = np.stack([x * 255 / 600, y * 255 / 240, 255 - x * 255 / 600], axis=-1).astype(np.uint8)
    study, rows, runs = pictured(smooth)
    views, _ = draw_figures(study, build_tables(study, rows, runs), runs)
    found = embedded(views)
    nearest = min(np.abs(side.astype(float) - smooth).mean() for side in (found, found[::-1]))
    assert nearest < 12
    (content,) = re.findall(r'<image[^>]*base64,([^"]*)"', views.files["svg"].decode(), re.S)
    assert len(content) < smooth.shape[0] * smooth.shape[1] / 2


def test_the_caption_of_neighbours_says_which_picture_is_the_test_image(pictured, make_row):
    study, _, runs = pictured(np.zeros((8, 8, 3), np.uint8))
    (path,) = runs[0].pictures.values()
    table = study.tables[0]
    for protocol, told in (("knn/cosine-v1", True), ("detection/torchvision-fpn-v1", False)):
        column = table.columns[0].model_copy(update={"protocol": protocol})
        figure = study.figures[0].model_copy(update={"kind": "pictures", "column": None})
        asked = study.model_copy(
            update={"tables": (table.model_copy(update={"columns": (column,)}),), "figures": (figure,)}
        )
        record = make_row("byol", 50.0, protocol=protocol)
        run = replace(runs[0], pictures={(protocol, record.image_set): path})
        (drawing,) = draw_figures(asked, build_tables(asked, [record], [run]), [run])
        assert drawing.files
        assert ("The first column is the test image" in drawing.caption) == told


LONG = "backbone.width=64, optimizer.trust_coefficient=0.001, options.projector=[8192, 8192, 8…"


@pytest.mark.parametrize("count", [1, 2, 4, 12])
@pytest.mark.parametrize("kind", ["bars", "loss_curves", "cross_correlation", "spectrum"])
def test_long_names_of_many_rows_leave_room_for_what_is_drawn(kind, count, make_row, make_run, spec):
    """matplotlib warns where names leave none, and a warning is an error here."""
    study = spec(
        {
            "tables": [{"name": "t", "columns": [{"protocol": "linear/cached-v1", "metric": "top1"}]}],
            "figures": [{"kind": kind, "name": "f"}],
        }
    )
    variants = [f"{LONG} and {40 + i} more" for i in range(count)]
    rows = [make_row("byol", 50.0 + i, variant=variant) for i, variant in enumerate(variants)]
    rows += [
        make_row(f"{'resnet50_of_a_long_name_' * 3}{i}.pth", 40.0, origin="imported") for i in range(count)
    ]
    runs = [make_run("byol", str(i)) for i in range(count)]
    runs = [replace(run, variant=variant) for run, variant in zip(runs, variants, strict=True)]
    (drawing,) = draw_figures(study, build_tables(study, rows), runs)
    assert drawing.files
    pixels = imread(io.BytesIO(drawing.files["png"]))[:, :, :3]
    coloured = (pixels.max(axis=2) - pixels.min(axis=2) > 0.2).mean()
    assert coloured > 0.001, "there is something to see besides text"
