"""What every benchmark shares counts and clocks what it says."""

import itertools
from pathlib import Path

import pytest
import torch
from torch.nn.functional import conv2d

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def measure(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import measure

    return measure


def test_the_operations_of_a_step_are_those_of_its_products_forward_and_backward(measure):
    images = torch.ones(2, 3, 8, 8)
    kernels = torch.ones(4, 3, 3, 3, requires_grad=True)
    head = torch.ones(4, 5, requires_grad=True)
    forward = 2 * (2 * 4 * 8 * 8) * (3 * 3 * 3) + 2 * 2 * 4 * 5
    # the head's gradient has two sides, that of the first layer one: images need no gradient
    backward = 2 * (2 * 4 * 8 * 8) * (3 * 3 * 3) + 2 * 2 * 2 * 4 * 5

    def step():
        features = conv2d(images, kernels, padding=1).mean((2, 3))
        (features @ head).sum().backward()

    assert measure.flops_of(step) == forward + backward


def test_the_rate_of_products_is_that_of_the_fastest_round_after_the_first(measure, monkeypatch):
    seconds = itertools.accumulate([0.0, 0.25, 0.0, 4.0, 0.0, 0.5, 0.0, 1.0])  # pairs of start and duration
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(seconds))
    rate = measure.matmul_rate(torch.device("cpu"), torch.bfloat16, size=16, rounds=3)
    assert rate == 2 * 16**3 / 0.5


def test_what_is_published_names_no_folder_of_this_machine(measure, tmp_path, capsys):
    here = tmp_path / "out"
    document = {
        "log": [f"rootdir: {here}/repo", f"  File {here}/a/b.py, line 3", f"E   open('{here}/x')"],
        "image set": f"folder:{here}",
        "rate": 3.5,
        "text": "1/sqrt(d) images/s, a / b, (pairs)/s, ../x, https://arxiv.org/abs/2103.03230, tests/gpu/a.py::t[b-1]",
    }
    measure.publish(document, f"on {here}/x", "none", here / "found.json", None)
    written = measure.json.loads((here / "found.json").read_text())
    assert written == {
        "log": ["rootdir: repo", "  File b.py, line 3", "E   open('x')"],
        "image set": "folder:out",
        "rate": 3.5,
        "text": document["text"],
    }
    assert capsys.readouterr().out == "on x\n"


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (["/a/b/learning.py", "w=1 e=2", "--data-root", "/d/e"], "learning.py 'w=1 e=2' --data-root DIR"),
        (["gpu.py", "--data-root=/d/e", "--out=x.json"], "gpu.py --data-root=DIR --out=FILE"),
        (
            ["x/protocols.py", "--encoder", "/d", "--figure", "f.svg"],
            "protocols.py --encoder DIR --figure FILE",
        ),
        (["learning.py", "--image-set", "folder:/home/me/pets"], "learning.py --image-set folder:pets"),
    ],
)
def test_the_command_is_as_another_machine_would_type_it(measure, typed, shown):
    assert measure._command(typed) == f"python benchmarks/{shown}"


def test_ctrl_c_ends_with_a_line_and_its_code(measure, capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        measure.run_script(interrupted)
    assert ended.value.code == 130
    assert capsys.readouterr().err.startswith("\ninterrupted")


def test_a_table_without_a_place_is_refused_before_it_is_measured(measure, tmp_path):
    page = tmp_path / "README.md"
    page.write_text("<!-- begin speed -->\n<!-- end speed -->\n")
    measure.check_targets("speed", tmp_path / "new.json", page)
    for block, out, markdown in (
        ("sped", None, page),
        ("speed", tmp_path, None),
        ("speed", None, tmp_path / "no.md"),
    ):
        with pytest.raises(measure.InputError):
            measure.check_targets(block, out, markdown)
