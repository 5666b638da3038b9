"""A family in a recipe: its members, what they share, and what is wrong with it."""

import pytest

from dmt_ds.config.load import config_from_yaml, load_config, to_yaml
from dmt_ds.config.resume import differences
from dmt_ds.config.schema import RunConfig
from dmt_ds.errors import ConfigError


def load(*overrides: str) -> RunConfig:
    return load_config("vit_tiny", overrides)


def test_a_list_names_architectures_whose_settings_can_follow() -> None:
    config = load("family=[vit_tiny,vit_small]", "family.vit_small.optim.base_lr=1e-4", "student.drop_path=0.3")
    assert list(config.family) == ["vit_tiny", "vit_small"]
    small = config.family["vit_small"]
    assert (small.student.arch, small.student.drop_path, small.optim.base_lr) == ("vit_small", 0.3, 1e-4)
    assert config.family["vit_tiny"].optim == config.optim


def test_what_a_member_does_not_say_is_as_in_the_runs_own_sections() -> None:
    config = load("family.a.student.drop_path=0.2", "family.b.deepspeed=student_zero1_bf16", "optim.weight_decay=0.1")
    assert config.family["a"].student == config.student.model_copy(update={"drop_path": 0.2})
    assert config.family["a"].deepspeed == config.train.deepspeed
    assert config.family["b"].student == config.student
    assert config.family["b"].optim.weight_decay == 0.1


def test_a_family_survives_being_saved() -> None:
    config = load("family.a.optim.base_lr=1e-4", "family.b.student.arch=vit_small")
    assert config_from_yaml(to_yaml(config)) == config


def test_a_list_takes_the_place_of_a_recipes_members() -> None:
    assert list(load_config("vit_family", ["family=[vit_small]"]).family) == ["vit_small"]
    assert load_config("vit_family", ["family=[]"]).family == {}


@pytest.mark.parametrize("name", ["vit_tiny", "vit_small", "vit_base"])
def test_a_member_is_the_run_of_its_own_recipe(name: str) -> None:
    member = load_config("vit_family").students()[name]
    single = load_config(name)
    own = ("output_dir", "tracking")
    assert member.model_dump(exclude=set(own)) == single.model_dump(exclude=set(own))
    assert (member.output_dir, member.tracking.parent) == (f"runs/vit_family/{name}", "vit_family")
    assert differences(member.model_dump(mode="json"), single.model_dump(mode="json")) == []


def test_a_run_that_is_no_family_has_one_student() -> None:
    assert load().students() == {"": load()}


def test_members_stand_under_the_parent_that_the_family_is_given() -> None:
    config = load("family=[vit_tiny]", "tracking.parent=study", "tracking.run_name=mine")
    (member,) = config.students().values()
    assert (member.tracking.parent, member.tracking.run_name) == ("study", None)


def test_architectures_of_a_list_are_not_hidden_by_the_shape_of_the_recipe() -> None:
    with pytest.raises(ConfigError) as error:
        load_config("small_dmt", ["family=[vit_tiny,vit_small]"])
    assert str(error.value).endswith(
        "family.vit_small: its architecture vit_small would get the run's embed_dim, depth, num_heads: for its own set "
        "family.vit_small.student.embed_dim=null family.vit_small.student.depth=null "
        "family.vit_small.student.num_heads=null"
    )
    nulls = ["student.embed_dim=null", "student.depth=null", "student.num_heads=null"]
    for remedy in (nulls, [f"family.vit_small.{null}" for null in nulls]):
        config = load_config("small_dmt", ["family=[vit_tiny,vit_small]", *remedy])
        small = config.family["vit_small"].student
        assert (small.arch, small.embed_dim, small.depth, small.num_heads) == ("vit_small", None, None, None)
        assert config_from_yaml(to_yaml(config)) == config
    own = ["family.wide.student={arch: vit_small, embed_dim: 128, depth: 6, num_heads: 4}"]
    assert config_from_yaml(to_yaml(load_config("small_dmt", own))).family["wide"].student.embed_dim == 128


def test_a_members_part_of_a_shape_stands_beside_its_own_nulls() -> None:
    with pytest.raises(ConfigError, match=r"embed_dim, num_heads: for its own set .*embed_dim=null .*num_heads=null$"):
        load_config("small_dmt", ["family={a: {student: {arch: vit_small, depth: 6}}, b: {}}"])
    own = "family={a: {student: {arch: vit_small, depth: 6, embed_dim: null, num_heads: null}}, b: {}}"
    family = load_config("small_dmt", [own]).family
    small, run = family["a"].student, family["b"].student
    assert (small.embed_dim, small.depth, small.num_heads) == (None, 6, None)
    assert run == load_config("small_dmt").student, "the other member keeps the run's shape"


def test_null_for_a_members_section_or_engine_is_as_in_the_run() -> None:
    family = load("family={a: {student: null, optim: {base_lr: 1e-4}, deepspeed: null}}").family
    assert family["a"].deepspeed == load().train.deepspeed
    assert family["a"].student == load().student


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["family=[vit_tiny,vit_tiny]"], "command line: family: 'vit_tiny' is given twice"),
        (["family=vit_tiny"], "command line: family=vit_tiny: must have keys"),
        (["family.a=vit_tiny"], "family.a=vit_tiny: is a section; set its keys"),
        (["family.a.student.dpth=3"], "family.a.student.dpth: unknown key. Did you mean 'depth'?"),
        (["family.a.optim.base_lr=-1"], "family.a.optim.base_lr=-1: must be > 0"),
        (["family.a.teachers.use=[mae]"], "family.a.teachers: unknown key. Keys here: student, optim, deepspeed"),
        (["family.checkpoints.student.arch=vit_tiny"], "family.checkpoints: names a folder"),
        (["family.a.student.patch_size=15"], "not a multiple of family.a.student.patch_size 15"),
        (["family={a: {}, b: {}}"], "family.b: is the same student as family.a: leave one out"),
        (["family=[vit_tiny]", "task=mae"], "family: task mae has no teachers that students could share"),
        (["family=[vit_tiny]", "task=classify"], "family: task classify has no teachers"),
    ],
)
def test_what_is_wrong_with_a_family_is_one_clear_line(overrides: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(*overrides)
    (line,) = str(error.value).splitlines()
    assert complaint in line
