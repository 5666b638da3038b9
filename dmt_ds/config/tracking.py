"""Settings of a run's record; `schema` puts them into a run."""

from pydantic import Field

from dmt_ds.config.section import NonNegative, Section


class TrackingConfig(Section):
    """MLflow."""

    enabled: bool = True
    """If false, metrics go only to the log and to metrics.jsonl."""
    uri: str | None = None
    """Tracking server or store; null takes MLFLOW_TRACKING_URI, else sqlite:///mlflow.db next to the run folders."""
    experiment: str = "dmt_ds"
    """MLflow experiment; its runs are compared on one page."""
    run_name: str | None = None
    """Name of the run in MLflow; null takes `name`."""
    parent: str | None = None
    """Name of the parent run, in the same experiment; created if missing (suites, pipelines)."""
    tags: dict[str, str] = Field(default={})
    """Additional tags."""
    system_metrics_seconds: NonNegative = 30.0
    """Seconds between two samples of CPU, memory and GPU; 0 takes none."""
    drain_seconds: NonNegative = 60.0
    """Seconds to wait for a slow server at the end; what is left stays spooled, and the next start sends it."""
    pictures: bool = True
    """Log pictures (loss curves; PCA of patch tokens) as artifacts."""
