"""The names that the objective's settings may have, here once for recipes and losses alike; imports no torch."""

from typing import Literal, NoReturn, get_args

Divergence = Literal["kl", "mse"]
Direction = Literal["student_teacher", "teacher_student"]
FusionMode = Literal["sum", "mean", "unit_std", "centred", "concat"]

_CHOICES: dict[str, tuple[str, ...]] = {
    name: get_args(choices)
    for name, choices in (("divergence", Divergence), ("direction", Direction), ("fusion", FusionMode))
}


def check_choice(setting: Literal["divergence", "direction", "fusion"], name: str) -> None:
    """Python does not hold anybody to a Literal.

    Raises:
        ValueError: the setting has no such name; says which it has.
    """
    if name not in _CHOICES[setting]:
        raise ValueError(f"{setting} '{name}' is not known: it is one of {', '.join(_CHOICES[setting])}")


def no_branch(name: NoReturn) -> NoReturn:
    """Stands after the branches over a Literal: mypy finds the name that has none.

    Raises:
        AssertionError: always.
    """
    raise AssertionError(f"'{name}' has no branch")
