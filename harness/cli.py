"""The command line. Commands import what they need when they run, so that ``--help`` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    help="Barlow Twins and its peers: pretrain encoders, evaluate them under versioned protocols, write the tables.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DataRoot = Annotated[
    Path | None, typer.Option(help="Folder that holds image sets such as cifar10.", show_default=False)
]
RunsRoot = Annotated[Path, typer.Option("--runs", help="The run store.")]
Overrides = Annotated[
    list[str], typer.Option("--set", help="Change a recipe key, e.g. --set epochs=5 (repeatable).")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
_RUNS = Path("runs")


@app.command(epilog="Example: twinbench run quick --seeds 3")
def run(
    study: Annotated[str, typer.Argument(help="A study's name (twinbench ls studies) or a YAML file.")],
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds, counted from 0.")] = None,
    methods: Annotated[str | None, typer.Option(help="Only these methods, separated by commas.")] = None,
    set_: Overrides = [],  # noqa: B006  (typer reads the default, nobody changes it)
    data_root: DataRoot = None,
    runs: RunsRoot = _RUNS,
    out: Annotated[Path | None, typer.Option(help="Report folder. [default: results/STUDY]")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time. [default: one a core; 1 with a GPU]")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    debug: Debug = False,
) -> None:
    """Run a study: train what is missing, evaluate it, write tables, figures and the report."""
    from harness.commands import run_study

    run_study(
        study,
        seeds=seeds,
        methods=methods.split(",") if methods else None,
        assignments=set_,
        data_root=data_root,
        runs=runs,
        out=out,
        workers=workers,
        dry_run=dry_run,
        debug=debug,
    )


@app.command(epilog="Example: twinbench pretrain barlow_twins --image-set folder:photos --set epochs=100")
def pretrain(
    method: Annotated[str, typer.Argument(help="A method's name (twinbench ls methods).")],
    image_set: Annotated[str, typer.Option(help="An image set's name, or folder:PATH.")],
    recipe: Annotated[str | None, typer.Option(help="Recipe folder. [default: the image set's own]")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    set_: Overrides = [],  # noqa: B006
    data_root: DataRoot = None,
    runs: RunsRoot = _RUNS,
    debug: Debug = False,
) -> None:
    """Train one encoder, or go on where an interrupted run stopped."""
    from harness.commands import pretrain_one

    pretrain_one(method, image_set, recipe, seed, set_, data_root, runs)


@app.command(epilog="Example: twinbench evaluate runs/RUN/encoder --protocol linear --image-set digit-scenes")
def evaluate(
    encoder: Annotated[Path, typer.Argument(help="An encoder folder, or the run that holds it.")],
    protocol: Annotated[str, typer.Option(help="A protocol's name (twinbench ls protocols).")],
    image_set: Annotated[str, typer.Option(help="The image set to evaluate on, or folder:PATH.")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
    data_root: DataRoot = None,
    out: Annotated[Path | None, typer.Option(help="Also write the result record to this file.")] = None,
    debug: Debug = False,
) -> None:
    """Evaluate one encoder under one protocol and print what was measured."""
    from harness.commands import evaluate_one

    evaluate_one(encoder, protocol, image_set, seed, data_root, out)


@app.command(epilog="Example: twinbench report runs --out results/all")
def report(
    runs: Annotated[Path, typer.Argument(help="A run store.")],
    out: Annotated[Path, typer.Option(help="Report folder.")],
    debug: Debug = False,
) -> None:
    """Write tables, figures and the page from every run in a run store."""
    from harness.commands import report_runs

    report_runs(runs, out)


Thing = Literal["methods", "protocols", "image-sets", "recipes", "studies", "runs"]


@app.command(epilog="Example: twinbench ls studies --json")
def ls(
    thing: Annotated[Thing, typer.Argument(help="What to list.")],
    json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
    runs: RunsRoot = _RUNS,
) -> None:
    """List methods, protocols, image sets, recipes, studies or runs."""
    from harness.commands import list_names

    list_names(thing, json, runs)


@app.command(epilog="Example: twinbench doctor --data-root datasets")
def doctor(data_root: DataRoot = None, runs: RunsRoot = _RUNS) -> None:
    """Say what this machine has: device, precision, Detectron2, image sets; what is missing, how to get it."""
    from harness.doctor import examine

    for line in examine(data_root, runs):
        typer.echo(line)
