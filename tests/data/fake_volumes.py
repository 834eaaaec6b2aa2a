"""Drawn CT volumes, as NIfTI files and DICOM series, and small copies of the folders of CT sets."""

import pathlib
import random

import cv2
import ml_collections
import nibabel
import numpy as np
import pydicom
from fake_sets import write_csv

from cxr_jax.data import sources

SPACING = (2.5, 0.8, 0.7)  # mm between slices, rows, columns


def draw_chest(slices: int = 6, side: int = 40, seed: int = 0, lesions=(2, 3)):
    """HU int16, lungs (1 right, 2 left) and lesion uint8, [S, H, W] from the feet to the head.

    The patient's right lung is on the image's left and larger; slice k has its own level, so that
    slices can be told apart; a metal bead marks right, front and feet.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] / side
    values = rng.integers(-1010, -990, (slices, side, side)).astype(np.int16)
    lungs, lesion = np.zeros((2, slices, side, side), np.uint8)
    body = (rows - 0.55) ** 2 / 0.16 + (columns - 0.5) ** 2 / 0.22 < 1
    values[:, body] = 40
    for k in range(slices):
        lungs[k][(rows > 0.3) & (rows < 0.75) & (columns > 0.14) & (columns < 0.46)] = 1
        lungs[k][(rows > 0.3) & (rows < 0.65) & (columns > 0.56) & (columns < 0.84)] = 2
        values[k][lungs[k] > 0] = -850 + 5 * k
        if k in lesions:
            lesion[k][(rows > 0.6) & (rows < 0.7) & (columns > 0.2) & (columns < 0.35)] = 1
            values[k][lesion[k] > 0] = -300
    values[0, 1, 2] = 3000
    return values, lungs, lesion


def write_nifti(
    path: pathlib.Path, values: np.ndarray, axes: str = "LPS", spacing=SPACING, place=(0, 0, 0)
) -> pathlib.Path:
    """Canonical [S, H, W] -> a file whose axes point to `axes`; mm of its first voxel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Columns run to the left, rows to the back, slices to the head: L, P, S.
    affine = np.diag([-spacing[2], -spacing[1], spacing[0], 1])
    affine[:3, 3] = place
    image = nibabel.Nifti1Image(values.transpose(2, 1, 0), affine)
    start = nibabel.orientations.axcodes2ornt("LPS")
    to = nibabel.orientations.axcodes2ornt(axes)
    image = image.as_reoriented(nibabel.orientations.ornt_transform(start, to))
    nibabel.save(image, path)
    return path


def write_slice(path: pathlib.Path, values: np.ndarray, number: int, z: float, **elements) -> None:
    """One CT slice HU [H, W]; rows to the left, columns to the back unless `elements` say else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = pydicom.Dataset()
    meta = dataset.file_meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[str(path)])
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.SamplesPerPixel, dataset.PixelRepresentation = "CT", 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.SeriesInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = values.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.RescaleSlope, dataset.RescaleIntercept = 2, -1024
    dataset.PixelSpacing = [SPACING[1], SPACING[2]]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [-10, -20, z]
    dataset.InstanceNumber = number
    for name, value in elements.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    stored = (values.astype(np.int32) + 1024) // 2
    dataset.PixelData = stored.astype("<u2").tobytes()
    dataset.save_as(path, enforce_file_format=True)


def write_series(folder: pathlib.Path, values: np.ndarray, *, from_head: bool = True, **elements):
    """A file a slice, names in no order; InstanceNumber counts from the head, or from the feet."""
    names = [f"IM{k:03d}" for k in range(len(values))]
    random.Random(1).shuffle(names)
    for k, plane in enumerate(values):
        number = len(values) - k if from_head else k + 1
        write_slice(folder / f"{names[k]}.dcm", plane, number, 100 + SPACING[0] * k, **elements)
    (folder / "DICOMDIR").write_bytes(b"an index")
    (folder / "notes.txt").write_text("no slice")
    return [folder / f"{name}.dcm" for name in names]


CT_PATIENTS = ["a", "b", "b", "c", "d", "e", "f"]  # of the volumes v0 .. v6; f is for testing


def make_ct_lesions(root: pathlib.Path, side: int = 64) -> pathlib.Path:
    """ct_lesions: seven volumes of four slices, odd ones upside down; halves.csv in ct_half/."""
    folder = root / "ct_lesions"
    slices = [["slice", "volume", "index_in_volume", "lesion_pixels", "lung_pixels"]
              + ["lesion_fraction_of_lung", "split"]]  # fmt: skip
    volumes = [["volume", "source", "patient", "spine_at", "split"]]
    halves = [["slice", "volume", "side", "x0", "y0", "x1", "y1", "label", "lesion_pixels"]]
    number = 10
    for v, patient in enumerate(CT_PATIENTS):
        split, turned = ("test" if patient == "f" else "train"), v % 2 == 1
        volumes.append([f"v{v}", "x", patient, "top" if turned else "bottom", split])
        values, lungs, lesion = draw_chest(4, side, v, lesions=range(4))
        for k in range(4):
            name = f"{number:04d}.png"
            number += 1
            planes = {"ct": np.clip((values[k] + 1350) / 6, 0, 255), "lesions": lesion[k] * 255}
            planes["lungs"] = (lungs[k] > 0) * 255
            planes = {key: plane[::-1] if turned else plane for key, plane in planes.items()}
            for key, plane in planes.items():
                (folder / key).mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(folder / key / name), plane.astype(np.uint8))
            pixels, lung = int(lesion[k].sum()), int((lungs[k] > 0).sum())
            slices.append([name, f"v{v}", k, pixels, lung, round(pixels / lung, 5), split])
            sides = lungs[k][::-1] if turned else lungs[k]
            for label, half in ((1, "left"), (2, "right")):
                rows, columns = np.nonzero(sides == label)
                box = [columns.min() - 4, rows.min() - 4, columns.max() + 5, rows.max() + 5]
                x0, y0, x1, y1 = box
                inside = int((planes["lesions"][y0:y1, x0:x1] > 0).sum())
                halves.append([name, f"v{v}", half, *box, int(inside > 0), inside])
    write_csv(folder / "slices.csv", slices)
    write_csv(folder / "volumes.csv", volumes)
    write_csv(root / "ct_half" / "halves.csv", halves)
    return folder


COVID19_VOLUMES = [
    *(f"coronacases_00{k}" for k in range(1, 8)),
    *("radiopaedia_10_85902_1", "radiopaedia_10_85902_3", "radiopaedia_7_85703_0"),
]


def make_covid19(root: pathlib.Path) -> pathlib.Path:
    """The release's folders: coronacases in HU, radiopaedia 0..255 in axes of its own."""
    for i, name in enumerate(COVID19_VOLUMES):
        values, lungs, lesion = draw_chest(4 + i % 3, 32, i, lesions=(1, 2))
        axes = "LPS"
        if name.startswith("radiopaedia"):
            values, axes = np.clip((values + 1350) // 6, 0, 255).astype(np.int16), "RAS"
        theirs = np.array([0, 2, 1], np.uint8)[lungs]  # 1 is the left lung there
        file = f"{name}.nii.gz"
        write_nifti(root / "COVID-19-CT-Seg_20cases" / file, values, axes)
        write_nifti(root / "Lung_Mask" / file, theirs, axes)
        write_nifti(root / "Infection_Mask" / file, lesion, axes)
    (root / "Lung_and_Infection_Mask").mkdir()
    return root


CT_HEADER = [*("volume", "group", "split", "label", "ranges", "lesions", "lungs")]
CT_HEADER += ["window_center", "window_width"]
CT_ROWS = {
    "ranged": ["scans/ranged.nii.gz", "p1", "train", 1, "2-3;5", "masks/ranged.nii", "", "", ""],
    "series": ["scans/series", "p2", "train", 1, "2-3", "", "masks/series.nii.gz", -600, 1500],
    "clean": ["scans/clean.nii", "p3", "train", 0, "", "", "", "", ""],
    "bare": ["scans/bare.nii.gz", "p4", "train", 1, "", "", "", "", ""],
    "val": ["scans/val.nii.gz", "p5", "val", "", "", "masks/val.nii", "", 40, 400],
    "test": ["scans/test.nii.gz", "p6", "test", 1, "1", "masks/test.nii", "", "", ""],
}


def make_ct_volumes(root: pathlib.Path, only=tuple(CT_ROWS)) -> pathlib.Path:
    """A table of volumes of six slices, lesions in 2 and 3 from the feet, counted from 0."""
    for i, name in enumerate(only):
        values, lungs, lesion = draw_chest(seed=i, lesions=() if name == "clean" else (2, 3))
        volume, _, _, _, _, drawn, lung_file, _, _ = CT_ROWS[name]
        if name == "series":
            write_series(root / volume, values)
        else:
            write_nifti(root / volume, values, "LPI" if name == "ranged" else "RAS")
        if drawn:
            write_nifti(root / drawn, lesion)
        if lung_file:
            # Where `write_slice` puts the series, in mm to the right, front and head.
            write_nifti(root / lung_file, np.minimum(lungs, 1), "RPI", place=(10, 20, 100))
    write_csv(root / "volumes.csv", [CT_HEADER, *(CT_ROWS[name] for name in only)])
    return root / "volumes.csv"


def ct_config(name: str, data_dir: pathlib.Path, **fields) -> ml_collections.ConfigDict:
    """The config's `data` of a CT set."""
    where = "path" if name == "ct_volume" else "data_dir"
    return sources.block(name, **{where: str(data_dir)} | fields)
