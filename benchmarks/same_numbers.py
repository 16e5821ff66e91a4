"""Do two versions of the code compute the same numbers, to the bit?

Run it before and after a change that is meant to keep them, on one machine:

    python benchmarks/same_numbers.py write before.json      # in a checkout of the commit before
    python benchmarks/same_numbers.py compare before.json    # in a checkout of the change

For every recipe of a folder (``--recipes``, digit-scenes by default) it keeps the losses of the first ten steps, a
digest of the first views and of every parameter after the last step, and what the quick protocols measure of the
resulting encoder. Floats are kept as hexadecimal text, so that equal means equal. Bits depend on the processor and the
number of threads: a file is compared only with one of the same machine, and says so otherwise. Exit code 1 if anything
differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinbench.data.catalogue import load_image_set
from twinbench.data.image_sets import ImageSet
from twinbench.downstream.features import FeatureStore
from twinbench.downstream.protocol import EvaluationContext, protocol
from twinbench.encoders.encoder import Encoder, EncoderInfo
from twinbench.harness.plugins import load_plugins
from twinbench.harness.recipes import load_recipe, recipe_names
from twinbench.pretraining.build import build_method, resolve
from twinbench.pretraining.engine import Hardware, launch
from twinbench.pretraining.method import Method
from twinbench.pretraining.recipe import Recipe
from twinbench.pretraining.train import start_session

STEPS = 10
PROTOCOLS = ("knn/cosine-v1", "linear/cached-v1")
_INSTRUCTIONS = ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")


def main() -> None:
    """Write the numbers of this checkout, or compare them with those of another."""
    arguments = _arguments()
    load_plugins()
    torch.set_num_threads(arguments.threads)
    found = {"machine": _machine(), "numbers": _numbers(arguments.recipes)}
    if arguments.task == "write":
        arguments.file.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{len(found['numbers'])} recipes: {arguments.file}")
        return
    differences = _differences(json.loads(arguments.file.read_text()), found)
    print("\n".join(differences) or f"the same to the bit: {', '.join(found['numbers'])}")
    sys.exit(1 if differences else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("task", choices=["write", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--recipes", default="digit-scenes", help="a folder of recipes/ [default: digit-scenes]"
    )
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _processor() -> str:
    """The model, which decides on the instructions; elsewhere than on Linux the architecture must do."""
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1]
    return platform.machine()


def _machine() -> dict[str, str]:
    return {
        "processor": f"{_processor()} {torch.backends.cpu.get_cpu_capability()}",
        "instructions": " ".join(sorted(f"{k}={v}" for k, v in os.environ.items() if k in _INSTRUCTIONS)),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
    }


def _numbers(folder: str) -> dict[str, Any]:
    methods = [name.removeprefix(f"{folder}/") for name in recipe_names() if name.startswith(f"{folder}/")]
    image_set = load_image_set(folder, None)
    return {method: _of_recipe(load_recipe(folder, method, folder, {}), image_set) for method in methods}


def _of_recipe(recipe: Recipe, image_set: ImageSet) -> dict[str, Any]:
    recipe = resolve(recipe, image_set.image_size, image_set.fingerprint)
    method = build_method(recipe)
    found: dict[str, Any] = {}
    if method.trains:
        session = start_session(recipe, method, image_set, launch(Hardware(), recipe.precision))
        losses = []
        for step, batch in zip(range(STEPS), session.batches.from_step(0), strict=False):
            if step == 0:
                found["first views"] = _digest(view for part in batch for view in part.views)
            loss = session.gradients(batch, session.progress(step))
            session.update(session.progress(step))
            losses.append(loss.total.item().hex())
        found["losses"] = losses
    found["parameters"] = _digest(method.state_dict().values())
    found.update(_measured(method, recipe, image_set))
    return found


def _measured(method: Method, recipe: Recipe, image_set: ImageSet) -> dict[str, Any]:
    spec = recipe.backbone
    info = EncoderInfo(
        architecture=spec.name,
        width=spec.width,
        stem=spec.stem,
        feature_dim=method.backbone.feature_dim,
        input_size=image_set.image_size,
        mean=image_set.normalisation.mean,
        std=image_set.normalisation.std,
        method=recipe.method,
        recipe_hash="none",
    )
    context = EvaluationContext(image_set, FeatureStore(None), seed=recipe.seed)
    encoder = Encoder(method.backbone.eval(), info, checksum=recipe.method)
    return {
        f"{name} {m.metric}": m.value.hex()
        for name in PROTOCOLS
        for m in protocol(name).evaluate(encoder, context)
    }


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A line for every number that is not the same; only of the machine if that is not."""
    if before["machine"] != now["machine"]:
        return [f"not comparable: written on {before['machine']}, this is {now['machine']}"]
    lines = []
    for recipe in sorted({*before["numbers"], *now["numbers"]}):
        old, new = (document["numbers"].get(recipe, {}) for document in (before, now))
        lines += [
            f"{recipe}: {name}: {old.get(name)} before, {new.get(name)} now"
            for name in sorted({*old, *new})
            if old.get(name) != new.get(name)
        ]
    return lines


if __name__ == "__main__":
    main()
