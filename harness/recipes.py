"""Recipes on disk: find, read, override and hash them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from twinbench.data.validation import VAL_OF
from twinbench.foundation.documents import from_yaml
from twinbench.foundation.errors import InputError, RunFailure, unknown_name
from twinbench.foundation.files import read_document
from twinbench.foundation.models import explain_validation
from twinbench.harness.source import Source
from twinbench.pretraining.build import resolve
from twinbench.pretraining.recipe import Recipe

NUMERICS_VERSION = 2
"""Part of every recipe hash. Raise it when a change to the code changes what a recipe computes.

Another order of the same sums is no such change: another processor or version of torch rounds differently too.
"""

_ADDED_OPTIONS: dict[str, dict[str, Any]] = {
    "simclr": {"loss_scale": 1.0},
    "barlow_twins": {
        "invariance": 1.0,
        "projector_norm": True,
        "normalise": "batch",
        "temperature": None,
        "predictor": [],
        "stop_gradient": False,
    },
}
"""Options that methods got after recipes had been hashed, with the values that reproduce the numbers from before."""

SEARCH_FILE = "search.yaml"
"""Beside the recipes of a folder: what `twinbench tune` searches (`harness.search`)."""

CHOSEN_ELSEWHERE = {
    "method": "name the method on the command line, or with --methods",
    "image_set": "choose the image set with --image-set, or in the study",
    "image_set_fingerprint": "it is computed from the images",
    "image_size": "views.size sets the size of the views; the images keep theirs",
    "seed": "use --seed, or --seeds in a study",
    "tuning": "it is written by twinbench tune",
    "cost": "it says what a publication measured",
}
"""Keys of a recipe that neither --set nor a search changes, each with what to do instead."""


def recipe_folder_names() -> list[str]:
    """The folders of ``recipes/``: an image set's name, or a variant of it such as ``cifar10-cpu``."""
    return sorted(
        entry.name
        for entry in files("twinbench.recipes").iterdir()
        if entry.is_dir() and _recipe_files(entry)
    )


def recipe_names() -> list[str]:
    """Every recipe as ``folder/method``."""
    return sorted(
        f"{folder}/{entry.name.removesuffix('.yaml')}"
        for folder in recipe_folder_names()
        for entry in _recipe_files(files("twinbench.recipes") / folder)
    )


def _recipe_files(folder: Path | Traversable) -> list[Path | Traversable]:
    return [e for e in folder.iterdir() if e.name.endswith(".yaml") and e.name != SEARCH_FILE]


def read_yaml(path: Path | Traversable) -> dict[str, Any]:
    """The mapping in a YAML file; raises InputError naming file and line where it is not one."""
    try:
        content = from_yaml(
            (read_document(path) if isinstance(path, Path) else path.read_bytes()).decode("utf-8")
        )
    except ValueError as error:
        raise InputError(f"not valid YAML: {error}", where=path, next_step="correct the file") from error
    except OSError as error:
        raise RunFailure(
            f"cannot read: {error.strerror}", path, next_step="make the file readable"
        ) from error
    if not isinstance(content, dict):
        raise InputError("expected 'key: value' lines at the top level", where=path)
    return content


def load_recipe(folder: str, method: str, image_set: str, overrides: dict[str, Any], seed: int = 0) -> Recipe:
    """Read ``<folder>/<method>.yaml`` and apply overrides given as dotted keys.

    ``folder`` is one of ``recipes/`` or the path of a folder of your own; empty, it is the image set's own.

    A tuned recipe stays tuned (its key ``tuning``) only if no override changes a value of it. Trials chose all values
    together: with another batch, backbone or precision, or after fewer epochs, others might have won. So
    ``epochs=2`` and ``precision=fp32`` make it a recipe that no trials chose, and a study that varies a key has one
    tuned row, that of the file's own value. Seed and images are not values of the file: whoever runs the recipe
    chooses them, and it stays tuned.

    Raises InputError for an unknown folder, method or key, with the nearest valid one, and for a file that holds the
    recipe of another method.
    """
    place = recipe_folder(folder or own_recipes(image_set))
    source = place / f"{method}.yaml"
    if not source.is_file():
        valid = [entry.name.removesuffix(".yaml") for entry in _recipe_files(place)]
        raise unknown_name("recipe", method, valid, where=place)
    in_file = {**read_yaml(source), "image_set": image_set, "seed": seed}
    document = dict(in_file)
    if document.get("method", method) != method:
        raise InputError(
            f"the recipe of {method} says method: {document['method']}",
            where=source,
            next_step="correct its key 'method', or name the file after its method",
        )
    for key, value in overrides.items():
        if key.partition(".")[0] in CHOSEN_ELSEWHERE:
            raise InputError(
                f"{key!r} is not a recipe key to change",
                where="--set, or overrides in a study",
                next_step=CHOSEN_ELSEWHERE[key.partition(".")[0]],
            )
        set_dotted(document, key, value)
    try:
        recipe = Recipe(**document)
    except ValidationError as error:
        raise explain_validation(
            error, Recipe, f"{source.name} in recipes/{folder}, with --set applied"
        ) from error
    if overrides and recipe.tuning and not _is_recipe(in_file, recipe):
        return recipe.model_copy(update={"tuning": None})
    return recipe


def _is_recipe(document: dict[str, Any], recipe: Recipe) -> bool:
    """Whether a document says the same as a recipe, with all defaults; one with a mistake in it says nothing.

    Defaults of views depend on the size of the images, which is not known here: what is the same for small and for
    large ones is the same.
    """
    try:
        written = Recipe(**document)
        return all(
            identity(resolve(written, size, "")) == identity(resolve(recipe, size, "")) for size in (32, 224)
        )
    except (ValidationError, InputError):
        return False


def own_recipes(image_set_name: str) -> str:
    """The recipe folder of an image set; a set without one of its own uses that of any folder of images."""
    name = image_set_name.removeprefix(VAL_OF).partition(":")[0]
    return name if name in recipe_folder_names() else "folder"


def recipe_folder(folder: str) -> Path | Traversable:
    """A folder of ``recipes/`` by name, or one of your own by its path; raises InputError if it is neither."""
    if folder in recipe_folder_names():
        return files("twinbench.recipes") / folder
    if Path(folder).is_dir():
        return Path(folder)
    raise unknown_name(
        "recipe folder", folder, recipe_folder_names(), where="recipes/ (or give a folder's path)"
    )


def set_dotted(document: dict[str, Any], dotted: str, value: Any) -> None:
    """Set ``a.b.c`` in nested mappings, creating the ones on the way; in a list of mappings, in each of them.

    Raises InputError where something else is on the way.
    """
    part, _, rest = dotted.partition(".")
    if not rest:
        document[part] = value
        return
    inner = document.get(part)
    if isinstance(inner, list) and inner and all(isinstance(each, dict) for each in inner):
        document[part] = [dict(each) for each in inner]
        for each in document[part]:
            set_dotted(each, rest, value)
    elif inner is None or isinstance(inner, dict):
        document[part] = dict(inner or {})
        set_dotted(document[part], rest, value)
    else:
        raise InputError(
            f"cannot set {rest!r} below {part!r}, which is {inner!r} in the recipe",
            where="--set, or overrides in a study",
            next_step=f"replace {part!r} as a whole, e.g. --set '{part}=...'",
        )


def overlap(one: str, other: str) -> bool:
    """Whether setting one dotted key changes the other's value."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """``["optimizer.base_lr=0.1"]`` as a mapping; values are read as YAML."""
    parsed = {}
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        if not separator or not key:
            raise InputError(
                f"cannot read --set {assignment!r}", next_step="write it as key=value, e.g. --set epochs=5"
            )
        parsed[key] = read_value(value)
    return parsed


def read_value(text: str) -> Any:
    """A value as YAML reads it, but ``1e-3``, which YAML 1.1 takes for text, is the number a person means."""
    try:
        value = from_yaml(text)
    except ValueError as error:
        raise InputError(
            f"cannot read the value {text!r}",
            where="--set",
            next_step="quote it, e.g. --set 'views={blur: 0.5}'",
        ) from error
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def identity(source: Source) -> dict[str, Any]:
    """What is in a resolved recipe, or in what is imported, as it has always been written.

    A key that came later is left out where its value changes nothing, so that numbers from before keep their hash.
    """
    document: dict[str, Any] = source.model_dump(mode="json", exclude={"tuning", "cost"})
    views = document.get("views")
    for view in views if isinstance(views, list) else ():
        # Until there was a second kernel, every blur had this one; without a blur there is none.
        if not view.get("blur") or view.get("blur_kernel") == "truncated":
            view.pop("blur_kernel", None)
    for option, before in _ADDED_OPTIONS.get(source.method, {}).items():
        if document.get("options", {}).get(option, before) == before:
            document.get("options", {}).pop(option, None)
    return document


def recipe_hash(source: Source) -> str:
    """Twelve hex digits over everything in a resolved recipe, or in what is imported, that changes the numbers.

    The path of a folder set is left out, for one folder has many: its fingerprint says what is in it.
    """
    document = identity(source)
    document["image_set"] = source.image_set.partition(":")[0]
    document["numerics_version"] = NUMERICS_VERSION
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:12]
