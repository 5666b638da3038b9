"""What the soak says of memory: a leak is told from noise, and its interval holds it."""

import numpy as np

from tests.faults.memory import Sample, growth


def samples(kib_a_step: float, seed: int = 0) -> list[Sample]:
    """600 s of one rank at 8 steps a second: it fills caches for 100 s, and wanders by 0.3 MiB."""
    noise = np.random.default_rng(seed)
    found, wandering = [], 0.0
    for second in range(600):
        wandering = 0.8 * wandering + 0.2 * noise.normal()
        mib = 700 + 50 * min(1.0, second / 100) + kib_a_step * 8 * second / 1024 + wandering
        found.append(Sample("rank 0", second, 8 * second, mib))
    return found


def test_a_leak_of_a_kibibyte_a_step_is_seen_and_flat_memory_is_flat():
    for kib_a_step in (0.0, 1.0):
        found = growth(samples(kib_a_step))["rank 0"]
        assert abs(found["KiB a step"] - kib_a_step) < found["95 % within +-"] < 0.2


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    found = [growth(samples(0.5, seed))["rank 0"] for seed in range(60)]
    assert np.mean([abs(each["KiB a step"] - 0.5) < each["95 % within +-"] for each in found]) >= 0.85


def test_a_rank_that_lived_too_short_is_not_judged():
    assert growth(samples(1.0)[:40]) == {}
