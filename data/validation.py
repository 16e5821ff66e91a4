"""An image set to choose hyperparameters on: another set's validation images are its test split."""

from __future__ import annotations

import numpy as np

from twinbench.data.image_sets import ImageSet, Reading, held_out
from twinbench.foundation.errors import InputError

VAL_OF = "val-of:"
"""What the name of such a set begins with; the name of the other set follows."""


class ValidationAsTest(ImageSet):
    """The training images of ``base`` as ``train`` and ``val``, its validation images as ``test``.

    A tenth of the training images becomes ``val``, so that a protocol that chooses something for itself has images to
    choose on. The test images of ``base`` are never read. Name and fingerprint are its own: nothing that was measured
    on this set can be taken for a measurement on ``base``.

    Raises InputError if ``base`` does not fit in memory.
    """

    def __init__(self, base: ImageSet, reading: Reading) -> None:
        super().__init__(reading)
        if base.streamed:
            raise InputError(
                "these images are streamed, and a set to choose hyperparameters on is kept in memory",
                where=base.name,
                next_step="choose on a part of them, copied to a folder of its own",
            )
        self.name, self.classes, self.normalisation = f"{VAL_OF}{base.name}", base.classes, base.normalisation
        self.image_size = base.image_size
        self._base = base

    @property
    def content(self) -> str:
        """The other set's fingerprint, and that this is not that set."""
        return f"train, a tenth of it held out, and val of {self._base.fingerprint}"

    @property
    def slug(self) -> str:
        """That of the other set, with what it is for in front."""
        return f"val-of-{self._base.slug}"

    @property
    def skipped(self) -> dict[str, int]:
        """What was left out of the splits of the other set."""
        return self._base.skipped

    @property
    def remarks(self) -> tuple[str, ...]:
        """Those of the other set, whose splits have other names here."""
        return self._base.remarks

    def _place(self, name: str) -> tuple[str, np.ndarray]:
        """The split of the other set that holds a split of this one, and which of its images."""
        stored = "val" if name == "test" else "train"
        labels = self._base.split(stored).labels.numpy()
        everything = np.arange(len(labels))
        if name == "test":
            return stored, everything
        val = held_out(labels)
        return stored, val if name == "val" else np.setdiff1d(everything, val)

    def _labels(self, name: str) -> np.ndarray:
        stored, index = self._place(name)
        labels: np.ndarray = self._base.split(stored).labels.numpy()[index]
        return labels

    def _images(self, name: str, index: np.ndarray) -> np.ndarray:
        stored, place = self._place(name)
        pixels: np.ndarray = self._base.split(stored).images[place[index]].numpy()
        return pixels
