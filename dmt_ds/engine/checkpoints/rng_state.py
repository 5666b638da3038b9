"""The process's own generators, kept in checkpoints.

Nothing of ours draws from them while it trains (see `dmt_ds.sample_rng`); a model from elsewhere with dropout would.
"""

import random
from pathlib import Path

import numpy as np
import torch


def path(folder: Path, rank: int) -> Path:
    """File of one rank in a checkpoint."""
    return folder / f"rng_rank{rank:05d}.pt"


def save(file: Path) -> None:
    """Write the state of Python's, numpy's, torch's and CUDA's generators."""
    _, numpy_keys, numpy_position, has_gauss, cached_gauss = np.random.get_state()
    version, internal, gauss = random.getstate()
    torch.save(
        {
            "python": (version, list(internal), gauss),
            "numpy_keys": torch.from_numpy(np.asarray(numpy_keys, dtype=np.int64)),
            "numpy_position": int(numpy_position),
            "numpy_gauss": (int(has_gauss), float(cached_gauss)),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        },
        file,
    )


def restore(file: Path) -> None:
    """Inverse of `save`; a CUDA state is left out where there is no CUDA."""
    state = torch.load(file, map_location="cpu", weights_only=True)
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy_keys = state["numpy_keys"].numpy().astype(np.uint32)
    # Early versions kept no drawn number of a pair.
    np.random.set_state(("MT19937", numpy_keys, state["numpy_position"], *state.get("numpy_gauss", (0, 0.0))))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
