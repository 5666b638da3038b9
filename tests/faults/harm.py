"""What a rank does to itself before it starts; named in `processes.launched(harm=...)`, each called with the rank."""

import resource
import threading
import time
from pathlib import Path


def limit_memory(rank: int, of_rank: int, mark: str, more_mib: int) -> None:
    """Once the file `mark` is there, the rank gets only so much more memory than it has."""
    if rank != of_rank:
        return

    def wait() -> None:
        while not Path(mark).exists():
            time.sleep(0.05)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + more_mib * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    threading.Thread(target=wait, daemon=True).start()
