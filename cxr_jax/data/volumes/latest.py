"""One volume kept in memory for all its slices."""

from collections.abc import Callable, Hashable
from typing import Any


class Latest:
    """The latest of what `read` gave, so that a volume is read once for all its slices.

    What was read before is let go first: there is never more than one.
    """

    def __init__(self, read: Callable[[Any], Any]):
        self._read, self._key, self._value = read, None, None

    def __call__(self, key: Hashable) -> Any:
        if self._key is None or key != self._key:
            self._key = self._value = None
            self._value = self._read(key)
            self._key = key
        return self._value
