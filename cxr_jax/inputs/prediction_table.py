"""The lines of `predict` as a table for a spreadsheet: a row a film, a column a number."""

import csv
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from cxr_jax import safe_write, small_files

NAME = "predictions.csv"
_LEFT_OUT = "written"  # names and digests, which say nothing of the film
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with which a cell begins that a spreadsheet runs


def write(lines: pathlib.Path, table: pathlib.Path) -> None:
    """Writes the table of the `predictions.jsonl` that `lines` is.

    `severity.A` is the entry A of `severity`; a list is one cell, as JSON. The lines are read
    twice, for the columns and for the rows.
    """
    columns: dict[str, None] = {}
    for row in _rows(lines):
        columns |= dict.fromkeys(row)
    with (
        safe_write.replacing(table) as partial,
        # A file's name may be no UTF-8.
        partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(_rows(lines))


def _rows(lines: pathlib.Path) -> Iterator[dict[str, Any]]:
    for _, said in small_files.scan_lines(lines):
        if said is not None:
            yield dict(_cells({k: v for k, v in said.items() if k != _LEFT_OUT}))


def _cells(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, entry in value.items():
        if isinstance(entry, dict):
            yield from _cells(entry, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _cell(entry)


def _cell(entry: Any) -> Any:
    if isinstance(entry, list):
        return json.dumps(entry)
    if isinstance(entry, str) and entry.startswith(_FORMULA):
        return f"'{entry}"
    return entry
