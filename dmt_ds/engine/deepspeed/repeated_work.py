"""What DeepSpeed's ZeRO-1 and 2 would do again for each weight at each update, though nothing changed.

It is Python for each of a few hundred parameters: milliseconds in which a fast device has nothing to do.
"""

from collections.abc import Callable
from typing import Any


def keep_weights_in_place(engine: Any) -> None:
    """Weights are made views of their flat group only where they are not.

    DeepSpeed does so at the end of each update, which changes the group in place. Weights that were moved, as by
    `offload_states`, are put back as before.
    """
    zero = engine.optimizer
    if not hasattr(zero, "_update_model_bit16_weights"):
        return
    make_views: Callable[[int], None] = zero._update_model_bit16_weights
    begins = [
        [begin * flat.element_size() for begin in of_group]
        for flat, of_group in zip(zero.bit16_groups_flat, zero.round_robin_bit16_offsets, strict=True)
    ]  # bytes from the beginning of the flat group

    def update(group: int) -> None:
        flat = zero.bit16_groups_flat[group].data_ptr()
        weights = zero.round_robin_bit16_groups[group]
        if any(weight.data_ptr() != flat + begin for weight, begin in zip(weights, begins[group], strict=True)):
            make_views(group)

    zero._update_model_bit16_weights = update
