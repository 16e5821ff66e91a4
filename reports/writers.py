"""Tables as CSV, Markdown, LaTeX and plain text. (The HTML page has its own template.)"""

from __future__ import annotations

import csv
import io
import re
import unicodedata

from twinbench.reports.layout import Column, Entry, Row, Table, name_of
from twinbench.reports.metrics import metric_of

CSV_COLUMNS = (
    "method",
    "variant",
    "label",
    "image_set",
    "protocol",
    "metric",
    "unit",
    "value",
    "uncertainty",
    "kind",
    "n",
    "interval_low",
    "interval_high",
    "n_items",
    "status",
    "reason",
    "origin",
    "recipe_hash",
    "budget",
    "tuning_trials",
    "source",
)


def to_csv(table: Table) -> str:
    """One line a cell with plain numbers: value, uncertainty, its kind, n seeds, origin, recipe hashes,
    source. Those of a cell that is collapsed are of the seeds that are not.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in table.rows:
        for column, entry in zip(table.columns, row.entries, strict=True):
            cell, measured = entry.cell, entry.cell.measured
            low, high = measured.interval or (None, None)
            writer.writerow(
                _plain(value)
                for value in (
                    row.method,
                    row.variant,
                    column.label,
                    column.image_set,
                    column.protocol or column.subtitle,
                    column.metric,
                    metric_of(column.metric).unit,
                    measured.value,
                    measured.uncertainty,
                    measured.kind,
                    measured.n_seeds or None,
                    low,
                    high,
                    measured.n_items,
                    cell.status,
                    "; ".join(f"seed {f.seed}: {f.status}: {f.reason}" for f in cell.failures),
                    cell.origin or ("quoted" if column.quoted else row.origin),
                    ";".join(cell.recipe_hashes),
                    row.budget if not column.quoted else "",
                    row.tuning_trials if not column.quoted else None,
                    cell.source,
                )
            )
    return out.getvalue()


DIFFERENCE_COLUMNS = (
    "column",
    "protocol",
    "metric",
    "image_set",
    "row",
    "other",
    "difference",
    "interval_low",
    "interval_high",
    "p",
    "p_holm",
    "basis",
)


def differences_csv(table: Table) -> str:
    """One line a pair of rows that compete in a column: the difference with its interval and probabilities."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(DIFFERENCE_COLUMNS)
    for column, found in zip(table.columns, table.contests, strict=True):
        if found is None:
            continue
        for comparison in found.comparisons:
            first, second = (table.rows[found.rows[place]] for place in (comparison.first, comparison.second))
            e = comparison.estimate
            numbers = (e.value, e.low, e.high, e.p, comparison.p)
            names = (column.label, column.protocol, column.metric, column.image_set)
            rows = (name_of(first), name_of(second))
            writer.writerow([*names, *rows, *map(_plain, numbers), e.basis or ""])
    return out.getvalue()


def _plain(value: object) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def to_markdown(table: Table) -> str:
    """A GitHub table: the best value bold, references in italics, footnotes below."""
    heads = [*table.stub, *(column.heading for column in table.columns)]
    rule = [":--"] * len(table.stub) + ["--:"] * len(table.columns)
    lines = [f"**{_md(table.title)}**", "", _md_row([_md(head) for head in heads]), _md_row(rule)]
    for row in (*table.reference_rows, *table.method_rows):
        labels = [
            f"*{_md(label)}*" if row.is_reference and label != "-" else _md(label) for label in row.labels
        ]
        labels[0] += _md_marks(row.marks)
        lines.append(_md_row([*labels, *(_md_entry(entry) for entry in row.entries)]))
    notes = [f"{_md_marks((mark,))} {_md(text)}" for mark, text in table.footnotes] + [
        _md_line(note) for note in table.notes
    ]
    paragraphs = ["\n".join(lines), "  \n".join(notes), *map(_md_line, table.conclusions)]
    return "\n\n".join(paragraphs) + "\n"


def _md(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text.replace("\n", " "))


def _md_line(text: str) -> str:
    """A line of text that begins nothing: no list, heading, fence or block of code, whatever a label begins with."""
    line = re.sub(r"^([-+#~=])", r"\\\1", _md(text).lstrip())
    return re.sub(r"^(\d+)([.)])", r"\1\\\2", line)


def _md_marks(marks: tuple[str, ...]) -> str:
    return f"<sup>{','.join(marks)}</sup>" if marks else ""


def _md_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _md_entry(entry: Entry) -> str:
    text = _md(entry.text)
    return (f"**{text}**" if entry.best else text) + _md_marks(entry.marks)


_TEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # at the beginning of a row it would be read as an option of the \\ before it, and so would a *
    "]": "{]}",
    "*": "{*}",
    '"': r"\textquotedbl{}",
    "±": r"\ensuremath{\pm}",
    "\u00d7": r"\ensuremath{\times}",
    "†": r"\ensuremath{\dagger}",
    "‡": r"\ensuremath{\ddagger}",
    "§": r"\S{}",
    "\u03b1": r"\ensuremath{\alpha}",
    "β": r"\ensuremath{\beta}",
    "ε": r"\ensuremath{\epsilon}",
    "λ": r"\ensuremath{\lambda}",
    "τ": r"\ensuremath{\tau}",
}


def escape_tex(text: str) -> str:
    """Text that LaTeX prints as it is; control characters, which no LaTeX takes, as spaces."""
    printed = (" " if unicodedata.category(character) == "Cc" else character for character in text)
    plain = "".join(_TEX_SPECIAL.get(character, character) for character in printed)
    return re.sub("-(?=-)", "-{}", plain)  # two hyphens, as of an option, would become a dash


_SET_BY_PDFLATEX = "\u2013\u2014\u2018\u2019\u201a\u201c\u201d\u201e\u2022\u2026\u20ac\u2122"
"""Dashes, quotation marks, bullet, ellipsis, euro and trade mark, beside Latin letters with accents."""
_BEYOND_SHOWN = 20  # characters that a comment names


def _tex_needs(text: str) -> str:
    """The comment that names what a document needs to print the text, which is escaped already."""
    beyond = sorted({c for c in text if not (c < "\u017f" or c in _SET_BY_PDFLATEX)})
    if not beyond:
        return r"% needs \usepackage[T1]{fontenc} and \usepackage{booktabs}"
    some = " ".join(beyond[:_BEYOND_SHOWN]) + (" and others" if len(beyond) > _BEYOND_SHOWN else "")
    return (
        f"% needs XeLaTeX or LuaLaTeX (pdfLaTeX cannot print: {some}), "
        r"\usepackage{fontspec} with a \setmainfont that has these characters, and \usepackage{booktabs}"
    )


def to_latex(table: Table) -> str:
    """A ``table`` float. The document needs two packages: ``\\usepackage{booktabs}`` for the rules, and
    ``\\usepackage[T1]{fontenc}`` for straight quotation marks; an old one also ``\\usepackage[utf8]{inputenc}``.

    Latin letters with accents are set by any LaTeX. Of others, such as Chinese ones, the first line says that it takes
    XeLaTeX or LuaLaTeX, and a font that has them. What can be concluded follows the float, which with a paragraph for
    each column would be higher than a page.
    """
    label = f"tab:{re.sub(r'[^A-Za-z0-9-]', '-', table.name)}"
    layout = "l" * len(table.stub) + "r" * len(table.columns)
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{escape_tex(table.title)}}}",
        rf"\label{{{label}}}",
        rf"\begin{{tabular}}{{{layout}}}",
        r"\toprule",
        _tex_row([*map(escape_tex, table.stub), *map(_tex_head, table.columns)]),
        r"\midrule",
    ]
    lines += [_tex_table_row(row) for row in table.reference_rows]
    if table.reference_rows and table.method_rows:
        lines.append(r"\midrule")
    lines += [_tex_table_row(row) for row in table.method_rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    notes = [f"{_tex_marks((mark,))} {escape_tex(text)}" for mark, text in table.footnotes]
    notes += [escape_tex(note) for note in table.notes]
    if notes:
        lines += [r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize"]
        lines += ["\\par\n".join(notes), r"\end{minipage}"]
    lines.append(r"\end{table}")
    if table.conclusions:
        said = "\\par\n\\noindent ".join(map(escape_tex, table.conclusions))
        lines.append(rf"{{\par\noindent\footnotesize Table \ref{{{label}}}. {said}\par}}")
    text = "\n".join(lines) + "\n"
    return f"{_tex_needs(text)}\n{text}"


def _tex_head(column: Column) -> str:
    """The label over the protocol with its version, or over what a quotation was measured on."""
    return rf"\shortstack[r]{{{escape_tex(column.label)}\\{{\scriptsize {escape_tex(column.subtitle)}}}}}"


def _tex_row(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _tex_table_row(row: Row) -> str:
    labels = [escape_tex(label) for label in row.labels]
    labels[0] += _tex_marks(row.marks)
    return _tex_row([*labels, *(_tex_entry(entry) for entry in row.entries)])


def _tex_entry(entry: Entry) -> str:
    text = escape_tex(entry.text)
    return (rf"\textbf{{{text}}}" if entry.best else text) + _tex_marks(entry.marks)


def _tex_marks(marks: tuple[str, ...]) -> str:
    return rf"\textsuperscript{{{escape_tex(','.join(marks))}}}" if marks else ""


def to_text(table: Table) -> str:
    """Aligned plain text for a terminal: ``*`` after the best value, marks in brackets."""
    heads = [*table.stub, *(column.heading for column in table.columns)]
    body = [
        (
            row.is_reference,
            [
                row.labels[0] + _text_marks(row.marks),
                *row.labels[1:],
                *(
                    entry.text + ("*" if entry.best else "") + _text_marks(entry.marks)
                    for entry in row.entries
                ),
            ],
        )
        for row in (*table.reference_rows, *table.method_rows)
    ]
    widths = [max(len(line[i]) for line in [heads, *(cells for _, cells in body)]) for i in range(len(heads))]
    rule = "  ".join("-" * width for width in widths)
    lines = [table.title, "", _text_row(heads, widths, len(table.stub)), rule]
    for index, (is_reference, cells) in enumerate(body):
        if index and body[index - 1][0] and not is_reference:
            lines.append(rule)
        lines.append(_text_row(cells, widths, len(table.stub)))
    starred = (
        ["* marked as best among the methods with equal budgets"]
        if any(e.best for r in table.rows for e in r.entries)
        else []
    )
    notes = [f"{_text_marks((mark,)).strip()} {text}" for mark, text in table.footnotes]
    return "\n".join([*lines, "", *starred, *notes, *table.notes, *table.conclusions]) + "\n"


def _text_marks(marks: tuple[str, ...]) -> str:
    return f" [{','.join(marks)}]" if marks else ""


def _text_row(cells: list[str], widths: list[int], stubs: int) -> str:
    aligned = [
        cell.ljust(width) if index < stubs else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(aligned).rstrip()
