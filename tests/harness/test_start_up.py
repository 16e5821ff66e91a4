"""The command line answers at once: no heavy import on the way to --help."""

import subprocess
import sys


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
