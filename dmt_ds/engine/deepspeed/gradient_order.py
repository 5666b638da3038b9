"""Whether the gradients of all ranks are ready in the same order; knows no engine.

ZeRO fills a bucket with gradients as they come, and adds up the ranks' buckets number by number. Ranks whose orders
differ would add gradients of unlike parameters, without an error: such as one that runs compiled and one that does not.
"""

from functools import partial

from torch import Tensor, nn

from dmt_ds.engine import dist
from dmt_ds.errors import LaunchError


class GradientOrder:
    """Notes in which order a module's gradients are ready in the next backward pass."""

    def __init__(self, module: nn.Module) -> None:
        self._names: list[str] = []
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._note, name))  # type: ignore[no-untyped-call]
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        ]

    def check(self) -> None:
        """Compare the order with the other ranks', after the pass; all ranks call, once.

        Raises:
            LaunchError: on all ranks alike; names the ranks that differ from rank 0.
        """
        for hook in self._hooks:
            hook.remove()
        orders = dist.gather_objects(self._names)
        others = [rank for rank, names in enumerate(orders) if names != orders[0]]
        if others:
            message = (
                f"rank {', '.join(map(str, others))}: gradients are ready in another order than on rank 0, so sums "
                "over ranks would be wrong: give all ranks the same torch and environment; train.compile=false may help"
            )
            raise dist.alike_on_all(LaunchError(message))

    def _note(self, name: str, _: Tensor) -> None:
        self._names.append(name)
