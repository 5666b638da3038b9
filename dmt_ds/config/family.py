"""What a recipe may say of a family of students, and how its members are completed; knows a shape's settings alone."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from dmt_ds.config.section import Section
from dmt_ds.run_files import CHECKPOINTS_FOLDER, PROFILE_FOLDER, TRACKING_FOLDER

S = TypeVar("S", bound=Section)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TAKEN = (CHECKPOINTS_FOLDER, PROFILE_FOLDER, TRACKING_FOLDER)
"""Folders of the family's own beside its members'."""
_SHAPE = ("embed_dim", "depth", "num_heads")
"""Settings of a student that win over its architecture."""


def members_by_name(family: Any) -> Any:
    """`[vit_tiny, vit_small]` as `{vit_tiny: {student: {arch: vit_tiny}}, ...}`; `vit_tiny:` alone changes nothing.

    Nor does null for a member's section or its `deepspeed`.

    Raises:
        ValueError: a name is given twice.
    """
    if isinstance(family, list | tuple):
        names = [str(name) for name in family]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(
                f"'{twice[0]}' is given twice; members of one architecture need names: family.NAME.student"
            )
        return {name: {"student": {"arch": name}} for name in names}
    if isinstance(family, Mapping):
        return {name: _given({} if member is None else member) for name, member in family.items()}
    return family


def _given(member: Any) -> Any:
    return {key: value for key, value in member.items() if value is not None} if isinstance(member, dict) else member


def check_family(names: Sequence[str], has_teachers: bool, task: str) -> None:
    """What members must be, whatever they are.

    Raises:
        ValueError: the task has nothing that students could share, or a name is no folder's.
    """
    if names and not has_teachers:
        raise ValueError(f"family: task {task} has no teachers that students could share; start a run for each")
    for name in names:
        if not _NAME.fullmatch(name) or name in _TAKEN:
            raise ValueError(
                f"family.{name}: names a folder: use letters, digits, '.', '_', '-', and none of {', '.join(_TAKEN)}"
            )


def whole_members(members: Mapping[str, Any], own: Any) -> dict[str, Any]:
    """Name -> member, completed with the run's own sections.

    Raises:
        ValueError: a member's architecture has no effect, for the run's own shape would win, or two are the same.
    """
    for name, member in members.items():
        student, base = member.student, own.student
        given = "arch" in student.model_fields_set and student.arch != base.arch
        won = [key for key in _SHAPE if key not in student.model_fields_set and getattr(base, key) is not None]
        if given and won:
            nulls = " ".join(f"family.{name}.student.{key}=null" for key in won)
            raise ValueError(
                f"family.{name}: its architecture {student.arch} would get the run's {', '.join(won)}: for its own set "
                f"{nulls}"
            )
    whole: dict[str, Any] = {}
    for name, member in members.items():
        whole[name] = completed(member, own)
        if same := [other for other in whole if other != name and whole[other] == whole[name]]:
            raise ValueError(f"family.{name}: is the same student as family.{same[0]}: leave one out")
    return whole


def completed(section: S, base: S) -> S:
    """A section in which everything that was not given is as in `base`, within its sections too; null is given."""
    values = {}
    for name in type(section).model_fields:
        own, other = getattr(section, name), getattr(base, name)
        if name not in section.model_fields_set:
            values[name] = other
        elif isinstance(own, Section) and isinstance(other, Section):
            values[name] = completed(own, other)
        else:
            values[name] = own
    return section.model_copy(update=values)
