"""The part of a study that a report needs: its tables, its figures and what it varies."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from twinbench.foundation.models import Strict


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


class ColumnSpec(Strict):
    """A measured column: one metric of one protocol, on every image set that it was measured on."""

    protocol: str
    metric: str
    label: str = ""

    @property
    def heading(self) -> str:
        """The label, or protocol and metric where the study gives none."""
        return self.label or f"{self.protocol} {self.metric}"


class QuotedColumns(Strict):
    """Published columns of a table: file, {published column: label}, row filter {column: allowed values}."""

    file: str
    columns: dict[str, str] = Field(min_length=1)
    where: dict[str, Texts] = Field(default_factory=dict)


class TableSpec(Strict):
    """One table: a row per method, the measured columns, then the quoted ones."""

    name: FileName
    title: str = ""
    columns: tuple[ColumnSpec, ...] = Field(min_length=1)
    quoted: QuotedColumns | None = None


class AblationQuoted(Strict):
    """A published ablation: file, its x and y columns, row filter, {our value: x} where the paper says it in words."""

    file: str
    x: str
    y: str
    where: dict[str, Texts] = Field(default_factory=dict)
    values: dict[Text, Text] = Field(default_factory=dict)


class AblationSpec(Strict):
    """What is varied: the recipe key and the values in order; the columns are those of the tables by default."""

    key: str
    label: str = ""
    values: tuple[Text, ...] = Field(min_length=1)
    log_scale: bool = False
    columns: tuple[ColumnSpec, ...] = ()
    quoted: AblationQuoted | None = None

    @property
    def heading(self) -> str:
        """The label, or the key where the study gives none."""
        return self.label or self.key


class FigureSpec(Strict):
    """One figure, called after its kind unless it has a name; ``protocol`` and ``metric`` are for bars and ablation."""

    kind: str
    name: FileName = ""
    title: str = ""
    protocol: str = ""
    metric: str = ""

    @model_validator(mode="before")
    @classmethod
    def _called_after_its_kind(cls, given: Any) -> Any:
        return {"name": given["kind"], **given} if isinstance(given, dict) and "kind" in given else given


class StudySpec(Strict):
    """What a report needs of a study. `check.check_study` tells whether its parts fit each other."""

    title: str
    description: str
    tables: tuple[TableSpec, ...] = ()
    figures: tuple[FigureSpec, ...] = ()
    ablation: AblationSpec | None = None

    def main_columns(self) -> tuple[ColumnSpec, ...]:
        """Every measured column of the study's tables, each protocol and metric once."""
        columns: dict[tuple[str, str], ColumnSpec] = {}
        for column in (column for table in self.tables for column in table.columns):
            columns.setdefault((column.protocol, column.metric), column)
        return tuple(columns.values())

    def columns(self) -> tuple[ColumnSpec, ...]:
        """Every measured column, those of the ablation as well."""
        return (*self.main_columns(), *(self.ablation.columns if self.ablation else ()))
