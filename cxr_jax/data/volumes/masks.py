"""Masks of volumes: read, written, and the lungs in them labelled right and left."""

from pathlib import Path

import nibabel
import numpy as np
from nibabel import orientations

from cxr_jax.data import zones
from cxr_jax.data.volumes.base import Outline, Volume
from cxr_jax.data.volumes.nifti import read_nifti
from cxr_jax.errors import InputError


def read_mask(
    path: str | Path, like: Outline, *, most: int = 255, as_stored: bool = False
) -> np.ndarray:
    """Reads a mask of small whole numbers.

    Args:
      path: a NIfTI file.
      like: of its volume.
      most: the highest label.
      as_stored: as in `read_nifti`.

    Returns:
      uint8 [S, H, W], values 0 .. `most`.

    Raises:
      InputError: as in `read_nifti`; or a value that is no label.
    """
    values = read_nifti(path, like=like, as_stored=as_stored).values
    for row, mask in enumerate(values):
        wrong = (mask < 0) | (mask > most) | (mask != np.rint(mask))
        if wrong.any():
            raise InputError(
                f"{path}: the value {mask[wrong][0]:g} in slice {row + 1} from the feet; a mask "
                f"has whole numbers 0..{most}"
            )
    return values.astype(np.uint8, copy=False)


def write_mask(path: str | Path, mask: np.ndarray, volume: Volume) -> None:
    """Writes a mask uint8 [S, H, W] of `volume` as NIfTI, in the volume's place.

    That of a NIfTI file has the file's own voxels in the file's own order. Where the volume's
    header does not say where it lies, its first voxel is put at 0, 0, 0.
    """
    slices, rows, columns = volume.spacing_mm
    # Of [W, H, S], the usual order: columns run to the left, rows to the back, slices to the head.
    affine = np.diag([-columns, -rows, slices, 1.0])
    if volume.outline.matrix is not None:
        affine = volume.outline.matrix[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(np.ascontiguousarray(mask.transpose(2, 1, 0)), affine)
    if volume.outline.axes is not None:
        now = orientations.io_orientation(affine)
        turn = orientations.ornt_transform(now, volume.outline.axes)
        image = image.as_reoriented(turn)
    image.header.set_xyzt_units("mm")
    image.to_filename(path)


def both_lungs(mask: np.ndarray) -> np.ndarray:
    """Labels the lungs of one axial slice; every pixel of the mask is kept.

    `zones.split_lungs` finds the two lungs; on a slice a lung often has further parts, which it
    leaves out: each goes to the lung whose mean column is nearer, or to the image half it is in
    where there is one lung.

    Args:
      mask: [H, W], nonzero inside the lungs.

    Returns:
      uint8 [H, W]: 0 outside, 1 right lung (image left), 2 left lung.
    """
    labels = zones.split_lungs(mask)
    rest = (mask != 0) & (labels == 0)
    if rest.any():
        columns = [np.nonzero(labels == lung)[1] for lung in (zones.RIGHT, zones.LEFT)]
        known = [float(column.mean()) for column in columns if column.size]
        middle = float(np.mean(known)) if len(known) == 2 else (mask.shape[1] - 1) / 2
        _, parts, _, centres = zones.components(rest)
        side = np.where(centres[:, 0] < middle, zones.RIGHT, zones.LEFT).astype(np.uint8)
        labels[rest] = side[parts[rest] - 1]
    return labels


def sided_lungs(masks: np.ndarray) -> np.ndarray:
    """Labels the lungs of a volume: [S, H, W] of 0 and labels -> uint8, 1 right and 2 left lung.

    Of exactly two labels each is a lung, and the one further left in the image is the right one,
    whatever their numbers are. Any other mask is split slice by slice (`both_lungs`).
    """
    columns = np.arange(masks.shape[2])
    present = np.zeros(256, bool)
    for mask in masks:
        present[np.unique(mask)] = True
    labels = np.flatnonzero(present[1:]) + 1
    lungs = np.zeros(masks.shape, np.uint8)
    if len(labels) != 2:
        for row, mask in enumerate(masks):
            lungs[row] = both_lungs(mask)
        return lungs
    means = []
    for label in labels:
        per_column = sum((mask == label).sum(0) for mask in masks)
        means.append(float(per_column @ columns / per_column.sum()))
    right, left = labels[np.argsort(means, kind="stable")]
    lungs[masks == right], lungs[masks == left] = zones.RIGHT, zones.LEFT
    return lungs
