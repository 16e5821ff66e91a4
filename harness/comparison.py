"""What `twinbench compare` does: encoders, runs and foreign checkpoints in one table, without any YAML."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from twinbench.downstream.protocol import Protocol, protocol
from twinbench.encoders.encoder import INFO_FILE
from twinbench.foundation.errors import InputError
from twinbench.harness.carry_out import Execution, carry_out
from twinbench.harness.images import ImageChoice, Images
from twinbench.harness.mirror import url_of
from twinbench.harness.plan import Evaluation, PlannedRun, check_evaluations
from twinbench.harness.plugins import load_plugins
from twinbench.harness.published import imported_run
from twinbench.harness.store import Run, holds_run, read_run
from twinbench.harness.studies import Study, StudyTable
from twinbench.harness.variants import told_apart
from twinbench.reports.study import ColumnSpec, FigureSpec

_TABLE = "compare"


@dataclass(frozen=True)
class CompareRequest:
    """What `twinbench compare` is asked for: runs, encoder folders or checkpoint files, and how to measure them.

    ``seeds`` is how often an encoder that is no run is evaluated; a run is evaluated with its own seed.
    """

    encoders: tuple[Path, ...]
    protocols: tuple[str, ...]
    image_set: str
    seeds: int = 1
    data_root: Path | None = None
    runs: Path = Path("runs")
    out: Path = Path("results/compare")
    workers: int | None = None
    debug: bool = False

    def command(self) -> str:
        """The command line that makes the report again; the data folder is the reader's own."""
        words = ["twinbench", "compare", *map(url_of, self.encoders)]
        words += [word for name in self.protocols for word in ("--protocol", name)]
        words += ["--image-set", self.image_set]
        words += ["--seeds", str(self.seeds)] if self.seeds > 1 else []
        words += ["--runs", url_of(self.runs)] if self.runs != CompareRequest.runs else []
        words += ["--out", str(self.out)] if self.out != CompareRequest.out else []
        return shlex.join(words) + (" --data-root DIR" if self.data_root else "")


def compare(request: CompareRequest) -> None:
    """Evaluate what is not evaluated yet, and put everything into one table and report."""
    load_plugins()
    images, choice = Images(request.data_root), ImageChoice(request.image_set)
    evaluations = tuple(Evaluation(protocol(name), choice) for name in dict.fromkeys(request.protocols))
    check_evaluations(evaluations, images)
    # an encoder that is named twice, as a run and as its folder, is one
    found = [run for path in request.encoders for run in _runs(path, request, images, choice)]
    runs = list({run.folder.resolve(): run for run in found}.values())
    variants = told_apart(runs)
    planned = [PlannedRun(run, choice, evaluations, variants.names[run.hash], _TABLE) for run in runs]
    how = Execution(request.runs, request.out, request.command(), request.workers, request.debug)
    carry_out(_study(request, evaluations, images, variants.note), planned, images, how)


def _runs(path: Path, request: CompareRequest, images: Images, choice: ImageChoice) -> list[Run]:
    """The run in a folder, or those that import what is there."""
    folder = path.parent if path.name == "encoder" and holds_run(path.parent) else path
    if holds_run(folder):
        run = read_run(folder)
        if not run.is_trained():
            raise InputError(
                "this run has no encoder yet", where=folder, next_step="finish its training, or leave it out"
            )
        return [run]
    if not path.exists():
        raise InputError("there is no such file or folder", where=path, next_step="check the path")
    if path.is_dir() and not (path / INFO_FILE).is_file():
        raise InputError(
            "neither a run nor an encoder is in this folder",
            where=path,
            next_step="name a run, a folder that `twinbench import` made, or a checkpoint file",
        )
    return [imported_run(path, images[choice], request.runs, seed) for seed in range(request.seeds)]


def _study(request: CompareRequest, evaluations: tuple[Evaluation, ...], images: Images, note: str) -> Study:
    """The study that the table and the report are of, with a note below the table."""
    columns = [
        ColumnSpec(protocol=each.protocol.name, metric=metric, label=_label(each.protocol, metric))
        for each in evaluations
        for metric in each.protocol.metrics
        if metric not in each.protocol.unmeasured(images[each.images])
    ]
    table = StudyTable(name=_TABLE, title="Encoders side by side", columns=tuple(columns), note=note)
    names = ", ".join(path.name for path in request.encoders)
    return Study(
        name="compare",
        title=f"Encoders on {request.image_set}",
        description=f"{names}, evaluated under {', '.join(each.protocol.name for each in evaluations)}.",
        tables=(table,),
        figures=(FigureSpec(kind="bars", name="bars"),),
    )


def _label(chosen: Protocol, metric: str) -> str:
    return f"{chosen.name} {metric}"
