"""CSV tables of labels, read so that every mistake is named by file, row, column and value."""

import codecs
import collections
import contextlib
import csv
import dataclasses
import difflib
import functools
import io
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from cxr_jax import small_files
from cxr_jax.data.file_errors import BadFile, kind_of
from cxr_jax.data.volumes.inflate import Inflated
from cxr_jax.errors import InputError

MAX_BYTES = 2**29  # of a table; CheXpert's has 2^25
MAX_COLUMNS = 10_000
_TOLD = 10  # mistakes in one message
_SHOWN = 20  # names of columns in a message
# What spreadsheets write between cells, by the language they are set to.
SPREADSHEET = ",;\t"


class Mistakes:
    """The mistakes of one table, collected so that they are told together."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.found: list[str] = []

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Notes an `InputError` instead of raising it."""
        try:
            yield
        except InputError as error:
            text = str(error).removeprefix(f"{self.path}: ")
            if text not in self.found[-2 * _TOLD :]:  # a cell may be asked for twice
                self.found.append(text)

    def tell(self) -> None:
        """Raises what was noted, the first ten.

        Raises:
          InputError: there was a mistake.
        """
        if len(self.found) == 1:
            raise InputError(f"{self.path}: {self.found[0]}")
        if self.found:
            told = "; ".join(f"({i}) {text}" for i, text in enumerate(self.found[:_TOLD], 1))
            more = len(self.found) - _TOLD
            rest = f"; and {more} more" if more > 0 else ""
            raise InputError(f"{self.path}: {len(self.found)} mistakes: {told}{rest}")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: stripped cells by column name; `line` counts from 1, the header.

    With `mistakes`, a cell that is wrong is noted there and a stand-in given, so that the next cell
    can be looked at; without, it is raised.
    """

    path: pathlib.Path
    line: int
    cells: Mapping[str, str]
    decimal: str = "."
    mistakes: Mistakes | None = None

    def __getitem__(self, column: str) -> str:
        return self.cells[column]

    def error(self, column: str, rule: str) -> InputError:
        """An error about one cell, to be raised by the caller."""
        cell = self.cells[column]
        shown = cell if len(cell) <= 100 else f"{cell[:100]}..."
        return InputError(f"{self.path}: row {self.line}, column {column!r}: {shown!r}; {rule}")

    def wrong(self, column: str, rule: str, stand_in: Any = None) -> Any:
        """Notes the mistake of a cell and gives `stand_in`, or raises it."""
        error = self.error(column, rule)
        if self.mistakes is None:
            raise error
        with self.mistakes.collecting():
            raise error
        return stand_in

    def file(
        self, column: str, check: Callable[[pathlib.Path], None] | None = None
    ) -> pathlib.Path:
        """The file that a cell names, from the table's folder.

        Args:
          column: its column.
          check: raises an `InputError` that names the file where it is no whole one.
        """
        path = self.path.parent / (cell := self.text(column))
        rule = f"there is no file {path}; paths count from the CSV's folder"
        try:
            there = small_files.is_file(path)
            if there and check is not None:
                check(path)
        except InputError as error:
            there, rule = False, str(error)
        return path if there or not cell else self.wrong(column, rule, path)

    def text(self, column: str) -> str:
        """A cell that must not be empty."""
        if not self.cells[column]:
            return self.wrong(column, "this column must not be empty", "")
        return self.cells[column]

    def choice(self, column: str, allowed: Iterable[str]) -> str:
        """A cell that must be one of `allowed`, whatever its case."""
        by_fold = {value.casefold(): value for value in allowed}
        value = self.cells[column].casefold()
        if value not in by_fold:
            names = ", ".join("empty" if v == "" else v for v in by_fold.values())
            return self.wrong(column, f"expected one of {names}", next(iter(by_fold.values())))
        return by_fold[value]

    def number(self, column: str, low: int, high: int) -> int | None:
        """A whole number low..high ('2' or '2.0'), None where the cell is empty."""
        cell = self.cells[column]
        if not cell:
            return None
        try:
            value = float(cell.replace(self.decimal, "."))
        except ValueError:
            value = low - 1
        # `low <= value` is false for 'nan'.
        if not (low <= value <= high and value == int(value)):
            rule = f"expected a whole number {low}..{high}, or empty for unknown"
            return self.wrong(column, rule)
        return int(value)

    def real(self, column: str, low: float, high: float) -> float:
        """A number low..high."""
        try:
            value = float(self.cells[column].replace(self.decimal, "."))
        except ValueError:
            value = float("nan")
        if not low <= value <= high:  # false for 'nan' too
            return self.wrong(column, f"expected a number {low:g}..{high:g}", low)
        return value


_QUOTED = r"""(?:'[^']*'|"[^"]*")"""
# No two parts can take the same characters: a broken cell of any length is refused at once.
_LIST = re.compile(rf"\[[\s,]*(?:{_QUOTED}(?:[\s,]+{_QUOTED})*[\s,]*)?\]")


def quoted_list(cell: str) -> list[str] | None:
    """The texts of a list as Python prints one, "['normal', 'scoliosis']"; commas or white space
    part them, each is stripped and empty ones are left out. None: the cell is no such list.
    """
    if not _LIST.fullmatch(cell):
        return None
    return [text for quoted in re.findall(_QUOTED, cell) if (text := quoted[1:-1].strip())]


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
    path: pathlib.Path,
    required: Iterable[str],
    *,
    separators: str = ",",
    mistakes: Mistakes | None = None,
) -> tuple[list[str], list[Row]]:
    """Reads a CSV file (UTF-8, with or without byte order mark) with a header.

    Args:
      path: the file; one whose name ends in .gz is inflated as it is read.
      required: columns that must be there. Case counts in none of the names.
      separators: what may stand between cells; of several, the one most often in the header. With
        `SPREADSHEET` a file that is no UTF-8 is read as cp1252, and a word says what was done.
      mistakes: collects those of rows and cells; by default the first one is raised.

    Returns:
      The column names in lower case, in order, and the rows; blank lines are skipped.

    Raises:
      InputError: no file, not a text table, a missing or double column, a ragged row, no rows.
    """
    header, rows = scan_table(path, required, separators=separators, mistakes=mistakes)
    return header, list(rows)


def scan_table(
    path: pathlib.Path,
    required: Iterable[str],
    *,
    separators: str = ",",
    mistakes: Mistakes | None = None,
) -> tuple[list[str], Iterator[Row]]:
    """`read_table` for a table of any length: the rows come one at a time.

    What is wrong with a row is raised when it is reached, `no rows` at the end.
    """
    form = _form(path, separators)
    lines = _scan(path, form)
    _, cells = next(lines, (0, []))
    header = [name.casefold() for name in cells]
    _check_header(path, header, list(required))
    return header, _rows(path, header, lines, form=form, mistakes=mistakes)


def _check_header(path: pathlib.Path, header: list[str], required: list[str]) -> None:
    if len(header) > MAX_COLUMNS:
        raise InputError(f"{path}: {len(header)} columns; at most {MAX_COLUMNS} are read")
    for name, count in collections.Counter(header).items():
        if name and count > 1:
            raise InputError(f"{path}: column {name[:80]!r} comes twice; leave one")
    absent = [name for name in required if name.casefold() not in header]
    if not absent:
        return
    shown = [name[:80] for name in header[:_SHOWN]] + ["..."] * (len(header) > _SHOWN)
    found = ", ".join(shown) or "nothing"
    other = len(header) == 1 and (";" in found or "\t" in found)
    hint = "; separate cells by commas" if other else ""
    also = f"; missing too: {', '.join(absent[1:])}" if absent[1:] else ""
    near = "".join(
        f"; did you mean {name!r} by {likely!r}?"
        for name in absent
        for likely in difflib.get_close_matches(name.casefold(), header[:_SHOWN], n=1, cutoff=0.75)
        if likely not in required
    )
    raise InputError(f"{path}: column {absent[0]!r} is missing; found {found}{also}{near}{hint}")


@functools.lru_cache(maxsize=1000)
def tell(text: str) -> None:
    """A line on the terminal, once: a table is opened for each of its splits."""
    print(f"note: {text}", file=sys.stderr)


def _rows(
    path: pathlib.Path,
    header: list[str],
    lines: Iterable[tuple[int, list[str]]],
    *,
    form: "_Form",
    mistakes: Mistakes | None,
) -> Iterator[Row]:
    empty = True
    decimal = "," if form.separator == ";" else "."
    for line, cells in lines:
        if not any(cells):
            continue
        empty = False
        if len(cells) == len(header):
            cells = dict(zip(header, cells))
            yield Row(path, line, cells, decimal=decimal, mistakes=mistakes)
            continue
        with mistakes.collecting() if mistakes else contextlib.nullcontext():
            raise InputError(
                f"{path}: row {line} has {len(cells)} cells, the header {len(header)}; "
                f"put text that contains a {_NAMES[form.separator]} in double quotes"
            )
    if empty:
        raise InputError(f"{path}: the table has a header but no rows")


def scan_lines(path: pathlib.Path, *, separators: str = ",") -> Iterator[tuple[int, list[str]]]:
    """The lines of a CSV file with their numbers from 1 and stripped cells, one at a time.

    Raises:
      InputError: no file, or not a text table.
    """
    return _scan(path, _form(path, separators))


class _Form(NamedTuple):
    """How a table was written."""

    separator: str
    encoding: str


_NAMES = {",": "comma", ";": "semicolon", "\t": "tab"}


def _form(path: pathlib.Path, separators: str) -> _Form:
    """Told by the header and, for a spreadsheet's, by all bytes."""
    with _reading(path):
        if os.stat(path).st_size > MAX_BYTES:
            raise InputError(f"{path}: over {MAX_BYTES >> 20} MiB; no table here is so large")
        with _opened(path) as file:
            first = file.readline(csv.field_size_limit() * 8)
            encoding = "utf-8-sig"
            plain = path.suffix == ".gz"  # no spreadsheet writes one, and it cannot be read twice
            if separators == SPREADSHEET and not plain and not _is_utf8(file):
                encoding = "cp1252"
    separator = max(separators, key=lambda s: first.count(s.encode()))
    if separators == SPREADSHEET and (encoding == "cp1252" or separator != ","):
        tell(f"{path}: read as {encoding} with a {_NAMES[separator]} between cells")
    return _Form(separator, encoding)


def _is_utf8(file: BinaryIO) -> bool:
    file.seek(0)
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while chunk := file.read(2**20):
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _scan(path: pathlib.Path, form: _Form) -> Iterator[tuple[int, list[str]]]:
    with _reading(path), _opened(path) as file:
        text = io.TextIOWrapper(file, encoding=form.encoding, newline="")
        reader = csv.reader(text, strict=True, delimiter=form.separator)
        for cells in reader:
            if file.tell() > MAX_BYTES:  # of a .gz, which may hold any number of blank lines
                raise BadFile(f"over {MAX_BYTES >> 20} MiB; no table here is so large")
            yield reader.line_num, [cell.strip() for cell in cells]


def _opened(path: pathlib.Path) -> io.BufferedReader:
    return io.BufferedReader(Inflated(path) if path.suffix == ".gz" else io.FileIO(path))


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
    """Turns what goes wrong with the file into an InputError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except BadFile as error:
        raise InputError(f"{path}: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; save the table as 'CSV UTF-8'") from None
    except csv.Error as error:
        raise InputError(
            f"{path}: not a CSV table ({kind_of(error)}); separate cells by commas"
        ) from None
