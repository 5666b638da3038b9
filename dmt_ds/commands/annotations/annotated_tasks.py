"""The tasks with annotations, by the name that recipes have for them."""

from typing import Any

from dmt_ds.commands.annotations.annotated import AnnotatedKind
from dmt_ds.commands.annotations.classify import Classification
from dmt_ds.commands.annotations.detect import Detection
from dmt_ds.commands.annotations.segment import Segmentation
from dmt_ds.config.schema import RunConfig, TaskName

KINDS: dict[TaskName, AnnotatedKind[Any, Any]] = {
    "classify": Classification(),
    "segment": Segmentation(),
    "detect": Detection(),
}


def kind_of(config: RunConfig) -> AnnotatedKind[Any, Any] | None:
    """What a run's task does with annotations; None for pretraining."""
    return KINDS.get(config.task)
