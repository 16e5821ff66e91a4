"""The image sets that the jobs of a plan work on, each read when a job first needs it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from twinbench.data.catalogue import read_image_set
from twinbench.data.folders import Corrupt
from twinbench.data.image_sets import ImageSet, Reading


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
