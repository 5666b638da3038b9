"""The runs that a family stands for: each member as the recipe would be that trains it alone."""

from dmt_ds.config.schema import RunConfig


def member_runs(config: RunConfig) -> dict[str, RunConfig]:
    """Name -> whole run of each member, in the recipe's order; none where the run is no family.

    A member's folder lies in the family's, its name is its own, and its MLflow run stands under the family's.
    """
    tracking = config.tracking.model_copy(
        update={"parent": config.tracking.parent or config.tracking.run_name or config.name, "run_name": None}
    )
    return {
        name: config.model_copy(
            update={
                "name": name,
                "output_dir": f"{config.output_dir}/{name}",
                "family": {},
                "student": member.student,
                "optim": member.optim,
                "train": config.train.model_copy(update={"deepspeed": member.deepspeed}),
                "tracking": tracking,
            }
        )
        for name, member in config.family.items()
    }
