"""Our use of Detectron2 against Detectron2 itself."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.detection import DetectionSplit
from data.errors import RunFailure
from downstream.detection.coco_eval import average_precision
from downstream.detection.detectron2_weights import from_detectron2, to_detectron2
from downstream.detection.fine_tuning import require_encoder_maps
from downstream.detection.schedules import COCO_1X, TINY, VOC_24K
from downstream.features import FeatureStore
from downstream.protocol import EvaluationContext, protocol
from downstream.randomness import seeded
from pretraining.backbones import build_backbone
from pretraining.encoder import Encoder, EncoderInfo

detectron2 = pytest.importorskip("detectron2", reason="Detectron2 is not installed")
pytestmark = [
    pytest.mark.detectron2,
    # Of Detectron2 itself, with the torch of today.
    pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:torch.meshgrid"),
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
from pycocotools import mask as run_length  # noqa: E402

from downstream.detection.d2 import detector as ours  # noqa: E402
from downstream.detection.d2.config import detectron2_config  # noqa: E402
from downstream.detection.d2.detector import Detectron2Detector  # noqa: E402

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


def make(architecture, width, stem):
    """An encoder with weights, running statistics and a normalisation that differ in every channel."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build_backbone(architecture, width, stem)
        for name, tensor in backbone.state_dict().items():
            if "running" in name or ("bn" in name and tensor.ndim == 1):
                tensor.copy_(0.5 + torch.rand_like(tensor))
    info = EncoderInfo(architecture, width, stem, backbone.feature_dim, 32, MEAN, STD, "random", "none")
    return Encoder(backbone, info, checksum="none")


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
    require_encoder_maps(detector, encoder, pixels())
    back = from_detectron2(detector.model.state_dict())
    state = encoder.backbone.state_dict()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


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
        require_encoder_maps(detector, encoder, pixels())


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
    "MODEL.PIXEL_MEAN": pytest.approx([123.675, 116.280, 103.530]),
    "MODEL.PIXEL_STD": pytest.approx([58.395, 57.120, 57.375]),
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.STEM": "imagenet",
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


@pytest.mark.parametrize("masks", [False, True])
def test_the_first_step_is_that_of_detectron2s_own_trainer(masks, image_set, tmp_path, monkeypatch):
    split, encoder = image_set.detection("train"), make("resnet50", 8, "imagenet")
    with seeded(0, CPU):
        mine = Detectron2Detector(encoder, SHORT, 3, masks, CPU)
    initial = {name: tensor.clone() for name, tensor in mine.model.state_dict().items()}
    losses = {}
    total = ours.finite_total
    monkeypatch.setattr(ours, "finite_total", lambda parts, i: losses.update(parts) or total(parts, i))
    with seeded(7, CPU):
        next(mine.train(split, seed=0))

    cfg = mine.cfg.clone()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.ROI_HEADS.NAME = "build_resnet_backbone", "MocoHeads"
    model = build_model(cfg)
    model.load_state_dict(initial)
    loader = build_detection_train_loader(
        dataset_dicts(split, tmp_path),
        mapper=DatasetMapper(cfg, is_train=True),
        sampler=SubsetInOrder(ours.Draws(split, SHORT, 0, ours.DrawMapper(mine.cfg)).order.tolist()),
        total_batch_size=SHORT.images_per_batch,
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
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(mine.model.state_dict()[name], tensor, rtol=1e-6, atol=1e-6)


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


def test_a_single_scene_is_overfitted(encoder, image_set):
    scenes = image_set.detection("test")
    one = DetectionSplit(scenes.images[:1], scenes.boxes[:1], scenes.labels[:1], scenes.masks[:1])
    schedule = replace(
        TINY, images_per_batch=2, iterations=130, steps=(105, 120), warmup_iterations=10, train_sizes=(128,),
        test_size=128, precise_bn=5,
    )  # fmt: skip
    with seeded(0, CPU):
        detector = Detectron2Detector(encoder, schedule, 3, True, CPU)
        before = average_precision(one, [detector.detect(one.images[0])], 3)
        list(detector.train(one, seed=0))
    after = average_precision(one, [detector.detect(one.images[0])], 3)
    assert before["box_ap50"] < 10
    assert after["box_ap50"] > 95


@pytest.mark.parametrize("name", ["c4", "voc-c4", "coco-c4"])
def test_a_protocol_repeats_itself_and_leaves_the_encoder_alone(name, encoder, image_set, monkeypatch):
    chosen = protocol(f"detection/{name}-detectron2-v1")
    monkeypatch.setattr(type(chosen), "schedule", SHORT)
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
