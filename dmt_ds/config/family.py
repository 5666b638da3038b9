"""What a recipe may say of a family of students, and how its members are completed; knows no section's settings."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from dmt_ds.config.section import Section

S = TypeVar("S", bound=Section)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TAKEN = ("checkpoints", "profile", "tracking")
"""Folders of the family's own beside its members'."""


def members_by_name(family: Any) -> Any:
    """`[vit_tiny, vit_small]` as `{vit_tiny: {student: {arch: vit_tiny}}, ...}`; `vit_tiny:` alone changes nothing.

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
        return {name: {} if member is None else member for name, member in family.items()}
    return family


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


def completed(section: S, base: S) -> S:
    """A section in which everything that was not given is as in `base`, within its sections too."""
    values = {}
    for name in type(section).model_fields:
        own, other = getattr(section, name), getattr(base, name)
        if isinstance(own, Section) and isinstance(other, Section):
            values[name] = completed(own, other) if name in section.model_fields_set else other
        else:
            values[name] = own if name in section.model_fields_set and own is not None else other
    return section.model_copy(update=values)
