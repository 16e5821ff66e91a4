import sys

import pytest

from twinbench.downstream.protocol import protocol
from twinbench.foundation.errors import InputError


def test_without_detectron2_its_protocols_say_so_before_any_work(image_set, monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    for name in ("c4", "voc-c4", "voc-c4-bt", "coco-c4"):
        chosen = protocol(f"detection/{name}-detectron2-v1")
        with pytest.raises(InputError, match="needs Detectron2") as caught:
            chosen.check(image_set)
        assert "tutorials/install" in str(caught.value.next_step)
