"""`dmt-ds doctor`: everything that can fail before a queue does, each with its remedy; starts no process group.

Runs on the login node as well as on a node of the job: what a GPU decides is said where there is one.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path

import torch

from dmt_ds.commands.checks.data_check import check_data
from dmt_ds.commands.checks.default_check import look_at_defaults
from dmt_ds.commands.checks.device_check import look_at_device
from dmt_ds.commands.checks.findings import Finding, failure
from dmt_ds.commands.checks.patient import Patient
from dmt_ds.commands.checks.teacher_check import check_teachers
from dmt_ds.commands.training.record import checkpoint_state
from dmt_ds.commands.training.resume import refuse_another_run
from dmt_ds.commands.training.runs import advice_on_precision, check_batch_norm
from dmt_ds.commands.training.tasks import build_task, hash_of_parameters, image_size_of_start, student_of
from dmt_ds.config.batch import plan_batch
from dmt_ds.config.deepspeed import find_ds_config, precision, resolve_student, zero_stage
from dmt_ds.config.schema import ANNOTATED_TASKS, TEACHER_TASKS, RunConfig
from dmt_ds.engine.checkpoints.checkpoint import CheckpointFolder
from dmt_ds.engine.deepspeed.ds_check import check_ds_config
from dmt_ds.errors import DmtError, StorageError
from dmt_ds.models.encoders import load_encoder
from dmt_ds.run_files import CHECKPOINTS_FOLDER
from dmt_ds.storage import is_away

BYTES_A_PARAMETER = 16
"""In a checkpoint: bf16 or float32 weights, float32 master, two moments."""
PACKAGES = ("torch", "torchvision", "deepspeed", "timm", "transformers", "datasets", "mlflow")


Check = Callable[[Patient], Iterator[Finding]]


def run(config: RunConfig, ranks: int | None, every_image: bool = False) -> list[Finding]:
    """Look at everything; one failure hides no other.

    Args:
        config: the run to come.
        ranks: its processes; None takes this launch's, else one a GPU of this machine.
        every_image: decode all images, not a few.
    """
    patient = Patient(config, ranks or _ranks_of_launch(os.environ), every_image=every_image)
    findings = [finding for what, check in OF_ALL.items() for finding in _examine(what, check, patient)]
    # What was found out so far is the same for all members of a family.
    members = {f" {name}": replace(patient, config=member) for name, member in config.students().items() if name}
    students = members or {"": patient}
    for what, check in OF_STUDENTS.items():
        for name, student in students.items():
            findings += _examine(what + name, check, student)
    patient.num_parameters = sum(student.num_parameters or 0 for student in students.values())
    return findings + [finding for what, check in OF_RUN.items() for finding in _examine(what, check, patient)]


def _examine(what: str, check: Check, patient: Patient) -> Iterator[Finding]:
    """A check's findings, under its own name where they have none; what it raises is one more."""
    try:
        yield from (replace(finding, what=finding.what or what) for finding in check(patient))
    except Exception as error:  # a doctor that falls over hides the rest
        yield failure(what, error)


def _ranks_of_launch(environ: "os._Environ[str]") -> int:
    for name in ("WORLD_SIZE", "SLURM_NTASKS"):
        if environ.get(name, "").isdigit():
            return int(environ[name])
    return max(1, torch.cuda.device_count())


def _check_software(patient: Patient) -> Iterator[Finding]:
    versions = [f"{package} {_version(package)}" for package in PACKAGES]
    yield Finding("ok", "software", ", ".join([f"python {sys.version.split()[0]}", *versions]))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _check_device(patient: Patient) -> Iterator[Finding]:
    yield from look_at_device(partial(advice_on_precision, patient.config))


def _check_batch(patient: Patient) -> Iterator[Finding]:
    train = patient.config.train
    plan = patient.batch = plan_batch(train.global_batch_size, train.micro_batch_size, patient.ranks)
    arithmetic = f"{plan.micro_batch_size} x {plan.world_size} ranks x {plan.grad_accum_steps} accumulation steps"
    check_batch_norm(patient.config, plan, over_ranks=True)  # as a GPU has it; this may be a login node
    yield Finding("ok", "batch", f"{plan.global_batch_size} = {arithmetic}")
    if patient.config.task == "moco_v3" and plan.grad_accum_steps > 1:
        keys = plan.micro_batch_size * plan.world_size
        why = "accumulation adds no negatives: raise train.micro_batch_size, or use more ranks"
        yield Finding("warn", "batch", f"moco_v3: {keys} keys instead of {plan.global_batch_size}: {why}")


def _check_engine(patient: Patient) -> Iterator[Finding]:
    if patient.batch is None:
        return  # what is wrong with it has been said
    path = find_ds_config(patient.config.train.deepspeed)
    patient.ds_config = resolve_student(path, patient.batch, patient.config.optim.clip_grad_norm)
    check_ds_config(path, patient.ds_config)
    stage, numbers = zero_stage(patient.ds_config), precision(patient.ds_config)
    yield Finding("ok", "", f"student: {path.name}, ZeRO stage {stage}, {numbers}")


def _check_student(patient: Patient) -> Iterator[Finding]:
    config = patient.config
    if config.task in ANNOTATED_TASKS and not patient.class_names:
        yield Finding("warn", "", "not built: fix the data problem above first; the head needs the class names")
        return
    frozen: Iterable[str] = ()
    if config.task in TEACHER_TASKS:
        module = student_of(config, patient.teachers)
    else:
        built = build_task(config, torch.device("cpu"), patient.class_names)
        module, frozen = built.task.module, built.frozen_until
    patient.num_parameters = sum(value.numel() for value in module.parameters() if value.requires_grad)
    patient.parameters = hash_of_parameters(module, frozen)
    yield Finding("ok", "", f"{config.student.arch}, {patient.num_parameters / 1e6:.1f} million trained parameters")


def _check_output(patient: Patient) -> Iterator[Finding]:
    train, folder = patient.config.train, Path(patient.config.output_dir).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        code = StorageError.exit_code if is_away(error) else DmtError.exit_code
        yield Finding("fail", "output", f"output_dir {folder}: can't write in {existing}: {error.strerror}", code)
        return
    free = shutil.disk_usage(existing).free / 2**30
    copies = train.keep_checkpoints + 1  # a new one is complete before the oldest goes
    need = (patient.num_parameters or 0) * BYTES_A_PARAMETER * copies / 2**30
    room = f"{free:.1f} GiB free, about {need:.1f} GiB for {copies} checkpoints"
    if free < need:
        yield Finding("fail", "output", f"{folder}: {room}: choose another output_dir, or train.keep_checkpoints=1")
    else:
        yield Finding("ok", "output", f"{folder}: {room}")


def _check_tracking(patient: Patient) -> Iterator[Finding]:
    section = patient.config.tracking
    if not section.enabled:
        yield Finding("ok", "tracking", "off; metrics go to metrics.jsonl")
        return
    from dmt_ds.tracking.mlflow_look import look_at_store

    answer, is_well = look_at_store(section, Path(patient.config.output_dir))
    yield Finding("ok" if is_well else "warn", "tracking", answer)


def _check_checkpoint(patient: Patient) -> Iterator[Finding]:
    config = patient.config
    checkpoint = CheckpointFolder(Path(config.output_dir) / CHECKPOINTS_FOLDER, config.train.keep_checkpoints).newest()
    if checkpoint is None:
        yield Finding("ok", "", "none: the run starts from scratch")
        return
    if config.train.resume == "never":
        yield Finding("fail", "", f"{checkpoint.folder} is there, train.resume is 'never': choose another output_dir")
        return
    teachers_are_missing = config.task in TEACHER_TASKS and len(patient.teachers) < len(config.teachers.used())
    if patient.ds_config is None or patient.source is None or patient.parameters is None or teachers_are_missing:
        yield Finding("warn", "", f"{checkpoint.folder}: not compared: fix the failures above first")
        return
    saved, sources = checkpoint.state, {name: teacher.record for name, teacher in patient.teachers.items()}
    if config.student.init_from is not None:
        sources["init_from"] = load_encoder(config.student.init_from, image_size_of_start(config)).record
    now = checkpoint_state(
        config, patient.ds_config, sources, patient.source.fingerprint, patient.parameters, patient.ranks
    )
    yield from (Finding("warn", "", f"{checkpoint.folder}: {line}") for line in refuse_another_run(checkpoint, now))
    moved = f", converted from {saved.world_size} to {patient.ranks} ranks" if saved.world_size != patient.ranks else ""
    yield Finding("ok", "", f"resumes from {checkpoint.folder} (step {saved.step}{moved})")


OF_ALL: dict[str, Check] = {
    "software": _check_software,
    "device": _check_device,
    "batch": _check_batch,
    "defaults": lambda patient: look_at_defaults(patient.config),
    "data": check_data,
    "teachers": check_teachers,
}
OF_STUDENTS: dict[str, Check] = {"deepspeed": _check_engine, "student": _check_student, "checkpoint": _check_checkpoint}
"""Of each member, where the run is a family."""
OF_RUN: dict[str, Check] = {"output": _check_output, "tracking": _check_tracking}
"""After those, with the parameters of all students."""
