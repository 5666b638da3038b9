"""Secrets are left out of whatever is shown or kept: logs, errors, params, tags, files of a run; knows no library."""

import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Collection, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

_HIDDEN = "***"
_VALUE = r"""(?:(?<=")(?:\\.|[^"\\])+|(?<=')(?:\\.|[^'\\])+|(?<!["'])(?:[^&\s'",;]|,(?=\S))+)"""
"""What stands behind a name: all of what is quoted, else up to where a text, a query or a list goes on."""
_PASSWORD = (
    r"pass(?:word|wd|phrase)|secrets?|credentials?"
    r"|(?:api|access|secret|private|account|auth|signing|encryption)[_-]?key"
)
_WORD_OF_A_VIT = "".join(f"(?<!{word}[_ ])" for word in ("class", "cls", "mask", "reg", "patch", "pos", "dist", "per"))
_NO_SECRET = (
    r"""(?!(?:true|false|none|null|-?\d{1,6}(?:\.\d+)?(?:e[-+]?\d+)?)\.?(?:[\s,;&'")\]}]|$))"""
    r"(?![\[({])"  # a shape
)
_NO_SHORT_WORD = (
    r"""(?![\[({]|\d{1,4}(?:\.\d{1,2})?(?:[\s,;]|$))"""
    r"""(?=[^\s"']{8}|[^\s"']*\d|(?<=["'])[^"'\n]{8})"""  # behind KEY and PASS, which are names of other things too
)

_NAMED = [
    # `password: x` and `secret = x` as people write them; of a token, which a ViT has many of, only what is surely one.
    re.compile(rf"""(?i)((?:{_PASSWORD})["']?[ \t]*[:=](?!=)[ \t]*["']?){_VALUE}"""),
    re.compile(rf"""(?i)({_WORD_OF_A_VIT}token["']?=["']?){_NO_SECRET}{_VALUE}"""),
    re.compile(rf"""(?i)([_-]{_WORD_OF_A_VIT}token:[ \t]*["']?){_NO_SECRET}{_VALUE}"""),
    re.compile(rf"""(?i)({_WORD_OF_A_VIT}token["'][ \t]*:[ \t]*["']){_NO_SECRET}{_VALUE}"""),
    re.compile(rf"""([A-Z0-9]_(?:KEY|PASS|PAT)[ \t]?[:=][ \t]?["']?){_NO_SHORT_WORD}{_VALUE}"""),
    re.compile(rf"""([A-Z0-9]_(?:PWD|PW)[ \t]?[:=][ \t]?["']?){_VALUE}"""),
    re.compile(rf"""((?:_pwd|(?<![A-Za-z])(?:pwd|Pwd))["']?[ \t]?[:=][ \t]?["']?){_VALUE}"""),
    re.compile(r"(?i)([?&;](?:x-(?:amz|goog)-)?sig(?:nature)?=)[^&\s'\"]+"),
    re.compile(r"(?i)(authorization[\"']?[ \t]*[:=][ \t]*[\"']?(?:(?:basic|bearer|digest|token) )?)[^\s\"',]+"),
    re.compile(r"\b([Bb]earer )(?=\S+[\dA-Z=])[A-Za-z0-9+/_.=~-]{8,}"),
]
_USER_INFO = re.compile(
    r"(?<=://)(?:"
    r"[^\s/@:\[\"]*:(?!\d+(?:[/?#\s]|$))(?:(?!://)[^\s\"])*"  # a password may hold / and @; a port is none
    r"|[^\s/@]*"
    r")@"
)
_RANDOM = (
    r"(?:(?=[A-Za-z]*\d)(?=[a-z\d]*[A-Z])[A-Za-z0-9]{16,}|[0-9a-f]{16,}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
)
"""What nobody writes: many letters, large and small, and digits at a stretch; or a long hexadecimal number."""
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    rf"(hf_|gh[opsur]_)(?:[A-Za-z0-9]{{30,}}|{_RANDOM})"
    r"|(github_pat_|glpat-|xox[abeprs]-)[A-Za-z0-9_-]{10,}"
    rf"|(sk-|pk-)(?:(?:[A-Za-z0-9]+[_-]+){{0,8}}{_RANDOM}|(?=[a-z\d_-]*[A-Z])(?=[A-Za-z_-]*\d)[\w-]{{48}})[A-Za-z0-9_-]*"
    r"|(AKIA|ASIA)[A-Z0-9]{16}|(AIza)[A-Za-z0-9_-]{30,}|(dapi)[0-9a-f]{32}"
    r"|(eyJ)[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?"
    r")"
)
"""Tokens whose beginning says what they are: of model hubs, forges, clouds, and signed JSON."""
_SECRET_NAME = re.compile(
    r"(?i)token(?!s|i[sz])|password|passwd|passphrase|secret|credential|connection_?string"
    r"|(?:api|access|private)_?key|_(?:key|pwd|pass|pw|pat)$"
)
_SHORTEST = 6
"""Shorter values of the environment are words like `true`, which would be blotted out of everything."""
_NUMBER = re.compile(r"\d+")
_PLAIN = re.compile(r"\d+|[a-z]+")
"""Such a value of the environment stands within other words and numbers too, by chance."""


def masked(text: str) -> str:
    """The text without users and passwords of URIs, tokens, and values of the environment's secret variables."""
    for value in _secrets(os.environ):
        text = _as_word(value).sub(_HIDDEN, text) if _PLAIN.fullmatch(value) else text.replace(value, _HIDDEN)
    return _without_known_forms(text)


def masked_code(text: str) -> str:
    """Source code without users and passwords of URIs, known tokens, and values of secret variables but plain words.

    Its names are left alone: `METADATA_KEY = "x"` is no secret, and a patch must still fit.
    """
    for value in _secrets(os.environ):
        if not _PLAIN.fullmatch(value):
            text = _as_word(value).sub(_HIDDEN, text)
    return _without_tokens(_USER_INFO.sub(f"{_HIDDEN}@", text))


def holds_secret(value: str, key: str = "", own_words: Collection[str] = ()) -> bool:
    """Whether the setting `key=value` must not be kept as it is; what chance makes of a secret variable is let pass.

    Args:
        value: what is set; values of secret variables are sought in it as whole words, if they are no plain numbers.
        key: what is sought by name stands in `key=value`.
        own_words: those that are ordinary in settings, whatever variables say.
    """
    told = (secret for secret in _secrets(os.environ) if not _NUMBER.fullmatch(secret) and secret not in own_words)
    if any(_as_word(secret).search(value) for secret in told):
        return True
    line = f"{key}={value}" if key else value
    return _without_known_forms(line) != line


def is_secret_name(name: str) -> bool:
    """Whether a variable of that name holds what nobody else may know."""
    return _SECRET_NAME.search(name) is not None


class MaskingFormatter(logging.Formatter):
    """Lines of a log, tracebacks too, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """The base's line, masked."""
        return masked(super().format(record))


def mask_all_that_is_said() -> None:
    """Keep secrets out of every logger's lines and all tracebacks of this process from now on; for the command's start.

    Libraries have handlers of their own, which no formatter of ours reaches: the records themselves are masked.
    """
    logging.setLogRecordFactory(_masked_record)
    sys.excepthook = _print_masked
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _print_masked_of_thread


_make_record = logging.getLogRecordFactory()


def _masked_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    record = _make_record(*args, **kwargs)
    with suppress(Exception):  # words and values don't fit, or a value can't say itself: the handler will tell
        record.msg, record.args = masked(record.getMessage()), ()
    if record.exc_info:
        record.exc_text = masked(logging.Formatter().formatException(record.exc_info))
    return record


def _print_masked(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    sys.stderr.write(masked("".join(traceback.format_exception(kind, error, trace))))


def _print_masked_of_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        sys.stderr.write(f"Exception in thread {args.thread.name if args.thread else '?'}:\n")
        _print_masked(args.exc_type, args.exc_value, args.exc_traceback)


def _secrets(environ: Mapping[str, str]) -> list[str]:
    """The longest first: one may be part of another. The path of a file that holds a secret is none."""
    values = {value for name, value in environ.items() if is_secret_name(name) and len(value) >= _SHORTEST}
    kept = (value for value in values if not (os.path.isabs(value) and os.path.exists(value)))
    return sorted(kept, key=len, reverse=True)


def _as_word(value: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Za-z0-9]){re.escape(value)}(?![A-Za-z0-9])")


def _without_known_forms(text: str) -> str:
    text = _USER_INFO.sub(f"{_HIDDEN}@", text)
    for pattern in _NAMED:
        text = pattern.sub(rf"\1{_HIDDEN}", text)
    return _without_tokens(text)


def _without_tokens(text: str) -> str:
    return _TOKEN.sub(lambda found: f"{found[found.lastindex or 0]}{_HIDDEN}", text)
