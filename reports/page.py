"""The HTML page of a study: one file with everything inside it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from twinbench.foundation.texts import legible
from twinbench.reports import names
from twinbench.reports.cells import number
from twinbench.reports.details import Place, describe, summary
from twinbench.reports.environments import environment_facts
from twinbench.reports.figures.drawing import Drawing
from twinbench.reports.groups import image_sets
from twinbench.reports.layout import Column, Entry, Row, Table
from twinbench.reports.matrix import Matrix, matrix_of
from twinbench.reports.records import Record, RunInfo, unique
from twinbench.reports.study import StudySpec
from twinbench.reports.writers import to_csv, to_latex, to_markdown

_PUBLISHED = "quoted"


@dataclass(frozen=True)
class _Number:
    """A cell of the page. ``address`` opens its details; empty for what was not measured."""

    entry: Entry
    column: Column
    address: str

    @property
    def is_published(self) -> bool:
        return self.column.quoted and self.entry.cell.value is not None

    @property
    def tip(self) -> str:
        hashes = ", ".join(recipe[:12] for recipe in self.entry.cell.recipe_hashes)
        return "; ".join(filter(None, [summary(self.entry), f"recipe {hashes}" if hashes else ""]))


@dataclass(frozen=True)
class _Line:
    """A row of the page. ``origins`` and ``scales`` are the words that the filters know it by."""

    row: Row
    numbers: tuple[_Number, ...]

    @property
    def method(self) -> str:
        return names.pretty(self.row.method)

    @property
    def origins(self) -> str:
        published = any(number.is_published for number in self.numbers)
        return " ".join(unique([self.row.origin, "quoted" if published else ""]))

    @property
    def scales(self) -> tuple[str, ...]:
        """Those of its own encoders, and one word for whatever its published numbers were measured at."""
        published = any(number.is_published for number in self.numbers)
        return unique([*self.row.scales, _PUBLISHED if published else ""])


@dataclass(frozen=True)
class _Section:
    """A table with the figures that are views of it."""

    table: Table
    lines: tuple[_Line, ...]
    drawings: tuple[Drawing, ...]

    @property
    def parts(self) -> list[list[_Line]]:
        """The reference rows, then the methods' rows."""
        parts = [[line for line in self.lines if line.row.is_reference is kind] for kind in (True, False)]
        return [part for part in parts if part]

    @property
    def matrices(self) -> list[Matrix]:
        """For each column in which rows compete, who beats whom."""
        return [
            matrix_of(self.table, column, found)
            for column, found in zip(self.table.columns, self.table.contests, strict=True)
            if found is not None
        ]

    @property
    def downloads(self) -> list[tuple[str, str]]:
        """The kinds of file that the table can be saved as, with their contents."""
        texts = ("csv", to_csv(self.table)), ("md", to_markdown(self.table)), ("tex", to_latex(self.table))
        return [(kind, _data("text/plain;charset=utf-8", text.encode("utf-8"))) for kind, text in texts]


@dataclass(frozen=True)
class _Problem:
    """A line of the list of failed and collapsed runs."""

    method: str
    variant: str
    seed: str
    stage: str
    status: str
    reason: str


@dataclass(frozen=True)
class _Origin:
    """A line of the provenance table: one encoder."""

    method: str
    source_name: str
    variant: str
    seed: str
    origin: str
    scale: str
    image_set: str
    recipe_hash: str
    checksum: str
    backbone: str
    parameters: str
    epochs: str
    batch_size: str
    speed: str
    memory: str
    device: str
    trained_in: str
    measured_in: str


def render_page(
    study: StudySpec,
    tables: Sequence[Table],
    drawings: Sequence[Drawing],
    records: Sequence[Record],
    runs: Sequence[RunInfo],
    command: str,
) -> str:
    """The page as text. Whatever comes from records is escaped; nothing is loaded from elsewhere.

    ``drawings`` are those of the study's figures, in their order. Raises InputError for diagnostics of a run that
    cannot be read.
    """
    environments = unique(text for record in records for text in (record.trained_in, record.environment))
    labels = {environment: f"E{index + 1}" for index, environment in enumerate(environments)}
    kept = [(labels[text], _environment_items(text)) for text in environments]
    data, addresses = describe(tables, runs, environments, command)
    sections = _sections(study, tables, drawings, addresses)
    lines = [line for section in sections for line in section.lines]
    engine = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_seen,
    )
    engine.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    engine.filters["data_uri"] = lambda drawing: _svg_address(drawing.files["svg"])
    script = _template("page.js")
    return engine.from_string(_template("report.html.j2")).render(
        study=study,
        facts=_facts(records, runs),
        sections=sections,
        methods=unique(line.method for line in lines),
        origins=unique(word for line in lines for word in line.origins.split()),
        scales=sorted(
            unique(scale for line in lines for scale in line.scales), key=lambda scale: scale == _PUBLISHED
        ),
        problems=_problems(records, runs),
        encoders=_encoders(records, labels),
        environments=kept,
        command=command,
        data=_seen({**asdict(data), "environments": kept}),
        style=Markup(_template("page.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
    )


def _seen(value: Any) -> Any:
    """A value with what does not print written out in its texts: a mark that turns the order of letters, for one."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, str):
        return legible(value)
    if isinstance(value, dict):
        return {_seen(key): _seen(part) for key, part in value.items()}
    return [_seen(part) for part in value] if isinstance(value, list | tuple) else value


def _template(name: str) -> str:
    return (resources.files("twinbench.reports") / "templates" / name).read_text(encoding="utf-8")


def _svg_address(content: bytes) -> str:
    """An SVG in UTF-8 as the address of an image: as text it is a quarter smaller than in base 64."""
    text = content.decode("utf-8")
    for character in '%#<>"&\n':  # what a URL or HTML would take for something else; the percent sign first
        text = text.replace(character, f"%{ord(character):02X}")
    return f"data:image/svg+xml;charset=utf-8,{text}"


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64," + base64.b64encode(content).decode("ascii")


def _sections(
    study: StudySpec, tables: Sequence[Table], drawings: Sequence[Drawing], addresses: Mapping[Place, str]
) -> list[_Section]:
    views: dict[str, list[Drawing]] = {}
    for figure, drawing in zip(study.figures, drawings, strict=True):
        views.setdefault(study.table_of(figure).name, []).append(drawing)
    return [
        _Section(
            table,
            tuple(_line(table, place, row, addresses) for place, row in enumerate(table.rows)),
            tuple(views.get(table.name, ())),
        )
        for table in tables
    ]


def _line(table: Table, place: int, row: Row, addresses: Mapping[Place, str]) -> _Line:
    pairs = enumerate(zip(table.columns, row.entries, strict=True))
    return _Line(
        row,
        tuple(
            _Number(entry, column, addresses.get((table.name, place, position), ""))
            for position, (column, entry) in pairs
        ),
    )


def _facts(records: Sequence[Record], runs: Sequence[RunInfo]) -> list[tuple[str, str]]:
    """The headline: what was measured on what, how often, for how long."""
    trainings = {run.folder: run.status for run in runs}  # what several tables need is trained once
    done = list(trainings.values()).count("done")
    seeds = {record.seed for record in records if record.seed is not None}
    facts = [
        ("Image set", ", ".join(image_sets(records)) or "-"),
        ("Methods", str(len({record.method for record in records} | {run.method for run in runs}))),
        ("Runs", f"{len(trainings)} ({done} done)" if runs else "0"),
        ("Seeds", str(len(seeds)) if seeds else "-"),
        ("Devices", ", ".join(unique(record.device for record in records)) or "-"),
    ]
    seconds = wall_seconds(records, runs)
    return [*facts, ("Compute, summed over jobs", duration(seconds))] if seconds else facts


def wall_seconds(records: Sequence[Record], runs: Sequence[RunInfo] = ()) -> float:
    """Seconds summed over jobs, trainings and evaluations.

    The metrics of one evaluation repeat its seconds and count once; so does a job that several tables or variants
    share.
    """
    jobs: dict[tuple[object, ...], float] = {}
    for r in records:
        key = (r.image_set, r.protocol, *_encoder(r))
        jobs[key] = max(jobs.get(key, 0.0), r.seconds or 0.0)
    trainings: dict[Path, float] = {}
    for run in runs:
        trainings[run.folder] = max(trainings.get(run.folder, 0.0), run.seconds)
    return sum(jobs.values()) + sum(trainings.values())


def duration(seconds: float) -> str:
    """``3942 s (1 h 05 min)``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    hours, rest = divmod(whole, 3600)
    spoken = f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"
    return f"{whole} s ({spoken})"


def _problems(records: Sequence[Record], runs: Sequence[RunInfo]) -> list[_Problem]:
    lost = [
        _Problem(names.pretty(r.method), r.variant, str(r.seed), "pretraining", r.status, r.reason)
        for r in runs
        if r.status in ("failed", "collapsed")
    ]
    found = list(dict.fromkeys(lost))
    known = {(p.method, p.variant, p.seed, p.status, p.reason) for p in found}
    for r in records:
        problem = _Problem(
            names.pretty(r.method), r.variant, _known(r.seed), r.protocol or "-", r.status, r.reason
        )
        same = (problem.method, problem.variant, problem.seed, problem.status, problem.reason)
        if r.status in ("failed", "collapsed") and problem not in found and same not in known:
            found.append(problem)
    return found


def _known(value: object) -> str:
    return "-" if value in (None, "") else str(value)


def _encoders(records: Sequence[Record], environments: Mapping[str, str]) -> list[_Origin]:
    first: dict[tuple[object, ...], Record] = {}
    variants: dict[tuple[object, ...], list[str]] = {}
    measured_in: dict[tuple[object, ...], list[str]] = {}
    for r in records:
        first.setdefault(_encoder(r), r)
        variants.setdefault(_encoder(r), []).append(r.variant)
        measured_in.setdefault(_encoder(r), []).append(environments.get(r.environment, ""))
    ordered = sorted(first.values(), key=lambda r: (names.sort_key(r.method), r.variant, r.seed or 0))
    return [
        _Origin(
            names.pretty(r.method),
            r.source_name,
            "; ".join(unique(variants[_encoder(r)])),
            _known(r.seed),
            r.origin,
            r.scale,
            _known(r.pretrained_on or r.image_set),
            _known(r.recipe_hash),
            _known(r.encoder_checksum),
            _known(r.backbone),
            "-" if r.parameters is None else f"{r.parameters / 1e6:.1f} M",
            _known(r.epochs),
            _known(r.batch_size),
            "-" if r.images_per_second is None else number(r.images_per_second, 0),
            "-" if r.peak_memory_mb is None else f"{r.peak_memory_mb:.0f} MB",
            _known(r.device),
            environments.get(r.trained_in, "-"),
            _known(", ".join(unique(measured_in[_encoder(r)]))),
        )
        for r in ordered
    ]


def _encoder(r: Record) -> tuple[object, ...]:
    """What tells encoders apart. Tables may call one encoder by several variants; only its hash says that it is one."""
    variant = "" if r.recipe_hash else r.variant
    return r.method, variant, r.seed, r.origin, r.source_name, r.recipe_hash, r.encoder_checksum


def _environment_items(text: str) -> list[tuple[str, str]]:
    """The environment's keys and values; text that is no JSON object is shown as it is."""
    facts = environment_facts(text)
    return [(k, v if isinstance(v, str) else json.dumps(v, sort_keys=True)) for k, v in facts.items()]
