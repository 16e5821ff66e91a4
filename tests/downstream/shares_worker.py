"""The processes of `test_shares`: ``python shares_worker.py FOLDER``.

One process and groups of two and four evaluate the same; others are killed in the middle, and one goes on with all of
those. All are forked from one that has done the imports and nothing else: these cost more than the evaluations.
"""

import importlib
import importlib.util
import multiprocessing
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import sklearn.model_selection
import sklearn.svm
import sklearn.utils.parallel  # noqa: F401  (an evaluation imports these three itself: once here, not in each process)
import torch
import torch.distributed as dist
from PIL import Image
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from twinbench.data.catalogue import load_image_set
from twinbench.downstream import checkpoints, semi_supervised, voc_svm
from twinbench.downstream.checkpoints import Checkpoints
from twinbench.downstream.detection import outcomes, small_mask_rcnn
from twinbench.downstream.detection.schedules import TINY
from twinbench.downstream.features import FeatureStore
from twinbench.downstream.protocol import EvaluationContext, protocol
from twinbench.foundation.errors import InputError

for _name in (
    "linear_grid",
    "voc_svm",
    "detection.torchvision_rcnn",
):  # and what they import: not all that there is
    importlib.import_module(f"twinbench.downstream.{_name}")
_spec = importlib.util.spec_from_file_location("shared_fixtures", Path(__file__).with_name("conftest.py"))
fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fixtures)

OFFSET = int(os.environ.get("TWINBENCH_SEED_OFFSET", "0"))
WORLDS = (1, 2, 4)
# two sizes of different padding, so that ranks have to agree on it
_SHORT = replace(
    TINY,
    images_per_batch=4,
    iterations=4,
    warmup_iterations=1,
    train_sizes=(32, 64),
    test_size=64,
    regions=12,
    precise_bn=1,
)
# 75 images are no multiple of the ranks, nor are the 25 of a step or the 57 to fine-tune on
TRAINED = {
    "linear": replace(protocol("linear/sgd-v2"), epochs=2, batch=30),
    "batch norm head": replace(protocol("linear/inat18-v2"), epochs=2, batch=30),
    "larc": replace(protocol("linear/simsiam-v1"), epochs=2, batch=30),
    "grid": replace(protocol("linear/byol-v1"), epochs=2, batch=30, rates=(0.2, 1.6)),
    "fine-tuning": replace(protocol("semi-10pct/finetune-v2"), fraction=0.5, steps=4),
    "published fine-tuning": replace(protocol("semi-10pct/paper-v3"), fraction=0.75, epochs=5),
    "detection": replace(protocol("detection/c4-torchvision-v2"), schedule=_SHORT),
    "small Mask R-CNN": protocol("detection/small-mask-rcnn-torchvision-v2"),
}
DETECTORS = ("detection", "small Mask R-CNN")
KILLED = ("batch norm head", "grid", "fine-tuning", "published fine-tuning", *DETECTORS)
CONTROL = "published fine-tuning with local batch norm"
FEATURES = 600  # three batches
PICTURES = 300  # two batches to train on


def shorten():
    """Let evaluations of this process take less time, which is for nothing else than them."""
    small_mask_rcnn.STEPS = 4
    voc_svm.PENALTIES = (0.1, 1.0, 10.0)
    # what is resampled follows from the detections, and takes longer than they do
    outcomes.resampled_average_precision = lambda *arguments: {}


def images():
    splits = {"train": 57, "val": 18, "test": 90}
    return fixtures.MemorySet(
        {name: fixtures.coloured_images(n, OFFSET + seed) for seed, (name, n) in enumerate(splits.items())},
        {"train": fixtures.square_scenes(20, OFFSET), "test": fixtures.square_scenes(6, OFFSET + 1)},
    )


class Watched(Checkpoints):
    """Keeps what was trained, in a number format of its choice, and from which step on."""

    def __init__(self, folder=None, dtype=torch.float32):
        super().__init__(folder, {"evaluation": "this one"})
        self.trained, self.first, self.dtype = {}, {}, dtype

    def training(self, name, **parts):
        for part in parts.values():
            if isinstance(part, torch.nn.Module):
                part.to(self.dtype)
            if isinstance(part, GeneralizedRCNN):
                part.register_forward_pre_hook(
                    lambda detector, given: ([image.to(self.dtype) for image in given[0]], *given[1:])
                )
        state = super().training(name, **parts)
        self.trained[name], self.first[name] = parts, state.first
        return state


def evaluate(name, kept):
    """The numbers of an evaluation, what it found in the test images, and everything that it has trained."""
    encoder = fixtures.build_encoder(OFFSET)
    if name not in DETECTORS:  # which are copies of the encoder that `Watched` converts
        encoder.backbone.to(kept.dtype).register_forward_pre_hook(lambda module, x: (x[0].to(kept.dtype),))
    context = EvaluationContext(images(), FeatureStore(None), seed=OFFSET, checkpoints=kept)
    chosen = TRAINED[name] if name in TRAINED else protocol(name)
    measured = [(m.metric, m.value, m.n, m.stderr) for m in chosen.evaluate(encoder, context)]
    weights = {
        f"{name} {part} {key}": value.clone()
        for name, parts in kept.trained.items()
        for part, module in parts.items()
        if isinstance(module, torch.nn.Module)
        for key, value in module.state_dict().items()
    }
    detections = context.outcomes.detections if context.outcomes else None
    return {
        "measured": measured,
        "weights": weights,
        "details": context.details,
        "detections": detections,
    }


def corrupt_pictures(folder):
    """A folder of which the last three pictures are cut off: they are not in the batch of rank 0."""
    for index in range(PICTURES):
        path = folder / "train" / str(index // 150) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (16, 16), (index % 256, index // 256, 0, 9)).save(path)
    for path in sorted(folder.glob("train/*/*.png"))[-3:]:
        path.write_bytes(path.read_bytes()[:50])


def streamed(folder, corrupt):
    """What is told of a folder with corrupt pictures, or how it is refused."""
    image_set = load_image_set(f"folder:{folder}", image_size=16, stream=True, corrupt=corrupt)
    store = FeatureStore(None)
    try:
        labels = [
            store.get(fixtures.build_encoder(OFFSET), image_set, name)[1].tolist()
            for name in ("train", "val")
        ]
    except InputError as error:
        return type(error).__name__, str(error)
    return labels, image_set.skipped, image_set.remarks


def trained_on(world):
    """The trainings that so many ranks share: masks, which take long, are shared by two."""
    return [name for name in TRAINED if world < 4 or name != "small Mask R-CNN"]


def all_cases(folder, world):
    """Everything that must not depend on the number of ranks, and on two of them something that does."""
    encoder = fixtures.build_encoder(OFFSET)
    names = (*trained_on(world), "svm/voc07-v2")
    found = {name: evaluate(name, Watched(dtype=torch.float64)) for name in names}
    found["features"] = encoder.features(fixtures.coloured_images(FEATURES, OFFSET).images)
    found["streamed"] = {corrupt: streamed(folder / "pictures", corrupt) for corrupt in ("skip", "refuse")}
    if world == 2:
        semi_supervised.use_global_batches = lambda model: None
        found[CONTROL] = evaluate("published fine-tuning", Watched(dtype=torch.float64))
    return found


def run_rank(rank, world, folder):
    torch.set_num_threads(1)
    if world > 1:
        meeting = f"file://{folder}/rendezvous{world}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    torch.save(all_cases(folder, world), folder / f"result.{world}.{rank}")
    if world > 1:
        dist.destroy_process_group()


def be_killed(name, folder):
    """Evaluate with a checkpoint after every step, until the third of the last training is written."""
    torch.set_num_threads(1)
    checkpoints._SECONDS, checkpoints._SHARE = 0.0, float("inf")
    write = checkpoints.save_checkpoint

    def write_and_die(place, step, state):
        write(place, step, state)
        if step == 3 and place.name != "choice":
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.save_checkpoint = write_and_die
    evaluate(name, Watched(folder / "killed" / name, torch.float64))


def go_on(folder):
    """What the killed evaluations come to, and after which step they were gone on with."""
    torch.set_num_threads(1)
    results = {}
    for name in KILLED:
        kept = Watched(folder / "killed" / name, torch.float64)
        results[name] = evaluate(name, kept), kept.first
    torch.save(results, folder / "went on")


def main():
    shorten()
    folder = Path(sys.argv[1])
    corrupt_pictures(folder / "pictures")
    context = multiprocessing.get_context("fork")

    def run(target, *calls):
        processes = [context.Process(target=target, args=call) for call in calls]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        return [process.exitcode for process in processes]

    for world in WORLDS:
        assert not any(run(run_rank, *((rank, world, folder) for rank in range(world))))
    assert set(run(be_killed, *((name, folder) for name in KILLED))) == {-signal.SIGKILL}
    assert run(go_on, (folder,)) == [0]


if __name__ == "__main__":
    main()
