"""Settings of the optimizer and of what changes over the steps."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmt_ds.config.section import Fraction, NonNegative, Positive, Section


class OptimConfig(Section):
    """The optimizer, with a linear warm-up and a decay to `min_lr`, both per step."""

    base_lr: Positive = 1.5e-4
    """Learning rate for 256 images; the peak is base_lr * global_batch_size / 256."""
    min_lr: NonNegative = 0.0
    """Final learning rate; `cosine` and `linear` would reach it one step after the last."""
    schedule: Literal["cosine", "linear", "steps"] = "cosine"
    """After the warm-up: `cosine`, half a cosine; `linear`, a straight line (`poly` of power 1), as segmentation uses;
    `steps`, divided by ten at each of `decay_at`, as detection uses."""
    decay_at: tuple[Fraction, ...] = (8 / 12, 11 / 12)
    """For `schedule: steps`, in shares of the run; the default is after epochs 8 and 11 of 12 (COCO's 1x)."""
    warmup_epochs: NonNegative = 15.0
    """Length of the warm-up, in passes over the data; ignored when `warmup_steps` is set."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Length of the warm-up, in steps."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """AdamW's two decay rates."""
    eps: Positive = 1e-8
    """AdamW's epsilon."""
    weight_decay: NonNegative = 0.05
    """Weight decay of matrices; biases, norms, tokens and positions have none."""
    weight_decay_end: NonNegative | None = None
    """Final weight decay, which half a cosine would reach one step after the last; null keeps it constant."""
    name: Literal["adamw", "sgd"] = "adamw"
    """`sgd` is for linear probes. MAE's LARS would need the norm of each whole weight, which ZeRO splits."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each layer's learning rate is this factor times that of the layer above: head 1, last block `layer_decay`, ...,
    embedding `layer_decay` ** (depth + 1). For fine-tuning."""
    clip_grad_norm: NonNegative = 0.0
    """Largest norm of the gradient; 0 does not clip."""

    @model_validator(mode="after")
    def _decay_has_a_start(self) -> "OptimConfig":
        if self.weight_decay_end is not None and self.weight_decay == 0:
            raise ValueError(
                "weight_decay_end: starts from weight_decay, which is 0: raise weight_decay, or set this to null"
            )
        return self

    def peak_lr(self, global_batch_size: int) -> float:
        """Learning rate at the end of the warm-up, by the linear scaling rule: `base_lr` is for 256 images."""
        return self.base_lr * global_batch_size / 256
