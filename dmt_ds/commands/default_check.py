"""Settings of DMT's that a recipe of another task took over by saying nothing of them."""

from collections.abc import Iterator

from dmt_ds.commands.findings import Finding
from dmt_ds.config.schema import RunConfig

_WITHOUT_JITTER = ("mae", "classify", "detect")
_WITHOUT_DROP_PATH = ("mae", "moco_v3")
_JITTER = ("brightness", "contrast", "saturation")


def look_at_defaults(config: RunConfig) -> Iterator[Finding]:
    """Fields' defaults are DMT's for every task; recipes with a `base` say what their own authors have."""
    jitter = {key: getattr(config.augment, key) for key in _JITTER}
    if config.task in _WITHOUT_JITTER and any(jitter.values()) and not {*_JITTER} & config.augment.model_fields_set:
        told = ", ".join(f"{key} {value:g}" for key, value in jitter.items())
        others = " ".join(f"augment.{key}=0" for key in _JITTER)
        yield Finding("warn", "augment", f"{told} are DMT's defaults; authors of {config.task} have none: {others}")
    student = config.student
    if config.task in _WITHOUT_DROP_PATH and student.drop_path and "drop_path" not in student.model_fields_set:
        default = f"drop_path {student.drop_path:g} is DMT's default"
        yield Finding("warn", "student", f"{default}; authors of {config.task} have none: student.drop_path=0")
