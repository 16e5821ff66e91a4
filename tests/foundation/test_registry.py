import pytest

from twinbench.foundation.errors import InputError
from twinbench.foundation.registry import Registry


@pytest.fixture
def registry():
    registry = Registry[object]("method")
    registry.add("simclr", dict)
    registry.add("byol", list)
    return registry


def test_names_are_sorted_and_lead_to_their_entries(registry):
    assert registry.names() == ["byol", "simclr"]
    assert registry["byol"] is list
    assert "byol" in registry
    assert "moco" not in registry


def test_an_unknown_name_is_refused_with_the_nearest_and_all_the_others(registry):
    with pytest.raises(InputError) as error:
        registry["simlcr"]
    assert (error.value.what, error.value.nearest) == ("unknown method 'simlcr'", "simclr")
    assert error.value.next_step == "use one of: byol, simclr"


def test_a_name_cannot_be_taken_from_its_owner_who_is_named(registry):
    with pytest.raises(ValueError, match=r"method 'byol' is already registered by builtins\.list"):
        registry.add("byol", dict)
    assert registry["byol"] is list


def test_the_class_of_an_instance_that_owns_a_name_is_named(registry):
    registry.add("instance", InputError("what"))
    with pytest.raises(ValueError, match=r"by twinbench\.foundation\.errors\.InputError"):
        registry.add("instance", 1)


def test_registering_the_same_thing_again_changes_nothing(registry):
    """A module that is imported under two names must not fail."""
    assert registry.add("byol", list) is list
    assert registry.names() == ["byol", "simclr"]


def test_a_nameless_entry_is_refused(registry):
    with pytest.raises(ValueError, match="a method needs a name"):
        registry.add("", dict)
