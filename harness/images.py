"""The image sets that the jobs of a plan work on, each read when first needed, and those that outcomes are of."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from twinbench.data.catalogue import read_image_set
from twinbench.data.folders import Corrupt
from twinbench.data.image_sets import ImageSet, Reading
from twinbench.foundation.documents import from_json
from twinbench.foundation.errors import InputError
from twinbench.foundation.outcomes import Outcomes


@dataclass(frozen=True)
class ImageChoice:
    """An image set by name, and how it is read: splits cut to so many images, and what becomes of corrupt ones."""

    name: str
    limit: tuple[tuple[str, int], ...] = ()
    corrupt: Corrupt = "refuse"

    @staticmethod
    def of(name: str, limit: Mapping[str, int], corrupt: Corrupt) -> ImageChoice:
        """The choice with a limit as recipes and studies write it."""
        return ImageChoice(name, tuple(sorted(limit.items())), corrupt)

    def whole(self, name: str) -> ImageChoice:
        """Another image set, read in the same way but not cut; this one for its own name or none."""
        return self if name in ("", self.name) else ImageChoice(name, (), self.corrupt)


class Images:
    """Image sets by choice. ``data_root`` is the folder that holds those which are not embedded."""

    def __init__(self, data_root: Path | None, quiet: bool = False) -> None:
        self.data_root = data_root
        self._quiet = quiet
        self._read: dict[ImageChoice, ImageSet] = {}

    def __getitem__(self, choice: ImageChoice) -> ImageSet:
        """The image set; raises InputError as `load_image_set` does.

        A quiet one, of a worker, does not repeat what its parent has said is odd about the list of images.
        """
        if choice not in self._read:
            reading = Reading(limit=dict(choice.limit), corrupt=choice.corrupt)
            if self._quiet:
                logging.disable(logging.WARNING)
            try:
                self._read[choice] = read_image_set(choice.name, self.data_root, reading)
            finally:
                logging.disable(logging.NOTSET)
        return self._read[choice]


class MeasuredImages:
    """The image sets that outcomes are of, each read once, and as it was read then."""

    def __init__(self, data_root: Path | None) -> None:
        self._data_root = data_root
        self._read: dict[tuple[str, str], ImageSet] = {}

    def of(self, outcomes: Outcomes, name: str) -> ImageSet:
        """The set that outcomes are of; ``name`` is what a record calls it.

        Outcomes of earlier versions tell neither name nor reading: a set that was cut, or of which images were skipped,
        is then not found again. Raises InputError where the set is not here, or the one that is here is another.
        """
        about = outcomes.about
        fingerprint = about.get("image_set_fingerprint", "")
        # a report on a store calls versions of a set that share a name by their fingerprints, too
        called = about.get("image_set") or name.removesuffix(f" ({fingerprint[:8]})")
        found = self._reread(called, about.get("reading", "{}"))
        if found.fingerprint != fingerprint:
            perhaps = "" if "reading" in about else " (or it was cut, which earlier versions do not tell)"
            raise InputError(
                f"{called} is not what was measured on: its fingerprint is another{perhaps}",
                where=self._data_root or called,
                next_step="name the folder of the image sets that were measured on",
                option="data-root",
            )
        return found

    def _reread(self, name: str, reading: str) -> ImageSet:
        if (name, reading) not in self._read:
            try:
                kept = Reading(**from_json(reading))
            except (ValueError, TypeError, AttributeError) as error:
                raise InputError(
                    f"how {name} was read cannot be understood: {error}",
                    where=reading,
                    next_step="evaluate the encoder again",
                ) from error
            self._read[name, reading] = read_image_set(name, self._data_root, kept)
        return self._read[name, reading]
