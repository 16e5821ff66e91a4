"""The authors' side of `parity.py` for the methods whose code is in torch: their own programs, run as they are.

``torchrun parity_theirs.py JOB`` imports a program from a clone and calls its own main function, which builds their
model, loss, optimizer and schedule and trains. Nothing of it is changed. What surrounds it is: `_without_gpu` stands in
for what only GPUs have, `_with_prepared_views` for images on disk, and `Recorder` looks on through torch. The functions
called ``_run_...`` at the end say with which arguments each program is called.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torchvision
from parity_views import prepared_views
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

Job = dict[str, Any]
_RANK, _WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Recorder:
    """Looks on: the weights when training begins and ends, the loss of every step, the rates it is taken with."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[list[float]] = []
        self.initial: dict[str, np.ndarray] = {}
        self._model = nn.Module()
        backward = torch.Tensor.backward

        def recorded(loss: Tensor, *args: Any, **options: Any) -> None:
            self.losses.append(loss.item())
            backward(loss, *args, **options)

        torch.Tensor.backward = recorded
        register_optimizer_step_pre_hook(
            lambda optimizer, *_: self.rates.append([group["lr"] for group in optimizer.param_groups])
        )

    def begin(self, model: nn.Module) -> None:
        """The model has its first weights, the same on all ranks."""
        self._model, self.initial = model, _arrays(model)

    def save(self, path: str) -> None:
        """Write everything from rank 0; the loss is the mean over the ranks."""
        losses = torch.tensor(self.losses)
        dist.all_reduce(losses)
        if _RANK == 0:
            initial = {f"initial/{name}": array for name, array in self.initial.items()}
            final = {f"final/{name}": array for name, array in _arrays(self._model).items()}
            np.savez(path, losses=(losses / _WORLD).numpy(), rates=np.array(self.rates), **initial, **final)


def _arrays(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}


class _BatchNormOfAllRanks(nn.modules.batchnorm._BatchNorm):
    """Stands in for ``nn.SyncBatchNorm``, which is for GPUs: torch's own batch norm of the gathered batch."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Of any shape."""

    def forward(self, input: Tensor) -> Tensor:
        everyone = torch.cat(all_gather(input))
        step = 0.1 if self.momentum is None else self.momentum
        own = (self.running_mean, self.running_var, self.weight, self.bias)
        return _own(F.batch_norm(everyone, *own, self.training, step, self.eps))


def _own(batch: Tensor) -> Tensor:
    """This rank's rows of a global batch."""
    share = batch.shape[0] // _WORLD
    return batch[_RANK * share : (_RANK + 1) * share]


def _as_norm_of_all_ranks(module: nn.Module, process_group: Any = None) -> nn.Module:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        new = _BatchNormOfAllRanks(module.num_features, module.eps, module.momentum, module.affine)
        new.load_state_dict(module.state_dict())
        return new
    for name, child in module.named_children():
        setattr(module, name, _as_norm_of_all_ranks(child))
    return module


def _without_gpu(recorder: Recorder) -> None:
    """What their programs ask of a GPU, on a CPU and in fp64."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    nn.Module.cuda = lambda self, *_, **__: self
    torch.Tensor.cuda = lambda self, *_, **__: self
    torch.cuda.set_device = lambda *_: None
    torch.cuda.device_count = lambda: _WORLD
    join, wrap = dist.init_process_group, nn.parallel.DistributedDataParallel
    dist.init_process_group = lambda backend, **options: join("gloo", **options)
    nn.SyncBatchNorm.convert_sync_batchnorm = staticmethod(
        _as_norm_of_all_ranks if _WORLD > 1 else lambda module, *_: module
    )

    def wrapped(model: nn.Module, device_ids: Any = None) -> nn.Module:
        parallel = wrap(model)
        recorder.begin(model)
        return parallel

    nn.parallel.DistributedDataParallel = wrapped
    torch.save = lambda state, path: Path(path).touch()


class _PreparedLoader:
    """Stands in for a data loader: this rank's share of the prepared views, epoch after epoch."""

    def __init__(self, job: Job, with_labels: bool) -> None:
        self._job, self._with_labels, self._step = job, with_labels, 0
        self.sampler = SimpleNamespace(set_epoch=lambda epoch: None)

    def __len__(self) -> int:
        return int(self._job["steps_per_epoch"])

    def __iter__(self) -> Iterator[Any]:
        job = self._job
        for _ in range(len(self)):
            whole = prepared_views(self._step, job["batch"], job["sizes"])
            views = [_own(torch.from_numpy((view - 0.5) / 0.25)) for view in whole]
            yield (views, None) if self._with_labels else views
            self._step += 1


class _NoImages:
    """Stands in for a folder of images, of which only the number is asked."""

    def __init__(self, *_: Any) -> None:
        pass

    def __len__(self) -> int:
        return 1


def _with_prepared_views(job: Job, with_labels: bool = True) -> None:
    torchvision.datasets.ImageFolder = _NoImages
    torch.utils.data.DataLoader = lambda *_, **__: _PreparedLoader(job, with_labels)


def _program(job: Job, folder: str, name: str) -> ModuleType:
    """A program of a clone, imported by its path."""
    sys.path.insert(0, str(Path(job["official"]) / folder))
    return importlib.import_module(name)


def _run_barlow_twins(job: Job) -> None:
    _with_prepared_views(job)
    program = _program(job, "barlowtwins", "main")
    # fmt: off
    args = program.parser.parse_args([
        "images", "--epochs", str(job["epochs"]), "--batch-size", str(job["batch"]), "--projector", "64-64-64",
        "--learning-rate-weights", "25.6", "--learning-rate-biases", "0.6144", "--checkpoint-dir", ".",
        "--print-freq", "1000",
    ])
    # fmt: on
    args.ngpus_per_node, args.rank, args.world_size, args.dist_url = _WORLD, 0, _WORLD, "env://"
    program.main_worker(_RANK, args)


def _run_simsiam(job: Job) -> None:
    _with_prepared_views(job)
    program = _program(job, "simsiam", "main_simsiam")
    _main_worker(
        job,
        program,
        "--lr",
        "1.6",
        "--dim",
        "64",
        "--pred-dim",
        "16",
        "--fix-pred-lr",
        "--dist-url",
        "env://",
    )


def _run_moco_v2(job: Job) -> None:
    _with_prepared_views(job)
    _hand_out_permutations()
    program = _program(job, "moco", "main_moco")
    # it is only printed, and torch now refuses the view() in it
    program.accuracy = lambda output, target, topk: [torch.zeros(1)] * len(topk)
    # fmt: off
    _main_worker(
        job, program, "--lr", "0.03", "--moco-dim", "64", "--moco-k", str(5 * job["batch"]), "--moco-m", "0.99",
        "--moco-t", "0.2", "--mlp", "--aug-plus", "--cos", "--dist-url", "env://",
    )
    # fmt: on


def _main_worker(job: Job, program: ModuleType, *arguments: str) -> None:
    """What ``main`` of SimSiam and MoCo does with its arguments before it starts a process for each GPU."""
    shared = (
        "images",
        "-a",
        "resnet18",
        "--epochs",
        str(job["epochs"]),
        "-b",
        str(job["batch"]),
        "-p",
        "1000",
    )
    args = program.parser.parse_args([*shared, *arguments])
    args.multiprocessing_distributed = args.distributed = True
    args.world_size, args.rank = _WORLD, 0
    program.main_worker(_RANK, _WORLD, args)


def _hand_out_permutations() -> None:
    """MoCo's shuffles as `twinbench.baselines.moco_v2` draws them: a function of the step."""
    draw, step = torch.randperm, iter(range(10**9))

    def permutation(n: int, *, generator: torch.Generator | None = None, **options: Any) -> Tensor:
        return draw(n, generator=generator or torch.Generator().manual_seed(2 * next(step)), **options)

    torch.randperm = permutation


def _run_swav(job: Job) -> None:
    _with_prepared_views(job, with_labels=False)
    _stand_in_for_apex(Path(job["official"]) / "apex" / "apex" / "parallel" / "LARC.py")
    program = _program(job, "swav", "main_swav")
    program.MultiCropDataset = _NoImages
    # the program's own class, at a depth for which it has no name
    program.resnet_models.resnet18 = lambda **options: program.resnet_models.ResNet(
        program.resnet_models.BasicBlock, [2, 2, 2, 2], **options
    )
    # fmt: off
    sys.argv = [
        "main_swav.py", "--arch", "resnet18", "--epochs", str(job["epochs"]), "--batch_size",
        str(job["batch"] // _WORLD), "--nmb_crops", "2", "2", "--hidden_mlp", "64", "--feat_dim", "32",
        "--nmb_prototypes", "30", "--queue_length", str(3 * job["batch"]), "--epoch_queue_starts", "2",
        "--freeze_prototypes_niters", "4", "--base_lr", "0.6", "--final_lr", "0.0006", "--warmup_epochs", "0",
        "--use_fp16", "false", "--seed", "0",
    ]
    # fmt: on
    program.main()


def _stand_in_for_apex(larc: Path) -> None:
    """The package ``apex`` with nothing in it but the optimizer LARC, from the clone; its ``amp`` is not used."""
    spec = importlib.util.spec_from_file_location("apex.parallel.LARC", larc)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    apex, parallel = ModuleType("apex"), ModuleType("apex.parallel")
    apex.amp, apex.parallel, parallel.LARC = None, parallel, module
    sys.modules.update({"apex": apex, "apex.parallel": parallel, "apex.parallel.LARC": module})


_RUNS: dict[str, Callable[[Job], None]] = {
    "barlow_twins": _run_barlow_twins,
    "simsiam": _run_simsiam,
    "moco_v2": _run_moco_v2,
    "swav": _run_swav,
}


def main() -> None:
    """Run the program of a job and write what the recorder saw."""
    job = json.loads(sys.argv[1])
    recorder = Recorder()
    _without_gpu(recorder)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # for their logs
        _RUNS[job["method"]](job)
    recorder.save(job["theirs"])
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
