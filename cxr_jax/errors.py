"""What the user can mend, or must know: the one exception, the disk's own errors, a remark."""

import errno
import functools
import sys

# A disk that is full, or a folder that may not be written.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
_LONGEST = 2000  # characters of a line for the terminal; a name or cell in it may have any length


class InputError(Exception):
    """A mistake in what the user gave: a file, a value, a flag.

    The message is one line that names the file or field, the value found, the rule it breaks and
    the way out. Commands print it without a stack trace and exit with status 2. It is a
    `one_line`: a file's name or a table's cell in it cannot steer the terminal.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """Text from anywhere as one printable line: spaces for newlines; what is not printable
    (ESC, NUL, turned writing directions, halves of broken names) is shown by its number."""
    text = " ".join(str(text).split())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


@functools.cache
def tell_once(text: str) -> None:
    """A line on the terminal, once a process: what is no mistake and must not go by unseen."""
    print(text, file=sys.stderr, flush=True)
