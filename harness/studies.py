"""Studies on disk: which tables and figures make up a comparison, and what is trained and measured for each table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError

from twinbench.foundation.errors import InputError, inside, unknown_name
from twinbench.foundation.models import Strict, explain_validation
from twinbench.harness.facts import FACTS, Facts
from twinbench.harness.recipes import read_yaml
from twinbench.reports.study import MOST_SEEDS, ColumnSpec, RowsSpec, StudySpec, TableSpec


class Training(Strict):
    """How the rows of a table are trained: what a table leaves out is that of its study.

    ``recipes`` is a folder of ``recipes/``, the image set's own unless given; ``overrides`` changes keys of all its
    recipes; ``limit`` cuts splits of the image set to so many images. ``encoders`` is a folder below the data root: the
    checkpoints in it are imported and evaluated beside the rows, or alone.
    """

    image_set: str | None = None
    recipes: str | None = None
    encoders: str | None = None
    seeds: int | None = Field(None, ge=1, le=MOST_SEEDS)
    overrides: dict[str, Any] | None = None
    limit: dict[str, int] | None = None


class StudyRows(RowsSpec):
    """Rows of a table, which may have another number of seeds than the others."""

    seeds: int | None = Field(None, ge=1, le=MOST_SEEDS)


class StudyTable(TableSpec, Training):
    """A table, and how its rows are trained; a column with an image set of its own is measured on the whole of that."""

    rows: tuple[StudyRows, ...] = ()

    def completed(self, study: Study) -> Self:
        """The table with what its study says where it says nothing itself."""
        given = {key: getattr(self, key) for key in Training.model_fields}
        own = {key: getattr(study, key) if value is None else value for key, value in given.items()}
        rows = self.rows or ((StudyRows(methods=study.methods),) if study.methods else ())
        return self.model_copy(update={**own, "rows": rows})

    @property
    def measured(self) -> list[tuple[str, str]]:
        """Each protocol with the image set it measures on, empty for the one trained on, in order."""
        shown = [(c.protocol, c.image_set) for c in self.columns if c.protocol not in FACTS]
        return list(dict.fromkeys(shown))

    @property
    def facts(self) -> list[Facts]:
        """What the columns show of the trainings themselves, without an evaluation."""
        return [FACTS[name] for name in dict.fromkeys(c.protocol for c in self.columns) if name in FACTS]

    def columns_of(self, protocol: str, image_set: str) -> list[ColumnSpec]:
        """The columns that show a protocol on an image set."""
        return [c for c in self.columns if (c.protocol, c.image_set) == (protocol, image_set)]


class Study(StudySpec, Training):
    """A comparison: tables with how their rows are trained, and figures of them.

    ``name`` is that of its file unless it gives one. What it says of training and ``methods`` hold for every table that
    says nothing else. ``include`` names other studies, whose tables and figures follow its own. ``scales`` names the
    sizes at which the study can be run; anywhere in its file, keys that are scales hold one value for each
    (`at_scale`).
    """

    name: str
    scales: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: int | None = Field(1, ge=1, le=MOST_SEEDS)
    recipes: str | None = ""
    encoders: str | None = ""
    overrides: dict[str, Any] | None = Field(default_factory=dict)
    limit: dict[str, int] | None = Field(default_factory=dict)
    tables: tuple[StudyTable, ...] = ()

    def image_sets(self) -> list[str]:
        """The image sets that are trained or measured on, each once."""
        named = [
            name for table in self.tables for name in (table.image_set, *(c.image_set for c in table.columns))
        ]
        return list(dict.fromkeys(name for name in named if name))


def study_names() -> list[str]:
    """The studies that come with twinbench."""
    return sorted(
        e.name.removesuffix(".yaml") for e in files("twinbench.studies").iterdir() if e.name.endswith(".yaml")
    )


def load_study(name: str, scale: str | None = None) -> Study:
    """A study by name, or by the path of a YAML file, with all its tables complete, checked as a whole.

    Of a study with scales it is the one at ``scale``, the first by default. Raises InputError naming the file and the
    key, with the nearest valid name.
    """
    # Figures need matplotlib, which the worker processes, who import this module as well, do without.
    from twinbench.reports.check import check_study

    source, stem = _source(name)
    study = _read(source, stem, scale, ())
    with inside(source):
        check_study(study)
    return study


def _source(name: str) -> tuple[Path | Traversable, str]:
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        return path, path.stem
    if path.suffix in {".yaml", ".yml"}:
        raise InputError("there is no such file", where=path, next_step="check the path")
    if name in study_names():
        return files("twinbench.studies") / f"{name}.yaml", name
    raise unknown_name("study", name, study_names(), where="studies/ (or give the path of a YAML file)")


def _read(source: Path | Traversable, stem: str, scale: str | None, above: tuple[str, ...]) -> Study:
    """The study in a file with those that it includes, at a scale; ``above`` are the ones that include it."""
    document = read_yaml(source)
    with inside(source):
        document = _scaled(document, scale)
    try:
        study = Study.model_validate({"name": stem, **document})
    except ValidationError as error:
        raise explain_validation(error, Study, source) from error
    with inside(source):
        tables = [table.completed(study) for table in study.tables]
        first = tables[0].name if tables else ""
        figures = [f.model_copy(update={"table": f.table or first}) for f in study.figures]
        for table in tables:
            _check_trained(table)
        for included in study.include:
            inner, name = _source(included)
            if str(inner) in (*above, str(source)):
                raise InputError(f"the study includes itself by way of {included!r}", "include")
            other = _read(inner, name, scale, (*above, str(source)))
            tables += other.tables
            figures += other.figures
    return study.model_copy(update={"tables": tuple(tables), "figures": tuple(figures)})


def _scaled(document: dict[str, Any], scale: str | None) -> dict[str, Any]:
    """The document of a study at one of its scales."""
    scales = document.get("scales")
    if not isinstance(scales, list) or not scales:
        if scale is not None:
            raise InputError("this study has no scales", next_step="run it without one", option="scale")
        return document
    names = [str(name) for name in scales]
    chosen = names[0] if scale is None else scale
    if chosen not in names:
        raise unknown_name("scale", chosen, names)
    return {**{key: at_scale(value, chosen, names) for key, value in document.items()}, "scales": names}


def at_scale(value: Any, scale: str, scales: Sequence[str]) -> Any:
    """A value with every mapping whose keys are scales replaced by what it holds for one of them.

    Raises InputError for such a mapping that has nothing for this scale.
    """
    if isinstance(value, list):
        return [at_scale(item, scale, scales) for item in value]
    if not isinstance(value, dict):
        return value
    if value and set(value) <= set(scales):
        if scale not in value:
            raise InputError(
                f"nothing is said for the scale {scale!r}, only for {', '.join(value)}",
                next_step="add it, or leave the scale out of `scales`",
            )
        return at_scale(value[scale], scale, scales)
    return {key: at_scale(item, scale, scales) for key, item in value.items()}


def _check_trained(table: StudyTable) -> None:
    if not table.image_set:
        raise InputError(
            f"the table {table.name} has no image set",
            next_step="add `image_set` to the study or to the table",
        )
    if not table.rows and not table.encoders:
        raise InputError(
            f"the table {table.name} has neither methods nor encoders",
            next_step="list methods to train, or name the folder of checkpoints to evaluate",
        )


def narrowed(study: Study, seeds: int | None, methods: tuple[str, ...], image_set: str | None) -> Study:
    """The study with other seeds, only some methods, or other images to train on.

    Raises InputError for a method that it has not. Tables without a row that is left go, and their figures.
    """
    known = list(dict.fromkeys(row.method for table in study.tables for row in table.row_keys()))
    for method in methods:
        if method not in known:
            raise unknown_name("method", method, known, where=f"study {study.name}")
    changes: Mapping[str, Any] = {
        **({"seeds": seeds} if seeds else {}),
        **({"image_set": image_set} if image_set else {}),
    }
    tables = []
    for table in study.tables:
        rows = _only(table.rows, methods) if methods else table.rows
        rows = tuple(map(_with_seeds_of_the_table, rows)) if seeds else rows
        if rows or not table.rows:
            tables.append(table.model_copy(update={**changes, "rows": rows}))
    names = {table.name for table in tables}
    figures = tuple(figure for figure in study.figures if {figure.table, figure.other_table} <= names)
    return study.model_copy(update={"tables": tuple(tables), "figures": figures})


def _with_seeds_of_the_table(block: StudyRows) -> StudyRows:
    vary = tuple(
        axis.model_copy(update={"values": tuple(v.model_copy(update={"seeds": None}) for v in axis.values)})
        for axis in block.vary
    )
    return block.model_copy(update={"seeds": None, "vary": vary})


def _only(rows: tuple[StudyRows, ...], methods: tuple[str, ...]) -> tuple[StudyRows, ...]:
    kept = [(block, tuple(m for m in block.methods if m in methods)) for block in rows]
    return tuple(block.model_copy(update={"methods": left}) for block, left in kept if left)
