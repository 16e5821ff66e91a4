"""The parts of an error, in its message and across processes."""

import pickle

import pytest

from twinbench.foundation.errors import InputError, RunFailure

PARTS = ("no such set", "folder", "digit-scenes", "give another", "image_set")


@pytest.mark.parametrize("kind", [InputError, RunFailure])
def test_every_part_crosses_a_process_boundary(kind):
    error = kind(*PARTS)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.what, copy.where, copy.nearest, copy.next_step, copy.option) == PARTS


def test_the_message_says_the_parts_that_there_are_and_a_hint_after_the_next_step():
    error = InputError("no such set", nearest="digit-scenes", next_step="give another", option="image_set")
    assert str(error) == "no such set\n  nearest: digit-scenes\n  next:    give another"
    assert error.message("--image-set NAME").endswith("next:    give another (--image-set NAME)")
    assert InputError("no such set").message("--image-set NAME") == "no such set"
