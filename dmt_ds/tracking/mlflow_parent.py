"""The run under which others stand: found by its name, made once however many ask at the same moment; keeps no points.

MLflow has nothing that only one of several can make, so each makes its own, waits until the others' are to be seen, and
all keep the same one: the oldest. That one is marked, and what is marked wins: a slow client's may be seen later, with
an earlier time.
"""

import getpass
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PARENT_TAG = "mlflow.parentRunId"
PARENT_OF_TAG = "dmt_ds.parent_of"
"""Stands on a parent, and holds the name by which it is found."""
SETTLED_TAG = "dmt_ds.parent_settled"
"""Stands on the one that others keep."""
_SETTLE_SECONDS = 1.0
_SETTLE_FACTOR = 3.0


def parent_id(client: "MlflowClient", experiment_id: str, name: str, alone: bool) -> str:
    """The parent of that name in an experiment.

    Args:
        client: of the store.
        experiment_id: where it stands.
        name: of the parent.
        alone: whether a lock keeps everyone else from making one meanwhile.
    """
    found = runs_above(client, experiment_id, name)
    if found and (alone or SETTLED_TAG in found[0].data.tags):
        return str(found[0].info.run_id)
    began = time.monotonic()
    tags = {PARENT_OF_TAG: name, **origin_tags(), **({SETTLED_TAG: "true"} if alone else {})}
    own = str(client.create_run(experiment_id, None, tags, name).info.run_id)
    if alone:
        return own
    # Whoever saw none before ours was there has made his own by then, unless he is much slower than we were.
    time.sleep(_SETTLE_SECONDS + _SETTLE_FACTOR * (time.monotonic() - began))
    seen = runs_above(client, experiment_id, name)
    kept = str(seen[0].info.run_id) if seen else own
    if kept == own:  # its maker alone marks it: a server refuses a tag that many give at the same moment
        client.set_tag(own, SETTLED_TAG, "true")
    else:
        client.delete_run(own)
    return kept


def describe_parent(client: "MlflowClient", run_id: str, tags: Mapping[str, str], status: str) -> None:
    """Say what stands under it, and how far that is."""
    for key, value in tags.items():
        client.set_tag(run_id, key, value)
    set_status(client, run_id, status)


def set_status(client: "MlflowClient", run_id: str, status: str, time_ms: int | None = None) -> None:
    """Write a run's state; what ends it is given an end: that moment, or now."""
    if status == "RUNNING":
        client.update_run(run_id, status=status)
    else:
        client.set_terminated(run_id, status, end_time=time_ms)


def follow_children(client: "MlflowClient", experiment_id: str, run_id: str) -> None:
    """Give a parent the state that its runs add up to: RUNNING while one is, then FAILED or KILLED if one is.

    Runs end in processes that don't know each other: looked at once more after each change, until nothing moved.
    """
    status = None
    while (now := _status_of_children(client, experiment_id, run_id)) not in (None, status):
        status = now
        set_status(client, run_id, status)


def _status_of_children(client: "MlflowClient", experiment_id: str, run_id: str) -> str | None:
    """None without children."""
    found = {str(run.info.status) for run in _runs_below(client, experiment_id, run_id)}
    return next((status for status in ("RUNNING", "FAILED", "KILLED", "FINISHED") if status in found), None)


def origin_tags() -> dict[str, str]:
    """What and who made a run."""
    return {"mlflow.source.name": "dmt-ds", "mlflow.user": _user()}


def _user() -> str:
    """Jobs and containers may lack the variable, and a machine may not know the name of a number."""
    try:
        return os.environ.get("USER") or getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def runs_above(client: "MlflowClient", experiment_id: str, name: str) -> "list[Run]":
    """Runs that stand for that name: what is settled first, then the oldest."""
    found = client.search_runs([experiment_id], f"tags.`{PARENT_OF_TAG}` = '{name}'", max_results=1000)
    return sorted(found, key=lambda run: (SETTLED_TAG not in run.data.tags, run.info.start_time, run.info.run_id))


def parent_of_copies(client: "MlflowClient", experiment_id: str, name: str, origin_tag: str) -> "Run | None":
    """A parent that was made for copies of runs: it is no copy itself, and all that stands under it are.

    Args:
        origin_tag: what copies have.
    """
    for above in runs_above(client, experiment_id, name):
        below = _runs_below(client, experiment_id, above.info.run_id)
        if origin_tag not in above.data.tags and below and all(origin_tag in run.data.tags for run in below):
            return above
    return None


def _runs_below(client: "MlflowClient", experiment_id: str, run_id: str) -> "list[Run]":
    return list(client.search_runs([experiment_id], f"tags.`{PARENT_TAG}` = '{run_id}'", max_results=1000))
