"""Peer: a step as published distillation code of the field writes it (TinyMIM, MAE); what many people run today.

float32 weights under autocast for teachers and student, attention written out, two float32 views an image that come
from the host each step, the loss read and the device waited for in each step. Its loader is in bench_loader.py.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TinyMimStyle:
    """Holds the models; `step` is one update."""

    def __init__(
        self,
        teachers: Sequence[nn.Module],
        student: nn.Module,
        adapter: nn.Module,
        device: torch.device,
        *,
        bf16: bool,
        lr: float = 1.5e-4,
        weight_decay: float = 0.05,
    ) -> None:
        self.device, self.bf16 = device, bf16
        self.teachers = [teacher.eval().to(device) for teacher in teachers]
        self.model = nn.ModuleDict({"student": student, "adapter": adapter}).to(device).train()
        for module in (*self.teachers, self.model):
            for child in module.modules():
                if hasattr(child, "fused_attn"):
                    child.fused_attn = False
        matrices = [p for p in self.model.parameters() if p.requires_grad and p.ndim == 2]
        others = [p for p in self.model.parameters() if p.requires_grad and p.ndim != 2]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))

    def views(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What its loader gives: uint8 [B, 3, H, W] -> the teachers' and the student's view, float32, on the host."""
        pixels = (images.cpu().float() / 255 - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
        views = pixels, pixels.clone()
        return tuple(view.pin_memory() for view in views) if self.device.type == "cuda" else views

    def step(self, views: tuple[Tensor, Tensor]) -> float:
        """One update from two views on the host; gives the loss, for which it waits."""
        for_teachers, for_student = (view.to(self.device, non_blocking=True) for view in views)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            with torch.no_grad():
                target = sum(teacher.forward_features(for_teachers) for teacher in self.teachers)
            tokens = self.model["adapter"](self.model["student"].forward_features(for_student))
            log_p, log_q = F.log_softmax(tokens, dim=-1), F.log_softmax(target, dim=-1)
            loss = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
            log_p, log_q = F.log_softmax(tokens[:, 1:], dim=1), F.log_softmax(target[:, 1:], dim=1)
            loss = loss + (log_p.exp() * (log_p - log_q)).sum(1).mean()
        value = loss.item()
        if not math.isfinite(value):
            raise SystemExit(f"loss is {value}")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return value
