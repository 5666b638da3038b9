"""Settings that other settings of the same run leave without effect; reads flat settings, plain or as text."""

import ast
from collections.abc import Mapping

from dmt_ds.config.schema import TASKS_OF_SECTION, TEACHER_TASKS, TaskName

_MODELS = "teachers.models."
_WITH_OWN_VIEWS: tuple[TaskName, ...] = ("moco_v3", "ibot", "dino")
_OF_ENCODER = ("augment.mean", "augment.std")


def idle_settings(settings: Mapping[str, object]) -> set[str]:
    """Keys of what this run's task, length, optimizer or choice of teachers never looks at.

    Args:
        settings: flat with dotted keys, values as `dmt_ds.config.load.flatten` gives them or as text (MLflow's params).
    """
    task = settings.get("task")
    sections = {name for name, tasks in TASKS_OF_SECTION.items() if task is not None and task not in tasks}
    if task is not None and task not in TEACHER_TASKS:
        sections.add("teachers")
    if task == "tinymim":
        sections.add("distill")  # its losses are its own
    used = used_teachers(settings)
    idle = {key for key in settings if key.partition(".")[0] in sections}
    idle |= {key for key in settings if key.startswith(_MODELS) and _teacher_of(key) not in used}
    if task in _WITH_OWN_VIEWS:
        idle |= {key for key in settings if key.startswith("augment.") and key not in _OF_ENCODER}
    if _is_set(settings, "train.steps"):
        idle.add("train.epochs")
    if _is_set(settings, "optim.warmup_steps"):
        idle.add("optim.warmup_epochs")
    if settings.get("optim.schedule") != "steps":
        idle.add("optim.decay_at")
    idle |= {"optim.betas", "optim.eps"} if settings.get("optim.name") == "sgd" else {"optim.momentum"}
    return idle & settings.keys()


def used_teachers(settings: Mapping[str, object]) -> list[str]:
    """Names of the teachers of flat settings, in order; of a task without teachers those that stand there."""
    use = settings.get("teachers.use")
    if isinstance(use, str):
        use = plain_value(use)
    if isinstance(use, (list, tuple)):
        return [str(name) for name in use]
    return list(dict.fromkeys(_teacher_of(key) for key in settings if key.startswith(_MODELS)))


def plain_value(text: str) -> object:
    """What a parameter's text says as Python writes it; the text itself where it is a word, as other programs' are."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return text


def _teacher_of(key: str) -> str:
    return key.removeprefix(_MODELS).rpartition(".")[0]


def _is_set(settings: Mapping[str, object], key: str) -> bool:
    return settings.get(key) not in (None, "None")
