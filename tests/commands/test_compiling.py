"""What is compiled, and what the log says of what is not."""

import logging

import pytest
import torch

from dmt_ds.commands.training import compiling
from dmt_ds.commands.training.compiling import compiles

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("wanted", "device", "read_inside", "obstacle", "said"),
    [
        (True, CUDA, False, None, None),
        (False, CUDA, False, None, None),
        (False, CPU, True, "never asked", None),
        (True, CPU, False, "the device is cpu", "student: not compiled: the device is cpu"),
        (True, CUDA, False, "no C compiler", "student: not compiled: no C compiler"),
        (True, CUDA, True, None, "student: not compiled: task tinymim reads inside the last block"),
    ],
)
def test_what_can_be_compiled_is_or_the_log_says_why(wanted, device, read_inside, obstacle, said, caplog, monkeypatch):
    monkeypatch.setattr(compiling, "obstacle_to_triton", lambda device: obstacle)
    with caplog.at_level(logging.INFO):
        assert compiles(wanted, "student", device, read_inside=read_inside) == (wanted and said is None)
    assert caplog.messages == ([said] if said else [])


def test_each_of_many_models_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a family, say: modules share a function, and torch stops at 8 graphs of one."""
    monkeypatch.setattr(compiling, "obstacle_to_triton", lambda device: None)
    made: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        made.append(graph)
        return graph

    for width in range(1, 13):
        assert compiles(True, "student", CPU)
        module = torch.nn.Linear(width, width)
        module.compile(backend=backend)
        module(torch.ones(2, width))
    assert len(made) == 12
