"""Write an encoder for other projects, and check it by loading it there.

Every export comes with the lines of Python that load it. The very same lines are run here, and the feature maps of what
they give are compared with the encoder's, so what is printed is what was checked.
"""

from __future__ import annotations

import io
import json
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from twinbench.encoders.backbones import ResNet
from twinbench.encoders.encoder import Encoder, EncoderInfo
from twinbench.encoders.foreign.detectron2_names import from_detectron2, to_detectron2
from twinbench.encoders.foreign.files import DESCRIPTION, read_checkpoint
from twinbench.foundation.errors import InputError, RunFailure, unknown_name
from twinbench.foundation.files import write_atomically

_STAGES = ("res2", "res3", "res4", "res5")
_TOLERANCE = 1e-5
_OPTIONAL = {"timm", "detectron2"}
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Exported:
    """The lines of Python that load what was written as ``model``, and how that was checked."""

    code: str
    checked: str


@dataclass(frozen=True)
class _Target:
    """A format: how its file is written, read back under our names and loaded there, the suffix its loader insists on.

    What is written is the tensors and, where no loader minds, `_description`.
    """

    suffix: str
    write: Callable[[dict[str, Tensor], str], bytes]
    names: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    code: Callable[[ResNet], str]


def export_encoder(encoder: Encoder, format_name: str, file: Path) -> Exported:
    """Write an encoder's weights to ``file`` in the format ``torchvision``, ``detectron2`` or ``timm``.

    Raises InputError for another format, another suffix than the format's loader reads, and an encoder that the other
    project's network cannot compute; RunFailure where the file, loaded there, gives other feature maps.
    """
    if format_name not in _TARGETS:
        raise unknown_name("format", format_name, _TARGETS)
    target = _TARGETS[format_name]
    if file.suffix != target.suffix:
        raise InputError(
            f"{format_name} reads files that end in {target.suffix}",
            where=file,
            next_step=f"write to {file.with_suffix(target.suffix)}",
            option="out",
        )
    if encoder.info.deviation != "none":
        raise InputError(
            f"{format_name}'s ResNet computes other features with these weights: the encoder needs "
            f"{encoder.info.deviation} (encoders/deviations.py)",
            where=f"encoder {encoder.checksum[:12]}, imported from {encoder.info.source_file}",
            next_step="evaluate it here, or give its original file to the other project",
        )
    code = target.code(encoder.backbone).format(file=repr(str(file)))
    tensors = {name: tensor.cpu().contiguous() for name, tensor in encoder.backbone.state_dict().items()}
    write_atomically(file, target.write(tensors, _description(encoder.info)))
    return Exported(code, _check(encoder, target, tensors, code, file))


def _description(info: EncoderInfo) -> str:
    """What the weights do not say, for `encoders.foreign.importer`: the stride of a 3x3 stem above all."""
    return json.dumps({key: getattr(info, key) for key in ("method", "stem", "input_size", "mean", "std")})


def _check(encoder: Encoder, target: _Target, tensors: dict[str, Tensor], code: str, file: Path) -> str:
    """Load the file with the printed lines and compare; where the project is not installed, read it back."""
    namespace: dict[str, Any] = {}
    try:
        exec(code, namespace)
    except ModuleNotFoundError as error:
        project = (error.name or "").partition(".")[0]
        if project not in _OPTIONAL:
            raise
        uncounted = {name: t for name, t in tensors.items() if not name.endswith(_COUNTER)}
        _compare(target.names(read_checkpoint(file).tensors), uncounted, file, exact=True)
        return f"read back from the file, tensor by tensor; {project} is not installed here, so it was not loaded there"
    side = 64 if encoder.backbone.stem == "imagenet" else 32
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    device = next(encoder.backbone.parameters()).device
    with torch.no_grad():
        expected = {k: v.cpu() for k, v in encoder.backbone.feature_maps(images.to(device)).items()}
        _compare(_feature_maps(namespace["model"].eval(), images), expected, file, exact=False)
    return "loaded with these lines; res2 to res5 are the encoder's"


def _compare(found: dict[str, Tensor], expected: dict[str, Tensor], file: Path, exact: bool) -> None:
    for name, tensor in expected.items():
        tolerance = 0.0 if exact else _TOLERANCE * float(tensor.abs().max())
        same = name in found and found[name].shape == tensor.shape
        if not same or not float((found[name] - tensor).abs().max()) <= tolerance:
            raise RunFailure(
                f"{name} differs after loading the export",
                where=file,
                next_step="do not use the file; report this as a bug",
            )


def _feature_maps(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """res2 to res5 of a ResNet of any of the three projects."""
    if not hasattr(model, "layer1"):
        return dict(model(images))
    maps: dict[str, Tensor] = {}
    for i, name in enumerate(_STAGES):
        stage = model.get_submodule(f"layer{i + 1}")
        stage.register_forward_hook(lambda module, args, output, name=name: maps.update({name: output}))
    model(images)
    return maps


def _torch_bytes(tensors: dict[str, Tensor], description: str) -> bytes:
    """A state dict; the description is among its `_metadata`, of which `load_state_dict` reads its modules' alone."""
    state = OrderedDict(tensors)
    vars(state)["_metadata"] = {DESCRIPTION: description}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _safetensors_bytes(tensors: dict[str, Tensor], description: str) -> bytes:
    return save(tensors, {DESCRIPTION: description})


def _detectron2_bytes(tensors: dict[str, Tensor], description: str) -> bytes:
    """Renamed, without the batch counters, which Detectron2 does not read; input channels stay RGB."""
    arrays = {name: t.numpy() for name, t in to_detectron2(tensors).items() if not name.endswith(_COUNTER)}
    document = {
        "model": arrays,
        "__author__": "twinbench",
        "matching_heuristics": True,
        DESCRIPTION: description,
    }
    return pickle.dumps(document)


def _depths(backbone: ResNet) -> tuple[int, ...]:
    return tuple(len(stage) for stage in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4))


def _block_name(backbone: ResNet) -> str:
    return "BasicBlock" if isinstance(backbone.layer1[0], BasicBlock) else "Bottleneck"


def _stem_arguments(backbone: ResNet) -> str:
    conv = backbone.conv1
    return f"3, {backbone.width}, {conv.kernel_size[0]}, {conv.stride[0]}, {conv.padding[0]}, bias=False"


def _is_published_size(backbone: ResNet) -> bool:
    return backbone.width == 64 and backbone.stem == "imagenet" and backbone.name != "resnet10"


def _own_stem(backbone: ResNet) -> str:
    lines = f"model.conv1 = torch.nn.Conv2d({_stem_arguments(backbone)})\n"
    return lines + ("" if backbone.stem == "imagenet" else "model.maxpool = torch.nn.Identity()\n")


def _torchvision_code(backbone: ResNet) -> str:
    load = "model.load_state_dict(torch.load({file}, weights_only=True))"
    if _is_published_size(backbone):
        return f"import torch, torchvision\nmodel = torchvision.models.{backbone.name}()\n" + (
            f"model.fc = torch.nn.Identity()\n{load}"
        )
    width, depths = backbone.width, _depths(backbone)
    lines = (
        "import torch\nfrom torchvision.models.resnet import BasicBlock, Bottleneck, ResNet\n"
        f"model = ResNet({_block_name(backbone)}, {list(depths)})\n"
        f"{_own_stem(backbone)}model.bn1 = torch.nn.BatchNorm2d({width})\nmodel.inplanes = {width}\n"
    )
    for i, depth in enumerate(depths):
        arguments = f"{_block_name(backbone)}, {width * 2**i}, {depth}, stride={1 if i == 0 else 2}"
        lines += f"model.layer{i + 1} = model._make_layer({arguments})\n"
    return f"{lines}model.fc = torch.nn.Identity()\n{load}"


def _timm_code(backbone: ResNet) -> str:
    if _is_published_size(backbone):
        arguments = f'"{backbone.name}", num_classes=0, checkpoint_path={{file}}'
        return f"import timm\nmodel = timm.create_model({arguments})"
    width = backbone.width
    if width % 2:
        raise InputError(f"timm's ResNet has no odd number of channels in its stem: {width}")
    # timm's plain stem has 64 channels, its deep one any even number: the deep stem's convolutions are replaced
    return (
        "import torch\nfrom safetensors.torch import load_file\n"
        "from timm.models.resnet import BasicBlock, Bottleneck, ResNet\n"
        f"model = ResNet({_block_name(backbone)}, {_depths(backbone)}, num_classes=0, "
        f'channels={tuple(width * 2**i for i in range(4))}, stem_type="deep", stem_width={width // 2})\n'
        f"{_own_stem(backbone)}model.load_state_dict(load_file({{file}}))"
    )


def _detectron2_code(backbone: ResNet) -> str:
    width, expansion = backbone.width, 1 if _block_name(backbone) == "BasicBlock" else 4
    block = "BasicBlock" if expansion == 1 else "BottleneckBlock"
    lines = (
        "from detectron2.checkpoint import DetectionCheckpointer\nfrom detectron2.layers import Conv2d, get_norm\n"
        "from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet\n"
        f'stem = BasicStem(3, {width}, norm="BN")\n'
    )
    if backbone.stem != "imagenet":
        lines += (
            f'stem.conv1 = Conv2d({_stem_arguments(backbone)}, norm=get_norm("BN", {width}))\n'
            "stem.forward = lambda x: stem.conv1(x).relu()\n"
            f"stem.stride = {backbone.conv1.stride[0]}\n"
        )
    lines += "stages = [\n"
    channels = width
    for i, depth in enumerate(_depths(backbone)):
        planes, strides = width * 2**i, [1 if i == 0 else 2] + [1] * (depth - 1)
        inner = f", bottleneck_channels={planes}, stride_in_1x1=False" if expansion == 4 else ""
        lines += (
            f"    ResNet.make_stage({block}, {depth}, stride_per_block={strides}, in_channels={channels}, "
            f'out_channels={planes * expansion}{inner}, norm="BN"),\n'
        )
        channels = planes * expansion
    return lines + (
        f"]\nmodel = ResNet(stem, stages, out_features={list(_STAGES)})\n"
        "DetectionCheckpointer(model).load({file})"
    )


_TARGETS = {
    "torchvision": _Target(".pth", _torch_bytes, dict, _torchvision_code),
    "timm": _Target(".safetensors", _safetensors_bytes, dict, _timm_code),
    "detectron2": _Target(".pkl", _detectron2_bytes, from_detectron2, _detectron2_code),
}
