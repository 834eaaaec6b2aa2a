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
