"""What must hold for whatever is thrown at it: recipes, overrides, the loader's order, the losses."""

from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dmt_ds.config.load import config_from_yaml, flatten, load_config, to_yaml
from dmt_ds.config.schema import DataConfig, RunConfig
from dmt_ds.data.batch_maker import TrainBatchMaker
from dmt_ds.data.loader import TrainLoader
from dmt_ds.data.sampling import SampleStream
from dmt_ds.data.sources import open_source
from dmt_ds.data.views import CropSpec
from dmt_ds.distill.losses import spatial_fusion_loss, token_fusion_loss
from dmt_ds.errors import ConfigError

KEYS = sorted(flatten(load_config("vit_tiny")))
SECTIONS = sorted({key.partition(".")[0] for key in KEYS})
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(SECTIONS) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
ODD_TEXT = st.sampled_from(
    ["1e400", "{", "[1", "&a *a", "!!python/object/apply:os.system [touch MARK]", "~", "0x1f", "2001-01-01", "'"]
)


def resolved_or_one_line_a_finding(load) -> None:
    """A run that is kept as it is, or a ConfigError; nothing else may come out."""
    try:
        config = load()
    except ConfigError as error:
        told = str(error)
        assert all(line.strip() for line in told.split("\n"))
        return
    assert isinstance(config, RunConfig)
    assert config_from_yaml(to_yaml(config)) == config


def test_examples_can_be_new_ones_each_time_and_one_that_failed_can_be_repeated():
    random = settings.get_profile("random")
    assert not random.derandomize and random.print_blob


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(st.sampled_from(KEYS) | st.text(max_size=8), st.text(max_size=12) | ODD_TEXT | VALUES.map(str)),
        max_size=4,
    )
)
def test_whatever_overrides_are_given_they_resolve_or_are_told(pairs):
    resolved_or_one_line_a_finding(lambda: load_config("vit_tiny", [f"{key}={value}" for key, value in pairs]))
    assert not Path("MARK").exists()


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from([*SECTIONS, "base"]) | st.text(max_size=5), VALUES, max_size=4))
def test_whatever_a_recipe_holds_it_resolves_or_is_told(tmp_path_factory, tree):
    recipe = tmp_path_factory.mktemp("recipes") / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    resolved_or_one_line_a_finding(lambda: load_config(recipe))


@settings(max_examples=100)
@given(st.binary(max_size=60) | ODD_TEXT.map(str.encode))
def test_whatever_bytes_a_recipe_is_it_resolves_or_is_told(tmp_path_factory, content):
    recipe = tmp_path_factory.mktemp("recipes") / "recipe.yaml"
    recipe.write_bytes(content)
    resolved_or_one_line_a_finding(lambda: load_config(recipe))


@settings(max_examples=25)
@given(
    attempts=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=3),
    num_images=st.integers(5, 40),
    seed=st.integers(0, 2**31 - 1),
)
def test_the_loader_shows_each_image_once_an_epoch_whatever_restarts_and_ranks(attempts, num_images, seed):
    """Attempts one after the other, each with its own ranks, micro-batch and accumulation; each makes two steps."""
    source = open_source(DataConfig(max_train_images=num_images), "train")
    shown: list[int] = []
    for world, micro_batch, accumulation in attempts:
        step_images: list[list[torch.Tensor]] = []
        for rank in range(world):
            loader = TrainLoader(
                TrainBatchMaker(source, [CropSpec(8)], seed, "stop"), SampleStream(num_images, seed),
                micro_batch_size=micro_batch, rank=rank, world_size=world,
            )  # fmt: skip
            step_images.append([batch.indices for batch in loader.batches(len(shown), 2 * accumulation, accumulation)])
        shown += torch.cat([batch for of_turn in zip(*step_images, strict=True) for batch in of_turn]).tolist()
    for start in range(0, len(shown) - num_images + 1, num_images):
        assert sorted(shown[start : start + num_images]) == list(range(num_images))
    assert len(set(shown[len(shown) // num_images * num_images :])) == len(shown) % num_images


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 3),
    tokens=st.integers(2, 6),
    width=st.integers(2, 6),
    scale=st.floats(0.01, 20.0),
)
@pytest.mark.parametrize("direction", ["student_teacher", "teacher_student"])
@pytest.mark.parametrize("loss", [token_fusion_loss, spatial_fusion_loss])
def test_losses_feel_no_shift_and_no_order_and_cost_nothing_at_their_target(
    loss, direction, seed, batch, tokens, width, scale
):
    generator = torch.Generator().manual_seed(seed)
    student, fused = (
        torch.randn(batch, 1 + tokens, width, generator=generator, dtype=torch.float64) * scale for _ in range(2)
    )
    plain = loss(student, fused, direction=direction)
    assert plain >= -1e-12 and loss(fused, fused, direction=direction).abs() < 1e-12
    per_token, per_channel = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((batch, 1 + tokens, 1), (batch, 1, width))
    )
    shift = per_token if loss is token_fusion_loss else per_channel
    order = 1 + torch.randperm(tokens, generator=generator)
    order = torch.cat([torch.zeros(1, dtype=torch.long), order])
    images = torch.randperm(batch, generator=generator)
    channels = torch.randperm(width, generator=generator)
    for changed in (
        loss(student + shift, fused - 2 * shift, direction=direction),
        loss(student[:, order], fused[:, order], direction=direction),
        loss(student[images], fused[images], direction=direction),
        loss(student[..., channels], fused[..., channels], direction=direction),
    ):
        assert abs(changed - plain) <= 1e-9 * (1 + abs(plain))
    assume(batch > 1)
    parts = [loss(student[n : n + 1], fused[n : n + 1], direction=direction) for n in range(batch)]
    assert abs(sum(parts) / batch - plain) <= 1e-9 * (1 + abs(plain))
