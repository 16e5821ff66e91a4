import logging

import pytest
import torch

from twinbench.foundation.checkpoint import load_latest, remove_checkpoints, save_checkpoint
from twinbench.foundation.errors import RunFailure


def test_the_last_two_are_kept_and_the_newest_is_read(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"step": step, "weights": torch.full((3,), float(step))})
    assert len(list(tmp_path.glob("step-*.pt"))) == 2
    state = load_latest(tmp_path)
    assert state is not None
    assert state["step"] == 3
    assert torch.equal(state["weights"], torch.full((3,), 3.0))
    remove_checkpoints(tmp_path)
    assert load_latest(tmp_path) is None


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_a_damaged_file_is_named_and_the_one_before_is_used(tmp_path, caplog, damage):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"step": step})
    newest = max(tmp_path.glob("step-*.pt"))
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2] if damage == "truncated" else content[:-1] + b"\x01")
    with caplog.at_level(logging.WARNING):
        state = load_latest(tmp_path)
    assert state == {"step": 1}
    assert newest.name in caplog.text


def test_loading_runs_no_code(tmp_path):
    class Attack:
        def __reduce__(self):
            return print, ("ran code",)

    save_checkpoint(tmp_path, 1, {"payload": Attack()})
    with pytest.raises(RunFailure, match="UnpicklingError"):
        load_latest(tmp_path)
