"""How many tasks `sbatch` will give a job, by its options and its script; asks no cluster."""

import shlex
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

_SIZES = {"-N": "--nodes", "-n": "--ntasks"}
"""Short options of those that say how many there are."""


def ranks_of(script: Path, options: Sequence[str]) -> int | None:
    """Tasks of the job; None where only the cluster can say, as of `--nodes=2-4` or `--ntasks-per-gpu=1`.

    Args:
        script: its `#SBATCH` lines count where the options say nothing else.
        options: what stands between `sbatch` and the script.
    """
    said = {"--nodes": "1", "--ntasks-per-node": "1"}
    words = [*_header(script), *options, ""]
    for word, following in pairwise(words):
        name, equals, value = word.partition("=")
        if name in ("--nodes", "--ntasks", "--ntasks-per-node"):
            said[name] = value if equals else following
        elif name.startswith("--ntasks"):
            return None
        elif (size := _SIZES.get(word[:2])) is not None:
            said[size] = word[2:] or following
    numbers = {name: int(text) for name, text in said.items() if text.isdecimal() and text.isascii()}
    if len(numbers) < len(said):
        return None
    return numbers.get("--ntasks", numbers["--nodes"] * numbers["--ntasks-per-node"]) or None


def _header(script: Path) -> Iterator[str]:
    """Words of the script's `#SBATCH` lines, which end where its commands begin."""
    for line in script.read_text().splitlines():
        if line.startswith("#SBATCH"):
            yield from shlex.split(line.removeprefix("#SBATCH"), comments=True)
        elif line.strip() and not line.startswith("#"):
            return
