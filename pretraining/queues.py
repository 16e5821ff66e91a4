"""What the queues of MoCo and SwAV have in common."""

from __future__ import annotations

from twinbench.foundation.errors import InputError


def check_queue_length(length: int, per_step: int) -> None:
    """Raise InputError, with the nearest lengths that work, unless whole steps fill the queue exactly.

    ``per_step`` is what one step of all ranks puts in. A length of 0 means that there is no queue.
    """
    if length % per_step:
        below = length // per_step * per_step
        choices = f"{below} or {below + per_step}" if below else str(per_step)
        raise InputError(
            f"queue_length={length} is not a multiple of the {per_step} embeddings of a step",
            where="options.queue_length",
            next_step=f"set options.queue_length to {choices}, or change batch_size",
        )
