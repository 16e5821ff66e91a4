"""Weighted k-nearest-neighbour classification of frozen features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from twinbench.data.image_sets import ImageSet
from twinbench.data.pictures import small, tiled
from twinbench.downstream.protocol import (
    EvaluationContext,
    Measurement,
    Protocol,
    register_protocol,
)
from twinbench.downstream.selection import edge_remarks
from twinbench.encoders.encoder import Encoder

_NEIGHBOURS = 200
_CHUNK = 1024
_SHOWN, _NEAREST = 6, 7  # test images of the picture, and the neighbours of each


def knn_scores(
    queries: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    classes: int,
    k: int = _NEIGHBOURS,
    temperature: float = 0.1,
) -> Tensor:
    """Class scores ``[Q, classes]`` of queries ``[Q, D]`` from a bank ``[N, D]`` with labels ``[N]``.

    The score of a class is the sum of exp(s / temperature) over those of the k most cosine-similar bank
    features that carry it (Wu et al., arXiv:1805.01978, section 3.4). ``k`` is cut to the size of the bank.
    """
    scores = [
        _votes(similarity, labels, classes, temperature)
        for similarity, labels in _neighbours(queries, bank, bank_labels, k)
    ]
    return torch.cat(scores)


def knn_accuracies(
    queries: tuple[Tensor, Tensor],
    bank: tuple[Tensor, Tensor],
    classes: int,
    ks: Sequence[int],
    temperatures: Sequence[float],
) -> dict[tuple[int, float], float]:
    """Top-1 in percent for every k and temperature, in this order, of queries by the neighbours in a bank.

    Both are features ``[N, D]`` with labels ``[N]``. Equal scores rank by class number.
    """
    right = {(k, temperature): 0 for k in ks for temperature in temperatures}
    features, truth = queries
    found = _neighbours(features, *bank, max(ks))
    for (similarity, labels), expected in zip(found, truth.split(_CHUNK), strict=True):
        for k, temperature in right:
            votes = _votes(similarity[:, :k], labels[:, :k], classes, temperature)
            right[k, temperature] += int((votes.argmax(dim=1) == expected).sum())
    return {setting: 100 * count / len(truth) for setting, count in right.items()}


def _neighbours(
    queries: Tensor, bank: Tensor, bank_labels: Tensor, k: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Similarity and label of the k nearest of each query, ``[n, k]`` both, the nearest first, chunk by chunk."""
    bank = normalize(bank, dim=1)
    # In chunks: the similarities of 10,000 queries to 50,000 features would take two gigabytes at once.
    for chunk in normalize(queries, dim=1).split(_CHUNK):
        similarity, neighbours = (chunk @ bank.T).topk(min(k, len(bank)), dim=1)
        yield similarity, bank_labels[neighbours]


def _votes(similarity: Tensor, labels: Tensor, classes: int, temperature: float) -> Tensor:
    """Class scores ``[n, classes]`` from the neighbours' similarities and labels ``[n, k]``."""
    votes = similarity.new_zeros(len(similarity), classes)
    return votes.scatter_add_(1, labels, (similarity / temperature).exp())


def _nearest(queries: Tensor, bank: Tensor, image_set: ImageSet) -> Tensor | None:
    """A few test images, each before its nearest training images; None where images lack labels."""
    test, train = image_set.split("test"), image_set.split("train")
    if len(queries) != len(test) or len(bank) != len(train):
        return None
    shown = torch.linspace(0, len(queries) - 1, min(_SHOWN, len(queries))).long()
    similarity = normalize(queries[shown], dim=1) @ normalize(bank, dim=1).T
    nearest = similarity.topk(min(_NEAREST, len(bank)), dim=1).indices
    rows = [
        torch.cat([test.images[i : i + 1], train.images[near]])
        for i, near in zip(shown.tolist(), nearest.cpu(), strict=True)
    ]
    return tiled([[*small(row, row.shape[-1])] for row in rows], apart=1)


@register_protocol
class CosineKnn(Protocol):
    """Weighted kNN with k = 200 and temperature 0.1.

    The rule is that of InstDisc (arXiv:1805.01978); the temperature and the use of evaluation views without
    augmentation for the bank follow MoCo's CIFAR-10 notebook (facebookresearch/moco, branch colab-notebook).
    Unlike the notebook, and like lightly, it takes the pooled backbone features. Nothing is tuned, so the bank
    is the split ``train`` and ``val`` is not used.
    """

    name = "knn/cosine-v1"
    needs = "labels"
    keeps_features = True
    metrics = ("top1", "top5")

    def evaluate(self, encoder: Encoder, context: EvaluationContext) -> list[Measurement]:
        """``top1`` and ``top5`` on the test split."""
        bank, bank_labels = context.features.labelled(encoder, context.image_set, "train")
        context.progress(0.6)
        queries, labels = context.features.labelled(encoder, context.image_set, "test")
        context.progress(0.9)
        if len(bank) < _NEIGHBOURS:
            context.remarks.append(
                f"the neighbours are all the {len(bank)} labelled training images, not {_NEIGHBOURS}"
            )
        scores = knn_scores(queries, bank, bank_labels, len(context.image_set.classes))
        rows = context.features.labelled_rows(encoder, context.image_set, "test")
        context.picture = _nearest(queries, bank, context.image_set)
        context.progress(1.0)
        return context.classified(scores, labels, rows)

    def forward_passes(self, image_set: ImageSet) -> float:
        """One pass over train and test, less where the features are cached."""
        return float(len(image_set.split("train")) + len(image_set.split("test")))


@register_protocol
class TunedKnn(Protocol):
    """Weighted kNN as in `knn/cosine-v1`, with the k and the temperature that are best on ``val``.

    k is one of 1, 5, 10, 20, 50, 100 and 200 (those up to the size of the bank), the temperature one of 0.02, 0.05,
    0.07, 0.1, 0.2, 0.5 and 1: the papers' values (0.07 and 0.1 with k = 200) and what lies around them. The accuracy of
    every pair on ``val`` chooses; of equals the smaller k, then the smaller temperature. The bank is the split
    ``train`` both for choosing and for measuring, so that a number differs from that of `knn/cosine-v1` by this choice
    alone.

    The record has every pair with its accuracy and the choice; a remark says where that lies on the grid's edge.
    """

    name = "knn-tuned/cosine-v1"
    needs = "labels"
    keeps_features = True
    metrics = ("top1", "top5")
    ks = (1, 5, 10, 20, 50, 100, 200)
    # exp(1 / 0.02) leaves room for the sum in float32
    temperatures = (0.02, 0.05, 0.07, 0.1, 0.2, 0.5, 1.0)

    def evaluate(self, encoder: Encoder, context: EvaluationContext) -> list[Measurement]:
        """``top1`` and ``top5`` on the test split; `context.details` has the grid and the choice."""
        image_set, classes = context.image_set, len(context.image_set.classes)
        bank, val, (queries, labels) = (
            context.features.labelled(encoder, image_set, split) for split in ("train", "val", "test")
        )
        context.progress(0.7)
        ks = [k for k in self.ks if k <= len(bank[0])]
        if len(ks) < len(self.ks):
            context.remarks.append(
                f"{self.name} tried no k above {ks[-1]}, for only {len(bank[0])} training images have a label"
            )
        found = knn_accuracies(val, bank, classes, ks, self.temperatures)
        (k, temperature), best = max(found.items(), key=lambda item: item[1])
        context.details["grid"] = [
            {"k": k, "temperature": temperature, "val_top1": top1} for (k, temperature), top1 in found.items()
        ]
        context.details["chosen"] = {"k": k, "temperature": temperature, "val_top1": best}
        context.details["bank"] = {"split": "train", "images": len(bank[0])}
        context.remarks += edge_remarks(self.name, "k", k, ks, least=1)
        context.remarks += edge_remarks(self.name, "temperature", temperature, self.temperatures)
        context.progress(0.9)
        scores = knn_scores(queries, *bank, classes, k, temperature)
        context.picture = _nearest(queries, bank[0], image_set)
        rows = context.features.labelled_rows(encoder, image_set, "test")
        context.progress(1.0)
        return context.classified(scores, labels, rows)

    def forward_passes(self, image_set: ImageSet) -> float:
        """One pass over all three splits, less where the features are cached."""
        return float(sum(len(image_set.split(split)) for split in ("train", "val", "test")))
