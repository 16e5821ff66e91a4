"""Names of replaced protocols lead to the ones that took their place; records of a replaced version keep theirs."""

import json

import pandas as pd
import pytest

from twinbench.foundation.documents import unsealed

OLD, NEW = "detection/small-mask-rcnn-torchvision-v1", "detection/small-mask-rcnn-torchvision-v2"
REPLACED, SUCCESSOR = "linear/sgd-v1", "linear/sgd-v2"
CALLED, REPLACED_BY = (
    f"{OLD} was replaced by {NEW}: it has one mask",
    f"{REPLACED} was replaced by {SUCCESSOR}: its test crop",
)


@pytest.mark.parametrize(("old", "told"), [(OLD, CALLED), (REPLACED, REPLACED_BY)])
def test_a_study(cli, tmp_path, old, told):
    (tmp_path / "old.yaml").write_text(
        "title: Old\ndescription: Old.\nimage_set: digit-scenes\nrecipes: digit-scenes\n"
        "methods: [random_init]\nlimit: {train: 32, val: 32, test: 32}\n"
        f"tables: [{{name: main, columns: [{{protocol: {old}, metric: top1}}]}}]\n"
    )
    outcome = cli("run", "old.yaml")
    assert outcome.code == 2
    assert told in outcome.err
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def record(cli, tmp_path):
    """The file of one measurement in the store."""
    study = "limit: {train: 64, val: 32, test: 32}\noverrides: {backbone.width: 8}\n"
    (tmp_path / "new.yaml").write_text(
        "title: New\ndescription: New.\nimage_set: digit-scenes\nrecipes: digit-scenes\n"
        f"methods: [random_init]\n{study}"
        "tables: [{name: main, columns: [{protocol: knn/cosine-v1, metric: top1}]}]\n"
    )
    assert cli("run", "new.yaml").code == 0
    (file,) = (tmp_path / "runs").glob("*/records/*.json")
    return file


def test_records_of_a_replaced_version_are_reported_under_their_own_name(cli, tmp_path, record):
    document = unsealed(record.read_text())
    del document["outcomes"]  # earlier versions left none
    for name, value in ((REPLACED, 11.0), (SUCCESSOR, 77.0)):
        (measured, *_) = document["measurements"]
        changed = {**document, "protocol": name, "measurements": [{**measured, "value": value}]}
        record.with_name(f"{name.replace('/', '--')}.json").write_text(json.dumps(changed))
    assert cli("report", "runs", "--out", "out").code == 0
    found = pd.read_csv(tmp_path / "out" / "records.csv").groupby("protocol").value.unique()
    assert found[REPLACED].tolist() == [11.0]
    assert found[SUCCESSOR].tolist() == [77.0]
    for name, value, other in ((REPLACED, "11.0", "77.0"), (SUCCESSOR, "77.0", "11.0")):
        table = (tmp_path / "out" / "tables" / f"{name.replace('/', '-')}.md").read_text()
        assert name in table
        assert value in table
        assert other not in table
