"""What is learned in a second: points in order, a row for each method and variant, and a figure of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def learning(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import learning

    return learning


@pytest.mark.programs
def test_a_small_run_gives_points_a_table_and_a_figure(tmp_path):
    out, figure = tmp_path / "learning.json", tmp_path / "learning.svg"
    command = [sys.executable, str(BENCHMARKS / "learning.py"), "backbone.width=8 epochs=4 batch_size=32"]
    options = [
        "--methods",
        "simclr",
        "--seeds",
        "1",
        "--limit",
        "64",
        "--out",
        str(out),
        "--figure",
        str(figure),
    ]
    printed = subprocess.run([*command, *options], capture_output=True, text=True, check=True).stdout
    (row,) = json.loads(out.read_text())["rows"]
    assert "data_root" not in row
    seconds = [point["seconds"] for point in row["points"]]
    assert len(seconds) == 4
    assert seconds == sorted(seconds)
    assert all(0 <= point["knn"] <= 100 for point in row["points"])
    # eight steps of 32 images
    assert row["images_per_second"] == pytest.approx(8 * 32 / seconds[-1])
    assert "| simclr | backbone.width=8 epochs=4 batch_size=32 |" in printed
    assert "seconds of training" in figure.read_text()


def test_a_row_has_the_mean_and_the_spread_of_its_seeds(learning):
    def row(variant, seed, knn, seconds):
        points = [{"seconds": seconds, "knn": knn}]
        return {
            "method": "byol",
            "variant": variant,
            "seed": seed,
            "points": points,
            "images_per_second": 10.0 * seed,
        }

    known = dict.fromkeys(("machine", "python", "torch", "commit", "date", "command"), "")
    rows = [row("a", 1, 20.0, 5.0), row("b", 1, 50.0, 7.0), row("a", 2, 24.0, 9.0)]
    table = learning.render(
        {"rows": rows, "at_once": 1, "device": "a processor", "facts": known}
    ).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table if line.startswith("| byol")]
    # the standard deviation of 20 and 24 with one degree of freedom lost is the root of 8
    assert cells == [["byol", "a", "15", "7", "22.0 ± 2.8"], ["byol", "b", "10", "7", "50.0"]]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--methods", "simclr,byool"], ["'byool'", "nearest: byol"]),
        (["backbone.widht=32"], ["backbone.widht", "width"]),
        (["--seeds", "0"], ["must be 1 or more"]),
        (["--markdown", "no-such-file.md"], ["begin learning", "no-such-file.md"]),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(learning, monkeypatch, capsys, arguments, expected):
    monkeypatch.setattr(learning, "run_fresh", lambda *_: pytest.fail("trained"))
    monkeypatch.setattr(sys, "argv", ["learning.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        learning.run_script(learning.main)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    for text in expected:
        assert text in message
