"""Small tasks on real digits that the tests of methods share."""

from collections.abc import Iterator, Mapping
from functools import cache

import torch
from torch import Tensor

from dmt_ds import sample_rng
from dmt_ds.config.methods import AugmentConfig, IbotConfig, MaeConfig, MocoV3Config, TinyMimConfig
from dmt_ds.config.schema import DataConfig, StudentConfig
from dmt_ds.config.section import IMAGENET_MEAN, IMAGENET_STD
from dmt_ds.data.augment import Augment
from dmt_ds.data.batch import Batch
from dmt_ds.data.digits import DigitsSource
from dmt_ds.engine.task import CroppingTask, Progress
from dmt_ds.methods.dmt import Teacher
from dmt_ds.methods.ibot import IbotTask
from dmt_ds.methods.mae import MaeTask
from dmt_ds.methods.moco_v3 import MocoV3Task
from dmt_ds.methods.tinymim import TinyMimTask, relations
from dmt_ds.models.encoders import EncoderRecord, FrozenEncoder
from dmt_ds.models.relations import RelationEncoder, RelationStudent
from dmt_ds.models.vit import build_vit, shape_of
from tests.crops import draw_crop

IMAGE_SIZE, PATCH_SIZE, NUM_PATCHES = 16, 4, 16
DATA = DataConfig(
    image_size=IMAGE_SIZE, crop_scale=(0.6, 1.0), horizontal_flip=0.0, rotation_degrees=10.0, interpolation="bilinear"
)
PLAIN = AugmentConfig(brightness=0.0, contrast=0.0, saturation=0.0)
JITTER = AugmentConfig(brightness=0.3, contrast=0.3, saturation=0.0)
STUDENT = StudentConfig(patch_size=PATCH_SIZE, embed_dim=48, depth=2, num_heads=3, drop_path=0.1)
MAE = MaeConfig(decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2)
MOCO = MocoV3Config(momentum=0.9, hidden_dim=64, output_dim=32, view_1=JITTER, view_2=JITTER)
TINYMIM = TinyMimConfig()
IBOT = IbotConfig(
    output_dim=64,
    hidden_dim=64,
    bottleneck_dim=32,
    head_batch_norm=True,
    teacher_temperature=0.02,
    teacher_temperature_final=0.02,
    teacher_patch_temperature=0.02,
    teacher_patch_temperature_final=0.02,
    momentum=0.98,
    freeze_last_layer=0.0,
    global_crop_scale=(0.5, 1.0),
    local_crops=2,
    local_crop_size=8,
    local_crop_scale=(0.3, 0.5),
    view_1=JITTER,
    view_2=JITTER,
    view_local=JITTER,
)
TEACHER = StudentConfig(patch_size=PATCH_SIZE, embed_dim=64, depth=2, num_heads=4, drop_path=0.0)
TEACHER_MAKERS = ("mae", "moco_v3", "ibot", "dino")
NAMES = (*TEACHER_MAKERS, "tinymim")


def task(name: str, seed: int = 0, student: StudentConfig = STUDENT) -> CroppingTask:
    if name == "tinymim":
        return tinymim({"red": relation_teacher(1), "blue": relation_teacher(2)}, seed=seed, student=student)
    torch.manual_seed(seed)
    if name == "mae":
        return MaeTask(student, MAE, IMAGE_SIZE, PLAIN)
    if name == "moco_v3":
        return MocoV3Task(student, MOCO, IMAGE_SIZE)
    section = IBOT if name == "ibot" else IBOT.model_copy(update={"patch_loss_weight": 0.0})
    return IbotTask(student, section, IMAGE_SIZE)


def relation_teacher(seed: int) -> RelationEncoder:
    """A random one whose attention is far from uniform."""
    torch.manual_seed(seed)
    vit = build_vit(TEACHER, IMAGE_SIZE)
    vit.blocks[-1].attn.qkv.weight.data.mul_(2)
    return RelationEncoder(
        FrozenEncoder(vit, EncoderRecord("random", "none", shape_of(vit), IMAGENET_MEAN, IMAGENET_STD))
    )


def tinymim(
    teachers: Mapping[str, Teacher],
    seed: int = 0,
    student: StudentConfig = STUDENT,
    section: TinyMimConfig = TINYMIM,
    augment: AugmentConfig = JITTER,
    **weights: float,
) -> TinyMimTask:
    """With the teachers' heads in its last block."""
    torch.manual_seed(seed)
    vit = build_vit(student.model_copy(update={"last_block_num_heads": TEACHER.num_heads}), IMAGE_SIZE)
    return TinyMimTask(RelationStudent(vit), relations(teachers), weights, section, Augment(augment))


def easy_self_distillation(name: str) -> IbotTask:
    """iBOT or DINO on two crops that are almost the same, so that it learns within seconds."""
    torch.manual_seed(0)
    weight = 1.0 if name == "ibot" else 0.0
    easy = {"local_crops": 0, "global_crop_scale": (0.9, 1.0), "view_1": PLAIN, "view_2": PLAIN}
    section = IBOT.model_copy(update={**easy, "patch_loss_weight": weight})
    return IbotTask(STUDENT.model_copy(update={"drop_path": 0.0}), section, IMAGE_SIZE)


@cache
def digits(split: str = "train") -> tuple[list[Tensor], Tensor]:
    """Images [3, 8, 8] uint8 and labels."""
    source = DigitsSource("train" if split == "train" else "val")
    return [source.read(i) for i in range(len(source))], torch.tensor([source.label(i) for i in range(len(source))])


def batch(of: CroppingTask, size: int = 8, epoch: int = 0, indices: Tensor | None = None) -> Batch:
    images, _ = digits()
    indices = torch.arange(size) if indices is None else indices
    seeds = sample_rng.image_seeds(0, torch.full_like(indices, epoch), indices)
    pairs = list(zip(indices.tolist(), seeds, strict=True))
    crops = tuple(
        torch.stack([draw_crop(images[index], spec, seed, view) for index, seed in pairs])
        for view, spec in enumerate(of.crops(DATA))
    )
    return Batch(crops, seeds, indices, torch.full_like(indices, -1))


def part(whole: Batch, rows: slice) -> Batch:
    return Batch(tuple(crop[rows] for crop in whole.crops), whole.seeds[rows], whole.indices[rows], whole.labels[rows])


def batches(of: CroppingTask, size: int, steps: int) -> Iterator[Batch]:
    order = torch.Generator().manual_seed(0)
    num_images = len(digits()[0])
    for step in range(steps):
        yield batch(of, epoch=step, indices=torch.randperm(num_images, generator=order)[:size])


def train(of: CroppingTask, steps: int, size: int = 32) -> list[dict[str, float]]:
    """Plain AdamW on the bare module; metrics of each step."""
    trained = [parameter for parameter in of.module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, 2e-3)
    history = []
    for step, data in enumerate(batches(of, size, steps)):
        optimizer.zero_grad()
        loss, metrics = of.losses(of.module, data, Progress(step, steps), diagnose=True)
        loss.backward()
        optimizer.step()
        of.after_step(Progress(step + 1, steps))
        history.append({"loss": loss.item(), **{name: value.item() for name, value in metrics.items()}})
    return history


def normalised(images: Tensor) -> Tensor:
    """[B, 3, H, W] uint8 -> float32, as every task's input is."""
    return Augment(PLAIN)(images, torch.zeros(len(images), dtype=torch.int64))
