"""Taking the folders of a run, or of a family, over: refused while nothing is touched, then claimed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dmt_ds.commands.training.record import keep, run_state
from dmt_ds.commands.training.resume import ResumePlan, plan_resume, prepare
from dmt_ds.commands.training.runs import Run
from dmt_ds.commands.training.tasks import BuiltTask
from dmt_ds.config.load import to_yaml
from dmt_ds.config.schema import RunConfig
from dmt_ds.engine import dist
from dmt_ds.engine.checkpoints.checkpoint import CheckpointFolder
from dmt_ds.engine.checkpoints.checkpoint_group import CheckpointGroup
from dmt_ds.engine.checkpoints.fence import Fence
from dmt_ds.run_files import CHECKPOINTS_FOLDER, LATEST_FILE, SETTINGS_FILE


@dataclass(frozen=True)
class ClaimedRun:
    """A run, or a member of a family, that this attempt writes."""

    run: Run
    built: BuiltTask
    checkpoints: CheckpointFolder
    resume: ResumePlan | None
    fence: Fence | None
    """On rank 0."""


@dataclass(frozen=True)
class Attempt:
    """All that this start writes."""

    members: tuple[ClaimedRun, ...]
    """One, where the run is no family."""
    checkpoints: CheckpointGroup
    step: int
    """Where all members stand."""

    def check_fences(self) -> None:
        """Go on only as long as nobody else has claimed any of the folders; all ranks call.

        Raises:
            CheckpointError: names the newer attempt.
            PeerFailedError: on the other ranks.
        """

        def check() -> None:
            for member in self.members:
                if member.fence is not None:
                    member.fence.check()

        dist.decided_by_main(check)


def take_over(config: RunConfig, runs: Sequence[Run], builts: Sequence[BuiltTask]) -> Attempt:
    """Claim what the start will write, and find where it goes on; all ranks call.

    Raises:
        CheckpointError: what lies there is of another run; nothing was touched.
    """
    now = [run_state(run, built, 0, None) for run, built in zip(runs, builts, strict=True)]
    looked_at, _ = _checkpoints(config, runs, None, [None] * len(runs))
    plan_resume(looked_at, now, config.train.resume, warns=False)
    family, fences = dist.decided_by_main(lambda: _claim(config, runs))
    group, folders = _checkpoints(config, runs, family, fences)
    plans = plan_resume(group, now, config.train.resume)  # an older attempt may have saved until now
    for plan in plans or ():
        prepare(plan, dist.world_size())
    if dist.is_main():
        keep(Path(config.output_dir), SETTINGS_FILE, to_yaml(config), family)
        for run, fence in zip(runs, fences, strict=True):
            if run.member:
                keep(run.folder, SETTINGS_FILE, to_yaml(run.config), fence)
    members = tuple(
        ClaimedRun(run, built, folders[n], plans[n] if plans else None, fences[n] if dist.is_main() else None)
        for n, (run, built) in enumerate(zip(runs, builts, strict=True))
    )
    return Attempt(members, group, plans[0].checkpoint.state.step if plans else 0)


def _claim(config: RunConfig, runs: Sequence[Run]) -> tuple[Fence, list[Fence]]:
    """(the family's, each member's) claim; both are the same where the run is alone.

    A member's folder is claimed too: `dmt-ds pretrain` may go on with a member alone. Of two attempts at a family that
    start in the same moment the newer one takes all, for the older one sees that before it takes the next folder.
    """
    own = Fence.claim(Path(config.output_dir))
    if not config.family:
        return own, [own]
    members = []
    for run in runs:
        own.check()
        members.append(Fence.claim(run.folder))
    return own, members


def _checkpoints(
    config: RunConfig, runs: Sequence[Run], family: Fence | None, fences: Sequence[Fence | None]
) -> tuple[CheckpointGroup, list[CheckpointFolder]]:
    keep = config.train.keep_checkpoints
    folders = [
        CheckpointFolder(run.folder / CHECKPOINTS_FOLDER, keep, fence) for run, fence in zip(runs, fences, strict=True)
    ]
    mark = Path(config.output_dir) / CHECKPOINTS_FOLDER / LATEST_FILE if config.family else None
    return CheckpointGroup(folders, mark, family), folders
