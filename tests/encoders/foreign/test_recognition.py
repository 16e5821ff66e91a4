"""Which project a file is from, and which of its networks is taken; what nothing speaks of is asked for or plain."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.encoders.foreign.project_files import (
    LAYOUTS,
    another,
    assert_same_features,
    backbone_alone,
    barlow_twins,
    dino,
    feature_dim,
    head,
    lightly,
    lightning,
    mlp,
    mm_barlow,
    mm_byol_old,
    mm_extracted,
    mm_moco,
    mm_moco_old,
    moco_v2,
    moco_v3,
    named,
    openmmlab,
    simclr,
    simsiam,
    solo_keys,
    solo_learn,
    swav,
    torchvision,
    torchvision_resnet,
    under,
    vicreg,
    written,
)
from twinbench.encoders.foreign.files import read_checkpoint
from twinbench.encoders.foreign.importer import read_foreign, recognised
from twinbench.foundation.errors import InputError

Written = Callable[[dict[str, Tensor]], dict]


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_file_is_recognised_as_its_own_project_and_as_no_other(tmp_path, case):
    write, format_name, _ = LAYOUTS[case]
    checkpoint = read_checkpoint(written(tmp_path, write(torchvision_resnet().state_dict())))
    assert [each.name for each in recognised(checkpoint)] == [format_name]


def in_module(b: dict[str, Tensor]) -> dict:
    """Under the wrapper and the names that everybody uses, with a projector as everybody builds it."""
    projector = nn.Sequential(nn.Linear(feature_dim(b), 8), nn.ReLU(), nn.Linear(8, 8))
    return {"model": {**under("backbone.", b), **named("projector.", projector)}, "epoch": 3}


def sequence(b: dict[str, Tensor]) -> dict[str, Tensor]:
    """The children of torchvision's ResNet by their places, as in nn.Sequential(*resnet.children())."""
    places = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    return {f"{places[n.partition('.')[0]]}.{n.partition('.')[2]}": t for n, t in b.items()}


def simclr_of_ones_own(b: dict[str, Tensor]) -> dict:
    return lightning({**under("backbone.", b), **head("projection_head.0.weight", "classifier.weight")})


def supcon(b: dict[str, Tensor]) -> dict:
    """A head inside the ResNet, without SwAV's prototypes."""
    return {"state_dict": {**b, **head("projection_head.0.weight", "projection_head.2.weight")}}


def barlow_with_affine_norm(b: dict[str, Tensor]) -> dict:
    file = barlow_twins(b)
    file["model"] |= {"module.bn.weight": torch.ones(8), "module.bn.bias": torch.zeros(8)}
    return file


def vicreg_with_expander(b: dict[str, Tensor]) -> dict:
    file = vicreg(b)
    file["model"]["module.expander.weight"] = torch.zeros(8, 8)
    return file


# siblings that belong to no project: (how they are written, what stands before the names, what is unexpected)
PLAIN: dict[str, tuple[Written, tuple[str, ...]]] = {
    "bare": (backbone_alone, ()),
    "own_lightning_module": (
        lambda b: lightning({**under("net.", b), **head("head.weight")}),
        ("head.weight",),
    ),
    "lightning_backbone": (lambda b: lightning(under("backbone.", b)), ()),
    "lightning_encoder": (
        lambda b: lightning({**under("encoder.", b), **head("classifier.weight")}),
        ("classifier.weight",),
    ),
    "lightning_model_with_classifier": (lambda b: lightning(under("model.", torchvision(b))), ()),
    "deep_prefix": (lambda b: {"state_dict": under("model.encoder.body.", b)}, ()),
    "unknown_wrapper": (lambda b: {"net": b, "epoch": 3}, ()),
    "projector_as_anybodys": (
        in_module,
        ("projector.0.weight", "projector.0.bias", "projector.2.weight", "projector.2.bias"),
    ),
    "own_heads": (
        lambda b: {**b, **head("head.weight", "aux.0.weight")},
        ("head.weight", "aux.0.weight"),
    ),
    "data_parallel": (lambda b: under("module.", b), ()),
    "compiled": (lambda b: lightning(under("net._orig_mod.", b)), ()),
    "averaged": (lambda b: {**under("module.", b), "n_averaged": torch.tensor(3)}, ("n_averaged",)),
    "sequence": (lambda b: {"state_dict": under("features.", sequence(b))}, ()),
    "sequence_at_top": (sequence, ()),
    "own_simclr": (simclr_of_ones_own, ("projection_head.0.weight", "classifier.weight")),
    "supcon": (supcon, ("projection_head.0.weight", "projection_head.2.weight")),
    "solo_keys_without_proof": (
        lambda b: {"state_dict": solo_keys(b)},
        ("projector.0.weight", "predictor.0.weight", "classifier.weight", "classifier.bias"),
    ),
    "encoder_q_without_queue": (lambda b: {"state_dict": under("module.encoder_q.", b)}, ()),
    "openmmlab_classifier": (
        lambda b: openmmlab({**under("backbone.", b), **head("head.fc.weight")}),
        ("head.fc.weight",),
    ),
    "openmmlab_detector": (
        lambda b: openmmlab(
            {**under("backbone.", b), **head("neck.lateral_convs.0.weight", "bbox_head.cls.weight")}
        ),
        ("neck.lateral_convs.0.weight", "bbox_head.cls.weight"),
    ),
}


@pytest.mark.parametrize("case", PLAIN)
def test_what_speaks_of_no_project_is_plain_and_computes_as_torchvision_does(tmp_path, case):
    write, unexpected = PLAIN[case]
    model = torchvision_resnet()
    foreign = read_foreign(written(tmp_path, write(model.state_dict()), "mine.pth"))
    assert (foreign.info.source_format, foreign.info.method) == ("plain", "mine.pth")
    assert foreign.info.deviation == "none"
    assert "speak of no project" in foreign.info.source_note
    assert foreign.accounting.unexpected == unexpected
    assert_same_features(foreign, model)


# tensors beside a state dict that are no network: (how they are written, the format that the file still is)
LONE: dict[str, tuple[Written, str]] = {
    "accuracy_of_pytorchs_examples": (
        lambda b: {
            "epoch": 1,
            "arch": "resnet18",
            "state_dict": under("module.", torchvision(b)),
            "best_acc1": torch.tensor([60.0]),
            "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(8, 3, 7, 7)}}},
        },
        "torchvision",
    ),
    "loss": (lambda b: {"model_state_dict": b, "loss": torch.tensor(0.3), "epoch": 4}, "plain"),
    "epoch": (lambda b: {"epoch": torch.tensor(3), "state_dict": torchvision(b)}, "torchvision"),
    "names_with_dots": (
        lambda b: {"val.loss": torch.tensor(3.0), "state_dict": torchvision(b)},
        "torchvision",
    ),
    "pictures": (lambda b: {"pictures": torch.zeros(2, 3, 8, 8), "net": b}, "plain"),
    "pictures_in_a_mapping": (
        lambda b: {"state_dict": torchvision(b), "seen": {"val": torch.zeros(2, 3, 8, 8)}},
        "torchvision",
    ),
    "between_the_wrappers": (
        lambda b: {"a.b": torch.zeros(2), "state_dict": {"step": torch.tensor(3), "model": torchvision(b)}},
        "torchvision",
    ),
    "training_checkpoint": (lambda b: moco_v2(b) | {"best_acc1": torch.tensor(60.0)}, "moco_v2"),
}


@pytest.mark.parametrize("case", LONE)
def test_a_lone_tensor_beside_a_state_dict_is_no_network(tmp_path, case):
    write, format_name = LONE[case]
    model = torchvision_resnet()
    foreign = read_foreign(written(tmp_path, write(model.state_dict())))
    assert foreign.info.source_format == format_name
    assert foreign.accounting.unexpected == ()
    assert_same_features(foreign, model)


def test_tensors_alone_are_no_state_dict(tmp_path):
    with pytest.raises(InputError, match="no state dict in this file; its keys: loss, best"):
        read_foreign(written(tmp_path, {"loss": torch.tensor(1.0), "best": torch.tensor(2.0)}))


def simsiam_with_queue(b: dict[str, Tensor]) -> dict:
    file = simsiam(b)
    file["state_dict"]["module.queue"] = torch.zeros(4, 4)
    return file


@pytest.mark.parametrize("write", [barlow_with_affine_norm, vicreg_with_expander, simsiam_with_queue])
def test_a_training_checkpoint_with_other_heads_is_not_called_by_the_name_of_its_neighbour(tmp_path, write):
    foreign = read_foreign(written(tmp_path, write(torchvision_resnet().state_dict())))
    assert (foreign.info.source_format, foreign.info.method) == ("plain", "some_net.pth")


@pytest.mark.parametrize(("write", "key"), [(moco_v2, "module.queue2"), (moco_v3, "module.decoder.weight")])
def test_a_descendant_with_parts_of_its_own_is_not_called_by_the_name_of_its_ancestor(tmp_path, write, key):
    """DenseCL has a second queue, for one; which of its networks counts is for the user to say."""
    file = write(torchvision_resnet().state_dict())
    file["state_dict"][key] = torch.zeros(4, 4)
    path = written(tmp_path, file)
    with pytest.raises(InputError, match="2 networks in this file"):
        read_foreign(path)
    (network,) = {"encoder_q", "base_encoder"} & {
        part.partition(".")[0] for part in read_checkpoint(path).tensors
    }
    assert read_foreign(path, network=network).info.method == "some_net.pth"


@pytest.mark.parametrize("groups", [(), ("backbone", "classifier"), ("backbone", "projector")])
def test_a_small_stem_under_solo_learns_names_is_asked_for(tmp_path, groups):
    """A LightningModule of one's own may have these names; solo-learn's stem alone pads by 2."""
    model = torchvision_resnet(small_stem=True)
    path = written(tmp_path, lightning(solo_keys(model.state_dict()), *groups))
    with pytest.raises(InputError, match="the first convolution is 3x3") as error:
        read_foreign(path)
    assert "solo-learn pads by 2, name the format solo_learn" in (error.value.next_step or "")
    assert_same_features(read_foreign(path, stem="small"), model, side=32)
    as_solo = read_foreign(path, "solo_learn")
    assert (as_solo.info.source_format, as_solo.info.source_note) == ("solo_learn", "")
    model.conv1.padding = (2, 2)
    assert_same_features(as_solo, model, side=32)


def test_torchvisions_old_weights_saved_again_may_be_simclrs_and_are_asked_for(tmp_path):
    """Weights that had no batch counters, loaded and saved under state_dict, have counters of 0, as SimCLR's do."""
    path = written(tmp_path, simclr(torchvision_resnet().state_dict()))
    with pytest.raises(InputError, match="several formats: simclr, torchvision") as error:
        read_foreign(path)
    assert error.value.option == "format"
    assert read_foreign(path, "torchvision").info.deviation == "none"
    assert read_foreign(path, "simclr").info.deviation == "same_max_pool"


@pytest.mark.parametrize("write", [dino, moco_v3])
def test_a_vision_transformer_of_the_same_project_is_no_resnet(tmp_path, write):
    file = write(torchvision_resnet().state_dict())
    vit = {"blocks.0.attn.qkv.weight": torch.zeros(4, 4), "patch_embed.proj.weight": torch.zeros(4, 3, 8, 8)}
    if write is dino:
        file |= {"student": under("module.backbone.", vit), "teacher": under("backbone.", vit)}
    else:
        file["state_dict"] = {**under("module.base_encoder.", vit), **under("module.momentum_encoder.", vit)}
    with pytest.raises(InputError, match="no known format") as error:
        read_foreign(written(tmp_path, file))
    assert "no format finds a ResNet here" in error.value.what
    assert "torchvision's ResNets" in (error.value.next_step or "")


# which of several networks is taken, the ones left out, those that are the same tensors, and whose custom that is
SEVERAL: dict[str, tuple[Written, str, str, str, str]] = {
    "dino": (dino, "teacher.backbone", "student.backbone", "", "eval_linear.py of DINO"),
    "moco_v3": (moco_v3, "base_encoder", "momentum_encoder", "", "main_lincls.py of MoCo v3"),
    "moco_v2": (moco_v2, "encoder_q", "encoder_k", "", "main_lincls.py of MoCo"),
    "lightly": (lightly, "backbone", "teacher_backbone", "", "lightly's benchmarks"),
    "solo_learn": (solo_learn, "backbone", "momentum_backbone", "", "main_linear.py of solo-learn"),
    "mm_moco": (mm_moco, "backbone", "encoder_k.module.0", "", "extract_backbone_weights.py"),
    "mm_moco_old": (mm_moco_old, "backbone", "encoder_k.0", "encoder_q.0", "extract_backbone_weights.py"),
    "mm_byol_old": (mm_byol_old, "backbone", "target_net.0", "online_net.0", "extract_backbone_weights.py"),
}


@pytest.mark.parametrize("case", SEVERAL)
def test_of_several_networks_the_one_that_its_project_evaluates_is_taken_and_the_rest_named(tmp_path, case):
    write, name, left_out, same, custom = SEVERAL[case]
    model = torchvision_resnet()
    path = written(tmp_path, write(model.state_dict()))
    foreign = read_foreign(path, method="mine")
    assert_same_features(foreign, model)
    (note,) = [note for note in foreign.accounting.notes if "networks in this file" in note]
    assert note.startswith(f"2 networks in this file: {name} is taken, which {custom}")
    assert f"left out: {left_out}" in note
    assert (f"{same} and {name} are the same tensors" in note) == bool(same)
    assert foreign.accounting.unexpected == ()
    assert foreign.info.source_note.startswith(note)
    asked = read_foreign(path, method="mine", network=left_out)
    moved = torchvision_resnet()
    moved.load_state_dict(another(model.state_dict()))
    assert_same_features(asked, moved)
    assert f"the network {left_out} of this file is taken, as asked, not {name}" in asked.info.source_note
    assert asked.info.source_format == foreign.info.source_format
    assert read_foreign(path, method="mine", network=name).info == foreign.info


@pytest.mark.parametrize("write", [mm_barlow, mm_extracted])
def test_a_file_of_mmselfsup_with_one_network_needs_no_note(tmp_path, write):
    foreign = read_foreign(written(tmp_path, write(torchvision_resnet().state_dict())))
    assert (foreign.info.source_note, foreign.accounting.notes) == ("", ())


def test_two_names_of_mmselfsup_whose_tensors_differ_are_asked_for(tmp_path):
    file = mm_moco_old(torchvision_resnet().state_dict())
    file["state_dict"]["encoder_q.0.bn1.running_mean"] = (
        file["state_dict"]["backbone.bn1.running_mean"] + 1e-3
    )
    with pytest.raises(InputError, match="3 networks in this file") as error:
        read_foreign(written(tmp_path, file))
    assert "backbone, encoder_q.0, encoder_k.0" in error.value.what
    assert error.value.option == "network"


def timm(b: dict[str, Tensor]) -> dict:
    """timm/utils/checkpoint_saver.py, with the moving average of the weights."""
    return {
        "epoch": 3,
        "arch": "resnet18",
        "state_dict": torchvision(b),
        "state_dict_ema": torchvision(another(b)),
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(8, 3, 7, 7)}}},
        "version": 2,
        "metric": 73.2,
    }


ASKED: dict[str, tuple[Written, str, str]] = {
    "timm": (timm, "state_dict", "state_dict_ema"),
    "torchvision_references": (
        lambda b: {
            "model": torchvision(b),
            "model_ema": {**under("module.", another(b)), **head("n_averaged")},
        },
        "model",
        "model_ema.module",
    ),
    "lightning_averaging": (
        lambda b: lightning(under("net.", b)) | {"current_model_state": under("net.", another(b))},
        "state_dict.net",
        "current_model_state.net",
    ),
    "teacher_and_student_of_ones_own": (
        lambda b: {"student": b, "teacher": another(b)},
        "student",
        "teacher",
    ),
    "target_in_one_state_dict": (
        lambda b: lightning({**under("online.", b), **under("target.", another(b))}),
        "online",
        "target",
    ),
    "solo_keys_without_proof": (
        lambda b: lightning({**solo_keys(b), **under("momentum_backbone.", another(b))}),
        "backbone",
        "momentum_backbone",
    ),
    "average_beside_bare_names": (lambda b: {**b, **under("ema.", another(b))}, ".", "ema"),
    "average_in_a_mapping_beside_bare_names": (lambda b: {**b, "ema": another(b)}, ".", "ema"),
    "sequences": (
        lambda b: {**under("q.", sequence(b)), **under("k.", sequence(another(b)))},
        "q",
        "k",
    ),
}


@pytest.mark.parametrize("case", ASKED)
def test_of_networks_that_no_project_speaks_for_one_must_be_named(tmp_path, case):
    write, first, second = ASKED[case]
    model = torchvision_resnet()
    path = written(tmp_path, write(model.state_dict()), "mine.ckpt")
    with pytest.raises(InputError, match="2 networks in this file") as error:
        read_foreign(path)
    assert f"{first}, {second}" in error.value.what
    assert error.value.option == "network"
    moved = torchvision_resnet()
    moved.load_state_dict(another(model.state_dict()))
    for name, network in ((first, model), (second, moved)):
        foreign = read_foreign(path, network=name)
        assert_same_features(foreign, network)
        assert f"the network {name} of this file is taken, as asked" in foreign.info.source_note
        assert any("2 networks in this file" in note for note in foreign.accounting.notes)
        assert foreign.info.method == "mine.ckpt"
        assert "another network" in foreign.accounting.ignored
    with pytest.raises(InputError, match="no single network of this file is called 'nothing'") as error:
        read_foreign(path, network="nothing")
    assert f"{first}, {second}" in (error.value.next_step or "")


@pytest.mark.parametrize("states", [3, [3], [{"param_groups": 3}], [{"param_groups": [{"name": [1]}, 3]}]])
def test_optimizer_states_that_are_no_such_thing_say_nothing(tmp_path, states):
    file = lightning(solo_keys(torchvision_resnet().state_dict())) | {"optimizer_states": states}
    assert read_foreign(written(tmp_path, file)).info.source_format == "plain"


def test_a_pickle_that_holds_itself_is_no_state_dict(tmp_path):
    file: dict = {"epoch": 3}
    file["model"] = file
    with pytest.raises(InputError, match="no state dict in this file"):
        read_foreign(written(tmp_path, file))


def test_a_head_beside_a_network_without_prefix_belongs_to_nobody(tmp_path):
    b = torchvision_resnet().state_dict()
    path = written(
        tmp_path, {**b, **head("head.weight"), **under("ema.", another(b)), **head("ema.head.weight")}
    )
    accounting = read_foreign(path, network="ema").accounting
    assert accounting.unexpected == ("head.weight", "ema.head.weight")
    assert set(accounting.ignored["another network"]) == set(b)


def test_a_beginning_names_a_network_where_it_fits_one_alone(tmp_path):
    path = written(tmp_path, dino(torchvision_resnet().state_dict()))
    assert "student.backbone of this file" in read_foreign(path, network="student").info.source_note
    with pytest.raises(InputError, match="no single network"):
        read_foreign(path, network="stud")


@pytest.mark.parametrize(
    ("write", "asked", "right"),
    [
        (dino, "torchvision", "dino"),
        (moco_v3, "moco_v2", "moco_v3"),
        (simsiam, "moco_v3", "simsiam"),
        (barlow_twins, "swav", "barlow_twins"),
        (backbone_alone, "simsiam", "plain"),
    ],
)
def test_only_a_format_that_would_succeed_is_suggested(tmp_path, write, asked, right):
    path = written(tmp_path, write(torchvision_resnet().state_dict()))
    with pytest.raises(InputError, match="no tensor of a ResNet under the names of") as error:
        read_foreign(path, asked)
    assert (error.value.nearest or "").startswith(f"{right} (100 of 100")
    assert read_foreign(path, right).accounting.complete


@pytest.mark.parametrize("format_name", ["timm", "torchvision", "plain"])
def test_timms_two_networks_are_asked_for_in_its_own_format_as_well(tmp_path, format_name):
    path = written(tmp_path, timm(torchvision_resnet().state_dict()))
    with pytest.raises(InputError) as error:
        read_foreign(path, format_name)
    assert error.value.option == "network"
    assert "state_dict, state_dict_ema" in f"{error.value.what} {error.value.next_step}"
    taken = read_foreign(path, format_name, network="state_dict_ema")
    assert taken.accounting.ignored["classifier"] == ("state_dict_ema.fc.weight", "state_dict_ema.fc.bias")
    assert taken.info.source_format == format_name


@pytest.mark.parametrize("case", LAYOUTS)
def test_nothing_is_suggested_for_what_no_format_can_read(tmp_path, case):
    """Values that are not finite: complete in every respect, and still no format reads it."""
    b = torchvision_resnet().state_dict()
    b["layer2.1.bn2.running_var"][3] = torch.nan
    path = written(tmp_path, LAYOUTS[case][0](b))
    wrong = "moco_v2" if LAYOUTS[case][1] != "moco_v2" else "simsiam"
    with pytest.raises(InputError) as error:
        read_foreign(path, wrong)
    assert error.value.nearest is None


def test_the_log_of_openmmlabs_runner_is_thrown_away_and_no_code_of_it_is_run(tmp_path, monkeypatch):
    """mmengine saves curves as objects of its own, with arrays of numpy (mmengine/logging/history_buffer.py)."""
    module = ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self) -> None:
            self._log_history, self._count_history, self.max_length = np.arange(3.0), np.ones(3), 10**6

        def __setstate__(self, state: object) -> None:
            raise AssertionError("code of the file was run")

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    model = torchvision_resnet()
    file = mm_moco(model.state_dict())
    file["message_hub"] = {
        "log_scalars": OrderedDict({"train/loss": HistoryBuffer()}),
        "runtime_info": OrderedDict(epoch=3),
        "resumed_keys": OrderedDict({"train/loss": True}),
    }
    path = written(tmp_path, file)
    foreign = read_foreign(path)
    assert foreign.info.source_format == "mmselfsup"
    assert_same_features(foreign, model)
    with pytest.raises(AssertionError, match="code of the file was run"):
        torch.load(path, weights_only=False)


@pytest.mark.parametrize("text", ["backbone=dict(type='ResNet', style='caffe')", '"style": "caffe"'])
def test_strides_of_caffe_in_openmmlabs_configuration_are_refused(tmp_path, text):
    b = torchvision_resnet(bottleneck=True).state_dict()
    state = {**under("backbone.", b), **head("neck.fc0.weight")}
    assert read_foreign(written(tmp_path, openmmlab(state, cfg="style='pytorch'"))).accounting.complete
    with pytest.raises(InputError, match="style='caffe'"):
        read_foreign(written(tmp_path, openmmlab(state, cfg=text)))


def test_lightly_reads_sequences_with_its_own_heads_alone(tmp_path):
    state = under("backbone.", sequence(torchvision_resnet().state_dict()))
    ours = read_foreign(
        written(tmp_path, {"state_dict": {**state, **head("projection_head.layers.0.weight")}})
    )
    assert ours.info.source_format == "lightly"
    assert read_foreign(written(tmp_path, {"state_dict": state})).info.source_format == "plain"


def test_simsiam_and_swav_need_their_whole_heads(tmp_path):
    b = torchvision_resnet().state_dict()
    mine = {
        **under("encoder.", b),
        **named("encoder.fc.", mlp(64, 8, 8)),
        **named("predictor.", mlp(8, 8, 8)),
    }
    assert read_foreign(written(tmp_path, {"state_dict": mine})).info.source_format == "plain"
    with_classifier = {**swav(b), **head("module.fc.weight")}
    assert read_foreign(written(tmp_path, with_classifier)).info.source_format == "torchvision"
