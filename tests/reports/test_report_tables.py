"""Rows, footnotes and the four ways to write a table."""

import csv
import io
import re
from dataclasses import replace

import pytest

from twinbench.reports.console import render_study
from twinbench.reports.records import REMARKS_BETWEEN, RunInfo
from twinbench.reports.tables import build_tables
from twinbench.reports.writers import escape_tex, to_csv, to_latex, to_markdown, to_text


@pytest.fixture
def table(study, records, spec):
    (table,) = build_tables(spec(study), records)
    return table


def entry(table, method, column=0):
    (found,) = [row for row in table.rows if row.method == method]
    return found.entries[column]


def test_order_references_and_values(table):
    expected = ["random_init", "supervised", "simclr", "moco_v2", "swav", "byol", "barlow_twins"]
    assert [row.method for row in table.rows] == expected
    assert [row.method for row in table.reference_rows] == expected[:2]
    assert entry(table, "barlow_twins").text == "70.5 ± 0.7"
    assert entry(table, "simclr", 1).text == "-"
    assert entry(table, "swav").text == "collapsed"
    assert entry(table, "swav", 2).text == "71.8"


def test_another_budget_is_marked_and_out_of_competition(table):
    (marked,) = [row for row in table.rows if row.marks]
    assert (marked.method, marked.marks) == ("moco_v2", ("†",))
    assert "MoCo v2: resnet18, 200 epochs, batch 512" in dict(table.footnotes)["†"]
    assert "resnet18, 50 epochs, batch 256" in " ".join(table.notes)
    # 99.0 of MoCo v2 is higher, but bought with another budget; two seeds tell no others from the best.
    assert {row.method for row in table.rows if row.entries[0].best} == {"byol", "barlow_twins", "simclr"}
    assert not any(row.entries[2].best for row in table.rows)  # a quotation never wins


NOTE = "Tuning: 12 trials a method on val."
MARKED = "Tuning (all rows without ‡): 12 trials a method on val."
FOOTNOTE = "tuned with another number of trials: SimSiam none, Barlow Twins 4"


@pytest.fixture
def tuned(make_row, study, spec):
    """The table of rows with so many trials each; random_init has nothing to tune."""

    def build(**trials):
        rows = [make_row("random_init", 30.0, epochs=None, batch_size=None)]
        rows += [make_row(method, 60.0, tuning_trials=number) for method, number in trials.items()]
        del study["tables"][0]["quoted"], study["tables"][0]["columns"][1]
        (table,) = build_tables(spec(study), rows)
        return table

    return build


def test_equal_tuning_is_a_note_in_every_form(tuned):
    table = tuned(supervised=12, byol=12, barlow_twins=12)
    assert NOTE in table.notes
    assert not any(row.marks for row in table.rows)
    assert NOTE in to_text(table).splitlines()
    assert NOTE in to_markdown(table).split("  \n")
    assert f"{NOTE}\\par\n" in to_latex(table)
    lines = csv.DictReader(io.StringIO(to_csv(table)))
    assert [line["tuning_trials"] for line in lines] == ["", "12", "12", "12"]


def test_unequal_tuning_is_marked_in_every_form(tuned):
    table = tuned(supervised=12, simsiam=0, byol=12, barlow_twins=4)
    assert dict(table.footnotes)["‡"] == FOOTNOTE
    assert MARKED in table.notes
    text = to_text(table)
    assert [line.split("  ")[0] for line in text.splitlines()[4:9]] == [
        "Random init",
        "Supervised",
        "-" * len("Barlow Twins [‡]"),
        "SimSiam [‡]",
        "BYOL",
    ]
    assert f"[‡] {FOOTNOTE}" in text.splitlines()
    assert MARKED in text.splitlines()
    markdown = to_markdown(table)
    assert "| SimSiam<sup>‡</sup> | 60.0 ± 0.5 |" in markdown
    assert "| BYOL | 60.0 ± 0.5 |" in markdown
    assert "| Barlow Twins<sup>‡</sup> | 60.0 ± 0.5 |" in markdown
    assert f"<sup>‡</sup> {FOOTNOTE}" in markdown.split("  \n")[0]
    latex = to_latex(table)
    assert r"Barlow Twins\textsuperscript{\ensuremath{\ddagger}} & 60.0" in latex
    assert "BYOL & 60.0" in latex
    assert rf"\textsuperscript{{\ensuremath{{\ddagger}}}} {FOOTNOTE}" in latex
    assert r"Tuning (all rows without \ensuremath{\ddagger}): 12 trials a method on val." in latex
    lines = csv.DictReader(io.StringIO(to_csv(table)))
    assert [line["tuning_trials"] for line in lines] == ["", "12", "0", "12", "4"]


def test_unequal_tuning_is_no_other_budget(tuned, make_row, study, spec):
    """Each mark has its own footnote, and only another budget keeps a row out of competition."""
    table = tuned(simclr=12, byol=12, barlow_twins=4)
    assert "†" not in str(table)
    rows = []
    for seed, more in enumerate((0.0, 0.1)):
        rows += [make_row("simclr", 40.0 + more, seed, tuning_trials=12)]
        rows += [make_row("byol", 50.0 + more, seed, tuning_trials=12)]
        rows += [make_row("barlow_twins", 62.0 + more, seed, tuning_trials=4)]
        rows += [make_row("moco_v2", 63.0 + more, seed, tuning_trials=4, epochs=200)]
        rows += [make_row("swav", 64.0 + more, seed, epochs=200)]
    (table,) = build_tables(spec(study), rows)
    assert {row.labels[0]: row.marks for row in table.rows} == {
        "SimCLR": (),
        "MoCo v2": ("†", "‡"),
        "SwAV": ("†",),
        "BYOL": (),
        "Barlow Twins": ("‡",),
    }
    assert [row.method for row in table.rows if row.entries[0].best] == ["barlow_twins"]
    different = "different network or pretraining, so not compared with the others"
    network = "resnet18, 200 epochs, batch 256"
    notes = dict(table.footnotes)
    assert notes["†"] == f"{different}: MoCo v2: {network}; SwAV: {network}"
    assert notes["‡"] == "tuned with another number of trials: MoCo v2 4, Barlow Twins 4"
    assert "MoCo v2<sup>†,‡</sup>" in to_markdown(table)


@pytest.mark.parametrize(
    ("trials", "note"),
    [
        ({"byol": 1, "simclr": 1}, "Tuning: 1 trial a method on val."),
        ({"byol": 0, "simclr": 0}, "Tuning: no logged trials chose these settings."),
        ({"byol": None, "simclr": None}, None),  # records from before this was written down
    ],
)
def test_what_is_said_of_other_numbers_of_trials(tuned, trials, note):
    table = tuned(**trials)
    assert [said for said in table.notes if said.startswith("Tuning")] == ([note] if note else [])
    assert not any(row.marks for row in table.rows)


def test_imported_encoders_are_left_out_of_what_is_said_of_tuning(make_row, study, spec):
    rows = [make_row("byol", 60.0, tuning_trials=12), make_row("simclr", 70.0, origin="imported")]
    (table,) = build_tables(spec(study), rows)
    assert "Tuning (apart from imported encoders): 12 trials a method on val." in table.notes
    assert not any("‡" in row.marks for row in table.rows)


def test_seeds_with_different_numbers_of_trials_count_as_the_fewest(make_row, study, spec):
    rows = [make_row("byol", 60.0, seed, tuning_trials=trials) for seed, trials in enumerate((12, 4))]
    rows += [make_row(method, 60.0, tuning_trials=12) for method in ("simclr", "swav")]
    (table,) = build_tables(spec(study), rows)
    assert dict(table.footnotes)["‡"] == "tuned with another number of trials: BYOL 4"


def ablation(key, values, column, label="varied", **more):
    """A study of one table that varies a recipe key of two methods, beside random initialisation."""
    axis = {"key": key, "label": label, "values": values}
    rows = [{"methods": "random_init"}, {"methods": ["byol", "barlow_twins"], "vary": [axis]}]
    return {"tables": [{"name": "varied", "rows": rows, "columns": [column], **more}]}


def test_an_ablation_says_which_of_its_rows_are_not_as_tuned(make_row, spec):
    """A value that overrides a tuned key has no trials behind it; the reference row has."""
    rows = [make_row("supervised", 90.0, tuning_trials=12)]
    rows += [make_row("barlow_twins", 60.0, variant=value, tuning_trials=0) for value in ("0.01", "0.02")]
    column = {"protocol": "linear/cached-v1", "metric": "top1"}
    study = ablation("options.lambd", [0.01, 0.02], column)
    (table,) = build_tables(spec(study), rows)
    assert (
        dict(table.footnotes)["‡"]
        == "tuned with another number of trials: Barlow Twins (0.01) none, Barlow Twins (0.02) none"
    )
    (table,) = build_tables(spec(study), rows[1:])
    assert "Tuning: no logged trials chose these settings." in table.notes


def test_one_competitor_is_not_the_best(make_row, study, spec):
    rows = [make_row("byol", 70.0), make_row("supervised", 80.0)]
    (table,) = build_tables(spec(study), rows)
    assert not any(e.best for row in table.rows for e in row.entries)


def test_every_mark_is_explained(table):
    used = {mark for row in table.rows for mark in row.marks}
    used |= {mark for row in table.rows for e in row.entries for mark in e.marks}
    assert used == {mark for mark, _ in table.footnotes}
    text = " ".join(text for _, text in table.footnotes)
    assert "2 of 2 seeds collapsed (seeds 0, 1: std_is_0 & 100 % <b>flat</b>)" in text
    assert 'the published row is "SwAV (w/o multi-crop)"' in text
    assert "standard error over 2000 test items (one seed)" in text
    assert any("std over 2 seeds" in note for note in table.notes)
    assert any("linear/cached-v1" in note and "knn/cosine-v1" in note for note in table.notes)
    assert any("Quoted, ImageNet ResNet-50" in note and "Table 1" in note for note in table.notes)


def test_different_budgets_or_origins_are_never_pooled(make_row, study, spec):
    rows = [make_row("byol", 70.0, 0), make_row("byol", 80.0, 1, epochs=100), make_row("simclr", 60.0)]
    rows.append(make_row("byol", 75.0, 0, origin="imported"))
    (table,) = build_tables(spec(study), rows)
    labels = [row.labels[0] for row in table.rows]
    assert labels == [
        "SimCLR",
        "BYOL (resnet18, 50 epochs, batch 256)",
        "BYOL (resnet18, 100 epochs, batch 256)",
        "BYOL (imported)",
    ]


def test_a_failed_import_is_in_the_imported_row(study, make_row, tmp_path, spec):
    rows = [make_row("byol", 75.0, 0, origin="imported")]
    runs = [RunInfo("byol", "", 1, "failed", "the file changed", tmp_path, origin="imported")]
    (table,) = build_tables(spec(study), rows, runs)
    assert [row.labels[0] for row in table.rows] == ["BYOL (imported)"]


def test_a_run_that_failed_before_evaluation_has_a_row(study, make_row, tmp_path, spec):
    runs = [
        RunInfo("simsiam", "", 0, "failed", "loss is NaN at step 7", tmp_path),
        RunInfo("byol", "", 1, "collapsed", "std 0", tmp_path),
    ]
    rows = [make_row("byol", 70.0, 0), make_row("byol", 71.0, 1)]
    (table,) = build_tables(spec(study), rows, runs)
    assert entry(table, "simsiam").text == "failed"
    assert "loss is NaN at step 7" in str(table.footnotes)
    assert entry(table, "byol").text == "collapsed (1 of 2 seeds)"
    assert entry(table, "byol").cell.rest.value == 70.0  # the record of the collapsed seed is no result
    assert entry(table, "byol").cell.failures[0].status == "collapsed"


def test_a_row_of_which_a_seed_collapsed_does_not_compete_and_keeps_its_numbers_in_the_csv(
    make_row, study, spec
):
    rows = [make_row(method, 60.0 + seed, seed) for method in ("simclr", "swav") for seed in range(3)]
    rows += [make_row("byol", 99.0, 0), make_row("byol", 98.0, 1)]
    rows += [make_row("byol", None, 2, status="collapsed", reason="flat")]
    (table,) = build_tables(spec(study), rows)
    shown = entry(table, "byol")
    assert shown.text == "collapsed (1 of 3 seeds)"
    assert [dict(table.footnotes)[mark] for mark in shown.marks] == [
        "1 of 3 seeds collapsed (seed 2: flat)",
        "without the seeds that collapsed: 98.5 ± 0.7 (2 seeds)",
    ]
    assert {row.method for row in table.rows if row.entries[0].best} == {"simclr", "swav"}
    assert any(
        "only 2 methods have both numbers" in note for note in table.notes
    )  # of three with a published one
    marks = ",".join(shown.marks)
    assert f"| BYOL | collapsed (1 of 3 seeds)<sup>{marks}</sup> |" in to_markdown(table)
    (line,) = [
        line
        for line in csv.DictReader(io.StringIO(to_csv(table)))
        if (line["method"], line["label"]) == ("byol", "Linear top-1")
        and line["protocol"] == "linear/cached-v1"
    ]
    assert (line["value"], line["n"], line["status"]) == ("98.5", "2", "collapsed")
    assert float(line["uncertainty"]) == pytest.approx(0.5**0.5)
    assert line["reason"] == "seed 2: collapsed: flat"


def test_two_image_sets_make_two_columns(study, make_row, spec):
    rows = [make_row("byol", 70.0), make_row("byol", 50.0, image_set="cifar10", epochs=800)]
    (table,) = build_tables(spec(study), rows)
    assert [c.label for c in table.columns][:2] == ["Linear top-1 (digit-scenes)", "Linear top-1 (cifar10)"]
    assert [e.text for e in table.rows[0].entries][:2] == ["70.0 ± 0.5", "50.0 ± 0.5"]


def test_csv_round_trip(table):
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert len(rows) == len(table.rows) * len(table.columns)
    flat = [
        (row, column, e) for row in table.rows for column, e in zip(table.columns, row.entries, strict=True)
    ]
    for line, (row, column, e) in zip(rows, flat, strict=True):
        assert (line["method"], line["label"]) == (row.method, column.label)
        assert (float(line["value"]) if line["value"] else None) == e.cell.value
        assert (float(line["uncertainty"]) if line["uncertainty"] else None) == e.cell.uncertainty
        assert line["kind"] == e.cell.kind
        assert line["recipe_hash"] == ";".join(e.cell.recipe_hashes)
        assert line["status"] == e.cell.status
    swav = [line for line in rows if line["method"] == "swav"]
    assert (swav[0]["value"], swav[0]["status"]) == ("", "collapsed")
    assert (swav[2]["value"], swav[2]["origin"], bool(swav[2]["source"])) == ("71.8", "quoted", True)


def test_markdown(table):
    text = to_markdown(table)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert "| *Supervised* |" in text
    assert "**72.5 ± 0.7**" in text
    assert "MoCo v2<sup>†</sup>" in text
    assert "(quoted, ImageNet ResNet-50)" in lines[0]
    assert "<b>" not in text


def test_latex_is_balanced_and_escaped(table):
    text = to_latex(table)
    for command in (r"\toprule", r"\bottomrule"):
        assert text.count(command) == 1
    assert text.count(r"\midrule") == 2
    opened, closed = re.findall(r"\\begin\{(\w+)\}", text), re.findall(r"\\end\{(\w+)\}", text)
    assert sorted(opened) == sorted(closed) == ["minipage", "table", "tabular"]
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text.replace("\\\\", "")):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0
    body = text.split("\n", 1)[1]
    assert not re.findall(r"(?<!\\)[%#$_]", body)
    assert r"std\_is\_0 \& 100 \% \textless{}b\textgreater{}" in body
    tabular = body.split(r"\begin{tabular}")[1].split(r"\end{tabular}")[0]
    rows = [line for line in tabular.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {len(table.columns)}
    assert r"\textbf{72.5 \ensuremath{\pm} 0.7}" in body


def test_what_is_concluded_follows_the_float_which_would_else_be_higher_than_a_page(table):
    before, after = to_latex(table).split(r"\end{table}")
    assert all("has the best number" not in line for line in before.splitlines())
    assert len(table.conclusions) == 2
    assert after.startswith("\n{\\par\\noindent\\footnotesize Table \\ref{tab:main}. Linear top-1: BYOL has")
    assert "\\par\n\\noindent kNN top-1: BYOL has" in after
    assert r"\label{tab:main}" in before


@pytest.mark.parametrize(
    ("label", "begins"),
    [
        ("- top", "\\- top"),
        ("+ top", "\\+ top"),
        ("1. top", "1\\. top"),
        ("12) top", "12\\) top"),
        ("# top", "\\# top"),
        ("~~~ top", "\\~~~ top"),
        ("    top", "top"),
        ("1% of labels", "1% of labels"),
    ],
)
def test_no_label_begins_a_list_or_block_in_markdown(study, make_row, spec, label, begins):
    study["tables"][0]["columns"] = [{**study["tables"][0]["columns"][0], "label": label}]
    rows = [
        make_row(m, 60.0 + i, s, remarks="seen") for i, m in enumerate(("byol", "simclr")) for s in range(2)
    ]
    rows.append(
        make_row("byol", 9.0, image_set="other")
    )  # a column of its own, which the remark is not about
    (table,) = build_tables(spec(study), rows)
    lines = [line.strip() for line in to_markdown(table).splitlines()]
    assert [line.startswith(f"{begins} (digit-scenes): ") for line in lines].count(True) == 2


def test_escape_tex():
    assert escape_tex(r"a_b & 5% $x$ {#1} ~^\ ") == (
        r"a\_b \& 5\% \$x\$ \{\#1\} \textasciitilde{}\textasciicircum{}\textbackslash{} "
    )


def test_console(table, study, records, spec):
    (text,) = render_study(spec(study), records)
    assert text == to_text(table)
    assert "72.5 ± 0.7*" in text
    assert "MoCo v2 [†]" in text


def test_ablation_table(make_row, spec):
    rows = [make_row("random_init", 30.0)]
    for value in ("0.002", "0.005", "2e-2"):
        rows += [make_row("barlow_twins", 60.0 + seed, seed, variant=value) for seed in range(2)]
    rows[-1] = replace(rows[-1], status="failed", value=None, reason="disk full")
    quoted = {"file": "fig_lambda.csv", "match": {"lambda": "λ"}, "columns": {"top1": "top-1"}}
    column = {"protocol": "linear/cached-v1", "metric": "top1"}
    study = ablation("options.lambd", [0.002, 0.005, "2e-2"], column, "λ", quoted=quoted)
    (table,) = build_tables(spec(study), rows)
    assert table.stub == ("Method", "λ")
    body = [(row.labels, [e.text for e in row.entries]) for row in table.method_rows]
    assert body == [
        (("Barlow Twins", "0.002"), ["60.5 ± 0.7", "70.8"]),
        (("Barlow Twins", "0.005"), ["60.5 ± 0.7", "71.7"]),
        (("Barlow Twins", "2e-2"), ["60.0 ± 0.5 (1 of 2 seeds)", "71.2"]),
    ]
    assert "300 epochs" in table.columns[-1].subtitle
    assert "read off a figure" in str(table.footnotes)
    assert r"\ensuremath{\lambda}" in to_latex(table)


def test_varying_the_batch_size_earns_no_budget_mark(make_row, spec):
    rows = [make_row("byol", 60.0, variant=str(b), batch_size=b) for b in (64, 128)]
    column = {"protocol": "linear/cached-v1", "metric": "top1"}
    study = ablation("batch_size", [64, 128], column)
    (table,) = build_tables(spec(study), rows)
    assert not any(row.marks for row in table.rows)


def test_a_metric_that_an_image_set_has_no_number_of_is_a_dash_with_a_footnote(study, records, spec):
    study["tables"][0]["columns"][0]["metric"] = "top5"
    (table,) = build_tables(spec(study), records)
    shown = entry(table, "byol")
    assert shown.text == "-"
    (mark,) = shown.marks
    assert dict(table.footnotes)[mark] == "linear/cached-v1 has no top5 on digit-scenes"
    assert entry(table, "byol", 1).text == "67.5 ± 0.7"  # the other column is as it was


def test_a_remark_is_said_once_with_what_it_is_about(make_row, study, spec):
    everywhere, of_knn, of_byol = "left out 2 hidden files", "top5 is not measured", "collapse is not judged"
    knn = "knn/cosine-v1"

    def remarks(*said):
        return {"remarks": REMARKS_BETWEEN.join(said)}

    rows = [
        make_row("byol", 70.0, **remarks(everywhere, of_byol)),
        make_row("byol", 60.0, protocol=knn, **remarks(everywhere, of_byol, of_knn)),
        make_row("simclr", 71.0, **remarks(everywhere)),
        make_row("simclr", 61.0, protocol=knn, **remarks(everywhere, of_knn)),
    ]
    (table,) = build_tables(spec(study), rows)
    said = [note for note in table.notes if any(each in note for each in (everywhere, of_knn, of_byol))]
    label = table.columns[1].label
    assert sorted(said) == sorted([f"All numbers: {everywhere}.", f"BYOL: {of_byol}.", f"{label}: {of_knn}."])
    assert f"{label}: {of_knn}." in to_markdown(table)


def test_no_run_is_left_out_beside_one_without_a_variant(make_row, study, spec):
    records = [
        make_row("byol", 60.0),
        make_row("moco_v2", 61.0, variant="epochs=1"),
        make_row("moco_v2", 62.0, variant="epochs=2", recipe_hash="other", encoder_checksum="other"),
    ]
    (table,) = build_tables(spec({**study, "figures": [], "tables": study["tables"][:1]}), records)
    assert len(table.rows) == 3


def test_a_note_of_a_table_stands_below_it_in_every_form(make_row, study, spec):
    words = "warmed up over 3 epochs, 100 % of them"
    study["tables"][0]["note"] = words
    (table,) = build_tables(spec(study), [make_row("byol", 60.0), make_row("simclr", 61.0)])
    assert words in table.notes
    for text in (to_markdown(table), to_text(table), to_latex(table).replace("\\%", "%")):
        assert words in text
