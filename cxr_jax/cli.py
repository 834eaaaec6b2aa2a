"""What every command shares: one clear line and a non-zero exit for a user's mistake."""

import argparse
import errno
import logging
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from cxr_jax.errors import DISK_ERRORS, InputError, one_line

# XLA's loader of cached CPU programs prints a page of processor features at level 'error' for
# tuning hints that are no features (jax issue 38445). Real errors are raised, not printed. Set
# here, for JAX must not have been imported yet.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

_PLACE_ERRORS = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP}
INTERRUPTED = 130  # exit status of a command that Ctrl-C ended
USER_ERROR = 2  # exit status; 1 stays for our own bugs, which keep their stack trace


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line."""

    def error(self, message: str):
        """Argparse's way out of a mistake on the command line.

        Raises:
          InputError: always, with the message.
        """
        raise InputError(f"{message}; see {self.prog} --help")


def run_command(command: Callable[[], int | None]) -> None:
    """Runs a command and ends the process: 0, or 2 with `error: ...` on an `InputError`."""
    try:
        status = command()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        status = USER_ERROR
    except OSError as error:
        if error.errno in _PLACE_ERRORS:  # a name that no disk holds; a file where a folder must be
            name = str(error.filename or "a path")
            shown = ascii(name if len(name) <= 120 else f"{name[:60]}...{name[-40:]}")[1:-1]
            print(f"error: {shown}: {error.strerror}; give another path", file=sys.stderr)
            sys.exit(USER_ERROR)
        if error.errno not in DISK_ERRORS:
            raise
        print(
            one_line(
                f"error: {error.filename or 'a file'} cannot be written ({error.strerror}); free "
                "some space or choose another folder, and run the same command again"
            ),
            file=sys.stderr,
        )
        status = USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)  # not later, when every thread has finished its batch
    sys.exit(status or 0)


def setup_jax() -> None:
    """Settings of every command, before the first computation: the persistent compilation cache.

    It lies in CXR_CACHE, else ~/.cache/cxr_jax, in a folder of this jaxlib: entries of another
    version have crashed processes. Trusted input only: do not share it between users.
    """
    import jax
    import jaxlib

    # Orbax narrates its options, and logs with a stack trace what it then raises.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # When a disk is full, each write that Orbax no longer waits for is logged with a trace, or
    # falls to `unraisablehook`, as the garbage collector happens to find it. The error is raised.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = _without_echoes

    root = pathlib.Path(os.environ.get("CXR_CACHE") or pathlib.Path.home() / ".cache" / "cxr_jax")
    jax.config.update("jax_compilation_cache_dir", str(root / f"jaxlib-{jaxlib.__version__}"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _without_echoes(unraisable: Any) -> None:
    """When a disk is full, every write of a checkpoint that Orbax no longer waits for prints a
    stack trace, some 200 of them, about the loop in which it would be waited for. The error itself
    is raised."""
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        sys.__unraisablehook__(unraisable)
