"""The planner's benchmark: its study is a real one of the size it says, and the exponent is that of the seconds."""

from pathlib import Path

import pytest
import yaml

from twinbench.harness.plan import table_recipes
from twinbench.harness.recipes import recipe_hash
from twinbench.harness.studies import load_study
from twinbench.pretraining.build import resolve

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def planner(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import planner

    return planner


def test_the_study_has_as_many_jobs_as_it_says_each_of_another_run(planner, tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(planner.study_of(300)))
    (table,) = load_study(str(file)).tables
    recipes = [recipe for _, recipe in table_recipes(table, {})]
    hashes = {recipe_hash(resolve(recipe, 32, "images")) for recipe in recipes}
    assert len(hashes) == len(recipes) == 6 * 4 * 4  # 4 rates and 4 seeds: sqrt(300 / 18) is 4.1
    assert len(table.measured) == 2
    assert {recipe.seed for recipe in recipes} == set(range(4))


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_the_exponent_is_that_of_the_growth(planner, power):
    counts = [1000, 10_000, 100_000]
    assert planner.exponent(counts, [3e-4 * n**power for n in counts]) == pytest.approx(power)


def test_one_size_has_no_exponent(planner):
    with pytest.raises(ValueError, match="two counts"):
        planner.exponent([1000, 1000], [1.0, 2.0])


def test_growth_that_is_not_linear_ends_in_an_error_after_it_is_written(
    planner, monkeypatch, tmp_path, capsys
):
    def answers(script, jobs, repetitions):
        times = dict.fromkeys(("reading", "planning", "listing", "ordering"), 1.0)
        return [
            [{"jobs": n, "runs": n, "memory_mb": 1.0, "seconds": float(n) ** 2, **times}]
            for n in (job["jobs"] for job, _ in jobs)
        ]

    monkeypatch.setattr(planner, "take_turns", answers)
    out = tmp_path / "found.json"
    monkeypatch.setattr(planner.sys, "argv", ["planner.py", "--jobs", "10", "100", "--out", str(out)])
    with pytest.raises(planner.RunFailure, match=r"to the power of 2\.00"):
        planner.main()
    assert out.is_file()
    assert "to the power of 2.00" in capsys.readouterr().out
