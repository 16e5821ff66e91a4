"""Weighted k-nearest-neighbour classification of frozen features."""

from __future__ import annotations

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
    bank = normalize(bank, dim=1)
    scores = []
    # In chunks: the similarities of 10,000 queries to 50,000 features would take two gigabytes at once.
    for chunk in normalize(queries, dim=1).split(_CHUNK):
        similarity, neighbours = (chunk @ bank.T).topk(min(k, len(bank)), dim=1)
        votes = torch.zeros(len(chunk), classes, dtype=bank.dtype, device=bank.device)
        scores.append(votes.scatter_add_(1, bank_labels[neighbours], (similarity / temperature).exp()))
    return torch.cat(scores)


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
