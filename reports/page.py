"""The HTML page of a study: one file with everything inside it."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2

from twinbench.reports import names
from twinbench.reports.cells import number
from twinbench.reports.figures.drawing import Drawing
from twinbench.reports.groups import image_sets
from twinbench.reports.layout import Entry, Table
from twinbench.reports.records import Record, RunInfo, unique
from twinbench.reports.study import StudySpec


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
    variant: str
    seed: str
    origin: str
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
    environment: str


def render_page(
    study: StudySpec,
    tables: Sequence[Table],
    drawings: Sequence[Drawing],
    records: Sequence[Record],
    runs: Sequence[RunInfo],
    command: str,
) -> str:
    """The page as text. Whatever comes from records is escaped; nothing is loaded from elsewhere."""
    environments = unique(record.environment for record in records)
    labels = {environment: f"E{index + 1}" for index, environment in enumerate(environments)}
    template = (resources.files("twinbench.reports") / "templates" / "report.html.j2").read_text(
        encoding="utf-8"
    )
    engine = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    engine.filters["data_uri"] = _data_uri
    engine.filters["tooltip"] = _tooltip
    return engine.from_string(template).render(
        study=study,
        facts=_facts(records, runs),
        tables=tables,
        drawings=drawings,
        problems=_problems(records, runs),
        origins=_origins(records, labels),
        environments=[(labels[text], _environment_items(text)) for text in environments],
        command=command,
    )


def _facts(records: Sequence[Record], runs: Sequence[RunInfo]) -> list[tuple[str, str]]:
    """The headline: what was measured on what, how often, for how long."""
    done = sum(run.status == "done" for run in runs)
    seeds = {record.seed for record in records if record.seed is not None}
    facts = [
        ("Image set", ", ".join(image_sets(records)) or "-"),
        ("Methods", str(len({record.method for record in records} | {run.method for run in runs}))),
        ("Runs", f"{len(runs)} ({done} done)" if runs else "0"),
        ("Seeds", str(len(seeds)) if seeds else "-"),
        ("Devices", ", ".join(unique(record.device for record in records)) or "-"),
    ]
    seconds = wall_seconds(records, runs)
    return [*facts, ("Compute, summed over jobs", duration(seconds))] if seconds else facts


def wall_seconds(records: Sequence[Record], runs: Sequence[RunInfo] = ()) -> float:
    """Seconds summed over jobs, trainings and evaluations.

    The metrics of one evaluation repeat its seconds and count once; so does a training that several variants
    share.
    """
    jobs: dict[tuple[object, ...], float] = {}
    for r in records:
        key = (r.method, r.variant, r.image_set, r.protocol, r.seed, r.recipe_hash, r.encoder_checksum)
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
    found = [
        _Problem(names.pretty(r.method), r.variant, str(r.seed), "pretraining", r.status, r.reason)
        for r in runs
        if r.status in ("failed", "collapsed")
    ]
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


def _origins(records: Sequence[Record], environments: dict[str, str]) -> list[_Origin]:
    first: dict[tuple[object, ...], Record] = {}
    for r in records:
        first.setdefault(
            (r.method, r.variant, r.seed, r.origin, r.source_name, r.recipe_hash, r.encoder_checksum), r
        )
    ordered = sorted(first.values(), key=lambda r: (names.sort_key(r.method), r.variant, r.seed or 0))
    return [
        _Origin(
            names.pretty(r.method) + (f" ({r.source_name})" if r.source_name else ""),
            r.variant,
            _known(r.seed),
            r.origin,
            _known(r.image_set),
            _known(r.recipe_hash),
            _known(r.encoder_checksum),
            _known(r.backbone),
            "-" if r.parameters is None else f"{r.parameters / 1e6:.1f} M",
            _known(r.epochs),
            _known(r.batch_size),
            "-" if r.images_per_second is None else number(r.images_per_second, 0),
            "-" if r.peak_memory_mb is None else f"{r.peak_memory_mb:.0f} MB",
            _known(r.device),
            environments.get(r.environment, "-"),
        )
        for r in ordered
    ]


def _environment_items(text: str) -> list[tuple[str, str]]:
    """The environment's keys and values; text that is no JSON object is shown as it is."""
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        return [("environment", text)]
    return [(str(k), v if isinstance(v, str) else json.dumps(v, sort_keys=True)) for k, v in content.items()]


def _data_uri(drawing: Drawing) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(drawing.files["svg"]).decode("ascii")


def _tooltip(entry: Entry) -> str:
    """What a reader sees on hovering a number: seeds, interval, items, recipe or source."""
    cell = entry.cell
    parts = []
    if cell.n_seeds:
        parts.append(f"{cell.n_seeds} seed{'s' if cell.n_seeds > 1 else ''}")
    if cell.interval is not None:
        low, high = (number(end, entry.digits + 1) for end in cell.interval)
        parts.append(f"95 % t interval {low} to {high}")
    parts += [f"{cell.n_items} test items"] if cell.n_items else []
    parts += [f"recipe {', '.join(h[:12] for h in cell.recipe_hashes)}"] if cell.recipe_hashes else []
    parts += [cell.source] if cell.source else []
    return "; ".join(parts)
