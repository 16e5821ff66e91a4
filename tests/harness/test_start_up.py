"""The command line answers at once: no heavy import on the way to --help, and no image for the plan of a cluster."""

import json
import subprocess
import sys
from pathlib import Path

from twinbench.data.listing import EXTENSIONS

# A command, and then a file that says which files it opened and how many seconds of a processor it took.
TOLD = """
import json, sys, time
opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
from twinbench.harness.main import main
told = sys.argv.pop(1)
try:
    main()
finally:
    with open(told, "w") as file:
        json.dump({"opened": opened, "seconds": time.process_time()}, file)
"""


def test_help_imports_no_torch():
    script = (
        "import sys\nfrom twinbench.harness.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'sklearn', 'torchvision', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    for command in ("run", "pretrain", "evaluate", "report", "ls", "doctor"):
        assert command in outcome.stdout


def test_the_plan_of_the_paper_on_imagenet_comes_soon_and_opens_no_image(tmp_path):
    """The goal is 5 s on a quiet machine. What counts are seconds of the processor, whatever else it does."""
    words = ["run", "paper", "--scale", "imagenet", "--seeds", "3", "--dry-run"]
    outcome = subprocess.run(
        [sys.executable, "-c", TOLD, "told.json", *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert outcome.returncode == 0, outcome.stderr
    assert "together: " in outcome.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["told.json"]
    told = json.loads((tmp_path / "told.json").read_text())
    opened = [Path(name) for name in told["opened"]]
    assert any(file.match("studies/fig5.yaml") for file in opened)
    # the digits of the embedded sets come in a .csv.gz
    assert not {file.suffix.lower() for file in opened} & {*EXTENSIONS, ".gz"}
    assert told["seconds"] < 60
