"""What every command shares: one clear line and a non-zero exit for a user's mistake."""

import sys
from collections.abc import Callable

from cxr_jax.errors import InputError

USER_ERROR = 2  # exit status; 1 stays for our own bugs, which keep their stack trace
INTERRUPTED = 143  # 128 + SIGTERM


def run_command(command: Callable[[], int | None]) -> None:
    """Runs a command and ends the process: 0, or 2 with `error: ...` on an `InputError`."""
    try:
        status = command()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        status = USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status or 0)
