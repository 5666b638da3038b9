"""iBOT's two losses and the centres against collapse, in plain torch; knows no network.

Rows of several crops lie crop after crop, [crops * B, ...], as `torch.cat` of the crops leaves them.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dmt_ds.engine import dist


def class_loss(student_logits: Tensor, teacher_probabilities: Tensor, temperature: float, num_images: int) -> Tensor:
    """Cross entropy of each student crop under each other global crop of the teacher, mean over pairs and images.

    Args:
        student_logits: [crops * B, K], global crops first.
        teacher_probabilities: [globals * B, K] float32.
    """
    log_probabilities = F.log_softmax(student_logits.float() / temperature, dim=1)
    student = log_probabilities.reshape(-1, num_images, log_probabilities.shape[1])  # [crops, B, K]
    teacher = teacher_probabilities.reshape(-1, num_images, teacher_probabilities.shape[1])  # [globals, B, K]
    pairs = [(q, v) for q in range(len(teacher)) for v in range(len(student)) if q != v]
    terms = [-(teacher[q] * student[v]).sum(dim=1).mean() for q, v in pairs]
    return torch.stack(terms).mean()


def patch_loss(student_logits: Tensor, teacher_probabilities: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Cross entropy at hidden patches: mean over an image's hidden patches, then over all global crops.

    An image that hides nothing counts as 0, as in the authors' code.

    Args:
        student_logits: [globals * B, S, K] at the slots.
        teacher_probabilities: [globals * B, S, K] float32 at the same slots.
        weights: [globals * B, S], `HiddenPatches.weights`.
    """
    log_probabilities = F.log_softmax(student_logits.float() / temperature, dim=2)
    cross_entropy = -(teacher_probabilities * log_probabilities).sum(dim=2)  # [globals * B, S]
    return (cross_entropy * weights).sum(dim=1).mean()


def warmed_up(start: float, end: float, warmup: float, fraction: float) -> float:
    """Linear from `start` to `end` over the first `warmup` of the run, then `end`."""
    return end if fraction >= warmup else start + (end - start) * fraction / warmup


def entropies(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Mean entropy of each distribution, and entropy of their mean over all ranks, in nats: [R, K] -> 2 scalars.

    Both at log K is collapse to uniform; both at 0 is collapse to one prototype; far apart is health. A
    diagnostic, not a function of the run alone: the second is of one micro-batch on all ranks and grows with its rows,
    so it is lower where a step has more accumulation.
    """
    mean = dist.mean_over_ranks(probabilities.mean(dim=0))
    return _entropy(probabilities).mean(), _entropy(mean)


def _entropy(probabilities: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(probabilities).sum(dim=-1)
    return entropy


class CentredTargets:
    """The teacher's logits made targets: minus their running mean, then a softmax whose temperature warms up.

    The mean moves once a step, however many micro-batches and ranks the step has.

    Args:
        num_prototypes: K.
        momentum: of the running mean.
        temperature: done share of the run -> temperature.
    """

    def __init__(self, num_prototypes: int, momentum: float, temperature: Callable[[float], float]) -> None:
        self.centre = torch.zeros(num_prototypes)
        self._momentum = momentum
        self._temperature = temperature
        self._sum = torch.zeros(num_prototypes)
        self._rows = 0

    def __call__(self, logits: Tensor, fraction: float) -> Tensor:
        """softmax((logits - centre) / temperature): [..., K] -> [..., K] float32; also counts the rows."""
        logits = logits.float()
        rows = logits.flatten(0, -2)
        self._sum += rows.sum(dim=0)
        self._rows += len(rows)
        return F.softmax((logits - self.centre) / self._temperature(fraction), dim=-1)

    def after_step(self) -> None:
        """Move the centre: m * centre + (1 - m) * mean of the step's rows, over all ranks."""
        count = self._sum.new_full((1,), self._rows)
        totals = dist.sum_over_ranks(torch.cat([self._sum, count]))
        self.centre.lerp_(totals[:-1] / totals[-1], 1 - self._momentum)
        self._sum, self._rows = torch.zeros_like(self._sum), 0

    def to(self, device: torch.device) -> None:
        """Move to `device`."""
        self.centre, self._sum = self.centre.to(device), self._sum.to(device)
