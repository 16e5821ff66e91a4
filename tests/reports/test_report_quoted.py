"""Published numbers: the loader gives what the CSV files say, for the right rows."""

import csv
from importlib import resources

import pytest

from twinbench.foundation.errors import InputError
from twinbench.reports import quoted


def raw(file):
    path = resources.files("twinbench.reports") / "published" / file
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_every_file_loads_and_names_its_sources():
    assert len(quoted.quoted_files()) == 14
    for file in quoted.quoted_files():
        rows = quoted.load(file)
        assert rows
        assert all(row["source"] for row in rows), file


def test_superseded_rows_are_dropped():
    file = "cifar10_benchmarks.csv"
    assert any("superseded" in row["library"] for row in raw(file))
    kept = quoted.load(file)
    assert not any("superseded" in row["library"] for row in kept)
    assert len(kept) == sum("superseded" not in row["library"] for row in raw(file))


@pytest.mark.parametrize(("method", "name"), [(m, names[0]) for m, names in quoted.PUBLISHED_NAMES.items()])
def test_table_1_is_quoted_as_printed(method, name):
    expected = {row["method"]: row for row in raw("table1_imagenet_linear.csv")}.get(name)
    got = quoted.table_value("table1_imagenet_linear.csv", "top1", method, {})
    if expected is None:
        assert got is None
    else:
        assert (got.value, got.published_name) == (float(expected["top1"]), name)
        assert got.source == expected["source"]


def test_known_numbers_of_the_paper():
    def value(file, column, method):
        return quoted.table_value(file, column, method, {}).value

    assert value("table1_imagenet_linear.csv", "top1", "barlow_twins") == 73.2
    assert value("table1_imagenet_linear.csv", "top1", "swav") == 71.8  # without multi-crop
    assert value("table2_semi_supervised.csv", "top1_1pct", "barlow_twins") == 55.0
    assert value("table4_detection", "coco_mask_ap", "simsiam") == 34.4
    assert value("table1_imagenet_linear.csv", "top5", "simsiam") is None


def test_swav_falls_back_to_the_only_row_there_is():
    assert quoted.table_value("table2_semi_supervised.csv", "top1_1pct", "swav", {}).published_name == "SwAV"


def test_ambiguous_rows_must_be_narrowed():
    with pytest.raises(InputError, match="where"):
        quoted.table_value("cifar10_benchmarks.csv", "knn_top1", "byol", {})
    where = {"library": ("lightly",), "epochs": ("200",), "batch_size": ("128",)}
    assert quoted.table_value("cifar10_benchmarks.csv", "knn_top1", "byol", where).value == 86.9
    rows = quoted.select("cifar10_benchmarks.csv", where)
    expected = "CIFAR-10 Res18 (lightly, 200 epochs, batch 128)"
    assert quoted.setting("cifar10_benchmarks.csv", rows) == expected


def test_a_curve_keeps_to_one_source_and_the_papers_length():
    width = quoted.curve("fig_projector.csv", ("projector_out_dim",), "top1", "barlow_twins", {})
    assert {p.at[0]: p.y for p in width.points}["8192"] == 71.1  # Figure 4, not the tables' 71.4
    assert (width.length, width.digitised, len(width.points)) == ("300 epochs", True, 10)
    batch = quoted.curve("fig_batch_size.csv", ("batch_size",), "top1", "barlow_twins", {})
    assert {p.at[0] for p in batch.points} == {"128", "256", "512", "1024", "2048", "4096"}
    byol = quoted.curve("fig_batch_size.csv", ("batch_size",), "top1", "byol", {})
    assert byol.sources == ("arXiv:2006.07733 Table 16",)
    assert not byol.digitised
    assert quoted.curve("fig_batch_size.csv", ("batch_size",), "top1", "simsiam", {}).epochs == "100"
    assert quoted.curve("fig_lambda.csv", ("lambda",), "top1", "byol", {}) is None


def test_where_narrows_by_source_and_lets_empty_cells_pass():
    sources = ("arXiv:2006.07733 Table 14a", "arXiv:2103.03230v3 Tables 5/6 baseline")
    where = {"source": sources, "predictor_depth": ("2",)}  # Barlow Twins has no predictor: its cell is empty
    depth = quoted.curve("fig_projector.csv", ("projector_depth",), "top1", "byol", where)
    assert {p.at[0]: p.y for p in depth.points} == {"1": 65.0, "2": 72.5, "3": 72.1}
    ours = quoted.curve("fig_projector.csv", ("projector_depth",), "top1", "barlow_twins", where)
    assert {p.at[0]: p.y for p in ours.points} == {"3": 71.4}


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(InputError, match=r"nearest: table1_imagenet_linear\.csv"):
        quoted.load("table1_imagenet.csv")
    with pytest.raises(InputError, match="nearest: top1"):
        quoted.table_value("table1_imagenet_linear.csv", "top_1", "byol", {})
