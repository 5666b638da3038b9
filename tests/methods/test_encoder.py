"""Where the weights of an encoder come from."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dmt_ds.errors import WeightsError
from dmt_ds.methods.encoder import build_encoder, encode, patch_embeddings, patch_positions
from dmt_ds.models.backbone_folder import save_backbone
from dmt_ds.models.vit import build_vit, tokens_of
from tests.methods import tiny

each_method = pytest.mark.parametrize("name", tiny.TEACHER_MAKERS)


def make_encoder(folder: Path) -> dict[str, Tensor]:
    """A run's encoder; its weights."""
    torch.manual_seed(7)
    state = build_vit(tiny.STUDENT, tiny.IMAGE_SIZE).state_dict()
    save_backbone(folder / "backbone", state, tiny.STUDENT, tiny.IMAGE_SIZE, provenance={})
    return state


@each_method
def test_an_encoder_starts_from_the_weights_that_are_asked_for(name: str, tmp_path: Path) -> None:
    expected = make_encoder(tmp_path)
    student = tiny.STUDENT.model_copy(update={"init_from": str(tmp_path)})
    task, fresh = tiny.task(name, student=student), tiny.task(name)
    found = task.backbone().state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    trained = {key: parameter.requires_grad for key, parameter in task.module.named_parameters()}
    assert trained == {key: parameter.requires_grad for key, parameter in fresh.module.named_parameters()}


@each_method
def test_weights_of_another_vit_are_refused(name: str, tmp_path: Path) -> None:
    make_encoder(tmp_path)
    student = tiny.STUDENT.model_copy(update={"init_from": str(tmp_path), "depth": 3})
    with pytest.raises(WeightsError, match=r"student\.init_from .* depth 3 against 2"):
        tiny.task(name, student=student)


def test_patches_with_their_positions_are_encoded_as_the_whole_vit_does_it() -> None:
    vit = build_encoder(tiny.STUDENT, tiny.IMAGE_SIZE).eval()
    torch.nn.init.normal_(vit.pos_embed)  # fixed ones are 0 for the class token, learned ones are not
    images = torch.randn(2, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    tokens = encode(vit, patch_embeddings(vit, images) + patch_positions(vit))
    torch.testing.assert_close(tokens, tokens_of(vit, images))
