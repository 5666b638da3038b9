"""Run by test_bucket_reduction: masters after updates as DeepSpeed makes them, and as this project does."""

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dmt_ds.config.batch import plan_batch
from dmt_ds.config.deepspeed import find_ds_config, resolve_student
from dmt_ds.downstream.shared_batch_norm import SharedBatchNorm2d
from dmt_ds.engine import dist
from dmt_ds.engine.deepspeed import bucket_reduction, ds_engine, lone_gradients

MICRO_BATCH, ACCUMULATION = 4, 2
ALL_OF_MATRICES = 12 * 64 + 64 * 5
ALL_NUMBERS = ALL_OF_MATRICES + 64 + 2 * 64 + 5
"""Of the plain model."""
sent: list[int] = []
"""How many buckets were on their way when one more was."""
laid_out: list[int] = []
"""Of how many gradients the buckets were whose layout was worked out."""
held: list[int] = []
"""How many gradients of a bucket that was sent were kept beside it."""
hooks: list[int] = []
"""How many hooks of gradients each engine's optimizer knows."""
in_one: list[int] = []
"""How many gradients of a single rank were added in one piece."""


class Normed(nn.Module):
    """Batch norm over all ranks between two linear maps: its backward pass is a collective too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(12, 64), SharedBatchNorm2d(64), nn.Linear(64, 5)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(numbers)[:, :, None, None])[:, :, 0, 0])


class Branching(nn.Module):
    """Two of three passes leave a layer out, so that a bucket holds other gradients than the last time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rare, self.last = nn.Linear(12, 64), nn.Linear(64, 64), nn.Linear(64, 5)
        self.passes = 0

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        tokens = self.first(numbers)
        return self.last(self.rare(tokens) if self.passes % 3 == 0 else tokens)


class Large(nn.Module):
    """The first gradient that comes is larger than a bucket."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(12), nn.Linear(12, 100, bias=False)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(numbers))


class Seldom(nn.Module):
    """Every other pass leaves a whole group out: the vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(12), nn.Linear(12, 5, bias=False)
        self.passes = 0

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return self.last(self.norm(numbers) if self.passes % 2 == 0 else numbers)


class Repeating(nn.Module):
    """A layer that is used twice, each time with a backward pass of its own inside the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(12, 64), nn.Linear(64, 64), nn.Linear(64, 5)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        tokens = self.first(numbers)
        for _ in range(2):
            tokens = checkpoint(self.again, tokens, use_reentrant=True)
        return self.last(tokens)


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 64), nn.LayerNorm(64), nn.Linear(64, 5))


def masters(make: Callable[[], nn.Module] = plain, bucket_size: int = 900) -> list[dict[str, list[float]]]:
    """After each of three updates: all parameters, in two groups that no bucket holds together."""
    torch.manual_seed(0)
    module = make()
    plan = plan_batch(MICRO_BATCH * ACCUMULATION * dist.world_size(), MICRO_BATCH, dist.world_size())
    config = resolve_student(find_ds_config("student_zero2_bf16"), plan, 0.0)
    config["zero_optimization"]["reduce_bucket_size"] = bucket_size
    groups = [{"params": [p for p in module.parameters() if (p.ndim == 2) == matrices]} for matrices in (True, False)]
    engine = ds_engine.build_student(module, torch.optim.AdamW(groups, lr=1e-2), lambda step: 1.0, config)
    hooks.append(len(engine._engine.optimizer._grad_acc_hooks))
    generator = torch.Generator().manual_seed(dist.rank())
    found = []
    for _ in range(3):
        for _ in range(ACCUMULATION):
            numbers = torch.randn(MICRO_BATCH, 12, generator=generator).bfloat16()
            engine.backward(engine(numbers).float().square().mean())
            engine.step()
        found.append({name: master.flatten().tolist() for name, master in engine.trained_state().items()})
    return found


def kept_by_deepspeed(**zero: bool) -> bool:
    """Whether DeepSpeed reduces by itself, with hooks of its own, where the JSON says this of ZeRO."""
    module = plain()
    num_parameters = len(list(module.parameters()))
    config = resolve_student(
        find_ds_config("student_zero2_bf16"), plan_batch(dist.world_size(), 1, dist.world_size()), clip_grad_norm=0.0
    )
    config = {**config, "zero_optimization": {**config["zero_optimization"], **zero}}
    engine = ds_engine.build_student(module, torch.optim.AdamW(module.parameters()), lambda step: 1.0, config)
    optimizer = engine._engine.optimizer
    return "reduce_ipg_grads" not in vars(optimizer) and len(optimizer._grad_acc_hooks) == num_parameters


def error_of(make: Callable[[], nn.Module]) -> str | None:
    try:
        masters(make)
    except AssertionError as error:
        return str(error)
    return None


def main() -> None:
    ds_engine.start(60)
    send, lay_out = bucket_reduction.BucketReduction._send, bucket_reduction.BucketReduction._lay_out

    def noted(reduction: bucket_reduction.BucketReduction) -> None:
        parameters = list(reduction._ready)
        send(reduction)
        sent.append(len(reduction._sent))
        held.append(sum(parameter.grad is not None for parameter in parameters))

    def noted_layout(reduction: bucket_reduction.BucketReduction, places: Any) -> Any:
        laid_out.append(len(places))
        return lay_out(reduction, places)

    runs = lone_gradients.LoneGradients._runs

    def noted_runs(gradients: lone_gradients.LoneGradients, group: int) -> Any:
        for begin, run in runs(gradients, group):
            in_one.append(len(run))
            yield begin, run
        held.append(sum(weight.grad is not None for weight, *_ in gradients._weights[group]))

    bucket_reduction.BucketReduction._send = noted
    lone_gradients.LoneGradients._runs = noted_runs
    bucket_reduction.BucketReduction._lay_out = noted_layout
    facts = {"overlapping": masters(), "on their way": list(sent), "laid out": list(laid_out), "in one": list(in_one)}
    for noted_so_far in (sent, laid_out, in_one):
        noted_so_far.clear()
    facts |= {"held": sum(held), "hooks": list(hooks)}
    facts |= {"branching": masters(Branching), "laid out of branches": list(laid_out), "branches in one": list(in_one)}
    sent.clear()
    facts |= {"waiting": masters(Normed), "on their way beside batch norm": list(sent)}
    facts["repeating"] = error_of(Repeating)
    laid_out.clear()
    facts |= {"full": masters(bucket_size=ALL_NUMBERS), "laid out of a full one": list(laid_out)}
    in_one.clear()
    masters(bucket_size=ALL_OF_MATRICES)
    facts |= {"large": masters(Large), "seldom": masters(Seldom), "full in one": list(in_one)[: 2 * 6]}
    sent.clear()
    for setting in ("contiguous_gradients", "overlap_comm"):
        facts[f"kept with {setting}"] = [kept_by_deepspeed(**{setting: chosen}) for chosen in (False, True)]
    ds_engine.overlap_reduction = lambda engine: None
    facts |= {"full by deepspeed": masters(bucket_size=ALL_NUMBERS), "large by deepspeed": masters(Large)}
    facts |= {"seldom by deepspeed": masters(Seldom)}
    facts |= {"by deepspeed": masters(), "normed by deepspeed": masters(Normed)}
    facts |= {"branching by deepspeed": masters(Branching), "sent by deepspeed": len(sent)}
    if dist.is_main():
        print("FACTS " + json.dumps(facts))
    ds_engine.stop()


if __name__ == "__main__":
    main()
