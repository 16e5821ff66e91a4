"""A method and a protocol from outside: a separate package, no edit of the core, through the whole command."""

import os
import subprocess
import sys
import textwrap

import pandas as pd

TOY = """
import torch
from twinbench.data.augment import ViewPolicy
from twinbench.downstream.protocol import Measurement, Protocol, register_protocol
from twinbench.pretraining.method import LossParts, Method, register_method


@register_method("toy")
class Toy(Method):
    @classmethod
    def default_views(cls, size):
        return (ViewPolicy(size=size),)

    def loss(self, views, labels, progress):
        features = self.backbone(views[0])
        return LossParts((features.std(dim=0) - 1).square().mean(), {})


@register_protocol
class FeatureNorm(Protocol):
    name = "toy/norm-v1"
    needs = "labels"
    metrics = ("norm",)

    def evaluate(self, encoder, context):
        features, labels = context.features.labelled(encoder, context.image_set, "test")
        return [Measurement("norm", features.norm(dim=1).mean().item(), len(labels), None)]

    def forward_passes(self, image_set):
        return float(len(image_set.split("test")))
"""

STUDY = """
title: A method and a protocol from outside
description: Toy.
image_set: digit-scenes
recipes: my-recipes
methods: [toy]
protocols: [toy/norm-v1]
limit: {train: 128, val: 32, test: 32}
tables:
  - {name: toy, title: Toy, columns: [{protocol: toy/norm-v1, metric: norm, label: norm}]}
"""

RECIPE = """
method: toy
backbone: {name: resnet10, width: 8, stem: stride2}
epochs: 1
batch_size: 64
optimizer: {name: sgd, base_lr: 0.01}
"""


def test_a_toy_method_and_protocol_run_from_another_package(tmp_path):
    site = tmp_path / "site"
    (site / "toy_plugin-1.0.dist-info").mkdir(parents=True)
    (site / "toy_plugin.py").write_text(textwrap.dedent(TOY))
    (site / "toy_plugin-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: toy-plugin\nVersion: 1.0\n"
    )
    (site / "toy_plugin-1.0.dist-info" / "entry_points.txt").write_text(
        "[twinbench.plugins]\ntoy = toy_plugin\n"
    )
    (tmp_path / "my-recipes").mkdir()
    (tmp_path / "my-recipes" / "toy.yaml").write_text(RECIPE)
    (tmp_path / "toy.yaml").write_text(STUDY)
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    outcome = subprocess.run(
        [sys.executable, "-c", "from twinbench.harness.main import main; main()", "run", "toy.yaml"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert outcome.returncode == 0, outcome.stderr
    records = pd.read_csv(tmp_path / "results/toy/records.csv")
    assert list(records.method) == ["toy"]
    assert list(records.protocol) == ["toy/norm-v1"]
    assert records.value.item() > 0
