"""The one way outputs are written: whole or not at all, through no link, over nothing of others.

A file is written under a fresh hidden name in its own folder, opened so that neither a file nor a
link of that name can be there already (O_EXCL, O_NOFOLLOW), and then gets its name. Whoever reads
sees the old file or the whole new one; a link that has the name is replaced, or refused, itself,
and never what it points to.
"""

import contextlib
import hashlib
import os
import pathlib
import re
import secrets
from collections.abc import Iterator

from cxr_jax.errors import InputError

_FRESH = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
_CHUNK = 2**20


def create(path: str | os.PathLike) -> pathlib.Path:
    """A new empty file beside `path`: hidden, with the same ending.

    Raises:
      OSError: the folder cannot be written.
    """
    path = pathlib.Path(path)
    ending = "".join(path.suffixes[-2:])[-20:]
    partial = path.with_name(f".{path.name[:40]}.{secrets.token_hex(6)}.part{ending}")
    os.close(os.open(partial, _FRESH, 0o666))
    return partial


def is_left(name: str) -> bool:
    """Whether a file has a name of `create`: what a killed process leaves."""
    return re.fullmatch(r"\..*\.[0-9a-f]{12}\.part(\..*)?", name) is not None


@contextlib.contextmanager
def fresh(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """`create`, for the block to fill and to `place`; removed at its end if it was not placed."""
    partial = create(path)
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def place(partial: pathlib.Path, path: pathlib.Path) -> None:
    """Gives a file of `fresh` its name, which nothing may have.

    Raises:
      FileExistsError: something has the name.
    """
    try:
        os.link(partial, path, follow_symlinks=False)
        return
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):  # a file system without links
        os.close(os.open(path, _FRESH, 0o666))
    os.replace(partial, path)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A new file for the block to fill; at its end it takes the place of `path`.

    Where the block raises, what was at `path` stays.

    Raises:
      OSError: the folder cannot be written.
    """
    with fresh(path) as partial:
        yield partial
        os.replace(partial, path)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 by `replacing`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def digest(path: pathlib.Path) -> str:
    """SHA-256 of a file's bytes, in hex; '' where there is no ordinary file (a link is none)."""
    if path.is_symlink() or not path.is_file():
        return ""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def make_folder(path: pathlib.Path, what: str) -> None:
    """Makes the folder of an output.

    Args:
      path: the folder.
      what: whose value it is, e.g. '--output'.

    Raises:
      InputError: something else is there, or on the way there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{what}={path} is no folder, a file is there; give another") from error
    except OSError as error:
        raise InputError(f"{what}={path} cannot be made: {error.strerror}") from error
