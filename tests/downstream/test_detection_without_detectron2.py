import sys

import pytest

from data.errors import InputError
from downstream.detection import detectron2_c4
from downstream.features import FeatureStore
from downstream.protocol import EvaluationContext, protocol


def test_without_detectron2_its_protocols_say_so_before_any_work(encoder, image_set, monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    monkeypatch.setattr(detectron2_c4, "find_spec", lambda name: None)
    for name in ("c4", "voc-c4", "coco-c4", "voc-c4-detectron2-1gpu", "coco-c4-detectron2-1gpu"):
        chosen = protocol(f"detection/{name if 'gpu' in name else name + '-detectron2'}-v1")
        with pytest.raises(InputError, match="tutorials/install"):
            chosen.forward_passes(image_set)
        with pytest.raises(InputError, match="needs Detectron2"):
            chosen.evaluate(encoder, EvaluationContext(image_set, FeatureStore(None)))
