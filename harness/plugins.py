"""The one place that imports whatever registers methods and protocols: the modules of the house, then plugins.

A plugin is an entry point of the group ``twinbench.plugins`` in any installed package; loading it imports a module that
registers something. Every process that looks up a name calls `load_plugins` first: commands when they start, and with
them the ranks of a training, which run the same command, and the workers of a study. Image sets, formats and kinds of
figures need nobody: their registries are filled where they are defined.
"""

from __future__ import annotations

import logging
import os
import pkgutil
import sys
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from twinbench.foundation.errors import InputError
from twinbench.foundation.registry import all_or_nothing

GROUP = "twinbench.plugins"
_MODULES = ("twinbench.pretraining.barlow_twins",)
_PACKAGES = ("twinbench.baselines", "twinbench.downstream", "twinbench.downstream.detection")
_log = logging.getLogger(__name__)


@cache
def load_plugins(warn: bool = True) -> None:
    """Import every module of the house that registers a method or a protocol, and every plugin; once per process.

    A plugin that fails is left out, with all that it had registered, and named in a warning. ``warn`` is False in a
    process whose parent has said so already.
    """
    for module in _MODULES:
        import_module(module)
    for package in _PACKAGES:
        for found in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
            import_module(found.name)
    # Sorted, so that of two plugins with one name the same one is left out every time.
    plugins = sorted(entry_points(group=GROUP), key=lambda plugin: (_package(plugin), plugin.name))
    problems = [problem for plugin in plugins if (problem := load_plugin(plugin)) is not None]
    # torchrun and Fabric number the ranks of a machine, which all run the same command.
    if warn and os.environ.get("LOCAL_RANK", "0") == "0":
        for problem in problems:
            _log.warning("%s", problem)


def load_plugin(plugin: EntryPoint) -> InputError | None:
    """Load one plugin, or leave no trace of it and return what is wrong with it."""
    before = set(sys.modules)
    try:
        with all_or_nothing():
            plugin.load()
    except (Exception, SystemExit) as error:  # a plugin is anybody's code, which may fail in any way
        _forget_modules({plugin.module.partition(".")[0], "twinbench"}, before)
        package = _package(plugin)
        return InputError(
            f"the plugin {plugin.name!r} is left out: {type(error).__name__}: {error}",
            where=f"package {package}, entry point {plugin.name} = {plugin.value}",
            next_step=f"correct it, or remove it with: pip uninstall {package}",
        )
    return None


def _forget_modules(packages: set[str], before: set[str]) -> None:
    """Forget the modules of some packages that were not there before.

    What they registered was undone, whether the plugin's or ours: who imports them next must register it again.
    """
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in packages:
            del sys.modules[name]
            parent, _, child = name.rpartition(".")
            if parent in sys.modules:
                vars(sys.modules[parent]).pop(child, None)


def _package(plugin: EntryPoint) -> str:
    return "unknown" if plugin.dist is None else plugin.dist.name
