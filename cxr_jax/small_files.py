"""One way to read the small files of a run: JSON, JSON lines and .npz, from any hand.

A small file was cut by a full disk, edited, or made to do harm. What is read of it is bounded (its
bytes, its containers, how deep they lie in each other, what it unpacks to), and every mistake is
one line that names the file. `Fields` gives an entry only as the kind that is asked for.
"""

import json
import math
import os
import pathlib
import stat
import struct
import tokenize
import tomllib
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from cxr_jax.errors import InputError

MAX_BYTES = 2**26  # of a JSON file; what lies beside the records of 225,000 films has 2^23
MAX_TOML_BYTES = 2**20
MAX_LINE = 2**22  # bytes of a line of JSON lines
MAX_CONTAINERS = 200_000  # lists and objects, of which an empty one takes 60 bytes for two
MAX_DEPTH = 24
MAX_NPZ_BYTES = 2**28  # of all arrays; rows of 225,000 films with 14 findings have 2^26
_REQUIRED = object()

# What Python's zip and npy readers raise on damaged files, beside their own error: names that are
# no UTF-8, offsets outside the file, unknown or encrypted packing, a header that is no literal.
ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, RecursionError),
    *(EOFError, OSError, OverflowError, RuntimeError, SyntaxError, UnicodeDecodeError),
    *(MemoryError, ValueError, LookupError, TypeError),
)


class Malformed(ValueError):
    """What is wrong with a file, in our words, for the reader that knows its name."""


def reason(error: Exception) -> str:
    """Our own words; of a library's exception its type: its words hold what the file holds."""
    return str(error)[:300] if isinstance(error, Malformed) else type(error).__name__


# Names


def is_file(path: str | os.PathLike) -> bool:
    """Whether an ordinary file is there.

    Raises:
      InputError: the name is one that no disk can hold.
    """
    found = _stat(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_folder(path: str | os.PathLike) -> bool:
    """Whether a folder is there; raises as `is_file`."""
    found = _stat(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def exists(path: str | os.PathLike) -> bool:
    """Whether anything is there; raises as `is_file`."""
    return _stat(path) is not None


def _stat(path: str | os.PathLike) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:  # a name over 255 bytes, a circle of links, no permission
        raise InputError(f"{_short(path)}: {error.strerror}; check the path") from error
    except ValueError as error:  # NUL, or what the file system's encoding lacks
        raise InputError(f"{_short(path)}: no name of a file; check the path") from error


def _short(path: str | os.PathLike) -> str:
    text = str(path)
    text = text if len(text) <= 160 else f"{text[:60]}...{text[-80:]}"  # a DICOM's name has 60
    return text if text.isprintable() else ascii(text)[1:-1]


# JSON


class Fields(NamedTuple):
    """An object of a JSON file: its entries by key and kind.

    Attributes:
      path: of the file.
      values: as they were read.
      remedy: what the user can do, for messages.
      inside: 'metrics.' of the object under the key 'metrics'; '' of the whole file's.
    """

    path: pathlib.Path
    values: dict[str, Any]
    remedy: str
    inside: str = ""

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = _REQUIRED) -> Any:
        """The entry of a key.

        Args:
          key: a key of the object.
          kind: its type; an int counts as a float, a bool as neither.
          default: where there is none; by default there must be one.

        Raises:
          InputError: there is none, or it is of another kind.
        """
        if key not in self.values:
            if default is _REQUIRED:
                raise self._error(f"lacks {self.inside}{key}")
            return default
        value = self.values[key]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        kinds = (*kinds, int) if float in kinds else kinds
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join(_KINDS.get(k, k.__name__) for k in dict.fromkeys(kinds))
            there = _KINDS.get(type(value), type(value).__name__)  # TOML has dates too
            raise self._error(f"has {there} as {self.inside}{key}, expected {names}")
        return value

    def fields(self, key: str, default: Any = _REQUIRED) -> "Fields":
        """The object under a key; raises as `get`."""
        values = self.get(key, dict, default)
        return self._replace(values=values, inside=f"{self.inside}{key}.")

    def _error(self, what: str) -> InputError:
        return InputError(f"{_short(self.path)} {what[:300]}; {self.remedy}")


_KINDS = {
    **{dict: "an object", list: "a list", str: "a text", bool: "true or false"},
    **{int: "a whole number", float: "a number", type(None): "null"},
}


def read_fields(path: str | os.PathLike, remedy: str) -> Fields:
    """Reads a JSON file that holds one object.

    Args:
      path: the file.
      remedy: what the user can do where it is none, to end the message.

    Raises:
      InputError: there is no such file, it is larger or deeper than any here, cut, or no object.
    """
    path = pathlib.Path(path)
    if not is_file(path):
        raise InputError(f"{_short(path)} is no file; {remedy}")
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"over {MAX_BYTES >> 20} MiB")
        value = _parsed(data)
    except OSError as error:
        raise InputError(f"{_short(path)} cannot be read ({error.strerror}); {remedy}") from error
    except ValueError as error:
        raise InputError(f"{_short(path)} is broken ({error}); {remedy}") from error
    return Fields(path, value, remedy)


def read_toml(path: pathlib.Path, flag: str, remedy: str) -> Fields:
    """A TOML file that a flag names.

    Raises:
      InputError: there is no such file, it is over `MAX_TOML_BYTES`, or no TOML.
    """
    if not is_file(path):
        raise InputError(f"{flag}={path}: there is no such file")
    if path.stat().st_size > MAX_TOML_BYTES:
        raise InputError(f"{flag}={path}: over {MAX_TOML_BYTES >> 20} MiB; {remedy}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{flag}={path} is no TOML ({error}); {remedy}") from error
    return Fields(path, values, remedy)


def scan_lines(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """The lines of a .jsonl file, one at a time, each with its object; None where it holds none,
    as the half line of a killed run.

    Raises:
      InputError: there is no such file, or it cannot be read.
    """
    path = pathlib.Path(path)
    if not is_file(path):
        raise InputError(f"{_short(path)} is no file; check the path")
    try:
        with path.open("rb") as stream:
            while line := stream.readline(MAX_LINE):
                try:
                    value = _parsed(line)
                except ValueError:
                    value = None
                yield line.decode("utf-8", "replace").rstrip("\r\n"), value
    except OSError as error:
        raise InputError(f"{_short(path)} cannot be read ({error.strerror})") from error


def _parsed(data: bytes) -> dict[str, Any]:
    """The object that the bytes are; ValueError with what is wrong where they are none."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    if text.count("{") + text.count("[") > MAX_CONTAINERS:
        raise ValueError(f"more than {MAX_CONTAINERS} lists and objects")
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise ValueError(f"more than {MAX_DEPTH} levels deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: line {error.lineno}, column {error.colno}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{_KINDS[type(value)]}, expected an object")
    _check_depth(value)
    return value


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number that is too large")
    return number


def _check_depth(value: Any) -> None:
    """Refuses what a function that calls itself could not walk; level by level, so it can."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = [item.values() if isinstance(item, dict) else item for item in level]
        level = [x for items in inner for x in items if isinstance(x, (dict, list))]
        if not level:
            return
    raise ValueError(f"more than {MAX_DEPTH} levels deep")


# Arrays


def read_npz(path: str | os.PathLike, remedy: str, *, limit: int = 0) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name; never a pickle in it.

    Args:
      path: the file.
      remedy: what the user can do where it is none, to end the message.
      limit: bytes that it may unpack to; 0 takes MAX_NPZ_BYTES.

    Raises:
      InputError: there is no such file, it is damaged, holds a pickle, or unpacks to more.
    """
    path = pathlib.Path(path)
    if not is_file(path):
        raise InputError(f"{_short(path)} is no file; {remedy}")
    limit = limit or MAX_NPZ_BYTES
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(_npy_bytes(archive, info) for info in archive.infolist())
        if total > limit:
            raise Malformed(f"it unpacks to {total:,} bytes, over the limit of {limit:,}")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except ZIP_ERRORS as error:
        raise InputError(
            f"{_short(path)} is no .npz of arrays, or it is damaged ({reason(error)}); {remedy}"
        ) from error


def _npy_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """The size of one member, after its header has been held against it."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Malformed(f"{info.filename!r} is packed in another way than NumPy's")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise Malformed(f"{info.filename!r} is of version {version}")
        read = np.lib.format.read_array_header_1_0
        read = read if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject:
            raise Malformed(f"{info.filename!r} is a pickle, which was not run")
        count = math.prod(shape)
        fits = file.tell() + count * dtype.itemsize == info.file_size
        if not fits or min(shape, default=0) < 0 or (count and not dtype.itemsize):
            raise Malformed(f"{info.filename!r} says it has the shape {shape}, which does not fit")
    return info.file_size
