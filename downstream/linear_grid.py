"""Linear evaluations by SGD that choose their learning rate on held-out images, with all heads trained at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from twinbench.data.image_sets import ImageSet, Split
from twinbench.downstream.linear_sgd import FrozenBackbone, SgdEvaluation, cosine, cosine_by_step
from twinbench.downstream.protocol import EvaluationContext, Measurement, register_protocol
from twinbench.downstream.randomness import seeded
from twinbench.downstream.selection import edge_remarks
from twinbench.downstream.views import all_training_images, readable, skipped_images
from twinbench.encoders.encoder import Encoder
from twinbench.foundation.errors import RunFailure


def haiku_head(feature_dim: int, classes: int) -> nn.Linear:
    """A linear classifier that starts as Haiku's do, which BYOL's code takes as they are.

    Normal with a deviation of 1 / sqrt(``feature_dim``), cut off at twice that; bias 0.
    """
    head = nn.Linear(feature_dim, classes)
    deviation = feature_dim**-0.5
    nn.init.trunc_normal_(head.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    nn.init.zeros_(head.bias)
    return head


@dataclass(frozen=True)
class Candidate:
    """What a head of the grid is trained with: its peak learning rate and its weight decay."""

    lr: float
    weight_decay: float


@dataclass(frozen=True)
class LinearGrid(SgdEvaluation):
    """A linear classifier on the pooled features of a frozen backbone; ``val`` chooses its learning rate and decay.

    One training on ``train`` trains a head for every pair of ``rates`` and ``weight_decays`` at once: they start from
    the same weights, see the same views (those of the other linear evaluations by SGD) and have their own loss, so each
    is what it would be alone. After the last epoch the accuracy of each on the central views of ``val`` chooses one; of
    equals the smaller rate, then the smaller decay. That head alone is measured on the test split, once. With
    ``refit`` a new head is trained with the chosen values on ``train`` and ``val`` together, and measured instead.

    The record has every candidate with its accuracy on ``val`` (null where its scores are not finite) and the choice; a
    remark says where that lies on the grid's edge. The backbone stays in evaluation mode and is checked afterwards to
    be the same bit for bit.

    ``rates`` are peak learning rates for steps of ``batch`` images; ``decay`` gives the share of them after so many of
    ``epochs``. ``start`` is how the linear layer begins.
    """

    rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    refit: bool = False

    def evaluate(self, encoder: Encoder, context: EvaluationContext) -> list[Measurement]:
        """``top1`` and ``top5`` on the test split; `context.details` has the grid and the choice.

        Raises RunFailure if no head's loss is finite.
        """
        image_set = context.image_set
        train, val, test = (image_set.split(name) for name in ("train", "val", "test"))
        self.require_labels(image_set, train, val, test)
        self.remark_on_steps(self.order(train, context.seed), context)
        frozen = FrozenBackbone(encoder, context)
        candidates = [Candidate(rate, decay) for rate in self.rates for decay in self.weight_decays]
        share = 0.45 if self.refit else 0.9
        heads = self._fit(
            "choice", candidates, frozen, train, context, lambda done: context.progress(share * done)
        )
        place = self._choose(candidates, _accuracies(heads, frozen, val), context)
        head = heads[place]
        if self.refit:
            everything, best = all_training_images(image_set), [candidates[place]]
            (head,) = self._fit(
                "refit", best, frozen, everything, context, lambda done: context.progress(share * (1 + done))
            )
        measured = self.measure(head, frozen, test, context)
        if skipped := skipped_images(train=train, val=val, test=test):
            context.details["skipped_images"] = skipped
        context.progress(1.0)
        return measured

    def forward_passes(self, image_set: ImageSet) -> float:
        """One pass for every image of every epoch, whatever the number of heads, and for ``val`` and test."""
        train, val, test = (len(image_set.split(split)) for split in ("train", "val", "test"))
        return float(self.epochs * (train + self.refit * (train + val)) + val + test)

    def _fit(
        self,
        name: str,
        candidates: Sequence[Candidate],
        frozen: FrozenBackbone,
        split: Split,
        context: EvaluationContext,
        progress: Callable[[float], None],
    ) -> list[nn.Linear]:
        """A head for each candidate, all from the same start; ``name`` is that of the training."""
        with seeded(context.seed, context.device):
            first = self.start(frozen.encoder.feature_dim, len(context.image_set.classes)).to(context.device)
        heads = [copy.deepcopy(first) for _ in candidates]
        groups = [
            {"params": head.parameters(), "peak": candidate.lr, "weight_decay": candidate.weight_decay}
            for head, candidate in zip(heads, candidates, strict=True)
        ]
        optimizer, order = self.sgd(groups), self.order(split, context.seed)
        state = context.checkpoints.training(name, heads=nn.ModuleList(heads), optimizer=optimizer)
        self.train(heads, optimizer, frozen, split, order, state, progress)
        return heads

    def _choose(
        self, candidates: Sequence[Candidate], found: Sequence[float | None], context: EvaluationContext
    ) -> int:
        """The place of the best candidate on ``val``, kept in the details with the whole grid."""
        finite = {place: top1 for place, top1 in enumerate(found) if top1 is not None}
        if not finite:
            raise RunFailure("no head of the grid has finite scores on val", where=self.name)
        place = max(finite, key=finite.__getitem__)
        best = candidates[place]
        context.details["grid"] = [
            {**asdict(each), "val_top1": top1} for each, top1 in zip(candidates, found, strict=True)
        ]
        context.details["chosen"] = {**asdict(best), "val_top1": finite[place]}
        context.remarks += edge_remarks(self.name, "learning rate", best.lr, self.rates)
        context.remarks += edge_remarks(self.name, "weight decay", best.weight_decay, self.weight_decays)
        return place


@torch.no_grad()
def _accuracies(heads: Sequence[nn.Linear], frozen: FrozenBackbone, val: Split) -> list[float | None]:
    """The top-1 accuracy of every head on a split in percent; None for one whose scores are not finite."""
    known = torch.nonzero(val.labels >= 0).flatten()
    features = torch.cat(list(frozen.central(val.images, known)))
    counted = readable(val.images, known)
    features, labels = features[counted.to(features.device)], val.labels[known[counted]]
    found: list[float | None] = []
    for head in heads:
        scores = head(features).cpu()
        right = (scores.argmax(dim=1) == labels).double().mean().item()
        found.append(100 * right if torch.isfinite(scores).all() else None)
    return found


# BYOL (BYOL-paper C.1; what it leaves open as byol configs/eval.py and eval_experiment.py): Nesterov's momentum, batch
# 1024, 80 epochs, a cosine without warm-up, no weight decay, the best of five learning rates on held-out training
# images. They are times 1024 / 256, as the code takes its 0.2, which is one of them. The code's own training is on all
# training images, so the head that is measured has seen them too. Differs: the held-out images are the split val
# (10,009 of ImageNet's in the paper), and pictures are resized bilinearly, where the code is bicubic.
register_protocol(
    LinearGrid(
        "linear/byol-v1",
        epochs=80,
        rates=(0.2, 0.4, 0.8, 1.2, 1.6),
        weight_decays=(0.0,),
        decay=cosine_by_step,
        batch=1024,
        nesterov=True,
        start=haiku_head,
        refit=True,
    )
)

# linear/sgd with the rate and the decay chosen. The methods publish rates from 0.1 (times the batch / 256) to 30 for
# their own features; features of another scale need others, so the grid goes further in half decades. The decays are
# none, as most publish, and two that matter.
register_protocol(
    LinearGrid(
        "linear/grid-v1",
        epochs=100,
        rates=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
        weight_decays=(0.0, 1e-5, 1e-3),
        decay=cosine,
    )
)
