"""What a study would take where its images are not here: GPU-hours by the times that were published.

Nothing is read but recipes and the published sizes of the image sets (`data.catalogue.KNOWN_SETS`), so the answer comes
at once. Evaluations are scaled from the published time of the pretraining: both in forward passes of an image, a
trained image counting three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from twinbench.data.catalogue import KNOWN_SETS, KnownSet
from twinbench.data.image_sets import ImageSet, val_count
from twinbench.downstream.protocol import protocol
from twinbench.foundation.errors import InputError
from twinbench.harness.plan import table_recipes
from twinbench.harness.recipes import recipe_hash
from twinbench.harness.studies import Study, StudyTable
from twinbench.pretraining.recipe import BackboneSpec, CostSpec, Recipe

_SIZE = 224
_TRAINED, _VIEWS = 3.0, 2  # passes of a trained image; views of most methods


@dataclass(frozen=True)
class _Count:
    """A split of which only the number of images is known."""

    count: int

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True)
class _Sizes:
    """An image set of which only the sizes are known: as much of one as `Protocol.forward_passes` asks for."""

    known: KnownSet
    image_size: int = _SIZE

    def split(self, name: str) -> _Count:
        held_out = val_count(self.known.train)
        return _Count({"train": self.known.train - held_out, "val": held_out, "test": self.known.test}[name])

    def detection(self, name: str) -> _Count:
        return _Count(self.known.train if name == "train" else self.known.test)


@dataclass
class _Totals:
    """Hours and counts, of one table or all."""

    trainings: int = 0
    evaluations: int = 0
    hours: float = 0.0
    unknown: int = 0

    def add(self, hours: float | None) -> None:
        self.hours += hours or 0.0
        self.unknown += hours is None


def outline_lines(study: Study, overrides: dict[str, Any]) -> Iterator[str]:
    """For every table what it takes beyond the tables before it; then all together, and where the times are from."""
    seen: set[tuple[str, ...]] = set()
    total, sources = _Totals(), dict[str, str]()
    yield f"{study.title}: an outline, as not all of its images are here"
    recipes = {
        table.name: [recipe for _, recipe in table_recipes(table, overrides)] for table in study.tables
    }
    # a network costs in an evaluation what it costs in a training, whoever made it
    costs: dict[BackboneSpec, CostSpec] = {}
    for recipe in (recipe for own in recipes.values() for recipe in own):
        if recipe.cost:
            costs.setdefault(recipe.backbone, recipe.cost)
    for table in study.tables:
        own = _Totals()
        for recipe in recipes[table.name]:
            known = recipe.cost or costs.get(recipe.backbone)
            _add(recipe.model_copy(update={"cost": known}), table, seen, own)
            if recipe.cost:
                sources[recipe.method] = f"{recipe.cost.gpu}, {recipe.cost.source}"
        for name in ("trainings", "evaluations", "hours", "unknown"):
            setattr(total, name, getattr(total, name) + getattr(own, name))
        yield f"{table.name}: {_words(own)}"
    yield f"together: {_words(total)}"
    yield "GPU-hours are those published of each method's pretraining, an evaluation by its number of forward passes:"
    yield from (f"  {method}: {source}" for method, source in sources.items())


def _add(recipe: Recipe, table: StudyTable, seen: set[tuple[str, ...]], own: _Totals) -> None:
    run = recipe_hash(recipe)
    if (run,) not in seen:
        seen.add((run,))
        own.trainings += 1
        own.add(_hours(recipe, partial(_pretraining_passes, recipe)) if recipe.epochs else 0.0)
    for name, image_set in table.measured:
        where = image_set or recipe.image_set
        if (run, name, where) not in seen:
            seen.add((run, name, where))
            own.evaluations += 1
            own.add(_hours(recipe, partial(_evaluation_passes, name, where)))


def _known(name: str) -> KnownSet:
    if name not in KNOWN_SETS:
        raise InputError(
            f"the size of {name} is not known without its images",
            where="--dry-run",
            next_step=f"use one of {', '.join(KNOWN_SETS)}",
        )
    return KNOWN_SETS[name]


def _pretraining_passes(recipe: Recipe) -> float:
    return _TRAINED * _VIEWS * recipe.epochs * _known(recipe.image_set).train


def _evaluation_passes(name: str, image_set: str) -> float:
    return protocol(name).forward_passes(cast(ImageSet, _Sizes(_known(image_set))))


def _hours(recipe: Recipe, count_passes: Callable[[], float]) -> float | None:
    """GPU-hours of so many forward passes through the recipe's network; None if no time of it is known.

    Passes are counted only then: what they are counted on may be an embedded set, whose size nobody published.
    """
    if recipe.cost is None:
        return None
    passes = count_passes()
    of_an_epoch = _TRAINED * _VIEWS * _known(recipe.image_set).train
    return recipe.cost.gpu_hours_per_epoch * passes / of_an_epoch


def _words(totals: _Totals) -> str:
    unknown = f", and {totals.unknown} jobs of unknown length" if totals.unknown else ""
    return f"{totals.trainings} trainings, {totals.evaluations} evaluations: {totals.hours:,.0f} GPU-hours{unknown}"
