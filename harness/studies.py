"""Studies on disk: which methods, seeds, protocols, tables and figures make up a comparison."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from twinbench.foundation.errors import InputError, unknown_name
from twinbench.foundation.models import Strict, explain_validation
from twinbench.harness.recipes import read_yaml
from twinbench.reports.study import ColumnSpec, StudySpec, parse_study


class Study(Strict):
    """A comparison: every method of the list under every protocol, for every seed.

    ``recipes`` is a folder of ``recipes/``; ``overrides`` changes keys of all its recipes; ``limit`` cuts splits
    of the image set to so many images. ``measure_on`` is the image set of the protocols where it is another than the
    one trained on; it is never cut. ``encoders`` is a folder below the data root: the checkpoints in it are
    imported and evaluated beside the methods, or alone. Tables, figures and the ablation are checked by
    `reports.study`.
    """

    name: str
    title: str
    description: str
    image_set: str
    measure_on: str = ""
    recipes: str = ""
    methods: list[str] = Field(default_factory=list)
    encoders: str = ""
    seeds: int = Field(1, ge=1)
    protocols: list[str] = Field(min_length=1)
    overrides: dict[str, Any] = Field(default_factory=dict)
    limit: dict[str, int] = Field(default_factory=dict)
    tables: list[dict[str, Any]] = Field(default_factory=list)
    figures: list[dict[str, Any]] = Field(default_factory=list)
    ablation: dict[str, Any] | None = None

    def report(self) -> StudySpec:
        """The part that reports read, checked; raises InputError naming the key."""
        return parse_study(self.as_document())

    def columns(self) -> list[ColumnSpec]:
        """Every measured column of its tables."""
        spec = self.report()
        return [*spec.main_columns(), *(spec.ablation.columns if spec.ablation else ())]

    def as_document(self, command: str = "") -> dict[str, Any]:
        """A plain mapping, with the command that made it."""
        return {**self.model_dump(mode="json"), "command": command}


def study_names() -> list[str]:
    """The studies that come with twinbench."""
    return sorted(
        e.name.removesuffix(".yaml") for e in files("twinbench.studies").iterdir() if e.name.endswith(".yaml")
    )


def load_study(name: str) -> Study:
    """A study by name, or by the path of a YAML file.

    Raises InputError for an unknown name or key, with the nearest valid one.
    """
    path = Path(name)
    source: Path | Traversable
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        source, stem = path, path.stem
    elif name in study_names():
        source, stem = files("twinbench.studies") / f"{name}.yaml", name
    else:
        raise unknown_name("study", name, study_names(), where="studies/ (or give the path of a YAML file)")
    try:
        study = Study(**{"name": stem, **read_yaml(source)})
    except ValidationError as error:
        raise explain_validation(error, Study, source) from error
    if not study.methods and not study.encoders:
        raise InputError(
            "the study has neither methods nor encoders",
            where=source,
            next_step="list methods to train, or name the folder of checkpoints to evaluate",
        )
    for column in study.columns():
        if column.protocol not in study.protocols:
            raise unknown_name("protocol", column.protocol, study.protocols, where=f"the tables of {source}")
    return study
