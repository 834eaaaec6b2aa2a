"""From the order of a file's axes to the orientation of the package's docstring.

`axes` is nibabel's orientation of the file's array throughout.
"""

import numpy as np
from nibabel import orientations


def voxel_matrix(affine: np.ndarray, axes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`Outline.matrix`, from the matrix [4, 4] of the file's own order."""
    matrix = np.array(affine, np.float64)
    for axis, ((world, flip), side) in enumerate(zip(axes, shape)):
        # Ours begin at the right, the front and the feet: where x and y end and z begins.
        if (world == 2) != (flip > 0):
            matrix[:, 3] += matrix[:, axis] * (side - 1)
            matrix[:, axis] *= -1
    return matrix[:, [*file_order(axes), 3]]


def file_order(axes: np.ndarray) -> list[int]:
    """Which of the file's axes are S, H and W."""
    return [int(np.flatnonzero(axes[:, 0] == world)[0]) for world in (2, 1, 0)]


def oriented(values: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """The file's array -> a view [S, H, W] of it as the package's docstring says."""
    # Canonical is right, front, head: x and y run against W and H.
    canonical = orientations.apply_orientation(values, axes)
    return canonical.transpose(2, 1, 0)[:, ::-1, ::-1]


def stored(values: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Back: [S, H, W] as the package's docstring says -> a view of it in the file's axes."""
    canonical = values[:, ::-1, ::-1].transpose(2, 1, 0)
    usual = orientations.axcodes2ornt("RAS")
    return orientations.apply_orientation(canonical, orientations.ornt_transform(usual, axes))
