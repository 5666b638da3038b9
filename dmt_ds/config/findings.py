"""What pydantic found wrong with a recipe, told to its author: where, what, and the remedy; reads no file."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from dmt_ds.config.schema import RunConfig

Path = tuple[str, ...]


def describe(
    error: ValidationError, origins: Mapping[Path, str], default_origin: str, model: type[BaseModel] = RunConfig
) -> list[str]:
    """One line a finding: `recipes/vit_small.yaml: optim.wieght_decay: unknown key. Did you mean 'weight_decay'?`.

    Args:
        error: what `model.model_validate` raised.
        origins: who gave the value of each path: a recipe's name or "command line".
        default_origin: who is named where no given value is at fault but a missing one.
        model: what the values are read as.
    """
    lines = []
    for detail in error.errors(include_url=False):
        path = tuple(str(part) for part in detail["loc"] if not isinstance(part, int))
        origin = next((origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origins), default_origin)
        lines.append(f"{origin}: {_say(detail, path, model)}")
    return list(dict.fromkeys(lines))


def fields_of(path: Sequence[str], model: type[BaseModel] = RunConfig) -> dict[str, FieldInfo]:
    """Fields of the section at `path`, by name; none where it is no section."""
    section: type[BaseModel] | None = model
    is_named = False
    for step in path:
        if is_named:  # the name of an entry, such as a teacher's
            is_named = False
        elif section is None or step not in section.model_fields:
            return {}
        else:
            section, is_named = section_in(section.model_fields[step].annotation)
    return section.model_fields if section and not is_named else {}


def not_a_section(path: Path, value: object) -> str | None:
    """What is wrong where a section is given one plain value; None where nothing is."""
    fields = fields_of(path)
    if not fields or isinstance(value, Mapping):
        return None
    dotted = ".".join(path)
    return f"{dotted}={_show(value)}: is a section; set its keys, such as {dotted}.{next(iter(fields))}=..."


def leaves(model: type[BaseModel] = RunConfig, prefix: Path = ()) -> Iterator[Path]:
    """Paths of all settings that are no sections, in the schema's order."""
    for name, field in model.model_fields.items():
        section, is_named = section_in(field.annotation)
        if section and not is_named:
            yield from leaves(section, (*prefix, name))
        else:
            yield (*prefix, name)


def section_in(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The section that a field holds, and whether it holds several by name (`dict[str, TeacherConfig]`)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    if get_origin(annotation) is dict:
        return section_in(get_args(annotation)[1])[0], True
    if get_origin(annotation) in (Union, UnionType):
        return next((found for arg in get_args(annotation) if (found := section_in(arg))[0]), (None, False))
    return None, False


def _say(detail: ErrorDetails, path: Path, model: type[BaseModel]) -> str:
    kind, dotted, context = detail["type"], ".".join(path), detail.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{dotted}: unknown key. {_suggest_key(path, model)}"
    if kind == "missing" and path and not isinstance(detail["loc"][-1], int):
        return f"{dotted}: is missing; give {dotted}=..."
    if kind == "value_error":  # a section's own check; it names its keys
        return (f"{dotted}: " if dotted else "") + str(context.get("error", detail["msg"]))
    return f"{dotted}={_show(detail['input'])}: {_problem(detail, path, model)}"


def _problem(detail: ErrorDetails, path: Path, model: type[BaseModel]) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if detail["input"] is None:
        return f"null is not allowed here{_say_zero(path, model)}"
    bounds = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}
    if kind in bounds:
        symbols = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
        return f"must be {symbols[bounds[kind]]} {context[bounds[kind]]:g}"
    if kind == "literal_error":
        return _say_choices(str(detail["input"]), str(context["expected"]))
    if kind in ("int_parsing", "int_type", "int_from_float"):
        return "not a whole number"
    if kind in ("float_parsing", "float_type"):
        return "not a number"
    if kind == "finite_number":
        return "must be a finite number"
    if kind in ("bool_parsing", "bool_type"):
        return "neither true nor false"
    if kind in ("tuple_type", "missing", "too_long"):
        return _say_list(_field_at(path, model))
    if kind == "too_short":
        return f"must have at least {context['min_length']}"
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return f"must have keys: {'.'.join(path)}.NAME=..."
    if kind == "string_pattern_mismatch":
        return f"not allowed here. {_field_at(path, model).description}"
    return f"{detail['msg'][0].lower()}{detail['msg'][1:]}"


def _field_at(path: Path, model: type[BaseModel]) -> FieldInfo:
    return fields_of(path[:-1], model)[path[-1]]


def _say_zero(path: Path, model: type[BaseModel]) -> str:
    """What 0 does, where the setting's own words say it: most often that it turns off what null was to turn off."""
    field = fields_of(path[:-1], model).get(path[-1])
    if field is None or not any(getattr(bound, "ge", None) == 0 for bound in field.metadata):
        return ""
    found = re.search(r"(?:^|[.;:]\s)(0\s[^.;]+)", field.description or "")
    return f"; {' '.join(found[1].split())}" if found else ""


def _say_list(field: FieldInfo) -> str:
    kinds = (field.annotation, *get_args(field.annotation))  # of `tuple[...] | None`, each
    inside = next((get_args(kind) for kind in kinds if get_origin(kind) is tuple), ())
    if Ellipsis in inside:
        return f"must be a list, such as [{', '.join(_examples(inside[0], 2))}]"
    default = field.default
    own = [f"{value:g}" for value in default] if isinstance(default, tuple) else _examples(inside[0], len(inside))
    return f"must be a list of {len(inside)} values, such as [{', '.join(own)}]"


def _examples(kind: Any, count: int) -> list[str]:
    """So many values of a list's kind, as one would write them."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)[:count]]
    return list("abcdefgh"[:count]) if kind is str else [str(number) for number in range(1, count + 1)]


def _say_choices(given: str, expected: str) -> str:
    choices = [choice.strip(" '") for choice in expected.replace(" or ", ", ").split(",")]
    close = difflib.get_close_matches(given, choices, n=1)
    return f"must be one of {', '.join(choices)}" + (f". Did you mean '{close[0]}'?" if close else "")


def _suggest_key(path: Path, model: type[BaseModel]) -> str:
    """A key of the same section that reads like it, else one of that name elsewhere, else all keys of the section."""
    *parents, given = path
    known = list(fields_of(parents, model))
    if close := difflib.get_close_matches(given, known, n=1) or [key for key in known if given in key.split("_")]:
        return f"Did you mean '{close[0]}'?"
    if elsewhere := [".".join(leaf) for leaf in leaves(model) if leaf[-1] == given]:
        return f"Did you mean '{elsewhere[0]}'?"
    return f"Keys here: {', '.join(known)}"


def _show(value: object) -> str:
    """A value as one would write it on the command line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_show(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_show(item) for item in value) + "]"
    return "null" if value is None else str(value)
