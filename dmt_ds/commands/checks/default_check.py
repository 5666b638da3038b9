"""DMT defaults that a recipe of another task inherits by not setting them."""

from collections.abc import Iterator

from dmt_ds.commands.checks.findings import Finding
from dmt_ds.config.schema import TEACHER_TASKS, RunConfig, StudentConfig, TaskName

_WITHOUT_JITTER = ("mae", "classify", "detect")
_WITHOUT_DROP_PATH = ("mae", "moco_v3")
_JITTER = ("brightness", "contrast", "saturation")


def look_at_defaults(config: RunConfig) -> Iterator[Finding]:
    """Fields' defaults are DMT's for every task; recipes with a `base` have their own authors' values."""
    left = [key for key in _JITTER if key not in config.augment.model_fields_set and getattr(config.augment, key)]
    if config.task in _WITHOUT_JITTER and left:
        told = ", ".join(f"{key} {getattr(config.augment, key):g}" for key in left)
        others = " ".join(f"augment.{key}=0" for key in left)
        yield _finding("augment", told, config.task, f"none: {others}")
    yield from _look_at_drop_path(config.student, config.task)


def _look_at_drop_path(student: StudentConfig, task: TaskName) -> Iterator[Finding]:
    if not student.drop_path:
        return
    if task in _WITHOUT_DROP_PATH and "drop_path" not in student.model_fields_set:
        yield _finding("student", f"drop_path {student.drop_path:g}", task, "none: student.drop_path=0")
    elif task not in TEACHER_TASKS and "drop_path_rule" not in student.model_fields_set:
        rule = f"drop_path_rule {student.drop_path_rule}"
        yield _finding("student", rule, task, "linear: student.drop_path_rule=linear")


def _finding(section: str, told: str, task: TaskName, usual: str) -> Finding:
    return Finding("warn", section, f"{told} is DMT's default; the usual recipes of task {task} have {usual}")
