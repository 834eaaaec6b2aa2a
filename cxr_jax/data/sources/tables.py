"""CSV tables of labels, read so that every mistake is named by file, row, column and value."""

import csv
import dataclasses
import difflib
import pathlib
from collections.abc import Iterable, Iterator, Mapping

from cxr_jax.data.file_errors import kind_of
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

    def real(self, column: str, low: float, high: float) -> float:
        """A number low..high."""
        try:
            value = float(self.cells[column])
        except ValueError:
            value = float("nan")
        if not low <= value <= high:  # false for 'nan' too
            raise self.error(column, f"expected a number {low:g}..{high:g}")
        return value


def unknown_columns(columns: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """A line for the user where a table has columns that nothing reads, perhaps for a slip."""
    known = [name.casefold() for name in known]
    unknown = sorted(set(columns) - {*known, ""})
    if not unknown:
        return ()
    near = {name: difflib.get_close_matches(name, known, 1, 0.75) for name in unknown}
    some = ", ".join(f"{n} (meant is {near[n][0]}?)" if near[n] else n for n in unknown)
    return (f"columns that are not known and not used: {some}",)


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
    header, rows = scan_table(path, required, separators=separators)
    return header, list(rows)


def scan_table(
    path: pathlib.Path, required: Iterable[str], *, separators: str = ","
) -> tuple[list[str], Iterator[Row]]:
    """`read_table` for a table of any length: the rows come one at a time.

    What is wrong with a row is raised when it is reached, `no rows` at the end.
    """
    lines = scan_lines(path, separators=separators)
    _, cells = next(lines, (0, []))
    header = [name.casefold() for name in cells]
    for name in header:
        if name and header.count(name) > 1:
            raise InputError(f"{path}: column {name!r} comes twice; leave one")
    for name in required:
        if name.casefold() not in header:
            found = ", ".join(header) or "nothing"
            other = len(header) == 1 and (";" in found or "\t" in found)
            hint = "; separate cells by commas" if other else ""
            raise InputError(f"{path}: column {name!r} is missing; found {found}{hint}")
    return header, _rows(path, header, lines)


def _rows(
    path: pathlib.Path, header: list[str], lines: Iterable[tuple[int, list[str]]]
) -> Iterator[Row]:
    empty = True
    for line, cells in lines:
        if not any(cells):
            continue
        if len(cells) != len(header):
            raise InputError(
                f"{path}: row {line} has {len(cells)} cells, the header {len(header)}; "
                "put text that contains a comma in double quotes"
            )
        empty = False
        yield Row(path, line, dict(zip(header, cells)))
    if empty:
        raise InputError(f"{path}: the table has a header but no rows")


def scan_lines(path: pathlib.Path, *, separators: str = ",") -> Iterator[tuple[int, list[str]]]:
    """The lines of a CSV file with their numbers from 1 and stripped cells, one at a time.

    Raises:
      InputError: no file, or not a text table.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline(csv.field_size_limit())
            file.seek(0)
            separator = max(separators, key=first.count)
            reader = csv.reader(file, strict=True, delimiter=separator)
            for cells in reader:
                yield reader.line_num, [cell.strip() for cell in cells]
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; save the table as 'CSV UTF-8'") from None
    except csv.Error as error:
        raise InputError(
            f"{path}: not a CSV table ({kind_of(error)}); separate cells by commas"
        ) from None
