"""Methods and protocols from outside: separate packages, no edit of the core; a broken one stops nobody."""

import json
import os
import subprocess
import sys
from contextlib import suppress

import pandas as pd
import pytest

from tests.forks import COMMAND, run
from twinbench.baselines.simclr import SimCLR
from twinbench.downstream.knn import CosineKnn
from twinbench.downstream.protocol import protocol, protocol_names
from twinbench.foundation.registry import all_or_nothing
from twinbench.harness import commands, encoder_commands
from twinbench.harness.plugins import load_plugins
from twinbench.pretraining.method import method_class, method_names

from .conftest import install, python_path

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


def a_method(name):
    return (
        "from twinbench.pretraining.method import Method, register_method\n"
        f"@register_method({name!r})\nclass Toy(Method):\n    pass\n"
    )


def a_protocol(name):
    return (
        "from twinbench.downstream.protocol import Protocol, register_protocol\n"
        f"@register_protocol\nclass ToyProtocol(Protocol):\n    name = {name!r}\n    needs = 'labels'\n"
        "    def evaluate(self, encoder, context): return []\n"
        "    def forward_passes(self, image_set): return 0.0\n"
    )


LOADED_BEFORE = (commands, encoder_commands)
"""What they import registers image sets and figures, which must not be undone at the end of a test."""


class Over(Exception):
    """The end of a test, at which its registrations are undone."""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of plugins for this process, which has loaded none of them; everything is undone afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    load_plugins.cache_clear()
    with suppress(Over), all_or_nothing():
        yield folder
        raise Over
    load_plugins.cache_clear()
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(folder) in sys.modules[name].__file__:
            del sys.modules[name]


def test_a_toy_method_and_protocol_run_from_another_package(tmp_path):
    """In worker processes, which get the protocol from their parent and look up the method for themselves."""
    site = tmp_path / "site"
    install(site, "toy_plugin", {"toy_plugin.py": TOY})
    (tmp_path / "my-recipes").mkdir()
    (tmp_path / "my-recipes" / "toy.yaml").write_text(RECIPE)
    (tmp_path / "toy.yaml").write_text(STUDY)
    environment = {**os.environ, "PYTHONPATH": python_path(site), "OMP_NUM_THREADS": "1"}
    outcome = run(COMMAND, "run", "toy.yaml", "--workers", "2", cwd=tmp_path, env=environment)
    assert outcome.returncode == 0, outcome.stderr
    records = pd.read_csv(tmp_path / "results/toy/records.csv")
    assert list(records.method) == ["toy"]
    assert list(records.protocol) == ["toy/norm-v1"]
    assert records.value.item() > 0


@pytest.mark.parametrize(
    ("end", "error"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def broken(", "SyntaxError: "),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit('for scripts only')", "SystemExit: for scripts only"),
        (a_method("simclr"), "method 'simclr' is already registered by twinbench.baselines.simclr.SimCLR"),
        (a_protocol("knn/cosine-v1"), "protocol 'knn/cosine-v1' is already registered by twinbench."),
        (a_protocol("knn"), "protocol name 'knn' is not of the form family/variant-vN"),
    ],
)
def test_a_broken_plugin_is_named_and_leaves_no_trace(site, caplog, end, error):
    install(
        site,
        "half_done",
        {"half_done.py": a_method("toy") + a_protocol("toy/norm-v1") + end},
        {"ours": "half_done"},
    )
    load_plugins()
    (warning,) = caplog.messages
    assert "the plugin 'ours' is left out" in warning
    assert "package half-done, entry point ours = half_done" in warning
    assert error in warning
    assert warning.splitlines()[-1].strip().startswith("next:")
    assert "toy" not in method_names()
    assert "toy/norm-v1" not in protocol_names()
    assert "half_done" not in sys.modules
    assert method_class("simclr") is SimCLR
    assert type(protocol("knn/cosine-v1")) is CosineKnn


def test_a_plugin_without_what_its_entry_point_names_is_left_out(site, caplog):
    install(site, "toy_plugin", {"toy_plugin.py": a_method("toy")}, {"toy": "toy_plugin:Missing"})
    load_plugins()
    assert "AttributeError: module 'toy_plugin' has no attribute 'Missing'" in caplog.text
    assert "toy" not in method_names()


def test_beside_a_broken_plugin_the_others_are_there(site, cli):
    install(site, "another", {"another.py": a_method("another")})
    install(site, "broken", {"broken.py": "import no_such_module"})
    install(site, "toy_plugin", {"toy_plugin.py": a_method("toy")})
    outcome = cli("ls", "methods", "--json")
    assert outcome.code == 0
    assert {"another", "barlow_twins", "simclr", "toy"} <= set(json.loads(outcome.out))


def test_of_two_plugins_with_one_name_the_second_is_left_out(site, caplog):
    install(site, "b_plugin", {"b_plugin.py": a_method("toy")})
    install(site, "a_plugin", {"a_plugin.py": a_method("toy")})
    load_plugins()
    assert method_class("toy").__module__ == "a_plugin"
    (warning,) = caplog.messages
    assert "the plugin 'b_plugin' is left out" in warning
    assert "already registered by a_plugin.Toy" in warning


@pytest.mark.parametrize("statement", ["import toys.shared", "from toys import shared"])
def test_what_a_broken_entry_point_took_back_another_of_its_package_can_register(site, caplog, statement):
    modules = {
        "toys/__init__.py": "",
        "toys/shared.py": a_method("toy"),
        "toys/fine.py": a_method("fine"),
        "toys/broken.py": "import toys.shared\nimport no_such_module",
        "toys/late.py": statement,
    }
    install(site, "toys", modules, {"a": "toys.fine", "b": "toys.broken", "c": "toys.late"})
    load_plugins()
    (warning,) = caplog.messages
    assert "entry point b = toys.broken" in warning
    assert {"fine", "toy"} <= set(method_names())


def test_what_a_broken_plugin_imported_of_the_house_is_still_registered(tmp_path):
    """In a process of its own, where the plugin is the first to import the formats."""
    install(
        tmp_path, "broken", {"broken.py": "import twinbench.encoders.foreign.formats\nimport no_such_module"}
    )
    program = """
from twinbench.harness.plugins import load_plugins
load_plugins()
from twinbench.encoders.foreign.formats import format_names
print(len(format_names()))
"""
    outcome = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": python_path(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert "the plugin 'broken' is left out" in outcome.stderr
    assert outcome.stdout == "17\n"


def test_plugins_are_loaded_once(site, caplog):
    install(site, "broken", {"broken.py": "import no_such_module"})
    load_plugins()
    load_plugins()
    assert len(caplog.messages) == 1


def test_one_process_of_many_warns(site, caplog, monkeypatch):
    """Ranks are told by their launcher who they are, workers by their parent."""
    install(site, "broken", {"broken.py": "import no_such_module"})
    monkeypatch.setenv("LOCAL_RANK", "1")
    load_plugins()
    monkeypatch.delenv("LOCAL_RANK")
    load_plugins.cache_clear()
    load_plugins(warn=False)
    assert caplog.messages == []


def test_without_the_harness_names_are_those_of_the_modules_imported():
    program = """
from twinbench.downstream.protocol import protocol
from twinbench.foundation.errors import InputError
from twinbench.pretraining.method import method_class, method_names

for find, name in ((method_class, "simclr"), (protocol, "knn")):
    try:
        find(name)
    except InputError as error:
        print(error.what, "|", error.next_step)
import twinbench.baselines.simclr
import twinbench.downstream.knn
print(method_class("simclr").__name__, protocol("knn").name, method_names())
"""
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert outcome.stdout.splitlines() == [
        "unknown method 'simclr': no method is registered in this process | "
        "fill the registry by twinbench.harness.plugins.load_plugins()",
        "unknown protocol 'knn': no protocol is registered in this process | "
        "fill the registry by twinbench.harness.plugins.load_plugins()",
        "SimCLR knn/cosine-v1 ['simclr']",
    ], outcome.stderr
