"""`dmt-ds mlflow`: copies runs between tracking stores."""

from collections.abc import Callable, Sequence

from dmt_ds.tracking.mlflow_sync import sync


def run_sync(source: str, target: str, experiments: Sequence[str], say: Callable[[str], None]) -> None:
    """Copy runs, and say a line a run.

    Raises:
        TrackingError: a store doesn't answer, or refused something.
    """
    num_runs = num_changed = 0
    for outcome in sync(source, target, experiments):
        say(str(outcome))
        num_runs += 1
        num_changed += bool(outcome.changes)
    say(f"runs: {num_runs}, changed: {num_changed}")
