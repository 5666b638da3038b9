"""Random numbers that belong to an image, not to a process; knows tensors only.

Crops, jitter, masks and drop path are drawn from the seed of the image they act on: a pure function of (run seed,
epoch, image). So a run gives the same losses on 1 and on 8 processes, and goes on after a restart as if it had never
stopped, without any generator's state. The generator is splitmix64 (Steele et al., 2014) used as a counter-based hash.
"""

import torch
from torch import Tensor

_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def image_seeds(run_seed: int, epochs: Tensor, indices: Tensor) -> Tensor:
    """One seed for each (epoch, image): [B] and [B] int64 -> [B] int64."""
    run = _mix(torch.tensor(run_seed, dtype=torch.int64, device=indices.device))
    return _mix(_mix(run ^ epochs) ^ indices)


def uniform(seeds: Tensor, stream: str, count: int) -> Tensor:
    """`count` numbers in [0, 1) an image, on the seeds' device: [B] int64 -> [B, count] float32.

    Args:
        stream: what the numbers are for (`"crop"`, `"drop_path/3"`); streams are independent of each other.
    """
    if torch.compiler.is_compiling():
        drawn: Tensor = _one_op(seeds, stream, count)
        return drawn
    return _uniform(seeds, stream, count)


def _uniform(seeds: Tensor, stream: str, count: int) -> Tensor:
    key = _mix(seeds ^ _stream_number(stream))  # [B]
    counters = torch.arange(1, count + 1, device=seeds.device, dtype=torch.int64) * _GAMMA
    bits = _mix(key[:, None] + counters)  # [B, count]
    return _shift_right(bits, 40).to(torch.float32) * 2.0**-24


@torch.library.custom_op("dmt_ds::uniform", mutates_args=())
def _one_op(seeds: Tensor, stream: str, count: int) -> Tensor:
    """What a compiler takes as it is: on CUDA, Inductor of torch 2.11 made 32 bits of `arange` times 64 bits."""
    return _uniform(seeds, stream, count)


@_one_op.register_fake
def _shape(seeds: Tensor, stream: str, count: int) -> Tensor:
    return seeds.new_empty(seeds.shape[0], count, dtype=torch.float32)


def _stream_number(stream: str) -> int:
    """FNV-1a of a name, 32 bits; in plain Python, so that torch.compile takes it as a constant."""
    number = 2166136261
    for letter in stream:
        number = (number ^ ord(letter)) * 16777619 % 2**32
    return number


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finalizer, element by element; int64 arithmetic wraps."""
    x = x + _GAMMA
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's `>>` on int64 keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
