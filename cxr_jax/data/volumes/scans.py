"""Paths -> volumes: NIfTI files, or folders with a DICOM series."""

from collections.abc import Iterable
from pathlib import Path

from cxr_jax import small_files
from cxr_jax.data.volumes.base import Outline, Volume
from cxr_jax.data.volumes.nifti import nifti_outline, read_nifti
from cxr_jax.data.volumes.series import folders_in, read_dicom_series, series_outline
from cxr_jax.errors import InputError


def outline(path: str | Path) -> Outline:
    """Shape and slice numbers of a NIfTI file or of a folder with a DICOM series.

    Raises:
      InputError: see `read_nifti` and `read_dicom_series`; only headers are looked at.
    """
    path = Path(path)
    if small_files.is_folder(path):
        return series_outline(path)
    return nifti_outline(path)


def read(path: str | Path) -> Volume:
    """Reads a NIfTI file, or a folder with a DICOM series.

    Raises:
      InputError: see `read_nifti` and `read_dicom_series`.
    """
    path = Path(path)
    return read_dicom_series(path) if small_files.is_folder(path) else read_nifti(path)


def volumes_in(paths: Iterable[str | Path]) -> list[Path]:
    """Expands folders to the volumes in them.

    Args:
      paths: NIfTI files; folders with a DICOM series; folders with NIfTI files.

    Raises:
      InputError: a path that does not exist, or a folder without a file.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not small_files.exists(path):
            raise InputError(f"{path}: no such file or folder; check the path")
        files = sorted(f for f in path.iterdir() if f.is_file()) if path.is_dir() else []
        if path.is_dir() and not files:
            raise InputError(
                f"{path}: no file in this folder{folders_in(path)}; give a folder with one series"
            )
        scans = [f for f in files if f.name.lower().endswith((".nii", ".nii.gz"))]
        found += scans or [path]
    return list(dict.fromkeys(found))
