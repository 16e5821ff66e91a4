"""What a study has done is never done twice: between its tables, between its runs, and after a change of one key."""

import re

import pytest

from twinbench.data.image_sets import DigitScenes
from twinbench.harness.plan import table_recipes
from twinbench.harness.recipes import recipe_hash
from twinbench.harness.studies import load_study

TWO_TABLES = """
tables:
  - name: methods
    rows: [{methods: [barlow_twins, simclr]}]
    columns: [{protocol: knn/cosine-v1, metric: top1, label: kNN}]
  - name: temperature
    rows:
      - methods: [simclr]
        vary: [{key: options.temperature, values: [0.2, 0.5]}]
    columns: [{protocol: knn/cosine-v1, metric: top1, label: kNN}]
  - name: lambda
    rows:
      - methods: [barlow_twins]
        vary: [{label: lambda, values: [{label: as it is}, {label: more, set: {options.lambd: 0.1}}]}]
    columns: [{protocol: knn/cosine-v1, metric: top1, label: kNN}]
"""


@pytest.fixture
def study(tiny_study):
    text = tiny_study.read_text()
    text = text[: text.index("tables:")].replace("methods: [random_init, barlow_twins]\n", "")
    tiny_study.write_text(text.replace("epochs: 2", "epochs: 1") + TWO_TABLES)
    return tiny_study


def counts(ended):
    """Jobs, and those that were finished before."""
    assert ended.code == 0, ended.err
    return tuple(map(int, re.search(r"(\d+) jobs, (\d+) already finished", ended.err).groups()))


def test_changing_one_key_trains_anew_only_what_depends_on_it(cli, study, monkeypatch):
    def make(self, name):
        raise AssertionError("images are made")

    runs = 5  # barlow_twins serves two tables, simclr as it is one
    assert counts(cli("run", study)) == (2 * runs, 0)
    text = study.read_text()
    with monkeypatch.context() as no_images:
        no_images.setattr(DigitScenes, "_make", make)
        assert counts(cli("run", study)) == (2 * runs, 2 * runs), "the report of finished work reads none"
        study.write_text(text.replace("[0.2, 0.5]", "[0.2, 0.7]"))
        ended = cli("run", study)
        assert ended.code != 0
        assert "images are made" in ended.err, "what is not finished needs them"
    study.write_text(text.replace("[0.2, 0.5]", "[0.2, 0.6]"))
    assert counts(cli("run", study)) == (2 * runs, 2 * runs - 2), "one value of one table"
    study.write_text(text.replace("{options.lambd: 0.1}", "{options.lambd: 0.1, optimizer.base_lr: 0.1}"))
    assert counts(cli("run", study)) == (2 * runs, 2 * runs - 2)
    study.write_text(text.replace("metric: top1, label: kNN}]", "metric: top5, label: kNN}]"))
    assert counts(cli("run", study)) == (2 * runs, 2 * runs), "another metric of the same evaluation"
    study.write_text(text.replace("backbone.width: 8", "backbone.width: 4"))
    assert counts(cli("run", study)) == (2 * runs, 0), "a key of every recipe"


def test_an_untrained_reference_is_one_run_whatever_a_table_changes_in_trainings(tiny_study):
    study = load_study(str(tiny_study))
    (table,) = study.tables
    changed = {**(table.overrides or {}), "schedule.warmup_epochs": 1, "epochs": 3}
    other = table.model_copy(update={"overrides": changed})

    def hashes(of, method):
        return {recipe_hash(r) for _, r in table_recipes(of, {}) if r.method == method}

    assert hashes(table, "random_init") == hashes(other, "random_init")
    assert hashes(table, "barlow_twins") != hashes(other, "barlow_twins")
    wider = table.model_copy(update={"overrides": {**changed, "backbone.width": 16}})
    assert hashes(table, "random_init") != hashes(wider, "random_init"), "it is another encoder"
