"""From a recipe to a method and its view policies, checked before any work starts."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from twinbench.data.augment import ViewPolicy
from twinbench.encoders.backbones import build_backbone
from twinbench.foundation.errors import InputError, unknown_name
from twinbench.foundation.models import explain_validation
from twinbench.pretraining.method import Method, MethodOptions, method_class, method_names
from twinbench.pretraining.recipe import Recipe

_VIEW = TypeAdapter(ViewPolicy)


def method_options(recipe: Recipe) -> MethodOptions:
    """The method's own options, validated; raises InputError for an unknown key or a bad value."""
    options = method_class(recipe.method).Options
    try:
        return options(**recipe.options)
    except ValidationError as error:
        raise explain_validation(error, options, f"options of {recipe.method}") from error


def view_policies(recipe: Recipe, image_size: int) -> tuple[ViewPolicy, ...]:
    """The views of a run: the method's defaults, changed or replaced by the recipe's ``views``.

    A mapping changes the named fields of every default view; a list gives the changes view by view and may
    add views beyond the defaults (multi-crop), which then start from the last default.
    """
    defaults = method_class(recipe.method).default_views(image_size)
    if recipe.views is None:
        return defaults
    if isinstance(recipe.views, dict):
        return tuple(_changed(policy, recipe.views) for policy in defaults)
    padded = [defaults[min(i, len(defaults) - 1)] for i in range(len(recipe.views))]
    return tuple(_changed(policy, changes) for policy, changes in zip(padded, recipe.views, strict=True))


def _changed(policy: ViewPolicy, changes: dict[str, Any]) -> ViewPolicy:
    valid = [f.name for f in fields(policy)]
    for key in changes:
        if key not in valid:
            raise unknown_name("view key", key, valid, where="views")
    try:
        return _VIEW.validate_python({**asdict(policy), **changes})
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"bad value for view key {'.'.join(map(str, first['loc']))!r}: {first['msg']} (got {first['input']!r})",
            where="views",
            next_step="correct it",
        ) from error


def build_method(recipe: Recipe) -> Method:
    """The method of a recipe with freshly initialised weights, the same for the same seed."""
    options = method_options(recipe)
    torch.manual_seed(recipe.seed)
    spec = recipe.backbone
    backbone = build_backbone(spec.name, spec.width, spec.stem, spec.zero_init)
    return method_class(recipe.method)(backbone, options)


def resolve(recipe: Recipe, image_size: int, fingerprint: str) -> Recipe:
    """The recipe with every default written out, so that its hash covers everything that changes the numbers."""
    policies = view_policies(recipe, image_size)
    return recipe.model_copy(
        update={
            "image_size": image_size,
            "image_set_fingerprint": fingerprint,
            "options": method_options(recipe).model_dump(mode="json"),
            "views": [asdict(policy) for policy in policies],
        }
    )


def check_accumulation(recipe: Recipe, method: Method) -> None:
    """Raise InputError if a recipe wants micro-batches of a method whose loss they would change."""
    if recipe.accumulate > 1 and not method.accumulates:
        able = [name for name in method_names() if method_class(name).accumulates]
        raise InputError(
            f"the loss of {recipe.method} compares the images of a batch with each other: micro-batches would "
            "change it",
            where=f"accumulate={recipe.accumulate}",
            next_step=f"set accumulate=1 and use more devices; micro-batches are for {', '.join(able)}",
        )
