"""What the user can mend, or must know: the one exception, the disk's own errors, a remark."""

import errno
import functools
import sys

# A disk that is full, or a folder that may not be written.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES}


class InputError(Exception):
    """A mistake in what the user gave: a file, a value, a flag.

    The message is one line that names the file or field, the value found, the rule it breaks and
    the way out. Commands print it without a stack trace and exit with status 2.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))


@functools.cache
def tell_once(text: str) -> None:
    """A line on the terminal, once a process: what is no mistake and must not go by unseen."""
    print(text, file=sys.stderr, flush=True)
