"""Where the encoder of a run comes from: a recipe to train by, or a checkpoint from elsewhere."""

from __future__ import annotations

from pydantic import Field

from twinbench.encoders.deviations import Deviation
from twinbench.foundation.models import Strict
from twinbench.pretraining.method import method_class
from twinbench.pretraining.recipe import BackboneSpec, Recipe


class ImportedSource(Strict):
    """A checkpoint of another project, or the folder of an encoder: what it is, how it is fed, what measures it.

    ``name`` is what the study's folder calls it; ``file``, ``format``, ``sha256`` and ``note`` are those of the
    checkpoint that it was imported from. ``image_size`` in pixels, ``mean``, ``std`` and ``deviation`` are the
    encoder's. The evaluations have ``image_set`` and ``seed``.
    """

    name: str
    method: str
    file: str
    format: str
    sha256: str
    backbone: BackboneSpec
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    deviation: Deviation
    note: str
    image_set: str
    image_set_fingerprint: str
    seed: int = Field(ge=0)


Source = Recipe | ImportedSource


def has_training(source: Source) -> bool:
    """Whether an encoder from there has steps to train: not one that is imported, or left as it was initialised."""
    return isinstance(source, Recipe) and source.epochs > 0 and method_class(source.method).trains
