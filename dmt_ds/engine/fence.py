"""One writer a run folder: a newer attempt takes it over, and the older one writes no more; knows no checkpoint.

A node that lost its network, or a job that was submitted twice, may still run when its successor starts.
"""

import json
import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path

from dmt_ds.errors import CheckpointError
from dmt_ds.tracking.journal import remove_leftovers

CLAIM = "attempt.json"


class Fence:
    """This process's claim on a run folder; used by rank 0.

    Attributes:
        number: of this attempt, from 1.
        mark: of names that no other attempt gives.
    """

    def __init__(self, folder: Path, number: int, token: str) -> None:
        self._file = folder / CLAIM
        self._token = token
        self.number = number
        self.mark = token[:8]

    @classmethod
    def claim(cls, folder: Path, environ: Mapping[str, str] = os.environ) -> "Fence":
        """Take the folder over from whoever has it.

        Raises:
            CheckpointError: it can't be written.
        """
        last = _read(folder / CLAIM).get("number")
        fence = cls(folder, last + 1 if isinstance(last, int) else 1, secrets.token_hex(8))
        owner = f"{socket.gethostname()} pid {os.getpid()}"
        if "SLURM_JOB_ID" in environ:
            owner += f", job {environ['SLURM_JOB_ID']} restart {environ.get('SLURM_RESTART_COUNT', '0')}"
        partial = folder / f".{CLAIM}.{fence._token}"
        remove_leftovers(folder, f".{CLAIM}.*")
        try:
            partial.write_text(json.dumps({"number": fence.number, "owner": owner, "token": fence._token}))
            os.replace(partial, fence._file)
        except OSError as error:
            raise CheckpointError(
                f"{folder}: can't be taken over ({error.strerror}): make room, or set output_dir to a folder of yours"
            ) from error
        return fence

    def check(self) -> None:
        """Go on only as long as nobody else has claimed the folder.

        Raises:
            CheckpointError: names the newer attempt.
        """
        claim = _read(self._file)
        if claim.get("token") != self._token:
            raise CheckpointError(
                f"{self._file.parent}: attempt {claim.get('number', '?')} ({claim.get('owner', 'unknown')}) has taken "
                f"this run over; attempt {self.number} ends here and writes nothing any more"
            )


def _read(file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
