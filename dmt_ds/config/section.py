"""What every section of a recipe is made of: the frozen base class and the bounded types; knows no setting."""

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator


def _is_number_or_auto(value: object) -> object:
    if value == "auto" or (type(value) is int and value >= 0) or (isinstance(value, str) and value.isdigit()):
        return value  # a command line gives text
    raise ValueError(f"must be a whole number >= 0, or auto; it is {value}")


Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Workers = Annotated[int | Literal["auto"], BeforeValidator(_is_number_or_auto)]
Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


OF_TRAINED: dict[str, bool] = {"is_trained": True}
"""Context in which the settings of what was trained are read: what is refused today was taken once."""


def is_to_be_trained(info: ValidationInfo) -> bool:
    """Whether a setting that means another thing than it says is refused: not of what was trained with it."""
    return info.context != OF_TRAINED


def multiples_near(number: int, step: int) -> str:
    """What a positive setting that must be a multiple of `step` could be: "504 or 518"."""
    below = number // step * step
    return " or ".join(str(multiple) for multiple in (below, below + step) if multiple)


def check_range(name: str, bounds: tuple[float, float]) -> None:
    """A range has its lower bound first, and something in it.

    Raises:
        ValueError: it has not; names the setting.
    """
    low, high = bounds
    if low > high:
        raise ValueError(f"{name} [{low}, {high}] is the wrong way round: [{high}, {low}]")
    if high == 0:
        raise ValueError(f"{name} [{low}, {high}] holds nothing: end it above 0")


class Section(BaseModel):
    """Base of all sections: immutable, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _paths_are_text(cls, values: Any) -> Any:
        """Who makes a section in Python may have a `Path` where a recipe has text."""
        if not isinstance(values, dict):
            return values
        return {key: str(value) if isinstance(value, PurePath) else value for key, value in values.items()}
