"""One writer a run folder: a newer attempt takes it over, and the older one writes no more; knows no checkpoint.

A node that lost its network, or a job that was submitted twice, may still run when its successor starts.
"""

import json
import os
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from dmt_ds.errors import CheckpointError, StorageError
from dmt_ds.run_files import CLAIM_FILE
from dmt_ds.storage import patiently, unwritten
from dmt_ds.tracking.journal import remove_leftovers, write_atomically

READ_SECONDS = 5.0
"""How long a claim that can't be read is tried again: its server fails over, or another node has just renamed it."""
_SECONDS_BETWEEN_READS = 0.25


class Fence:
    """This process's claim on a run folder; used by rank 0.

    Attributes:
        number: of this attempt, from 1.
        mark: of names that no other attempt gives.
    """

    def __init__(self, folder: Path, number: int, token: str) -> None:
        self._file = folder / CLAIM_FILE
        self._token = token
        self.number = number
        self.mark = token[:8]

    @classmethod
    def claim(cls, folder: Path, environ: Mapping[str, str] = os.environ) -> "Fence":
        """Take the folder over from whoever has it.

        Raises:
            CheckpointError: it can't be written.
            StorageError: its disk or file server does not answer, or the claim that lies there can't be read.
        """
        last = _number_of(folder / CLAIM_FILE)
        fence = cls(folder, last + 1, secrets.token_hex(8))
        owner = f"{socket.gethostname()} pid {os.getpid()}"
        if "SLURM_JOB_ID" in environ:
            owner += f", job {environ['SLURM_JOB_ID']} restart {environ.get('SLURM_RESTART_COUNT', '0')}"
        partial = folder / f".{CLAIM_FILE}.{fence._token}"
        remove_leftovers(folder, f".{CLAIM_FILE}.*")
        try:
            claim = {"number": fence.number, "owner": owner, "token": fence._token}
            write_atomically(fence._file, json.dumps(claim), partial)
        except OSError as error:
            raise unwritten(f"{folder}: can't be taken over ({error.strerror})", error) from error
        return fence

    def check(self) -> None:
        """Raise if another attempt has claimed the folder, which only another token in the claim shows.

        Raises:
            CheckpointError: names the newer attempt, or says that the claim is gone.
            StorageError: the claim can't be read.
        """
        try:
            claim = _read(self._file)
        except FileNotFoundError:
            raise CheckpointError(
                f"{self._file}: is gone: the run's folder was removed or moved while attempt {self.number} was "
                "writing there; restore it, or start again"
            ) from None
        except (OSError, ValueError) as error:
            raise _unreadable(self._file, error) from error
        if claim["token"] != self._token:
            raise CheckpointError(
                f"{self._file.parent}: attempt {claim.get('number', '?')} ({claim.get('owner', 'unknown')}) has taken "
                f"this run over; attempt {self.number} ends here and writes nothing more"
            )


def _number_of(file: Path) -> int:
    """Number of the last attempt; 0 if there was none or a power cut left nothing of its claim."""
    try:
        patiently(file.stat)
        number = _read(file).get("number")
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        raise _unreadable(file, error) from error
    except ValueError:
        return 0
    return number if isinstance(number, int) else 0


def _read(file: Path) -> dict[str, object]:
    """A claim; one that can't be read is looked at again for some seconds.

    Raises:
        OSError: it still can't be read.
        ValueError: it holds no claim.
    """
    deadline = time.monotonic() + READ_SECONDS
    while True:
        try:
            claim = json.loads(file.read_text())
            if not isinstance(claim, dict) or "token" not in claim:
                raise ValueError("holds no claim")
            return claim
        except (OSError, ValueError):
            if time.monotonic() > deadline:
                raise
            time.sleep(_SECONDS_BETWEEN_READS)


def _unreadable(file: Path, error: OSError | ValueError) -> StorageError:
    reason = error.strerror if isinstance(error, OSError) else "it holds no claim"
    return StorageError(
        f"{file}: can't be read ({reason}) for {READ_SECONDS:.0f} s, so it is unknown whether another attempt owns "
        "this run; look at the disk or file server, then start again to resume from the newest checkpoint"
    )
