"""The views that both sides of `parity.py` train on; with numpy alone, as the authors' interpreters may lack torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def prepared_views(step: int, batch: int, sizes: Sequence[int]) -> list[np.ndarray]:
    """Views ``[batch, 3, size, size]`` of a step in [0, 1], float64, one for each of ``sizes``.

    A function of the arguments, for numpy keeps the stream of its generators. Views of one image share its coarse
    colours and have noise of their own, so that they have something in common that can be learned.
    """
    colours = np.random.default_rng((step, 0)).random((batch, 3, 4, 4))
    views = []
    for index, size in enumerate(sizes, start=1):
        noise = np.random.default_rng((step, index)).random((batch, 3, size, size))
        tile = np.ones((1, 1, -(-size // 4), -(-size // 4)))
        views.append(0.7 * np.kron(colours, tile)[:, :, :size, :size] + 0.3 * noise)
    return views
