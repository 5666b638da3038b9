"""MoCo v3's contrast against a loop, its key network, what is frozen."""

import math

import torch
from torch import nn

from dmt_ds.engine.task import Progress
from dmt_ds.methods.heads import batch_norm_mlp
from dmt_ds.methods.moco_v3 import contrast
from tests.methods import tiny


def looped_contrast(queries, keys, temperature):
    """Loss and accuracy, one scalar at a time."""
    losses, hits = [], []
    for i, query in enumerate(queries):
        cosines = [float(query @ key / (query.norm() * key.norm())) for key in keys]
        total = sum(math.exp(cosine / temperature) for cosine in cosines)
        losses.append(-math.log(math.exp(cosines[i] / temperature) / total))
        hits.append(max(range(len(keys)), key=lambda j: cosines[j]) == i)
    return 2 * temperature * sum(losses) / len(losses), sum(hits) / len(hits)


def test_contrast_is_a_loop_over_queries_and_keys():
    torch.manual_seed(0)
    queries = torch.randn(6, 8)
    keys = queries + torch.randn(6, 8)
    loss, accuracy = contrast(queries, keys, 0.2)
    expected_loss, expected_accuracy = looped_contrast(queries, keys, 0.2)
    torch.testing.assert_close(loss, torch.tensor(expected_loss))
    torch.testing.assert_close(accuracy, torch.tensor(expected_accuracy))


def test_no_gradient_flows_into_the_keys():
    queries, keys = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)
    contrast(queries, keys, 0.2)[0].backward()
    assert queries.grad is not None and keys.grad is None


def test_a_query_meets_the_key_of_the_other_crop():
    task = tiny.task("moco_v3")
    data = tiny.batch(task, 4)
    module = task.module.eval()  # no drop path; the heads normalise by the batch all the same
    images = torch.cat(
        [a(crop, data.seeds, v) for v, (a, crop) in enumerate(zip(task._augments, data.crops, strict=True))]
    )
    seeds = torch.cat([data.seeds, data.seeds])
    (query_1, query_2), (key_1, key_2) = module(images, seeds), module.encoder(images, seeds)
    expected = contrast(query_1, key_2, 0.2)[0] + contrast(query_2, key_1, 0.2)[0]
    torch.testing.assert_close(task.losses(module, data, Progress(0, 10), False).loss, expected)


def test_the_last_norm_of_a_head_has_neither_gain_nor_shift():
    head = batch_norm_mlp((8, 16, 16, 4))
    assert [layer.affine for layer in head if isinstance(layer, nn.BatchNorm1d)] == [True, True, False]
    assert [layer.bias for layer in head if isinstance(layer, nn.Linear)] == [None] * 3
    assert isinstance(head[-1], nn.BatchNorm1d)


def test_the_patch_embedding_stays_as_it_was_drawn():
    task = tiny.task("moco_v3")
    before = task.backbone().patch_embed.proj.weight.clone()
    tiny.train(task, steps=2)
    assert torch.equal(task.backbone().patch_embed.proj.weight, before)


def test_query_key_and_value_are_drawn_as_three_matrices():
    vit = tiny.task("moco_v3").backbone()
    bound = math.sqrt(6 / (48 + 48))  # xavier's, of one 48 x 48 matrix
    for block in vit.blocks:
        for matrix in block.attn.qkv.weight.chunk(3):
            assert 0.98 * bound < matrix.abs().max() <= bound
    assert vit.cls_token.abs().max() < 1e-5
    assert not vit.patch_embed.proj.bias.any()


def test_the_key_network_follows_the_trained_one():
    task = tiny.task("moco_v3")
    key = task._keys.network.projector[0].weight
    before = key.clone()
    tiny.train(task, steps=1)
    torch.testing.assert_close(key, 0.9 * before + 0.1 * task.module.encoder.projector[0].weight)
    assert not torch.equal(key, before)


def test_the_published_encoder_is_the_trained_one():
    task = tiny.task("moco_v3")
    assert task.backbone() is task.module.encoder.vit
