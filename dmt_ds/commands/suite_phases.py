"""The commands that make one run of a suite, one after the other; starts none."""

from dataclasses import dataclass

from dmt_ds.commands.suite_state import is_judged, is_trained, left_of
from dmt_ds.config.suite_run import SuiteRun


@dataclass(frozen=True)
class Phase:
    """One phase of a suite.

    Attributes:
        name: of the command.
        arguments: of the command.
        doing: what lines for people call it.
        on_all_ranks: whether it trains.
    """

    name: str
    arguments: tuple[str, ...]
    doing: str
    on_all_ranks: bool = True


def next_phase(run: SuiteRun) -> Phase | None:
    """What comes next; None where the run is finished."""
    if not is_trained(run):
        return Phase("pretrain", ("-c", run.recipe, *run.overrides), "training")
    if not is_judged(run):
        return Phase("evaluate", ("-e", str(run.folder)), "evaluation", on_all_ranks=False)
    return next((Phase(left.kind.name, left.arguments, left.kind.doing) for left in left_of(run)), None)
