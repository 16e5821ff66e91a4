"""What `test_detectron2_shares` has Detectron2's launcher start: ``python detectron2_worker.py FOLDER``."""

import importlib
import math
import os
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from detectron2.engine import launch
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.modeling.roi_heads import fast_rcnn
from PIL import Image
from shares_worker import OFFSET, Watched, fixtures
from torch.nn.functional import pad
from torchvision.ops import batched_nms

from twinbench.data.detection import DetectionSplit, PictureFiles
from twinbench.downstream import checkpoints
from twinbench.downstream.detection import outcomes
from twinbench.downstream.detection.d2 import detector
from twinbench.downstream.detection.schedules import TINY
from twinbench.downstream.features import FeatureStore
from twinbench.downstream.protocol import EvaluationContext, protocol
from twinbench.foundation.collectives import rank

importlib.import_module("twinbench.downstream.detection.detectron2_c4")
WORLDS = (1, 2, 4)
# several sizes, so that ranks have to agree on the padding
CHOSEN = replace(
    protocol("detection/coco-c4-detectron2-v1"),
    schedule=replace(
        TINY,
        images_per_batch=4,
        iterations=4,
        steps=(2, 3),
        warmup_iterations=1,
        train_sizes=(48, 64),
        test_size=64,
        regions=12,
        precise_bn=1,
    ),
)
outcomes.resampled_average_precision = lambda *arguments: {}
# Detectron2's own takes boxes in fp32 alone, and with them scores
proposal_utils.batched_nms = fast_rcnn.batched_nms = lambda boxes, scores, classes, threshold: batched_nms(
    boxes.double(), scores.double(), classes, threshold
)


def pictures(folder, n, seed):
    """Scenes with squares in portrait and landscape pictures on disk, which are batched apart."""
    scenes = fixtures.square_scenes(n, seed)
    padding = [(0, 24, 0, 0) if i % 2 else (0, 0, 0, 16) for i in range(n)]
    images = [pad(image, sides) for image, sides in zip(scenes.images, padding, strict=True)]
    masks = [pad(each, sides) for each, sides in zip(scenes.masks, padding, strict=True)]
    paths = [folder / f"{seed}-{i}.png" for i in range(n)]
    if rank() == 0 and not paths[0].exists():
        for path, image in zip(paths, images, strict=True):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    files = PictureFiles(paths, [tuple(image.shape[1:]) for image in images])
    return DetectionSplit(files, scenes.boxes, scenes.labels, masks)


def in_double_precision(training):
    """Detectron2's checkpointer with a model in fp64, whose weights and first step the checkpoints keep."""

    def resumed(kept, model, **parts):
        state = training(kept, model.double(), **parts)
        kept.trained, kept.first = model, state.first
        return state

    return resumed


detector.training = in_double_precision(detector.training)


def evaluated(folder, kept):
    scenes = {name: pictures(folder, 12, OFFSET + seed) for seed, name in enumerate(("train", "test"))}
    context = EvaluationContext(
        fixtures.MemorySet({}, scenes), FeatureStore(None), seed=OFFSET, checkpoints=kept
    )
    measured = CHOSEN.evaluate(fixtures.build_encoder(OFFSET), context)
    return {
        "first": kept.first,
        "weights": kept.trained.state_dict(),
        "measured": [(m.metric, m.value, m.n) for m in measured],
    }


def run_rank(folder, name, kept):
    torch.set_num_threads(1)
    torch.save(evaluated(folder, Watched(kept)), folder / f"{name}.{rank()}")


def be_killed(folder, kept):
    """Evaluate with a checkpoint after every step, until rank 0 has written the third."""
    torch.set_num_threads(1)
    checkpoints._SECONDS, checkpoints._SHARE = 0.0, math.inf
    keep = checkpoints.TrainingState.keep

    def keep_and_die(state, step):
        keep(state, step)
        if step == 3 and rank() == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.TrainingState.keep = keep_and_die
    evaluated(folder, Watched(kept))


def main():
    folder = Path(sys.argv[1])
    for world in WORLDS:
        launch(run_rank, world, dist_url="auto", args=(folder, f"result.{world}", None))
    kept = folder / "kept"
    with suppress(torch.multiprocessing.ProcessExitedException):
        launch(be_killed, 2, dist_url="auto", args=(folder, kept))
        raise AssertionError("rank 0 was not killed")
    launch(run_rank, 2, dist_url="auto", args=(folder, "went on", kept))


if __name__ == "__main__":
    main()
