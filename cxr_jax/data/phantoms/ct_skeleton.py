"""Bones of a CT slice: vertebrae, sternum, clavicles, ribs and scapulae."""

import numpy as np

from cxr_jax.data.phantoms.ct_anatomy import SIDES, Thorax, lung_axes, superellipse, vertebra_y
from cxr_jax.data.phantoms.ct_drawing import BONE, MUSCLE, TissueLayer
from cxr_jax.data.phantoms.drawing import ellipse, smoothstep


def draw_bones(layer: TissueLayer, thorax: Thorax, z: float) -> None:
    """Draws all bones at z."""
    _draw_vertebra(layer, thorax, z)
    _draw_sternum(layer, z)
    _draw_clavicles(layer, z)
    for side in range(2):
        _draw_ribs(layer, thorax, z=z, side=side)
        if z <= 0.56:
            _draw_scapula(layer, thorax, z=z, side=side)


def _draw_vertebra(layer: TissueLayer, thorax: Thorax, z: float) -> None:
    """Bodies and discs in turn, canal, arch."""
    y = float(vertebra_y(z))
    phase = np.cos(2 * np.pi * 13 * z + thorax.disc)
    body = ellipse(np.array([0, y]), (0.043, 0.034), 28)
    layer.fill(body, 150 + 160 * max(phase, 0))
    layer.line(body, 0.006, BONE)
    for sign in SIDES:
        layer.band([[sign * 0.03, y + 0.025], [sign * 0.028, y + 0.065]], 0.009, BONE)
        tip = [sign * 0.088, y + 0.072]
        layer.band([[sign * 0.022, y + 0.058], tip], [0.012, 0.007], BONE)
        layer.band([[sign * 0.024, y + 0.060], [0, y + 0.082]], 0.008, BONE)
    layer.band([[0, y + 0.075], [0, y + 0.122]], [0.009, 0.006], BONE)
    layer.ellipse((0, y + 0.050), (0.020, 0.017), hu=25, n=20)


def _draw_sternum(layer: TissueLayer, z: float) -> None:
    _, _, cy, ry = lung_axes(z)
    front = min(cy - ry + 0.012, -0.13)
    high = float(smoothstep((z - 0.10) / 0.05) * smoothstep((0.72 - z) / 0.06))
    if high > 0.1:
        wide = 0.052 - 0.020 * float(smoothstep((z - 0.15) / 0.15))
        centre = (0, front - 0.020)
        layer.ellipse(centre, (wide * high, 0.015 * high), hu=BONE, n=24)
        layer.ellipse(centre, (0.75 * wide * high, 0.009), hu=120, n=24)


def _draw_clavicles(layer: TissueLayer, z: float) -> None:
    """Their medial ends."""
    if z < 0.15:
        at = (0.13 - z) / 0.16
        for sign in SIDES:
            start = np.array([sign * (0.045 + 0.10 * at), -0.155 + 0.02 * at])
            layer.band([start, start + [sign * 0.11, 0.045]], 0.014, BONE)


def _draw_ribs(layer: TissueLayer, thorax: Thorax, *, z: float, side: int) -> None:
    """Bands that fall from back to front; a slice cuts each of them aslant."""
    u = np.linspace(0, 1, 72)
    cx, rx, cy, ry = lung_axes(z)
    x, y = superellipse(np.deg2rad(118 - 200 * u))
    share = max(0.62, np.sqrt(1 - (1 - np.clip((z - thorax.apex[side]) / 0.2, 0, 1)) ** 2))
    wall = np.stack(
        [SIDES[side] * (cx + (rx * share + 0.015) * x), cy + (ry * share + 0.015) * y], axis=1
    )
    height = thorax.rib_start[side][:, None] + thorax.rib_drop * (1 - np.cos(np.pi * u)) / 2
    off = np.abs(z - height) / 0.0165
    end = 0.95 - 0.06 * np.maximum(np.arange(13) - 7, 0)[:, None]
    seen = (off < 1) & (u < end)
    segments = np.stack([wall[:-1], wall[1:]], axis=1)
    for least, value in ((0.8, 0.55), (0.5, 0.8), (0.0, 1.0)):
        chosen = (seen[:, :-1] & (off[:, :-1] >= least)).any(axis=0)
        if chosen.any():
            thick = 2 * thorax.rib_width * (0.6 + 0.4 * value)
            layer.line(segments[chosen], thick, MUSCLE + value * (BONE - MUSCLE))


def _draw_scapula(layer: TissueLayer, thorax: Thorax, *, z: float, side: int) -> None:
    sign = SIDES[side]
    cx, rx, cy, ry = lung_axes(max(z, 0.1))
    t = float(np.clip(z / 0.55, 0, 1))
    inner = np.array(
        [0.70 * (cx + rx) + 0.05 * t, cy + 0.93 * ry + 0.038 + thorax.scapula[0] * 0.4]
    )
    outer = np.array([0.385 - 0.05 * t, cy + 0.30 * ry + 0.06 * t + thorax.scapula[1] * 0.5])
    end = inner + (outer - inner) * (1 - 0.7 * t**2)
    path = np.stack([inner, (inner + end) / 2 + [0.008, 0.006], end]) * [sign, 1]
    layer.band(path, np.array([0.006, 0.007, 0.012]) * (1 - 0.35 * t), BONE)
    if z < 0.16:  # spine of the scapula, head of the humerus
        root = (inner + end) / 2
        tip = root + [0.03, 0.062]
        layer.band(np.stack([root, tip]) * [sign, 1], [0.009, 0.006], BONE)
