"""Settings of a run's record; `schema` puts them into a run."""

from pydantic import Field

from dmt_ds.config.section import NonNegative, Section


class TrackingConfig(Section):
    """MLflow."""

    enabled: bool = True
    """Off: metrics go to the log and to metrics.jsonl only."""
    uri: str | None = None
    """Tracking server or store; null takes MLFLOW_TRACKING_URI, else sqlite:///mlflow.db beside the run folders."""
    experiment: str = "dmt_ds"
    """Runs of one experiment are compared on one page."""
    run_name: str | None = None
    """Null takes `name`."""
    parent: str | None = None
    """Name of the run, in the same experiment, under which this one stands; made where missing (suites, pipelines)."""
    tags: dict[str, str] = Field(default={})
    """Further tags."""
    system_metrics_seconds: NonNegative = 30.0
    """Between two samples of CPU, memory and GPU; 0 takes none."""
    drain_seconds: NonNegative = 60.0
    """At the end, how long to wait for a slow server; what is left stays spooled and is sent by the next start."""
    pictures: bool = True
    """Log pictures (loss curves; PCA of patch tokens) as artifacts."""
