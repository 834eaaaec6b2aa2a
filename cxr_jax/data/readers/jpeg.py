"""JPEG files before their pixels: their header, their markers, and whether every scan is whole.

A decoder fills what is missing of a scan with grey and says no more than a warning, so that a file
with half its scan cut out is a picture to it. That is found here by a second look: a decoder never
reads behind the end of a whole scan, so bytes put there change nothing; where the scan ends too
early it takes them for the missing part, and another picture comes out.
"""

import io
import math
import re
import struct
from typing import NamedTuple

import numpy as np
from PIL import JpegImagePlugin

from cxr_jax.data.file_errors import BadFile
from cxr_jax.data.readers.checks import check_complete


class Frame(NamedTuple):
    """What the header of one JPEG or JPEG 2000 picture says."""

    width: int
    height: int
    samples: int


# A marker inside the compressed data: not a stuffed zero, not a restart marker, not padding. Bytes
# below C0 follow FF only in JPEG-LS, where they are data.
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_FILL = re.compile(rb"\xff+")  # a marker may be padded with more of its first byte
_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_HUFFMAN = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_MAX_SEGMENTS, _MAX_SCANS = 5000, 200
_SCAN, _END, _RESTARTS, _APPLICATION, _COMMENT = 0xDA, 0xD9, 0xDD, range(0xE0, 0xF0), 0xFE
# Any codes will do, but not the ones of an even surface, which is what a decoder fills in.
_STUFFING = bytes(np.random.default_rng(0).integers(1, 255, 64, dtype=np.uint8))


class _Segment(NamedTuple):
    """A marker, its parameters, and of a scan the compressed data behind them."""

    marker: int
    parameters: bytes
    scan: bytes = b""

    def to_bytes(self, stuffing: bytes = b"") -> bytes:
        """The segment, with `stuffing` before each restart marker and behind the scan."""
        head = struct.pack(">BBH", 0xFF, self.marker, len(self.parameters) + 2) + self.parameters
        if not self.scan or not stuffing:
            return head + self.scan
        return head + _RESTART.sub(lambda m: stuffing + m[0], self.scan) + stuffing


class Jpeg(NamedTuple):
    """A JPEG taken apart."""

    frame: Frame
    segments: list[_Segment]

    @classmethod
    def of(cls, data: bytes) -> "Jpeg":
        """Walks a JPEG from its first to its last marker.

        The end marker is looked for behind the compressed data, because an embedded preview has one
        of its own.
        """
        frame, segments, position, scans = None, [], 2, 0
        for _ in range(_MAX_SEGMENTS):
            marker, position = _marker(data, position)
            if marker == _END:
                if frame is None or scans == 0:
                    raise BadFile("the JPEG holds no picture; export it again")
                return cls(frame, segments)
            segment, position = _segment(data, position, marker)
            segments.append(segment)
            if marker in _FRAME_MARKERS:
                if frame is not None or len(segment.parameters) < 6:
                    raise BadFile("the JPEG is damaged (its frame header); export it again")
                _, height, width, samples = struct.unpack_from(">BHHB", segment.parameters)
                frame = Frame(width, height, samples)
            scans += marker == _SCAN
            if scans > _MAX_SCANS:  # each scan may cost a pass over all pixels
                raise BadFile(f"the JPEG has more than {_MAX_SCANS} scans; export it again")
        raise BadFile(f"the JPEG has more than {_MAX_SEGMENTS} segments; export it again")

    def check_scans(self) -> None:
        """Refuses a picture of which a scan ends before all of it is there.

        Of the Huffman codes that the decoder here knows: an arithmetic coder may leave out its last
        bytes, and other codes are refused by the decoder itself.
        """
        (header,) = (s for s in self.segments if s.marker in _FRAME_MARKERS)
        if header.marker not in _HUFFMAN:
            return
        self._check_restarts(header.parameters)
        scans = sum(s.marker == _SCAN for s in self.segments)
        # An eighth of the size has one number of each block of 8x8, the first in its data; only of
        # a progressive picture can the others be missing alone.
        reduced = scans == 1
        shown = self._shown(b"", reduced=reduced)
        if shown is not None:
            stuffed = self._shown(_STUFFING, reduced=reduced)
            check_complete(stuffed is not None and np.array_equal(shown, stuffed))

    def _check_restarts(self, header: bytes) -> None:
        """Restart markers count 0..7 and around, and there are as many as there must be: where one
        is, the decoder begins anew and reads no further."""
        interval = 0
        for segment in self.segments:
            if segment.marker == _RESTARTS and len(segment.parameters) >= 2:
                (interval,) = struct.unpack_from(">H", segment.parameters)
            if segment.marker == _SCAN and interval:
                found = np.array([m[1][0] for m in _RESTART.finditer(segment.scan)])
                check_complete(np.array_equal(found, 0xD0 + np.arange(len(found)) % 8))
                units = _units(self.frame, header[6:], segment.parameters)
                check_complete(len(found) >= math.ceil(units / interval) - 1)

    def _shown(self, stuffing: bytes, *, reduced: bool) -> np.ndarray | None:
        """The pixels, colours as the file has them; None where Pillow does not know such a file."""
        apart = (s for s in self.segments if s.marker not in (*_APPLICATION, _COMMENT))
        data = b"".join((b"\xff\xd8", *(s.to_bytes(stuffing) for s in apart), b"\xff\xd9"))
        try:
            # Not Image.open, which warns of sizes that were looked at already.
            with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as picture:
                if reduced:
                    picture.draft("L", (1, 1))
                return np.asarray(picture)
        except (OSError, SyntaxError, ValueError, LookupError, struct.error):
            return None


def _units(frame: Frame, components: bytes, scan: bytes) -> int:
    """How many units of 8x8 px, or of several such blocks, a scan has (T.81, A.2)."""
    starts = range(0, len(components) - 2, 3)
    factors = {components[i]: divmod(components[i + 1], 16) for i in starts}
    names = [scan[i] for i in range(1, min(2 * scan[0], len(scan) - 1), 2)] if scan else []
    if not names or not all(name in factors and min(factors[name]) for name in names):
        raise BadFile("the JPEG is damaged (a scan's header); export it again")
    wide, high = (max(factor[axis] for factor in factors.values()) for axis in (0, 1))
    if len(names) > 1:
        return math.ceil(frame.width / (8 * wide)) * math.ceil(frame.height / (8 * high))
    across, down = factors[names[0]]
    columns, rows = math.ceil(frame.width * across / wide), math.ceil(frame.height * down / high)
    return math.ceil(columns / 8) * math.ceil(rows / 8)


def _marker(data: bytes, position: int) -> tuple[int, int]:
    """The marker at a position, and where it begins behind its padding."""
    fill = _FILL.match(data, position)
    if fill is None and position < len(data):
        raise BadFile("the JPEG is damaged (no marker where one must be); export it again")
    check_complete(fill is not None and fill.end() < len(data))
    return data[fill.end()], fill.end() - 1


def _segment(data: bytes, position: int, marker: int) -> tuple[_Segment, int]:
    """The segment whose marker begins at a position, and where the next one begins."""
    check_complete(position + 4 <= len(data))
    (length,) = struct.unpack_from(">H", data, position + 2)
    end = position + 2 + length
    check_complete(end <= len(data))
    parameters = data[position + 4 : end]
    if marker != _SCAN:
        return _Segment(marker, parameters), end
    found = _MARKER.search(data, end)
    check_complete(found is not None)
    return _Segment(marker, parameters, data[end : found.start()]), found.start()
