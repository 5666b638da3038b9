"""The images of a run to come, their annotations, and the length that follows; knows no teacher and no engine."""

from collections.abc import Iterator

from dmt_ds.commands.annotations.annotated_tasks import kind_of
from dmt_ds.commands.checks.findings import Finding, failure
from dmt_ds.commands.checks.image_check import look_at_images
from dmt_ds.commands.checks.patient import Patient
from dmt_ds.commands.training.runs import open_images
from dmt_ds.config.batch import plan_length
from dmt_ds.config.schema import RunConfig
from dmt_ds.data.sources import ImageSource, left_out, open_source
from dmt_ds.errors import DataError


def check_data(patient: Patient) -> Iterator[Finding]:
    """Both splits, decoded in part or whole, and the number of steps."""
    config = patient.config
    kind = kind_of(config)
    yield from (Finding("warn", config.task, line) for line in (kind.doubts(config) if kind else ()))
    source = patient.source = kind.source(config, "train") if kind else open_source(config.data, "train")
    classes = f", {len(source.class_names)} classes" if source.class_names else ", no labels"
    yield Finding("ok", "data", f"{len(source)} training images{classes}")
    yield from _check_left_out(source)
    yield from _check_decoding(source, patient.every_image)
    yield from _check_length(config, len(source))
    if kind:
        images = kind.open(config)  # raises DataError: no annotations, no validation split
        patient.class_names = images.class_names
        yield from (Finding("ok", "data", line) for line in kind.meaning(images))
        yield from (Finding("warn", "data", line) for line in kind.gaps(images))
    elif config.train.eval_every_epochs:
        open_images(config)  # raises DataError: no labels, where the run is to be judged by k-NN
    try:
        source = kind.source(config, "val") if kind else open_source(config.data, "val")
    except DataError as error:
        yield Finding("warn", "data", f"needed for k-NN only: {error}")
        return
    yield Finding("ok", "data", f"{len(source)} validation images")
    yield from _check_left_out(source)
    if patient.every_image:
        yield from _check_decoding(source, every_image=True)


def _check_length(config: RunConfig, num_images: int) -> Iterator[Finding]:
    batch, length = config.train.global_batch_size, plan_length(config.train, config.optim, num_images)
    if batch > num_images:
        often = f"each is seen {batch / num_images:.3g} times in an update"
        remedy = f"train.global_batch_size={num_images} or less is usual"
        yield Finding("warn", "batch", f"{batch} images an update of {num_images} training images: {often}; {remedy}")
    epochs = length.total_steps * batch / num_images
    steps = f"{length.total_steps} steps ({epochs:.4g} epochs), {length.warmup_steps} of them warm-up"
    if length.warmup_steps >= length.total_steps:
        yield Finding("warn", "length", f"{steps}: the learning rate never peaks; optim.warmup_steps=...")
    else:
        yield Finding("ok", "length", steps)


def _check_left_out(source: ImageSource) -> Iterator[Finding]:
    if line := left_out(source):
        yield Finding("warn", "data", line)


def _check_decoding(source: ImageSource, every_image: bool) -> Iterator[Finding]:
    count, broken = look_at_images(source, every_image)
    yield from (failure("data", error) for error in broken)
    if not broken:
        yield Finding("ok", "data", f"{count} images from first to last decode")
