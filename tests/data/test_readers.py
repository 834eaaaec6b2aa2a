import contextlib
import hashlib
import io
import os
import struct
import time
import zlib

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from cxr_jax import weight_files
from cxr_jax.data import readers, volumes
from cxr_jax.data.readers.jpeg import Jpeg
from cxr_jax.errors import InputError

# pydicom warns about what it meets in the broken files that are made here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

RNG = np.random.default_rng(0)
GREY = cv2.GaussianBlur(RNG.integers(0, 256, (48, 40), dtype=np.uint8), (0, 0), 2)
GREY = cv2.normalize(GREY, None, 0, 255, cv2.NORM_MINMAX)
GREY16 = RNG.integers(0, 4096, (48, 40)).astype(np.uint16)


@pytest.fixture
def write(tmp_path):
    def to_file(data, name="film"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return to_file


def encoded(array, kind, **options):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour, pixels, *, before=b"", compressed=None):
    """A PNG by hand: filter 0, `pixels` the bytes of each row."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    if compressed is None:
        compressed = zlib.compress(b"".join(b"\0" + row for row in pixels))
    idat = chunk(b"IDAT", compressed)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + before + idat + chunk(b"IEND", b"")


def dicom(array, syntax=uid.ExplicitVRLittleEndian, *, frame=None, **elements):
    """A DICOM film: `array` uncompressed, or `frame` encapsulated; elements replace defaults."""
    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = syntax
    film.SOPClassUID, film.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    film.Modality = "DX"
    film.Rows, film.Columns = array.shape[:2]
    film.SamplesPerPixel = 1 if array.ndim == 2 else 3
    film.PhotometricInterpretation = "MONOCHROME2" if array.ndim == 2 else "RGB"
    if array.ndim == 3:
        film.PlanarConfiguration = 0
    film.BitsAllocated = film.BitsStored = 8 * array.dtype.itemsize
    film.PixelRepresentation = int(array.dtype.kind == "i")
    film.PixelData = array.tobytes() if frame is None else encapsulate([frame])
    film["PixelData"].VR = "OW" if frame is None else "OB"
    for name, value in elements.items():
        setattr(film, name, value)
    film.HighBit = elements.get("HighBit", film.BitsStored - 1)
    stream = io.BytesIO()
    film.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def lut(entries, first=0, *, bits=16, data=None, count=None):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [(count or len(entries)) % 2**16, first % 2**16, bits])
    data = np.asarray(entries, "<u2").tobytes() if data is None else data
    item.add_new("LUTData", "OW", data)
    return item


def stretched(values, low=None, high=None):
    values = values.astype(np.float64)
    low = values.min() if low is None else low
    high = values.max() if high is None else high
    return np.clip(np.rint(255 * (values - low) / (high - low)), 0, 255).astype(np.uint8)


def assert_refused(path, *words, read=readers.read_film):
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for word in words:
        assert word in message


# PNG


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_grey_png_of_every_small_depth(write, depth):
    packed = RNG.integers(0, 256, (5, 2 * depth), dtype=np.uint8)
    data = png(16, 5, depth, 0, [bytes(row) for row in packed])
    bits = np.unpackbits(packed, axis=1).reshape(5, 16, depth)
    levels = bits @ (1 << np.arange(depth)[::-1])
    want = levels * (255 // (2**depth - 1))
    np.testing.assert_array_equal(readers.read_film(write(data)), want)


def test_16_bit_png_maps_its_own_range(write):
    values = (GREY16 * 3 + 1000).astype(np.uint16)
    data = cv2.imencode(".png", values)[1].tobytes()
    np.testing.assert_array_equal(readers.read_film(write(data)), stretched(values))


def test_16_bit_rgba_png_drops_alpha(write):
    grey = GREY16 * 13
    alpha = RNG.integers(0, 65536, GREY16.shape).astype(np.uint16)
    data = cv2.imencode(".png", np.dstack([grey, grey, grey, alpha]))[1].tobytes()
    # Luminance of equal channels is that grey to a unit of 65535 (weights in fixed point).
    got = readers.read_film(write(data)).astype(int)
    assert np.abs(got - stretched(grey)).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_colour_png_becomes_luminance(write, mode):
    rgb = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    picture = Image.fromarray(rgb).convert(mode)
    if mode in ("RGBA", "LA"):
        picture.putalpha(Image.fromarray(RNG.integers(0, 256, (20, 30), dtype=np.uint8)))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    shown = np.asarray(picture.convert("RGB"), np.float64)
    want = shown @ [0.299, 0.587, 0.114]
    # One grey level: decoders round the weights of the three channels differently.
    assert np.abs(readers.read_film(write(stream.getvalue())) - want).max() <= 1.01


def test_png_gamma_profile_and_transparency_change_nothing(write):
    extra = chunk(b"gAMA", struct.pack(">I", 100000)) + chunk(b"tRNS", struct.pack(">H", 3))
    extra += chunk(b"zTXt", b"bomb\0\0" + zlib.compress(bytes(10_000_000)))
    data = png(40, 48, 8, 0, [row.tobytes() for row in GREY], before=extra)
    np.testing.assert_array_equal(readers.read_film(write(data)), GREY)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation_is_applied(write, kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # the viewer turns it by 90 degrees clockwise
    got = readers.read_film(write(encoded(GREY, kind, exif=exif)))
    upright = readers.read_film(write(encoded(GREY, kind), "upright"))
    if kind == "PNG" and got.shape == GREY.shape:
        pytest.skip("this OpenCV does not know the EXIF of a PNG")
    np.testing.assert_array_equal(got, np.rot90(upright, -1))


# JPEG


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
def test_grey_jpeg(write, options):
    data = encoded(GREY, "JPEG", quality=98, **options)
    got = readers.read_film(write(data)).astype(int)
    assert np.abs(got - GREY).max() <= 4  # quality 98 on a smooth picture


def test_colour_jpeg_becomes_luminance(write):
    rgb = np.zeros((32, 32, 3), np.uint8)
    rgb[:16] = (200, 30, 60)
    rgb[16:] = (20, 130, 90)
    got = readers.read_film(write(encoded(rgb, "JPEG", quality=95)))
    assert abs(int(got[4, 4]) - 84) <= 2  # 0.299 R + 0.587 G + 0.114 B, JPEG rounding
    assert abs(int(got[28, 28]) - 93) <= 2


def test_bytes_behind_the_end_are_ignored(write):
    want = readers.read_film(write(encoded(GREY, "JPEG")))
    got = readers.read_film(write(encoded(GREY, "JPEG") + b"trailer", "longer"))
    np.testing.assert_array_equal(got, want)


def rle_film():
    film = pydicom.dcmread(io.BytesIO(dicom(GREY16)))
    film.compress(uid.RLELossless)
    stream = io.BytesIO()
    film.save_as(stream)
    return stream.getvalue()


COMPLETE = {
    "png": encoded(GREY, "PNG"),
    "jpeg": encoded(GREY, "JPEG"),
    "progressive jpeg": encoded(np.dstack([GREY] * 3), "JPEG", progressive=True),
    "jpeg with preview": encoded(GREY, "JPEG", exif=b"Exif\0\0" + encoded(GREY[:8, :8], "JPEG")),
    "dicom": dicom(GREY16),
    "dicom jpeg": dicom(GREY, uid.JPEGBaseline8Bit, frame=encoded(GREY, "JPEG")),
    "dicom jpeg 2000": dicom(
        GREY, uid.JPEG2000Lossless, frame=encoded(GREY, "JPEG2000", no_jp2=True)
    ),
    "dicom rle": rle_film(),
}


@pytest.mark.parametrize("kind", COMPLETE)
def test_every_truncated_file_is_refused(write, kind):
    data = COMPLETE[kind]
    assert readers.read_film(write(data, "whole")).shape == GREY.shape
    # The last 16 bytes may be the end marks of DICOM's encapsulation, behind the whole picture.
    last = len(data) - (17 if kind.startswith("dicom ") else 1)
    for cut in np.unique(np.linspace(1, last, 40).astype(int)):
        assert_refused(write(data[:cut], "cut"))


def test_a_truncated_picture_inside_dicom_is_refused(write):
    frame = encoded(GREY, "JPEG")
    for share in (0.3, 0.6, 0.95):
        cut = frame[: int(share * len(frame))]
        assert_refused(write(dicom(GREY, uid.JPEGBaseline8Bit, frame=cut)), "truncated")


# DICOM


@pytest.mark.parametrize("bits, dtype", [(8, "u1"), (12, "u2"), (16, "u2"), (12, "i2"), (16, "i2")])
def test_dicom_without_a_window_shows_its_whole_range(write, bits, dtype):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if dtype[0] == "i" else (0, 2**bits)
    values = RNG.integers(low, high, (20, 24)).astype(dtype)
    got = readers.read_film(write(dicom(values, BitsStored=bits)))
    np.testing.assert_array_equal(got, values if bits == 8 else stretched(values))


def test_8_bit_dicom_is_taken_as_it_is(write):
    values = GREY // 2 + 20
    np.testing.assert_array_equal(readers.read_film(write(dicom(values))), values)


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_rescale_then_window(write, function):
    elements = dict(RescaleSlope="2", RescaleIntercept="-100", WindowCenter="4000")
    elements["WindowWidth"] = "3000"
    if function:
        elements["VOILUTFunction"] = function
    got = readers.read_film(write(dicom(GREY16, BitsStored=12, **elements)))
    values = 2.0 * GREY16 - 100
    if function == "SIGMOID":
        want = 255 / (1 + np.exp(-4 * (values - 4000) / 3000))
    elif function == "LINEAR_EXACT":
        want = 255 * ((values - 4000) / 3000 + 0.5)
    else:  # PS3.3 C.11.2.1.2.1
        want = 255 * ((values - 3999.5) / 2999 + 0.5)
    # 0.5: the rounding to 8 bits.
    assert np.abs(got - np.clip(want, 0, 255)).max() <= 0.5 + 1e-9


def test_the_first_of_several_windows_counts(write):
    several = dicom(GREY16, WindowCenter=["1000", "3000"], WindowWidth=["500", "100"])
    one = dicom(GREY16, WindowCenter="1000", WindowWidth="500")
    got, want = readers.read_film(write(several)), readers.read_film(write(one, "one"))
    np.testing.assert_array_equal(got, want)


def test_a_window_without_width_is_no_window(write):
    got = readers.read_film(write(dicom(GREY16, WindowCenter="0", WindowWidth="0")))
    np.testing.assert_array_equal(got, stretched(GREY16))


def test_a_window_past_the_film_is_refused(write):
    assert_refused(write(dicom(GREY16, WindowCenter="30000", WindowWidth="10")), "one colour")


def test_monochrome1_is_the_same_film(write):
    window = dict(BitsStored=12, WindowWidth="2000")
    two = dicom(GREY16, WindowCenter="2048", **window)
    one = dicom(
        (4095 - GREY16).astype(np.uint16),
        PhotometricInterpretation="MONOCHROME1",
        WindowCenter="2048",  # (4095 - x) about its middle: the window's image
        **window,
    )
    np.testing.assert_array_equal(readers.read_film(write(one)), readers.read_film(write(two, "2")))


def test_monochrome1_is_inverted_last(write):
    """Inverting before the window would take the window to other values."""
    elements = dict(BitsStored=12, WindowCenter="1000", WindowWidth="500")
    plain = readers.read_film(write(dicom(GREY16, **elements)))
    elements["PhotometricInterpretation"] = "MONOCHROME1"
    inverted = readers.read_film(write(dicom(GREY16, **elements), "inverted"))
    np.testing.assert_array_equal(inverted, 255 - plain)


def test_voi_lut_comes_after_rescale_and_before_the_window(write):
    curve = (np.sqrt(np.arange(4096) / 4095) * 65535).astype(np.uint16)
    elements = dict(RescaleIntercept="-1000", RescaleSlope="1", WindowCenter="5", WindowWidth="9")
    film = dicom(GREY16, BitsStored=12, VOILUTSequence=[lut(curve, first=-1000)], **elements)
    np.testing.assert_array_equal(
        readers.read_film(write(film)), stretched(curve[GREY16], 0, 65535)
    )


def test_values_past_the_voi_lut_get_its_ends(write):
    curve = np.linspace(0, 65535, 1000).astype(np.uint16)
    film = dicom(GREY16, VOILUTSequence=[lut(curve, first=1000)])
    want = curve[np.clip(GREY16.astype(int) - 1000, 0, 999)]
    np.testing.assert_array_equal(readers.read_film(write(film)), stretched(want, 0, 65535))


@pytest.mark.parametrize(
    "item",
    [
        lut(np.arange(4096) * 16, bits=12),  # says 12 bits, holds 16
        lut(np.arange(4096), bits=16),  # says 16 bits, holds 12: would be nearly black
        lut(np.arange(4096), count=5000),  # says more entries than there are
        lut(np.r_[np.arange(4096), np.zeros(90)], count=4096),  # more data than entries
        lut([], data=np.arange(4096, dtype="<u2").tobytes(), count=2**16),  # 0 entries: 65536
    ],
)
def test_broken_voi_lut_descriptors_that_can_be_read(write, item):
    # 1: tables of 16 bits are rounded a little differently from the plain range.
    got = readers.read_film(write(dicom(GREY16, BitsStored=12, VOILUTSequence=[item]))).astype(int)
    assert np.abs(got - stretched(GREY16, 0, 4095)).max() <= 1


def test_voi_lut_of_one_byte_an_entry(write):
    item = lut([], data=np.arange(256, dtype=np.uint8)[::-1].tobytes(), count=256, bits=8)
    film = dicom(GREY, VOILUTSequence=[item])
    np.testing.assert_array_equal(readers.read_film(write(film)), 255 - GREY)


def test_broken_voi_luts_that_cannot_be_read(write):
    without = lut(np.arange(16))
    del without.LUTDescriptor
    assert_refused(write(dicom(GREY16, VOILUTSequence=[without])), "VOI LUT")
    one = lut([7])
    assert_refused(write(dicom(GREY16, VOILUTSequence=[one])), "VOI LUT", "1 entries")


def test_modality_lut(write):
    curve = (np.arange(4096) ** 2 // 300).astype(np.uint16)
    film = dicom(GREY16, BitsStored=12, ModalityLUTSequence=[lut(curve)])
    np.testing.assert_array_equal(readers.read_film(write(film)), stretched(curve[GREY16]))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_outside_the_range(write, photometric):
    values = GREY16.clip(500, 3000)
    padded = values.copy()
    padded[:, :5] = 4095
    film = dicom(
        padded,
        BitsStored=12,
        PhotometricInterpretation=photometric,
        PixelPaddingValue=4095,
    )
    got = readers.read_film(write(film))
    want = stretched(values, values[:, 5:].min(), values[:, 5:].max())
    want = 255 - want if photometric == "MONOCHROME1" else want
    np.testing.assert_array_equal(got[:, 5:], want[:, 5:])
    assert (got[:, :5] == 0).all()


def test_unused_high_bits_are_ignored(write):
    overlay = GREY16 | (RNG.integers(0, 16, GREY16.shape).astype(np.uint16) << 12)
    got = readers.read_film(write(dicom(overlay, BitsStored=12)))
    np.testing.assert_array_equal(got, stretched(GREY16))


def test_mirrored_film_is_mirrored_back(write):
    film = dicom(GREY, PatientOrientation=["R", "F"])
    np.testing.assert_array_equal(readers.read_film(write(film)), GREY[:, ::-1])
    film = dicom(GREY, PatientOrientation=["L", "F"])
    np.testing.assert_array_equal(readers.read_film(write(film)), GREY)


def test_compressed_and_big_endian_dicom_equal_the_plain_one(write):
    want = readers.read_film(write(dicom(GREY16), "plain"))
    np.testing.assert_array_equal(readers.read_film(write(rle_film())), want)
    big = dicom(GREY16.byteswap(), uid.ExplicitVRBigEndian)
    np.testing.assert_array_equal(readers.read_film(write(big)), want)
    j2k = dicom(GREY16, uid.JPEG2000Lossless, frame=encoded(GREY16, "JPEG2000", no_jp2=True))
    np.testing.assert_array_equal(readers.read_film(write(j2k)), want)
    bare = dicom(GREY16)[132:]  # an old file, without preamble
    np.testing.assert_array_equal(readers.read_film(write(bare, "old.dcm")), want)


def test_colour_dicom_becomes_luminance(write):
    rgb = np.zeros((32, 32, 3), np.uint8)
    rgb[:16], rgb[16:] = (200, 30, 60), (20, 130, 90)
    ybr = np.ascontiguousarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]])
    planes = np.ascontiguousarray(rgb.transpose(2, 0, 1)).tobytes()
    films = [
        dicom(rgb),
        dicom(rgb, PlanarConfiguration=1, PixelData=planes),
        dicom(ybr, PhotometricInterpretation="YBR_FULL"),
        dicom(
            rgb,
            uid.JPEGBaseline8Bit,
            frame=encoded(rgb, "JPEG", quality=95),
            PhotometricInterpretation="YBR_FULL_422",
        ),
    ]
    for film in films:
        got = readers.read_film(write(film))
        assert abs(int(got[4, 4]) - 84) <= 2  # rounding of the colour conversions
        assert abs(int(got[28, 28]) - 93) <= 2


@pytest.mark.parametrize(
    "elements, word",
    [
        (dict(NumberOfFrames=3), "3 frames"),
        (dict(PhotometricInterpretation="PALETTE COLOR"), "PALETTE COLOR"),
        (dict(PhotometricInterpretation="RGB"), "samples per pixel"),
        (dict(Rows=60000, Columns=60000), "megapixels"),
        (dict(Rows=0), "0 px"),
        (dict(Rows=49), "truncated"),
        (dict(BitsAllocated=32), "32 bits allocated"),
        (dict(BitsStored=12, HighBit=15), "high bit 15"),
        (dict(RescaleSlope="0"), "one colour"),
        (dict(RescaleSlope="1e300"), "RescaleSlope"),
        (dict(WindowCenter="5", WindowWidth="9", VOILUTFunction="CUBIC"), "VOI LUT function"),
    ],
)
def test_dicom_headers_that_make_no_film(write, elements, word):
    assert_refused(write(dicom(GREY16, **elements)), word)


def test_dicom_without_a_picture(write):
    film = pydicom.dcmread(io.BytesIO(dicom(GREY16)))
    del film.PixelData
    film.Modality = "SR"
    stream = io.BytesIO()
    film.save_as(stream)
    assert_refused(write(stream.getvalue()), "no picture", "SR")


def test_deflated_dicom_is_refused_before_it_is_inflated(write):
    bomb = np.zeros((9000, 9000), np.uint8)
    data = dicom(bomb, uid.DeflatedExplicitVRLittleEndian)
    assert_refused(write(data), "deflated")


def test_a_larger_picture_than_the_dicom_header_says(write):
    frame = encoded(np.tile(GREY, (4, 4)), "JPEG")
    assert_refused(write(dicom(GREY, uid.JPEGBaseline8Bit, frame=frame)), "160x192x1", "40x48x1")


def test_a_compression_without_decoder_is_named(write):
    if pydicom.pixels.get_decoder(uid.HTJ2KLossless).is_available:
        pytest.skip("a decoder for HTJ2K is installed")
    film = dicom(GREY, uid.HTJ2KLossless, frame=bytes(100))
    assert_refused(write(film), "High-Throughput JPEG 2000", "no decoder is installed")


def test_an_rle_bomb_is_refused_before_it_is_unpacked(write):
    header = struct.pack("<16I", 1, 64, *[0] * 14)
    bomb = header + b"\x81\x00" * 1500  # 192,000 bytes for 1,920
    assert_refused(write(dicom(GREY, uid.RLELossless, frame=bomb)), "RLE")


# Any file


def test_what_is_no_film(write, tmp_path):
    assert_refused(tmp_path / "absent.png", "no such file")
    assert_refused(tmp_path, "not a file")
    assert_refused(write(b""), "empty")
    assert_refused(write(b"not a film at all", "film.png"), "expected a PNG, JPEG or DICOM")
    assert_refused(write(b"\x80\x04cos\nsystem\n", "film.dcm"), "expected a PNG, JPEG or DICOM")
    os.mkfifo(tmp_path / "pipe.png")
    assert_refused(tmp_path / "pipe.png", "not a file")


def test_one_colour_is_refused(write):
    plain = np.full((30, 30), 7, np.uint8)
    for data in (encoded(plain, "PNG"), encoded(plain, "JPEG"), dicom(plain)):
        assert_refused(write(data), "one colour")


def test_a_kind_is_told_by_content_not_by_name(write):
    got = readers.read_film(write(encoded(GREY, "PNG"), "film.jpg"))
    np.testing.assert_array_equal(got, GREY)


def test_huge_headers_are_refused_at_once(write):
    rows = [bytes(40)]
    start = time.monotonic()
    assert_refused(write(png(100_000, 100_000, 8, 0, rows)), "100000x100000", "100 megapixels")
    jpeg = encoded(GREY, "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    huge = jpeg[:at] + struct.pack(">HH", 65000, 65000) + jpeg[at + 4 :]
    assert_refused(write(huge), "65000x65000")
    assert time.monotonic() - start < 1
    with pytest.raises(InputError, match=r"0\.001 megapixels"):
        readers.read_film(write(encoded(GREY, "PNG")), max_pixels=1000)


def test_a_png_bomb_is_refused(write):
    bomb = zlib.compress(bytes(200_000_000), 1)
    start = time.monotonic()
    assert_refused(write(png(40, 48, 8, 0, None, compressed=bomb)), "damaged")
    assert time.monotonic() - start < 1


def test_short_or_damaged_pixels_are_refused(write):
    rows = [row.tobytes() for row in GREY]
    assert_refused(write(png(40, 48, 8, 0, rows[:20])))
    data = bytearray(png(40, 48, 8, 0, rows))
    data[200] ^= 1
    assert_refused(write(bytes(data)), "checksum")


def test_bytes_changed_at_random_give_a_film_or_an_input_error(write):
    rng = np.random.default_rng(7)
    for data in COMPLETE.values():
        for _ in range(40):
            changed = bytearray(data)
            for at in rng.integers(0, min(len(data), 800), 3):
                changed[at] = rng.integers(256)
            path = write(bytes(changed), "changed.dcm")
            # Anything but an InputError fails here.
            with contextlib.suppress(InputError):
                film = readers.read_film(path)
                assert film.dtype == np.uint8
                assert film.ndim == 2


# Masks, stored PNGs, folders


@pytest.mark.parametrize("values", [(0, 1), (0, 255), (0, 2), (0, 128)])
def test_masks_of_any_values(write, values):
    inside = GREY > 100
    mask = np.where(inside, values[1], values[0]).astype(np.uint8)
    got = readers.read_mask(write(encoded(mask, "PNG")), shape=GREY.shape)
    np.testing.assert_array_equal(got, inside)
    assert got.dtype == np.uint8


def test_mask_keeps_small_labels_and_drops_grey_below_half(write):
    labels = np.zeros((20, 20), np.uint8)
    labels[:5], labels[5:10] = 1, 2
    assert readers.read_mask(write(encoded(labels, "PNG"))).sum() == 200
    labels[:5], labels[5:10] = 127, 255
    assert readers.read_mask(write(encoded(labels, "PNG"))).sum() == 100


def test_empty_mask_is_read_and_another_size_refused(write):
    path = write(encoded(np.zeros((30, 20), np.uint8), "PNG"))
    assert not readers.read_mask(path, (30, 20)).any()
    with pytest.raises(InputError, match=r"20x30 px .*40x48"):
        readers.read_mask(path, (48, 40))
    assert_refused(write(dicom(GREY)), "GIF or BMP mask", read=readers.read_mask)


MASK = cv2.resize((GREY > 100).astype(np.uint8) * 255, (50, 40), interpolation=cv2.INTER_NEAREST)


@pytest.mark.parametrize("kind", ["GIF", "BMP"])
@pytest.mark.parametrize("mode", ["L", "P", "1", "RGB"])
def test_masks_as_gif_and_bmp(write, kind, mode):
    stream = io.BytesIO()
    Image.fromarray(MASK).convert(mode).save(stream, kind)
    np.testing.assert_array_equal(readers.read_mask(write(stream.getvalue())), MASK > 0)


def test_a_gif_is_read_by_its_colours_not_by_its_indices(write):
    picture = Image.fromarray((MASK == 0).astype(np.uint8), "P")  # index 1 is outside, and black
    picture.putpalette([255, 255, 255, 0, 0, 0])
    stream = io.BytesIO()
    picture.save(stream, "GIF")
    np.testing.assert_array_equal(readers.read_mask(write(stream.getvalue())), MASK > 0)


@pytest.mark.parametrize("kind", ["GIF", "BMP"])
def test_a_cut_mask_is_refused_wherever_it_ends(write, kind):
    data = encoded(MASK, kind)
    # The last two bytes hold no pixel: of a GIF its end mark, of a BMP the padding of a row.
    for length in [*range(1, len(data) - 2, 17), len(data) - 3]:
        with pytest.raises(InputError):
            readers.read_mask(write(data[:length]))


@pytest.mark.parametrize("kind", ["GIF", "BMP"])
def test_damaged_masks_are_one_line_or_a_mask(write, kind):
    data, rng = encoded(MASK, kind), np.random.default_rng(0)
    outcomes = []
    for _ in range(200):
        damaged = np.frombuffer(data, np.uint8).copy()
        damaged[rng.integers(6, min(len(data), 200), 2)] = rng.integers(0, 256, 2)
        try:
            outcomes.append(f"mask up to {readers.read_mask(write(damaged.tobytes())).max()}")
        except InputError as error:
            outcomes.append(f"{1 + str(error).count(chr(10))} line")
    # Both came up, and nothing else.
    assert set(outcomes) - {"mask up to 0"} == {"mask up to 1", "1 line"}


def test_large_and_moving_masks_are_refused(write):
    data = bytearray(encoded(MASK, "GIF"))
    struct.pack_into("<HH", data, 6, 60000, 60000)
    assert_refused(write(bytes(data)), "megapixels", read=readers.read_mask)
    data = bytearray(encoded(MASK, "BMP"))
    struct.pack_into("<ii", data, 18, 20000, 20000)
    assert_refused(write(bytes(data)), "megapixels", read=readers.read_mask)
    struct.pack_into("<ii", data, 18, 10**6, 10**6)
    assert_refused(write(bytes(data)), "megapixels", read=readers.read_mask)
    stream = io.BytesIO()
    Image.fromarray(MASK).save(
        stream, "GIF", save_all=True, append_images=[Image.fromarray(255 - MASK)]
    )
    assert_refused(write(stream.getvalue()), "several pictures", read=readers.read_mask)


def test_raw_jsrt_words_become_grey(write):
    words = np.zeros((2048, 2048), ">u2")
    words[0, :5] = 4095, 2048, 16, 4100, 1
    film = readers.read_jsrt(write(words.tobytes()))
    assert film.dtype == np.uint8
    assert film.shape == (2048, 2048)
    # 255 - 255 v / 4095, rounded; 0 is white, and what is above 12 bits as black as they go.
    assert film[0, :6].tolist() == [0, 127, 254, 0, 255, 255]


@pytest.mark.parametrize(
    "words, message",
    [
        (np.zeros((2048, 2048), ">u2"), "every pixel is 0"),
        (np.arange(2**22, dtype=np.uint32).astype("<u2"), "of its words are above 4095"),
        (np.arange(4096, dtype=">u2"), "8192 bytes; a raw JSRT film of 2048x2048 px has 8388608"),
    ],
)
def test_what_is_no_raw_jsrt_film_is_refused(write, words, message):
    assert_refused(write(words.tobytes()), message, read=readers.read_jsrt)
    with pytest.raises(InputError, match="no such file"):
        readers.read_jsrt("nowhere.IMG")


@pytest.mark.parametrize("shape", [(1, 1), (48, 40), (7, 301)])
def test_stored_png_is_lossless(shape):
    array = RNG.integers(0, 256, shape, dtype=np.uint8)
    data = readers.encode_png(array)
    np.testing.assert_array_equal(readers.decode_png(data), array)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), array)


def test_damaged_stored_png():
    data = readers.encode_png(GREY)
    for bad in (b"", data[:-40], encoded(np.dstack([GREY] * 3), "PNG")):
        with pytest.raises(InputError, match="prepare"):
            readers.decode_png(bad)
    with pytest.raises(ValueError, match="uint8"):
        readers.encode_png(GREY16)


def test_films_in_folders(tmp_path):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / ".hidden").mkdir()
    names = ["a/2.PNG", "a/deep/1.jpeg", "a/x.dcm", "a/notes.txt", "a/._2.png", "a/.hidden/3.png"]
    for name in names:
        (tmp_path / name).write_bytes(b"?")
    for name in ("a/plain", "a/1.2.840.113", "a/DICOMDIR", "a/table.csv"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
    (tmp_path / "a/README").write_bytes(b"no film")
    got = readers.films_in([tmp_path / "a", str(tmp_path / "a" / "x.dcm")])
    want = ["1.2.840.113", "2.PNG", "deep/1.jpeg", "plain", "x.dcm"]
    assert got == [tmp_path / "a" / name for name in want]


def test_films_in_nothing(tmp_path):
    with pytest.raises(InputError, match="no film in this folder"):
        readers.films_in([tmp_path])
    with pytest.raises(InputError, match="no such file"):
        readers.films_in([tmp_path / "absent"])
    assert readers.films_in([]) == []


# Real films


def test_real_samples_are_read(cxr_data):
    films = readers.films_in([cxr_data / "samples"])
    assert len(films) >= 8
    for path in films:
        film = readers.read_film(path)
        assert film.dtype == np.uint8
        assert min(film.shape) > 300
        assert film.std() > 20, path  # a film, not a shade: the darkest of them has 50


def test_real_dicom_inverted_both_ways_is_the_same_film(cxr_data, write):
    (path,) = (cxr_data / "samples").glob("1.2.276*.dcm")
    stored = pydicom.dcmread(path).pixel_array
    film = dicom(255 - stored, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(readers.read_film(write(film)), readers.read_film(path))


def test_real_dicom_against_its_monochrome1_copy(cxr_data):
    """The copy has the same stored values and another tag, so it must come out inverted."""
    by_photometric = {}
    for path in (cxr_data / "samples").glob("*.dcm"):
        dataset = pydicom.dcmread(path)
        key = dataset.PhotometricInterpretation
        by_photometric[key] = readers.read_film(path), hashlib.sha1(dataset.PixelData).digest()
    (one, one_bytes), (two, two_bytes) = (
        by_photometric["MONOCHROME1"],
        by_photometric["MONOCHROME2"],
    )
    assert one_bytes == two_bytes
    np.testing.assert_array_equal(one, 255 - two)
    # MONOCHROME2 is the true tag of this film:
    assert two[:, 480:540].mean() > two[300:700, 200:400].mean()  # spine light, lung dark


# What a decoder only warns of


def scans_changed(data, change):
    """The JPEG with `change` made to the compressed data of each scan, and its end marker."""
    jpeg = Jpeg.of(data)
    segments = (segment._replace(scan=change(segment.scan)) for segment in jpeg.segments)
    return b"\xff\xd8" + b"".join(s.to_bytes() for s in segments) + b"\xff\xd9"


def jpegs():
    rgb = np.dstack([np.tile(GREY, (3, 4))] * 3)
    rgb[..., 0] = rgb[::-1, :, 0]
    for grey in (True, False):
        for progressive in (True, False):
            for restarts in (0, 1, 4):
                options = dict(progressive=progressive, restart_marker_blocks=restarts)
                array = np.ascontiguousarray(rgb[..., 0]) if grey else rgb
                yield encoded(array, "JPEG", quality=90, **options)


@pytest.mark.parametrize("data", list(jpegs()), ids=range(12))
def test_a_jpeg_with_a_part_of_its_scan_cut_out_is_refused(write, data):
    whole = readers.read_film(write(data))
    plain = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(whole, plain)  # the check changes no pixel
    np.testing.assert_array_equal(readers.read_film(write(scans_changed(data, bytes))), whole)
    for change in (
        lambda scan: scan[: len(scan) // 2],
        lambda scan: scan[: len(scan) // 4] + scan[len(scan) * 3 // 4 :],
        lambda scan: scan[: len(scan) * 9 // 10],
    ):
        cut = scans_changed(data, change)
        assert cut.endswith(b"\xff\xd9")
        assert_refused(write(cut), "truncated")


def test_a_jpeg_that_lacks_whole_restart_intervals_is_refused(write):
    data = encoded(np.tile(GREY, (3, 4)), "JPEG", restart_marker_blocks=2)

    def without(first, count):
        def change(scan):
            places = [i for i in range(len(scan) - 1) if scan[i] == 0xFF and scan[i + 1] > 0xCF]
            if not places:
                return scan
            end = places[first + count] if first + count < len(places) else len(scan)
            return scan[: places[first]] + scan[end:]

        return scans_changed(data, change)

    for first, count in ((3, 1), (3, 8), (0, 16), (20, 1000)):
        assert_refused(write(without(first, count)), "truncated")


def test_a_cut_jpeg_inside_dicom_is_refused(write):
    frame = encoded(GREY, "JPEG")
    readers.read_film(write(dicom(GREY, uid.JPEGBaseline8Bit, frame=frame)))
    cut = scans_changed(frame, lambda scan: scan[: len(scan) // 2])
    assert_refused(write(dicom(GREY, uid.JPEGBaseline8Bit, frame=cut)), "truncated")


def test_colour_dicom_of_signed_values_is_refused(write):
    rgb = np.dstack([GREY] * 3)
    assert_refused(write(dicom(rgb, PixelRepresentation=1)), "signed")


def test_no_message_holds_what_a_library_says(write):
    """Its words name objects in memory, and what a DICOM header holds."""
    for kind in ("GIF", "BMP"):
        data = encoded(GREY, kind)
        for broken in (data[:8], data[: len(data) // 2], data[:6] + b"\xff" * 60):
            with contextlib.suppress(InputError):
                readers.read_mask(write(broken))
            with pytest.raises(InputError) as caught:
                readers.read_mask(write(data[:10]))
            assert "object at" not in str(caught.value)
    frame = encoded(GREY, "JPEG2000", irreversible=False)
    start = frame.index(b"\xff\x4f\xff\x51")
    broken = frame[:start] + frame[start : start + 60] + b"\0" * 40 + b"\xff\xd9"
    with pytest.raises(InputError) as caught:
        readers.read_film(write(dicom(GREY, uid.JPEG2000Lossless, frame=broken)))
    assert "object at" not in str(caught.value)


def test_a_film_is_found_whole_by_its_header_and_its_end(write):
    kinds = {
        "png": encoded(GREY, "PNG"),
        "trailing": encoded(GREY, "PNG") + b"behind",
        "jpg": encoded(GREY, "JPEG"),
        "plain": dicom(GREY16),
        "inside": dicom(GREY, uid.JPEGBaseline8Bit, frame=encoded(GREY, "JPEG")),
    }
    for name, data in kinds.items():
        readers.check_whole(write(data, name))
        assert_refused(write(data[: len(data) // 2], name), "truncated", read=readers.check_whole)
        readers.check_whole(write(data, name))
    assert_refused(write(b"text"), "not an image", read=readers.check_whole)
    assert_refused(write(b"").with_name("absent"), "no such file", read=readers.check_whole)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "y/" + "x" * 300])
def test_names_that_no_disk_holds_are_one_line(tmp_path, name):
    for read in (
        *(readers.read_film, readers.read_mask, readers.read_jsrt, readers.check_whole),
        *(readers.read_hounsfield, readers.read_slice_header, lambda p: readers.films_in([p])),
        *(volumes.read, volumes.outline, volumes.read_nifti, volumes.read_dicom_series),
        *(weight_files.read_file, lambda p: volumes.volumes_in([p])),
    ):
        with pytest.raises(InputError) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)
