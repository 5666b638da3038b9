"""Signals that ask for a save and a clean end; what a run does then: `tests.integration.test_stopping`."""

import signal
from collections.abc import Iterator

import pytest

from dmt_ds.engine.ranks.stopping import StopRequest

ASKING = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


@pytest.fixture
def own_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in ASKING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("own_signals")
@pytest.mark.parametrize("first", ASKING)
def test_one_signal_asks_and_later_ones_are_ignored_but_a_ctrl_c_that_means_it(first: signal.Signals) -> None:
    stop = StopRequest().install()
    assert not stop.requested and stop.name == "another rank's signal"
    for number in (first, signal.SIGUSR1, signal.SIGTERM):
        signal.raise_signal(number)
        assert stop.requested and stop.name == first.name
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
