"""Does it help a fuzzer of the readers to see which lines its inputs reach? Fuzzes them by atheris with and without.

    pip install atheris
    python benchmarks/guided_fuzzing.py --inputs 1000 --markdown docs/security.md

Inputs are made as those of `benchmarks/fuzz.py` are, and break the same law. There each is a good file changed once.
Here too, *blind*; *guided*, an input that reached a new branch of twinbench's code is kept and changed further, so
that changes add up. Both read as many inputs of every reader. A branch counts once, whatever it is reached by; those
that the good files reach come first.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from measure import (
    check_targets,
    device_description,
    facts,
    footnote,
    markdown_table,
    positive,
    publish,
    run_script,
)

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fuzzing.readers import READERS
from twinbench.foundation.errors import InputError, RunFailure
from twinbench.foundation.files import slug

_CHILD = Path(__file__).with_name("guided_child.py")


@dataclass
class Reach:
    """What so many ``inputs`` of a reader came to: branches reached, and each kind of offence once."""

    inputs: int
    by_good: int
    branches: int
    offences: list[str]


def reach(name: str, inputs: int, seed: int, guided: bool, keep: Path) -> Reach:
    """Fuzz a reader in a process of its own; inputs that offend are kept. Raises RunFailure if the process fails."""
    mode = "guided" if guided else "blind"
    command = [sys.executable, str(_CHILD), name, str(inputs), str(seed), mode]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    told = {
        what: re.findall(pattern, done.stderr)
        for what, pattern in {
            "begun": r"INITED cov: (\d+)",
            "ended": r"DONE +cov: (\d+)",
            "inputs": r"stat::number_of_executed_units: (\d+)",
        }.items()
    }
    if done.returncode != 0 or not all(told.values()):
        raise RunFailure(
            f"fuzzing {name}, {mode}, ended with exit code {done.returncode}: {done.stderr.strip()[-1000:]}",
            next_step="run this alone to see more: " + " ".join(command),
        )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"offence"')]
    for place, offence in enumerate(found):
        path = keep / f"{slug(name)}-{mode}-{place}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes.fromhex(offence["content"]))
        print(f"{name}, {mode}: {offence['offence']} ({offence['file']} is {path})", file=sys.stderr)
    last = {what: int(numbers[-1]) for what, numbers in told.items()}
    return Reach(last["inputs"], last["begun"], last["ended"], [each["offence"] for each in found])


def page(found: dict[str, tuple[Reach, Reach]]) -> str:
    """The table and what it shows, of (blind, guided) by reader."""
    rows = [
        (
            name,
            f"{blind.inputs:,}",
            str(blind.by_good),
            str(blind.branches),
            str(guided.branches),
            f"{len(blind.offences)} / {len(guided.offences)}",
        )
        for name, (blind, guided) in found.items()
    ]
    table = markdown_table(
        ("reader", "inputs each", "branches: good files", "blind", "guided", "offences: blind / guided"), rows
    )
    more = sum(guided.branches > blind.branches for blind, guided in found.values())
    fewer = sum(guided.branches < blind.branches for blind, guided in found.values())
    summed = [
        sum(each.branches - each.by_good for each in side) for side in zip(*found.values(), strict=True)
    ]
    offences = sorted(
        {f"{name}: {what}" for name, both in found.items() for each in both for what in each.offences}
    )
    listed = "\n".join(f"- {offence}" for offence in offences) or "No input broke the law."
    return (
        f"{table}\n\nGuided reached more branches of {more} readers and fewer of {fewer}; all together, beyond "
        f"those of the good files, {summed[1]:,} against {summed[0]:,}.\n\n{listed}"
    )


def main() -> None:
    """Fuzz every reader both ways; ends with code 1 if there was an offence."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=positive, default=1000, help="of each reader, each way")
    parser.add_argument("--seed", type=positive, default=1)
    parser.add_argument("--reader", choices=list(READERS), action="append", help="only this one (repeatable)")
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-offences"), help="folder for inputs that offend"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    check_targets("guided-fuzzing", arguments.out, arguments.markdown)
    if find_spec("atheris") is None:
        raise InputError("atheris is not installed", next_step="pip install atheris")
    found: dict[str, tuple[Reach, Reach]] = {}
    for name in arguments.reader or list(READERS):
        blind, guided = (
            reach(name, arguments.inputs, arguments.seed, way, arguments.keep) for way in (False, True)
        )
        found[name] = blind, guided
        print(f"{name}: {blind.branches} blind, {guided.branches} guided", file=sys.stderr, flush=True)
    document = {
        "device": device_description(),
        "facts": facts(),
        "readers": {name: [asdict(each) for each in both] for name, both in found.items()},
    }
    text = f"{page(found)}\n\n{footnote(document)}"
    publish(document, text, "guided-fuzzing", arguments.out, arguments.markdown)
    sys.exit(any(each.offences for both in found.values() for each in both))


if __name__ == "__main__":
    run_script(main)
