"""What the page carries for its dialogs, its addresses, and that nothing in it can break out or load anything."""

import base64
import hashlib
import html
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.reports.hostile import NASTY
from twinbench.reports.details import describe, thinned
from twinbench.reports.records import RunInfo, read_diagnostics, read_recipe
from twinbench.reports.tables import build_tables


def data_of(page):
    """The JSON block as a browser finds it: up to the first end tag."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)
    return json.loads(text)


@pytest.fixture
def small(study):
    return {**study, "figures": []}


@pytest.fixture
def data(small, records, make_run, tmp_path, write):
    runs = [make_run("byol", seed=seed) for seed in range(2)]
    (runs[0].folder / "recipe.yaml").write_text("method: byol\nseed: 0\n")
    return data_of(write(small, records, runs, tmp_path / "out"))


def test_a_cell_tells_its_seeds_and_their_runs(data):
    cell = data["cells"]["cell-main-byol-Linear-top-1"]
    assert cell["measured"] == "top1 of linear/cached-v1 on digit-scenes"
    assert (cell["row"], cell["text"]) == ("BYOL", "72.5 ± 0.7")
    assert [(s["seed"], s["value"], s["stderr"], s["status"]) for s in cell["seeds"]] == [
        (0, 72.0, 0.5, "done"),
        (1, 73.0, 0.5, "done"),
    ]
    assert cell["command"] == "twinbench run s --methods byol --out results/only-byol"
    seed, run = cell["seeds"][0], data["runs"][cell["seeds"][0]["run"]]
    assert (seed["checksum"], seed["device"], seed["seconds"]) == ("sum-byol-0", "cpu", 10.0)
    assert (run["recipe_hash"], run["recipe"], run["parameters"]) == (
        "byol-0",
        "method: byol\nseed: 0\n",
        11_000_000,
    )
    assert run["loss"] == [[i, pytest.approx(5.0 - i * 0.1)] for i in range(20)]
    own = (
        "the method's own views"  # a column "effective rank" is of the views that all methods are compared on
    )
    assert dict(run["numbers"]) == {f"feature std, {own}": 0.1, f"effective rank, {own}": 3.2}
    assert run["spectrum"] == [[1, 4.0], [2, 2.0], [3, 1.0], [4, 0.5]]
    assert data["environments"][seed["environment"]] == ["E1", [["torch", "2.9"]]]


def test_a_lost_cell_tells_why(data):
    cell = data["cells"]["cell-main-swav-kNN-top-1"]
    assert cell["text"] == "collapsed"
    assert {s["reason"] for s in cell["seeds"]} == {"std_is_0 & 100 % <b>flat</b>"}


def test_a_cell_of_which_a_seed_collapsed_tells_of_the_others(small, make_row, tmp_path, write):
    rows = [make_row("byol", 70.0, 0), make_row("byol", 72.0, 1)]
    rows += [make_row("byol", None, 2, status="collapsed", reason="flat")]
    page = write(small, rows, [], tmp_path / "out")
    cell = data_of(page)["cells"]["cell-main-byol-Linear-top-1"]
    assert cell["text"] == "collapsed (1 of 3 seeds)"
    assert cell["summary"].startswith(
        "without the seeds that collapsed: 71.0 ± 1.4 (2 seeds); mean and std of 2"
    )
    assert [(s["value"], s["status"]) for s in cell["seeds"]] == [
        (70.0, "done"),
        (72.0, "done"),
        (None, "collapsed"),
    ]
    (found,) = re.findall(r'<td id="cell-main-byol-Linear-top-1"[^>]*>', page.read_text())
    assert 'class="collapsed lost"' in found
    assert "data-value" not in found


def scales_of(page):
    """What the filter by scale offers, and the scales of each row of the first table."""
    text = page.read_text()
    (field,) = re.findall(r'<select name="scale">(.*?)</select>', text) or [""]
    table = text[text.index('id="table-main"') : text.index('id="problems"')]
    rows = re.findall(
        r"<tr data-method=\"([^\"]*)\" data-origin=\"[^\"]*\"(?: data-scales='([^']*)')?", table
    )
    offered = [html.unescape(value) for value in re.findall(r'value="([^"]*)"', field)]
    return offered, {method: json.loads(scales or "[]") for method, scales in rows}


def test_rows_know_what_their_encoders_were_trained_at(small, make_row, tmp_path, write):
    here = {"pretrained_on": "digit-scenes", "backbone": "resnet10, width 16"}
    rows = [
        make_row("random_init", 10.0, backbone="resnet10, width 16", epochs=0),
        make_row("byol", 50.0, **here),
        make_row("byol", 60.0, image_set="cifar10", pretrained_on="cifar10", epochs=800),
        make_row("simsiam", 70.0, origin="imported", epochs=None, batch_size=None),
    ]
    offered, of_rows = scales_of(write(small, rows, [], tmp_path / "out"))
    digits, cifar = "digit-scenes, resnet10, width 16, 50 epochs", "cifar10, resnet18, 800 epochs"
    quoted = "quoted"
    assert of_rows == {
        "Random init": [],
        "BYOL": [digits, cifar, quoted],
        "SimSiam": ["resnet18", quoted],
    }
    assert offered[-1] == quoted, "whatever published numbers were measured at, they have one name"
    assert sorted(offered) == sorted(["", digits, cifar, quoted, "resnet18"])


def test_a_page_of_one_scale_has_no_filter_by_scale(small, make_row, tmp_path, write):
    small["tables"][0]["quoted"] = None
    rows = [make_row("random_init", 10.0, epochs=0), make_row("byol", 50.0), make_row("simclr", 60.0)]
    offered, of_rows = scales_of(write(small, rows, [], tmp_path / "one"))
    assert offered == []
    assert of_rows["BYOL"] == of_rows["SimCLR"] == ["resnet18, 50 epochs"]
    rows.append(make_row("swav", 60.0, epochs=60))
    offered, _ = scales_of(write(small, rows, [], tmp_path / "two"))
    assert offered == ["", "resnet18, 50 epochs", "resnet18, 60 epochs"]


def test_every_measured_cell_has_an_address_and_no_other(small, records, tmp_path, write):
    text = write(small, records, [], tmp_path / "out").read_text()
    found = re.findall(r'<td id="(cell-[A-Za-z0-9-]+)"', text)
    assert len(found) == len(set(found))
    assert set(found) == set(data_of(tmp_path / "out/report.html")["cells"])
    assert "cell-main-simclr-kNN-top-1" not in found  # not measured


def test_labels_that_read_alike_have_addresses_of_their_own(make_row, study, spec):
    rows = [make_row("byol", 1.0, variant=variant) for variant in ("a b", "a-b", "a_b")]
    study["tables"][0] |= {"columns": study["tables"][0]["columns"][:1], "quoted": None}
    found, _ = describe(build_tables(spec(study), rows), [], [], "c")
    assert sorted(found.cells) == [f"cell-main-byol-a-b-Linear-top-1{suffix}" for suffix in ("", "-2", "-3")]


def test_a_run_stands_in_the_page_once(make_row, make_run, spec):
    columns = [{"protocol": "linear/cached-v1", "metric": "top1", "label": "Linear"}]
    tables = [{"name": name, "columns": columns} for name in ("one", "two")]
    run = replace(make_run("byol"), recipe_hash="byol-0")
    rows = [make_row("byol", 1.0, table="one"), make_row("byol", 1.0, table="two", variant="base")]
    runs = [replace(run, table="one"), replace(run, table="two", variant="base")]
    data, _ = describe(build_tables(spec({"tables": tables}), rows, runs), runs, [], "c")
    assert len(data.cells) == 2
    assert len(data.runs) == 1


def test_records_without_folders_have_details(data, records):
    cell = data["cells"]["cell-main-supervised-Linear-top-1"]
    run = data["runs"][cell["seeds"][0]["run"]]
    assert (run["recipe"], run["loss"], run["numbers"], run["spectrum"]) == ("", [], [], [])
    assert run["recipe_hash"] == "supervised-0"


def test_an_encoder_tells_where_it_was_trained_and_where_it_was_measured(small, make_row, tmp_path, write):
    here, there, elsewhere = (json.dumps({"machine": name}) for name in ("a", "b", "c"))
    rows = [
        make_row("byol", 70.0, trained_in=here, environment=there),
        make_row("byol", 60.0, protocol="knn/cosine-v1", trained_in=here, environment=elsewhere),
        make_row("random_init", 10.0, epochs=0, environment=there),
    ]
    text = write(small, rows, [], tmp_path / "out").read_text()
    listed = text[text.index('id="provenance"') : text.index('id="regenerate"')]
    heads = re.findall(r'<th scope="col">([^<]*)</th>', listed)
    cells = [
        re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr data-method.*?</tr>", listed, re.S)
    ]
    found = [dict(zip(heads, row, strict=True)) for row in cells]
    assert [(row["Method"], row["Trained in"], row["Measured in"]) for row in found] == [
        ("Random init", "-", "E2"),
        ("BYOL", "E1", "E2, E3"),
    ]


def test_who_beats_whom_is_there_without_a_script_and_has_headings_in_both_directions(
    small, records, tmp_path, write
):
    text = write(small, records, [], tmp_path / "out").read_text()
    section = text[text.index('id="table-main"') : text.index('id="problems"')]
    parts = re.findall(
        r'<details class="contests"( open)?><summary>(.*?)</summary>(.*?)</details>', section, re.S
    )
    assert [(bool(is_open), title) for is_open, title, _ in parts] == [
        (True, "What can be told from it"),
        (False, "Who beats whom: Linear top-1"),
        (False, "Who beats whom: kNN top-1"),
    ]
    assert "BYOL has the best number" in parts[0][2]
    names = ["BYOL", "Barlow Twins", "SimCLR"]
    assert re.findall(r'<th scope="col">(.*?)</th>', parts[1][2]) == ["row minus column", *names]
    assert re.findall(r'<th scope="row">(.*?)</th>', parts[1][2]) == names


def test_nothing_breaks_out_of_the_page(make_row, make_run, small, tmp_path, write):
    small["title"] = small["tables"][0]["title"] = NASTY
    small["tables"][0]["columns"][0]["label"] = NASTY
    run = make_run("byol")
    (run.folder / "recipe.yaml").write_text(NASTY)
    row = make_row(
        "byol", 1.0, variant=NASTY, device=NASTY, remarks=NASTY, environment=json.dumps({NASTY: NASTY})
    )
    lost = make_row("simclr", None, status="failed", reason=NASTY, seed=1)
    page = write(small, [row, lost], [replace(run, recipe_hash="byol-0")], tmp_path / "out")
    text = page.read_text()
    assert text.count("<script") == text.count("</script>") == 2
    assert "<img src=x" not in text
    data = data_of(page)
    (cell,) = [cell for address, cell in data["cells"].items() if "byol" in address]
    assert cell["column"] == NASTY
    assert data["runs"][cell["seeds"][0]["run"]]["recipe"] == NASTY
    assert data["environments"][0][1] == [[NASTY, NASTY]]


def test_only_our_own_script_may_run(small, records, tmp_path, write):
    text = write(small, records, [], tmp_path / "out").read_text()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")


def test_the_tables_can_be_saved_from_the_page(small, records, tmp_path, write):
    text = write(small, records, [], tmp_path / "out").read_text()
    found = re.findall(r'download="main\.(\w+)" href="data:[^,]*base64,([^"]*)"', text)
    assert [kind for kind, _ in found] == ["csv", "md", "tex"]
    for kind, content in found:
        assert base64.b64decode(content) == (tmp_path / "out/tables" / f"main.{kind}").read_bytes()


def test_the_command_is_narrowed_to_the_method_where_that_can_be_said(records, spec, small):
    def command(line, address="cell-main-byol-Linear-top-1", rows=records):
        return describe(build_tables(spec(small), rows), [], [], line)[0].cells[address].command

    own = "--methods byol --out results/only-byol"
    assert command("twinbench run s --seeds 2") == f"twinbench run s --seeds 2 {own}"
    assert command("twinbench run s --out results/s --seeds 2") == f"twinbench run s --seeds 2 {own}"
    assert command("twinbench run s --methods byol,swav") == "twinbench run s --methods byol,swav"
    assert command("twinbench report runs --out DIR") == "twinbench report runs --out DIR"
    imported = [replace(record, origin="imported") for record in records]
    assert command("twinbench run s", "cell-main-byol-Linear-top-1", imported) == "twinbench run s"


def test_long_curves_are_thinned_and_keep_their_ends():
    assert thinned([1, 2, 3], 3) == [1, 2, 3]
    few = thinned(range(1000), 200)
    assert (len(few), few[0], few[-1]) == (200, 0, 999)
    assert few == sorted(set(few))


def test_recipe_and_diagnostics_of_a_folder(tmp_path):
    assert read_recipe(tmp_path) == ""
    (tmp_path / "source.yaml").write_text("file: x.pth\n")
    assert read_recipe(tmp_path) == "file: x.pth\n"
    (tmp_path / "recipe.yaml").write_bytes(b"method: byol\xff")
    assert read_recipe(tmp_path) == "method: byol\ufffd"
    content = {
        "effective_rank": 2.5,
        "samples": 8,
        "layer": "x",
        "ok": True,
        "bad": float("nan"),
        "spectrum": [1],
    }
    (tmp_path / "diagnostics.json").write_text(json.dumps(content))
    found = read_diagnostics(tmp_path)
    assert found is not None
    assert found.numbers == (("effective_rank", 2.5), ("samples", 8))


def test_a_page_of_a_hundred_runs_is_light(make_row, study, write, tmp_path):
    """13 tables, 110 runs, long logs: the part of the page that is not figures stays below 3 MB."""
    columns = study["tables"][0]["columns"]
    tables = [{"name": f"t{number}", "columns": columns} for number in range(13)]
    steps = "\n".join(json.dumps({"step": i, "loss": 1000 / (i + 1.234567)}) for i in range(500))
    spectrum = [float(1 / (i + 1)) for i in range(1024)]
    rows, runs = [], []
    for number in range(110):
        folder = Path(tmp_path / f"run{number}")
        folder.mkdir()
        (folder / "metrics.jsonl").write_text(steps)
        (folder / "recipe.yaml").write_text("key: value\n" * 150)
        (folder / "diagnostics.json").write_text(json.dumps({"spectrum": spectrum, "effective_rank": 3.0}))
        name = {"variant": str(number), "table": f"t{number % 13}", "recipe_hash": f"hash{number}"}
        rows += [make_row("byol", 1.0 + number, protocol=c["protocol"], **name) for c in columns]
        info = RunInfo("byol", name["variant"], 0, "done", "", folder, recipe_hash=name["recipe_hash"])
        runs.append(replace(info, table=name["table"]))
    page = write({"tables": tables}, rows, runs, tmp_path / "out")
    assert page.stat().st_size < 3e6
    assert len(data_of(page)["runs"]) == 110
