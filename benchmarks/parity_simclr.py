"""The authors' side of `parity.py` for SimCLR: ``python parity_simclr.py JOB`` in an interpreter with TensorFlow 2.

Their model, loss, optimizer and schedule (``simclr/tf2``) take part as they are, in fp64. The step around them says
again what ``single_step`` does in their ``run.py``, which stands inside their main function: the gradient of the
contrastive loss, applied by their optimizer. They are written for Keras 2, which the package tf-keras is.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow.compat.v2 as tf
from parity_views import prepared_views


class _Unused(ModuleType):
    """Stands in for the package that reads their images; any name may be asked of it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Unused(name)


def _in_double() -> None:
    """Their code in fp64: the layers by Keras' own setting, and the one-hot labels, which are fp32 unless told."""
    tf.keras.backend.set_floatx("float64")
    one_hot = tf.one_hot
    tf.one_hot = lambda indices, depth: one_hot(indices, depth, dtype=tf.float64)


def _programs(job: dict[str, Any]) -> tuple[ModuleType, ModuleType]:
    """Their modules ``model`` and ``objective``, with the flags of ``run.py`` set."""
    sys.modules.setdefault("tensorflow_datasets", _Unused("tensorflow_datasets"))
    sys.path.insert(0, str(Path(job["official"]) / "simclr" / "tf2"))
    flags = {
        "train_batch_size": job["batch"],
        "train_steps": job["steps"],
        "warmup_epochs": job["warmup_epochs"],
        "image_size": job["sizes"][0],
        "num_proj_layers": 2,
        "proj_out_dim": 32,
        "temperature": 0.1,
        "weight_decay": 1e-6,
        "use_blur": False,
        "lineareval_while_pretraining": False,
    }
    importlib.import_module("run").FLAGS(["run.py", *(f"--{name}={value}" for name, value in flags.items())])
    return importlib.import_module("model"), importlib.import_module("objective")


def _inputs(job: dict[str, Any], step: int) -> tf.Tensor:
    """Both views one after the other in the channels, as they have them."""
    views = prepared_views(step, job["batch"], job["sizes"])
    return tf.constant(np.concatenate(views, axis=1).transpose(0, 2, 3, 1))


def main() -> None:
    """Train their model and write losses, rates and weights."""
    job = json.loads(sys.argv[1])
    _in_double()
    model_lib, objective = _programs(job)
    tf.random.set_seed(0)
    images = job["batch"] * job["steps_per_epoch"]
    # their cosine takes the precision of the rate that it is given
    schedule = model_lib.WarmUpAndCosineDecay(np.float64(job["base_lr"]), images)
    model, optimizer = model_lib.Model(num_classes=10), model_lib.build_optimizer(schedule)
    model(_inputs(job, 0), training=True)  # makes the weights
    initial = {f"initial/{weight.name}": weight.numpy() for weight in model.trainable_variables}
    losses, rates = [], []
    for step in range(job["steps"]):
        with tf.GradientTape() as tape:
            embeddings, _ = model(_inputs(job, step), training=True)
            loss, _, _ = objective.add_contrastive_loss(embeddings, hidden_norm=True, temperature=0.1)
        losses.append(float(loss))
        rates.append(float(schedule(tf.cast(optimizer.iterations, tf.float64))))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    final = {f"final/{weight.name}": weight.numpy() for weight in model.trainable_variables}
    np.savez(job["theirs"], losses=np.array(losses), rates=np.array(rates), **initial, **final)
    print(
        json.dumps(
            {name: version(name) for name in ("tensorflow-cpu", "tensorflow", "tf-keras") if _has(name)}
        )
    )


def _has(package: str) -> bool:
    try:
        return bool(version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


if __name__ == "__main__":
    main()
