"""float32 masters of trained weights, of which a rank has parts below ZeRO stage 3, and the norm of their gradients."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dmt_ds.engine import dist


class Part(NamedTuple):
    """What this rank has of one parameter's master."""

    values: Tensor
    """[n] float32, in place: the next update changes it."""
    start: int
    """Where it begins in the flat parameter."""

    def cut_from(self, whole: Tensor) -> Tensor:
        """A copy of the same part of another tensor of the parameter's shape: [n] float32, where `values` lies."""
        return torch.empty_like(self.values).copy_(whole.flatten()[self.start : self.start + len(self.values)])


def parts_of(module: nn.Module) -> dict[str, Part]:
    """This rank's parts of the masters of all trained parameters, by name; without those of which it has none.

    DeepSpeed tells the parameters themselves where their masters are. Those that no engine holds are their own.
    """
    found = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        assert not hasattr(parameter, "ds_id"), "ZeRO-3 cuts weights otherwise"
        if not hasattr(parameter, "_hp_mapping"):
            found[name] = Part(own_master(name, parameter).detach().view(-1), 0)
        elif parameter._hp_mapping is not None:
            mapping: Any = parameter._hp_mapping
            found[name] = Part(mapping.hp_fragment.detach(), mapping.lp_fragment_address.start)
    return found


def own_master(name: str, parameter: nn.Parameter) -> Tensor:
    """The master of a weight that no engine keeps one of: itself."""
    assert parameter.dtype == torch.float32, f"{name} has no master"
    return parameter


def state_of(module: nn.Module, masters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A module's whole state as it is published: float32 on the CPU, masters in the place of its own values.

    Args:
        masters: whole ones, by the module's names.
    """
    own = module.state_dict()
    return {name: masters.get(name, value).detach().float().cpu().contiguous() for name, value in own.items()}


def whole_of(module: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put together what ranks have of each trained parameter, in its shape; all ranks call.

    Args:
        values: name -> [n], like the `values` of `parts_of`.
    """
    parts, whole = parts_of(module), {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        flat = torch.zeros(parameter.numel(), device=parameter.device)
        if name in parts:
            flat[parts[name].start :][: len(values[name])] = values[name].to(flat.device)
        if hasattr(parameter, "_hp_mapping"):
            flat = dist.sum_over_ranks(flat)
        whole[name] = flat.view_as(parameter)
    return whole


def norm_of_gradients(module: nn.Module) -> Tensor:
    """Norm of all averaged gradients together, where each rank has them whole: scalar, on the device."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    norm: Tensor = torch.stack(torch._foreach_norm(gradients)).norm()
    return norm
