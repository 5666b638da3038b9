"""`dmt-ds config`: a run with every setting written out; imports no torch, so that it answers at once."""

import json
from collections.abc import Iterator, Sequence

import yaml
from pydantic import BaseModel

from dmt_ds.config.batch import plan_batch
from dmt_ds.config.deepspeed import find_ds_config, read_ds_config, resolve_student
from dmt_ds.config.findings import section_in
from dmt_ds.config.load import flatten
from dmt_ds.config.schema import TEACHER_TASKS, RunConfig
from dmt_ds.errors import ConfigError
from dmt_ds.wording import one_line


def render_values(config: RunConfig, keys: Sequence[str]) -> str:
    """The values of some dotted keys, one a line, for scripts; what is not set is `null`.

    Raises:
        ConfigError: there is no such setting.
    """
    values = flatten(config)
    unknown = [key for key in keys if key not in values]
    if unknown:
        raise ConfigError("\n".join(f"{key}: unknown key, or a whole section" for key in unknown))
    wanted = [values[key] for key in keys]
    return "".join(f"{value if isinstance(value, str) else _inline(value)}\n" for value in wanted)


def render_deepspeed(config: RunConfig, ranks: int) -> str:
    """The DeepSpeed JSONs of the run on `ranks` processes, each below a YAML comment with its file.

    What a teacher's width decides stays "auto" here: the width is known when the teacher is loaded.
    """
    plan = plan_batch(config.train.global_batch_size, config.train.micro_batch_size, ranks)
    parts = []
    for name, run in config.students().items():
        student = find_ds_config(run.train.deepspeed)
        who = f"student {name}" if name else "student"
        parts.append((who, student, resolve_student(student, plan, run.optim.clip_grad_norm)))
    if config.task in TEACHER_TASKS:
        teachers = find_ds_config(config.teachers.deepspeed)
        parts.append(("each teacher", teachers, read_ds_config(teachers)))
    ranks_text = f"{ranks} rank{'s' if ranks > 1 else ''}"
    return "".join(
        f"---\n# DeepSpeed of {who}, {ranks_text}: {path.name}\n{json.dumps(resolved, indent=2)}\n"
        for who, path, resolved in parts
    )


def render_defaults() -> str:
    """Every setting with its meaning and default, as YAML that is itself a recipe."""
    return "\n".join(_section_lines(RunConfig(task="mae"), indent="")) + "\n"


def _section_lines(section: BaseModel, indent: str) -> Iterator[str]:
    plain = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if not indent and isinstance(value, BaseModel):
            yield ""
        yield f"{indent}# {one_line(field.description or value.__doc__ or '')}"
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:"
            yield from _section_lines(value, indent + "  ")
        else:
            yield f"{indent}{name}: {_inline(field.default if name == 'task' else plain[name])}"
            yield from _entry_lines(field.annotation, indent + "  ")


def _entry_lines(annotation: object, indent: str) -> Iterator[str]:
    """Settings of one entry, as comments, below a field that holds several by name (teachers)."""
    section, is_named = section_in(annotation)
    if section and is_named:
        yield f"{indent}# NAME:"
        for name, field in section.model_fields.items():
            if isinstance(field.default, BaseModel):
                yield f"{indent}#   {name}: {{}}  # as in section {name}, whose values are the defaults"
                continue
            default = "..." if field.is_required() else _inline(field.default)
            yield f"{indent}#   {name}: {default}  # {one_line(field.description or '')}"


def _inline(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")
