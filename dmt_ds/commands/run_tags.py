"""Which part of the work a run is, and from which other run it comes, as its tags in MLflow say."""

from dmt_ds.commands.annotated_tasks import kind_of
from dmt_ds.commands.run_folder import run_of, settings_of
from dmt_ds.config.schema import TEACHER_TASKS, RunConfig
from dmt_ds.tracking.spool import known_run


def stage_of(config: RunConfig) -> str:
    """Which part of the work a run is, for MLflow: `distill`, `pretrain`, `linear`, `finetune`, ..."""
    if config.task in TEACHER_TASKS:
        return "distill"
    kind = kind_of(config)
    return "pretrain" if kind is None else kind.stage(config)


def origin_tags(source: str) -> dict[str, str]:
    """Tags by which a run is found from the one that its weights come from, and the other way round."""
    run = run_of(source)
    if run is None:
        return {"init_from": source}
    run_id = known_run(run)
    found = {"init_from": source, "init_from.run_name": settings_of(run).name}
    return found if run_id is None else {**found, "init_from.run_id": run_id}
