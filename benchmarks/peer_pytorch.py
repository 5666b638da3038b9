"""Peer P1: multi-teacher distillation as a careful PyTorch user writes it, without this project; P2 is it compiled.

bf16 teachers without gradient, SDPA attention, one uint8 batch for teachers and student, fused AdamW over float32
weights, bf16 autocast for the student, losses by `F.kl_div`, and nothing that makes the host wait.

    python benchmarks/peer_pytorch.py        # a few steps with random weights and images; bench_step.py measures it
"""

import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def dual_loss(student: Tensor, target: Tensor) -> Tensor:
    """KL(student || target) over channels for each token, plus over patches for each channel; [B, 1+N, D]."""
    student, target = student.float(), target.float()
    batch, tokens, channels = student.shape
    total = torch.zeros((), device=student.device)
    for s, t, dim, rows in ((student, target, -1, tokens), (student[:, 1:], target[:, 1:], 1, channels)):
        log_p, log_q = F.log_softmax(s, dim), F.log_softmax(t, dim)
        total = total + F.kl_div(log_q, log_p, reduction="sum", log_target=True) / (batch * rows)
    return total


class PlainPyTorch:
    """Holds the models; `step` is one update."""

    def __init__(
        self,
        teachers: Sequence[nn.Module],
        student: nn.Module,
        adapter: nn.Module,
        device: torch.device,
        *,
        bf16: bool,
        compiled: bool = False,
        lr: float = 1.5e-4,
        weight_decay: float = 0.05,
    ) -> None:
        self.device, self.bf16 = device, bf16
        dtype = torch.bfloat16 if bf16 else torch.float32
        self.teachers = [teacher.eval().requires_grad_(False).to(device, dtype) for teacher in teachers]
        self.model = nn.ModuleDict({"student": student, "adapter": adapter}).to(device, torch.float32).train()
        self.mean = torch.tensor(MEAN, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(STD, device=device).view(1, 3, 1, 1)
        matrices = [p for p in self.model.parameters() if p.requires_grad and p.ndim == 2]
        others = [p for p in self.model.parameters() if p.requires_grad and p.ndim != 2]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)
        self.teach, self.learn, self.loss = self._teach, self._learn, dual_loss
        if compiled:
            self.teach, self.learn, self.loss = (torch.compile(f) for f in (self._teach, self._learn, dual_loss))

    def _teach(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(next(self.teachers[0].parameters()).dtype)
        target = self.teachers[0].forward_features(pixels).float()
        for teacher in self.teachers[1:]:
            target += teacher.forward_features(pixels)
        return target

    def _learn(self, pixels: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.model["adapter"](self.model["student"].forward_features(pixels))

    def step(self, images: Tensor) -> Tensor:
        """One update from uint8 images [B, 3, H, W] on the device; gives the loss, without waiting for it."""
        pixels = (images.float() / 255 - self.mean) / self.std
        with torch.no_grad():
            target = self.teach(pixels)
        loss = self.loss(self.learn(pixels), target)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def main() -> None:
    import timm

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = 256 if device.type == "cuda" else 4
    teachers = [timm.create_model("vit_base_patch16_224", num_classes=0) for _ in range(3)]
    student = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    peer = PlainPyTorch(teachers, student, nn.Linear(192, 768), device, bf16=device.type == "cuda")
    images = torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8, device=device)
    for step in range(4):
        start = time.perf_counter()
        loss = peer.step(images).item()
        print(f"step {step}: loss {loss:.4f}, {batch / (time.perf_counter() - start):.1f} images/s")


if __name__ == "__main__":
    main()
