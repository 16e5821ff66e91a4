"""What `gpu.py` has measured, as a page of Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from measure import Document, footnote, markdown_table, without_folders

from twinbench.foundation.files import write_atomically

PROTOCOLS = ("knn/cosine-v1", "linear/cached-v1")
CARD = "H100"
"""The card that the goals are for, as its name has it."""
GOALS = {("resnet18", 32): 20_000, ("resnet50", 224): 1_750}
"""Pairs a second in bf16 on one such card, by network and size."""
TIMES_LIGHTLY = 3


def render(document: Document) -> str:
    """The document as Markdown."""
    versions = f"driver {document['driver'] or 'none'}, {document['minutes']:g} minutes"
    parts = [f"# {document['device']}", versions]
    if document["small"]:
        parts.append("**At small size, to see that everything runs: the numbers mean nothing.**")
    if document["tests"]:
        parts += ["## Tests", _tests(document["tests"])]
    if document["throughput"]:
        parts += ["## Throughput of pretraining", *_throughput(document)]
    if document["training"]:
        parts += ["## Six methods", *_training(document["training"])]
    if document["left_out"]:
        parts += ["## Not measured", "\n".join(f"- {_one_line(text)}" for text in document["left_out"])]
    return "\n\n".join([*parts, footnote(document)]) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())[-400:]


def _tests(found: Document) -> str:
    counts = f"{found['passed']} passed, {found['skipped']} skipped, {len(found['failed'])} failed"
    return "\n".join(
        [f"{counts}, in {found['seconds']:.0f} s.", *(f"- failed: {name}" for name in found["failed"])]
    )


def _case(row: Document) -> tuple[str, int, int]:
    return row["network"], row["size"], row["batch_size"]


def _throughput(document: Document) -> list[str]:
    rows = document["throughput"]
    roofs = {(row["network"], row["size"]): row for row in rows if row["name"] == "roof"}
    measured = [row for row in rows if row["name"] != "roof"]
    lines = []
    for row in measured:
        roof = roofs.get(_case(row)[:2]) if row["precision"] == "bf16" else None
        shares = [f"{row['pairs_per_second'] / bound:.0%}" for bound in _bounds(roof)] if roof else ["", ""]
        lines.append(
            [
                *map(str, _case(row)),
                row["name"],
                row["precision"],
                f"{row['pairs_per_second']:,.0f}",
                *shares,
                f"{row['peak_memory_mb']:,.0f}",
            ]
        )
    header = ["network", "pixels", "batch", "side", "precision", "pairs/s", "of the compute roof"]
    table = markdown_table([*header, "of the memory roof", "peak memory, MiB"], lines)
    return [
        table,
        "\n".join(_roof_line(roof) for roof in roofs.values()),
        *([] if document["small"] else _goals(measured, document["device"])),
    ]


def _bounds(roof: Document) -> tuple[float, float]:
    """Pairs a second if a step were nothing but its products, and nothing but what it reads and writes."""
    return roof["product_rate"] / roof["flops_per_pair"], roof["copy_rate"] / roof["bytes_per_pair"]


def _roof_line(roof: Document) -> str:
    compute, memory = _bounds(roof)
    return (
        f"- {roof['network']} at {roof['size']} pixels, batch {roof['batch_size']}, {roof['precision']}: "
        f"{roof['flops_per_pair'] / 1e9:.2f} GFLOP and {roof['bytes_per_pair'] / 1e6:.1f} MB a pair. Large products "
        f"run at {roof['product_rate'] / 1e12:.1f} TFLOP/s and copies at {roof['copy_rate'] / 1e9:,.0f} GB/s: roofs of "
        f"{compute:,.0f} and {memory:,.0f} pairs/s, the second for operations that are not fused."
    )


def _goals(rows: Sequence[Document], card: str) -> list[str]:
    lines = []
    for (network, size), goal in GOALS.items():
        best = {side: _best(rows, network, size, side) for side in ("twinbench", "lightly")}
        if best["twinbench"]:
            lines.append(_goal(f"{network} at {size} pixels, pairs/s", best["twinbench"], goal, card))
        if best["twinbench"] and best["lightly"]:
            ratio = best["twinbench"] / best["lightly"]
            what = f"{network} at {size} pixels, times the faster lightly"
            lines.append(_goal(what, ratio, TIMES_LIGHTLY, card))
    return ["\n".join(lines)] if lines else []


def _best(rows: Sequence[Document], network: str, size: int, side: str) -> float:
    return max(
        (r["pairs_per_second"] for r in rows if _case(r)[:2] == (network, size) and r["side"] == side),
        default=0.0,
    )


def _goal(what: str, value: float, goal: float, card: str) -> str:
    """The value beside the goal, which only the card that it is for reaches or misses."""
    verdict = (": reached" if value >= goal else ": missed") if CARD in card else ""
    return f"- {what}: {value:,.{0 if goal > 100 else 2}f}; goal on one {CARD} {goal:,}{verdict}"


def _training(found: Document) -> list[str]:
    header = ["method", "epochs", "status", "seconds", "images/s", *(f"{name}, top-1" for name in PROTOCOLS)]
    lines = [
        [
            row["method"],
            str(row["epochs"]),
            _one_line(row["status"]),
            *(f"{row[key]:,.0f}" if key in row else "" for key in ("seconds", "images_per_second")),
            *(f"{row[name]:.2f}" if name in row else "" for name in PROTOCOLS),
        ]
        for row in found["rows"]
    ]
    images = f"{found['images']}: {found['train']:,} images to train on, {found['test']:,} to test"
    return [f"By the recipes of recipes/cifar10 on {images}; one seed.", markdown_table(header, lines)]


def publish(document: Document, folder: Path) -> Path:
    """Write the document and its table as ``<device>.json`` and ``.md``, without the folders of this machine.

    Returns the path of the table.
    """
    document = without_folders(document)
    name = re.sub(r"[^a-z0-9]+", "-", document["device"].lower()).strip("-")
    stem = folder / (name + ("-small" if document["small"] else ""))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(stem.with_suffix(".json"), (json.dumps(document, indent=1) + "\n").encode())
    write_atomically(stem.with_suffix(".md"), render(document).encode())
    return stem.with_suffix(".md")
