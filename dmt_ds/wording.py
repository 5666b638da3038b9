"""Pieces of messages: one line of a long text, the first of many names; knows nothing of the rest."""

from collections.abc import Sequence


def first_line(error: BaseException) -> str:
    """What another library's error says, without the lines below the first; its class's name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def one_line(text: str) -> str:
    """The whole text, with single spaces in place of line breaks."""
    return " ".join(text.split())


def few(things: Sequence[str], most: int) -> str:
    """The first of them, and dots if there are more: `a, b, ...`."""
    return ", ".join(things[:most]) + (", ..." if len(things) > most else "")


def few_counted(things: Sequence[str], most: int) -> str:
    """The first of them, and how many more there are: `a, b and 7 more`."""
    more = len(things) - most
    return ", ".join(things[:most]) + (f" and {more} more" if more > 0 else "")
