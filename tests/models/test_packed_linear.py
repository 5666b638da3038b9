"""Weights that are laid out ahead give the products of those that are not."""

import pytest
import torch
from torch import nn

from dmt_ds.models.packed_linear import PackedLinear, pack_linear, packing_pays

ON_CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not packing_pays(ON_CPU, torch.float32), reason="this torch has no MKL")


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    frozen = nn.Sequential(nn.Linear(96, 160), nn.GELU(), nn.Linear(160, 96, bias=False)).requires_grad_(False)
    return nn.Sequential(frozen, nn.Linear(96, 8))


@pytest.mark.parametrize("shape", [(4, 17, 96), (3, 17, 96), (68, 96)])  # the second has other rows than were packed
def test_products_and_names_of_weights_stay(shape: tuple[int, ...]) -> None:
    model, x = layers(), torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    expected, names = model(x), set(model.state_dict())
    pack_linear(model, 4 * 17)
    assert [type(layer) for layer in (model[0][0], model[0][2], model[1])] == [PackedLinear, PackedLinear, nn.Linear]
    torch.testing.assert_close(model(x), expected, atol=1e-6, rtol=1e-5)
    assert set(model.state_dict()) == names


def test_it_is_for_float32_on_a_cpu() -> None:
    assert not packing_pays(ON_CPU, torch.bfloat16) and not packing_pays(torch.device("cuda"), torch.float32)
