"""MLflow's own pages show a suite: a real server, a real browser."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests import processes, tiny_suite
from tests.browser import PROGRAM, Page, with_page
from tests.tracking.stores import Server

METRICS = ("eval/knn_top1", "eval/linear_top1", "train/loss")

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(PROGRAM is None, reason="no chromium-headless-shell (Debian's package of that name)"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """A server on the store of a suite of two runs."""
    folder = tmp_path_factory.mktemp("pages")
    variants = {"dmt": {"recipe": "maker.yaml"}, "untrained": {"recipe": "maker.yaml", "set": {"train.steps": 0}}}
    suite = tiny_suite.write_suite(folder, seeds=[0], set=None, teachers=None, tune=None, variants=variants, paper=None)
    processes.run(tiny_suite.command(suite), timeout=900)
    server = Server(folder / "out")
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def runs(server) -> dict[str, str]:
    """Name -> id of the suite's runs, its parent too."""
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    return {run.info.run_name: run.info.run_id for run in client.search_runs([experiment_of(client)])}


def experiment_of(client: Any) -> str:
    return str(client.get_experiment_by_name("tiny").experiment_id)


UNFOLD = """(() => {
    const link = [...document.querySelectorAll('[role=gridcell] a')].find(link => link.innerText.trim() === 'tiny');
    const button = link && link.closest('[role=gridcell]').querySelector('button');
    if (button) button.click();
    return Boolean(button);
})()"""
"""Shows the runs under the parent in the list of runs; whether its button was there."""


def test_the_chart_view_of_the_experiment_draws_the_metrics_of_every_run(server, runs, tmp_path):
    from mlflow import MlflowClient

    async def visit(page: Page) -> None:
        experiment = experiment_of(MlflowClient(server.uri))
        await page.open(f"{server.uri}/#/experiments/{experiment}/runs?compareRunsMode=CHART")
        await page.wait_for("tiny")
        await page.wait_until(UNFOLD)
        await page.wait_for(*runs, *METRICS)

    assert {"tiny", "dmt-seed0", "untrained-seed0"} == runs.keys()
    with_page(tmp_path, visit, size=(2400, 6000))


def test_the_address_that_the_server_tells_opens_the_runs(server, runs, tmp_path):
    from mlflow import MlflowClient

    async def visit(page: Page) -> str:
        await page.open(
            f"{server.uri}/#/experiments/{experiment_of(MlflowClient(server.uri))}?workflowType=machine_learning"
        )
        await page.wait_for("Run Name", "tiny")
        return str(await page.evaluate("location.hash"))

    assert "/runs?" in with_page(tmp_path, visit)


def test_the_compare_page_puts_parameters_and_metrics_of_two_runs_side_by_side(server, runs, tmp_path):
    from mlflow import MlflowClient

    async def visit(page: Page) -> None:
        compared, experiments = json.dumps(list(runs.values())), json.dumps([experiment_of(MlflowClient(server.uri))])
        await page.open(f"{server.uri}/#/compare-runs?runs={quote(compared)}&experiments={quote(experiments)}")
        await page.wait_for("Comparing 3 Runs", *runs, "optim.base_lr", "train.steps", *METRICS)

    with_page(tmp_path, visit, size=(2400, 6000))
