"""Studies on disk: which methods, seeds, protocols, tables and figures make up a comparison."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from twinbench.foundation.errors import InputError, inside, unknown_name
from twinbench.foundation.models import explain_validation
from twinbench.harness.recipes import read_yaml
from twinbench.reports.study import StudySpec


class Study(StudySpec):
    """A comparison: every method of the list under every protocol, for every seed, and how it is reported.

    ``name`` is that of its file unless it gives one. ``recipes`` is a folder of ``recipes/``; ``overrides`` changes
    keys of all its recipes; ``limit`` cuts splits of the image set to so many images. ``measure_on`` is the image set
    of the protocols where it is another than the one trained on; it is never cut. ``encoders`` is a folder below the
    data root: the checkpoints in it are imported and evaluated beside the methods, or alone.
    """

    name: str
    image_set: str
    measure_on: str = ""
    recipes: str = ""
    methods: list[str] = Field(default_factory=list)
    encoders: str = ""
    seeds: int = Field(1, ge=1)
    protocols: list[str] = Field(min_length=1)
    overrides: dict[str, Any] = Field(default_factory=dict)
    limit: dict[str, int] = Field(default_factory=dict)


def study_names() -> list[str]:
    """The studies that come with twinbench."""
    return sorted(
        e.name.removesuffix(".yaml") for e in files("twinbench.studies").iterdir() if e.name.endswith(".yaml")
    )


def load_study(name: str) -> Study:
    """A study by name, or by the path of a YAML file, checked as a whole.

    Raises InputError naming the file and the key, with the nearest valid name.
    """
    path = Path(name)
    source: Path | Traversable
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        source, stem = path, path.stem
    elif path.suffix in {".yaml", ".yml"}:
        raise InputError("there is no such file", where=path, next_step="check the path")
    elif name in study_names():
        source, stem = files("twinbench.studies") / f"{name}.yaml", name
    else:
        raise unknown_name("study", name, study_names(), where="studies/ (or give the path of a YAML file)")
    document = read_yaml(source)
    try:
        study = Study.model_validate({"name": stem, **document})
    except ValidationError as error:
        raise explain_validation(error, Study, source) from error
    with inside(source):
        _check(study)
    return study


def _check(study: Study) -> None:
    # Figures need matplotlib, which the worker processes, who import this module as well, do without.
    from twinbench.reports.check import check_study

    check_study(study)
    if not study.methods and not study.encoders:
        raise InputError(
            "the study has neither methods nor encoders",
            next_step="list methods to train, or name the folder of checkpoints to evaluate",
        )
    for column in study.columns():
        if column.protocol not in study.protocols:
            raise unknown_name("protocol", column.protocol, study.protocols, where="tables or ablation")
