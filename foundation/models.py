"""Strict models of what users write in YAML, and their errors in the form of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from twinbench.foundation.errors import InputError, nearest_name


class Strict(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# Pydantic's own words speak of Python's types; who writes YAML knows lists and keys.
_IN_WORDS = {
    "tuple_type": "a list is needed",
    "list_type": "a list is needed",
    "dict_type": "keys with values are needed",
    "model_type": "keys with values are needed",
    "too_short": "it needs at least one entry",
}


def explain_validation(error: ValidationError, model: type[BaseModel], where: object) -> InputError:
    """A pydantic error as one of ours: the key, what is wrong with it, and the nearest valid key.

    Of several mistakes an unknown key is told first: it may be why another key is missing.
    """
    mistakes = error.errors()
    mistake = next((m for m in mistakes if m["type"] == "extra_forbidden"), mistakes[0])
    key = _dotted(mistake["loc"])
    if mistake["type"] == "missing":
        return InputError(f"the key {key!r} is missing", where=where, next_step=f"add {key!r}")
    if mistake["type"] != "extra_forbidden":
        said = _IN_WORDS.get(mistake["type"], mistake["msg"].removeprefix("Value error, "))
        return InputError(
            f"bad value for {key!r}: {said} (got {mistake.get('input')!r})",
            where=where,
            next_step=f"correct {key!r}",
        )
    valid = _keys_at(model, mistake["loc"][:-1])
    return InputError(
        f"unknown key {key!r}",
        where=where,
        nearest=nearest_name(str(mistake["loc"][-1]), valid),
        next_step=f"use one of: {', '.join(sorted(valid))}",
    )


def _dotted(location: Sequence[int | str]) -> str:
    """``tables[0].columns[1].metric``: entries of a list are counted from 0."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _keys_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The keys of the model at a place inside ``model``."""
    for part in location:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        model = (field and _model_in(field.annotation)) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation such as ``tuple[Model, ...]`` or ``Model | None`` holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)
