"""The part of a study that a report needs: its tables with what they vary, and its figures, which are views of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from twinbench.foundation.models import Strict
from twinbench.foundation.texts import legible


def _file_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError("becomes a file name: use letters, digits, '-', '_' and '.'")
    return name


def _as_text(value: object) -> str:
    return legible(str(value))


def _as_texts(value: object) -> tuple[str, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(legible(str(item)) for item in items)


MOST_ROWS = 10_000
"""Of one block: a few axes with some values each are soon more than anybody can train."""
MOST_SEEDS = 1000

FileName = Annotated[str, AfterValidator(_file_name)]
Text = Annotated[str, BeforeValidator(_as_text)]
Shown = Annotated[str, AfterValidator(legible)]
"""A text of which what does not print is written out, as in records."""
Texts = Annotated[tuple[str, ...], BeforeValidator(_as_texts)]


class ColumnSpec(Strict):
    """A measured column: one metric of one protocol, on the images trained on or on another ``image_set``."""

    protocol: str
    metric: str
    label: Shown = ""
    image_set: str = ""

    @property
    def heading(self) -> str:
        """The label, or protocol and metric where the study gives none."""
        return self.label or f"{self.protocol} {self.metric}"


class ValueSpec(Strict):
    """A value of what is varied: its label, the recipe keys it sets, and what a published file calls it.

    ``seeds`` is for the value that other tables have with more seeds than this one: the most of those of a row count.
    """

    label: Text
    set: dict[str, Any] = Field(default_factory=dict)
    published: Text = ""
    seeds: int | None = Field(None, ge=1, le=MOST_SEEDS)


class AxisSpec(Strict):
    """What a table varies. A plain value stands for ``{label: value, set: {key: value}}``."""

    label: Shown
    key: str = ""
    values: tuple[ValueSpec, ...] = Field(min_length=1)
    log_scale: bool = False

    @model_validator(mode="before")
    @classmethod
    def _plain_values(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("values"), list | tuple):
            return given
        key = given.get("key", "")
        if not key and not all(isinstance(value, dict | ValueSpec) for value in given["values"]):
            raise ValueError("plain values need a `key`, the recipe key that they are values of")
        values = [
            value if isinstance(value, dict | ValueSpec) else {"label": value, "set": {key: value}}
            for value in given["values"]
        ]
        return {"label": key, **given, "values": values}


class QuotedColumns(Strict):
    """Published columns of a table: file, {published column: label}, row filter {column: allowed values}.

    ``match`` says which published column tells the values of an axis apart: {published column: label of the axis}.
    A row in which that axis is not varied has no quotation. ``compare`` says with which measured column the order of a
    published one is compared: {published column: heading}. By default it is the one with the same label or metric.
    """

    file: str
    columns: dict[str, Shown] = Field(min_length=1)
    where: dict[str, Texts] = Field(default_factory=dict)
    match: dict[str, Shown] = Field(default_factory=dict)
    compare: dict[str, Shown] = Field(default_factory=dict)


@dataclass(frozen=True)
class RowKey:
    """A declared row: the method, and by the label of each axis the value that the row has there."""

    method: str
    values: Mapping[str, ValueSpec]

    @property
    def variant(self) -> str:
        """How records call what the row varies; empty where it varies nothing."""
        return ", ".join(value.label for value in self.values.values())

    @property
    def seeds(self) -> int | None:
        """The most seeds that one of its values asks for, if any does."""
        return max((value.seeds for value in self.values.values() if value.seeds), default=None)


class RowsSpec(Strict):
    """Rows of a table: every method with each combination of what is varied; as it is if nothing is."""

    methods: Texts = Field(min_length=1)
    vary: tuple[AxisSpec, ...] = ()

    @model_validator(mode="after")
    def _are_not_too_many(self) -> RowsSpec:
        rows = len(self.methods) * prod(len(axis.values) for axis in self.vary)
        if rows > MOST_ROWS:
            raise ValueError(f"its axes make {rows} rows, and a table has at most {MOST_ROWS}")
        return self

    def row_keys(self) -> list[RowKey]:
        """Every row, in order."""
        labels = [axis.label for axis in self.vary]
        return [
            RowKey(method, dict(zip(labels, values, strict=True)))
            for method in self.methods
            for values in product(*(axis.values for axis in self.vary))
        ]


class TableSpec(Strict):
    """One table: its rows, the measured columns, then the quoted ones; ``note`` stands below it.

    Without ``rows`` there is a row for whatever there are records of.
    """

    name: FileName
    title: Shown = ""
    rows: tuple[RowsSpec, ...] = ()
    columns: tuple[ColumnSpec, ...] = Field(min_length=1)
    quoted: QuotedColumns | None = None
    note: Shown = ""

    @property
    def heading(self) -> str:
        """The title, or the name where the study gives none."""
        return self.title or self.name

    @property
    def axes(self) -> dict[str, AxisSpec]:
        """What is varied, by label; axes that share a label are the first of them with the values of all."""
        found: dict[str, AxisSpec] = {}
        for axis in (axis for block in self.rows for axis in block.vary):
            first = found.setdefault(axis.label, axis)
            known = {value.label for value in first.values}
            more = tuple(value for value in axis.values if value.label not in known)
            found[axis.label] = first.model_copy(update={"values": (*first.values, *more)})
        return found

    def row_keys(self) -> list[RowKey]:
        """Every declared row, in order."""
        return [row for block in self.rows for row in block.row_keys()]

    def varied_keys(self) -> set[str]:
        """The recipe keys that some row sets."""
        return {key for row in self.row_keys() for value in row.values.values() for key in value.set}


class FigureSpec(Strict):
    """One figure, a view of a table: of its first one unless ``table`` names another.

    It is called after its kind unless it has a name. ``column`` is the heading of the measured column that bars,
    ablations and scatters show, the first unless given. A scatter shows it against each of the columns ``against``,
    which are those of the same table unless ``against_table`` names another.
    """

    kind: str
    name: FileName = ""
    title: Shown = ""
    table: str = ""
    column: str = ""
    against: Texts = ()
    against_table: str = ""

    @property
    def other_table(self) -> str:
        """The name of the table that it is drawn against: its own unless it names another."""
        return self.against_table or self.table

    @model_validator(mode="before")
    @classmethod
    def _called_after_its_kind(cls, given: Any) -> Any:
        return {"name": given["kind"], **given} if isinstance(given, dict) and "kind" in given else given


class StudySpec(Strict):
    """What a report needs of a study. `check.check_study` tells whether its parts fit each other.

    ``uncertainty`` is what stands after the ±: the standard deviation over seeds (of one seed, the standard error over
    test items), or half the 95 % interval of the mean.
    """

    title: Shown
    description: Shown
    uncertainty: Literal["deviation", "interval"] = "deviation"
    tables: tuple[TableSpec, ...] = ()
    figures: tuple[FigureSpec, ...] = ()

    def table_of(self, figure: FigureSpec) -> TableSpec:
        """The table that a figure is a view of."""
        return self._table(figure.table)

    def other_table_of(self, figure: FigureSpec) -> TableSpec:
        """The table that a figure is drawn against."""
        return self._table(figure.other_table)

    def _table(self, name: str) -> TableSpec:
        return next((table for table in self.tables if table.name == name), self.tables[0])
