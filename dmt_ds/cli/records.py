"""The commands on what runs left in MLflow: mlflow sync."""

import click

from dmt_ds.cli.parts import examples


@click.group(short_help="Copy runs between MLflow stores.")
def mlflow() -> None:
    """Runs in MLflow, where they have to move."""


@mlflow.command(
    "sync",
    epilog=examples(
        "dmt-ds mlflow sync runs http://127.0.0.1:5000 --experiment dmt_ds",
        "dmt-ds mlflow sync runs/a/mlflow.db all.db",
    ),
)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option("--experiment", "experiments", multiple=True, metavar="NAME", help="This one alone; repeatable.")
def mlflow_sync(source: str, target: str, experiments: tuple[str, ...]) -> None:
    """Copy runs into a store; called again, it adds only what is new.

    SRC is a store (URI, or SQLite file) or a folder of run folders whose nodes reached no store. DST is a store: a URI,
    or an SQLite file, which is made where it is missing if its name ends in .db, .sqlite or .sqlite3.
    Parameters, tags, metrics with their times and steps, data sets, artifacts, status, parents. Deletes nothing.
    """
    from dmt_ds.commands import mlflow as command

    command.run_sync(source, target, experiments, say=click.echo)
