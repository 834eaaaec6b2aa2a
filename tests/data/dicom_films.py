"""DICOM films for tests."""

import cv2
import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset


def grey_film(seed: int, size: int) -> np.ndarray:
    """Soft noise, uint8 [size, size]."""
    noise = np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)


def film_dataset(size: int = 40, **elements) -> Dataset:
    """A whole radiograph; `elements` replace its own."""
    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    film.SOPClassUID, film.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"
    film.Modality, film.PhotometricInterpretation = "DX", "MONOCHROME2"
    film.Rows = film.Columns = size
    film.SamplesPerPixel, film.PixelRepresentation = 1, 0
    film.BitsAllocated, film.BitsStored, film.HighBit = 8, 8, 7
    film.PixelData = grey_film(0, size).tobytes()
    film["PixelData"].VR = "OW"
    for name, value in elements.items():
        setattr(film, name, value)
    return film


STUDY = {
    "StudyInstanceUID": "1.2.3.4",
    "PatientID": "P-1",
    "PatientName": "Doe^Jane",
    "PatientBirthDate": "19700101",
    "PatientSex": "F",
    "StudyDate": "20260101",
    "StudyTime": "120000",
    "AccessionNumber": "A1",
    "StudyID": "S1",
    "ReferringPhysicianName": "",
}


def film_file(folder, **elements):
    """The file film.dcm of a radiograph with all that a DICOM study names; its path."""
    dataset = film_dataset(**(STUDY | elements))
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.SeriesInstanceUID = "1.2.3.5"
    path = folder / "film.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return path
