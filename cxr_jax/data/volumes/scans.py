"""Paths -> volumes: NIfTI files, or folders with a DICOM series."""

from collections.abc import Iterable
from pathlib import Path

from cxr_jax import small_files
from cxr_jax.data.file_errors import BadFile, naming
from cxr_jax.data.found import Found
from cxr_jax.data.volumes.base import Outline, Volume
from cxr_jax.data.volumes.nifti import nifti_outline, read_nifti
from cxr_jax.data.volumes.series import (
    folders_in,
    is_slice,
    read_dicom_series,
    series_outline,
)

_OTHER = "lie beside a volume; give what is one by its own path"


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
    """The volumes of `find_volumes`."""
    return find_volumes(paths).files


def find_volumes(paths: Iterable[str | Path]) -> Found:
    """Expands folders to the volumes in them.

    Args:
      paths: NIfTI files; folders with a DICOM series; folders with NIfTI files.

    Returns:
      The volumes, each once; left out is what else a folder holds, folders in it too.

    Raises:
      InputError: a path that does not exist, or a folder without a file.
    """
    found: list[Path] = []
    others: list[Path] = []
    for path in map(Path, paths):
        with naming(path):
            some, shown = _volumes_at(path)
        found += some
        others += [f for f in shown if f not in some and (path not in some or not is_slice(f))]
    others = sorted(set(others) - set(found))
    return Found(list(dict.fromkeys(found)), {_OTHER: others} if others else {})


def _volumes_at(path: Path) -> tuple[list[Path], list[Path]]:
    """The volumes at a path, and what a folder holds."""
    if not path.exists():
        raise BadFile("no such file or folder; check the path")
    if not path.is_dir():
        return [path], []
    shown = [file for file in path.iterdir() if file.name[0] != "."]
    files = sorted(file for file in shown if file.is_file())
    if not files:
        raise BadFile(f"no file in this folder{folders_in(path)}; give a folder with one series")
    return [file for file in files if _is_nifti(file)] or [path], shown


def holds_volume(path: str | Path) -> bool:
    """Whether a path is a NIfTI file by its name, or a folder with one or with DICOM slices; a
    single picture, a DICOM file too, and a folder of pictures are none."""
    path = Path(path)
    if not small_files.is_folder(path):
        return _is_nifti(path)
    files = [file for file in path.iterdir() if file.name[0] != "." and file.is_file()]
    return any(_is_nifti(file) or is_slice(file) for file in files)


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith((".nii", ".nii.gz"))
