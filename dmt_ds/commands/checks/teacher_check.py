"""The teachers of a run to come, loaded as the run loads them; knows no student."""

from collections.abc import Iterator

from dmt_ds.commands.checks.findings import Finding, failure
from dmt_ds.commands.checks.patient import Patient
from dmt_ds.commands.training.pretraining_methods import method_of
from dmt_ds.commands.training.teacher_engines import guess_of
from dmt_ds.config.deepspeed import find_ds_config, resolve_teacher
from dmt_ds.config.schema import TEACHER_TASKS
from dmt_ds.engine.deepspeed.ds_check import check_ds_config
from dmt_ds.errors import DmtError
from dmt_ds.models.encoders import check_same_tokens, load_teacher


def check_teachers(patient: Patient) -> Iterator[Finding]:
    """Each by itself, and whether their tokens go together; leaves those that load with the patient."""
    config = patient.config
    if config.task not in TEACHER_TASKS:
        return
    ds_path = find_ds_config(config.teachers.deepspeed)
    check_ds_config(ds_path, resolve_teacher(ds_path, embed_dim=768))
    yield Finding("ok", "deepspeed", f"teachers: {ds_path.name}, sharding {config.teachers.sharding}")
    for name, section in config.teachers.used().items():
        try:
            teacher = load_teacher(name, section, config.data.image_size)
        except DmtError as error:
            yield failure("teachers", error)
            continue
        patient.teachers[name] = teacher
        record, shape = teacher.record, teacher.record.shape
        what = f"{record.layout}, {shape.embed_dim} wide, {shape.depth} blocks, {shape.num_heads} heads"
        licence = record.licence or "licence not known"
        yield Finding("ok", "teachers", f"{name}: {what}, sha256 {(record.sha256 or 'none')[:12]}, {licence}")
        if line := guess_of(name, record):
            yield Finding("warn", "teachers", line)
    are_added = method_of(config).adds_tokens and config.distill.fusion != "concat"
    check_same_tokens(patient.teachers, same_width=are_added)
