"""The order of images: complete, shared by any number of ranks, and described by one number."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmt_ds.data.sampling import SampleStream, rank_positions, spread


def test_every_epoch_shows_every_image_once() -> None:
    epochs, rows = SampleStream(97, seed=3).at(0, 5 * 97)
    for epoch in range(5):
        assert sorted(rows[epochs == epoch].tolist()) == list(range(97))


def test_epochs_follow_each_other_without_a_gap() -> None:
    epochs, _ = SampleStream(97, seed=3).at(0, 5 * 97)
    assert torch.equal(epochs, torch.arange(5).repeat_interleave(97))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    one, other = SampleStream(97, seed=3), SampleStream(97, seed=4)
    orders = [one.at(0, 97)[1], one.at(97, 97)[1], other.at(0, 97)[1]]
    assert len({tuple(order.tolist()) for order in orders}) == 3


@pytest.mark.parametrize("start", [0, 1, 96, 97, 200, 1000])
def test_a_piece_of_the_stream_is_the_same_from_wherever_it_is_reached(start: int) -> None:
    epochs, rows = SampleStream(97, seed=3).at(0, 1300)
    piece_epochs, piece_rows = SampleStream(97, seed=3).at(start, 300)
    assert torch.equal(piece_epochs, epochs[start : start + 300])
    assert torch.equal(piece_rows, rows[start : start + 300])


def test_a_batch_larger_than_the_data_set_takes_several_epochs() -> None:
    epochs, rows = SampleStream(3, seed=0).at(1, 10)
    assert epochs.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert sorted(rows[2:5].tolist()) == [0, 1, 2]


@pytest.mark.parametrize(("world_size", "grad_accum_steps"), [(1, 1), (1, 6), (2, 3), (3, 2), (6, 1), (5, 4)])
def test_the_ranks_of_a_step_cover_it_exactly(world_size: int, grad_accum_steps: int) -> None:
    covered = [
        position
        for micro_step in range(grad_accum_steps)
        for rank in range(world_size)
        for position in rank_positions(1000, micro_step, rank, world_size, 4)
    ]
    assert covered == list(range(1000, 1000 + 4 * world_size * grad_accum_steps))


@given(st.data())
def test_whatever_restarts_and_world_sizes_a_run_has_every_epoch_shows_every_image_once(data: st.DataObject) -> None:
    """A run is a chain of starts, each with its own ranks, micro-batch and accumulation."""
    num_images, seed = data.draw(st.integers(1, 60)), data.draw(st.integers(0, 2**31 - 1))
    seen: list[tuple[int, int]] = []
    for _ in range(data.draw(st.integers(1, 4))):
        world_size, micro_batch_size, accum = (data.draw(st.integers(1, top)) for top in (5, 7, 3))
        streams = [SampleStream(num_images, seed) for _ in range(world_size)]  # each rank has its own
        for _ in range(data.draw(st.integers(0, 3))):
            start = len(seen)
            for micro_step in range(accum):
                for rank, stream in enumerate(streams):
                    positions = rank_positions(start, micro_step, rank, world_size, micro_batch_size)
                    assert len(positions) == micro_batch_size
                    epochs, rows = stream.at(positions.start, len(positions))
                    seen += zip(epochs.tolist(), rows.tolist(), strict=True)
    for epoch in range(len(seen) // num_images):
        piece = seen[epoch * num_images : (epoch + 1) * num_images]
        assert {number for number, _ in piece} == {epoch} and sorted(row for _, row in piece) == list(range(num_images))
    assert len(set(seen)) == len(seen)


def test_one_rank_that_accumulates_sees_the_micro_batches_of_two_ranks() -> None:
    alone = [rank_positions(64, micro_step, 0, 1, 8) for micro_step in range(4)]
    shared = [rank_positions(64, micro_step, rank, 2, 8) for micro_step in range(2) for rank in range(2)]
    assert alone == shared


@given(count=st.integers(1, 300), most=st.integers(2, 20))
def test_rows_are_spread_from_the_first_to_the_last(count: int, most: int) -> None:
    rows = spread(count, most)
    assert (rows[0], rows[-1], len(rows)) == (0, count - 1, min(count, most))
    assert {after - before for before, after in pairwise(rows)} <= {gap := (count - 1) // (most - 1), gap + 1}
