"""CSV tables of labels, read so that every mistake is named by file, row, column and value."""

import csv
import dataclasses
import pathlib
from collections.abc import Iterable, Mapping

from cxr_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: stripped cells by column name; `line` counts from 1, the header."""

    path: pathlib.Path
    line: int
    cells: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]

    def error(self, column: str, rule: str) -> InputError:
        """An error about one cell, to be raised by the caller."""
        return InputError(
            f"{self.path}: row {self.line}, column {column!r}: {self.cells[column]!r}; {rule}"
        )

    def text(self, column: str) -> str:
        """A cell that must not be empty."""
        if not self.cells[column]:
            raise self.error(column, "this column must not be empty")
        return self.cells[column]

    def choice(self, column: str, allowed: Iterable[str]) -> str:
        """A cell that must be one of `allowed`, whatever its case."""
        by_fold = {value.casefold(): value for value in allowed}
        value = self.cells[column].casefold()
        if value not in by_fold:
            names = ", ".join("empty" if v == "" else v for v in by_fold.values())
            raise self.error(column, f"expected one of {names}")
        return by_fold[value]

    def number(self, column: str, low: int, high: int) -> int | None:
        """A whole number low..high ('2' or '2.0'), None where the cell is empty."""
        cell = self.cells[column]
        if not cell:
            return None
        try:
            value = float(cell)
        except ValueError:
            value = low - 1
        # `low <= value` is false for 'nan'.
        if not (low <= value <= high and value == int(value)):
            raise self.error(column, f"expected a whole number {low}..{high}, or empty for unknown")
        return int(value)


def read_table(
    path: pathlib.Path, required: Iterable[str], *, separators: str = ","
) -> tuple[list[str], list[Row]]:
    """Reads a CSV file (UTF-8, with or without byte order mark) with a header.

    Args:
      path: the file.
      required: columns that must be there. Case counts in none of the names.
      separators: what may stand between cells; of several, the one most often in the header.

    Returns:
      The column names in lower case, in order, and the rows; blank lines are skipped.

    Raises:
      InputError: no file, not a text table, a missing or double column, a ragged row, no rows.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            separator = max(separators, key=first.count)
            reader = csv.reader(file, strict=True, delimiter=separator)
            header = [name.strip().casefold() for name in next(reader, [])]
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; save the table as 'CSV UTF-8'") from None
    except csv.Error as error:
        raise InputError(f"{path}: not a CSV table ({error}); separate cells by commas") from None
    for name in header:
        if name and header.count(name) > 1:
            raise InputError(f"{path}: column {name!r} comes twice; leave one")
    for name in required:
        if name.casefold() not in header:
            found = ", ".join(header) or "nothing"
            hint = "; separate cells by commas" if len(header) == 1 and ";" in found else ""
            raise InputError(f"{path}: column {name!r} is missing; found {found}{hint}")
    rows = []
    for line, cells in lines:
        if not any(cells):
            continue
        if len(cells) != len(header):
            raise InputError(
                f"{path}: row {line} has {len(cells)} cells, the header {len(header)}; "
                "put text that contains a comma in double quotes"
            )
        rows.append(Row(path, line, dict(zip(header, cells))))
    if not rows:
        raise InputError(f"{path}: the table has a header but no rows")
    return header, rows
