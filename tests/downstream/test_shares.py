"""Evaluations on one process and on several give the same numbers; killed ones end with the same bits.

The processes are real (``shares_worker.py``): ranks of gloo that compute in fp64, and others that SIGKILL ends.
"""

import importlib.util
import logging
from pathlib import Path

import pytest
import torch

from tests.forks import run
from twinbench.downstream import checkpoints
from twinbench.downstream.checkpoints import Checkpoints

_WORKER = Path(__file__).with_name("shares_worker.py")
_spec = importlib.util.spec_from_file_location("shares_worker", _WORKER)
worker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(worker)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder in which the processes have left what they found."""
    folder = tmp_path_factory.mktemp("shares")
    finished = run(_WORKER, folder, cwd=folder)
    assert finished.returncode == 0, finished.stderr
    return folder


@pytest.fixture(scope="module")
def one_process(results):
    return torch.load(results / "result.1.0", weights_only=False)


def of_ranks(results, world):
    return [torch.load(results / f"result.{world}.{rank}", weights_only=False) for rank in range(world)]


@pytest.fixture(scope="module", params=[world for world in worker.WORLDS if world > 1])
def ranks(request, results):
    return of_ranks(results, request.param)


@pytest.mark.numerics
@pytest.mark.parametrize(
    ("world", "case"),
    [(world, case) for world in worker.WORLDS if world > 1 for case in worker.trained_on(world)],
)
def test_every_rank_trains_and_measures_what_one_process_does(world, case, results, one_process, margin):
    expected = one_process[case]
    for rank, result in enumerate(of_ranks(results, world)):
        if rank == 0 or case not in worker.DETECTORS:  # whose precisions rank 0 alone computes
            assert result[case]["measured"] == expected["measured"]
            require_equal_detections(result[case]["detections"], expected["detections"])
        assert result[case]["details"] == expected["details"]
        # a detector's matching of boxes makes more of rounding
        bar = 1e-7 if case in worker.DETECTORS else 1e-9
        margin.close("difference", result[case]["weights"], expected["weights"], rtol=bar, atol=bar / 100)


def require_equal_detections(found, expected):
    """None are found by a classification; scores are rounded in the file."""
    assert (found is None) == (expected is None)
    for one, other in zip(found or [], expected or [], strict=True):
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert one["score"] == pytest.approx(other["score"], rel=1e-6)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-4)


def test_every_rank_has_the_svms_of_one_process(ranks, one_process):
    for result in ranks:
        assert result["svm/voc07-v2"]["measured"] == one_process["svm/voc07-v2"]["measured"]
        assert result["svm/voc07-v2"]["details"] == one_process["svm/voc07-v2"]["details"]


@pytest.mark.numerics
def test_batch_norm_over_the_images_of_each_rank_is_caught(results, one_process, margin):
    found = of_ranks(results, 2)[0][worker.CONTROL]["weights"]
    expected = one_process["published fine-tuning"]["weights"]
    key = "training model head.weight"
    difference = (found[key] - expected[key]).norm() / expected[key].norm()
    margin.at_least("relative difference", difference.item(), 1e-4)


def test_features_computed_in_turns_are_those_of_one_process_in_their_order(ranks, one_process):
    assert one_process["features"].shape[0] == worker.FEATURES
    for result in ranks:
        assert torch.equal(result["features"], one_process["features"])


def test_every_rank_knows_what_the_others_met_in_the_pictures(ranks, one_process):
    labels, skipped, remarks = one_process["streamed"]["skip"]
    assert sum(split.count(-1) for split in labels) == sum(skipped.values()) == 3
    assert any("transparent" in remark for remark in remarks)
    for result in ranks:
        assert result["streamed"]["skip"] == one_process["streamed"]["skip"]


def test_a_picture_that_one_rank_cannot_read_ends_every_rank(ranks, one_process):
    kind, message = one_process["streamed"]["refuse"]
    assert kind == "CorruptImage"
    for result in ranks:
        assert result["streamed"]["refuse"] == (kind, message)


@pytest.mark.parametrize("case", worker.KILLED)
def test_a_killed_evaluation_ends_with_the_same_bits(case, results, one_process):
    went_on, first = torch.load(results / "went on", weights_only=False)[case]
    assert first == ({"choice": 4, "refit": 3} if case == "grid" else {"training": 3})
    whole = one_process[case]
    assert all(went_on[key] == whole[key] for key in ("measured", "details", "detections"))
    assert went_on["weights"].keys() == whole["weights"].keys()
    assert all(torch.equal(went_on["weights"][key], value) for key, value in whole["weights"].items())


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder with a checkpoint of a layer after step 5 of this evaluation."""
    monkeypatch.setattr(checkpoints, "_SECONDS", 0.0)
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.ones_(layer.weight)
    Checkpoints(tmp_path, {"seed": 0}).training("training", layer=layer).keep(5)
    return tmp_path


def test_a_checkpoint_is_taken_up_until_it_is_removed(kept):
    evaluation, layer = Checkpoints(kept, {"seed": 0}), torch.nn.Linear(2, 2)
    assert evaluation.training("training", layer=layer).first == 5
    assert torch.equal(layer.weight, torch.ones(2, 2))
    evaluation.remove()
    assert not kept.exists()
    assert evaluation.training("training", layer=layer).first == 0


@pytest.mark.parametrize(
    ("harm", "said"), [("damaged", "is damaged"), ("foreign", "is of another evaluation")]
)
def test_a_damaged_or_foreign_checkpoint_is_named_and_training_begins_anew(kept, caplog, harm, said):
    (path,) = kept.glob("training/step-*.pt")
    if harm == "damaged":
        path.write_bytes(path.read_bytes()[:-9])
    layer = torch.nn.Linear(2, 2)
    before = layer.weight.clone()
    with caplog.at_level(logging.WARNING):
        state = Checkpoints(kept, {"seed": int(harm == "foreign")}).training("training", layer=layer)
    assert state.first == 0
    assert torch.equal(layer.weight, before)
    assert said in caplog.text
    assert str(kept / "training") in caplog.text
    assert not path.exists()
