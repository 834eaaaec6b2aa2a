"""What the fields of a config mean: read from docstrings, printed beside the values."""

import inspect
import re
import textwrap
from collections.abc import Mapping
from typing import Any

import ml_collections

from cxr_jax.data import sources

_SECTION = re.compile(r"\n *Attributes:\n(.*?)(?:\n *\n|\Z)", re.DOTALL)
_ENTRY = re.compile(r"^(\w+(?:, \w+)*): (.*?)(?=\n\w|\Z)", re.DOTALL | re.MULTILINE)
_WIDEST = 40  # characters of a value; longer ones push their meaning to the right


def attributes(kind: type) -> dict[str, str]:
    """Attribute -> meaning, from the `Attributes:` of a class's docstring and of its bases'.

    `a, b: text` is the text of both.
    """
    found: dict[str, Any] = {}
    for part in reversed(kind.__mro__):
        section = _SECTION.search(
            inspect.cleandoc(part.__doc__ or "") if part is not object else ""
        )
        for names, text in _ENTRY.findall(textwrap.dedent(section[1]) if section else ""):
            found |= dict.fromkeys(names.split(", "), " ".join(text.split()).removesuffix("."))
    return found


def described(path: str, kind: type) -> dict[str, str]:
    """The meanings of a block of a config whose fields are a class's: 'regime.name' -> text."""
    return {f"{path}.{name}": text for name, text in attributes(kind).items()}


def of_data(config: ml_collections.ConfigDict) -> dict[str, str]:
    """The meanings of `config.data` and `config.second`, by the data sets they name."""
    found = {
        "data.name": "the data set that is trained on; see cxr_jax/data/sources",
        "second.name": "a second training set, behind the first; empty: none",
        "second.labels": "of the second set: hidden or given",
    }
    for path in ("data", "second"):
        if name := config[path].name:
            found |= described(path, sources.find(name, f"{path}.name").Options)
    return found


def fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """'optimizer.lr' -> value, sorted."""
    return dict(sorted(_leaves(config, "").items()))


def _leaves(block: ml_collections.ConfigDict, prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in block.items():
        if isinstance(value, ml_collections.ConfigDict):
            found |= _leaves(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def show(config: ml_collections.ConfigDict, meanings: Mapping[str, str]) -> str:
    """Every field of a config, one a line: its path, its value and what it means.

    Args:
      meanings: path -> text, of those that are known; those of the data sets are added.
    """
    meanings = {**meanings, **of_data(config)}
    values = {path: repr(value) for path, value in fields(config).items()}
    width = max(map(len, values))
    column = max(len(value) for value in values.values() if len(value) <= _WIDEST)
    lines = [
        f"{path:<{width}} = {value:<{column}}   {meanings.get(path, '')}".rstrip()
        for path, value in values.items()
    ]
    return "\n".join(lines)
