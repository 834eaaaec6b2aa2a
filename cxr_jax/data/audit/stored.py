"""The main numbers of an audit beside a prepared set: `DATA_DIR/NAME/VERSION/audit.json`."""

import json
import pathlib
from typing import Any

from cxr_jax import safe_write, small_files
from cxr_jax.data.sources import Source
from cxr_jax.errors import one_line

FILE = "audit.json"
_MOST = 100  # warnings that are read
_REMEDY = "remove it, or audit the set again"


def folder_of(source: Source) -> pathlib.Path | None:
    """The folder of the prepared set that a source, or what it is wrapped in, reads."""
    while not hasattr(source, "folder"):
        if not hasattr(source, "source"):
            return None
        source = source.source
    return source.folder


def headline(source: Source) -> dict[str, Any] | None:
    """What an audit found of the set of a source, for results.json.

    Returns:
      `films` that were looked at, of `total`; `told`: label -> what was told from -> balanced
      accuracy; `chance`: label -> that of guessing; `copies`: pairs of films that look like copies,
      None where none were looked for; `warnings`. None where the set was not audited.

    Raises:
      InputError: the file is broken.
    """
    folder = folder_of(source)
    if folder is None or not small_files.exists(folder / FILE):
        return None
    fields = small_files.read_fields(folder / FILE, _REMEDY)
    return {
        "films": fields.get("films", int),
        "total": fields.get("total", int),
        "told": fields.get("told", dict),
        "chance": fields.get("chance", dict),
        "copies": fields.get("copies", (int, type(None))),
        "warnings": [one_line(text) for text in fields.get("warnings", list)[:_MOST]],
    }


def store(folder: pathlib.Path, found: dict[str, Any]) -> None:
    """Writes a `headline` beside the set; whole or not at all.

    Raises:
      OSError: the folder cannot be written.
    """
    safe_write.write_text(folder / FILE, json.dumps(found, indent=1, allow_nan=False) + "\n")
