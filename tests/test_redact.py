"""What is a secret is left out wherever it stands, and nothing else is."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmt_ds.redact import MaskingFormatter, holds_secret, masked

WORD = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-.~", min_size=8, max_size=30)
WORDS = st.text("abc xyz,;()", max_size=20)


def test_users_and_passwords_are_masked_wherever_they_stand() -> None:
    text = "no answer from http://me:pw@host:5000/api nor postgresql://you:p%40w@db/mlflow?password=pw&x=1"
    assert masked(text) == "no answer from http://***@host:5000/api nor postgresql://***@db/mlflow?password=***&x=1"
    assert masked("images of a@b.org at http://host/path@v1") == "images of a@b.org at http://host/path@v1"


@given(secret=WORD, before=WORDS, after=WORDS)
@pytest.mark.parametrize(
    "shape",
    [
        "http://me:{}@host/x",
        "http://{}@host",
        "x?token={}&y=1",
        "api_key={}",
        "Authorization: Bearer {}",
        "hf_{}aaaaaa",
    ],
)
def test_a_secret_of_any_shape_is_gone(shape: str, secret: str, before: str, after: str) -> None:
    if shape.startswith("hf_"):
        secret = "".join(letter for letter in secret if letter.isalnum()) + "0123456789"
    told = masked(f"{before} {shape.format(secret)} {after}")
    assert secret not in told and told.startswith(before) and told.endswith(after)


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
        ("postgresql://me@db/x", False),
        ("https://host?token=abc", True),
        ("hf_" + "a" * 30, True),
        ("runs/tokens=3", False),
        ("timm:vit_base_patch16_224.mae", False),
        ("s3://bucket/a@2:3/x", False),
    ],
)
def test_settings_that_hold_a_secret_are_told_from_others(text: str, holds: bool) -> None:
    assert holds_secret(text) == holds
