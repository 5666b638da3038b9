"""The commands on several runs at once: suite."""

from pathlib import Path

import click

from dmt_ds.cli.parts import examples, overrides_argument


@click.command(
    short_help="Variants of a recipe, with seeds, teachers and tuning, in one go.",
    epilog=examples(
        "dmt-ds suite small_study data.path=data/imagenette112 --jobs 2",
        "dmt-ds suite small_study --list",
        "dmt-ds suite my_suite.yaml -o runs/trial --only dmt --only untrained train.epochs=2",
    ),
)
@click.argument("suite")
@overrides_argument
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the runs; default: runs/NAME.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at a time.")
@click.option("--ranks", type=click.IntRange(min=1), default=1, show_default=True, help="Processes of each training.")
@click.option("--only", multiple=True, metavar="VARIANT", help="This one, and what it needs; again for several.")
@click.option("--list", "only_list", is_flag=True, help="Say how far each run is, and start nothing.")
def suite(
    suite: str,
    overrides: tuple[str, ...],
    output: Path | None,
    jobs: int,
    ranks: int,
    only: tuple[str, ...],
    only_list: bool,
) -> None:
    """Train and evaluate every variant of SUITE with every seed: teachers first, then tuning, then the seeds.

    SUITE is the name of a shipped suite or a YAML file. Called again it keeps what is finished and goes on with what
    was saved. Ctrl-C saves all runs that are under way.
    """
    from dmt_ds.commands import suite as command

    plan = command.open_plan(suite, overrides, output)
    if only_list:
        click.echo(command.table(plan, only))
        return
    command.run(plan, only, jobs, ranks, say=click.echo)
