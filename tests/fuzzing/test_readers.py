"""Every reader keeps the law on good files and on a few bad ones; ``benchmarks/fuzz.py`` reads a hundred thousand."""

from importlib.util import find_spec
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzzing.law import MEMORY, BrokenLaw, TooSlow, outcome, read_files
from tests.fuzzing.readers import NEEDS, READERS
from twinbench.foundation.errors import InputError

SLICE = settings(
    max_examples=10,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def _needed_by(name):
    """Skip a reader whose package is not installed, which it would name whatever it is given."""
    package = NEEDS.get(name)
    if package and find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")


@pytest.mark.parametrize("name", READERS)
def test_good_files_are_read(name):
    _needed_by(name)
    assert read_files(READERS[name].read, READERS[name].good()) == "value"


@pytest.mark.parametrize("name", READERS)
def test_bad_files_end_in_a_value_or_an_explained_error(name):
    _needed_by(name)

    @SLICE
    @given(seed=st.integers(0, 2**32 - 1))
    def reads(seed):
        assert read_files(READERS[name].read, READERS[name].bad(Random(seed))) in ("value", "error")

    reads()


def test_an_input_is_a_function_of_its_seed():
    for reader in READERS.values():
        assert reader.bad(Random(5)) == reader.bad(Random(5))


def _starts_a_program(folder):
    import subprocess

    subprocess.run(["true"], check=True)


def _writes_elsewhere(folder):
    (folder.parent / f"{folder.name}-elsewhere").mkdir()


def _writes_through_a_link(folder):
    (folder / "link").symlink_to(folder.parent)
    (folder / "link" / f"{folder.name}-elsewhere").write_text("x")


def _prints_an_escape(folder):
    error = InputError("fine")
    error.message = lambda hint="": "\x1b[2J"
    raise error


def _takes_memory(folder):
    # in blocks: one of them could be a hole that an earlier test left between what it kept
    [bytes(MEMORY // 4) for _ in range(32)]


def _fails(folder):
    raise KeyError("unexplained")


def _is_slow(folder):
    while True:
        pass


@pytest.mark.parametrize(
    ("read", "broken"),
    [
        (_starts_a_program, BrokenLaw),
        (_writes_elsewhere, BrokenLaw),
        (_writes_through_a_link, BrokenLaw),
        (_prints_an_escape, BrokenLaw),
        (_takes_memory, MemoryError),
        (_fails, KeyError),
        (_is_slow, TooSlow),
    ],
)
def test_the_law_finds_what_breaks_it(read, broken, tmp_path, monkeypatch):
    if broken is TooSlow:
        monkeypatch.setattr("tests.fuzzing.law.SECONDS", 0.2)
    folder = tmp_path / "input"
    folder.mkdir()
    with pytest.raises(broken):
        outcome(read, folder)
