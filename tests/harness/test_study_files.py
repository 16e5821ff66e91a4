"""A study's YAML is parsed once, and a mistake in it is told with the file, the key and the nearest valid name."""

import pytest
import yaml

from twinbench.foundation.errors import InputError
from twinbench.harness.plan import table_recipes
from twinbench.harness.studies import load_study, narrowed, study_names

COLUMN = {"protocol": "knn/cosine-v1", "metric": "top1"}
AXIS = {"key": "options.lambd", "label": "lambda", "values": [0.001, 0.01]}


def varied(axis, **more):
    """The key ``tables``, with a table that varies something."""
    rows = [{"methods": ["random_init"]}, {"methods": ["barlow_twins"], "vary": [axis]}]
    return {"tables": [{"name": "t", "columns": [COLUMN], "rows": rows, **more}]}


@pytest.fixture
def load(tmp_path):
    """Write a study with changes, and load it."""

    def load(**changes):
        document = {
            "title": "Mine",
            "description": "Mine.",
            "image_set": "digit-scenes",
            "recipes": "digit-scenes",
            "methods": ["simclr"],
            "tables": [{"name": "main", "columns": [COLUMN]}],
            **changes,
        }
        (tmp_path / "mine.yaml").write_text(
            yaml.safe_dump({k: v for k, v in document.items() if v is not None})
        )
        return load_study(str(tmp_path / "mine.yaml"))

    return load


def test_a_study_is_typed_whole(load):
    quoted = {
        "file": "fig_lambda",
        "match": {"lambda": "lambda"},
        "columns": {"top1": "x"},
        "where": {"epochs": 300},
    }
    study = load(
        figures=[{"kind": "bars"}, {"kind": "ablation", "name": "knn", "column": "knn/cosine-v1 top1"}],
        **varied(AXIS, quoted=quoted),
    )
    (table,) = study.tables
    assert study.name == "mine"
    assert table.columns[0].metric == "top1"
    assert [figure.name for figure in study.figures] == ["bars", "knn"]
    assert [(row.method, row.variant) for row in table.row_keys()] == [
        ("random_init", ""),
        ("barlow_twins", "0.001"),
        ("barlow_twins", "0.01"),
    ]
    assert table.quoted.where == {"epochs": ("300",)}


def test_what_a_table_leaves_out_is_that_of_its_study(load):
    tables = [
        {
            "name": "mine",
            "columns": [COLUMN],
            "seeds": 3,
            "image_set": "cifar10",
            "rows": [{"methods": "byol"}],
        },
        {"name": "theirs", "columns": [COLUMN]},
    ]
    mine, theirs = load(tables=tables, seeds=2, overrides={"epochs": 1}).tables
    assert (mine.seeds, mine.image_set, mine.row_keys()[0].method) == (3, "cifar10", "byol")
    assert (theirs.seeds, theirs.image_set, theirs.row_keys()[0].method) == (2, "digit-scenes", "simclr")
    assert mine.overrides == theirs.overrides == {"epochs": 1}


def test_rows_are_every_combination_of_what_is_varied(load):
    depth = {"label": "depth", "values": [{"label": 2, "set": {"options.projector": [8, 8]}}]}
    rows = [{"methods": ["simclr", "byol"], "vary": [AXIS, depth]}, {"methods": ["byol"], "vary": [depth]}]
    (table,) = load(tables=[{"name": "t", "columns": [COLUMN], "rows": rows}]).tables
    assert [(row.method, row.variant) for row in table.row_keys()] == [
        ("simclr", "0.001, 2"),
        ("simclr", "0.01, 2"),
        ("byol", "0.001, 2"),
        ("byol", "0.01, 2"),
        ("byol", "2"),
    ]
    assert list(table.axes) == ["lambda", "depth"]
    assert table.varied_keys() == {"options.lambd", "options.projector"}


def test_a_study_includes_others(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load(tables=[{"name": "first", "columns": [COLUMN]}], figures=[{"kind": "bars"}], seeds=2)
    (tmp_path / "mine.yaml").rename("other.yaml")
    whole = load(
        include=["other.yaml"], figures=[{"kind": "spectrum"}], tables=[{"name": "own", "columns": [COLUMN]}]
    )
    assert [(table.name, table.seeds) for table in whole.tables] == [("own", 1), ("first", 2)]
    assert [(figure.name, figure.table) for figure in whole.figures] == [
        ("spectrum", "own"),
        ("bars", "first"),
    ]
    only = load(include=["other.yaml"], tables=None)
    assert [table.name for table in only.tables] == ["first"]
    with pytest.raises(InputError, match="two tables are called 'first'"):
        load(include=["other.yaml"], tables=[{"name": "first", "columns": [COLUMN]}])
    (tmp_path / "other.yaml").write_text("title: x\ndescription: y\ninclude: [other.yaml]\n")
    with pytest.raises(InputError, match="includes itself"):
        load(include=["other.yaml"])


@pytest.mark.parametrize("name", study_names())
def test_every_study_that_ships_can_be_reported(name):
    study = load_study(name)
    assert study.tables
    assert study.figures


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"figures": [{"kind": "bar"}]},
            r"unknown figure kind 'bar'(.|\n)*figures\[0\]\.kind(.|\n)*nearest: bars",
        ),
        ({"figures": [{"name": "x"}]}, r"the key 'figures\[0\]\.kind' is missing"),
        ({"figures": "bars"}, r"bad value for 'figures': a list is needed"),
        ({"figures": ["bars"]}, r"bad value for 'figures\[0\]': keys with values are needed"),
        ({"figures": [{"kind": "ablation"}]}, r"main does not(.|\n)*figures\[0\]"),
        ({"figures": [{"kind": "bars", "table": "mian"}]}, r"unknown table 'mian'(.|\n)*nearest: main"),
        (
            {"figures": [{"kind": "bars", "column": "knn/cosine-v1 top5"}]},
            r"unknown column of the table main(.|\n)*nearest: knn/cosine-v1 top1",
        ),
        ({"figures": [{"kind": "spectrum"}, {"kind": "spectrum"}]}, r"two figures are called 'spectrum'"),
        ({"tables": None}, r"shows nothing(.|\n)*next:    add `tables`"),
        (
            {"tables": [{"name": "t", "colums": []}]},
            r"unknown key 'tables\[0\]\.colums'(.|\n)*nearest: columns",
        ),
        ({"tables": [{"name": "t"}]}, r"the key 'tables\[0\]\.columns' is missing(.|\n)*next:    add"),
        ({"tables": [{"name": "t", "columns": []}]}, r"'tables\[0\]\.columns': it needs at least one entry"),
        ({"tables": [{"name": "../t", "columns": [COLUMN]}]}, r"'tables\[0\]\.name': becomes a file name"),
        (
            {"tables": [{"name": "t", "columns": [COLUMN, COLUMN | {"lable": "x"}]}]},
            r"unknown key 'tables\[0\]\.columns\[1\]\.lable'(.|\n)*nearest: label",
        ),
        (
            {
                "tables": [
                    {
                        "name": "t",
                        "columns": [COLUMN],
                        "quoted": {"file": "a", "columns": {"b": "c"}, "were": 1},
                    }
                ]
            },
            r"'tables\[0\]\.quoted\.were'(.|\n)*nearest: where",
        ),
        (
            varied({"key": "k", "values": []}),
            r"'tables\[0\]\.rows\[1\]\.vary\[0\]\.values': it needs at least one",
        ),
        (varied(AXIS | {"valeus": []}), r"unknown key 'tables\[0\].*valeus'(.|\n)*nearest: values"),
        (varied({"label": "x", "values": [1]}), r"plain values need a `key`"),
        (varied(AXIS | {"values": [1, 1]}), r"two rows are called 'barlow_twins 1'(.|\n)*tables\[0\], rows"),
        (
            varied(
                AXIS,
                quoted={"file": "fig_lamda.csv", "match": {"lambda": "lambda"}, "columns": {"top1": "x"}},
            ),
            r"tables\[0\], quoted, file(.|\n)*nearest: fig_lambda\.csv",
        ),
        (
            varied(
                AXIS,
                quoted={"file": "fig_lambda.csv", "match": {"lamda": "lambda"}, "columns": {"top1": "x"}},
            ),
            r"tables\[0\], quoted, fig_lambda\.csv(.|\n)*nearest: lambda",
        ),
        (
            varied(
                AXIS,
                quoted={"file": "fig_lambda.csv", "match": {"lambda": "lamda"}, "columns": {"top1": "x"}},
            ),
            r"unknown axis of the table 'lamda'(.|\n)*nearest: lambda",
        ),
        (
            {
                "tables": [
                    {
                        "name": "t",
                        "columns": [COLUMN],
                        "quoted": {"file": "cifar10_benchmarks.csv", "columns": {"knn_top1": "kNN"}},
                    }
                ]
            },
            r"give different knn_top1(.|\n)*tables\[0\], quoted(.|\n)*narrow them",
        ),
        ({"methods": None}, r"neither methods nor encoders(.|\n)*next:"),
        ({"recipes": None, "recipse": "x"}, r"unknown key 'recipse'(.|\n)*nearest: recipes"),
        ({"image_set": None}, r"table main has no image set(.|\n)*next:    add `image_set`"),
        ({"seeds": 0}, r"bad value for 'seeds'"),
    ],
)
def test_a_mistake_is_told_with_file_key_and_nearest_name(load, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        load(**changes)
    assert "mine.yaml" in str(caught.value.where)


SCALED = {
    "scales": ["small", "large"],
    "image_set": {"small": "digit-scenes", "large": "cifar10"},
    "seeds": {"small": 1, "large": 3},
    "tables": [{"name": "t", "columns": [{**COLUMN, "label": {"small": "kNN", "large": "kNN top-1"}}]}],
}


def test_a_study_has_a_value_for_each_of_its_scales(load, tmp_path):
    (small,) = load(**SCALED).tables
    assert (small.image_set, small.seeds, small.columns[0].label) == ("digit-scenes", 1, "kNN")
    (large,) = load_study(str(tmp_path / "mine.yaml"), "large").tables
    assert (large.image_set, large.seeds, large.columns[0].label) == ("cifar10", 3, "kNN top-1")
    with pytest.raises(InputError, match=r"unknown scale 'lage'(.|\n)*nearest: large"):
        load_study(str(tmp_path / "mine.yaml"), "lage")
    load(**SCALED | {"seeds": {"small": 1}})
    with pytest.raises(InputError, match="nothing is said for the scale 'large', only for small"):
        load_study(str(tmp_path / "mine.yaml"), "large")
    load()
    with pytest.raises(InputError, match="no scales"):
        load_study(str(tmp_path / "mine.yaml"), "large")


def test_seeds_methods_and_images_of_a_study_can_be_replaced(load):
    rows = [{"methods": ["byol", "simclr"], "seeds": 2}, {"methods": ["swav"]}]
    tables = [
        {"name": "first", "columns": [COLUMN], "rows": rows},
        {"name": "second", "columns": [COLUMN], "rows": [{"methods": ["swav"]}]},
    ]
    study = load(tables=tables, figures=[{"kind": "bars"}, {"kind": "spectrum", "table": "second"}])
    only = narrowed(study, 5, ("simclr",), "cifar10")
    (table,) = only.tables
    assert [(row.method) for row in table.row_keys()] == ["simclr"]
    assert (table.seeds, table.rows[0].seeds, table.image_set) == (5, None, "cifar10")
    assert [figure.name for figure in only.figures] == ["bars"]


def test_a_value_may_have_seeds_of_its_own(load):
    values = [64, {"label": 128, "set": {"batch_size": 128}, "seeds": 3}]
    rows = [{"methods": ["byol"], "seeds": 2, "vary": [{"key": "batch_size", "values": values}]}]
    study = load(tables=[{"name": "first", "columns": [COLUMN], "rows": rows}], recipes="digit-scenes")

    def seeds(study):
        found = [(recipe.batch_size, recipe.seed) for _, recipe in table_recipes(study.tables[0], {})]
        return sorted(found)

    assert seeds(study) == [(64, 0), (64, 1), (128, 0), (128, 1), (128, 2)]
    assert seeds(narrowed(study, 1, (), None)) == [(64, 0), (128, 0)], "--seeds counts for all"


def test_a_study_has_no_method_that_it_does_not_name(load):
    study = load(tables=[{"name": "first", "columns": [COLUMN], "rows": [{"methods": ["byol", "simclr"]}]}])
    with pytest.raises(InputError, match=r"unknown method 'simsiam'(.|\n)*nearest: simclr"):
        narrowed(study, None, ("simsiam",), None)
