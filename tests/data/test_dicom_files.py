"""What predict leaves for a hospital's archive, read back by highdicom and by hand."""

import builtins

import highdicom as hd
import numpy as np
import pydicom
import pytest
from dicom_films import STUDY, film_file
from fake_volumes import write_series

from cxr_jax.data import volumes
from cxr_jax.errors import InputError
from cxr_jax.figures.style import dark_figure
from cxr_jax.inputs import dicom_files
from cxr_jax.inputs.dicom_files import Drawn


@pytest.fixture
def figure():
    return dark_figure(2, 1)


def written(found, folder, name):
    ending, write = found[name]
    path = folder / f"x{ending}"
    write(path)
    return pydicom.dcmread(path)


@pytest.mark.parametrize("mirrored", [False, True])
def test_masks_of_a_film_come_back_as_its_pixels_lie(tmp_path, figure, mirrored):
    path = film_file(tmp_path, PatientOrientation=["R" if mirrored else "L", "F"])
    right, left = np.zeros((2, 40, 40), np.uint8)
    right[5:20, 3:15], left[6:30, 25:35] = 1, 1
    drawn = [Drawn("lungs", "right lung", right), Drawn("lungs", "left lung", left)]
    found = dicom_files.files_of(path, drawn, figure, model="severity")
    segments = hd.seg.Segmentation.from_dataset(written(found, tmp_path, "segmentation_dicom"))
    assert segments.SegmentationType == "BINARY"
    assert segments.PatientID == "P-1"
    assert segments.StudyInstanceUID == "1.2.3.4"
    told = [segments.get_segment_description(k) for k in (1, 2)]
    assert [one.segment_label for one in told] == ["right lung", "left lung"]
    assert told[0].segmented_property_type.meaning == "Lung"
    pixels = segments.get_pixels_by_source_instance(["1.2.3"])[0]
    turn = np.fliplr if mirrored else np.asarray
    np.testing.assert_array_equal(pixels[..., 0], turn(right))
    np.testing.assert_array_equal(pixels[..., 1], turn(left))


def test_a_map_is_a_fractional_segmentation_and_the_picture_a_capture(tmp_path, figure):
    heat = np.arange(1600, dtype=np.float32).reshape(40, 40) * (255 / 1599)
    drawn = [Drawn("lesions", "map", np.rint(heat).astype(np.uint8), is_map=True)]
    found = dicom_files.files_of(film_file(tmp_path), drawn, figure, model="severity")
    assert set(found) == {"map_dicom", "capture_dicom"}
    told = hd.seg.Segmentation.from_dataset(written(found, tmp_path, "map_dicom"))
    assert told.SegmentationFractionalType == "PROBABILITY"
    pixels = told.get_pixels_by_source_instance(["1.2.3"])[0, ..., 0]
    np.testing.assert_allclose(pixels * 255, np.rint(heat), atol=0.51)
    capture = written(found, tmp_path, "capture_dicom")
    assert capture.pixel_array.shape[2] == 3
    assert capture.Modality == "OT"
    assert capture.StudyInstanceUID == "1.2.3.4"


def test_an_empty_mask_is_written_too(tmp_path, figure):
    drawn = [Drawn("lesions", "lesions", np.zeros((40, 40), np.uint8))]
    found = dicom_files.files_of(film_file(tmp_path), drawn, figure, model="m")
    told = hd.seg.Segmentation.from_dataset(written(found, tmp_path, "segmentation_dicom"))
    assert not told.get_pixels_by_source_instance(["1.2.3"]).any()


@pytest.mark.parametrize(
    "directions",
    [[1, 0, 0, 0, 1, 0], [-1, 0, 0, 0, 1, 0], [1, 0, 0, 0, -1, 0], [0, 1, 0, 1, 0, 0]],
)
def test_a_mask_of_a_series_lies_on_the_slices_it_was_found_on(tmp_path, figure, directions):
    """Each frame names its slice; there the mask must lie where the series has its bright block."""
    folder = tmp_path / "series"
    folder.mkdir()
    values = np.full((5, 10, 12), -900.0)
    values[1, 2:4, 3:5] = 40
    values[3, 6:9, 1:11] = 40
    elements = STUDY | {"FrameOfReferenceUID": "1.2.9", "SliceThickness": 2}
    write_series(folder, values, ImageOrientationPatient=directions, **elements)
    scan = volumes.read(folder)
    mask = (scan.values > 0).astype(np.uint8)
    drawn = [Drawn("lesions", "lesions", mask)]
    found = dicom_files.files_of(folder, drawn, figure, model="seam")
    told = hd.seg.Segmentation.from_dataset(written(found, tmp_path, "segmentation_dicom"))
    seen = 0
    for file in sorted(folder.glob("*.dcm")):
        image = pydicom.dcmread(file)
        bright = image.pixel_array.astype(int) * 2 - 1024 > 0
        frame = told.get_pixels_by_source_instance(
            [image.SOPInstanceUID],
            ignore_spatial_locations=True,
            assert_missing_frames_are_empty=True,
        )
        np.testing.assert_array_equal(frame[0, ..., 0], bright)
        seen += bool(bright.any())
    assert seen == 2


def test_other_files_and_incomplete_ones(tmp_path, figure):
    drawn = [Drawn("lesions", "lesions", np.ones((40, 40), np.uint8))]
    picture = tmp_path / "film.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n and so on")
    assert dicom_files.files_of(picture, drawn, figure, model="m") == {}
    path = film_file(tmp_path)
    dataset = pydicom.dcmread(path)
    del dataset.StudyInstanceUID
    dataset.save_as(path)
    with pytest.raises(InputError, match=r"film.dcm: no DICOM object .*StudyInstanceUID"):
        dicom_files.files_of(path, drawn, figure, model="m")


def test_without_highdicom_the_way_out_is_told(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "highdicom":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'cxr_jax\[dicom\]'"):
        dicom_files.check_installed()
