"""The content of a gzip file, inflated as it is read: never more than is asked for."""

import io
import zlib
from pathlib import Path

from cxr_jax.data.file_errors import BadFile

MAGIC = b"\x1f\x8b"
_CHUNK = 2**18  # bytes
_MAX_EMPTY = 1000  # members without content, one after the other; bgzip ends with one
_MAX_PADDING = 2**20  # zeros behind the last member, as tapes have them
_DAMAGED = "the compressed file is truncated or damaged; copy it again"


class Inflated(io.RawIOBase):
    """A gzip file of one or several members as a stream of what is in it; reads forward only.

    Python's own reader looks for a further member behind zeros, one byte at a time and however many
    there are, and passes over empty members without end.
    """

    def __init__(self, path: Path):
        self._file = path.open("rb")
        self._member = zlib.decompressobj(wbits=31)
        self._waiting = b""  # compressed bytes
        self._empty, self._ended = 0, False
        self._told = self._begun = 0  # bytes that came out, now and when the member began

    def readable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Bytes that were read."""
        return self._told

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()

    def readinto(self, buffer) -> int:
        """Fills the buffer, or its beginning; 0 at the end.

        Raises:
          BadFile: the file is truncated, damaged, or made to take time.
        """
        wanted = min(len(buffer), _CHUNK)
        while wanted and not self._ended:
            self._waiting = self._waiting or self._file.read(_CHUNK)
            try:
                found = self._member.decompress(self._waiting, wanted)
            except zlib.error as error:
                raise BadFile(_DAMAGED) from error
            if not self._waiting and not found and not self._member.eof:
                raise BadFile(_DAMAGED)
            self._waiting = self._member.unconsumed_tail
            self._told += len(found)
            if self._member.eof:
                self._waiting = self._member.unused_data
                self._next_member()
            if found:
                buffer[: len(found)] = found
                return len(found)
        return 0

    def _next_member(self) -> None:
        """Goes on behind the end of a member; only zeros may follow the last one."""
        self._empty = 0 if self._told > self._begun else self._empty + 1
        self._begun = self._told
        if self._empty > _MAX_EMPTY:
            raise BadFile("the compressed file has a thousand empty parts; copy it again")
        padding = 0
        while padding <= _MAX_PADDING:
            self._waiting = self._waiting or self._file.read(_CHUNK)
            left = self._waiting.lstrip(b"\0")
            padding += len(self._waiting) - len(left)
            if left or not self._waiting:
                self._waiting, self._ended = left, not left
                self._member = zlib.decompressobj(wbits=31)
                return
            self._waiting = b""
        raise BadFile("the file goes on far behind its values; it is damaged: copy it again")
