"""What a function gives on each rank of a real group, for tests that hold it against what one process gives.

python -m tests.on_ranks MODULE.FUNCTION OUT [PATH ...]
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as torch_dist

from tests import processes


def answers(function: Callable[..., Any], out: Path, *paths: Path, num_ranks: int = 2) -> list[Any]:
    """One answer per rank of a function of a module, called with `paths`.

    Args:
        out: an empty folder for the answers.
    """
    name = f"{function.__module__}.{function.__qualname__}"
    processes.run(["-m", "tests.on_ranks", name, str(out), *map(str, paths)], processes=num_ranks)
    return [torch.load(out / f"{rank}.pt") for rank in range(num_ranks)]


def main() -> None:
    name, out, *paths = sys.argv[1:]
    torch.set_num_threads(1)
    torch_dist.init_process_group("gloo")
    module, _, function = name.rpartition(".")
    answer = getattr(importlib.import_module(module), function)(*map(Path, paths))
    torch.save(answer, Path(out) / f"{torch_dist.get_rank()}.pt")
    torch_dist.destroy_process_group()


if __name__ == "__main__":
    main()
