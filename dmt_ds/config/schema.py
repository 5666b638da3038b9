"""Every setting of a run, with its type, bound, unit and meaning; imports no torch, so a recipe is checked at once.

A section is frozen and refuses unknown keys. Constructors elsewhere take their own section, never all of `RunConfig`.
"""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from dmt_ds.config.detection import DetectConfig
from dmt_ds.config.evaluation import KnnConfig, LinearConfig
from dmt_ds.config.family import check_family, members_by_name, whole_members
from dmt_ds.config.methods import (
    AugmentConfig,
    ClassifyConfig,
    DistillConfig,
    IbotConfig,
    MaeConfig,
    MocoV3Config,
    TinyMimConfig,
)
from dmt_ds.config.optim import OptimConfig
from dmt_ds.config.section import (
    Count,
    Fraction,
    Positive,
    Section,
    Workers,
    check_range,
    is_to_be_trained,
    multiples_near,
)
from dmt_ds.config.segmentation import SegmentConfig
from dmt_ds.config.teachers import TeachersConfig
from dmt_ds.config.tracking import TrackingConfig
from dmt_ds.config.train import TrainConfig

Interpolation = Literal["bicubic", "bilinear"]
BadImages = Literal["stop", "skip"]
TaskName = Literal["dmt", "tinymim", "mae", "moco_v3", "ibot", "dino", "classify", "segment", "detect"]
TEACHER_TASKS: tuple[TaskName, ...] = ("dmt", "tinymim")
"""The tasks that learn from teachers."""
ANNOTATED_TASKS: tuple[TaskName, ...] = ("classify", "segment", "detect")
"""The tasks that learn what people say of images; what each does: `dmt_ds.commands.annotations.annotated_tasks`."""
TASKS_OF_SECTION: dict[str, tuple[TaskName, ...]] = {
    "distill": TEACHER_TASKS,
    "tinymim": ("tinymim",),
    "mae": ("mae",),
    "moco_v3": ("moco_v3",),
    "ibot": ("ibot", "dino"),
    "classify": ("classify",),
    "segment": ("segment",),
    "detect": ("detect",),
}
"""Sections that only these tasks look at."""


class DataConfig(Section):
    """Where the images are, and how one crop of each is drawn (shared by teachers and student)."""

    source: Literal["folder", "parquet", "webdataset", "hub", "digits"] = "digits"
    """`folder`: train/CLASS/*.jpg and val/CLASS/*.jpg; `parquet`, `webdataset`, `hub`: through `datasets`; `digits`:
    scikit-learn's, offline."""
    path: str | None = None
    """Folder, glob pattern of files, or hub id; not used by `digits`."""
    train_split: str = "train"
    """Name of the training split (of the folder, for `folder`)."""
    val_split: str = "validation"
    """Name of the validation split; `folder` also accepts `val` for `validation`."""
    image_column: str = "image"
    """Column with the images; webdataset: the file ending, such as `jpg`."""
    label_column: str | None = "label"
    """Column with class numbers; null if there is none."""
    image_size: Annotated[int, Field(ge=8)] = 224
    """Side of the crop, in pixels; teachers and student must fit it."""
    crop_scale: tuple[Fraction, Fraction] = (0.2, 1.0)
    """Range of the crop's area, as a share of the image's."""
    crop_ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Range of the crop's aspect ratio, width / height."""
    interpolation: Interpolation = "bicubic"
    """Resampling, always with antialiasing."""
    horizontal_flip: Fraction = 0.5
    """Probability of mirroring the crop; set 0 where left and right matter (digits)."""
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Crops are rotated by up to this angle in either direction."""
    num_workers: Workers = "auto"
    """Loader processes per rank, at most its CPU cores; `auto`: one per core minus one for training, at most 16; 0
    decodes in the training process."""
    bad_images: BadImages = "stop"
    """What happens to an unreadable image: `stop` ends the run, `skip` logs it and uses another in its place. A failing
    disk ends the run either way."""
    max_train_images: Count | None = None
    """Use at most this many training images, evenly spaced over the split (the first ones of COCO): for a trial run."""

    @model_validator(mode="after")
    def _path_is_there_when_needed(self) -> "DataConfig":
        if self.source != "digits" and not self.path:
            raise ValueError(f"path is needed for source '{self.source}': data.path=/where/the/images/are")
        for name in ("crop_scale", "crop_ratio"):
            check_range(name, getattr(self, name))
        return self


class StudentConfig(Section):
    """The ViT that is trained; also the encoder of the methods that make teachers."""

    arch: str = "vit_tiny"
    """`vit_tiny`, `vit_small`, `vit_base`, or any plain ViT of timm."""
    patch_size: Count = 16
    """Side of a patch, in pixels."""
    embed_dim: Count | None = None
    """Width; null takes the architecture's."""
    depth: Count | None = None
    """Blocks; null takes the architecture's."""
    num_heads: Count | None = None
    """Heads; null takes the architecture's."""
    last_block_num_heads: Count | None = None
    """Heads of the last block; null: as many as in the other blocks, or, for tinymim, as the teachers have."""
    positions: Literal["sincos", "learned"] = "sincos"
    """Fixed sine-cosine positions, or learned ones."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Probability that a residual branch is dropped for an image; `drop_path_rule` spreads it over the blocks."""
    drop_path_rule: Literal["constant", "linear"] = "constant"
    """`constant`: the same in all blocks but the last, which has 0, as TinyMIM distils; `linear`: rises from 0 in the
    first block to `drop_path` in the last, as in other methods."""
    adapter: Literal["auto", "linear", "ln_linear", "mlp", "identity"] = "auto"
    """Maps student tokens to the teacher's width; `auto` is `linear`, or `identity` if the widths are equal."""
    init_from: str | None = None
    """Weights to start from, in the form of a teacher's `source`; null starts from random weights."""


class FamilyMember(Section):
    """One student of a family; what it leaves out is taken from the run's own `student`, `optim`, `train.deepspeed`."""

    student: StudentConfig = StudentConfig()
    optim: OptimConfig = OptimConfig()
    deepspeed: str | None = None
    """DeepSpeed JSON of this student; null takes `train.deepspeed`."""


class RunConfig(Section):
    """A whole run: what a recipe and its overrides resolve to."""

    task: TaskName = "dmt"
    """`dmt` and `tinymim` distil; `mae`, `moco_v3`, `ibot` and `dino` make teachers; `classify`, `segment` and
    `detect` train with labels of images, of pixels, of objects."""
    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run: letters, digits, `.`, `_`, `-`."""
    output_dir: str = "runs/{name}"
    """Folder of the run; `{name}` and `{seed}` are filled in."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed for initial weights, image order, crops and masks."""
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    teachers: TeachersConfig = TeachersConfig()
    student: StudentConfig = StudentConfig()
    family: dict[str, FamilyMember] = Field(default={})
    """Name -> student, all trained on one pass of the teachers; or a list of architectures: `[vit_tiny, vit_small]`."""
    distill: DistillConfig = DistillConfig()
    tinymim: TinyMimConfig = TinyMimConfig()
    mae: MaeConfig = MaeConfig()
    moco_v3: MocoV3Config = MocoV3Config()
    ibot: IbotConfig = IbotConfig()
    classify: ClassifyConfig = ClassifyConfig()
    segment: SegmentConfig = SegmentConfig()
    detect: DetectConfig = DetectConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    tracking: TrackingConfig = TrackingConfig()
    knn: KnnConfig = KnnConfig()
    linear: LinearConfig = LinearConfig()

    @field_validator("family", mode="before")
    @classmethod
    def _a_list_names_members(cls, family: object) -> object:
        return members_by_name(family)

    @model_validator(mode="after")
    def _members_are_whole(self) -> "RunConfig":
        check_family(list(self.family), self.task in TEACHER_TASKS, self.task)
        own = FamilyMember(student=self.student, optim=self.optim, deepspeed=self.train.deepspeed)
        # What is saved and read again must be the same run, so that members are completed here, and not where used.
        object.__setattr__(self, "family", whole_members(self.family, own))
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> "RunConfig":
        sections = {f"family.{name}.student": member.student for name, member in self.family.items()}
        for where, student in (sections or {"student": self.student}).items():
            size, patch = self.data.image_size, student.patch_size
            if size % patch:
                near = multiples_near(size, patch)
                raise ValueError(f"data.image_size {size} is not a multiple of {where}.patch_size {patch}: take {near}")
        if self.task in TEACHER_TASKS and not self.teachers.used():
            raise ValueError(
                f"task {self.task} needs a teacher: -c RECIPE, or teachers.models.NAME.source=FILE (`teachers list`)"
            )
        return self

    @field_validator("output_dir")
    @classmethod
    def _folder_is_named(cls, output_dir: str, info: ValidationInfo) -> str:
        if not output_dir.strip() and is_to_be_trained(info):
            raise ValueError("is empty: name the folder of the run; is a shell variable not set?")
        return output_dir

    @model_validator(mode="after")
    def _rate_falls(self, info: ValidationInfo) -> "RunConfig":
        size = self.train.global_batch_size
        sections = {f"family.{name}.optim": member.optim for name, member in self.family.items()}
        for where, optim in (sections or {"optim": self.optim}).items():
            if optim.min_lr > optim.peak_lr(size) and is_to_be_trained(info):
                raise ValueError(
                    f"{where}.min_lr {optim.min_lr:g} is above the peak {optim.peak_lr(size):g}, which is base_lr * "
                    f"{size} images / 256: the rate would rise to it; lower it, or raise base_lr"
                )
        return self

    @model_validator(mode="after")
    def _layer_decay_is_of_tasks_with_annotations(self) -> "RunConfig":
        rate, tasks = self.optim.layer_decay, ", ".join(ANNOTATED_TASKS)
        if self.task not in ANNOTATED_TASKS and rate != 1:
            raise ValueError(f"optim.layer_decay {rate} is for the tasks {tasks}, not for {self.task}: set it to 1")
        return self

    @model_validator(mode="after")
    def _images_mix_in_pairs(self) -> "RunConfig":
        if self.task == "classify" and self.classify.mixes and self.train.micro_batch_size % 2:
            raise ValueError(
                f"train.micro_batch_size {self.train.micro_batch_size} is odd, but task classify mixes images two by "
                "two: take an even one, or classify.mix_probability=0"
            )
        return self

    @model_validator(mode="after")
    def _teachers_have_weight(self) -> "RunConfig":
        weights = {name: teacher.weight for name, teacher in self.teachers.used().items()}
        idle = [name for name, weight in weights.items() if weight == 0]
        kept_apart = self.task == "dmt" and self.distill.fusion == "concat"
        if self.task in TEACHER_TASKS and (len(idle) == len(weights) or (idle and kept_apart)):
            raise ValueError(
                f"teachers {idle} have weight 0: raise teachers.models.NAME.weight, or leave them out by teachers.use"
            )
        return self

    def students(self) -> dict[str, "RunConfig"]:
        """Name -> whole run of each member of a family, in the recipe's order; a run that is none has itself, as "".

        A member's folder lies in the family's, its name is its own, and its MLflow run stands under the family's.
        """
        if not self.family:
            return {"": self}
        tracking = self.tracking.model_copy(
            update={"parent": self.tracking.parent or self.tracking.run_name or self.name, "run_name": None}
        )
        return {
            name: self.model_copy(
                update={
                    "name": name,
                    "output_dir": f"{self.output_dir}/{name}",
                    "family": {},
                    "student": member.student,
                    "optim": member.optim,
                    "train": self.train.model_copy(update={"deepspeed": member.deepspeed}),
                    "tracking": tracking,
                }
            )
            for name, member in self.family.items()
        }
