"""What is wrong with a file: said where it is found, told as one `InputError` that names it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cxr_jax.errors import InputError


class BadFile(Exception):
    """What is wrong with a file's content; becomes an InputError where the path is known."""


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turns what goes wrong with the file into an InputError that names it."""
    try:
        yield
    except BadFile as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
