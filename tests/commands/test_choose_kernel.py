"""Which kernel serves a run, and why."""

from pathlib import Path

import pytest
import torch

from dmt_ds import triton_support
from dmt_ds.commands.training.loss_kernel import choose_kernel

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A machine that has what Triton needs."""
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(triton_support.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(triton_support.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(triton_support.sysconfig, "get_config_var", lambda name: str(tmp_path))
    return monkeypatch


@pytest.mark.usefixtures("triton")
def test_auto_takes_triton_on_cuda_and_the_chunked_form_on_a_cpu() -> None:
    assert choose_kernel("auto", "kl", 1.0, 1.0, CUDA) == ("triton", "the device is CUDA")
    assert choose_kernel("auto", "kl", 1.0, 1.0, CPU)[0] == "chunked"


@pytest.mark.parametrize("setting", ["auto", "chunked", "triton"])
def test_what_has_no_fused_form_is_computed_as_written_and_says_why(setting) -> None:
    assert choose_kernel(setting, "mse", 1.0, 1.0, CPU) == ("eager", "divergence mse has no fused form")
    assert choose_kernel(setting, "kl", 0.0, 1.0, CPU) == ("eager", "only one of the two losses is computed")
    assert choose_kernel(setting, "kl", 1.0, 0.0, CUDA)[0] == "eager"


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_a_setting_that_can_be_met_is_met(device: torch.device) -> None:
    assert choose_kernel("eager", "kl", 1.0, 1.0, device) == ("eager", "as set")
    assert choose_kernel("chunked", "kl", 1.0, 1.0, device) == ("chunked", "as set")


def test_triton_where_it_cannot_run_is_refused_and_auto_goes_without(triton: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="kernel triton can't run here: the device is cpu; use auto"):
        choose_kernel("triton", "kl", 1.0, 1.0, CPU)
    triton.setattr(triton_support.importlib.util, "find_spec", lambda name: None)
    assert choose_kernel("auto", "kl", 1.0, 1.0, CUDA) == ("eager", "triton is not installed")
    with pytest.raises(ValueError, match="triton is not installed"):
        choose_kernel("triton", "kl", 1.0, 1.0, CUDA)


def test_a_node_without_a_compiler_or_headers_goes_without_triton_and_says_so(
    triton: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "Python.h").unlink()
    why = f"triton needs Python's headers, and there are none in {tmp_path}"
    assert choose_kernel("auto", "kl", 1.0, 1.0, CUDA) == ("eager", why)
    triton.setattr(triton_support.shutil, "which", lambda name: None)
    triton.delenv("CC", raising=False)
    kernel, why = choose_kernel("auto", "kl", 1.0, 1.0, CUDA)
    assert kernel == "eager" and "triton needs a C compiler" in why
