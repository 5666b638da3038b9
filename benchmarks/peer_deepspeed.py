"""Peer: the loop of a DeepSpeed user without this project: an engine around the student, bf16 teachers beside it.

ZeRO-2, DeepSpeed's own optimizer by its JSON, the losses as the paper writes them, one scalar read in each step.
"""

from collections.abc import Sequence

import deepspeed
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Model(nn.Module):
    """Student and adapter in one forward, as an engine wants it."""

    def __init__(self, student: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.student, self.adapter = student, adapter

    def forward(self, pixels: Tensor) -> Tensor:
        return self.adapter(self.student.forward_features(pixels))


class DeepSpeedUser:
    """Holds the models; `step` is one update."""

    def __init__(
        self,
        teachers: Sequence[nn.Module],
        student: nn.Module,
        adapter: nn.Module,
        device: torch.device,
        *,
        bf16: bool,
        batch: int,
        lr: float = 1.5e-4,
        weight_decay: float = 0.05,
    ) -> None:
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        self.teachers = [teacher.eval().to(device, self.dtype) for teacher in teachers]
        self.mean = torch.tensor(MEAN, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(STD, device=device).view(1, 3, 1, 1)
        model = Model(student, adapter)
        adamw = {"lr": lr, "betas": [0.9, 0.95], "weight_decay": weight_decay, "torch_adam": True}
        config = {
            "train_micro_batch_size_per_gpu": batch,
            "optimizer": {"type": "AdamW", "params": adamw},
            "bf16": {"enabled": bf16},
            "zero_optimization": {"stage": 2},
            "steps_per_print": 10**9,
        }
        trained = [p for p in model.parameters() if p.requires_grad]
        self.engine, *_ = deepspeed.initialize(model=model, model_parameters=trained, config=config)

    def step(self, images: Tensor) -> float:
        """One update from uint8 images [B, 3, H, W] on the device; gives the loss, for which it waits."""
        pixels = ((images.float() / 255 - self.mean) / self.std).to(self.dtype)
        with torch.no_grad():
            target = sum(teacher.forward_features(pixels).float() for teacher in self.teachers)
        tokens = self.engine(pixels).float()
        log_p, log_q = F.log_softmax(tokens, dim=-1), F.log_softmax(target, dim=-1)
        loss = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        log_p, log_q = F.log_softmax(tokens[:, 1:], dim=1), F.log_softmax(target[:, 1:], dim=1)
        loss = loss + (log_p.exp() * (log_p - log_q)).sum(1).mean()
        self.engine.backward(loss)
        self.engine.step()
        return loss.item()
