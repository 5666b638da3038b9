"""A module in evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """In evaluation mode within, and then again in the mode that it came in."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
