"""The command line. Commands import what they need when they run, so that ``--help`` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from twinbench.foundation.errors import InputError
from twinbench.harness.ending import Commands

app = typer.Typer(
    cls=Commands,
    help="Barlow Twins and its peers: pretrain encoders, evaluate them under versioned protocols, write the tables.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _path(text: str | Path) -> Path:
    """Refuse what a variable of the shell leaves that is not set: it would be the current folder."""
    if not str(text):
        raise InputError("a path is empty", next_step="see that the variables in your command are set")
    return Path(text)


def _store(text: str | Path) -> Path:
    """A run store: a folder, or the mirror of an object store, which is looked at when it is named."""
    if "://" not in str(text):
        return _path(text)
    from twinbench.harness.mirror import store_at

    return store_at(text)


def _encoder(text: str | Path) -> Path:
    """A run, an encoder or a file; the first two may lie in an object store."""
    if "://" not in str(text):
        return _path(text)
    from twinbench.harness.mirror import inside_store

    return inside_store(text)


def _store_or_run(text: str | Path) -> Path:
    if "://" not in str(text):
        return _path(text)
    from twinbench.harness.mirror import store_or_run_at

    return store_or_run_at(text)


DataRoot = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder that holds image sets such as cifar10.", show_default=False),
]
RunsRoot = Annotated[Path, typer.Option("--runs", metavar="DIR|URL", help="The run store.", parser=_store)]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe key, e.g. --set epochs=5 (repeatable)."),
]
Devices = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Processes on each machine. [default: as torchrun or SLURM says; else 1]"
    ),
]
Nodes = Annotated[int | None, typer.Option(min=1, metavar="N", help="Machines. [default: likewise]")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
_RUNS = Path("runs")


@app.command(epilog="Example: twinbench run quick --seeds 3")
def run(
    study: Annotated[str, typer.Argument(help="A study's name (twinbench ls studies) or a YAML file.")],
    seeds: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How many seeds, counted from 0.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Only these methods, separated by commas.")
    ] = None,
    image_set: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Other images than the study's: a name, or folder:PATH."),
    ] = None,
    scale: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a study with scales: quick, cifar10 or imagenet.")
    ] = None,
    set_: Overrides = [],  # noqa: B006  (typer reads the default, nobody changes it)
    data_root: DataRoot = None,
    runs: RunsRoot = _RUNS,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Report folder. [default: results/STUDY]")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Runs at a time. [default: one a training, GPU or core]",
        ),
    ] = None,
    executor: Annotated[
        Literal["local", "ray"],
        typer.Option(help="Who does the jobs: processes of this command, or Ray (extra: ray)."),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Ray's cluster: 'auto' on one of its nodes, or HOST:PORT. [default: Ray is started here]",
            show_default=False,
        ),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="With Ray: processes of each training on a machine. [default: 1]"
        ),
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="With Ray: machines of each training. [default: 1]")
    ] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            metavar="MINUTES",
            help="How long a job may take before it is stopped. [default: ten times its estimate, at least an hour]",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="One job at a time; stop at the first failure and show its traceback."),
    ] = False,
) -> None:
    """Run a study: train what is missing, evaluate it, write tables, figures and the report."""
    from twinbench.harness.commands import StudyRequest, run_study
    from twinbench.harness.ray_options import asked_of_ray

    ray = asked_of_ray(executor, address, devices, nodes, debug)
    request = StudyRequest(
        study=study,
        seeds=seeds,
        methods=tuple(methods.split(",")) if methods else (),
        image_set=image_set,
        scale=scale,
        assignments=tuple(set_),
        data_root=data_root,
        runs=runs,
        out=out,
        workers=workers,
        job_minutes=time_limit,
        dry_run=dry_run,
        debug=debug,
        ray=ray,
    )
    run_study(request)


Precision = Literal["fp32", "bf16", "fp16"]


@app.command(
    epilog="Examples: twinbench pretrain barlow_twins --image-set folder:photos --set epochs=100\n\n"
    "twinbench pretrain barlow_twins --image-set folder:IMAGENET --recipe imagenet --devices 8\n\n"
    "srun twinbench pretrain ... in a SLURM job, or torchrun --nproc-per-node 8 --no-python twinbench pretrain ..."
)
def pretrain(
    method: Annotated[str, typer.Argument(help="A method's name (twinbench ls methods).")],
    image_set: Annotated[str, typer.Option(metavar="NAME", help="An image set's name, or folder:PATH.")],
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME", help="Recipe folder. [default: the image set's own]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N")] = 0,
    set_: Overrides = [],  # noqa: B006
    devices: Devices = None,
    nodes: Nodes = None,
    precision: Annotated[
        Precision | None, typer.Option(help="Arithmetic of the network. [default: the recipe's]")
    ] = None,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compile the network with torch.compile.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write TensorBoard events into the run's folder.")
    ] = False,
    data_root: DataRoot = None,
    runs: RunsRoot = _RUNS,
    debug: Debug = False,
) -> None:
    """Train one encoder, or go on where an interrupted run stopped."""
    from twinbench.harness.encoder_commands import PretrainRequest, pretrain_one
    from twinbench.pretraining.engine import hardware_here

    request = PretrainRequest(
        method=method,
        image_set=image_set,
        recipe=recipe,
        seed=seed,
        assignments=(*set_, *([f"precision={precision}"] if precision else [])),
        data_root=data_root,
        runs=runs,
        hardware=hardware_here(devices, nodes, compile_),
        tensorboard=tensorboard,
    )
    pretrain_one(request)


@app.command(
    epilog="Examples: twinbench tune simclr byol --image-set digit-scenes --trials 12\n\n"
    "twinbench tune supervised --image-set cifar10 --recipe cifar10-cpu --limit train=20000 --trials 8 --data-root DIR"
)
def tune(
    methods: Annotated[
        list[str], typer.Argument(metavar="METHOD...", help="Methods that the search space has a part for.")
    ],
    image_set: Annotated[str, typer.Option(metavar="NAME", help="An image set's name, or folder:PATH.")],
    trials: Annotated[int, typer.Option(min=1, metavar="N", help="How many trials each method gets.")],
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Recipe folder with a search.yaml. [default: the image set's own]"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the points and the trainings.")] = 0,
    set_: Overrides = [],  # noqa: B006
    limit: Annotated[
        list[str],
        typer.Option(
            metavar="SPLIT=N",
            help="Cut a split of the trials to so many images, e.g. train=2000 (repeatable). Their val is a tenth of "
            "the set's train images, which train lacks, and their test is the set's val.",
        ),
    ] = [],  # noqa: B006
    write: Annotated[
        bool,
        typer.Option(
            "--write",
            help="Put what won and its log into the recipe folder, over what is there: of the comments, Expected: and "
            "Tuning: are new. Of a method with trials that failed or were not run, nothing is put there.",
        ),
    ] = False,
    data_root: DataRoot = None,
    runs: RunsRoot = _RUNS,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For logs and recipes. [default: results/tune-RECIPE-IMAGES]"),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Runs at a time. [default: one a training, GPU or core]",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the trials and how long they take, and stop. Where no earlier runs tell, steps of each method "
            "are timed, for a minute or more.",
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="One job at a time; stop at the first failure and show its traceback."),
    ] = False,
) -> None:
    """Search good values for some methods, each in the same number of trials, on validation images alone.

    What --set changes is part of the recipes that win, but for epochs and schedule.warmup_epochs: these are the budget
    of the trials alone.
    """
    from twinbench.harness.tuning import TuneRequest, tune

    request = TuneRequest(
        methods=tuple(methods),
        image_set=image_set,
        trials=trials,
        recipe=recipe,
        seed=seed,
        assignments=tuple(set_),
        limits=tuple(limit),
        data_root=data_root,
        runs=runs,
        out=out,
        workers=workers,
        write=write,
        dry_run=dry_run,
        debug=debug,
    )
    tune(request)


@app.command(
    epilog="Examples: twinbench evaluate runs/RUN/encoder --protocol linear/cached-v1 --image-set digit-scenes\n\n"
    "twinbench evaluate runs/RUN --protocol linear/sgd-v2 --image-set folder:IMAGENET --devices 8"
)
def evaluate(
    encoder: Annotated[
        Path, typer.Argument(help="An encoder folder, or the run that holds it.", parser=_encoder)
    ],
    protocol: Annotated[
        str, typer.Option(metavar="NAME", help="A protocol's name (twinbench ls protocols).")
    ],
    image_set: Annotated[
        str, typer.Option(metavar="NAME", help="The image set to evaluate on, or folder:PATH.")
    ],
    seed: Annotated[int, typer.Option(min=0, metavar="N")] = 0,
    label_list: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Published list of ImageNet's labelled images, for semi-1pct/paper and semi-10pct/paper.",
        ),
    ] = None,
    own_list: Annotated[
        bool, typer.Option("--own-list", help="The list is your own: do not ask for the published checksum.")
    ] = False,
    data_root: DataRoot = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write the result record to this file, and what became of each test item to "
            "FILE.outcomes.safetensors.",
        ),
    ] = None,
    devices: Devices = None,
    nodes: Nodes = None,
    debug: Debug = False,
) -> None:
    """Evaluate one encoder under one protocol, or go on where this was stopped, and print what was measured.

    What its run has already is printed as it is; --out FILE measures anew.
    """
    from twinbench.harness.encoder_commands import EvaluateRequest, evaluate_one
    from twinbench.pretraining.engine import hardware_here

    request = EvaluateRequest(
        encoder=encoder,
        protocol=protocol,
        image_set=image_set,
        seed=seed,
        data_root=data_root,
        out=out,
        label_list=label_list,
        own_list=own_list,
        hardware=hardware_here(devices, nodes),
    )
    evaluate_one(request)


@app.command(
    epilog="Example: twinbench compare runs/RUN resnet50.pth --protocol knn --protocol linear/cached-v1 "
    "--image-set digit-scenes"
)
def compare(
    encoders: Annotated[
        list[Path],
        typer.Argument(
            metavar="ENCODER...",
            help="Runs, encoder folders, or checkpoints of other projects.",
            parser=_encoder,
        ),
    ],
    protocol: Annotated[
        list[str],
        typer.Option(metavar="NAME", help="A protocol's name (twinbench ls protocols; repeatable)."),
    ],
    image_set: Annotated[
        str, typer.Option(metavar="NAME", help="The image set to evaluate on, or folder:PATH.")
    ],
    seeds: Annotated[
        int, typer.Option(min=1, metavar="N", help="Evaluations of an encoder that is no run here.")
    ] = 1,
    data_root: DataRoot = None,
    runs: RunsRoot = _RUNS,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Report folder.")] = Path("results/compare"),
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Jobs at a time. [default: one a training, GPU or core]",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Evaluate encoders, runs and checkpoints of other projects, and put them into one table and report."""
    from twinbench.harness.comparison import CompareRequest
    from twinbench.harness.comparison import compare as compare_encoders

    request = CompareRequest(
        encoders=tuple(encoders),
        protocols=tuple(protocol),
        image_set=image_set,
        seeds=seeds,
        data_root=data_root,
        runs=runs,
        out=out,
        workers=workers,
        debug=debug,
    )
    compare_encoders(request)


@app.command("import", epilog="Example: twinbench import resnet50.pth --out encoders/barlow-twins")
def import_(
    file: Annotated[Path, typer.Argument(help="A checkpoint of another project.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the encoder.")],
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="NAME", help="Its format (twinbench ls formats). [default: as its keys say]"
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Its name in tables. [default: the format's method, else the file's name]"
        ),
    ] = None,
    stem: Annotated[
        Literal["small", "stride2"] | None,
        typer.Option(help="Stem of a 3x3 first convolution, where the format leaves it open."),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Which of several networks in the file. [default: the one its project evaluates]",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Make an encoder of another project's checkpoint; every key is accounted for, no code of it is run."""
    from twinbench.harness.transfer_commands import import_one

    import_one(file, format_, method, out, stem, network)


ExportFormat = Literal["torchvision", "detectron2", "timm"]


@app.command(epilog="Example: twinbench export runs/RUN/encoder --format detectron2 --out barlow-twins.pkl")
def export(
    encoder: Annotated[
        Path, typer.Argument(help="An encoder folder, or the run that holds it.", parser=_encoder)
    ],
    format_: Annotated[ExportFormat, typer.Option("--format", help="Whose format.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write.")],
    debug: Debug = False,
) -> None:
    """Write an encoder for torchvision, Detectron2 or timm, load it there and compare the feature maps."""
    from twinbench.harness.transfer_commands import export_one

    export_one(encoder, format_, out)


@app.command(epilog="Example: twinbench report runs --out results/all")
def report(
    runs: Annotated[Path, typer.Argument(help="A run store, a folder or a URL.", parser=_store)],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Report folder.")],
    debug: Debug = False,
) -> None:
    """Write tables, figures and the page from every run in a run store."""
    from twinbench.harness.commands import report_runs

    report_runs(runs, out)


@app.command(epilog="Example: twinbench verify results/quick")
def verify(
    results: Annotated[Path, typer.Argument(help="A report folder.")],
    data_root: DataRoot = None,
    debug: Debug = False,
) -> None:
    """Compute every number of a report again from its records and per-item outcomes, and name what does not follow."""
    from twinbench.harness.verification import verify as verify_report

    verify_report(results, data_root)


@app.command("export-results", epilog="Example: twinbench export-results runs --out outcomes")
def export_results(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|RUNS", help="A run, or a run store.", parser=_store_or_run)
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the files.")],
    data_root: DataRoot = None,
    debug: Debug = False,
) -> None:
    """Write what became of every test item as CSV, and detections in COCO's format with their ground truth."""
    from twinbench.harness.exported_results import export_results as export

    export(source, out, data_root)


Thing = Literal["methods", "protocols", "image-sets", "recipes", "studies", "formats", "runs"]


@app.command(epilog="Example: twinbench ls studies --json")
def ls(
    thing: Annotated[Thing, typer.Argument(help="What to list.")],
    json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
    runs: RunsRoot = _RUNS,
    debug: Debug = False,
) -> None:
    """List methods, protocols, image sets, recipes, studies, formats that can be imported, or runs."""
    from twinbench.harness.commands import list_names

    list_names(thing, json, runs)


@app.command(epilog="Example: twinbench doctor --data-root datasets")
def doctor(
    data_root: DataRoot = None,
    runs: Annotated[str, typer.Option("--runs", metavar="DIR|URL", help="The run store.")] = str(_RUNS),
    debug: Debug = False,
) -> None:
    """Say what this machine has: device, precision, Detectron2, image sets; what is missing, how to get it."""
    from twinbench.harness.doctor import check_store, examine

    for line in examine(data_root):
        typer.echo(line)
    typer.echo(f"run store   {check_store(_store(runs))}")  # last, for it may not answer
