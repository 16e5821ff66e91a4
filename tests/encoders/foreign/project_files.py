"""Checkpoints of every project, small ones in its own key layout, made from torchvision's own ResNet."""

from __future__ import annotations

import argparse
import copy
import re
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from twinbench.encoders.foreign.importer import ForeignEncoder

WIDTH = 8


def torchvision_resnet(bottleneck: bool = False, small_stem: bool = False, seed: int = 0) -> ResNet:
    """ResNet-18 or ResNet-50 of width 8 without classifier, evaluating, with batch statistics that matter."""
    return copy.deepcopy(_drawn_resnet(bottleneck, small_stem, seed))


@cache
def _drawn_resnet(bottleneck: bool, small_stem: bool, seed: int) -> ResNet:
    """Drawn once in a process: torchvision draws the weights of a full width before they are replaced."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        block, depths = (Bottleneck, [3, 4, 6, 3]) if bottleneck else (BasicBlock, [2, 2, 2, 2])
        model = ResNet(block, [1, 1, 1, 1])
        model.conv1 = (
            nn.Conv2d(3, WIDTH, 3, 1, 1, bias=False)
            if small_stem
            else nn.Conv2d(3, WIDTH, 7, 2, 3, bias=False)
        )
        model.bn1, model.inplanes = nn.BatchNorm2d(WIDTH), WIDTH
        for i, depth in enumerate(depths):
            stage = model._make_layer(block, WIDTH * 2**i, depth, stride=1 if i == 0 else 2)
            setattr(model, f"layer{i + 1}", stage)
        model.fc = nn.Identity()
        if small_stem:
            model.maxpool = nn.Identity()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.1)
                module.num_batches_tracked += 100
    return model.eval()


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def detectron2_detector(b: dict[str, Tensor]) -> dict:
    """A C4 detector as Detectron2's own trainer saves it: res5 in the box head, with a norm of its own after it."""
    part = {"conv1": "stem.conv1", "bn1": "stem.conv1.norm"}
    state = {}
    for name, tensor in b.items():
        first, rest = name.split(".", 1)
        if first in part:
            state[f"backbone.{part[first]}.{rest}"] = tensor
            continue
        for ours, theirs in {
            "bn": "conv%s.norm",
            "downsample.0": "shortcut",
            "downsample.1": "shortcut.norm",
        }.items():
            rest = (
                re.sub(rf"\.{ours}(\d)\.", lambda m, to=theirs: f".{to % m[1]}.", rest)
                if "%" in theirs
                else rest
            )
            rest = rest.replace(f".{ours}.", f".{theirs}.")
        where = "roi_heads" if first == "layer4" else "backbone"
        state[f"{where}.res{int(first[-1]) + 1}.{rest}"] = tensor
    besides = head(
        "roi_heads.res5.norm.weight",
        "proposal_generator.rpn_head.conv.weight",
        "roi_heads.box_predictor.cls_score.bias",
        "roi_heads.mask_head.deconv.weight",
    )
    return {
        "model": {**state, **besides},
        "optimizer": {},
        "scheduler": {"last_epoch": 3},
        "iteration": 23999,
    }


def head(*names: str) -> dict[str, Tensor]:
    return {name: torch.zeros(4, 4) for name in names}


def named(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return under(prefix, module.state_dict())


def feature_dim(b: dict[str, Tensor]) -> int:
    """Width of the features; 64 for what has lost its last tensors."""
    last = b.get("layer4.1.conv3.weight", b.get("layer4.1.conv2.weight"))
    return 64 if last is None else last.shape[0]


def mlp(*widths: int, bias: bool = False, last_bias: bool = False, last_norm: bool = False) -> nn.Sequential:
    """Linear layers with batch norm and ReLU between them; ``last_norm`` adds a norm without scale and shift."""
    layers: list[nn.Module] = []
    for i, (n, m) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        layers += [nn.Linear(n, m, bias=last_bias if last else bias)]
        layers += [] if last else [nn.BatchNorm1d(m), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.BatchNorm1d(widths[-1], affine=False)] if last_norm else []))


def another(b: dict[str, Tensor]) -> dict[str, Tensor]:
    """The network's moving average, say: the same names with other values."""
    return {name: tensor + 1 for name, tensor in b.items()}


def barlow_twins(b: dict[str, Tensor]) -> dict:
    """main.py of barlowtwins, ``checkpoint.pth``."""
    parts = {
        **under("module.backbone.", b),
        **named("module.projector.", mlp(feature_dim(b), 8, 8, 8)),
        **named("module.bn.", nn.BatchNorm1d(8, affine=False)),
    }
    return {"epoch": 3, "model": parts, "optimizer": {"state": {}, "param_groups": [{"lr": 0.2}]}}


def vicreg(b: dict[str, Tensor]) -> dict:
    """main_vicreg.py of vicreg, ``model.pth``."""
    projector = mlp(feature_dim(b), 8, 8, 8, bias=True)
    parts = {**under("module.backbone.", b), **named("module.projector.", projector)}
    return {"epoch": 3, "model": parts, "optimizer": {"state": {}, "param_groups": [{"lr": 0.2}]}}


def backbone_alone(b: dict[str, Tensor]) -> dict:
    """``resnet50.pth`` of barlowtwins and vicreg, ``dino_resnet50_pretrain.pth``."""
    return b


def dino(b: dict[str, Tensor]) -> dict:
    """main_dino.py of dino; the networks keep the batch norms in DistributedDataParallel."""
    heads = head(
        "module.head.mlp.0.weight", "module.head.last_layer.weight_g", "module.head.last_layer.weight_v"
    )
    return {
        "student": {**under("module.backbone.", another(b)), **heads},
        "teacher": {**under("module.backbone.", b), **heads},
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(8, 3, 7, 7)}}, "param_groups": []},
        "epoch": 800,
        "args": argparse.Namespace(arch="resnet50", lr=0.3),
        "dino_loss": {"center": torch.zeros(1, 8)},
        "fp16_scaler": {"scale": 65536.0, "_growth_tracker": 3},
    }


def moco_v3(b: dict[str, Tensor]) -> dict:
    """main_moco.py of moco-v3."""
    projector = named("fc.", mlp(feature_dim(b), 8, 8, last_norm=True))
    state = {
        **under("module.base_encoder.", {**b, **projector}),
        **under("module.momentum_encoder.", {**another(b), **projector}),
        **named("module.predictor.", mlp(8, 8, 8)),
    }
    return {"epoch": 300, "arch": "resnet50", "state_dict": state, "optimizer": {}, "scaler": {"scale": 1.0}}


def moco_v2(b: dict[str, Tensor]) -> dict:
    state = {
        **under("module.encoder_q.", b),
        **head("module.encoder_q.fc.0.weight", "module.encoder_q.fc.2.bias"),
        **under("module.encoder_k.", another(b)),
        **head("module.encoder_k.fc.0.weight", "module.queue", "module.queue_ptr"),
    }
    return {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": {}}


def simsiam(b: dict[str, Tensor]) -> dict:
    projector = mlp(feature_dim(b), 8, 8, 8, last_bias=True, last_norm=True)
    heads = {
        **named("module.encoder.fc.", projector),
        **named("module.predictor.", mlp(8, 8, 8, last_bias=True)),
    }
    return {"epoch": 100, "arch": "resnet50", "state_dict": {**under("module.encoder.", b), **heads}}


def swav(b: dict[str, Tensor]) -> dict:
    heads = head(
        "module.projection_head.0.weight", "module.projection_head.3.bias", "module.prototypes.weight"
    )
    return {**under("module.", b), **heads}


def byol(b: dict[str, Tensor]) -> dict:
    """byol-convert: parameters first, then running statistics, no batch counters, with the linear classifier."""
    own = {**{n: t for n, t in b.items() if "running" not in n and "num_batches" not in n}}
    return {**own, **head("fc.weight", "fc.bias"), **{n: t for n, t in b.items() if "running" in n}}


def simclr(b: dict[str, Tensor]) -> dict:
    """simclr-converter: torchvision's names in a module that was never trained, so its counters are 0."""
    converted = {n: torch.zeros_like(t) if "num_batches" in n else t for n, t in b.items()}
    return {"state_dict": {**converted, **head("fc.weight", "fc.bias")}}


def simclr_v2(b: dict[str, Tensor]) -> dict:
    """SimCLRv2-Pytorch: everything in Sequentials."""
    inside = {"conv1": "0", "bn1": "1.0", "conv2": "2", "bn2": "3.0", "conv3": "4", "bn3": "5.0"}
    shortcut = {"0": "projection.shortcut", "1": "projection.bn.0"}
    renamed = {}
    for name, tensor in b.items():
        first, *rest = name.split(".")
        if not first.startswith("layer"):
            renamed[f"net.0.{inside[first]}.{rest[0]}"] = tensor
            continue
        number, what, *last = rest
        part = shortcut[last.pop(0)] if what == "downsample" else f"net.{inside[what]}"
        renamed[f"net.{first[-1]}.blocks.{number}.{part}.{last[0]}"] = tensor
    return {"resnet": {**renamed, **head("fc.weight")}, "head": head("layers.0.weight")}


def vissl(b: dict[str, Tensor]) -> dict:
    parts = {"trunk": under("_feature_blocks.", b), "heads": head("0.clf.0.weight")}
    return {
        "phase_idx": 99,
        "loss": 5.5,
        "classy_state_dict": {"base_model": {"model": parts}, "optimizer": {}},
    }


def vissl_linear(b: dict[str, Tensor]) -> dict:
    return {
        "classy_state_dict": {"base_model": {"model": {"trunk": under("base_model._feature_blocks.", b)}}}
    }


def lightning(state: dict[str, Tensor], *groups: str) -> dict:
    """What Lightning's trainer writes around a state dict; ``groups`` name the optimizer's parameters, if they do."""
    states = [{"lr": 0.1, "params": [0], **({"name": group} if group else {})} for group in groups]
    return {
        "epoch": 999,
        "global_step": 7,
        "pytorch-lightning_version": "1.6.4",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{}": {"best_model_score": torch.tensor(0.5), "best_model_path": "x"}},
        "optimizer_states": [{"state": {}, "param_groups": states or [{"lr": 0.1, "params": [0]}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1, "method": "anything"},
    }


def solo_keys(b: dict[str, Tensor], backbone: str = "backbone") -> dict[str, Tensor]:
    """The names of solo-learn's tensors, which are anybody's."""
    heads = ("projector.0.weight", "predictor.0.weight", "classifier.weight", "classifier.bias")
    return {**under(f"{backbone}.", b), **head(*heads)}


def solo_learn(b: dict[str, Tensor]) -> dict:
    momentum = {
        **under("momentum_backbone.", another(b)),
        **head("momentum_projector.0.weight", "queue", "queue_ptr"),
    }
    state = {**solo_keys(b), **momentum}
    return lightning(state, "backbone", "classifier", "projector", "predictor", "momentum_classifier")


def solo_learn_old(b: dict[str, Tensor]) -> dict:
    """Before 1.0.3 the backbone was called encoder."""
    return lightning(solo_keys(b, "encoder"), "encoder", "classifier", "projector")


def openmmlab(state: dict[str, Tensor], **more: object) -> dict:
    """What OpenMMLab's runners write around a state dict."""
    meta = {"epoch": 300, "iter": 1, "time": "x", "cfg": "model = dict(type='BarlowTwins')", "hook_msgs": {}}
    return {"meta": {**meta, **more}, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}


def neck(prefix: str) -> dict[str, Tensor]:
    return {
        f"{prefix}fc0.weight": torch.zeros(8, 64),
        f"{prefix}bn0.weight": torch.ones(8),
        f"{prefix}bn0.running_mean": torch.zeros(8),
    }


def mm_barlow(b: dict[str, Tensor]) -> dict:
    return openmmlab({**under("backbone.", b), **neck("neck."), "head.bn.running_mean": torch.zeros(8)})


def mm_moco(b: dict[str, Tensor]) -> dict:
    """1.x and mmpretrain: an averaged model of mmengine."""
    momentum = {**under("encoder_k.module.0.", another(b)), **neck("encoder_k.module.1.")}
    queue = {"queue": torch.zeros(4, 4), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    more = {**queue, **momentum, "encoder_k.steps": torch.tensor(3)}
    return openmmlab({**under("backbone.", b), **neck("neck."), **more}, mmengine_version="0.7.0")


def mm_moco_old(b: dict[str, Tensor]) -> dict:
    """0.x: backbone and neck are in a Sequential as well, so every tensor has two names."""
    query = {**under("encoder_q.0.", b), **neck("encoder_q.1.")}
    key = {**under("encoder_k.0.", another(b)), **neck("encoder_k.1.")}
    return openmmlab({"queue": torch.zeros(4, 4), **query, **key, **under("backbone.", b), **neck("neck.")})


def mm_byol_old(b: dict[str, Tensor]) -> dict:
    online = {**under("online_net.0.", b), **neck("online_net.1.")}
    target = {**under("target_net.0.", another(b)), **neck("target_net.1.")}
    return openmmlab({**online, **target, **under("backbone.", b), **neck("head.predictor.")})


def mm_extracted(b: dict[str, Tensor]) -> dict:
    """tools/model_converters/extract_backbone_weights.py."""
    return {"state_dict": b, "author": "MMSelfSup"}


def lightly(b: dict[str, Tensor]) -> dict:
    """lightly's ImageNet benchmarks."""
    heads = head(
        "projection_head.layers.0.weight", "prediction_head.layers.0.weight", "online_classifier.linear.bias"
    )
    return lightning({**under("backbone.", b), **heads, **under("teacher_backbone.", another(b))})


def lightly_sequential(b: dict[str, Tensor]) -> dict:
    """lightly's tutorials: the children of torchvision's ResNet in a Sequential."""
    positions = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    renamed = {f"backbone.{positions[n.partition('.')[0]]}.{n.partition('.')[2]}": t for n, t in b.items()}
    return {"state_dict": {**renamed, **head("projection_head.layers.0.weight")}}


def torchvision(b: dict[str, Tensor]) -> dict:
    return {**b, **head("fc.weight", "fc.bias")}


def torchvision_training(b: dict[str, Tensor]) -> dict:
    return {"epoch": 90, "arch": "resnet18", "state_dict": under("module.", torchvision(b))}


# name of the test case: (how it is written, the format it is, the method it is called where the user names the format)
LAYOUTS: dict[str, tuple[Callable[[dict[str, Tensor]], dict], str, str | None]] = {
    "barlow_twins": (barlow_twins, "barlow_twins", "barlow_twins"),
    "vicreg": (vicreg, "vicreg", "vicreg"),
    "backbone_alone": (backbone_alone, "plain", None),
    "dino": (dino, "dino", "dino"),
    "moco_v3": (moco_v3, "moco_v3", "moco_v3"),
    "moco_v2": (moco_v2, "moco_v2", "moco_v2"),
    "simsiam": (simsiam, "simsiam", "simsiam"),
    "swav": (swav, "swav", "swav"),
    "byol": (byol, "byol", "byol"),
    "simclr_v2": (simclr_v2, "simclr", "simclr"),
    "vissl": (vissl, "vissl", None),
    "vissl_linear": (vissl_linear, "vissl", None),
    "mm_barlow": (mm_barlow, "mmselfsup", None),
    "mm_moco": (mm_moco, "mmselfsup", None),
    "mm_moco_old": (mm_moco_old, "mmselfsup", None),
    "mm_byol_old": (mm_byol_old, "mmselfsup", None),
    "mm_extracted": (mm_extracted, "mmselfsup", None),
    "solo_learn": (solo_learn, "solo_learn", None),
    "solo_learn_old": (solo_learn_old, "solo_learn", None),
    "lightly": (lightly, "lightly", None),
    "lightly_sequential": (lightly_sequential, "lightly", None),
    "torchvision": (torchvision, "torchvision", None),
    "torchvision_training": (torchvision_training, "torchvision", None),
    "detectron2_detector": (detectron2_detector, "detectron2", None),
}

# these two compute otherwise than torchvision's network does; their features are checked in test_importer.py
DEVIATING = {"byol": "same_padding", "simclr_v2": "same_max_pool"}


def pictures(side: int = 64, n: int = 4) -> Tensor:
    return torch.randint(
        0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )


def written(folder: Path, document: object, name: str = "some_net.pth") -> Path:
    torch.save(document, folder / name)
    return folder / name


def assert_same_features(foreign: ForeignEncoder, model: nn.Module, side: int = 64) -> None:
    """The imported backbone against the foreign definition, on pictures normalised as the importer says."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (foreign.info.mean, foreign.info.std))
    x = (pictures(side).float() / 255 - mean) / std
    # In float64, where another order of the sums makes no difference that a wrong weight could hide in.
    ours, theirs = (copy.deepcopy(network).double() for network in (foreign.backbone, model))
    with torch.no_grad():
        torch.testing.assert_close(ours(x.double()), theirs(x.double()), atol=1e-9, rtol=1e-9)
