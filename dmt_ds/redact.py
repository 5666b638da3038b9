"""Secrets are left out of whatever is shown or kept: logs, errors, params, tags, files of a run; knows no library."""

import logging
import os
import re
from collections.abc import Mapping

_USER_INFO = re.compile(r"(?<=://)[^\s/@]*@")
_PASSWORD_IN_URI = re.compile(r"://[^\s/@:]*:[^\s/@]+@")
_ARGUMENT = re.compile(r"(?i)\b(password|passwd|token|secret|api_?key|access_?key)=[^&\s'\",;]+")
_HEADER = re.compile(r"(?i)\b(basic|bearer) [A-Za-z0-9+/_.=~-]{8,}")
_TOKEN = re.compile(r"\b(hf_|gh[opsu]_|github_pat_|glpat-|xox[bp]-)[A-Za-z0-9_-]{10,}")
_SECRET_NAME = re.compile(r"(?i)token|password|passwd|secret|api_?key|access_?key|private_?key|credential")
_SHORTEST = 6
"""Shorter values of the environment are words like `true`, which would be blotted out of everything."""


def masked(text: str) -> str:
    """The text without users and passwords of URIs, tokens, and values of the environment's secret variables."""
    for value in _secrets(os.environ):
        text = text.replace(value, "***")
    text = _USER_INFO.sub("***@", text)
    text = _ARGUMENT.sub(r"\1=***", text)
    text = _HEADER.sub(r"\1 ***", text)
    return _TOKEN.sub(r"\1***", text)


def holds_secret(text: str) -> bool:
    """Whether a setting must not be kept as it is: it has a password or a token in it."""
    return any(pattern.search(text) for pattern in (_PASSWORD_IN_URI, _ARGUMENT, _TOKEN))


def is_secret_name(name: str) -> bool:
    """Whether a variable of that name holds what nobody else may know."""
    return _SECRET_NAME.search(name) is not None


class MaskingFormatter(logging.Formatter):
    """Lines of a log, tracebacks too, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """As the base's, masked."""
        return masked(super().format(record))


def _secrets(environ: Mapping[str, str]) -> list[str]:
    """The longest first: one may be part of another."""
    values = {value for name, value in environ.items() if is_secret_name(name) and len(value) >= _SHORTEST}
    return sorted((value for value in values if not os.path.exists(value)), key=len, reverse=True)
