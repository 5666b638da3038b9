"""The door to MLflow's monitors of this machine; knows no run and no store."""

import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


def system_sampler() -> Callable[[], dict[str, float]]:
    """What measures CPU, memory, disk, network and, where NVIDIA's library works, GPUs, by MLflow's names."""
    from mlflow.system_metrics import system_metrics_monitor as mlflow_monitors

    monitors: list[Any] = []
    for name in ("CPUMonitor", "DiskMonitor", "NetworkMonitor", "GPUMonitor"):
        try:
            monitors.append(getattr(mlflow_monitors, name)())
        except Exception as error:
            logger.debug("no %s: %s", name, error)

    def sample() -> dict[str, float]:
        metrics: dict[str, float] = {}
        for monitor in monitors:
            monitor.collect_metrics()
            metrics.update({f"system/{name}": value for name, value in monitor.aggregate_metrics().items()})
            monitor.clear_metrics()
        return metrics

    return sample
