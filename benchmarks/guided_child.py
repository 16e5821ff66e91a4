"""One reader under atheris, for `benchmarks/guided_fuzzing.py`: prints a line of JSON for every new kind of offence.

An input is a byte that says which of the reader's good files is another, and its content. Only files of twinbench are
instrumented, and only if atheris sees them imported: nothing of twinbench is imported before.
"""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from pathlib import Path
from random import Random

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
with atheris.instrument_imports(include=["twinbench"]):
    from tests.fuzzing.law import read_files
    from tests.fuzzing.mutations import of_file
    from tests.fuzzing.readers import READERS
    from twinbench.harness.plugins import load_plugins

_MOST_BYTES = 2**21


def fuzz(name: str, inputs: int, seed: int, guided: bool) -> None:
    """Read so many inputs; ends the process. Unless ``guided`` every input is made from a good one."""
    load_plugins()
    reader, good = READERS[name], dict(READERS[name].good())
    names = sorted(good)
    offences = set[str]()

    def read(data: bytes) -> None:
        if not data:
            return
        file = names[data[0] % len(names)]
        try:
            read_files(reader.read, reader.seal({**good, file: data[1:]}))
        except BaseException as error:
            frames = [f for f in traceback.extract_tb(error.__traceback__) if "/tests/" not in f.filename]
            kind = f"{type(error).__name__} in {frames[-1].name if frames else 'the law'}: {error}"[:200]
            if kind not in offences:
                offences.add(kind)
                print(json.dumps({"offence": kind, "file": file, "content": data[1:].hex()}), flush=True)

    def mutate(data: bytes, most: int, draw: int) -> bytes:
        r = Random(draw)
        place = data[0] % len(names) if guided and data else r.randrange(len(names))
        content = data[1:] if guided and data else good[names[place]]
        return (bytes([place]) + of_file(names[place], content, r))[:most]

    with tempfile.TemporaryDirectory() as corpus:
        for place, file in enumerate(names):
            (Path(corpus) / f"{place:03d}").write_bytes(bytes([place]) + good[file])
        options = [f"-runs={inputs}", f"-seed={seed}", f"-max_len={_MOST_BYTES}"]
        options += [
            "-rss_limit_mb=0",
            "-timeout=120",
            "-print_final_stats=1",
            f"-artifact_prefix={corpus}/",
            corpus,
        ]
        atheris.Setup([sys.argv[0], *options], read, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    fuzz(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "guided")
