"""Every protocol leaves what became of its test items, and its numbers, errors included, follow from the file of it."""

from dataclasses import fields, is_dataclass, replace

import pytest
import torch

from tests.downstream.conftest import MemorySet, square_scenes
from twinbench.data.image_sets import Split
from twinbench.downstream import voc_svm
from twinbench.downstream.detection import small_mask_rcnn
from twinbench.downstream.detection.detectron2_c4 import Detectron2C4, detectron2_found
from twinbench.downstream.detection.schedules import TINY
from twinbench.downstream.features import FeatureStore
from twinbench.downstream.protocol import EvaluationContext, protocol, protocol_names
from twinbench.foundation.outcomes import read_outcomes, write_outcomes

CLASSES = 7
SCHEDULE = replace(
    TINY,
    images_per_batch=2,
    iterations=2,
    steps=(1,),
    warmup_iterations=1,
    train_sizes=(64,),
    test_size=64,
    precise_bn=1,
)
SHORT = {
    "epochs": 1,
    "steps": 2,
    "draws": 5,
    "fraction": 0.5,
    "rates": (0.1, 1.0),
    "weight_decays": (0.0,),
    "schedule": SCHEDULE,
}
"""What is shortened, in the protocols that have it."""


def brightness(n: int, seed: int) -> Split:
    """Noise in grey of seven kinds, the last tenth without a label."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    images = torch.randint(0, 120, (n, 3, 16, 16), generator=generator) + 20 * labels[:, None, None, None]
    labels[-n // 10 :] = -1
    return Split(images.to(torch.uint8), labels)


class Greys(MemorySet):
    classes = tuple("abcdefg")


@pytest.fixture(scope="module")
def greys():
    splits = {name: brightness(n, n) for name, n in (("train", 140), ("val", 42), ("test", 70))}
    return Greys(splits, {"train": square_scenes(16, 1), "test": square_scenes(8, 2)})


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(voc_svm, "PENALTIES", (1.0,))
    monkeypatch.setattr(small_mask_rcnn, "STEPS", 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # support vector machines would start processes
    yield
    torch.set_num_threads(threads)


def shortened(name):
    chosen = protocol(name)
    if isinstance(chosen, Detectron2C4) and not detectron2_found():
        pytest.skip("Detectron2 is not installed")
    known = {each.name for each in fields(chosen)} if is_dataclass(chosen) else set()
    return (
        replace(chosen, **{key: value for key, value in SHORT.items() if key in known}) if known else chosen
    )


MEASURING = [name for name in protocol_names() if protocol(name).needs != "images"]


@pytest.mark.parametrize("name", MEASURING)
def test_the_numbers_follow_from_the_file_of_the_outcomes(name, greys, encoder, tmp_path):
    chosen = shortened(name)
    context = EvaluationContext(greys, FeatureStore(None), seed=3)
    measured = chosen.evaluate(encoder, context)
    assert context.outcomes is not None, "it left no outcomes"
    path = tmp_path / "kept.safetensors"
    kept = read_outcomes(path, write_outcomes(path, context.outcomes, {"protocol": name}))
    assert chosen.measure_again(kept, greys) == measured
    items = 63 if chosen.needs == "labels" else 8
    assert {m.n for m in measured} == {items}
    assert all((m.stderr is not None) == (chosen.needs == "labels") for m in measured)
    if "rows" in kept.arrays:
        assert kept.arrays["rows"].tolist() == list(range(items)), "the images with a label"


def test_no_kind_of_protocol_is_left_out():
    assert {name.partition("/")[0] for name in MEASURING} >= {
        "detection",
        "few-shot",
        "knn",
        "knn-tuned",
        "linear",
        "semi-10pct",
        "semi-1pct",
        "svm",
    }
