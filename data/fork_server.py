"""What the server from which workers are forked imports when it starts; no other process imports this module.

The server must have no threads, so that forking it is safe, and must outlive the signals that a launcher sends to
every process of a job: its workers are needed until the training has saved.
"""

import os
import signal

# read when numpy and torch are imported: their libraries would start threads, one for each core
for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{_library}_NUM_THREADS"] = "1"

import torch.utils.data.graph_settings  # noqa: E402, F401  (a DataLoader's worker imports it)
from PIL import Image  # noqa: E402

from twinbench.data import streaming  # noqa: E402, F401

Image.preinit()

_IGNORED = (signal.SIGTERM, signal.SIGUSR1)


def _listen_again() -> None:
    """What is forked decides for itself which signals it ignores."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_DFL)


for _number in _IGNORED:
    signal.signal(_number, signal.SIG_IGN)
os.register_at_fork(after_in_child=_listen_again)
