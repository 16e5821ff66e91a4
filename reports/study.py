"""The part of a study's description that a report needs, checked key by key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from twinbench.foundation.errors import InputError, unknown_name
from twinbench.reports import quoted

FIGURE_KINDS = ("loss_curves", "cross_correlation", "spectrum", "bars", "ablation")


def _file_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError("becomes a file name: use letters, digits, '-', '_' and '.'")
    return name


def _as_text(value: object) -> str:
    return str(value)


def _as_texts(value: object) -> tuple[str, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(str(item) for item in items)


FileName = Annotated[str, AfterValidator(_file_name)]
Text = Annotated[str, BeforeValidator(_as_text)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_as_texts)]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ColumnSpec(_Spec):
    """A measured column: one metric of one protocol, on every image set unless one is named."""

    protocol: str
    metric: str
    label: str = ""
    image_set: str = ""
    digits: int = Field(1, ge=0, le=6)

    @property
    def heading(self) -> str:
        """The label, or protocol and metric where the study gives none."""
        return self.label or f"{self.protocol} {self.metric}"


class QuotedColumns(_Spec):
    """Published columns of a table: file, {published column: label}, row filter, {method: published row}."""

    file: str
    columns: dict[str, str] = Field(min_length=1)
    where: dict[str, Texts] = {}
    rows: dict[str, str] = {}


class TableSpec(_Spec):
    """One table: a row per method, the measured columns, then the quoted ones."""

    name: FileName
    title: str = ""
    columns: tuple[ColumnSpec, ...] = Field(min_length=1)
    quoted: QuotedColumns | None = None


class AblationQuoted(_Spec):
    """A published ablation: file, its x and y columns, row filter, {our method: published row}, {our value:
    x}.
    """

    file: str
    x: str
    y: str
    where: dict[str, Texts] = {}
    rows: dict[str, str] = {}
    values: dict[Text, Text] = {}


class AblationSpec(_Spec):
    """What is varied: the recipe key, the values in order, and for which methods (all by default)."""

    key: str
    label: str = ""
    values: tuple[Text, ...] = ()
    methods: tuple[str, ...] = ()
    log_scale: bool = False
    columns: tuple[ColumnSpec, ...] = ()
    quoted: AblationQuoted | None = None

    @property
    def heading(self) -> str:
        """The label, or the key where the study gives none."""
        return self.label or self.key


class FigureSpec(_Spec):
    """One figure; ``protocol``, ``metric`` and ``image_set`` are for bars and ablation."""

    kind: Literal["loss_curves", "cross_correlation", "spectrum", "bars", "ablation"]
    name: FileName
    title: str = ""
    protocol: str = ""
    metric: str = ""
    label: str = ""
    image_set: str = ""


class StudySpec(_Spec):
    """A study as the report sees it."""

    name: str = ""
    title: str = ""
    description: str = ""
    command: str = ""
    tables: tuple[TableSpec, ...] = ()
    figures: tuple[FigureSpec, ...] = ()
    ablation: AblationSpec | None = None

    def main_columns(self) -> tuple[ColumnSpec, ...]:
        """Every measured column of the study's tables, each protocol, metric and image set once."""
        columns: dict[tuple[str, str, str], ColumnSpec] = {}
        for column in (column for table in self.tables for column in table.columns):
            columns.setdefault((column.protocol, column.metric, column.image_set), column)
        return tuple(columns.values())


def parse_study(study: Mapping[str, Any]) -> StudySpec:
    """Check the report's part of a study: title, description, command, tables, figures, ablation.

    Other top-level keys belong to the harness and are ignored; inside tables, figures and ablation an unknown
    key is an error, and so are an unknown figure kind, a missing file or column of published numbers, and a
    quotation that fits several published rows. Raises InputError. Call it before a study runs.
    """
    own = {key: study[key] for key in StudySpec.model_fields if study.get(key) is not None}
    if "figures" in own:
        own["figures"] = _named_figures(own["figures"])
    try:
        spec = StudySpec.model_validate(own)
    except pydantic.ValidationError as error:
        raise _explained(error) from error
    _check_unique([table.name for table in spec.tables] + (["ablation"] if spec.ablation else []), "tables")
    _check_unique([figure.name for figure in spec.figures], "figures")
    _check_quoted(spec)
    _check_figures(spec)
    return spec


def _named_figures(figures: object) -> list[dict[str, Any]]:
    if not isinstance(figures, list) or not all(isinstance(figure, Mapping) for figure in figures):
        raise InputError("figures must be a list of mappings", "figures", next_step="write `- {kind: bars}`")
    named = []
    for index, figure in enumerate(figures):
        kind = str(figure.get("kind", ""))
        if kind not in FIGURE_KINDS:
            raise unknown_name("figure kind", kind, FIGURE_KINDS, f"figures[{index}].kind")
        named.append({"name": kind, **figure})
    return named


def _check_unique(names: Sequence[str], where: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two {where} are called {name!r}", where, next_step="give each its own `name`")


def _check_quoted(spec: StudySpec) -> None:
    for table in spec.tables:
        if table.quoted is None:
            continue
        source = table.quoted
        for column in source.columns:
            for method in quoted.PUBLISHED_NAMES:
                quoted.table_value(source.file, column, method, source.where, source.rows)
        _check_rows(source.file, source.rows)
    if spec.ablation is not None and spec.ablation.quoted is not None:
        curve = spec.ablation.quoted
        quoted.check_columns(curve.file, [curve.x, curve.y, *curve.where])
        _check_rows(curve.file, curve.rows)


def _check_rows(file: str, rows: Mapping[str, str]) -> None:
    present = {row["method"] for row in quoted.load(file)}
    for name in rows.values():
        if name not in present:
            raise unknown_name("published row", name, present, file)


def _check_figures(spec: StudySpec) -> None:
    columns = spec.main_columns() or (spec.ablation.columns if spec.ablation else ())
    for figure in spec.figures:
        if figure.kind == "ablation" and spec.ablation is None:
            raise InputError(
                "an ablation figure needs to know what was varied",
                where=f"figures, {figure.name}",
                next_step="add `ablation: {key: ..., values: [...]}` to the study",
            )
        if figure.kind in ("bars", "ablation") and not columns and not (figure.protocol and figure.metric):
            raise InputError(
                f"the figure {figure.name!r} does not say which number it shows",
                where=f"figures, {figure.name}",
                next_step="give it `protocol` and `metric`",
            )


def _explained(error: pydantic.ValidationError) -> InputError:
    first = error.errors()[0]
    where = _path(first["loc"])
    if first["type"] == "extra_forbidden":
        return unknown_name("key", str(first["loc"][-1]), _keys_at(first["loc"][:-1]), where)
    return InputError(f"{first['msg']}: {first['input']!r}", where, next_step="correct this key of the study")


def _path(location: Sequence[int | str]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _keys_at(location: Sequence[int | str]) -> list[str]:
    models: dict[str, type[_Spec]] = {"tables": TableSpec, "figures": FigureSpec, "ablation": AblationSpec}
    names = [part for part in location if isinstance(part, str)]
    model = models[names[0]]
    for name in names[1:]:
        if name == "columns":
            model = ColumnSpec
        elif name == "quoted":
            model = AblationQuoted if model is AblationSpec else QuotedColumns
    return list(model.model_fields)
