"""Bones on a film: ribs, clavicles, scapulae, arms and spine."""

import cv2
import numpy as np

from cxr_jax.data.phantoms.anatomy import SIDES, Chest
from cxr_jax.data.phantoms.drawing import Pen, band, band_edges, bezier, curve, ellipse, xy

_MIRROR = np.array([[[-1.0, 1.0]], [[1.0, 1.0]]])  # right, left


def bone_thickness(pen: Pen, chest: Chest) -> np.ndarray:
    """Bone thickness, float32 [size, size]; about 1 for the shadow of a posterior rib."""
    bones = _Layers(pen)
    _draw_ribs(bones, chest)
    _draw_clavicles(bones, chest)
    _draw_shoulders(bones, chest)
    _draw_vertebrae(bones, chest)
    strength = chest.patient.bone
    total = cv2.addWeighted(bones.back, 1 / 125, bones.front, 1 / 125, 0, dtype=cv2.CV_32F)
    other = cv2.addWeighted(bones.edges, 0.005, bones.deep, 0.0085, 0, dtype=cv2.CV_32F)
    return cv2.addWeighted(total, strength, other, strength, 0)


class _Layers:
    """Bones that lie over each other add up, so they are drawn on layers of their own: `back` and
    `front` of the ribcage, what is `deep`, and the dense `edges` of all."""

    def __init__(self, pen: Pen):
        self.pen = pen
        self.back, self.front, self.edges, self.deep = (pen.layer() for _ in range(4))


def _draw_ribs(bones: _Layers, chest: Chest) -> None:
    pen, edges, width = bones.pen, bones.edges, chest.patient.rib_width
    posterior, anterior, first = _rib_paths(chest)
    number = np.tile(np.minimum(np.arange(1, 12), 6), 2)[:, None]
    half = width * (0.80 + 0.03 * number)
    bulge = 0.8 + 0.35 * np.sin(np.pi * np.minimum(np.linspace(0, 1.1, 14), 1))
    upper, lower = band_edges(posterior, half * bulge)
    pen.fill(bones.back, np.concatenate([upper, lower[:, ::-1]], axis=1), 125)
    pen.fill(bones.back, band(first, width * 0.8), 130)
    pen.line(edges, upper, 0.0032, 100)
    pen.line(edges, lower, 0.0036, 140)
    upper, lower = band_edges(anterior, width * 1.02)
    pen.fill(bones.front, np.concatenate([upper, lower[:, ::-1]], axis=1), 66)
    pen.line(edges, np.concatenate([upper, lower])[:, :-3], 0.0026, 55)


def _rib_paths(chest: Chest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paths in the patient's frame: posterior [22, n, 2], anterior [16, n, 2], first [2, m, 2]."""
    patient = chest.patient
    i = np.arange(1, 12)
    back, front, first = [], [], []
    for s, (_, sign) in enumerate(SIDES):
        start = 0.085 + patient.rib_pitch * i + patient.rib_jitter[s, 1:]
        drop = 0.030 + 0.0125 * i + patient.rib_tilt
        end = start + drop
        wall = chest.wall(end + 0.02, s) + 0.008
        x = np.stack([np.full(11, 0.036), 0.42 * wall, 0.97 * wall, wall], axis=1)
        y = [start + 0.012, start - 0.035 + 0.002 * i, start - 0.005 + 0.25 * drop, end + 0.045]
        back.append(np.stack([sign * x, np.stack(y, axis=1)], axis=-1))
        x0, x3 = wall, 0.125 + 0.012 * i
        x = np.stack([x0, x0 - 0.002, (x0 + x3) / 2 + 0.015, x3], axis=1)
        y0, y3 = end + 0.030, end + 0.115 + 0.010 * i
        y = np.stack([y0, y0 + 0.055, (y0 + y3) / 2 + 0.035, y3], axis=1)
        front.append(np.stack([sign * x, y], axis=-1)[:8])
        y0 = 0.085 + patient.rib_jitter[s, 0]
        x = [0.038, 0.09, 0.138, 0.135, 0.07]
        path = xy(x, [y0 + 0.01, y0 - 0.008, y0 + 0.03, y0 + 0.085, y0 + 0.125])
        first.append(curve(path) * [sign * patient.width, 1])
    return bezier(np.concatenate(back), 14), bezier(np.concatenate(front), 14), np.stack(first)


def _draw_clavicles(bones: _Layers, chest: Chest) -> None:
    clavicles = np.stack(chest.clavicle)
    half = 0.0125 * np.interp(np.linspace(0, 1, clavicles.shape[1]), [0, 0.3, 0.7, 1],
                              [1.25, 0.85, 0.8, 1.1])  # fmt: skip
    upper, lower = band_edges(clavicles, half)
    for s in range(2):
        bones.pen.fill(bones.front, np.concatenate([upper[s], lower[s, ::-1]]), 190)
    bones.pen.line(bones.edges, np.concatenate([upper, lower]), 0.0034, 160)


def _draw_shoulders(bones: _Layers, chest: Chest) -> None:
    """Scapulae and humeri; on a PA film the shoulders are turned out of the lungs."""
    pen, deep, edges = bones.pen, bones.deep, bones.edges
    out = chest.patient.scapula + (-0.02 if chest.visit.view == "AP" else 0.025)
    x = np.array([0.33, 0.345, 0.375, 0.395, 0.415, 0.425, 0.435])
    blade = curve(xy(x + out, [0.135, 0.23, 0.33, 0.42, 0.36, 0.25, 0.175]))
    shaft = curve(xy([0.475, 0.505, 0.535, 0.56], [0.19, 0.32, 0.55, 0.90]))
    blades, shafts = blade * _MIRROR, shaft * _MIRROR
    pen.fill(deep, np.concatenate([blades, _MIRROR * [0.36 + out, 0.13]], axis=1), 60)
    pen.line(edges, blades[:, :20], 0.0034, 80)
    pen.line(edges, blades[:, 20:], 0.0050, 100)
    pen.fill(deep, ellipse(_MIRROR[:, 0] * [0.468, 0.172], (0.042, 0.046)), 115)
    pen.fill(deep, band(shafts, 0.024), 110)
    pen.line(edges, np.concatenate(band_edges(shafts, 0.022)), 0.006, 120)


def _draw_vertebrae(bones: _Layers, chest: Chest) -> None:
    """Bodies with end plates, pedicles and spinous processes."""
    pen, deep = bones.pen, bones.deep
    tops = [-0.06]
    while tops[-1] < 1.08:
        tops.append(tops[-1] + 0.042 + 0.018 * min(max(tops[-1], 0), 1))
    y = np.array(tops)
    h, y = np.diff(y)[:, None], y[:-1, None]
    half = 0.030 + 0.008 * np.clip(y, 0, 1)
    x = np.interp((y + h / 2)[:, 0], chest.spine[:, 1], chest.spine[:, 0])[:, None]
    across = x + half * [-1, -0.88, -1, 1, 0.88, 1]
    down = y + h * [0.12, 0.5, 0.88, 0.88, 0.5, 0.12]
    body = np.stack([across, down], axis=-1)  # [v, 6, 2]
    pen.fill(deep, body, 85)
    pen.line(bones.edges, np.concatenate([body[:, 2:4], body[:, [5, 0]]]), 0.004, 80)
    for side in (-0.62, 0.62):
        centre = np.concatenate([x + side * half, y + 0.42 * h], axis=1)
        pen.fill(deep, ellipse(centre, (0.006, 0.009), 10), 150)
    pen.fill(deep, ellipse(np.concatenate([x, y + 0.8 * h], axis=1), (0.005, 0.012), 10), 140)
