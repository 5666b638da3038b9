"""What a run's record is found by."""

import pytest

from dmt_ds.commands.record import losses_in_use
from dmt_ds.config.load import load_config


@pytest.mark.parametrize(
    ("overrides", "losses"),
    [
        ("task=dmt", ["tfd", "sfd"]),
        ("task=dmt distill.tfd_weight=0 tinymim.qk_weight=0", ["sfd"]),
        ("task=tinymim", ["qk", "vv"]),
        ("task=tinymim tinymim.vv_weight=0 distill.tfd_weight=0", ["qk"]),
        ("task=mae", []),
    ],
)
def test_a_distillation_is_tagged_with_the_losses_it_uses(overrides: str, losses: list[str]) -> None:
    teacher = "teachers.models.mae.source=/weights/mae.pth"
    assert losses_in_use(load_config(None, [teacher, *overrides.split()])) == losses
