import pickle
from contextlib import suppress

import pytest

from twinbench.downstream.detection import choices
from twinbench.downstream.protocol import Measurement, Protocol, protocol, protocol_names, register_protocol
from twinbench.foundation.errors import InputError
from twinbench.foundation.registry import all_or_nothing


class Over(Exception):
    """The end of a test, at which its registrations are undone."""


@pytest.fixture(autouse=True)
def restored_registry():
    with suppress(Over), all_or_nothing():
        yield
        raise Over


def toy(full_name):
    class Toy(Protocol):
        name = full_name
        needs = "labels"

        def evaluate(self, encoder, context):
            return [Measurement("answer", 42.0, n=1)]

        def forward_passes(self, image_set):
            return 0.0

    return Toy


def test_every_protocol_of_the_house_is_found():
    assert {
        "knn/cosine-v1",
        "knn-tuned/cosine-v1",
        "few-shot/1-v1",
        "few-shot/5-v1",
        "few-shot/10-v1",
        "linear/cached-v1",
        "linear/grid-v1",
        "linear/sgd-v2",
        "linear/byol-v1",
        "linear/moco-v1",
        "linear/simclr-v1",
        "linear/simsiam-v1",
        "linear/swav-v1",
        "linear/places205-v2",
        "linear/inat18-v2",
        "svm/voc07-v2",
        "semi-1pct/finetune-v2",
        "semi-10pct/finetune-v2",
        "semi-1pct/paper-v3",
        "semi-10pct/paper-v3",
        "detection/small-mask-rcnn-torchvision-v2",
    } <= set(protocol_names())


def test_every_protocol_has_its_name_and_need():
    for name in protocol_names():
        assert protocol(name).name == name
        assert protocol(name).needs in ("labels", "detection", "images")
        assert protocol(name).forward_passes.__doc__


def test_a_protocol_from_outside_is_registered_and_evaluated(encoder, context):
    register_protocol(toy("toy/constant-v1"))
    assert "toy/constant-v1" in protocol_names()
    assert protocol("toy").evaluate(encoder, context) == [Measurement("answer", 42.0, n=1)]


def test_an_instance_is_registered_as_it_is():
    constant = toy("toy/constant-v1")()
    assert register_protocol(constant) is constant
    assert protocol("toy/constant-v1") is constant


def test_every_protocol_reaches_a_worker_process_as_it_is():
    for name in protocol_names():
        copied = pickle.loads(pickle.dumps(protocol(name)))
        assert type(copied) is type(protocol(name))
        assert vars(copied) == vars(protocol(name))


def test_a_name_stands_for_one_object():
    assert protocol("knn") is protocol("knn/cosine-v1")


def test_a_family_means_its_newest_version():
    for version in (2, 10, 9):
        register_protocol(toy(f"knn/cosine-v{version}"))
    assert protocol("knn").name == "knn/cosine-v10"
    assert protocol("svm").name == "svm/voc07-v2"


@pytest.mark.parametrize("version", [1, 2])
def test_a_family_with_two_variants_must_be_named_in_full_whatever_their_versions(version):
    register_protocol(toy(f"knn/euclidean-v{version}"))
    with pytest.raises(InputError, match=f"knn/cosine-v1, knn/euclidean-v{version}"):
        protocol("knn")
    with pytest.raises(InputError, match="semi-1pct/finetune-v2, semi-1pct/paper-v3"):
        protocol("semi-1pct")
    with pytest.raises(
        InputError,
        match="linear/byol-v1, linear/cached-v1, linear/grid-v1, linear/inat18-v2, linear/moco-v1, linear/places205-v2",
    ):
        protocol("linear")


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("knn/cosin-v1", "knn/cosine-v1"),
        ("knn/cosine-v2", "knn/cosine-v1"),
        ("Linear/cached-v1", "linear/cached-v1"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(wrong, nearest):
    with pytest.raises(InputError) as error:
        protocol(wrong)
    assert error.value.nearest == nearest
    assert wrong in str(error.value)
    assert "detection/small-mask-rcnn-torchvision-v2" in str(error.value)


def test_two_protocols_cannot_share_a_name():
    with pytest.raises(ValueError, match="already registered"):
        register_protocol(toy("knn/cosine-v1"))


@pytest.mark.parametrize("name", ["knn", "knn/cosine", "KNN/cosine-v1", "knn/cosine-vx"])
def test_a_name_without_version_is_refused(name):
    with pytest.raises(ValueError, match="family/variant-vN"):
        register_protocol(toy(name))


@pytest.mark.parametrize(("found", "library"), [(True, "detectron2-v1"), (False, "torchvision-v2")])
@pytest.mark.parametrize("name", ["detection/c4", "detection/voc-c4"])
def test_a_choice_stands_for_the_protocol_of_the_installed_library(monkeypatch, name, found, library):
    monkeypatch.setattr(choices, "detectron2_found", lambda: found)
    assert protocol(name).name == f"{name}-{library}"
    assert name not in protocol_names()


def test_a_mistyped_choice_is_named():
    with pytest.raises(InputError) as caught:
        protocol("detection/voc-c5")
    assert caught.value.nearest == "detection/voc-c4"


@pytest.mark.parametrize("before", ["torchvision-fpn-v1", "small-mask-rcnn-torchvision-v1"])
def test_a_name_that_a_protocol_had_before_leads_to_its_successor(before):
    with pytest.raises(InputError) as caught:
        protocol(f"detection/{before}")
    assert caught.value.nearest == "detection/small-mask-rcnn-torchvision-v2"
    assert protocol(caught.value.nearest).name == caught.value.nearest


CROP, DRAWN = "its test crop is torchvision's to the pixel", "its labelled images are drawn by the seed"


@pytest.mark.parametrize(
    ("old", "successor", "differs"),
    [
        *[
            (f"{n}-v1", f"{n}-v2", CROP)
            for n in ("linear/sgd", "linear/places205", "linear/inat18", "svm/voc07")
        ],
        ("semi-1pct/paper-v1", "semi-1pct/paper-v3", f"{CROP}, and {DRAWN}"),
        ("semi-10pct/paper-v2", "semi-10pct/paper-v3", DRAWN),
        ("semi-1pct/finetune-v1", "semi-1pct/finetune-v2", DRAWN),
    ],
)
def test_a_replaced_version_leads_to_its_successor_and_says_what_differs(old, successor, differs):
    with pytest.raises(InputError, match=f"was replaced by {successor}: {differs}") as caught:
        protocol(old)
    assert caught.value.nearest == successor
    assert protocol(successor).name == successor
    assert old not in protocol_names()
