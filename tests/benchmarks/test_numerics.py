"""The tool that runs the trained tests as other CPUs round: a setting takes effect, and the worst value is shown."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def numerics(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import numerics

    return numerics


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the instruction sets are of x86")
def test_the_lowest_setting_takes_effect_in_both_libraries(numerics):
    assert numerics.instruction_sets("oldest") == {"ATen": "DEFAULT", "oneDNN": "Intel SSE4.1"}


def measured(setting, value, side=">=", name="AP50"):
    row = {"test": "tests/a.py::b", "name": name, "value": value, "bar": 95, "side": side}
    return {**row, "setting": setting, "broken": None}


def test_the_table_shows_the_worst_value_and_its_setting(numerics):
    rows = [measured("default", 100.0), measured("oldest", 96.5), measured("seed-100", 98.0)]
    rows += [measured("default", 3.0, "<=", "loss"), measured("oldest", 2.0, "<=", "loss")]
    assert numerics.table(rows).splitlines()[2:] == [
        "| `a.py::b` | AP50 | >= 95 | 96.5 | oldest |  |",
        "| `a.py::b` | loss | <= 95 | 3 | default |  |",
    ]
    rows.append(measured("onednn-avx2", float("nan")))
    assert "| nan | onednn-avx2 |" in numerics.table(rows)


def test_an_unknown_setting_is_refused_with_the_known_ones():
    command = [sys.executable, str(BENCHMARKS / "numerics.py"), "avx3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown settings avx3" in done.stderr
    assert "onednn-avx2" in done.stderr


@pytest.mark.parametrize(("side", "value"), [("at_least", 1.0), ("at_most", 3.0), ("at_least", float("nan"))])
@pytest.mark.numerics
def test_a_value_beyond_its_bar_fails_and_is_written_down(margin, monkeypatch, tmp_path, side, value):
    monkeypatch.setenv("TWINBENCH_MARGINS", str(tmp_path / "margins.jsonl"))
    with pytest.raises(AssertionError, match="AP50"):
        getattr(margin, side)("AP50", value, 2.0, broken=0)
    assert '"name": "AP50"' in (tmp_path / "margins.jsonl").read_text()
