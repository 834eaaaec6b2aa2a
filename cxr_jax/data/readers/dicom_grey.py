"""DICOM's grey scale: from stored values to what they measure, and to how they are shown."""

from typing import NamedTuple

import numpy as np
import pydicom

from cxr_jax.data.file_errors import BadFile
from cxr_jax.data.readers.dicom_header import Header


def stored_table(header: Header) -> np.ndarray:
    """int [2^bits]: the stored value of each bit pattern."""
    stored = np.arange(2**header.bits)
    if header.signed:
        stored = np.where(stored < 2 ** (header.bits - 1), stored, stored - 2**header.bits)
    return stored


def table_index(stored: np.ndarray, header: Header) -> np.ndarray:
    """Stored values [H, W] -> where they are in tables of [2^bits]."""
    # As unsigned, cut to the stored bits: the rest may hold an overlay, or copies of the sign.
    stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    return stored.view(f"u{stored.dtype.itemsize}") & (2**header.bits - 1)


def modality_values(dataset: pydicom.Dataset, header: Header, stored: np.ndarray) -> np.ndarray:
    """float64 [2^bits]: what each stored value measures."""
    if luts := dataset.get("ModalityLUTSequence"):
        little = dataset.original_encoding[1] is not False
        lut = _Lut.of(luts[0], signed=header.signed, little=little, name="modality")
        return lut.look_up(stored)
    slope = _number(dataset, "RescaleSlope", 1.0)
    return slope * stored + _number(dataset, "RescaleIntercept", 0.0)


def is_padding(dataset: pydicom.Dataset, header: Header, stored: np.ndarray) -> np.ndarray:
    """bool [2^bits]: the stored value stands for no tissue."""
    if dataset.get("PixelPaddingValue") is None:
        return np.zeros(stored.shape, bool)
    ends = [_padding_value(dataset, "PixelPaddingValue", header)] * 2
    if dataset.get("PixelPaddingRangeLimit") is not None:
        ends[1] = _padding_value(dataset, "PixelPaddingRangeLimit", header)
    return (stored >= min(ends)) & (stored <= max(ends))


class GreyTable(NamedTuple):
    """How each stored value of a grey film is shown.

    All of DICOM's grey pipeline is a function of the stored value, of at most 65536: it is
    computed once for each value instead of once for each pixel.
    """

    shown: np.ndarray | None  # float64 [2^bits], 0..1; None: lowest..highest of the film
    modality: np.ndarray  # float64 [2^bits], after the modality LUT
    padding: np.ndarray  # bool [2^bits]
    header: Header

    @classmethod
    def of(cls, dataset: pydicom.Dataset, header: Header) -> "GreyTable":
        """The table of a film; call it inside `parsing`."""
        stored = stored_table(header)
        modality = modality_values(dataset, header, stored)
        rescaled = bool(dataset.get("ModalityLUTSequence")) or not np.array_equal(modality, stored)
        little = dataset.original_encoding[1] is not False
        window = _window(dataset)
        if luts := dataset.get("VOILUTSequence"):
            lut = _Lut.of(luts[0], signed=bool(modality.min() < 0), little=little, name="VOI")
            # Its own lowest..highest, as descriptors state 16 bits over data of 12.
            low, high = lut.entries.min(), lut.entries.max()
            shown = (lut.look_up(modality) - low) / max(high - low, 1)
        elif window is not None:
            shown = _windowed(modality, window)
        elif header.bits == 8 and not header.signed and not rescaled:
            shown = stored / 255.0
        else:
            shown = None
        return cls(shown, modality, is_padding(dataset, header, stored), header)

    def film(self, stored: np.ndarray) -> np.ndarray:
        """Stored values [H, W] -> uint8 [H, W]."""
        index, shown = table_index(stored, self.header), self.shown
        if shown is None:
            there = np.zeros(self.modality.shape, bool)
            there[index] = True
            values = self.modality[there & ~self.padding]
            if values.size == 0:
                raise BadFile("every pixel is padding; export the film again")
            shown = (self.modality - values.min()) / max(np.ptp(values), 1e-12)
        levels = np.clip(np.rint(255.0 * np.clip(shown, 0, 1)), 0, 255).astype(np.uint8)
        if self.header.photometric == "MONOCHROME1":
            levels = 255 - levels
        levels[self.padding] = 0
        return levels[index]


class _Lut(NamedTuple):
    """A lookup table of DICOM (PS3.3 C.11.1, C.11.2): entry i is for the value first + i."""

    first: int
    entries: np.ndarray  # float64 [n]

    @classmethod
    def of(cls, item: pydicom.Dataset, *, signed: bool, little: bool, name: str) -> "_Lut":
        descriptor = [int(value) for value in (item.get("LUTDescriptor") or ())]
        data = item.get("LUTData")
        if len(descriptor) != 3 or data is None:
            raise BadFile(f"the {name} LUT of the DICOM file is broken (descriptor {descriptor})")
        count, first, _ = descriptor
        count = count % 2**16 or 2**16  # 0 stands for 65536, which does not fit
        # Written unsigned or signed by an encoding that need not be that of the pixels.
        first = first - 2**16 if signed and first >= 2**15 else first
        first = first + 2**16 if not signed and first < 0 else first
        if isinstance(data, bytes):
            # One byte an entry, perhaps padded to even; the descriptor may still say 16 bits.
            packed = len(data) in (count, count + 1)
            kind = np.dtype(np.uint8 if packed else "<u2" if little else ">u2")
            entries = np.frombuffer(data, kind, count=len(data) // kind.itemsize)
        else:
            entries = np.atleast_1d(np.asarray(data, np.float64))
        entries = entries[:count].astype(np.float64)  # padding and wrong counts: what is there
        if entries.size < 2:
            raise BadFile(f"the {name} LUT of the DICOM file has {entries.size} entries")
        return cls(first, entries)

    def look_up(self, values: np.ndarray) -> np.ndarray:
        """Values below and above the table get its first and last entry."""
        index = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1)
        return self.entries[index.astype(np.int64)]


def _number(dataset: pydicom.Dataset, name: str, default: float) -> float:
    """The first value of an element; `default` where it is absent or empty."""
    value = dataset.get(name)
    if isinstance(value, pydicom.multival.MultiValue):
        value = value[0] if len(value) else None
    number = default if value is None or value == "" else float(value)
    if not np.isfinite(number) or abs(number) > 1e9:
        raise BadFile(f"the DICOM element {name} is no number that can be; export the film again")
    return number


class _Window(NamedTuple):
    centre: float
    width: float
    function: str


def _window(dataset: pydicom.Dataset) -> _Window | None:
    """The first window; None where there is none that can be."""
    if dataset.get("WindowCenter") in (None, "") or dataset.get("WindowWidth") in (None, ""):
        return None
    centre, width = _number(dataset, "WindowCenter", 0.0), _number(dataset, "WindowWidth", 0.0)
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise BadFile("another VOI LUT function than LINEAR, LINEAR_EXACT and SIGMOID")
    # A width that the standard forbids (0 is seen in the wild) states no window.
    narrowest = 1 if function == "LINEAR" else 1e-9
    return _Window(centre, width, function) if width >= narrowest else None


def _windowed(values: np.ndarray, window: _Window) -> np.ndarray:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3: values [n] -> 0..1."""
    centre, width, function = window
    if function == "SIGMOID":
        # tanh is the same curve and does not overflow.
        return 0.5 + 0.5 * np.tanh(2.0 * (values - centre) / width)
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0.0, 1.0)
    if width == 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1.0) + 0.5, 0.0, 1.0)


def _padding_value(dataset: pydicom.Dataset, name: str, header: Header) -> int:
    """The value as a stored one: it is written as US or SS, whatever the pixels are."""
    value = int(_number(dataset, name, 0.0)) % 2**header.bits
    return value - 2**header.bits if header.signed and value >= 2 ** (header.bits - 1) else value
