"""What a run ran on: commit, SLURM job, versions, devices; imports torch only when asked, and knows no tracker."""

import hashlib
import importlib.metadata
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from dmt_ds.redact import masked_code

_LIBRARIES = ("torch", "torchvision", "deepspeed", "timm", "transformers", "pillow", "numpy")
_LEARNING = ("data", "distill", "downstream", "engine", "methods", "models")
_CODE = ("dmt_ds", "ds_configs")
_LONGEST_CHANGES = 1 << 20
_SLURM_TAGS = {
    "SLURM_JOB_ID": "slurm.job_id",
    "SLURM_ARRAY_JOB_ID": "slurm.array_job_id",
    "SLURM_ARRAY_TASK_ID": "slurm.array_task_id",
    "SLURM_JOB_NAME": "slurm.job_name",
    "SLURM_JOB_PARTITION": "slurm.partition",
    "SLURM_JOB_NODELIST": "slurm.nodes",
    "SLURM_JOB_NUM_NODES": "slurm.num_nodes",
    "SLURM_NTASKS": "slurm.num_tasks",
    "SLURM_RESTART_COUNT": "slurm.restarts",
    "SLURM_CLUSTER_NAME": "slurm.cluster",
}


def environment_tags(environ: Mapping[str, str]) -> dict[str, str]:
    """Tags to find a run by: git commit (where the package is a checkout) and the ids of the SLURM job."""
    tags = {tag: environ[name] for name, tag in _SLURM_TAGS.items() if environ.get(name)}
    commit = _git("rev-parse", "HEAD").strip()
    if commit:
        tags["git.commit"] = tags["mlflow.source.git.commit"] = commit
        tags["git.dirty"] = "true" if _git("status", "--porcelain", "--untracked-files=no") else "false"
    return tags


def environment_record() -> dict[str, object]:
    """Versions, host and devices, and every installed package: enough to build the environment again."""
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "hostname": socket.gethostname(),
        "git_commit": _git("rev-parse", "HEAD").strip() or None,
        **_torch_record(),
        "deepspeed": _version("deepspeed"),
        "mlflow": _version("mlflow"),
        "packages": _packages(),
    }


def code_changes() -> str:
    """What differs from the commit in this package and its DeepSpeed JSONs, as `git apply` takes it; empty if nothing.

    Files that git does not know are left out, and so are secrets. A very long text is cut, and says so.
    """
    text = masked_code(_git("diff", "--no-color", "--no-ext-diff", "HEAD", "--", *_CODE))
    if len(text) > _LONGEST_CHANGES:
        text = f"{text[:_LONGEST_CHANGES]}\n(cut here: {len(text) - _LONGEST_CHANGES} more characters)\n"
    return text


@cache
def code_fingerprint() -> dict[str, str]:
    """File of this package -> hash, of all that what is learned depends on: not of commands, record and planning."""
    package = Path(__file__).resolve().parents[1]
    files = [package / "sample_rng.py", *(file for area in _LEARNING for file in (package / area).rglob("*.py"))]
    return {
        file.relative_to(package).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        for file in sorted(files)
    }


def library_versions() -> dict[str, str]:
    """Library -> installed version, of those whose arithmetic is in the losses or the pixels."""
    import torch

    found = {library: _version(library) for library in _LIBRARIES}
    found["torch"] = torch.__version__  # with the CUDA that it was built for
    return {library: version for library, version in found.items() if version is not None}


def _torch_record() -> dict[str, object]:
    import torch

    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda if num_gpus else None,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if num_gpus else None,  # type: ignore[no-untyped-call]
        "gpus": [torch.cuda.get_device_name(index) for index in range(num_gpus)],
    }


def _packages() -> list[str]:
    found = {f"{dist.metadata['Name']}=={dist.version}" for dist in importlib.metadata.distributions()}
    return sorted(found, key=str.lower)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    """Output of a git command about the checkout that holds this package; empty where it is none."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        answer = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.decode(errors="replace")
