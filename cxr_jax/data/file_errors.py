"""What is wrong with a file: said where it is found, told as one `InputError` that names it.

What a library says of a broken file may hold the file's content: a patient's name, say. It is
never passed on: `kind_of` says in our own words what kind of mistake it was.
"""

import contextlib
import csv
import struct
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

from cxr_jax.errors import InputError

_KINDS = (
    ((EOFError, struct.error), "it ends too early"),
    (zlib.error, "its compressed data are damaged"),
    (UnicodeError, "text of another character set"),
    (RecursionError, "it is nested too deep"),
    (NotImplementedError, "stored in a way that is not supported"),
    (csv.Error, "its quotes or cells are broken"),
    ((KeyError, AttributeError, IndexError), "something is missing"),
    ((ValueError, TypeError, ArithmeticError), "a value or length that cannot be"),
)


class BadFile(Exception):
    """What is wrong with a file's content; becomes an InputError where the path is known."""


def kind_of(error: BaseException) -> str:
    """What a library's exception means, in our own words; nothing of its message is in them."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # of the system, not of the file
    return next((words for kinds, words in _KINDS if isinstance(error, kinds)), "it is damaged")


def known(value: object, vocabulary: Collection[str]) -> str:
    """A header's value for a message: quoted where it is one of the words that can be there.

    In a damaged file the bytes of any other element may stand in its place.
    """
    return repr(str(value)) if str(value) in vocabulary else "(another one)"


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turns what goes wrong with the file into an InputError that names it."""
    try:
        yield
    except BadFile as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({kind_of(error)})") from error
