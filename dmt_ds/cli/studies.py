"""The commands on several runs at once: suite, compare."""

import os
from collections.abc import Mapping
from pathlib import Path

import click

from dmt_ds.cli.parts import examples, overrides_argument

STAGES = ("teachers", "tune", "seeds", "finetune", "segment", "detect")
"""Of a suite on SLURM, as `suite_slurm` has them, which the command line does not import to know."""


@click.command(
    short_help="Train variants of a recipe, with seeds, teachers and tuning, in one go.",
    epilog=examples(
        "dmt-ds suite small_study data.path=data/imagenette112 --jobs 2",
        "dmt-ds suite small_study --list",
        "dmt-ds suite my_suite.yaml -o runs/trial --only dmt --only untrained train.epochs=2",
    ),
)
@click.argument("suite")
@overrides_argument
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the runs; default: runs/NAME.")
@click.option(
    "--jobs", type=click.IntRange(min=1), help="Runs at a time; default: 1 on this machine, all in a SLURM array."
)
@click.option("--ranks", type=click.IntRange(min=1), help="Processes of each training on this machine; default: 1.")
@click.option(
    "--only", multiple=True, metavar="VARIANT", help="Run only this variant or teacher and what it needs; repeatable."
)
@click.option("--list", "lists", is_flag=True, help="Show the progress of each run without starting anything.")
@click.option(
    "--dry-run", "looks", is_flag=True, help="Run all checks that need no training, then print what --list prints."
)
@click.option("--slurm", "prints", is_flag=True, help="Print the sbatch commands: one array per stage.")
@click.option("--submit", "submits", is_flag=True, help="Submit these arrays.")
@click.option(
    "--sbatch",
    "options",
    multiple=True,
    metavar="OPTION",
    help="Option for sbatch, such as --nodes=2 or finetune:--nodes=1; repeatable.",
)
@click.option("--stage", type=click.Choice(STAGES), default="seeds", hidden=True)
@click.option("--print-run", "number", type=click.IntRange(min=0), hidden=True)
@click.option("--numbered", "mark", hidden=True)
def suite(
    suite: str,
    overrides: tuple[str, ...],
    output: Path | None,
    jobs: int | None,
    ranks: int | None,
    only: tuple[str, ...],
    lists: bool,
    looks: bool,
    prints: bool,
    submits: bool,
    options: tuple[str, ...],
    stage: str,
    number: int | None,
    mark: str | None,
) -> None:
    """Train and evaluate every variant of SUITE with every seed: teachers first, then tuning, then the seeds.

    If SUITE has `finetune:`, `segment:` or `detect:`, with a recipe and overrides, each encoder is then trained on
    labels, under UPerNet, or under a detector. They can be added to a suite whose runs are finished; only they are
    then run.

    SUITE is the name of a shipped suite or a YAML file. Called again, the command keeps what is finished and resumes
    what was saved. Ctrl-C saves all runs in progress.
    """
    action = _action({"--list": lists, "--dry-run": looks, "--slurm": prints, "--submit": submits})
    _refuse_unused(action, jobs, ranks, options)
    from dmt_ds.commands.suites import suite as command
    from dmt_ds.commands.suites import suite_slurm

    plan = command.open_plan(suite, overrides, output)
    runs = command.select(plan, only)
    if number is not None:
        click.echo("\n".join(suite_slurm.arguments_of(plan, runs, stage, number, mark)))
    elif action in ("--list", "--dry-run"):
        if looks:
            command.look_before(plan, runs, ranks or 1)
        click.echo(command.table(plan, runs))
    elif action is None:
        command.run(plan, runs, jobs or 1, ranks or 1, say=click.echo)
    elif action == "--slurm":
        suite_slurm.show(suite_slurm.arrays(plan, runs, only, jobs, options), say=click.echo)
    else:
        suite_slurm.submit(plan, runs, suite_slurm.arrays(plan, runs, only, jobs, options), say=click.echo)


def _action(asked_for: Mapping[str, bool]) -> str | None:
    """The one thing to do in place of running the suite here; None for none.

    Args:
        asked_for: option -> whether it is given.

    Raises:
        click.UsageError: several are asked for.
    """
    actions = [option for option, is_given in asked_for.items() if is_given]
    if len(actions) > 1:
        raise click.UsageError(f"{' and '.join(actions)}: choose one of them")
    return next(iter(actions), None)


def _refuse_unused(action: str | None, jobs: int | None, ranks: int | None, options: tuple[str, ...]) -> None:
    """An option that the action has no use for was meant for another one.

    Raises:
        click.UsageError: there is one.
    """
    on_slurm = action in ("--slurm", "--submit")
    if options and not on_slurm:
        raise click.UsageError(
            f"--sbatch={options[0]}: works only with --slurm or --submit; add one of them, or take it out"
        )
    if ranks is not None and on_slurm:
        meant = f"with {action} give --sbatch=--ntasks-per-node={ranks}"
        raise click.UsageError(f"--ranks {ranks}: is for runs on this machine; {meant}, or take it out")
    for option, value, uses in (("--ranks", ranks, action != "--list"), ("--jobs", jobs, on_slurm or action is None)):
        if value is not None and not uses:
            raise click.UsageError(f"{option} {value}: has no effect with {action}: take it out")


@click.command(
    short_help="Tabulate runs: mean and deviation over seeds, budget, plots.",
    epilog=examples(
        "dmt-ds compare runs/small_study",
        "dmt-ds compare small_study --uri http://127.0.0.1:5000 --metric eval/knn_top1 --metric eval/linear_top1",
        "dmt-ds compare dmt_ds --by distill.fusion -o fusions --log fusion_table",
    ),
)
@click.argument("experiment", required=False)
@click.option("--suite", metavar="NAME", help="Compare only this suite, if the experiment has several.")
@click.option(
    "--uri", metavar="STORE", help="MLflow store; default: MLFLOW_TRACKING_URI, else mlflow.db, else runs/mlflow.db."
)
@click.option(
    "--metric", "metrics", multiple=True, metavar="NAME", help="Metric to show; repeatable; default: all scores."
)
@click.option("--by", default="variant", show_default=True, metavar="KEY", help="One row per value of this setting.")
@click.option(
    "--roles", multiple=True, metavar="ROLE", help="Role to show: variant (default), teacher, tune; repeatable."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Output folder; default: EXPERIMENT/compare if EXPERIMENT is a folder, else compare_NAME.",
)
@click.option(
    "--log", metavar="RUN", help="Run to save the table with, or none. Default: the suite's parent run, if any."
)
def compare(
    experiment: str | None,
    suite: str | None,
    uri: str | None,
    metrics: tuple[str, ...],
    by: str,
    roles: tuple[str, ...],
    output: Path | None,
    log: str | None,
) -> None:
    """Compare the finished runs of an MLflow experiment: a row per variant, mean ± standard deviation over seeds.

    EXPERIMENT is a name, or a folder with mlflow.db in it, such as a suite's; default: the only one that has runs. Runs
    that no suite has started are grouped by their names without -seedN. Failed and unfinished runs are named and left
    out. Scores are in percent.

    The command saves compare.md, compare.csv (a line per run), compare.json, bars and curves, and also keeps them with
    the suite's parent run, as artifacts in compare/. For an experiment without a suite, and with --metric, --by,
    --roles or -o, it does that only if --log names a run.
    """
    from dmt_ds.commands import compare as command

    question = command.Question(experiment, suite, uri, metrics, by, roles, output, log)
    command.run(question, os.environ, say=click.echo)
