"""The run that the doctor looks at; knows no check."""

from dataclasses import dataclass, field
from typing import Any

from dmt_ds.config.batch import BatchPlan
from dmt_ds.config.schema import RunConfig
from dmt_ds.data.sources import ImageSource
from dmt_ds.models.encoders import FrozenEncoder


@dataclass
class Patient:
    """The run that is examined, and what one check finds out for the next."""

    config: RunConfig
    ranks: int
    batch: BatchPlan | None = None
    ds_config: dict[str, Any] | None = None
    every_image: bool = False
    source: ImageSource | None = None
    class_names: tuple[str, ...] = ()
    teachers: dict[str, FrozenEncoder] = field(default_factory=dict)
    num_parameters: int | None = None
    parameters: str | None = None
    """Hash of their names and shapes."""
