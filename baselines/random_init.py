"""The reference row below all others: a backbone that was never trained."""

from __future__ import annotations

from typing import ClassVar

from twinbench.data.augment import ViewPolicy
from twinbench.pretraining.method import Method, register_method


@register_method("random_init")
class RandomInit(Method):
    """The initialised backbone as it is; there is nothing to optimise."""

    trains: ClassVar[bool] = False

    @classmethod
    def default_views(cls, size: int) -> tuple[ViewPolicy, ...]:
        """Random crop and flip, on which its embeddings are diagnosed; it is not trained."""
        return (ViewPolicy(size=size, jitter=0.0, grayscale=0.0),)
