"""Strict models of what users write in YAML, and their errors in the form of ours."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from twinbench.foundation.errors import InputError, nearest_name


class Strict(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def explain_validation(error: ValidationError, model: type[BaseModel], where: object) -> InputError:
    """A pydantic error as one of ours: the key, what is wrong with it, and the nearest valid key."""
    first = error.errors()[0]
    location = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return InputError(
            f"bad value for {location!r}: {first['msg']} (got {first.get('input')!r})",
            where=where,
            next_step=f"correct {location!r}",
        )
    valid = _keys_at(model, [str(part) for part in first["loc"][:-1]])
    return InputError(
        f"unknown key {location!r}",
        where=where,
        nearest=nearest_name(str(first["loc"][-1]), valid),
        next_step=f"use one of: {', '.join(sorted(valid))}",
    )


def _keys_at(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        nested = [t for t in (annotation, *getattr(annotation, "__args__", ())) if _is_model(t)]
        if not nested:
            break
        model = nested[0]
    return list(model.model_fields)


def _is_model(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, BaseModel)
