"""What GPUs are made for, by their makers' data sheets; plain figures."""

from dataclasses import dataclass

from dmt_ds.errors import ConfigError


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        memory_gb: of the card, in 10^9 bytes.
        bf16_tflops: dense bf16 matrix rate with float32 sums, without sparsity.
        memory_tbps: of its memory, in 10^12 bytes a second.
        link_gbps: to the GPUs of its node, one way, in 10^9 bytes a second: NVLink, or PCIe where there is none.
    """

    memory_gb: float
    bf16_tflops: float
    memory_tbps: float
    link_gbps: float


GPUS: dict[str, Gpu] = {
    "b200": Gpu(180, 2250, 7.7, 900),
    "h200": Gpu(141, 989, 4.8, 450),
    "h100": Gpu(80, 989, 3.35, 450),
    "a100": Gpu(80, 312, 2.04, 300),
    "a100_40": Gpu(40, 312, 1.56, 300),
    "l40s": Gpu(48, 362, 0.86, 32),
    "rtx4090": Gpu(24, 165, 1.01, 32),
    "rtx3090": Gpu(24, 71, 0.94, 32),
}
"""SXM forms where there are several."""


def gpu_named(name: str) -> Gpu:
    """One of `GPUS`.

    Raises:
        ConfigError: it is not in the table.
    """
    if name.lower() not in GPUS:
        raise ConfigError(f"--gpu {name}: not in the table; known: {', '.join(GPUS)}; take the one nearest to yours")
    return GPUS[name.lower()]
