"""Which settings of a run to lower when a rank has too little memory."""

from dmt_ds.config.schema import TEACHER_TASKS, RunConfig


def what_to_lower(config: RunConfig) -> str:
    """The settings in the order in which to try them, each with what it costs."""
    micro_batch = config.train.micro_batch_size
    ways = []
    if micro_batch > 1:
        ways.append(
            f"lower train.micro_batch_size (now {micro_batch}; accumulation follows, the global batch stays the same)"
        )
    if config.task in TEACHER_TASKS:
        if config.teachers.sharding != "zero3":
            ways.append("set teachers.sharding=zero3")
        elif config.teachers.shard_over != "world":
            ways.append("set teachers.shard_over=world")
        ways.append("set teachers.deepspeed=teacher_zero3_cpu_offload")
    ways += ["lower data.num_workers if the host's memory is full", "use more or larger GPUs (`dmt-ds plan`)"]
    return "; or ".join(ways)
