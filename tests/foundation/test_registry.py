import pytest

from twinbench.foundation.errors import InputError
from twinbench.foundation.registry import Registry, all_or_nothing


@pytest.fixture
def registry():
    registry = Registry[object]("method")
    registry.add("simclr", dict)
    registry.add("byol", list)
    return registry


def test_names_are_sorted_and_lead_to_their_entries(registry):
    assert registry.names() == ["byol", "simclr"]
    assert registry.entries() == [dict, list]
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


def test_an_empty_registry_says_how_it_is_filled():
    with pytest.raises(InputError) as error:
        Registry[object]("method", filled_by="house.load()")["byol"]
    assert error.value.what == "unknown method 'byol': no method is registered in this process"
    assert error.value.next_step == "fill the registry by house.load()"


def test_names_from_elsewhere_may_be_meant_as_well(registry):
    error = registry.unknown("colour", others=["colours"])
    assert (error.nearest, error.next_step) == ("colours", "use one of: byol, colours, simclr")


def test_a_block_that_fails_registers_nothing_anywhere(registry):
    other = Registry[object]("protocol")

    def register_both():
        registry.add("swav", set)
        other.add("knn", int)

    def fail():
        with all_or_nothing():
            registry.add("byol", list)
            register_both()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert registry.names() == ["byol", "simclr"]
    assert other.names() == []
    with all_or_nothing():
        register_both()
    assert registry["swav"] is set
    assert other["knn"] is int
