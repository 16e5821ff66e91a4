"""What `twinbench tune` searches: the space that a recipe folder declares, and the points tried in it.

``search.yaml`` of a recipe folder has the dimensions that all methods share (``common``) and those of each method
(``methods``), which may give a common one another range. A dimension is drawn on a logarithmic (``log``) or linear
(``linear``) scale between two ends, or is one of several values (``choice``); ``set`` names the recipe key that gets
it, or maps keys to values in which ``x``, ``1-x``, ``x/2`` and ``x/4`` stand for what was drawn.

The points are a scrambled Sobol sequence: a function of seed, method and index alone, so that more trials begin with
those that were done before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import ValidationError, model_validator

from twinbench.data.augment import ViewPolicy
from twinbench.foundation.errors import InputError, nearest_name, unknown_name
from twinbench.foundation.models import Strict, explain_validation
from twinbench.foundation.randomness import seed_for
from twinbench.harness.recipes import SEARCH_FILE, read_yaml, recipe_folder, recipe_folder_names
from twinbench.pretraining.method import method_class, method_names
from twinbench.pretraining.recipe import OptimizerSpec, ScheduleSpec

Number = int | float

LOG_COLUMNS = ("rank", "trial", "score", "status", "reason", "seconds", "seed", "recipe_hash", "commit")
"""What a log says of each trial beside its values and its accuracies (`harness.trials`)."""

_DIGITS = 3
"""Significant digits of a value that is drawn: what the log says is what was used."""

_FORMULAS: dict[str, Callable[[Number], Number]] = {
    "x": lambda x: x,
    "1-x": lambda x: float(f"{1 - x:.10g}"),
    "x/2": lambda x: x // 2 if isinstance(x, int) else float(f"{x / 2:.10g}"),
    "x/4": lambda x: x // 4 if isinstance(x, int) else float(f"{x / 4:.10g}"),
}


class Dimension(Strict):
    """One number that is searched, and the recipe keys that it sets; exactly one of the three scales is given."""

    log: tuple[float, float] | None = None
    linear: tuple[float, float] | None = None
    choice: tuple[Number, ...] | None = None
    set: str | dict[str, Any]

    @model_validator(mode="after")
    def _is_sound(self) -> Dimension:
        given = [scale for scale in (self.log, self.linear, self.choice) if scale is not None]
        if len(given) != 1:
            raise ValueError("give one of log, linear and choice")
        if self.choice is None and not given[0][0] < given[0][1]:
            raise ValueError("the lower end comes first")
        if self.log is not None and self.log[0] <= 0:
            raise ValueError("both ends of a logarithmic scale are positive")
        if self.choice is not None and len(self.choice) < 2:
            raise ValueError("a choice has two values or more")
        for formula in (part for template in self.templates.values() for part in _texts(template)):
            if formula not in _FORMULAS:
                raise ValueError(f"{formula!r} is none of {', '.join(_FORMULAS)}")
        return self

    @property
    def templates(self) -> dict[str, Any]:
        """What each recipe key is set to, in terms of x."""
        return {self.set: "x"} if isinstance(self.set, str) else self.set

    def at(self, place: float) -> Number:
        """The value at a place from 0 (the lower end) to 1, in three significant digits."""
        if self.choice is not None:
            return self.choice[min(int(place * len(self.choice)), len(self.choice) - 1)]
        if self.log is not None:
            low, high = self.log
            value = low * (high / low) ** place
        else:
            low, high = cast("tuple[float, float]", self.linear)
            value = low + (high - low) * place
        return min(max(float(f"{value:.{_DIGITS}g}"), low), high)

    def settings(self, value: Number) -> dict[str, Any]:
        """The recipe keys, dotted, and what they are for a value."""
        return {key: _filled(template, value) for key, template in self.templates.items()}

    def __str__(self) -> str:
        if self.choice is not None:
            return f"one of {', '.join(map(str, self.choice))}"
        low, high = self.log or cast("tuple[float, float]", self.linear)
        return f"{low:g} to {high:g}" + (" (log)" if self.log else "")


Space = dict[str, Dimension]
"""The dimensions of one method, by name."""


class Search(Strict):
    """The dimensions that all methods share, and those of each method, which go before common ones of their name."""

    common: dict[str, Dimension]
    methods: dict[str, dict[str, Dimension]]


class SearchFile(Strict):
    """The content of search.yaml."""

    search: Search


def load_search(folder: str) -> dict[str, Space]:
    """The search space of every method that the folder's search.yaml has a part for.

    Raises InputError for a folder without one, for an unknown method, for a key that no recipe of a method has or that
    is part of the budget, and for a dimension with the name of a column of the log.
    """
    file = recipe_folder(folder) / SEARCH_FILE
    if not file.is_file():
        able = [name for name in recipe_folder_names() if (recipe_folder(name) / SEARCH_FILE).is_file()]
        raise InputError(
            f"the recipe folder {folder} declares nothing to search",
            where=Path(str(file)),
            next_step=f"write that file, or use a recipe folder that has one: {', '.join(able)}",
            option="recipe",
        )
    try:
        search = SearchFile.model_validate(read_yaml(file)).search
    except ValidationError as error:
        raise explain_validation(error, SearchFile, file) from error
    for method in search.methods:
        if method not in method_names():
            raise unknown_name("method", method, method_names(), where=f"{file}, search.methods")
    spaces = {}
    for method, own in search.methods.items():
        spaces[method] = {**search.common, **own}
        _check_keys(spaces[method], method, str(file))
    return spaces


def points(space: Space, method: str, seed: int, trials: int) -> list[dict[str, Number]]:
    """The values of each trial by dimension: the first ``trials`` points of the method's sequence."""
    from scipy.stats import qmc  # half a second of imports that only a search needs

    generator = np.random.default_rng(seed_for(seed, f"trials of {method}", 0))
    sobol = qmc.Sobol(len(space), scramble=True, seed=generator)
    places = sobol.random_base2(math.ceil(math.log2(trials)))[:trials]
    return [
        {name: dimension.at(place) for (name, dimension), place in zip(space.items(), row, strict=True)}
        for row in places.tolist()
    ]


def settings(space: Space, values: dict[str, Number]) -> dict[str, Any]:
    """The recipe keys, dotted, that the values of a trial set."""
    return {key: setting for name, x in values.items() for key, setting in space[name].settings(x).items()}


def _filled(template: Any, value: Number) -> Any:
    if isinstance(template, list):
        return [_filled(part, value) for part in template]
    return _FORMULAS[template](value) if isinstance(template, str) else template


def _texts(template: Any) -> Iterator[str]:
    for part in template if isinstance(template, list) else [template]:
        if isinstance(part, list):
            yield from _texts(part)
        elif isinstance(part, str):
            yield part


def _check_keys(space: Space, method: str, file: str) -> None:
    """Raise InputError for a key that may not be searched or that two dimensions set, and for a name that is taken."""
    valid, seen = _searchable_keys(method), set()
    for name, dimension in space.items():
        where = f"{file}, {name} (for {method})"
        if name in LOG_COLUMNS or "/" in name:  # names of protocols have a slash
            raise InputError(
                f"no dimension can be called {name!r}: a column of the log may have that name",
                where=where,
                next_step="give it another name",
            )
        for key in dimension.templates:
            if key not in valid:
                raise InputError(
                    f"{key!r} is no recipe key to search",
                    where=where,
                    nearest=nearest_name(key, valid),
                    next_step=f"use one of: {', '.join(valid)}",
                )
            if key in seen:
                raise InputError(f"two dimensions set {key!r}", where=where, next_step="leave it to one")
            seen.add(key)


def _searchable_keys(method: str) -> list[str]:
    """The dotted keys of a method's recipes that may be searched.

    The budget may not, or chances were unequal: epochs, batch size, backbone, precision and the size of views.
    """
    parts = {
        "optimizer": OptimizerSpec.model_fields,
        "schedule": ScheduleSpec.model_fields,
        "options": method_class(method).Options.model_fields,
        "views": [field.name for field in fields(ViewPolicy) if field.name != "size"],
    }
    return sorted(f"{part}.{key}" for part, keys in parts.items() for key in keys)
