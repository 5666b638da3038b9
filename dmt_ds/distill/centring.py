"""Running channel means of several teachers' tokens; knows torch's collectives, not what the means are used for."""

from collections.abc import Mapping

import torch
import torch.distributed as torch_dist
from torch import Tensor

from dmt_ds.distill.losses import at_least_float32


class RunningMeans:
    """Mean class token and mean patch token of each teacher, as bias-corrected moving averages over steps.

    `observe` only adds up; the means move in `after_step`, once for all micro-batches of all ranks. So they are the
    same on every rank, and depend neither on accumulation nor on the number of ranks. Each teacher's steps are its own:
    one that joins later starts like the first ones, and one that a step does not observe is forgotten.
    """

    def __init__(self, momentum: float) -> None:
        """Args: momentum: share of the old average that a step keeps, 0 <= momentum < 1."""
        self._momentum = momentum
        self._steps: dict[str, int] = {}  # that an average holds
        self._averages: dict[str, Tensor] = {}  # [2, D] float64, not bias-corrected
        self._sums: dict[str, Tensor] = {}  # [2, D] float64, since the last step
        self._num_images: dict[str, int] = {}

    def observe(self, name: str, tokens: Tensor) -> None:
        """Add one micro-batch of a teacher: [B, 1+N, D]."""
        summed = per_image_means(tokens).double().sum(dim=0)  # [B, 2, D] -> [2, D]
        # Not in place: a sum made in inference mode can't be changed outside it.
        self._sums[name] = self._sums[name] + summed if name in self._sums else summed
        self._num_images[name] = self._num_images.get(name, 0) + len(tokens)

    def of(self, name: str, device: torch.device) -> Tensor | None:
        """Class and patch mean of a teacher, [2, D] float32; None before the first step that saw it."""
        if name not in self._averages:
            return None
        average = self._averages[name] = self._averages[name].to(device)
        return (average / (1 - self._momentum ** self._steps[name])).float()

    def after_step(self) -> None:
        """Move the means by what all ranks observed; nothing observed, nothing done. A collective call otherwise."""
        if not self._sums:
            return
        fresh = self._means_over_ranks()
        self._steps = {name: self._steps.get(name, 0) + 1 for name in fresh}
        old = {name: self._averages.get(name, torch.zeros_like(mean)).to(mean.device) for name, mean in fresh.items()}
        self._averages = {
            name: self._momentum * old[name] + (1 - self._momentum) * mean for name, mean in fresh.items()
        }
        self._sums, self._num_images = {}, {}

    def _means_over_ranks(self) -> dict[str, Tensor]:
        parts = [
            torch.cat([summed.flatten(), summed.new_full((1,), self._num_images[name])])
            for name, summed in self._sums.items()
        ]
        packed = torch.cat(parts)
        if torch_dist.is_available() and torch_dist.is_initialized():
            torch_dist.all_reduce(packed)
        reduced = torch.split(packed, [len(part) for part in parts])
        return {name: (part[:-1] / part[-1]).view(2, -1) for name, part in zip(self._sums, reduced, strict=True)}

    def state_dict(self) -> dict[str, Tensor]:
        """What must survive a restart, between two steps; the same on every rank."""
        means = {f"mean/{name}": mean for name, mean in self._averages.items()}
        return means | {f"steps/{name}": torch.tensor(steps) for name, steps in self._steps.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`; also of that of early versions, where all teachers had the same steps."""
        self._averages = {
            key.removeprefix("mean/"): mean.clone() for key, mean in state.items() if key.startswith("mean/")
        }
        self._steps = {name: int(state.get(f"steps/{name}", state.get("steps", 0))) for name in self._averages}
        self._sums, self._num_images = {}, {}


def per_image_means(tokens: Tensor) -> Tensor:
    """Class token and mean patch token of each image: [B, 1+N, D] -> [B, 2, D], in float32 at least."""
    tokens = at_least_float32(tokens)
    return torch.stack([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)


def subtract_means(tokens: Tensor, means: Tensor) -> Tensor:
    """Tokens without their class and patch mean: [B, 1+N, D] and [2, D] -> [B, 1+N, D], in float32 at least."""
    class_mean, patch_mean = means
    return tokens - torch.cat([class_mean[None], patch_mean.expand(tokens.shape[1] - 1, -1)])
