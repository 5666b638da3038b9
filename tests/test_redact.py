"""What is a secret is left out wherever it stands, and nothing else is."""

import logging
import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dmt_ds import redact
from dmt_ds.redact import (
    MaskingFormatter,
    holds_secret,
    is_secret_name,
    masked,
    masked_code,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789_-.~"
WORD = st.text(LETTERS, min_size=8, max_size=30).filter(lambda text: re.search("[^0-9.e-]", text))  # no mere number
PASSWORD = st.text("abcXYZ0123456789_-.~/@:%!$", min_size=8, max_size=30).filter(lambda text: "://" not in text)
WORDS = st.text("abc xyz,;()", max_size=20)


def test_users_and_passwords_are_masked_wherever_they_stand() -> None:
    text = "no answer from http://me:pw@host:5000/api nor postgresql://you:p%40w@db/mlflow?password=pw&x=1"
    assert masked(text) == "no answer from http://***@host:5000/api nor postgresql://***@db/mlflow?password=***&x=1"
    assert masked("images of a@b.org at http://host/path@v1") == "images of a@b.org at http://host/path@v1"


@settings(max_examples=20)
@given(secret=WORD, before=WORDS, after=WORDS)
@pytest.mark.parametrize(
    "shape",
    [
        "http://me:{}@host/x",
        "http://{}@host",
        "x?token={}&y=1",
        "https://host/api?access_token={}",
        "https://store/a.bin?sv=1&sig={}&se=2",
        "https://s3/a?X-Amz-Signature={}&X-Amz-Date=1",
        "api_key={}",
        "MLFLOW_TRACKING_PASSWORD={}",
        "DB_PWD={}",
        "export OPENAI_KEY={}",
        "DB_PASS='correct horse {}'",
        "--hub_token={}",
        "aws_secret_access_key = {}",
        "{{'password': '{}'}}",
        '{{"hub_token": "{}"}}',
        "password: {}",
        "X-Auth-Token: {}",
        "Server=db;Uid=me;Pwd={};x=1",
        "Authorization: Bearer {}",
        "hf_{}",
        "hub/sk-proj-{}",
    ],
)
def test_a_secret_of_any_shape_is_gone(shape: str, secret: str, before: str, after: str) -> None:
    if shape in ("hf_{}", "hub/sk-proj-{}"):
        secret = "".join(letter for letter in secret if letter.isalnum()) + "QxZ0123456789abc"
    told = masked(f"{before} {shape.format(secret)} {after}")
    assert secret not in told and told.startswith(before) and told.endswith(after)


@given(password=PASSWORD, before=WORDS, after=WORDS)
def test_a_password_in_a_uri_is_gone_whatever_is_in_it(password: str, before: str, after: str) -> None:
    assume(not re.match(r"\d+([/]|$)", password))  # as of a port
    told = masked(f"{before} postgresql://me:{password}@db/mlflow {after}")
    assert told == f"{before} postgresql://***@db/mlflow {after}"


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-0123456789abcdefABCDEF",
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SflKxwRJSMeKKF2QT4fw",
        "ghp_0123456789abcdef",
        "x_glpat-0123456789abcdef",
        "dapi0123456789abcdef0123456789abcdef",
        "hf_AbcdefghIjklmnopQrstuvwxYzabcdefgh",
        "ghp_aBcDeFgHiJkLmNoPqRsTuVwXyZ0123456789",
        "sk-ant-api03-aBcDeFgH_0123456789-aBcDeFgH0123456789",
        "pk-lf-01234567-89ab-cdef-0123-456789abcdef",
    ],
)
def test_a_token_is_known_by_its_beginning_wherever_it_stands(secret: str) -> None:
    assert holds_secret(f"runs/{secret}/x") and secret[6:] not in masked(f"401 for {secret}, again")


@pytest.mark.parametrize(
    "line",
    [
        "teachers.use=[mae,ibot], num_tokens=197, tokens: 196",
        "recipe.yaml: teachers.models.mae.class_token=maybe: must be true or false",
        "class token: 0.31, patch tokens: 0.27; loss_token=0.25, token_weight=0.5",
        "global_pool=token, without_class_token=[mae], cls_token: [1, 1, 768], use_token=true, per_token: x",
        "{'cls_token': 'drop', 'mask_token': \"zeros\"}",
        "settings are key=value, such as optim.base_lr=1e-3; checkpoint_key=teacher; PWD=/home/me",
        "tracking.uri=https://h/api: holds a password or a token, which the run's record would keep",
        "a basic configuration for the bearer certificates",
        "http://host:5000/#/runs/1?by=me@example.org and s3://bucket/a@2:3/x and http://[::1]:5000/x@y",
        "no answer from 127.0.0.1:29500: task-0123456789abcdefghijkl; hf_hub_download; risk-weights-of-the-whole-model",
        "timm:vit_base_patch16_224.mae, hf-hub:timm/vit_small_patch14_dinov2.lvd142m@main",
        "output_dir=runs/sk-learn-baseline-vit-small-400ep",
        "output_dir=runs/sk-learn-Baseline-ViT-small-400ep",
        "data.path=/data/hf_imagenet1kresized256",
        "name=ghs_imagenet_vit_s",
        "name=basic Transformer2",
        "IMAGE_KEY=image, LABEL_KEY: 0, FIRST_PASS: done, SECOND_PASS: 12.5 s, _MAY_PASS = (errno.ENOSPC, 1)",
        "query_token: [1, 32, 768], register_token: (1, 4, 768)",
        "if self._token:\n    raise CheckpointError(self._secret:\n    x)",
    ],
)
def test_innocent_lines_stay_as_they_are(line: str) -> None:
    assert masked(line) == line and not holds_secret(line)


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        ("DB_PWD", True),
        ("OPENAI_KEY", True),
        ("GITHUB_PAT", True),
        ("HF_TOKEN", True),
        ("AZURE_STORAGE_CONNECTION_STRING", True),
        ("PWD", False),
        ("OLDPWD", False),
        ("TOKENIZERS_PARALLELISM", False),
        ("MAX_OUTPUT_TOKENS", False),
        ("PATH", False),
    ],
)
def test_a_secret_variable_is_known_by_its_name(name: str, is_secret: bool) -> None:
    assert is_secret_name(name) == is_secret


def test_a_value_is_no_secret_only_where_it_is_the_absolute_path_of_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "correct-horse").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "correct-horse")
    monkeypatch.setenv("SSH_KEY", str(tmp_path / "correct-horse"))
    assert masked("correct-horse") == "***"
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
    assert masked(f"{tmp_path}/correct-horse") == f"{tmp_path}/correct-horse"


def test_a_secret_of_the_environment_is_left_out_of_all_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "correct-horse")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct-horse-battery")
    monkeypatch.setenv("USE_TOKEN", "true")
    assert masked("it is true: correct-horse-battery, correct-horse") == "it is true: ***, ***"
    try:
        raise ValueError("401 for correct-horse")
    except ValueError as error:
        record = logging.LogRecord(
            "x", logging.ERROR, "x.py", 1, "asked %s", ("http://u:pw@h",), (type(error), error, None)
        )
    line = MaskingFormatter("%(message)s").format(record)
    assert line == "asked http://***@h\nValueError: 401 for ***"


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("http://me:pw@host", True),
        ("postgresql://me@db/x", True),
        ("it is correct-horse", True),
        ("https://host?token=abc", True),
        ("hf_" + "a" * 30, True),
        ("runs/tokens=3", False),
        ("timm:vit_base_patch16_224.mae", False),
        ("s3://bucket/a@2:3/x", False),
        ("runs/correct-horses", False),
        ("1280000 steps of 128000", False),
        ("runs/student-2", False),
        ("runs/students", False),
        ("runs/staple", True),
        ("runs/stapler", False),
    ],
)
def test_settings_that_hold_a_secret_are_told_from_others(
    text: str, holds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "correct-horse")
    monkeypatch.setenv("VNC_PASSWORD", "student")
    monkeypatch.setenv("DB_PASSWORD", "staple")
    monkeypatch.setenv("A_PASSWORD", "128000")
    assert holds_secret(text, own_words={"student"}) == holds


def test_a_plain_word_or_number_of_the_environment_is_masked_only_as_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "staple")
    monkeypatch.setenv("A_PASSWORD", "128000")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "correct-horse")
    told = "staple-gun, 128000: ?x=%3Dcorrect-horses"
    assert masked(f"{told}; stapler, 1280000") == "***-gun, ***: ?x=%3D***s; stapler, 1280000"


def test_a_value_that_can_not_say_itself_costs_who_logs_it_nothing() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("CUDA error: an illegal memory access")

    try:
        raise ValueError("http://u:pw@h")
    except ValueError:
        record = redact._masked_record("x", logging.ERROR, "x.py", 1, "of %r", (Broken(),), sys.exc_info())
    assert record.msg == "of %r" and "ValueError: http://***@h" in str(record.exc_text)


def test_the_packages_own_code_is_left_as_it_is_and_secrets_in_it_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in filter(is_secret_name, list(os.environ)):
        monkeypatch.delenv(name)
    monkeypatch.setenv("VNC_PASSWORD", "student")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "correct-horse")
    root = Path(redact.__file__).parents[1]
    for path in (*(root / "dmt_ds").rglob("*.py"), *(root / "dmt_ds").rglob("*.yaml"), *root.glob("ds_configs/*.json")):
        assert masked_code(text := path.read_text(encoding="utf-8")) == text, path
    line = "open('http://me:pw@host', 'correct-horse', 'ghp_0123456789abcdef')"
    assert masked_code(line) == "open('http://***@host', '***', 'ghp_***')"
