"""In which settings runs differ, by their records: without what changes no result, and what follows from others."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from dmt_ds.config.idle import idle_settings, plain_value, used_teachers
from dmt_ds.config.resume import SEEDS_MAY_DIFFER, covers
from dmt_ds.config.schema import TASKS_OF_SECTION
from dmt_ds.tracking.mlflow_compare import RecordedRun

SEED = re.compile(r"[-_]seed[-_]?\d+$")
"""The end of a run's name that tells its seed."""
NOTHING = "—"
VARIES = "differs"
"""Value of a row whose own runs differ."""
_NO_SETTINGS = (*SEEDS_MAY_DIFFER, "seed", "derived")
_FIRST = ("task", "teachers", *TASKS_OF_SECTION, "student", "optim", "train", "data", "augment")
# Their lack follows from the task, the teachers in use or the optimizer, which are settings themselves.
_WITH_OTHERS = (
    *(*TASKS_OF_SECTION, "teachers", "augment"),
    *("optim.betas", "optim.eps", "optim.momentum", "optim.decay_at"),
)
_PATHS = ("data.path", "student.init_from", "teachers.models.*.source", "train.deepspeed", "teachers.deepspeed")
_OR_EPOCHS = ("train.steps", "optim.warmup_steps")
_CHOICE_OF_IMAGES = ("data.source", "data.train_split", "data.max_train_images")
_IMAGES, _SHA256_DIGITS = "data.fingerprint", 12

Settings = Mapping[str, str]
"""Dotted key -> value as one would write it on the command line."""


@dataclass(frozen=True)
class Difference:
    """A setting, and what it is in each row; `NOTHING` where a row has no such setting, `VARIES` where its runs do."""

    setting: str
    values: tuple[str, ...]


def told_settings(run: RecordedRun) -> dict[str, str]:
    """What decides a run's result, as people write it: of a path the last part, beside what tells its content apart.

    A value that a restart changed reads `before -> after`.
    """
    idle = idle_settings(run.params)
    told: dict[str, str] = {}
    for key, value in run.params.items():
        later = run.tags.get(f"resumed.{key}")
        if value == "None" and key in _OR_EPOCHS and later is None:
            continue
        if key in idle or _is_any(_NO_SETTINGS, key) or (key.startswith("teachers.") and not _is_setting(key)):
            continue
        shown = _shown(key, value)
        told[key] = shown if later is None else f"{shown} -> {_shown(key, later)}"
    if any(key.startswith("teachers.") for key in told):
        told["teachers.use"] = "+".join(sorted(used_teachers(run.params)))
    if "student.init_from" in told and (name := run.tags.get("init_from.run_name")):
        told["student.init_from"] = SEED.sub("", name)
    if run.images is not None:
        told[_IMAGES] = run.images[:_SHA256_DIGITS]
    for key in [key for key in told if _is_any(("teachers.models.*.source", "student.init_from"), key)]:
        if sha256 := run.params.get(_content_of(key)):
            told[_content_of(key)] = sha256[:_SHA256_DIGITS]
    return told


def differing(settings: Sequence[Settings]) -> list[str]:
    """Keys that are not equal in all of `settings`; those of the method first.

    A lack counts, but not where it follows from another setting. Weights and images are told by their content: the same
    under another name are no difference, and of others the name is told, or the content where the name is the same.
    """
    there = {key: None for told in settings for key in told}
    found = {key for key in there if _differs(key, settings)}
    for key in [key for key in there if _is_any(_PATHS, key)]:
        content = _content_of(key)
        is_known = content in there and all(content in told for told in settings if key in told)
        if is_known and content not in found:
            found.discard(key)
        elif key in found:
            found.discard(content)
    if found & {*_CHOICE_OF_IMAGES}:
        found.discard(_IMAGES)
    return sorted(found, key=_place)


def differences(rows: Sequence[Sequence[RecordedRun]], by: str) -> tuple[Difference, ...]:
    """The settings that are not equal in all rows, with the value of each row.

    Args:
        rows: the runs of each row.
        by: the setting that makes the rows, which is left out.
    """
    told = [[told_settings(run) for run in row] for row in rows]
    keys = [key for key in differing([settings for row in told for settings in row]) if key != by]
    return tuple(Difference(key, tuple(_of_row(key, row) for row in told)) for key in keys)


def _of_row(key: str, row: Sequence[Settings]) -> str:
    values = {settings.get(key, NOTHING) for settings in row}
    return values.pop() if len(values) == 1 else VARIES if values else NOTHING


def _differs(key: str, settings: Sequence[Settings]) -> bool:
    values = {told.get(key) for told in settings}
    return len(values - {None} if _is_any(_WITH_OTHERS, key) else values) > 1


def _place(key: str) -> tuple[int, str]:
    section = key.partition(".")[0]
    return (_FIRST.index(section) if section in _FIRST else len(_FIRST), key)


def _is_any(patterns: Sequence[str], key: str) -> bool:
    return any(covers(pattern, key) for pattern in patterns)


def _is_setting(key: str) -> bool:
    """Whether it is a setting of the section `teachers`, and not what a run noted of a teacher's weights."""
    return key.startswith("teachers.models.") or key.count(".") == 1


def _content_of(key: str) -> str:
    """The key under which stands what is in a file or folder, by a hash."""
    if key == "data.path":
        return _IMAGES
    name = "init_from" if key == "student.init_from" else key.removeprefix("teachers.models.").removesuffix(".source")
    return f"teachers.{name}.sha256"


def _shown(key: str, value: str) -> str:
    if _is_any(_PATHS, key):
        return PurePath(re.split(r"/[^/]*[*?\[{]", value)[0]).name if value != "None" else "null"
    plain = plain_value(value)
    return value if isinstance(plain, float) and not math.isfinite(plain) else _written(plain)


def _written(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, float):
        return f"{value:.10g}"
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
