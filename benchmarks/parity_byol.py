"""The authors' side of `parity.py` for BYOL: ``python parity_byol.py JOB`` in an interpreter that has JAX and Haiku.

What trains is their class ``ByolExperiment``: its network, loss, optimizer, schedules and update of both networks, as
they are. Their configuration is theirs but for the numbers below. What the experiment imports and does not need here is
stood in for, and so is a name that JAX has given up.
"""

from __future__ import annotations

import functools
import json
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

jax.config.update("jax_enable_x64", True)

import haiku as hk  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from parity_views import prepared_views  # noqa: E402

_UNUSED = (
    "tensorflow",
    "tensorflow.compat",
    "tensorflow.compat.v2",
    "tensorflow_datasets",
    "dill",
    "acme",
    "acme.jax",
)


class _Unused(ModuleType):
    """Stands in for a package that only reads images or writes checkpoints; any name may be asked of it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Unused(name)


class _InDouble(ModuleType):
    """``jax.numpy`` for their schedules, which ask for fp32 by name."""

    float32 = jnp.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(jnp, name)


def _import_experiment(official: Path) -> tuple[ModuleType, ModuleType, ModuleType]:
    sys.modules.update({name: _Unused(name) for name in _UNUSED})
    if not hasattr(jax, "tree_map"):
        jax.tree_map = jax.tree_util.tree_map
    sys.path.insert(0, str(official / "deepmind-research"))
    from byol import byol_experiment
    from byol.utils import augmentations, networks, schedules

    schedules.jnp = _InDouble("jax.numpy")
    return byol_experiment, augmentations, networks


def _experiment(job: dict[str, Any]) -> Any:
    """Their experiment with their configuration, apart from sizes, rates and the views, which are already made."""
    module, augmentations, networks = _import_experiment(Path(job["official"]))
    for view in augmentations.augment_config.values():
        view["random_flip"] = False
        for part in ("color_transform", "gaussian_blur", "solarize"):
            view[part]["apply_prob"] = 0.0
    # their torso, without the projection that torchvision's networks of 18 layers do not have
    networks.ResNet18AsInTorchvision = functools.partial(
        networks.ResNetTorso,
        blocks_per_group=(2, 2, 2, 2),
        bottleneck=False,
        channels_per_group=(64, 128, 256, 512),
        use_projection=(False, True, True, True),
        name="encoder",
    )
    return module.ByolExperiment(
        random_seed=0,
        num_classes=10,
        batch_size=job["batch"],
        max_steps=job["steps"],
        enable_double_transpose=False,
        base_target_ema=0.99,
        network_config={
            "projector_hidden_size": 64,
            "projector_output_size": 32,
            "predictor_hidden_size": 64,
            "encoder_class": "ResNet18AsInTorchvision",
            "encoder_config": {},
            "bn_config": {
                "decay_rate": 0.9,
                "eps": 1e-5,
                "cross_replica_axis": "i",
                "create_scale": True,
                "create_offset": True,
            },
        },
        optimizer_config={"weight_decay": 1.5e-6, "eta": 1e-3, "momentum": 0.9},
        lr_schedule_config={"base_learning_rate": job["base_lr"], "warmup_steps": job["warmup_steps"]},
        evaluation_config={},
        checkpointing_config={
            "use_checkpointing": False,
            "checkpoint_dir": None,
            "save_checkpoint_interval": 0,
            "filename": "",
        },
    )


def _inputs(job: dict[str, Any], step: int) -> dict[str, np.ndarray]:
    """A batch for the one device."""
    views = [view.transpose(0, 2, 3, 1)[None] for view in prepared_views(step, job["batch"], job["sizes"])]
    return {"view1": views[0], "view2": views[1], "labels": np.zeros((1, job["batch"]), dtype=np.int32)}


def _named(state: Any) -> dict[str, np.ndarray]:
    """Weights by name, ``online`` or ``target`` first."""
    trees = {"online": state.online_params, "target": state.target_params}
    return {
        f"{network}/{module}/{name}": np.asarray(value[0])
        for network, tree in trees.items()
        for module, name, value in hk.data_structures.traverse(tree)
    }


def main() -> None:
    """Train their experiment and write losses, rates and weights."""
    job = json.loads(sys.argv[1])
    experiment = _experiment(job)
    rng = jnp.broadcast_to(jax.random.PRNGKey(0), (1, 2))
    state = jax.pmap(experiment._make_initial_state, axis_name="i")(rng, _inputs(job, 0))
    # they draw the target anew; ours starts as a copy of the online network
    state = state._replace(target_params=state.online_params)
    initial, losses, rates = _named(state), [], []
    for step in range(job["steps"]):
        state, logs = experiment.update_pmap(
            state, global_step=jnp.full((1,), step), rng=rng, inputs=_inputs(job, step)
        )
        losses.append(float(logs["repr_loss"][0]))
        rates.append(float(logs["learning_rate"][0]))
    weights = {f"initial/{name}": array for name, array in initial.items()}
    weights |= {f"final/{name}": array for name, array in _named(state).items()}
    np.savez(job["theirs"], losses=np.array(losses), rates=np.array(rates), **weights)
    print(json.dumps({name: version(name) for name in ("jax", "dm-haiku", "optax")}))


if __name__ == "__main__":
    main()
