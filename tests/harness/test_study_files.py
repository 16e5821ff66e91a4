"""A study's YAML is parsed once, and a mistake in it is told with the file, the key and the nearest valid name."""

import pytest
import yaml

from twinbench.foundation.errors import InputError
from twinbench.harness.studies import load_study, study_names

COLUMN = {"protocol": "knn/cosine-v1", "metric": "top1"}
ABLATION = {"key": "options.lambd", "values": [0.001, 0.01]}


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
            "protocols": ["knn/cosine-v1"],
            "tables": [{"name": "main", "columns": [COLUMN]}],
            **changes,
        }
        (tmp_path / "mine.yaml").write_text(
            yaml.safe_dump({k: v for k, v in document.items() if v is not None})
        )
        return load_study(str(tmp_path / "mine.yaml"))

    return load


def test_a_study_is_typed_whole(load):
    study = load(
        figures=[{"kind": "bars"}, {"kind": "bars", "name": "knn", **COLUMN}],
        ablation={
            **ABLATION,
            "quoted": {"file": "fig_lambda", "x": "lambda", "y": "top1", "where": {"epochs": 300}},
        },
    )
    assert study.name == "mine"
    assert study.tables[0].columns[0].metric == "top1"
    assert [figure.name for figure in study.figures] == ["bars", "knn"]
    assert study.ablation.values == ("0.001", "0.01")
    assert study.ablation.quoted.where == {"epochs": ("300",)}


@pytest.mark.parametrize("name", study_names())
def test_every_study_that_ships_can_be_reported(name):
    study = load_study(name)
    assert study.columns()
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
        ({"figures": [{"kind": "ablation"}]}, r"what was varied(.|\n)*figures\[0\]"),
        ({"figures": [{"kind": "spectrum"}, {"kind": "spectrum"}]}, r"two figures are called 'spectrum'"),
        ({"tables": [], "figures": [{"kind": "bars"}]}, r"which number it shows(.|\n)*figures\[0\]"),
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
            {"tables": [{"name": "t", "columns": [COLUMN | {"protocol": "knn/cosine-v9"}]}]},
            r"unknown protocol 'knn/cosine-v9'(.|\n)*nearest: knn/cosine-v1",
        ),
        (
            {"tables": [], "ablation": ABLATION},
            r"ablation does not say which numbers(.|\n)*next:    give it `columns`",
        ),
        ({"ablation": {"key": "k", "values": []}}, r"'ablation\.values': it needs at least one entry"),
        ({"ablation": ABLATION | {"valeus": []}}, r"unknown key 'ablation\.valeus'(.|\n)*nearest: values"),
        (
            {"ablation": ABLATION | {"quoted": {"file": "fig_lamda.csv", "x": "a", "y": "b"}}},
            r"ablation\.quoted, file(.|\n)*nearest: fig_lambda\.csv",
        ),
        (
            {"ablation": ABLATION | {"quoted": {"file": "fig_lambda.csv", "x": "lamda", "y": "top1"}}},
            r"ablation\.quoted, fig_lambda\.csv(.|\n)*nearest: lambda",
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
            r"give different knn_top1(.|\n)*tables\[0\]\.quoted(.|\n)*narrow them",
        ),
        ({"methods": None}, r"neither methods nor encoders(.|\n)*next:"),
        (
            {"protocols": None, "protocls": ["knn/cosine-v1"]},
            r"unknown key 'protocls'(.|\n)*nearest: protocols",
        ),
        ({"seeds": 0}, r"bad value for 'seeds'"),
    ],
)
def test_a_mistake_is_told_with_file_key_and_nearest_name(load, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        load(**changes)
    assert "mine.yaml" in str(caught.value.where)
