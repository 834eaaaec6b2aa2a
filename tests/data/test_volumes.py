"""Volumes from files: one orientation whatever the file's, bounded memory, one line a mistake."""

import gzip
import struct
import tracemalloc

import nibabel
import numpy as np
import pydicom
import pytest
from fake_volumes import SPACING, draw_chest, write_nifti, write_series, write_slice

from cxr_jax.data import readers, volumes
from cxr_jax.errors import InputError


def check_line(path, *words, read=volumes.read, **options):
    with pytest.raises(InputError) as error:
        read(path, **options)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def raw_nifti(path, array, affine, **header):
    """A file written by nibabel as it is, with header fields changed."""
    image = nibabel.Nifti1Image(array, affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def broken(path, offset, kind, value, *, source):
    """A copy of an uncompressed file with one field of its header replaced."""
    content = bytearray(source.read_bytes())
    struct.pack_into(kind, content, offset, value)
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def chest():
    return draw_chest()[0]


# --- window


def test_window_is_linear_between_its_ends():
    values = np.array([-5000, -1350, -600, 150, 151, 4000])
    np.testing.assert_array_equal(volumes.window(values, -600, 1500), [0, 0, 128, 255, 255, 255])
    grey = np.arange(256)
    np.testing.assert_array_equal(volumes.window(grey, 127.5, 255), grey)
    with pytest.raises(InputError, match="width 0"):
        volumes.window(values, 0, 0)


# --- orientation


# By hand: where the file's axes point, and the same array as [S, H, W].
HAND = {
    "LPS": ([-1, -1, 1], lambda a: a.transpose(2, 1, 0)),
    "RAS": ([1, 1, 1], lambda a: a[::-1, ::-1].transpose(2, 1, 0)),
    "LAI": ([-1, 1, -1], lambda a: a[:, ::-1, ::-1].transpose(2, 1, 0)),
}


@pytest.mark.parametrize("axes", HAND)
def test_orientation_by_hand(tmp_path, axes):
    signs, turned = HAND[axes]
    array = np.zeros((5, 6, 4), np.int16)
    array[0, 0, 0], array[4, 0, 0], array[0, 5, 0], array[0, 0, 3] = 1, 2, 3, 4
    file = raw_nifti(tmp_path / "v.nii", array, np.diag([*signs, 1]))
    read = volumes.read_nifti(file)
    np.testing.assert_array_equal(read.values, turned(array))
    ascending = signs[2] > 0
    assert read.outline.numbers.tolist() == ([1, 2, 3, 4] if ascending else [4, 3, 2, 1])


@pytest.mark.parametrize("axes", ["LPS", "RAS", "RAI", "LPI", "SLP", "ASR", "PIR", "ILA"])
def test_any_axes_give_the_same_volume(tmp_path, chest, axes):
    file = write_nifti(tmp_path / "v.nii.gz", chest, axes)
    read = volumes.read(file)
    np.testing.assert_array_equal(read.values, chest)
    assert read.values.dtype == np.int16
    np.testing.assert_allclose(read.spacing_mm, SPACING, rtol=1e-6)
    lie = volumes.outline(file)
    assert lie.shape == read.outline.shape == chest.shape
    np.testing.assert_array_equal(lie.numbers, read.outline.numbers)
    # The lung on the image's left is the larger one, the bead is at right, front and feet.
    assert read.values[0, 1, 2] == 3000


def test_a_tilted_file_is_turned_to_the_nearest_axes(tmp_path, chest):
    tilt = np.eye(4)
    angle = np.deg2rad(20)
    tilt[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    file = raw_nifti(tmp_path / "v.nii", chest.transpose(2, 1, 0), tilt @ np.diag([-1, -1, 1, 1]))
    np.testing.assert_array_equal(volumes.read_nifti(file).values, chest)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", ["<u1", ">i2", "<u2", "<i4", ">f4", "<f8"])
def test_types_byte_orders_and_scaling(tmp_path, kind, dtype):
    values = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    affine = np.diag([-1, -1, 1, 1])
    header = kind.header_class(endianness=dtype[0])
    image = kind(values.transpose(2, 1, 0).astype(dtype), affine, header)
    image.header.set_data_dtype(dtype)
    for slope, intercept in ((1, 0), (2, -1024)):
        image.header.set_slope_inter(slope, intercept)
        nibabel.save(image, tmp_path / "v.nii")
        # nibabel scales before it stores; the header's numbers are put back into the file.
        stored = nibabel.load(tmp_path / "v.nii").dataobj.get_unscaled()
        read = volumes.read_nifti(tmp_path / "v.nii").values
        want = nibabel.load(tmp_path / "v.nii").get_fdata().transpose(2, 1, 0)
        np.testing.assert_allclose(read, want)
        assert stored.dtype.str == np.dtype(dtype).str
        assert read.dtype.isnative


def test_slope_and_intercept_are_applied(tmp_path):
    stored = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    source = raw_nifti(tmp_path / "a.nii", stored.transpose(2, 1, 0), np.diag([-1, -1, 1, 1]))
    file = broken(tmp_path / "b.nii", 112, "<f", 2.0, source=source)
    file = broken(tmp_path / "c.nii", 116, "<f", -1024.0, source=file)
    values = volumes.read_nifti(file).values
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, 2.0 * stored - 1024)


def test_a_fourth_axis_of_one_is_dropped(tmp_path, chest):
    array = chest.transpose(2, 1, 0)[..., None]
    file = raw_nifti(tmp_path / "v.nii", array, np.diag([-1, -1, 1, 1]))
    np.testing.assert_array_equal(volumes.read_nifti(file).values, chest)


# --- NIfTI mistakes


AFFINE = np.diag([-1, -1, 1, 1])


@pytest.mark.parametrize(
    "shape, words",
    [
        ((8, 8), ("two dimensions (8x8)", "one slice is no volume")),
        ((8, 8, 1), ("1x8x8", "one slice is no volume")),
        ((8, 8, 4, 3), ("4 dimensions (8x8x4x3)", "save one phase")),
        ((8, 1, 4), ("4x1x8", "at least 2x2")),
    ],
)
def test_shapes_that_are_no_volume(tmp_path, shape, words):
    file = raw_nifti(tmp_path / "v.nii.gz", np.ones(shape, np.int16), AFFINE)
    check_line(file, "v.nii.gz: ", *words)
    check_line(file, *words, read=volumes.outline)


def test_values_that_are_no_numbers(tmp_path, chest):
    values = chest.transpose(2, 1, 0).astype(np.float32)
    values[3, 4, 5] = np.nan
    check_line(raw_nifti(tmp_path / "v.nii", values, AFFINE), "voxel (3, 4, 5)", "not a number")
    values[3, 4, 5] = np.inf
    check_line(raw_nifti(tmp_path / "v.nii", values, AFFINE), "voxel (3, 4, 5)", "not a number")
    pairs = np.zeros((4, 4, 4), np.complex64)
    check_line(raw_nifti(tmp_path / "v.nii", pairs, AFFINE), "type complex64")


def test_no_orientation_is_refused_but_taken_from_the_volume_of_a_mask(tmp_path, chest):
    like = volumes.outline(write_nifti(tmp_path / "v.nii", chest, "RAS"))
    stored = chest[:, ::-1, ::-1].transpose(2, 1, 0)
    file = tmp_path / "m.nii"
    image = nibabel.Nifti1Image(stored, None)
    nibabel.save(image, file)
    check_line(file, "right and left are unknown")
    np.testing.assert_array_equal(volumes.read_nifti(file, like=like).values, chest)
    affine = np.diag([-1.0, -1.0, 0.0, 1.0])
    image = nibabel.Nifti1Image(stored, None)
    image.header.set_sform(affine, code=1)
    nibabel.save(image, file)
    check_line(file, "right and left are unknown")


def test_truncated_and_damaged_files(tmp_path, chest):
    noise = np.random.default_rng(0).integers(-1000, 1000, chest.shape).astype(np.int16)
    plain, packed = tmp_path / "v.nii", tmp_path / "v.nii.gz"
    write_nifti(plain, noise)
    write_nifti(packed, noise)
    cut = tmp_path / "cut.nii.gz"
    for share in (0.0, 0.001, 0.5, 0.99):
        for file in (plain, packed):
            content = file.read_bytes()
            cut.write_bytes(content[: int(len(content) * share)])
            check_line(cut, "cut.nii.gz")
    content = bytearray(packed.read_bytes())
    content[len(content) // 2] ^= 255
    cut.write_bytes(content)
    check_line(cut, "truncated or damaged")
    content = bytearray(packed.read_bytes())
    content[-6] ^= 255  # the checksum
    cut.write_bytes(content)
    check_line(cut, "truncated or damaged")
    cut.write_bytes(b"no volume at all, but text " * 40)
    check_line(cut, "not a NIfTI file")
    check_line(tmp_path / "none.nii", "no such file")


HEADERS = [
    (40, "<h", 9, "makes no sense"),  # number of dimensions
    (42, "<h", -3, "-3x"),
    (42, "<h", 30000, "over the limit"),
    (70, "<h", 777, "makes no sense"),  # type
    (108, "<f", float("nan"), "begin at byte nan"),
    (108, "<f", 0.0, "begin at byte 0"),
    (108, "<f", 1e9, "begin at byte 1e+09"),
    (344, "<4s", b"ni1\0", ".hdr/.img pair"),
    (112, "<f", float("inf"), "makes no sense"),
    (280, "<f", float("nan"), "right and left are unknown"),  # a corner of the matrix
]


@pytest.mark.parametrize("offset, kind, value, word", HEADERS)
def test_headers_that_make_no_sense(tmp_path, offset, kind, value, word):
    source = write_nifti(tmp_path / "v.nii", np.zeros((30, 40, 50), np.int16))
    if offset == 42 and value > 0:
        broken(source, 44, "<h", 30000, source=source)
    check_line(broken(tmp_path / "b.nii", offset, kind, value, source=source), "b.nii", word)


def test_too_many_slices_are_refused_from_the_header(tmp_path):
    file = raw_nifti(tmp_path / "v.nii.gz", np.zeros((2, 2, 2001), np.int16), AFFINE)
    check_line(file, "at most 2000 slices")
    file = raw_nifti(tmp_path / "v.nii.gz", np.zeros((2, 4097, 3), np.int16), AFFINE)
    check_line(file, "4096x4096")


def test_a_bomb_is_inflated_no_further_than_its_header_says(tmp_path, chest):
    """Behind the values, and as an extension: a gigabyte of zeros each."""
    plain = write_nifti(tmp_path / "v.nii", chest).read_bytes()
    zeros = bytes(2**24)
    behind, before = tmp_path / "behind.nii.gz", tmp_path / "before.nii.gz"
    with gzip.open(behind, "wb", compresslevel=1) as file:
        file.write(plain)
        for _ in range(16):
            file.write(zeros)
    head = bytearray(plain[:352])
    head[348] = 1
    struct.pack_into("<f", head, 108, 2.0**30)
    with gzip.open(before, "wb", compresslevel=1) as file:
        file.write(bytes(head) + struct.pack("<ii", 2**30, 6))
        for _ in range(4):
            file.write(zeros)
    tracemalloc.start()
    check_line(behind, "goes on far behind its values")
    check_line(before, "begin at byte")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22


def test_an_extension_is_passed_over(tmp_path, chest):
    image = nibabel.load(write_nifti(tmp_path / "v.nii", chest))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 100_000))
    nibabel.save(image, tmp_path / "e.nii.gz")
    np.testing.assert_array_equal(volumes.read_nifti(tmp_path / "e.nii.gz").values, chest)


# --- masks


def test_masks_are_held_against_their_volume(tmp_path, chest):
    like = volumes.outline(write_nifti(tmp_path / "v.nii", chest))
    mask = (chest > 0).astype(np.float32) * 2
    file = write_nifti(tmp_path / "m.nii.gz", mask, "RAI")
    read = volumes.read_mask(file, like)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, mask)
    check_line(file, "whole numbers 0..1", read=lambda p: volumes.read_mask(p, like, most=1))
    for wrong in (-1, 0.5, 256):
        mask[3, 2, 1] = wrong
        write_nifti(file, mask)
        check_line(file, f"value {wrong:g} in slice 4", read=lambda p: volumes.read_mask(p, like))
    write_nifti(file, mask[1:])
    check_line(file, "5x40x40", "6x40x40", read=lambda p: volumes.read_mask(p, like))


def test_a_mask_of_other_axes_lies_where_its_volume_does(tmp_path, chest):
    """A mask saved with an identity matrix beside a volume of other axes is mirrored in silence."""
    like = volumes.outline(write_nifti(tmp_path / "v.nii", chest, "LAS", place=(90, 80, -300)))
    mask = (chest > 0).astype(np.uint8)
    file = write_nifti(tmp_path / "m.nii", mask, "RPI", place=(90, 80, -300))
    np.testing.assert_array_equal(volumes.read_mask(file, like), mask)
    # The same axes need no place: only the order of the voxels counts.
    write_nifti(file, mask, "LAS")
    np.testing.assert_array_equal(volumes.read_mask(file, like), mask)
    stored = mask[:, ::-1].transpose(2, 1, 0)  # in the order of the volume's file
    raw_nifti(file, stored, np.eye(4))
    words = "the mask's axes are not its volume's", "(90, 80, -300) mm"
    check_line(file, *words, read=lambda p: volumes.read_mask(p, like))
    np.testing.assert_array_equal(volumes.read_mask(file, like, as_stored=True), mask)
    write_series(tmp_path / "s", chest)
    lie = volumes.outline(tmp_path / "s")
    np.testing.assert_allclose(lie.matrix[:3, 3], [10, 20, 100])
    check_line(file, "save the mask with", read=lambda p: volumes.read_mask(p, lie))


def test_lungs_get_sides_from_the_picture():
    _, lungs, _ = draw_chest()
    theirs = np.array([0, 7, 3], np.uint8)[lungs]
    np.testing.assert_array_equal(volumes.sided_lungs(theirs), lungs)
    np.testing.assert_array_equal(volumes.sided_lungs(np.minimum(lungs, 1)), lungs)
    assert not volumes.sided_lungs(np.zeros((2, 8, 8), np.uint8)).any()
    # Parts that `split_lungs` leaves out are kept, each on the side that is nearer.
    mask = np.minimum(lungs[0], 1)
    mask[2, 5], mask[2, 30] = 1, 1
    both = volumes.both_lungs(mask)
    assert both[2, 5] == 1
    assert both[2, 30] == 2
    np.testing.assert_array_equal(both > 0, mask > 0)


# --- DICOM series


def even(values):
    """To what a slope of 2 can store."""
    return (values.astype(int) + 1024) // 2 * 2 - 1024


def test_a_series_is_sorted_by_position(tmp_path, chest):
    write_series(tmp_path / "s", chest)
    read = volumes.read(tmp_path / "s")
    np.testing.assert_array_equal(read.values, even(chest))
    np.testing.assert_allclose(read.spacing_mm, SPACING)
    assert read.outline.numbers.tolist() == [6, 5, 4, 3, 2, 1]
    lie = volumes.outline(tmp_path / "s")
    assert lie.shape == chest.shape
    assert lie.numbers.tolist() == [6, 5, 4, 3, 2, 1]


def test_a_series_with_its_normal_to_the_feet(tmp_path, chest):
    """Columns run to the front, so the normal points to the feet; InstanceNumber from 11."""
    for k, plane in enumerate(chest):
        write_slice(
            tmp_path / "s" / f"{9 - k}", plane[::-1], 11 + 3 * k, 2.5 * k,
            ImageOrientationPatient=[1, 0, 0, 0, -1, 0],
        )  # fmt: skip
    read = volumes.read(tmp_path / "s")
    np.testing.assert_array_equal(read.values, even(chest))
    assert read.outline.numbers.tolist() == [1, 2, 3, 4, 5, 6]


def test_a_prone_patient_lies_like_the_others(tmp_path, chest):
    """Rows run to the right and columns to the front: the picture is turned by 180 degrees."""
    write_series(tmp_path / "s", chest[:, ::-1, ::-1], ImageOrientationPatient=[-1, 0, 0, 0, -1, 0])
    np.testing.assert_array_equal(volumes.read(tmp_path / "s").values, even(chest))


def test_a_compressed_series_and_padding(tmp_path, chest):
    files = write_series(tmp_path / "s", chest)
    for file in files:
        dataset = pydicom.dcmread(file)
        dataset.compress(pydicom.uid.RLELossless)
        dataset.save_as(file)
    np.testing.assert_array_equal(volumes.read(tmp_path / "s").values, even(chest))
    write_slice(tmp_path / "p.dcm", chest[0], 1, 0.0, PixelPaddingValue=(3000 + 1024) // 2)
    assert readers.read_hounsfield(tmp_path / "p.dcm")[1, 2] == -1024


def test_without_instance_numbers_slices_have_no_numbers(tmp_path, chest):
    files = write_series(tmp_path / "s", chest)
    write_slice(files[2], chest[2], 4, 100 + SPACING[0] * 2, InstanceNumber=None)
    assert volumes.outline(tmp_path / "s").numbers is None
    write_slice(files[2], chest[2], 5, 100 + SPACING[0] * 2)
    assert volumes.outline(tmp_path / "s").numbers is None


FAULTS = {
    "gap": (dict(ImagePositionPatient=[-10, -20, 113.2]), ["is missing between", "mm apart"]),
    "twice": (dict(ImagePositionPatient=[-10, -20, 107.5]), ["two slices at one place"]),
    "uneven": (dict(ImagePositionPatient=[-10, -20, 109]), ["uneven slices", "one reconstruction"]),
    "spacing": (dict(PixelSpacing=[0.8, 0.9]), ["different pixel spacing", "(0.8, 0.9)"]),
    "turned": (dict(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), ["different directions"]),
    "series": (dict(SeriesInstanceUID="1.2.4"), ["2 series", "5 files like", "1 files like"]),
    "modality": (dict(Modality="MR"), ["modality 'MR'; expected CT"]),
    "nowhere": (dict(ImagePositionPatient=None), ["0 numbers in ImagePositionPatient"]),
    "skew": (dict(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), ["right angles"]),
    "frames": (dict(NumberOfFrames=3), ["3 frames"]),
    "units": (dict(RescaleSlope=None, RescaleIntercept=None), ["not in HU"]),
    "flat": (dict(PixelSpacing=[0, 0.7]), ["two positive numbers"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_series_faults_are_one_line(tmp_path, chest, fault):
    elements, words = FAULTS[fault]
    files = write_series(tmp_path / "s", chest)
    write_slice(files[4], chest[4], 2, 110.0, **elements)
    named = str(tmp_path / "s") if fault in ("series", "gap") else files[4].name
    check_line(tmp_path / "s", named, *words)


def test_more_series_faults(tmp_path, chest):
    folder = tmp_path / "s"
    check_line(folder, "no such file")
    check_line(folder, "no such folder", read=volumes.read_dicom_series)
    folder.mkdir()
    (folder / "notes.txt").write_text("x")
    check_line(folder, "no DICOM file")
    files = write_series(folder, chest)
    files[3].unlink()
    check_line(folder, "a slice is missing between", files[2].name, files[4].name, "5.00 mm")
    write_slice(files[3], chest[3][:-2], 3, 107.5)
    check_line(folder, "different size", files[3].name, "38x40", "40x40")
    files[3].write_bytes(b"text" * 100)
    check_line(folder, files[3].name, "not a DICOM file")
    for file in files[1:]:
        file.unlink()
    check_line(folder, "one DICOM file", "one slice is no volume")
    write_series(tmp_path / "sagittal", chest, ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    check_line(tmp_path / "sagittal", "two slices at one place")
    for k in range(3):
        write_slice(
            tmp_path / "x" / f"{k}.dcm", chest[k], k, 0.0,
            ImageOrientationPatient=[0, 1, 0, 0, 0, -1], ImagePositionPatient=[k, 0, 0],
        )  # fmt: skip
    check_line(tmp_path / "x", "not axial")


def test_a_slice_that_ends_early(tmp_path, chest):
    files = write_series(tmp_path / "s", chest)
    files[2].write_bytes(files[2].read_bytes()[:-500])
    check_line(tmp_path / "s", files[2].name, "truncated")


# --- Latest


def test_only_the_latest_volume_is_kept():
    alive, read = [], []

    class Thing:
        def __init__(self, key):
            read.append(key)
            assert not alive, "the one before was let go"
            alive.append(key)

        def __del__(self):
            alive.clear()

    latest = volumes.Latest(Thing)
    for key in "aabbba":
        latest(key)
    assert read == ["a", "b", "a"]


@pytest.mark.parametrize("turn", ["plain", "flipped", "oblique", "permuted"])
def test_a_written_mask_lies_where_the_volume_lies(turn, tmp_path):
    """Read back as any program reads it: by the matrix of its header."""
    affine = np.array([[2.0, 0, 0, -30], [0, 1.5, 0, 10], [0, 0, 4, 7], [0, 0, 0, 1]])
    if turn == "flipped":
        affine[0, 0], affine[2, 2] = -2.0, -4.0
    if turn == "oblique":
        c, s = np.cos(0.2), np.sin(0.2)
        affine = np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1]]) @ affine
    if turn == "permuted":
        affine = affine[:, [2, 0, 1, 3]]
    values = np.full((6, 7, 5), -1000, np.int16)
    values[1, 2, 3] = 500
    nibabel.Nifti1Image(values, affine).to_filename(tmp_path / "scan.nii.gz")
    scan = volumes.read(tmp_path / "scan.nii.gz")
    volumes.write_mask(tmp_path / "mask.nii.gz", (scan.values > 0).astype(np.uint8), scan)
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    # On the file's own grid: what multiplies mask and volume voxel by voxel is right.
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj), values > 0)
    np.testing.assert_allclose(mask.affine, affine, atol=1e-3)  # mm: the header's float32


def test_volumes_are_found_in_folders(tmp_path):
    (tmp_path / "scans").mkdir()
    for name in ("b.nii", "a.nii.gz", "notes.txt"):
        (tmp_path / "scans" / name).write_bytes(b"x")
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.dcm").write_bytes(b"x")
    found = volumes.volumes_in([tmp_path / "series", tmp_path / "scans"])
    assert [path.name for path in found] == ["series", "a.nii.gz", "b.nii"]
    (tmp_path / "empty").mkdir()
    for bad in ("empty", "gone"):
        with pytest.raises(InputError, match=bad):
            volumes.volumes_in([tmp_path / bad])
    (tmp_path / "export" / "series1").mkdir(parents=True)
    with pytest.raises(InputError, match="which has folders in it \\(series1"):
        volumes.volumes_in([tmp_path / "export"])


def test_a_slice_in_place_of_its_series_is_told(tmp_path):
    (tmp_path / "IM1.dcm").write_bytes(bytes(128) + b"DICM" + bytes(600))
    with pytest.raises(InputError, match="a DICOM file; give the folder"):
        volumes.read(tmp_path / "IM1.dcm")
