"""Random numbers of an image: the published generator, uniform, and the same however images are batched."""

import functools

import pytest
import torch

from dmt_ds.sample_rng import image_seeds, uniform

MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15


def fnv1a(text: str) -> int:
    """Fowler, Noll, Vo: offset basis and prime of the 32-bit hash."""
    return functools.reduce(lambda number, byte: ((number ^ byte) * 0x01000193) & 0xFFFFFFFF, text.encode(), 0x811C9DC5)


def splitmix64(state: int) -> int:
    """One output of the reference generator (Vigna's splitmix64.c), in Python's unbounded integers."""
    z = (state + GAMMA) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def signed(value: int) -> int:
    """The same 64 bits as torch's int64."""
    return value - (1 << 64) if value >= 1 << 63 else value


def image_seed_by_hand(run_seed: int, epoch: int, index: int) -> int:
    return splitmix64(splitmix64(splitmix64(run_seed) ^ epoch) ^ index)


def uniform_by_hand(seed: int, stream: str, count: int) -> list[float]:
    key = splitmix64((seed & MASK) ^ fnv1a(stream))
    return [(splitmix64((key + i * GAMMA) & MASK) >> 40) * 2.0**-24 for i in range(1, count + 1)]


def test_reference_gives_the_published_first_outputs_of_seed_1234567() -> None:
    outputs = [splitmix64((1234567 + i * GAMMA) & MASK) for i in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("run_seed", [0, 1, 2**31 - 1])
def test_image_seeds_are_those_of_the_reference(run_seed: int) -> None:
    epochs, indices = torch.tensor([0, 0, 7, 299]), torch.tensor([0, 1, 1281166, 2**40])
    expected = [
        signed(image_seed_by_hand(run_seed, epoch, index))
        for epoch, index in zip(epochs.tolist(), indices.tolist(), strict=True)
    ]
    assert image_seeds(run_seed, epochs, indices).tolist() == expected


@pytest.mark.parametrize("stream", ["crop", "drop_path/3", ""])
def test_uniform_numbers_are_those_of_the_reference(stream: str) -> None:
    seeds = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), -7046029254386353131])
    expected = [uniform_by_hand(seed, stream, 5) for seed in seeds.tolist()]
    assert uniform(seeds, stream, 5).tolist() == expected


def many_seeds(count: int = 20_000) -> torch.Tensor:
    return image_seeds(0, torch.zeros(count, dtype=torch.int64), torch.arange(count))


def test_numbers_are_uniform_over_images_and_draws() -> None:
    numbers = uniform(many_seeds(), "crop", 10).double()
    assert numbers.min() >= 0 and numbers.max() < 1
    assert numbers.mean().item() == pytest.approx(1 / 2, abs=5 * (1 / 12 / numbers.numel()) ** 0.5)
    assert numbers.var().item() == pytest.approx(1 / 12, abs=1e-3)
    histogram = torch.histc(numbers, 64, 0, 1)
    expected = numbers.numel() / 64
    chi_square = ((histogram - expected) ** 2 / expected).sum()
    assert 63 - 5 * 126**0.5 < chi_square < 63 + 5 * 126**0.5


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


def test_streams_do_not_resemble_each_other() -> None:
    seeds = many_seeds()
    for other in ("drop_path/1", "drop_path/2", "jitter"):
        assert correlation(uniform(seeds, "drop_path/0", 1), uniform(seeds, other, 1)) == pytest.approx(0, abs=0.04)


def test_neighbouring_images_epochs_and_draws_do_not_resemble_each_other() -> None:
    seeds, count = many_seeds(), 20_000
    numbers = uniform(seeds, "crop", 2)
    next_epoch = uniform(image_seeds(0, torch.ones(count, dtype=torch.int64), torch.arange(count)), "crop", 2)
    assert correlation(numbers[:-1], numbers[1:]) == pytest.approx(0, abs=0.04)
    assert correlation(numbers[:, 0], numbers[:, 1]) == pytest.approx(0, abs=0.04)
    assert correlation(numbers, next_epoch) == pytest.approx(0, abs=0.04)


def test_no_two_of_many_images_share_a_seed() -> None:
    epochs = torch.arange(10).repeat_interleave(20_000)
    seeds = image_seeds(3, epochs, torch.arange(20_000).repeat(10))
    assert seeds.unique().numel() == seeds.numel()


def test_an_images_numbers_do_not_depend_on_its_batch() -> None:
    epochs, indices = torch.full((12,), 5), torch.arange(12)
    whole = uniform(image_seeds(1, epochs, indices), "crop", 4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    parts = [uniform(image_seeds(1, epochs[rows], indices[rows]), "crop", 4) for rows in order.split(5)]
    assert torch.equal(torch.cat(parts), whole[order])


def test_more_numbers_begin_with_the_same_ones() -> None:
    seeds = many_seeds(8)
    assert torch.equal(uniform(seeds, "crop", 9)[:, :4], uniform(seeds, "crop", 4))


def test_random_numbers_leave_torchs_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    uniform(many_seeds(4), "crop", 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_compiler_takes_it_as_one_op_and_the_numbers_stay() -> None:
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    seeds = torch.tensor([1, -7, 1 << 62])
    found = torch.compile(lambda x: uniform(x, "drop_path", 24), backend=backend, fullgraph=True)(seeds)
    assert torch.equal(found, uniform(seeds, "drop_path", 24))
    assert seen == ["dmt_ds.uniform.default"]  # no 64-bit arithmetic that a compiler might make 32-bit


def test_a_compiler_takes_batches_of_all_sizes_at_once() -> None:
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled = torch.compile(lambda x: uniform(x, "drop_path", 4), backend="aot_eager", fullgraph=True)
    for size in range(5, 10):
        assert compiled(torch.arange(size)).shape == (size, 4)
    assert counters["stats"]["unique_graphs"] <= 2
