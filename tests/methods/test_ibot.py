"""iBOT and DINO: what the student sees, what the prototypes and the teacher do."""

import pytest
import torch

from dmt_ds.engine.task import Progress
from dmt_ds.errors import ConfigError
from dmt_ds.methods.heads import PrototypeHead
from dmt_ds.methods.ibot import IbotTask, Views, class_temperature, patch_temperature
from dmt_ds.methods.masking import hide_patches
from tests.methods import tiny

START = Progress(0, 10)


def large_views(count: int = 4) -> Views:
    return Views(torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(count))


def test_the_loss_is_class_loss_plus_weighted_patch_loss():
    task = IbotTask(tiny.STUDENT, tiny.IBOT.model_copy(update={"patch_loss_weight": 0.5}), 16)
    out = task.losses(task.module, tiny.batch(task), START, False)
    expected = out.metrics["train/loss_class"] + 0.5 * out.metrics["train/loss_patch"]
    torch.testing.assert_close(out.loss.detach(), expected)


def test_class_tokens_and_patches_have_temperatures_of_their_own():
    section = tiny.IBOT.model_copy(
        update={
            **{"teacher_temperature": 0.03, "teacher_temperature_final": 0.05, "teacher_temperature_warmup": 0.5},
            **{"teacher_patch_temperature": 0.02, "teacher_patch_temperature_final": 0.08},
        }
    )
    assert [class_temperature(section)(done) for done in (0, 0.25, 0.5, 1)] == pytest.approx([0.03, 0.04, 0.05, 0.05])
    assert [patch_temperature(section)(done) for done in (0, 0.25, 0.5, 1)] == pytest.approx([0.02, 0.05, 0.08, 0.08])


def test_dino_hides_nothing_and_has_no_patch_loss():
    task = tiny.task("dino")
    seen = []

    def model(large, hidden, small):
        seen.append(hidden)
        return task.module(large, hidden, small)

    out = task.losses(model, tiny.batch(task), START, False)
    assert seen == [None]
    assert set(out.metrics) == {"train/loss_class"}


def test_hidden_patches_do_not_reach_the_student():
    module = tiny.task("ibot").module.eval()
    large = large_views()
    hidden = hide_patches(large.seeds, "mask", 16, (0.5, 0.5), 1.0)
    pixels = hidden.mask.reshape(4, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other = large._replace(images=torch.where(pixels, torch.randn(4, 3, 16, 16), large.images))
    for logits, same in zip(module(large, hidden), module(other, hidden), strict=True):
        assert torch.equal(logits, same)
    assert not torch.equal(module(large)[0], module(other)[0])


def test_the_teacher_sees_what_the_student_must_guess():
    task = tiny.task("ibot")
    state = task.state_dict()
    state["teacher.mask_token"] = torch.full_like(state["teacher.mask_token"], float("nan"))
    task.load_state_dict(state)
    out = task.losses(task.module, tiny.batch(task), START, False)
    assert out.metrics["train/loss_patch"] > 0  # something was hidden
    assert out.loss.isfinite()


def test_patch_logits_are_those_of_the_slots():
    torch.manual_seed(0)
    task = IbotTask(tiny.STUDENT, tiny.IBOT.model_copy(update={"head_batch_norm": False}), 16)
    module = task.module.eval()
    large = large_views()
    hidden = hide_patches(large.seeds, "mask", 16, (0.2, 0.5), 0.5).shown()
    from dmt_ds.models.vit import tokens_of

    tokens = tokens_of(module.vit, large.images)  # nothing is hidden: the plain ViT
    class_logits, patch_logits = module(large, hidden)
    torch.testing.assert_close(class_logits, module.head(tokens[:, 0]))
    for crop in range(4):
        expected = module.head(tokens[crop, 1 + hidden.slots[crop]])
        torch.testing.assert_close(patch_logits[crop], expected)


def test_a_prototype_counts_by_its_direction_only():
    head = PrototypeHead(8, 16, 4, 6, batch_norm=False)
    rows = torch.randn(5, 8)
    before = head(rows)
    with torch.no_grad():
        head.prototypes *= torch.rand(6, 1) + 0.5
    torch.testing.assert_close(head(rows), before)
    assert before.abs().max() <= 1 + 1e-6  # cosines


@pytest.mark.parametrize("by_autocast", [False, True], ids=["bf16 weights", "autocast"])
def test_cosines_are_not_rounded_to_bf16(by_autocast):
    torch.manual_seed(0)
    head = PrototypeHead(8, 16, 64, 32, batch_norm=False)
    rows = torch.randn(200, 8).bfloat16()
    if not by_autocast:
        head.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=by_autocast):
        logits, bottleneck = head(rows), head.mlp(rows)
    assert (logits.dtype, bottleneck.dtype) == (torch.float32, torch.bfloat16)
    units = [torch.nn.functional.normalize(matrix.double(), dim=1) for matrix in (bottleneck, head.prototypes)]
    assert (logits - units[0] @ units[1].T).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["ibot", "dino"])
def test_after_a_step_each_centre_that_is_used_has_moved(name):
    task = tiny.task(name)
    tiny.train(task, steps=1, size=4)
    state = task.state_dict()
    assert state["class_centre"].isfinite().all() and state["class_centre"].abs().max() > 0
    assert (state["patch_centre"].abs().max() > 0) == (name == "ibot")


def test_the_prototypes_are_frozen_for_the_first_share_of_the_run():
    def frozen_until(**settings):
        return IbotTask(tiny.STUDENT, tiny.IBOT.model_copy(update=settings), 16).frozen_until

    assert frozen_until(freeze_last_layer=0.2) == {"head.prototypes": 0.2}
    assert frozen_until(freeze_last_layer=0.0) == {}
    assert "head.prototypes" in dict(IbotTask(tiny.STUDENT, tiny.IBOT, 16).module.named_parameters())


def test_the_published_encoder_is_the_momentum_teacher():
    task = tiny.task("ibot")
    start = task.backbone().blocks[0].attn.qkv.weight.clone()
    tiny.train(task, steps=1)
    trained = task.module.vit.blocks[0].attn.qkv.weight
    torch.testing.assert_close(task.backbone().blocks[0].attn.qkv.weight, 0.98 * start + 0.02 * trained)


def test_two_large_crops_come_first_then_the_small_ones():
    task = tiny.task("ibot")
    specs = task.crops(tiny.DATA)
    assert [spec.size for spec in specs] == [16, 16, 8, 8]
    assert [spec.scale for spec in specs] == [(0.5, 1.0)] * 2 + [(0.3, 0.5)] * 2
    assert {spec.rotation_degrees for spec in specs} == {10.0}


def test_every_crop_has_a_seed_of_its_own():
    task, seen = tiny.task("ibot"), []

    def model(large, hidden, small):
        seen.extend([large.seeds, small.seeds])
        return task.module(large, hidden, small)

    batch = tiny.batch(task, 3)
    task.losses(model, batch, START, False)
    assert torch.equal(seen[0][:3], batch.seeds)
    assert len(torch.cat(seen).unique()) == 3 * (2 + 2)


def test_small_crops_that_are_no_whole_number_of_patches_are_refused():
    with pytest.raises(
        ConfigError, match=r"ibot\.local_crop_size 10 is not a multiple of student\.patch_size 4: take 8 or 12"
    ):
        IbotTask(tiny.STUDENT, tiny.IBOT.model_copy(update={"local_crop_size": 10}), 16)


def test_without_small_crops_the_two_large_ones_are_compared():
    task = IbotTask(tiny.STUDENT, tiny.IBOT.model_copy(update={"local_crops": 0}), 16)
    assert len(task.crops(tiny.DATA)) == 2
    assert task.losses(task.module, tiny.batch(task), START, False).loss.isfinite()


def test_log_steps_show_both_entropies_of_the_teacher():
    task = tiny.task("ibot")
    metrics = task.losses(task.module, tiny.batch(task), START, True).metrics
    assert 0 <= metrics["train/teacher_entropy_each"] <= metrics["train/teacher_entropy_mean"]
