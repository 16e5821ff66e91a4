"""Our use of Detectron2 against Detectron2 itself."""

import copy
import warnings
from dataclasses import replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from twinbench.data.detection import DetectionSplit
from twinbench.downstream.detection.coco_eval import average_precision
from twinbench.downstream.detection.fine_tuning import DETECTIONS, POSITIVE_SHARE, require_encoder_maps
from twinbench.downstream.detection.schedules import COCO_1X, TINY, VOC_24K, VOC_24K_BT
from twinbench.downstream.features import FeatureStore
from twinbench.downstream.protocol import EvaluationContext, protocol
from twinbench.downstream.randomness import seeded
from twinbench.encoders.backbones import build_backbone
from twinbench.encoders.deviations import Deviation, deviate
from twinbench.encoders.encoder import Encoder, EncoderInfo
from twinbench.encoders.foreign.detectron2_names import from_detectron2, to_detectron2
from twinbench.foundation.errors import RunFailure

detectron2 = pytest.importorskip("detectron2", reason="Detectron2 is not installed")
# The marks below hold for tests, not for the imports of this file.
warnings.filterwarnings("ignore", "`torch.jit.script`", FutureWarning)
pytestmark = [
    pytest.mark.detectron2,
    # Of Detectron2 itself, with the torch of today.
    pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:torch.meshgrid"),
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning"),
]

from detectron2.config import get_cfg  # noqa: E402
from detectron2.data import DatasetMapper, build_detection_train_loader  # noqa: E402
from detectron2.engine import SimpleTrainer  # noqa: E402
from detectron2.layers import ShapeSpec, get_norm  # noqa: E402
from detectron2.modeling import ROI_HEADS_REGISTRY, build_model  # noqa: E402
from detectron2.modeling import build_backbone as build_detectron2_backbone  # noqa: E402
from detectron2.modeling.roi_heads import Res5ROIHeads  # noqa: E402
from detectron2.solver import build_lr_scheduler, build_optimizer  # noqa: E402
from detectron2.structures import BoxMode  # noqa: E402
from fvcore.nn.precise_bn import update_bn_stats  # noqa: E402
from pycocotools import mask as run_length  # noqa: E402

from twinbench.downstream.detection.d2 import detector as ours  # noqa: E402
from twinbench.downstream.detection.d2.config import detectron2_config  # noqa: E402
from twinbench.downstream.detection.d2.detector import Detectron2Detector  # noqa: E402

CPU = torch.device("cpu")
CONFIGS = Path(detectron2.__file__).parent / "model_zoo" / "configs"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHORT = replace(
    TINY,
    images_per_batch=2,
    iterations=3,
    steps=(1, 2),
    warmup_iterations=2,
    train_sizes=(96,),
    test_size=96,
    precise_bn=1,
)


def make(architecture, width, stem, deviation="none"):
    """An encoder with weights, running statistics and a normalisation that differ in every channel."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build_backbone(architecture, width, stem)
        for name, tensor in backbone.state_dict().items():
            if "running" in name or ("bn" in name and tensor.ndim == 1):
                tensor.copy_(0.5 + torch.rand_like(tensor))
    info = EncoderInfo(
        architecture, width, stem, backbone.feature_dim, 32, MEAN, STD, "random", "none", deviation=deviation
    )
    return Encoder(deviate(backbone, deviation), info, checksum="none")


def pixels(seed=0, side=64):
    return torch.randint(0, 256, (3, side, side), generator=torch.Generator().manual_seed(seed)).to(
        torch.uint8
    )


SMALL = [
    ("resnet10", 8, "stride2"),
    ("resnet18", 8, "small"),
    ("resnet34", 8, "imagenet"),
    ("resnet50", 8, "stride2"),
]
STOCK = [("resnet18", 64), ("resnet34", 64), ("resnet50", 8), ("resnet101", 8), ("resnet152", 8)]


@torch.no_grad()
def stock_maps(encoder, image):
    """Maps res2 to res5 of Detectron2's own backbone with converted weights, fed as its models feed it."""
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = int(encoder.info.architecture[6:])
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.WIDTH_PER_GROUP = encoder.info.width
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = encoder.feature_dim // 8
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    backbone = build_detectron2_backbone(cfg, ShapeSpec(channels=3))
    backbone.load_state_dict(to_detectron2(encoder.backbone.state_dict()))
    mean, std = (255 * torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return backbone.eval()(((image - mean) / std)[None])


@pytest.mark.parametrize(("architecture", "width"), STOCK)
def test_the_converted_weights_give_the_same_maps_in_detectron2s_backbone(architecture, width):
    encoder, image = make(architecture, width, "imagenet"), pixels()
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    with torch.no_grad():
        expected = encoder.backbone.feature_maps(((image / 255 - mean) / std)[None])
    found = stock_maps(encoder, image)
    assert list(found) == ["res2", "res3", "res4", "res5"]
    for name, maps in found.items():
        torch.testing.assert_close(
            maps, expected[name], rtol=1e-4, atol=1e-4 * float(expected[name].abs().max())
        )
    turned = stock_maps(encoder, image.flip(0))["res2"]
    assert (turned - expected["res2"]).abs().max() > 0.01 * expected["res2"].abs().max(), "BGR is noticed"


@pytest.mark.parametrize("shape", [*SMALL, *((name, width, "imagenet") for name, width in STOCK)])
def test_the_detector_starts_from_the_encoder_at_every_depth(shape):
    encoder = make(*shape)
    detector = Detectron2Detector(encoder, SHORT, 3, False, CPU)
    require_encoder_maps(detector.feature_maps, encoder, pixels())
    back = from_detectron2(detector.model.state_dict())
    state = encoder.backbone.state_dict()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_the_limits_that_are_told_are_detectron2s():
    cfg = detectron2_config(make("resnet10", 8, "stride2"), TINY, 3, False, CPU)
    assert cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION == POSITIVE_SHARE
    assert cfg.TEST.DETECTIONS_PER_IMAGE == DETECTIONS


@pytest.mark.parametrize("change", ["order", "mean", "res5"])
def test_another_order_normalisation_or_head_is_noticed(change):
    encoder = make("resnet18", 8, "stride2")
    detector = Detectron2Detector(encoder, SHORT, 3, False, CPU)
    if change == "order":
        kernel = detector.model.backbone.stem.conv1.weight
        kernel.data = kernel.flip(1)
    elif change == "mean":
        detector.model.pixel_mean += 5
    else:
        detector.model.roi_heads.res5[1].conv2.norm.bias.data += 0.1
    with pytest.raises(RunFailure, match="res5 differs" if change == "res5" else "res2 differs"):
        require_encoder_maps(detector.feature_maps, encoder, pixels())


DEVIATIONS = [
    ("same_padding", "resnet10", "imagenet"),
    ("same_padding", "resnet50", "small"),
    ("same_padding", "resnet50", "imagenet"),
    ("same_max_pool", "resnet10", "imagenet"),
    ("stem_padding_2", "resnet10", "small"),
    ("no_stem_relu", "resnet10", "imagenet"),
]


def test_every_deviation_is_tested():
    assert {"none", *(deviation for deviation, *_ in DEVIATIONS)} == set(get_args(Deviation))


@pytest.mark.parametrize(("deviation", "architecture", "stem"), DEVIATIONS)
def test_the_detector_computes_with_the_encoders_deviation(deviation, architecture, stem):
    encoder = make(architecture, 8, stem, deviation)
    detector = Detectron2Detector(encoder, SHORT, 3, False, CPU)
    plain = Detectron2Detector(make(architecture, 8, stem), SHORT, 3, False, CPU)
    # SAME pads even and odd sides in different ways.
    for height, width in ((64, 64), (61, 75)):
        image = pixels(side=75)[:, :height, :width]
        require_encoder_maps(detector.feature_maps, encoder, image)
        with pytest.raises(RunFailure, match="does not start from the encoder"):
            require_encoder_maps(plain.feature_maps, encoder, image)
    training = torch.randn(2, 3, 61, 75, generator=torch.Generator().manual_seed(0))
    expected = encoder.fresh_backbone().feature_maps(training)
    maps = detector.model.backbone.train()(training)["res4"]
    torch.testing.assert_close(maps, expected["res4"], rtol=1e-4, atol=1e-4)
    for block in detector.model.roi_heads.res5.train()[:-1]:
        maps = block(maps)
    torch.testing.assert_close(maps, expected["res5"], rtol=1e-4, atol=1e-4)


def flat(cfg, prefix=""):
    for key, value in cfg.items():
        if hasattr(value, "items"):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# moco detection/configs/Base-RCNN-C4-BN.yaml and what follows from an encoder instead of a weight file.
MOCO = {
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.BACKBONE.NAME": "build_encoder_backbone",
    "MODEL.DEVICE": "cpu",
    "MODEL.META_ARCHITECTURE": "SharedRCNN",
    "MODEL.PROPOSAL_GENERATOR.NAME": "SharedRPN",
    "MODEL.PIXEL_MEAN": pytest.approx([123.675, 116.280, 103.530]),
    "MODEL.PIXEL_STD": pytest.approx([58.395, 57.120, 57.375]),
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.STEM": "imagenet",
    "MODEL.RESNETS.DEVIATION": "none",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm",
    "MODEL.WEIGHTS": "",
    "INPUT.FORMAT": "RGB",
    "INPUT.MASK_FORMAT": "bitmask",
    "TEST.PRECISE_BN.ENABLED": True,
}
# Data sets are ours; the version is of the file format.
IGNORED = {"DATASETS.TRAIN", "DATASETS.TEST"}


@pytest.mark.parametrize(
    ("schedule", "classes", "masks", "file", "changes"),
    [
        (
            VOC_24K, 20, False, "PascalVOC-Detection/faster_rcnn_R_50_C4.yaml",
            {"SOLVER.STEPS": (18_000, 22_000), "SOLVER.MAX_ITER": 24_000},
        ),
        (
            VOC_24K_BT, 20, False, "PascalVOC-Detection/faster_rcnn_R_50_C4.yaml",
            {
                "SOLVER.STEPS": (18_000, 22_000), "SOLVER.MAX_ITER": 24_000, "SOLVER.BASE_LR": 0.1,
                "SOLVER.WARMUP_ITERS": 1000, "SOLVER.WARMUP_FACTOR": 0.333,
            },
        ),
        (
            COCO_1X, 80, True, "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
            {"SOLVER.BASE_LR": 0.03},
        ),
    ],
)  # fmt: skip
def test_the_configuration_differs_from_detectron2s_in_what_the_papers_changed(
    schedule, classes, masks, file, changes
):
    encoder = Encoder(
        build_backbone("resnet50"),
        EncoderInfo("resnet50", 64, "imagenet", 2048, 224, MEAN, STD, "m", "r"),
        "",
    )
    theirs = get_cfg()
    theirs.merge_from_file(str(CONFIGS / file))
    expected = dict(flat(theirs))
    mine = dict(flat(detectron2_config(encoder, schedule, classes, masks, CPU)))
    different = {
        key: value for key, value in mine.items() if key not in IGNORED and expected.get(key) != value
    }
    wanted = {**MOCO, **changes}
    assert {key: wanted[key] for key in different} == different
    assert all(mine[key] == value for key, value in wanted.items())
    assert (
        detectron2_config(encoder, schedule, 20, False, torch.device("cuda")).MODEL.RESNETS.NORM == "SyncBN"
    )


@ROI_HEADS_REGISTRY.register()
class MocoHeads(Res5ROIHeads):
    """The extra norm on top of Detectron2's own res5."""

    @classmethod
    def _build_res5_block(cls, cfg):
        res5, channels = super()._build_res5_block(cfg)
        res5.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
        return res5, channels


class SubsetInOrder(torch.utils.data.Sampler):
    def __init__(self, order):
        self.order = order

    def __iter__(self):
        return iter(self.order)


def dataset_dicts(split, folder):
    """The split as Detectron2's loaders take it, with the pictures in files."""
    dicts = []
    for i, image in enumerate(split.images):
        path = folder / f"{i}.png"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
        annotations = [
            {
                "bbox": box,
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": label,
                "segmentation": run_length.encode(mask.numpy().astype("uint8", order="F")),
                "iscrowd": 0,
            }
            for box, label, mask in zip(
                split.boxes[i].tolist(), split.labels[i].tolist(), split.masks[i], strict=True
            )
        ]
        height, width = image.shape[1:]
        dicts.append(
            {
                "file_name": str(path),
                "image_id": i,
                "height": height,
                "width": width,
                "annotations": annotations,
            }
        )
    return dicts


# A learning rate so large that one step moves the weights by more than the tolerance of the comparison.
FIRST = replace(SHORT, base_lr=2.0, warmup_factor=0.5)


def reference_config(masks):
    """Detectron2's own file of the protocol, with MoCo's changes, for `FIRST` and a ResNet-50 of width 8."""
    cfg = get_cfg()
    folder = "COCO-InstanceSegmentation/mask_rcnn" if masks else "PascalVOC-Detection/faster_rcnn"
    cfg.merge_from_file(str(CONFIGS / f"{folder}_R_50_C4{'_1x' if masks else ''}.yaml"))
    values = {
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": "",
        "MODEL.PIXEL_MEAN": [123.675, 116.280, 103.530],
        "MODEL.PIXEL_STD": [58.395, 57.120, 57.375],
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.NORM": "BN",
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[3.84, 7.68, 15.36, 30.72, 61.44]],
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 1200,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 200,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 32,
        "MODEL.ROI_HEADS.NAME": "MocoHeads",
        "MODEL.ROI_HEADS.NUM_CLASSES": 3,
        "INPUT.FORMAT": "RGB",
        "INPUT.MASK_FORMAT": "bitmask",
        "INPUT.MIN_SIZE_TRAIN": (96,),
        "INPUT.MAX_SIZE_TRAIN": 320,
        "INPUT.RANDOM_FLIP": "none",
        "SOLVER.BASE_LR": 2.0,
        "SOLVER.WARMUP_FACTOR": 0.5,
        "SOLVER.WARMUP_ITERS": 2,
        "SOLVER.STEPS": (1, 2),
        "SOLVER.MAX_ITER": 3,
    }
    cfg.merge_from_list([item for pair in values.items() for item in pair])
    return cfg


@pytest.mark.parametrize("masks", [False, True])
def test_the_first_step_is_that_of_detectron2s_own_trainer(masks, image_set, tmp_path, monkeypatch):
    split, encoder = image_set.detection("train"), make("resnet50", 8, "imagenet")
    with seeded(0, CPU):
        mine = Detectron2Detector(encoder, FIRST, 3, masks, CPU)
    initial = {name: tensor.clone() for name, tensor in mine.model.state_dict().items()}
    losses = {}
    total = ours.finite_total
    monkeypatch.setattr(ours, "finite_total", lambda parts, i: losses.update(parts) or total(parts, i))
    with seeded(7, CPU):
        next(mine.train(split, seed=0))

    cfg = reference_config(masks)
    model = build_model(cfg)
    model.load_state_dict(initial)
    loader = build_detection_train_loader(
        dataset_dicts(split, tmp_path),
        mapper=DatasetMapper(cfg, is_train=True),
        sampler=SubsetInOrder(ours.Draws(split, FIRST, 0, ours.DrawMapper(mine.cfg)).order.tolist()),
        total_batch_size=FIRST.images_per_batch,
    )
    batch = next(iter(loader))
    optimizer = build_optimizer(cfg, model)
    build_lr_scheduler(cfg, optimizer)
    trainer = SimpleTrainer(model, [batch], optimizer)
    with seeded(7, CPU):
        trainer.train(0, 1)
    logged = {name: value for name, (value, _) in trainer.storage.latest().items() if name in losses}
    parts = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"} | ({"loss_mask"} if masks else set())
    assert logged.keys() == losses.keys() == parts
    for name, value in logged.items():
        assert losses[name].item() == pytest.approx(value, abs=1e-6), name
        assert value > 0, name
    after = mine.model.state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-6, atol=1e-6)
    moved = [name for name, _ in model.named_parameters() if (after[name] - initial[name]).abs().max() > 1e-4]
    assert len(moved) > 0.9 * len(list(model.parameters())), "the step is larger than the tolerance"


def test_the_final_statistics_of_batch_norm_are_those_of_fvcore(encoder, image_set, monkeypatch):
    compared, estimate = [], ours.estimate_statistics

    def by_both(model, batches, forward):
        theirs, batches, state = copy.deepcopy(model), list(batches), torch.get_rng_state()
        estimate(model, batches, forward)
        torch.set_rng_state(state)  # regions are drawn
        update_bn_stats(theirs.train(), batches, len(batches))
        expected = theirs.state_dict()
        for name, tensor in model.state_dict().items():
            if "running" in name:
                torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
                compared.append(name)

    monkeypatch.setattr(ours, "estimate_statistics", by_both)
    with seeded(0, CPU):
        detector = Detectron2Detector(encoder, replace(SHORT, precise_bn=2), 3, False, CPU)
        list(detector.train(image_set.detection("train"), seed=0))
    assert len(compared) > 20


@pytest.mark.parametrize("masks", [False, True])
def test_augmented_draws_are_those_of_detectron2s_own_mapper(masks, encoder, image_set, tmp_path):
    schedule = replace(SHORT, horizontal_flip=True, train_sizes=(64, 80, 96))
    split = image_set.detection("train")
    cfg = detectron2_config(encoder, schedule, 3, masks, CPU)
    draws = ours.Draws(split, schedule, 0, lambda draw: (draw.seed, ours.DrawMapper(cfg)(draw)))
    files, theirs, flipped = dataset_dicts(split, tmp_path), DatasetMapper(cfg, is_train=True), 0
    for position, i in enumerate(draws.order.tolist()):
        seed, mine = draws[position]
        np.random.seed(seed)
        expected = theirs(files[i])
        assert torch.equal(mine["image"], expected["image"])
        found, wanted = mine["instances"], expected["instances"]
        assert torch.equal(found.gt_boxes.tensor, wanted.gt_boxes.tensor)
        assert torch.equal(found.gt_classes, wanted.gt_classes)
        assert found.has("gt_masks") == wanted.has("gt_masks") == masks
        assert not masks or torch.equal(found.gt_masks.tensor, wanted.gt_masks.tensor)
        np.random.seed(seed)
        upright = DatasetMapper(
            detectron2_config(encoder, replace(schedule, horizontal_flip=False), 3, False, CPU)
        )
        flipped += not torch.equal(upright(files[i])["image"], mine["image"])
    assert 0 < flipped < len(draws)


def test_syncbn_on_one_device_is_batch_norm(encoder, image_set):
    """As on one GPU without a process group, where Detectron2's SyncBN is torch's."""
    losses = []
    for norm in ("BN", "SyncBN"):
        with seeded(0, CPU):
            detector = Detectron2Detector(encoder, SHORT, 3, False, CPU)
            cfg = detector.cfg.clone()
            cfg.MODEL.RESNETS.NORM = norm
            model = build_model(cfg)
            model.load_state_dict(detector.model.state_dict())
        kinds = {type(module) for module in model.modules() if isinstance(module, torch.nn.SyncBatchNorm)}
        assert kinds == ({torch.nn.SyncBatchNorm} if norm == "SyncBN" else set())
        detector.model = model
        with seeded(1, CPU):
            list(detector.train(image_set.detection("train"), seed=0))
        losses.append(model.state_dict())
    for name, tensor in losses[0].items():
        assert torch.equal(losses[1][name], tensor), name


def test_two_trainings_at_a_time_are_those_of_one(encoder, image_set):
    """Detectron2 keeps what its models log in a global stack, which a training must not leave open between steps."""

    def trained(together):
        with seeded(0, CPU):
            pair = [Detectron2Detector(encoder, SHORT, 3, False, CPU) for _ in range(2)]
            runs = [detector.train(image_set.detection("train"), seed=0) for detector in pair]
            if together:
                assert len(list(zip_longest(*runs))) == 3
                return
            assert [len(list(run)) for run in runs] == [3, 3]

    trained(together=True)
    abandoned = Detectron2Detector(encoder, SHORT, 3, False, CPU).train(image_set.detection("train"), seed=0)
    next(abandoned)
    trained(together=False)
    abandoned.close()


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e38])
def test_a_last_step_that_diverges_is_a_failure(value, encoder, image_set):
    with seeded(0, CPU):
        detector = Detectron2Detector(encoder, SHORT, 3, False, CPU)
        training = detector.train(image_set.detection("train"), seed=0)
        assert list(islice(training, 3)) == [0, 1, 2]
        torch.nn.init.constant_(detector.model.backbone.stem.conv1.weight, value)
        with pytest.raises(RunFailure, match="iteration 2"):
            next(training)


def test_every_tensor_is_trained_and_training_repeats_itself(encoder, image_set):
    states = []
    for _ in range(2):
        with seeded(3, CPU):
            detector = Detectron2Detector(encoder, replace(SHORT, horizontal_flip=True), 3, True, CPU)
            before = {name: tensor.clone() for name, tensor in detector.model.state_dict().items()}
            assert list(detector.train(image_set.detection("train"), seed=3)) == [0, 1, 2]
        states.append(detector.model.state_dict())
    same = [n for n in before if torch.equal(before[n], states[0][n]) and "num_batches" not in n]
    assert all("anchor_generator" in name for name in same)
    assert all(torch.equal(states[0][name], states[1][name]) for name in before)


def test_features_that_are_not_finite_are_a_failure(encoder, image_set):
    detector = Detectron2Detector(encoder, SHORT, 3, False, CPU)
    torch.nn.init.constant_(detector.model.proposal_generator.rpn_head.objectness_logits.bias, float("nan"))
    with seeded(0, CPU), pytest.raises(RunFailure, match="iteration 0"):
        next(detector.train(image_set.detection("train"), seed=0))


def test_augmentation_depends_on_the_draw_alone_and_leaves_numpys_generator(encoder, image_set):
    schedule = replace(SHORT, horizontal_flip=True, train_sizes=(64, 80, 96))
    mapper = ours.DrawMapper(detectron2_config(encoder, schedule, 3, True, CPU))
    draws = ours.Draws(image_set.detection("train"), schedule, 0, mapper)
    state = np.random.get_state()[1].copy()
    first = [draws[i] for i in range(12)]
    assert np.array_equal(np.random.get_state()[1], state)
    for item, again in zip(first, [draws[i] for i in reversed(range(12))][::-1], strict=True):
        assert torch.equal(item["image"], again["image"])
        assert torch.equal(item["instances"].gt_boxes.tensor, again["instances"].gt_boxes.tensor)
    assert {item["image"].shape[1] for item in first} == {64, 80, 96}


@pytest.mark.numerics
def test_a_single_scene_is_overfitted(encoder, scene, seed_offset, margin):
    schedule = replace(
        TINY, images_per_batch=2, iterations=200, steps=(160, 180), warmup_iterations=10, train_sizes=(128,),
        test_size=128, regions=64, precise_bn=5,
    )  # fmt: skip
    with seeded(seed_offset, CPU):
        detector = Detectron2Detector(encoder, schedule, 3, True, CPU)
        before = average_precision(scene, [detector.detect(scene.images[0])], 3)
        list(detector.train(scene, seed=seed_offset))
    after = average_precision(scene, [detector.detect(scene.images[0])], 3)
    margin.at_most("AP50 untrained", before["box_ap50"], 10)
    margin.at_least("AP50", after["box_ap50"], 95)


def test_one_class_empty_pictures_crowds_and_boxes_at_the_border(encoder, image_set):
    """Pictures of several sizes, without objects, with a crowd only, and with an object as large as the picture."""
    scenes = image_set.detection("test")
    boxes = [torch.tensor([[0.0, 0, 64, 64]]), torch.zeros(0, 4), *scenes.boxes[2:]]
    masks = [
        torch.ones(1, 64, 64, dtype=torch.bool),
        torch.zeros(0, 64, 64, dtype=torch.bool),
        *scenes.masks[2:],
    ]
    labels = [torch.zeros(len(each), dtype=torch.int64) for each in boxes]
    crowd = [torch.zeros(len(each), dtype=torch.bool) for each in boxes]
    crowd[2][:] = True
    split = DetectionSplit(scenes.images, boxes, labels, masks, crowd=crowd)
    with seeded(0, CPU):
        detector = Detectron2Detector(encoder, SHORT, 1, True, CPU)
        assert len(list(detector.train(split, seed=0))) == 3
    found = [detector.detect(image) for image in split.images]
    assert all((each.labels == 0).all() for each in found)
    assert all(len(each.masks) == len(each.boxes) for each in found)
    assert {tuple(mask["size"]) for each in found for mask in each.masks} == {(64, 64)}
    assert set(average_precision(split, found, 1)) >= {"box_ap", "mask_ap"}


@pytest.mark.parametrize("name", ["c4", "voc-c4", "voc-c4-bt", "coco-c4"])
def test_a_protocol_repeats_itself_and_leaves_the_encoder_alone(name, encoder, image_set):
    chosen = replace(protocol(f"detection/{name}-detectron2-v1"), schedule=SHORT)
    before = {name: tensor.clone() for name, tensor in encoder.backbone.state_dict().items()}
    results = []
    for _ in range(2):
        state = torch.get_rng_state()
        context = EvaluationContext(image_set, FeatureStore(None), seed=5)
        results.append(chosen.evaluate(encoder, context))
        assert torch.equal(torch.get_rng_state(), state)
    assert results[0] == results[1]
    assert tuple(m.metric for m in results[0]) == chosen.metrics
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name
