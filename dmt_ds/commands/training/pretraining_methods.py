"""The tasks that learn without labels, by the name that recipes have for them; builds none (`tasks` does)."""

from dataclasses import dataclass

from dmt_ds.config.schema import RunConfig, TaskName


@dataclass(frozen=True)
class Method:
    """What commands must know of a task without annotations.

    Attributes:
        section: of `RunConfig`, with its own settings.
        losses: a method with teachers has `NAME_weight` of each in its section; 0 leaves that loss out.
        adds_tokens: the teachers' tokens are fused, so that their widths must agree, unless they are kept apart.
        reads_inside: it looks into the last block, which then can't be compiled.
        averages_weights: it holds a second network, the running mean of whole weights.
    """

    section: str
    losses: tuple[str, ...] = ()
    adds_tokens: bool = False
    reads_inside: bool = False
    averages_weights: bool = False


METHODS: dict[TaskName, Method] = {
    "dmt": Method("distill", losses=("tfd", "sfd"), adds_tokens=True),
    "tinymim": Method("tinymim", losses=("qk", "vv"), reads_inside=True),
    "mae": Method("mae"),
    "moco_v3": Method("moco_v3", averages_weights=True),
    "ibot": Method("ibot", averages_weights=True),
    "dino": Method("ibot", averages_weights=True),
}
_ANNOTATED = Method("")
"""Nothing of the above; what these are: `annotated_tasks`."""


def method_of(config: RunConfig) -> Method:
    """What a run's task is; of a task with annotations, that it is none of it."""
    return METHODS.get(config.task, _ANNOTATED)


def losses_in_use(config: RunConfig) -> list[str]:
    """Names of a distillation's losses whose weight is not 0."""
    method = method_of(config)
    return [name for name in method.losses if getattr(getattr(config, method.section), f"{name}_weight") > 0]
