"""The commands on what runs left in MLflow: mlflow sync."""

import click

from dmt_ds.cli.parts import examples


@click.group(short_help="Copy runs between MLflow stores.")
def mlflow() -> None:
    """Copy runs between MLflow stores."""


@mlflow.command(
    "sync",
    epilog=examples(
        "dmt-ds mlflow sync runs http://127.0.0.1:5000 --experiment dmt_ds",
        "dmt-ds mlflow sync runs/a/mlflow.db all.db",
    ),
)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option(
    "--experiment", "experiments", multiple=True, metavar="NAME", help="Copy only this experiment; repeatable."
)
def mlflow_sync(source: str, target: str, experiments: tuple[str, ...]) -> None:
    """Copy runs into a store; called again, it adds only what is new.

    SRC is a store (URI, or SQLite file) or a folder of run folders whose nodes reached no store. DST is a store: a URI,
    or an SQLite file, which is created if it is missing and its name ends in .db, .sqlite or .sqlite3. Copies
    parameters, tags, metrics with times and steps, data sets, artifacts, status and parents. Deletes nothing.
    """
    from dmt_ds.tracking.mlflow_sync import sync

    num_runs = num_changed = 0
    for outcome in sync(source, target, experiments):
        click.echo(outcome)
        num_runs += 1
        num_changed += bool(outcome.changes)
    click.echo(f"runs: {num_runs}, changed: {num_changed}")
