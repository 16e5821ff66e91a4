import multiprocessing
import os
import signal
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_codec
from torchvision.models.detection.image_list import ImageList

from twinbench.data.detection import RESTORE, DetectionSplit, PictureFiles
from twinbench.downstream.detection.coco_eval import average_precision
from twinbench.downstream.detection.draws import Draw, Draws
from twinbench.downstream.detection.fine_tuning import require_encoder_maps
from twinbench.downstream.detection.schedules import TINY
from twinbench.downstream.detection.torchvision_rcnn import (
    TorchvisionDetector,
    c4_detector,
    fpn_detector,
    prepare,
)
from twinbench.downstream.features import FeatureStore
from twinbench.downstream.protocol import EvaluationContext, protocol
from twinbench.downstream.randomness import seeded
from twinbench.encoders.backbones import build_backbone
from twinbench.encoders.deviations import Deviation, deviate
from twinbench.encoders.encoder import Encoder, EncoderInfo
from twinbench.foundation.errors import InputError, RunFailure

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SHORT = replace(
    TINY,
    images_per_batch=2,
    iterations=3,
    steps=(1, 2),
    warmup_iterations=1,
    train_sizes=(64,),
    test_size=64,
    precise_bn=1,
)


def deviating(deviation, architecture="resnet10"):
    stem = "small" if deviation == "stem_padding_2" else "imagenet"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = deviate(build_backbone(architecture, 8, stem), deviation)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    info = EncoderInfo(
        architecture, 8, stem, backbone.feature_dim, 32, mean, std, "random", "none", deviation=deviation
    )
    return Encoder(backbone, info, checksum="none")


def build(kind, encoder, schedule=SHORT, masks=False):
    model = c4_detector(encoder, 3, schedule) if kind == "c4" else fpn_detector(encoder, 3, masks, schedule)
    return TorchvisionDetector(model, schedule, CPU)


@pytest.mark.parametrize("kind", ["c4", "fpn"])
def test_a_detector_starts_from_its_encoder_and_no_other(kind, make_encoder, image_set):
    first, second = make_encoder(0), make_encoder(1)
    image = image_set.detection("train").images[0]
    detector = build(kind, first)
    require_encoder_maps(detector.feature_maps, first, image)
    with pytest.raises(RunFailure, match="does not start from the encoder"):
        require_encoder_maps(detector.feature_maps, second, image)
    body = detector.model.backbone.body if kind == "fpn" else detector.model.roi_heads.box_head
    with torch.no_grad():
        (body.layer4 if kind == "fpn" else body.res5)[0].bn2.running_mean += 0.1
    with pytest.raises(RunFailure, match="res5 differs"):
        require_encoder_maps(detector.feature_maps, first, image)
    detector = build(kind, first)
    detector.model.transform.image_mean = [0.5, 0.5, 0.4]
    with pytest.raises(RunFailure, match="res2 differs"):
        require_encoder_maps(detector.feature_maps, first, image)


@pytest.mark.parametrize("kind", ["c4", "fpn"])
@pytest.mark.parametrize("deviation", get_args(Deviation))
def test_a_detector_computes_with_the_encoders_deviation(kind, deviation, image_set):
    split, encoder = image_set.detection("train"), deviating(deviation)
    with seeded(0, CPU):
        detector = build(kind, encoder)
        require_encoder_maps(detector.feature_maps, encoder, split.images[0])
        assert list(detector.train(split, seed=0)) == [0, 1, 2]
        assert detector.detect(split.images[0]).boxes.shape[1] == 4


@pytest.mark.parametrize("kind", ["c4", "fpn"])
@pytest.mark.parametrize("deviation", get_args(Deviation))
def test_anchors_are_a_stride_apart_and_reach_over_the_picture(kind, deviation):
    detector = build(kind, deviating(deviation), TINY).model
    pictures = ImageList(torch.zeros(1, 3, 192, 192), [(192, 192)])
    maps = list(detector.backbone(pictures.tensors).values())
    (anchors,) = detector.rpn.anchor_generator(pictures, maps)
    per_place = detector.rpn.anchor_generator.num_anchors_per_location()
    finest = 1 if deviation == "stem_padding_2" else 4
    strides = [4 * finest] if kind == "c4" else [finest * 2**i for i in range(4)]
    levels = anchors.split([each * m.shape[2] * m.shape[3] for each, m in zip(per_place, maps, strict=True)])
    for level, count, stride in zip(levels, per_place, strides, strict=True):
        centres = ((level[:, 0] + level[:, 2]) / 2).unique().diff()
        assert set(centres.tolist()) == {stride}
        assert (level[::count, 2].max() + level[::count, 0].max()) / 2 >= 192 - stride


@pytest.mark.parametrize(("kind", "masks"), [("c4", False), ("fpn", False), ("fpn", True)])
def test_every_tensor_of_the_encoder_is_trained(kind, masks, encoder, image_set):
    with seeded(0, CPU):
        detector = build(kind, encoder, masks=masks)
        before = {name: tensor.clone() for name, tensor in detector.model.state_dict().items()}
        assert list(detector.train(image_set.detection("train"), seed=0)) == [0, 1, 2]
    after = detector.model.state_dict()
    kept = [name for name in before if torch.equal(before[name], after[name])]
    # A region of a scene this small comes from some levels of a pyramid only.
    assert [name for name in kept if not name.startswith("backbone.fpn")] == []
    assert {m.momentum for m in detector.model.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {0.1}


def test_training_repeats_itself(encoder, image_set):
    states = []
    for _ in range(2):
        with seeded(3, CPU):
            detector = build("c4", encoder)
            list(detector.train(image_set.detection("train"), seed=3))
        states.append(detector.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_learning_rate_follows_the_schedule(encoder, image_set, monkeypatch):
    rates = []
    step = torch.optim.SGD.step

    def recorded(self):
        rates.append([group["lr"] for group in self.param_groups])
        decays = {group["weight_decay"] for group in self.param_groups}
        assert decays == {SHORT.weight_decay, 0.0}
        return step(self)

    monkeypatch.setattr(torch.optim.SGD, "step", recorded)
    with seeded(0, CPU):
        list(build("c4", encoder).train(image_set.detection("train"), seed=0))
    assert rates == [2 * [SHORT.learning_rate(i)] for i in range(3)]


def test_statistics_of_batch_norm_are_those_of_the_final_weights_over_all_batches_together(
    encoder, image_set
):
    schedule = replace(SHORT, iterations=1, precise_bn=2)
    split = image_set.detection("train")
    with seeded(0, CPU):
        detector = build("c4", encoder, schedule)
        list(detector.train(split, seed=0))
    batches = list(detector._batches(split, seed=0))[1:3]
    stem, norm = detector.model.backbone.stem[:2]
    maps = []
    for images, _ in batches:
        prepared, _ = detector.model.transform(images)
        maps.append(stem(prepared.tensors).transpose(0, 1).flatten(1).double())
    everything = torch.cat(maps, dim=1)
    torch.testing.assert_close(norm.running_mean.double(), everything.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        norm.running_var.double(), everything.var(1, unbiased=False), rtol=1e-5, atol=1e-6
    )
    apart = torch.stack([each.var(1) for each in maps]).mean(0)
    assert ((norm.running_var - apart).abs() > 1e-4 * apart).any()  # version 1 had the mean of the variances


def test_a_flip_mirrors_picture_boxes_and_masks():
    masks = torch.zeros(1, 6, 10, dtype=torch.bool)
    masks[0, 1:4, 2:5] = True
    image = masks.to(torch.uint8).expand(3, -1, -1)
    draw = Draw(image, torch.tensor([[2.0, 1, 5, 4]]), torch.tensor([1]), masks, seed=0)
    kept, target = prepare(draw, flip=True)
    assert torch.equal(kept, image)
    assert target["labels"].tolist() == [2]
    flipped, target = prepare(replace(draw, seed=1), flip=True)
    assert target["boxes"].tolist() == [[5, 1, 8, 4]]
    assert torch.equal(flipped[0], target["masks"][0])
    assert flipped[0].nonzero().amin(0).tolist() == [1, 5]
    unflipped, _ = prepare(replace(draw, seed=1), flip=False)
    assert torch.equal(unflipped, image)


def with_crowds(split):
    crowd = [torch.zeros(len(labels), dtype=torch.bool) for labels in split.labels]
    crowd[0][:] = True
    crowd[1][0] = True
    return replace(split, crowd=crowd)


def test_crowds_are_not_drawn(image_set):
    split = with_crowds(image_set.detection("train"))
    draws = Draws(split, SHORT, seed=0, prepare=lambda draw: draw)
    assert 0 not in draws.order
    for position, i in enumerate(draws.order.tolist()):
        draw = draws[position]
        assert len(draw.boxes) == len(draw.labels) == len(draw.masks) == int((~split.crowd[i]).sum()) > 0
    assert len(draws) == 2 * (3 + 1 + 2)
    every = split.labels[1:]
    crowds = [torch.ones_like(labels, dtype=torch.bool) for labels in every]
    nothing = DetectionSplit(split.images[1:], split.boxes[1:], every, crowd=crowds)
    with pytest.raises(InputError, match="no training image"):
        Draws(nothing, SHORT, seed=0, prepare=lambda draw: draw)


@pytest.fixture
def on_disk(image_set, tmp_path):
    """The training scenes as JPEG files, which the GPU's loader decodes in worker processes."""
    split = image_set.detection("train")
    paths = [tmp_path / f"{i}.jpg" for i in range(len(split))]
    for path, image in zip(paths, split.images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return replace(split, images=PictureFiles(paths, [split.size(i) for i in range(len(split))]))


def test_workers_give_the_same_draws(on_disk):
    draws = Draws(on_disk, SHORT, seed=0, prepare=partial(prepare, flip=True))
    state = torch.get_rng_state()
    here, there = (draws.loader(device, range(len(draws))) for device in (CPU, GPU))
    for (image, target), (other, other_target) in zip(here, there, strict=True):
        assert multiprocessing.active_children()
        assert torch.equal(image, other)
        assert all(torch.equal(target[name], other_target[name]) for name in ("boxes", "labels", "masks"))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_a_truncated_picture_comes_out_of_a_worker_whole(device, on_disk):
    draws = Draws(on_disk, SHORT, seed=0, prepare=partial(prepare, flip=True))
    path = on_disk.images.paths[int(draws.order[4])]
    path.write_bytes(path.read_bytes()[:-200])
    loaded = draws.loader(device, range(len(draws)))
    assert len(list(islice(loaded, 4))) == 4
    with pytest.raises(InputError, match="truncated") as caught:
        next(loaded)
    assert caught.value.where == path
    assert caught.value.next_step == RESTORE


def killing_the_worker(draw):
    """What a draw is prepared with where memory ends."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_a_failure_of_the_run(on_disk):
    with pytest.raises(RunFailure, match="DataLoader worker"):
        next(Draws(on_disk, SHORT, seed=0, prepare=killing_the_worker).loader(GPU, range(9)))


def test_workers_leave_signals_to_the_training_process(on_disk):
    draws = Draws(on_disk, replace(SHORT, iterations=30), seed=0, prepare=partial(prepare, flip=True))
    loaded = draws.loader(GPU, range(len(draws)))
    assert len(list(islice(loaded, 8))) == 8  # one of each worker shows that all are ready
    workers = multiprocessing.active_children()
    assert workers
    for worker in workers:
        for number in (signal.SIGUSR1, signal.SIGTERM):
            os.kill(worker.pid, number)
    assert len(list(loaded)) == len(draws) - 8


def test_draws_are_epochs_and_their_seeds_differ(image_set):
    draws = Draws(image_set.detection("train"), SHORT, seed=0, prepare=lambda draw: draw.seed)
    assert sorted(draws.order.tolist()) == list(range(12))
    assert len({draws[i] for i in range(12)}) == 12
    again = Draws(image_set.detection("train"), SHORT, seed=0, prepare=lambda draw: draw.seed)
    assert torch.equal(draws.order, again.order)
    assert draws[5] == again[5]
    other = Draws(image_set.detection("train"), SHORT, seed=1, prepare=lambda draw: draw.seed)
    assert not torch.equal(draws.order, other.order)


@pytest.mark.numerics
@pytest.mark.parametrize(("kind", "rate", "steps"), [("c4", 0.05, (70, 100)), ("fpn", 0.01, (100, 110))])
def test_a_single_scene_is_overfitted(kind, rate, steps, encoder, scene, seed_offset, margin):
    schedule = replace(
        TINY, images_per_batch=1, base_lr=rate, iterations=120, steps=steps, warmup_iterations=10,
        train_sizes=(128,), test_size=128, regions=64, precise_bn=5,
    )  # fmt: skip
    with seeded(seed_offset, CPU):
        detector = build(kind, encoder, schedule, masks=kind == "fpn")
        before = average_precision(scene, [detector.detect(scene.images[0])], 3)
        list(detector.train(scene, seed=seed_offset))
    after = average_precision(scene, [detector.detect(scene.images[0])], 3)
    margin.at_most("AP50 untrained", before["box_ap50"], 10)
    # Wrong labels give AP50 0.
    margin.at_least("AP50", after["box_ap50"], 95, broken=0)
    # Anchors alone, with boxes that are not learned, have AP 30, though AP50 100.
    margin.at_least("AP", after["box_ap"], 60, broken=30)
    if kind == "fpn":
        margin.at_least("mask AP50", after["mask_ap50"], 95)


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("detection/c4-torchvision-v2", ["box_ap", "box_ap50", "box_ap75"]),
        ("detection/voc-c4-torchvision-v2", ["box_ap", "box_ap50", "box_ap75"]),
        (
            "detection/fpn-torchvision-v2",
            ["box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75"],
        ),
    ],
)
def test_a_protocol_repeats_itself_and_leaves_the_encoder_alone(name, metrics, encoder, image_set):
    chosen = replace(protocol(name), schedule=SHORT)
    before = {name: tensor.clone() for name, tensor in encoder.backbone.state_dict().items()}
    results = []
    for _ in range(2):
        state = torch.get_rng_state()
        fractions = []
        context = EvaluationContext(image_set, FeatureStore(None), seed=5, progress=fractions.append)
        results.append(chosen.evaluate(encoder, context))
        assert torch.equal(torch.get_rng_state(), state)
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0
        assert context.details["schedule"]["iterations"] == 3
    assert results[0] == results[1]
    assert [m.metric for m in results[0]] == metrics
    assert set(metrics) <= set(chosen.metrics)
    assert all(m.n == 6 and 0 <= m.value <= 100 for m in results[0])
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name


class NeverDecoded:
    """Masks of pictures whose decoding fails the test."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        pytest.fail("masks were decoded")


def test_masks_that_a_detector_does_not_use_are_not_decoded(encoder, image_set, monkeypatch):
    chosen = replace(protocol("detection/c4-torchvision-v2"), schedule=SHORT)
    monkeypatch.setitem(
        image_set.scenes, "train", replace(image_set.detection("train"), masks=NeverDecoded())
    )
    assert len(chosen.evaluate(encoder, EvaluationContext(image_set, FeatureStore(None)))) == 3
    with pytest.raises(pytest.fail.Exception, match="masks were decoded"):
        Draws(image_set.detection("train"), SHORT, seed=0, prepare=lambda draw: draw)[0]


@pytest.mark.parametrize(
    "name",
    ["c4-torchvision-v2", "voc-c4-torchvision-v2", "fpn-torchvision-v2", "small-mask-rcnn-torchvision-v2"],
)
@pytest.mark.parametrize("flag", ["crowd", "difficult"])
def test_a_test_split_without_an_object_that_counts_is_refused_before_any_work(
    name, flag, encoder, image_set, monkeypatch
):
    chosen = protocol(f"detection/{name}")
    chosen.check(image_set)
    test = image_set.detection("test")
    nothing = replace(test, **{flag: [torch.ones_like(each, dtype=torch.bool) for each in test.labels]})
    monkeypatch.setitem(image_set.scenes, "test", nothing)
    with pytest.raises(InputError, match="no objects that count"):
        chosen.check(image_set)
    fractions = []
    context = EvaluationContext(image_set, FeatureStore(None), progress=fractions.append)
    with pytest.raises(InputError, match="no objects that count"):
        chosen.evaluate(encoder, context)
    assert fractions == []


def test_masks_are_found_as_run_lengths_of_the_whole_picture(encoder, image_set):
    with seeded(0, CPU):
        detector = build("fpn", encoder, masks=True)
        list(detector.train(image_set.detection("train"), seed=0))
    image = image_set.detection("test").images[0][:, :48]
    found = detector.detect(image)
    (reference,) = detector.model([image / 255])
    assert len(found.masks) == len(found.boxes) > 0
    assert np.array_equal(
        mask_codec.decode(found.masks).transpose(2, 0, 1), (reference["masks"][:, 0] > 0.5).numpy()
    )


def test_a_loss_that_is_not_finite_is_a_failure(encoder, image_set):
    detector = build("c4", encoder)
    torch.nn.init.constant_(detector.model.roi_heads.box_predictor.cls_score.bias, float("nan"))
    with seeded(0, CPU), pytest.raises(RunFailure, match="iteration 0"):
        next(iter(detector.train(image_set.detection("train"), seed=0)))


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e38])
def test_a_last_step_that_diverges_is_a_failure(value, encoder, image_set):
    with seeded(0, CPU):
        detector = build("c4", encoder)
        training = detector.train(image_set.detection("train"), seed=0)
        assert list(islice(training, 3)) == [0, 1, 2]
        torch.nn.init.constant_(detector.model.backbone.stem[0].weight, value)
        with pytest.raises(RunFailure, match="not finite at iteration 2"):
            next(training)


def test_the_check_of_the_weights_computes_in_full_precision(encoder, image_set):
    """TF32, which convolutions on a GPU use by default, differs by more than the check tolerates."""
    seen = []

    class Recorded(TorchvisionDetector):
        def feature_maps(self, image):
            seen.append(torch.backends.cudnn.allow_tf32)
            return super().feature_maps(image)

    usual = torch.backends.cudnn.allow_tf32
    detector = Recorded(c4_detector(encoder, 3, SHORT), SHORT, CPU)
    require_encoder_maps(detector.feature_maps, encoder, image_set.detection("train").images[0])
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32 == usual


@pytest.mark.parametrize("kind", ["c4", "fpn"])
def test_one_class_empty_pictures_crowds_and_boxes_at_the_border(kind, encoder, image_set):
    """Pictures without objects, with a crowd only, and with an object as large as the picture."""
    scenes = image_set.detection("test")
    boxes = [torch.tensor([[0.0, 0, 64, 64]]), torch.zeros(0, 4), *scenes.boxes[2:]]
    masks = [
        torch.ones(1, 64, 64, dtype=torch.bool), torch.zeros(0, 64, 64, dtype=torch.bool), *scenes.masks[2:]
    ]  # fmt: skip
    labels = [torch.zeros(len(each), dtype=torch.int64) for each in boxes]
    crowd = [torch.zeros(len(each), dtype=torch.bool) for each in boxes]
    crowd[2][:] = True
    split = DetectionSplit(scenes.images, boxes, labels, masks, crowd=crowd)
    with seeded(0, CPU):
        model = c4_detector(encoder, 1, SHORT) if kind == "c4" else fpn_detector(encoder, 1, True, SHORT)
        detector = TorchvisionDetector(model, SHORT, CPU)
        assert len(list(detector.train(split, seed=0))) == 3
    found = [detector.detect(image) for image in split.images]
    assert all((each.labels == 0).all() for each in found)
    assert "box_ap" in average_precision(split, found, 1)


def test_the_small_mask_rcnn_refuses_sets_without_masks(encoder, image_set, monkeypatch):
    scenes = {name: replace(split, masks=None) for name, split in image_set.scenes.items()}
    monkeypatch.setattr(image_set, "scenes", scenes)
    context = EvaluationContext(image_set, FeatureStore(None))
    chosen = protocol("detection/small-mask-rcnn-torchvision-v2")
    with pytest.raises(InputError, match="with masks"):
        chosen.check(image_set)
    with pytest.raises(InputError, match="with masks"):
        chosen.evaluate(encoder, context)


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_small_mask_rcnn_refuses_pictures_of_different_sizes(split, on_disk, image_set, monkeypatch):
    monkeypatch.setitem(image_set.scenes, split, on_disk)
    with pytest.raises(InputError, match="one size"):
        protocol("detection/small-mask-rcnn-torchvision-v2").check(image_set)
