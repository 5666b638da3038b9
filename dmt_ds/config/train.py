"""Settings of the loop: length, batch, what is saved and logged, and when a run goes on, stops or is refused."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmt_ds.config.section import Count, NonNegative, Positive, Section, check_range


class TrainConfig(Section):
    """Length, batch, engine, and what is kept."""

    epochs: Positive | None = 300.0
    """Passes over the data; give this or `steps`."""
    steps: Annotated[int, Field(ge=0)] | None = None
    """Optimizer updates; overrides `epochs`. 0 leaves the encoder as initialised: the untrained baseline."""
    global_batch_size: Count = 4096
    """Images per update, exactly, over all ranks and accumulation steps."""
    micro_batch_size: Count = 128
    """Images per rank and forward pass; the number of accumulation steps is derived from it."""
    deepspeed: str = "student_zero2_bf16"
    """DeepSpeed JSON of the student: a name in ds_configs/ or a path. It sets ZeRO stage, precision and offload."""
    log_every_steps: Count = 20
    """Steps between two points in the log and in MLflow; only then are metrics read from the device."""
    save_every_steps: Count = 1000
    """Steps between two checkpoints; one is also saved at the end, and on a signal."""
    eval_every_epochs: NonNegative = 0.0
    """Passes over the data between two evaluations on the validation images; 0 has none on the way. Tasks that learn
    from labels are judged by their own scores, at the end always. Encoders of the other tasks are judged by k-NN
    (`knn.k`, `knn.temperature`) before the first step, every so often and at the end; each time all ranks together read
    all images of both splits, which need labels."""
    keep_checkpoints: Count = 2
    """Complete checkpoints to keep on disk."""
    resume: Literal["auto", "never"] = "auto"
    """`auto` resumes from the newest complete checkpoint in output_dir; `never` refuses to start if there is one."""
    accept_changes: tuple[Literal["code", "recipe", "teachers", "data"], ...] = ()
    """Differences to accept when resuming. Any other change of code, recipe, teachers or data is refused, and the
    difference is shown."""
    stop_after_step: Count | None = None
    """Save and exit after this step of the run without changing its schedule, to train in slices. If the step has been
    reached already, exit at once."""
    hang_timeout_seconds: Positive = 1800.0
    """If a rank makes no step for this many seconds, it dumps all stacks and ends the job."""
    compile: bool = False
    """torch.compile the student; has no effect where it can't run (no CUDA, or a node without a C compiler) and for
    task tinymim."""
    deterministic: bool = False
    """Use only kernels that give the same bits each time; an operation that has none is an error. Slower on CUDA. Such
    a run resumes with other versions of libraries only if accept_changes has `code`."""
    profile_steps: tuple[Count, Count] | None = None
    """First and last update that rank 0 profiles: a trace, and a table of where the time went, in `profile/`."""

    @model_validator(mode="after")
    def _profiled_steps_in_order(self) -> "TrainConfig":
        if self.profile_steps is not None:
            check_range("profile_steps", self.profile_steps)
        return self

    @model_validator(mode="after")
    def _length_is_given(self) -> "TrainConfig":
        if self.epochs is None and self.steps is None:
            raise ValueError("neither epochs nor steps is given; set one, e.g. train.epochs=300")
        return self
