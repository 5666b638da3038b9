"""Checkpoints of models that are trained together: a step counts once all of them have it; knows no engine."""

import logging
from collections.abc import Sequence
from pathlib import Path

from dmt_ds.engine import dist
from dmt_ds.engine.checkpoints.checkpoint import Checkpoint, CheckpointFolder, read_run_state, tag_of, unusable
from dmt_ds.engine.checkpoints.fence import Fence
from dmt_ds.engine.checkpoints.manifest import damage, num_bytes, saved_in
from dmt_ds.errors import CheckpointError
from dmt_ds.storage import unwritten
from dmt_ds.tracking.journal import remove_leftovers, write_atomically

logger = logging.getLogger(__name__)


class CheckpointGroup:
    """The checkpoint folders of a family's members, or of one model alone.

    Members save one after the other, and nothing old goes before all have saved: a kill at any moment leaves a step
    that all have, unless it comes within the first save of all.
    """

    def __init__(
        self, folders: Sequence[CheckpointFolder], mark: Path | None = None, fence: Fence | None = None
    ) -> None:
        """Nothing is touched yet.

        Args:
            folders: the members', in their order.
            mark: file of a family's that names the newest step that all have; None where there is one model.
            fence: rank 0's claim on the folder of the mark.
        """
        self._folders = tuple(folders)
        self._mark = mark
        self._fence = fence

    def newest(self) -> list[Checkpoint] | None:
        """Each member's checkpoint of the newest step that all have; None where there is none to go on from.

        Raises:
            CheckpointError: all had one, as the mark says, and now some member has not; or all were damaged.
            StorageError: one can't be read: to go on from an older one would give up what may be whole.
        """
        tags = [[folder.name for folder in member.complete()] for member in self._folders]
        common = set(tags[0]).intersection(*tags)
        for tag in sorted(common, reverse=True):
            if self._is_sound(tag):
                return [self._read(member, tag, own) for member, own in self._with(tags)]
        if common:
            raise CheckpointError(
                f"{self._folders[0].folder}: all checkpoints are damaged ({', '.join(sorted(common))}): the disk or a "
                "copy has changed them. Restore one, or choose another output_dir"
            )
        if self._mark is None:
            self._refuse_to_forget(self._folders[0].folder)
        if not any(tags) or self._mark is None:
            return None
        found = "; ".join(f"{member.folder}: {', '.join(own) or 'none'}" for member, own in self._with(tags))
        if num_bytes(self._mark) is not None:
            raise CheckpointError(
                f"no checkpoint that all members of the family have: {found}. Restore what is missing, or choose "
                "another output_dir (a member that was trained further alone can only resume alone)"
            )
        logger.warning("the first save of all members was not completed, so the family starts from scratch: %s", found)
        return None

    def _refuse_to_forget(self, folder: Path) -> None:
        """A kill leaves at most a hidden folder: one named as a checkpoint that is not complete was damaged later."""
        if there := saved_in(folder):
            raise CheckpointError(
                f"{there[-1]}: {unusable(there[-1])}, and there is no other checkpoint to resume from: restore it, "
                "move it away to start from scratch, or choose another output_dir"
            )

    def _is_sound(self, tag: str) -> bool:
        """Whether each member's files of a step are what was written, by their hashes."""
        for member in self._folders:
            if problem := damage(member.folder / tag):
                logger.warning("%s: skipped: %s", member.folder / tag, problem)
                return False
        return True

    def saved(self, step: int) -> None:
        """All members have saved this step: note it, and remove older checkpoints. All ranks call."""
        dist.decided_by_main(lambda: self._close(step))

    def _close(self, step: int) -> None:
        if self._mark is not None:
            if self._fence is not None:
                self._fence.check()
            self._mark.parent.mkdir(exist_ok=True)
            try:
                remove_leftovers(self._mark.parent, f"{self._mark.name}.*.tmp")
                write_atomically(self._mark, tag_of(step))
            except OSError as error:
                raise unwritten(f"{self._mark}: can't be written ({error.strerror})", error) from error
        for member in self._folders:
            member.prune(step)

    def _with(self, tags: Sequence[Sequence[str]]) -> list[tuple[CheckpointFolder, Sequence[str]]]:
        return list(zip(self._folders, tags, strict=True))

    def _read(self, member: CheckpointFolder, tag: str, own: Sequence[str]) -> Checkpoint:
        if own[0] > tag and len(self._folders) > 1:  # for a single model the reason has been logged already
            logger.warning("%s: skipped: not all members of the family have it complete", member.folder / own[0])
        folder = member.folder / tag
        return Checkpoint(folder, read_run_state(folder))
