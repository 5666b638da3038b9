"""YAML in which a scalar stays text until its field says what it is; knows nothing of the fields.

PyYAML alone reads `1e-4` as text, `no` as false and `12:30` as 750. Here only null is resolved; pydantic reads the rest
with the field's type in hand, so that `base_lr: 1e-4` is a number and the tag `commit: 12e4567` stays a name.
"""

import re
from typing import Any

import yaml

from dmt_ds.errors import ConfigError
from dmt_ds.wording import one_line

_TAGS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("str", "null", "map", "seq", "merge"))
"""What a node may be; another one was asked for by name, as in `!!int 3`."""

_PLAIN = re.compile(r"(?!null$)[A-Za-z0-9_/][A-Za-z0-9_./+-]*", re.IGNORECASE)
"""One-line text without a character that could mean anything to YAML."""


class _TextLoader(yaml.SafeLoader):
    """SafeLoader that resolves null and `<<` only, and refuses keys that are given twice or are no text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (typed in the base class)
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """As SafeLoader makes it, but the fields say what a value is, never a tag: making it would raise anything."""
        if node.tag not in _TAGS:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise yaml.MarkedYAMLError(None, None, f"tag {tag} has no use here: take it out", node.start_mark)
        return super().construct_object(node, deep)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """As SafeLoader has it, but nothing that holds itself, which no walk over settings would end in."""
        node = super().compose_node(parent, index)
        if node is not None and node.end_mark is None:
            raise yaml.MarkedYAMLError(None, None, "an anchor contains itself", node.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping, as SafeLoader makes it, but never one that lost a key silently."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(None, None, "a key must be text, not a list or mapping", key.start_mark)
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(None, None, f"key '{key.value}' is given twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, origin: str) -> Any:
    """Mappings, lists, None and text; everything else stays text.

    Raises:
        ConfigError: `origin`, with line and column, is no YAML.
    """
    try:
        return yaml.load(text, Loader=_TextLoader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{origin}:{mark.line + 1}:{mark.column + 1}" if mark else origin
        raise ConfigError(f"{where}: not valid YAML: {one_line(error.problem or error.context or '')}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: not valid YAML: {one_line(str(error))}") from None


def parse_value(text: str, origin: str) -> Any:
    """One YAML value as it is written behind `key=`; nothing at all is empty text.

    Raises:
        ConfigError: it is no YAML.
    """
    if not text.strip():
        return ""
    if _PLAIN.fullmatch(text):
        return text  # as YAML reads it, without the cost of a document: a suite has thousands of such values
    try:
        return yaml.load(text, Loader=_TextLoader)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{origin}: not a YAML value: {one_line(problem)}") from None
