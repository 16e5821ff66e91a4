"""Our side of `parity.py`: the training of `twinbench.pretraining.train`, step by step, from copied weights.

``torchrun parity_ours.py JOB``. What a step does is `Session.gradients` and `Session.update`, as in every pretraining;
only the weights and the views come from elsewhere.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity_methods import SUBJECTS, Subject, Weights, translated
from parity_views import prepared_views

from twinbench.data.augment import Normalisation
from twinbench.data.image_sets import ImageSet, Reading
from twinbench.harness.plugins import load_plugins
from twinbench.pretraining.batches import MicroBatch
from twinbench.pretraining.build import build_method
from twinbench.pretraining.engine import Engine, Hardware, launch
from twinbench.pretraining.method import Method
from twinbench.pretraining.recipe import Recipe
from twinbench.pretraining.train import start_session


@dataclass(frozen=True)
class Trajectory:
    """A training: the loss of each step ``[T]``, the learning rates ``[T, groups]``, the weights before and after."""

    losses: np.ndarray
    rates: np.ndarray
    initial: Weights
    final: Weights

    def save(self, path: Path) -> None:
        """Keep it for `load`."""
        before = {f"initial/{name}": array for name, array in self.initial.items()}
        after = {f"final/{name}": array for name, array in self.final.items()}
        np.savez(path, losses=self.losses, rates=self.rates, **before, **after)

    @classmethod
    def load(cls, path: Path) -> Trajectory:
        """What `save` wrote, or one of the programs that run the authors' side."""
        with np.load(path) as kept:
            weights = {
                stage: {name.removeprefix(f"{stage}/"): kept[name] for name in kept if name.startswith(stage)}
                for stage in ("initial", "final")
            }
            rates = kept["rates"]
            return cls(kept["losses"], rates.reshape(len(rates), -1), weights["initial"], weights["final"])


class _Prepared(ImageSet):
    """Stands for the images of the views that are prepared: their number and size, which decide on epochs."""

    name, classes, content = "prepared", ("one",), "prepared views"
    normalisation = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))

    def __init__(self, count: int, size: int) -> None:
        super().__init__(Reading())
        self._count, self.image_size = count, size

    def _labels(self, name: str) -> np.ndarray:
        return np.zeros(self._count, dtype=np.int64)

    def _images(self, name: str, index: np.ndarray) -> np.ndarray:
        return np.zeros((len(index), 3, self.image_size, self.image_size), dtype=np.uint8)


def train(
    subject: Subject, recipe: Recipe, steps: int, initial: Weights | None = None, processes: int = 1
) -> Trajectory:
    """Train by a recipe in fp64 on the prepared views, from ``initial`` weights if given; every rank calls it.

    The losses are those that the authors' code would report, see `Subject.loss_factor`.
    """
    engine = launch(Hardware(devices=processes), "fp32")
    torch.set_num_threads(1)
    method = build_method(recipe).double()
    if initial is not None:
        _load(method, initial)
    images = _Prepared(recipe.batch_size * subject.steps_per_epoch, subject.sizes[0])
    session = start_session(recipe, method, images, engine)
    before, losses, rates = _arrays(method), [], []
    for step in range(steps):
        progress = session.progress(step)
        loss = session.gradients([_batch(subject, recipe, step, engine)], progress)
        rates.append([group["lr"] for group in session.optimizer.param_groups])
        losses.append(loss.total.item() * subject.loss_factor(processes))
        session.update(progress)
    return Trajectory(np.array(losses), np.array(rates), before, _arrays(method))


def _batch(subject: Subject, recipe: Recipe, step: int, engine: Engine) -> MicroBatch:
    share = engine.share(recipe.batch_size)
    mean, std = (np.reshape(numbers, (1, 3, 1, 1)) for numbers in (subject.mean, subject.std))
    views = [
        torch.from_numpy((view[share] - mean) / std)
        for view in prepared_views(step, recipe.batch_size, subject.sizes)
    ]
    return MicroBatch(
        [view.contiguous(memory_format=torch.channels_last) for view in views],
        torch.zeros(len(views[0]), dtype=torch.long),
    )


def _load(method: Method, initial: Weights) -> None:
    state = method.state_dict()
    found = {name: torch.from_numpy(array).to(state[name].dtype) for name, array in initial.items()}
    method.load_state_dict({**state, **found})


def _arrays(method: Method) -> Weights:
    return {name: tensor.detach().numpy().copy() for name, tensor in method.state_dict().items()}


def main() -> None:
    """Train one side of a comparison, from the weights that the authors' side began with."""
    job: dict[str, Any] = json.loads(sys.argv[1])
    load_plugins()
    subject, processes = SUBJECTS[job["method"]], job["processes"]
    recipe = Recipe.model_validate(subject.recipe(job["steps"], processes))
    theirs = Trajectory.load(Path(job["theirs"]))
    shapes = {name: tuple(tensor.shape) for name, tensor in build_method(recipe).state_dict().items()}
    initial = translated(subject, theirs.initial, shapes)
    ours = train(subject, recipe, job["steps"], initial, processes)
    if torch.distributed.is_initialized():
        if torch.distributed.get_rank() == 0:
            ours.save(Path(job["ours"]))
        torch.distributed.destroy_process_group()
    else:
        ours.save(Path(job["ours"]))


if __name__ == "__main__":
    main()
