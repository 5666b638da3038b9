"""The jitter's CUDA kernels by Triton's interpreter, which needs no GPU; and compiled for Ampere and Hopper."""

import importlib.util
import json

import pytest

from tests import processes

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

# Against the formulas for whole tensors, which test_augment.py holds against torchvision. 40 x 45 fills no block. The
# interpreter's time is that of launches times images: every order of the four turns, and of three, is tried once.
COMPARE = """
import itertools, json, torch
from dmt_ds.config.methods import AugmentConfig
from dmt_ds.data import augment
from dmt_ds.data.augment import Augment
from dmt_ds.data.jitter_triton import jitter
from tests.data.jittered import random_images
orders = torch.tensor(list(itertools.permutations(range(4))))
three = torch.tensor([*itertools.permutations(range(3)), (0, 2, 2)])  # the last one asks for no contrast
images = random_images(len(orders), 48)[:, :, :40, :45]
generator = torch.Generator().manual_seed(0)
amounts = 0.2 + 1.6 * torch.rand(len(orders), 4, generator=generator)
amounts[:, 3] = torch.rand(len(orders), generator=generator) - 0.5
plain = torch.ones(3), torch.zeros(3)
facts = {}
def compare(name, got, wanted):
    assert got.shape == wanted.shape and got.dtype == torch.float32 and got.is_contiguous()
    facts[name] = (got - wanted).abs().max().item()
whole = augment._fractions(images)
by_formula = augment._jitter(whole, orders, amounts)
compare("hue", jitter(images, orders, amounts, None, *plain), by_formula)
some = slice(len(three))
wanted = augment._jitter(whole[some], three, amounts[some])
compare("no hue", jitter(images[some], three, amounts[some], None, *plain), wanted)
few = slice(5, None, 6)
lying = images[few].contiguous(memory_format=torch.channels_last)
compare("channels last", jitter(lying, orders[few], amounts[few], None, *plain), by_formula[few])
images, whole, orders, amounts = images[few], whole[few], orders[few], amounts[few]
greys = torch.arange(len(orders)) % 3 == 0
wanted = torch.where(greys[:, None, None, None], augment._grey(whole), whole)
compare("grey", jitter(images, orders[:, :0], amounts, greys, *plain), wanted)
scale, shift = torch.tensor([4.0, 5.0, 6.0]), torch.tensor([-1.0, 0.0, 1.0])
wanted = whole * scale[:, None, None] + shift[:, None, None]
compare("normalised", jitter(images, orders[:, :0], amounts, None, scale, shift), wanted)
images = random_images(10, 48)[:, :, :40, :45]
def augmented(section, by_kernel):
    augment._has_kernel = lambda images: by_kernel
    return Augment(section)(images, torch.arange(len(images)))
for name, section in {
    "recipe": AugmentConfig(),
    "not all": AugmentConfig(brightness=0.4, contrast=0.8, saturation=1.5, jitter_probability=0.5),
    "everything": AugmentConfig(hue=0.2, grayscale_probability=0.3, blur_probability=0.5, solarize_probability=0.3),
    "nothing": AugmentConfig(brightness=0, contrast=0, saturation=0),
}.items():
    compare(name, augmented(section, True), augmented(section, False))
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts() -> dict[str, float]:
    """From a process of its own: the interpreter is chosen when triton is imported."""
    done = processes.run(["-c", COMPARE], TRITON_INTERPRET="1")
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", ["hue", "no hue", "channels last", "grey", "normalised"])
def test_pixels_are_those_of_the_formulas_in_every_order_and_layout(facts: dict[str, float], case: str) -> None:
    assert facts[case] < 5e-6


@pytest.mark.parametrize("case", ["recipe", "not all", "everything", "nothing"])
def test_an_augmentation_is_the_same_with_kernels_and_without(facts: dict[str, float], case: str) -> None:
    assert facts[case] < 5e-5  # in units of a deviation of ImageNet's colours


COMPILE = """
import json, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dmt_ds.data import jitter_triton
kinds = {"images": "*u8", "order": "*i64", "loses_colours": "*i1", "num_pixels": "i32"}
kinds |= {"image_stride": "i32", "channel_stride": "i32", "pixel_stride": "i32"}
made = []
for kernel in (jitter_triton._grey_sums, jitter_triton._pixels):
    for num_turns, card in ((3, 80), (4, 90)):
        constants = {"num_turns": num_turns, "block": 1024, "most_blocks": 64, "has_grey": True}
        constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
        signature = {name: "constexpr" if name in constants else kinds.get(name, "*fp32") for name in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        made.append(len(triton.compile(source, target=GPUTarget("cuda", card, 32)).asm["cubin"]))
print(json.dumps(made))
"""


def test_both_kernels_compile_for_ampere_and_hopper_without_a_gpu(tmp_path) -> None:
    done = processes.run(["-c", COMPILE], TRITON_CACHE_DIR=str(tmp_path))
    assert len(json.loads(done.stdout.splitlines()[-1])) == 4
