"""Settings of the methods and tasks, and of the pixels they see; `schema` puts them into a run."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmt_ds.config.section import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Count,
    Fraction,
    NonNegative,
    Positive,
    Section,
    Triple,
    check_range,
)
from dmt_ds.distill.choices import Direction, Divergence, FusionMode


class AugmentConfig(Section):
    """What is done to the student's pixels on the device after the shared crop; strengths as in torchvision."""

    mean: Triple = IMAGENET_MEAN
    """Normalisation of the student's input, per channel of pixels in 0..1."""
    std: tuple[Positive, Positive, Positive] = IMAGENET_STD
    """Normalisation of the student's input, per channel of pixels in 0..1."""
    brightness: NonNegative = 0.4
    """Factor drawn from [1 - b, 1 + b] for each image."""
    contrast: NonNegative = 0.4
    """Factor drawn from [1 - c, 1 + c] for each image."""
    saturation: NonNegative = 0.4
    """Factor drawn from [1 - s, 1 + s] for each image."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Shift of the hue, drawn from [-h, h] of a full circle."""
    jitter_probability: Fraction = 1.0
    """Share of images that are jittered at all."""
    grayscale_probability: Fraction = 0.0
    """Share of images made grey."""
    blur_probability: Fraction = 0.0
    """Share of images blurred (Gaussian, sigma 0.1 to 2 pixels)."""
    solarize_probability: Fraction = 0.0
    """Share of images whose bright half (>= 0.5) is inverted."""


# Two unlike views of an image, as BYOL has them.
_FIRST_VIEW = AugmentConfig(
    saturation=0.2, hue=0.1, jitter_probability=0.8, grayscale_probability=0.2, blur_probability=1.0
)
_SECOND_VIEW = _FIRST_VIEW.model_copy(update={"blur_probability": 0.1, "solarize_probability": 0.2})


class DistillConfig(Section):
    """The objective: equations 2, 3 and 4 of the paper, and variants of them."""

    divergence: Divergence = "kl"
    """`kl` of softmaxed tokens, or `mse` of the tokens themselves (Table 3)."""
    direction: Direction = "student_teacher"
    """KL(student || fused) as printed in the paper, or the usual KL(fused || student)."""
    tfd_weight: NonNegative = 1.0
    """Weight of token fusion distillation (softmax over channels); 0 leaves it out."""
    sfd_weight: NonNegative = 1.0
    """Weight of spatial fusion distillation (softmax over positions); 0 leaves it out."""
    fusion: FusionMode = "sum"
    """How the teachers become one target; `concat` keeps them apart, with an adapter and a pair of losses for each."""
    centring_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Momentum, per step, of the running channel means that `centred` subtracts."""
    kernel: Literal["auto", "eager", "chunked", "triton"] = "auto"
    """How both KL losses are computed: as written (`eager`), or together with a hand-derived gradient, image by image
    (`chunked`) or on CUDA (`triton`); the numbers are the same."""

    @model_validator(mode="after")
    def _one_loss_is_left(self) -> "DistillConfig":
        if self.tfd_weight == 0 and self.sfd_weight == 0:
            raise ValueError("tfd_weight and sfd_weight are both 0: there is nothing to learn; set one above 0")
        return self


class MaeConfig(Section):
    """Masked autoencoder (He et al., 2022)."""

    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """Share of the patches that the encoder does not see."""
    decoder_embed_dim: Count = 512
    """Width of the decoder."""
    decoder_depth: Count = 8
    """Blocks of the decoder."""
    decoder_num_heads: Count = 16
    """Heads of the decoder."""
    normalize_pixels: bool = True
    """Normalise each patch of the target by its own mean and standard deviation."""


class MocoV3Config(Section):
    """Momentum contrast for ViTs (Chen et al., 2021)."""

    temperature: Positive = 0.2
    """Temperature of the contrastive softmax."""
    momentum: Fraction = 0.99
    """Momentum of the key encoder at the start; rises to 1 along half a cosine."""
    hidden_dim: Count = 4096
    """Width of the MLP heads' hidden layers."""
    output_dim: Count = 256
    """Width of queries and keys."""
    freeze_patch_embed: bool = True
    """Random, fixed patch projection: the paper's remedy for instability."""
    view_1: AugmentConfig = _FIRST_VIEW
    """Augmentation of the first crop."""
    view_2: AugmentConfig = _SECOND_VIEW
    """Augmentation of the second crop."""


class IbotConfig(Section):
    """Image BERT with online tokenizer (Zhou et al., 2022); without masks it is `task: dino` (Caron et al., 2021)."""

    output_dim: Count = 8192
    """Number of prototypes of the head, which class and patch tokens share."""
    hidden_dim: Count = 2048
    """Width of the head's hidden layers."""
    bottleneck_dim: Count = 256
    """Width before the prototypes."""
    head_batch_norm: bool = False
    """Batch norm in the head: helps against collapse to uniform outputs on small data."""
    student_temperature: Positive = 0.1
    """Temperature of the student's softmax."""
    teacher_temperature: Positive = 0.04
    """Temperature of the momentum teacher's softmax for the class token, at the start of training."""
    teacher_temperature_final: Positive = 0.07
    """The temperature for the class token after its warm-up."""
    teacher_patch_temperature: Positive = 0.04
    """Temperature of the momentum teacher's softmax for patch tokens, at the start of training."""
    teacher_patch_temperature_final: Positive = 0.07
    """The temperature for patch tokens after its warm-up."""
    teacher_temperature_warmup: Fraction = 0.3
    """Share of the run over which both temperatures rise."""
    center_momentum: Fraction = 0.9
    """Momentum of the running mean that is subtracted from the momentum teacher's outputs."""
    momentum: Fraction = 0.996
    """Momentum of the momentum teacher at the start; rises to 1 along half a cosine."""
    patch_loss_weight: NonNegative = 1.0
    """Weight of the masked-patch loss; 0 is DINO."""
    mask_ratio: tuple[Fraction, Fraction] = (0.1, 0.5)
    """Range of the masked share of an image's patches."""
    mask_probability: Fraction = 0.5
    """Share of the images that are masked."""
    mask_shape: Literal["block", "random"] = "block"
    """Hide patches in rectangles (`block`) or one by one (`random`)."""
    freeze_last_layer: Fraction = 0.01
    """Share of the run during which the prototypes stay frozen; AdamW's moments still follow their gradient."""
    global_crop_scale: tuple[Fraction, Fraction] = (0.25, 1.0)
    """Range of the area of the two large crops, as a share of the image's."""
    local_crops: Annotated[int, Field(ge=0)] = 10
    """Number of small crops per image, which only the student sees."""
    local_crop_size: Count = 96
    """Side of the small crops, in pixels; a multiple of the patch size."""
    local_crop_scale: tuple[Fraction, Fraction] = (0.05, 0.25)
    """Range of the area of the small crops, as a share of the image's."""
    view_1: AugmentConfig = _FIRST_VIEW
    """Augmentation of the first large crop."""
    view_2: AugmentConfig = _SECOND_VIEW
    """Augmentation of the second large crop."""
    view_local: AugmentConfig = AugmentConfig(
        saturation=0.2, hue=0.1, jitter_probability=0.8, grayscale_probability=0.2, blur_probability=0.5
    )
    """Augmentation of the small crops."""

    @model_validator(mode="after")
    def _ranges_are_in_order(self) -> "IbotConfig":
        for name in ("mask_ratio", "global_crop_scale", "local_crop_scale"):
            check_range(name, getattr(self, name))
        return self


class TinyMimConfig(Section):
    """TinyMIM (Ren et al., 2023): relations in the last block's attention; with several teachers it is m-TinyMIM."""

    qk_weight: NonNegative = 1.0
    """Weight of the loss on softmax(Q K^T / sqrt(d)); 0 leaves it out."""
    vv_weight: NonNegative = 1.0
    """Weight of the loss on softmax(V V^T / sqrt(d)); 0 leaves it out."""

    @model_validator(mode="after")
    def _one_relation_is_left(self) -> "TinyMimConfig":
        if self.qk_weight == 0 and self.vv_weight == 0:
            raise ValueError("qk_weight and vv_weight are both 0: there is nothing to learn; set one above 0")
        return self


class ClassifyConfig(Section):
    """Training with labels: from scratch (DeiT's recipe; Touvron et al., 2021), or from `student.init_from`."""

    pooling: Literal["class", "patch_mean"] = "class"
    """What the head sees: the class token after the ViT's final LayerNorm, or the mean of the patch tokens before it,
    which that LayerNorm then normalises (MAE's and timm's `fc_norm`)."""
    frozen: bool = False
    """Train only the head, with batch norm before it (MAE's linear probe); the encoder stays as it is."""
    head_std: Positive | None = None
    """Standard deviation of the head's initial weights; null takes 2e-5 on pretrained weights, so that first updates
    don't damage them (MAE's and TinyMIM's), 0.02 on random ones (DeiT's) and 0.01 on frozen ones (MAE's probe)."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum, per step, of a running mean of the weights, which is evaluated too, as `eval/ema_top1`, and published
    instead of them; 0 keeps none."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the target that is spread over all classes."""
    mixup: NonNegative = 0.8
    """Alpha of the beta distribution that mixes an image with its neighbour in the batch; 0 does not mix."""
    cutmix: NonNegative = 1.0
    """Alpha of the beta distribution of the area that the neighbour's rectangle takes; 0 pastes none."""
    mix_probability: Fraction = 1.0
    """Share of the images that are mixed or pasted into."""
    cutmix_share: Fraction = 0.5
    """Share of these that get a rectangle (cutmix) when mixup is on too."""
    rand_augment_magnitude: Annotated[float, Field(ge=0, le=10)] = 9.0
    """Magnitude of RandAugment: two operations per image, each applied with probability 1/2 (timm's
    rand-m9-mstd0.5-inc1); 0 leaves it out. Costs the loader 1 to 2 ms of CPU per image of 224 pixels."""
    rand_augment_std: NonNegative = 0.5
    """Standard deviation of that magnitude."""
    erasing: Fraction = 0.25
    """Share of the images in which a rectangle (2 to 33 % of the area) is replaced by noise."""

    @model_validator(mode="after")
    def _a_head_alone_has_no_average(self) -> "ClassifyConfig":
        if self.frozen and self.ema_decay:
            raise ValueError("ema_decay is for weights that are fine-tuned; with frozen=true set it to 0")
        return self

    def first_head_std(self, on_given_weights: bool) -> float:
        """`head_std`, or what null takes."""
        if self.head_std is not None:
            return self.head_std
        if self.frozen:
            return 0.01
        return 2e-5 if on_given_weights else 0.02

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, two by two: then a micro-batch has an even number of them."""
        return self.mix_probability > 0 and (self.mixup > 0 or self.cutmix > 0)
