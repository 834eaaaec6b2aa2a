"""The lungs of a CT slice: parenchyma, what lesions fill, fissures, vessels, and the airways."""

import cv2
import numpy as np

from cxr_jax.data.phantoms.ct_anatomy import LATTICE, LUNG_POWER, SIDES, Thorax, lung_axes
from cxr_jax.data.phantoms.ct_disease import Opacity
from cxr_jax.data.phantoms.ct_trees import Trees, cut_tubes
from cxr_jax.data.phantoms.drawing import Pen, ellipse, smoothstep

_COARSE = 64  # cells a side, of the slow changes of density
# x, y and z of its middle in the patient's frame, from the neck to the carina.
_TRACHEA = np.array([[0.0, 0.028, -0.25], [0.0, 0.030, 0.10], [-0.004, 0.022, 0.39]])


def lung_hu(
    pen: Pen, thorax: Thorax, *, trees: Trees, z: float, sick: Opacity | None
) -> np.ndarray:
    """What the lungs would look like if they filled the picture, HU float32 [size, size].

    Args:
      pen: of the picture.
      thorax: of the patient.
      trees: of the patient.
      z: height of the slice.
      sick: opacity of the lesions, or None.
    """
    hu = _parenchyma(thorax, z, pen.size)
    _add_domes(pen, thorax, z=z, hu=hu)
    if sick is not None:
        _mix(hu, 35, _filling(thorax, sick, z=z, size=pen.size))
    _add_fissures(pen, thorax, z=z, hu=hu)
    blood = cut_tubes(pen, trees.blood, z=z, slab=thorax.slab, scale=thorax.vessels)
    _mix(hu, 40, pen.shadow(blood))
    return hu


def _mix(hu: np.ndarray, target: float, share: np.ndarray) -> None:
    """Moves `hu` towards `target` by `share` of the way, in place."""
    hu += share * (np.float32(target) - hu)


def _parenchyma(thorax: Thorax, z: float, size: int) -> np.ndarray:
    """Healthy lung: denser towards the back, dense where it depends, mottled."""
    at = (np.arange(_COARSE, dtype=np.float32) + 0.5) / _COARSE
    back = thorax.inverse_pose.astype(np.float32)
    x = (back[0, 0] * at)[None] + (back[0, 1] * at)[:, None] + back[0, 2]
    y = (back[1, 0] * at)[None] + (back[1, 1] * at)[:, None] + back[1, 2]
    cx, rx, cy, ry = (np.float32(v) for v in lung_axes(z))
    across = np.clip(np.abs((np.abs(x) - cx) / rx), 0, 0.98)
    bottom = cy + ry * (1 - across**LUNG_POWER) ** (1 / LUNG_POWER)
    mosaic = cv2.resize(thorax.field(0, z, 9.0), (_COARSE, _COARSE), interpolation=cv2.INTER_CUBIC)
    ragged = cv2.resize(thorax.field(1, z, 16.0), (_COARSE, _COARSE), interpolation=cv2.INTER_CUBIC)
    near = np.exp(-np.maximum(bottom - y, 0) / np.float32(thorax.dependent_depth))
    hu = thorax.air_hu + thorax.gradient_hu * (y / 0.4) + thorax.mosaic_hu * mosaic
    hu += thorax.dependent_hu * near * np.clip(0.75 + 0.45 * ragged, 0, 1.6)
    return cv2.resize(hu.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)


def _add_domes(pen: Pen, thorax: Thorax, *, z: float, hu: np.ndarray) -> None:
    """Partial volume, in place: the dome of the diaphragm is in part of the slab."""
    layer = pen.layer(128)
    for part, value in ((1.0, 60), (0.5, 120)):
        for side in range(2):
            shape = thorax.diaphragm(side, z + part * 1.4 * thorax.slab)
            if shape is not None:
                pen.fill(layer, shape, value)
    if layer.any():
        _mix(hu, 40, cv2.resize(layer, hu.shape).astype(np.float32) / 255)


def _filling(thorax: Thorax, sick: Opacity, *, z: float, size: int) -> np.ndarray:
    """Share of the air that lesions fill, with their textures."""
    grain = np.cos(40 * z) * thorax.grain[0] + np.sin(40 * z) * thorax.grain[1]
    grain = cv2.resize(grain, (LATTICE, LATTICE), interpolation=cv2.INTER_CUBIC)
    filled = sick.filled * np.clip(1 + 0.22 * grain * (1 - sick.solid), 0.4, 1.6)
    filled = cv2.resize(np.minimum(filled, 1), (size, size), interpolation=cv2.INTER_LINEAR)
    if sick.net.any():
        net = cv2.resize(_septa(thorax, z), (size, size), interpolation=cv2.INTER_AREA)
        share = cv2.resize(sick.net, (size, size), interpolation=cv2.INTER_LINEAR)
        share *= net
        share *= 1 - filled
        filled += 0.48 * share
    return filled


def _septa(thorax: Thorax, z: float) -> np.ndarray:
    """The edges between the cells of points that drift with z, 0..1, [512, 512]."""
    n, count = 2 * LATTICE, thorax.seeds.shape[1]
    grid = (np.arange(count) + 0.5) * n / count
    drift = 0.42 * n / count * np.cos(thorax.seeds + 30 * z)
    x = np.clip(np.rint(grid[None] + drift[0]), 0, n - 1).astype(int)
    y = np.clip(np.rint(grid[:, None] + drift[1]), 0, n - 1).astype(int)
    points = np.ones((n, n), np.uint8)
    points[y, x] = 0
    _, cell = cv2.distanceTransformWithLabels(points, cv2.DIST_L2, 3)
    cell = cell.astype(np.float32)
    edge = cv2.morphologyEx(cell, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0
    return cv2.GaussianBlur(edge.astype(np.float32), (0, 0), 0.6)


def _add_fissures(pen: Pen, thorax: Thorax, *, z: float, hu: np.ndarray) -> None:
    """The great fissures, in place: faint lines that move forward from slice to slice."""
    cx, rx = lung_axes(z)[:2]
    layer = pen.fine_layer()
    for side, sign in enumerate(SIDES):
        if not thorax.fissure[side] or not 0.2 < z < 0.9:
            continue
        x = np.linspace(0.05, cx + rx, 12)
        y = 0.105 - 0.40 * (z - 0.25) + thorax.fissure_at[side]
        y = y + 0.30 * (x - 0.2) - 1.1 * (x - 0.2) ** 2
        pen.line(layer, np.stack([sign * x, y], axis=1), 0.0035, 110 * thorax.fissure[side])
    if layer.any():
        _mix(hu, -300, pen.shadow(layer, 0.0012))


def add_airways(
    pen: Pen,
    thorax: Thorax,
    *,
    trees: Trees,
    z: float,
    hu: np.ndarray,
    lung: np.ndarray,
    sick: Opacity | None,
) -> None:
    """Trachea, bronchi and air bronchograms: bright walls, dark lumina; in place.

    Args:
      pen: of the picture.
      thorax: of the patient.
      trees: of the patient.
      z: height of the slice.
      hu: float32 [size, size], the picture so far.
      lung: float32 [size, size], 0..1, share of each pixel that is lung.
      sick: opacity of the lesions, or None.
    """
    airways, small = trees.airways
    wall = pen.shadow(cut_tubes(pen, airways, z=z, slab=thorax.slab, grow=0.0017))
    _mix(hu, 0, 0.8 * wall)
    lumen = pen.shadow(cut_tubes(pen, airways, z=z, slab=thorax.slab))
    _mix(hu, -980, 0.97 * lumen)
    _add_trachea(pen, z, hu)
    if sick is not None and sick.bronchograms.any():
        tubes = cut_tubes(pen, small, z=z, slab=1.5 * thorax.slab, scale=1.5)
        solid = cv2.resize(sick.bronchograms, (pen.size, pen.size), interpolation=cv2.INTER_LINEAR)
        _mix(hu, -900, 0.85 * pen.shadow(tubes) * solid * lung)


def _add_trachea(pen: Pen, z: float, hu: np.ndarray) -> None:
    if z < 0.42:
        at = np.array([np.interp(z, _TRACHEA[:, 2], _TRACHEA[:, k]) for k in range(2)])
        open_ = float(smoothstep((0.42 - z) / 0.03))
        wide = 0.021 + 0.012 * float(smoothstep((z - 0.34) / 0.06))
        for grow, target in ((0.003, 30), (0.0, -990)):
            layer = pen.layer()
            pen.fill(layer, ellipse(at, (wide + grow, (0.019 + grow) * open_), 28))
            _mix(hu, target, pen.shadow(layer))
