"""Trees of arteries, veins and airways: curves in space, which a slice cuts by its slab."""

import functools
from typing import NamedTuple

import numpy as np

from cxr_jax.data.phantoms.ct_anatomy import (
    HEIGHT,
    SIDES,
    Thorax,
    lung_axes,
    mediastinum_half_widths,
    superellipse,
)
from cxr_jax.data.phantoms.drawing import Pen

# In the patient's frame, right and left: where arteries and bronchi begin, and where veins do.
_ROOTS = np.array([[-0.078, 0.005, 0.50], [0.086, 0.012, 0.475]])
_VEIN_ROOTS = np.array([[-0.070, 0.030, 0.585], [0.082, 0.038, 0.570]])
_CARINA = np.array([-0.004, 0.022, 0.39])


class Tubes(NamedTuple):
    """Straight pieces of tubes in the patient's frame, thick ones last."""

    start: np.ndarray  # [k, 3]
    end: np.ndarray  # [k, 3]
    radius: np.ndarray  # [k]


class Trees:
    """The trees of one patient.

    They are grown when a picture needs them: labels do not. Two threads would grow the same.
    """

    def __init__(self, thorax: Thorax, seed: int, number: int):
        self._thorax, self._key = thorax, (seed, number)

    def _rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([*self._key, stream])

    @functools.cached_property
    def blood(self) -> Tubes:
        """Arteries and veins."""
        arteries, veins = self._branches
        return _pieces(self._rng(4), [(a, b, 0.00088 * n**0.43) for a, b, n in arteries + veins])

    @functools.cached_property
    def airways(self) -> tuple[Tubes, Tubes]:
        """Main bronchi and the bronchi that show; those that show in consolidation only."""
        beside = np.array([0.8, -0.6, 0.0])  # beside the artery, by about the sum of the radii
        bronchi = []
        for level, (start, end, n) in enumerate(self._branches[0][:8]):
            before = 0.0024 * (2 * n) ** 0.36 if level else 0.0
            bronchi.append(
                (start + before * beside, end + 0.0024 * n**0.36 * beside, 0.0009 * n**0.4)
            )
        main = (np.repeat(_CARINA[None], 2, axis=0), _ROOTS, np.array([0.0150, 0.0135]))
        rng = self._rng(5)
        return _pieces(rng, [main, *bronchi[:6]], 0.02), _pieces(rng, bronchi[4:], 0.03)

    @functools.cached_property
    def _branches(self) -> tuple[list, list]:
        ends = _inside(self._thorax, self._rng(3), 512 + 256)
        return _grow(_ROOTS, ends[:, :512], 0.42), _grow(_VEIN_ROOTS, ends[:, 512:], 0.42)


def _inside(thorax: Thorax, rng: np.random.Generator, count: int) -> np.ndarray:
    """[2, count, 3] points in the lungs, where the smallest vessels end."""
    n = 2 * count
    z = rng.uniform(0.03, 1.0, (2, n))
    angle, out = rng.uniform(0, 2 * np.pi, (2, n)), np.sqrt(rng.random((2, n))) * 0.95
    cx, rx, cy, ry = np.moveaxis(lung_axes(z), -1, 0)
    t = np.clip((z - thorax.apex[:, None]) / 0.20, 0.05, 1)
    share = np.sqrt(1 - (1 - t) ** 2)
    ux, uy = superellipse(angle)
    x, y = cx + rx * share * out * ux, cy + ry * share * out * uy
    inner = np.stack([mediastinum_half_widths(z[side])[:, side] for side in range(2)])
    inner = np.where((y > 0.08) | (y < -0.12), 0.055, inner)
    height = np.maximum((z - thorax.dome[:, None]) / thorax.dome_slope, 0)
    dx = (x - thorax.dome_centre[:, 1:]) / (1.1 * rx)
    dy = (y - cy - 0.6 * thorax.dome_centre[:, :1]) / (1.12 * ry)
    good = (x > inner + 0.006) & (dx**2 + dy**2 > 1.05 * height)
    good &= rng.random((2, n)) < share**2
    order = np.argsort(~good, axis=1, kind="stable")[:, :count]
    points = np.stack([x * np.array(SIDES)[:, None], y, z], axis=-1)
    return np.take_along_axis(points, order[..., None], axis=1)


def _grow(roots: np.ndarray, ends: np.ndarray, pull: float) -> list[tuple]:
    """Binary trees that share out their ends.

    Args:
      roots: [m, 3], one of each tree.
      ends: [m, n, 3], n a power of two.
      pull: how far a branch runs from its parent to the middle of its ends.

    Returns:
      Of each generation (starts [k, 3], ends [k, 3], number of ends that a branch feeds).
    """
    m = len(ends)
    parent, clusters, levels = roots[:, None], ends[:, None], []
    while True:
        k, left = clusters.shape[1:3]
        last = left == 1
        middle = clusters.mean(axis=2)
        node = middle if last else parent + pull * (middle - parent)
        levels.append((parent.reshape(-1, 3), node.reshape(-1, 3), left))
        if last:
            return levels
        axis = np.argmax(np.ptp(clusters, axis=2) * [1, 1, HEIGHT], axis=-1)
        value = np.take_along_axis(clusters, axis[..., None, None], axis=-1)[..., 0]
        order = np.argsort(value, axis=-1)
        clusters = np.take_along_axis(clusters, order[..., None], axis=2)
        clusters = clusters.reshape(m, 2 * k, left // 2, 3)
        parent = np.repeat(node, 2, axis=1)


def _pieces(rng: np.random.Generator, generations: list[tuple], bend: float = 0.05) -> Tubes:
    """Bends branches (starts [n, 3], ends [n, 3], radius) into three pieces each."""
    start = np.concatenate([a for a, _, _ in generations])
    end = np.concatenate([b for _, b, _ in generations])
    radius = np.concatenate([np.broadcast_to(r, len(a)) for a, _, r in generations])
    length = np.linalg.norm(end - start, axis=1)[:, None]
    off = np.clip(rng.standard_normal((2, len(start), 3)), -2, 2) * (bend * length)
    one, two = start + (end - start) / 3 + off[0], start + (end - start) * 2 / 3 + off[1]
    starts, ends = np.concatenate([start, one, two]), np.concatenate([one, two, end])
    order = np.argsort(np.tile(radius, 3), kind="stable")
    return Tubes(starts[order], ends[order], np.tile(radius, 3)[order])


def cut_tubes(
    pen: Pen, tubes: Tubes, *, z: float, slab: float, scale: float = 1.0, grow: float = 0.0
) -> np.ndarray:
    """Fine layer of the tubes between z - slab and z + slab; radii scaled, then `grow` wider."""
    start, end, radius = tubes
    reach = slab + 0.7 * radius / HEIGHT
    rise = end[:, 2] - start[:, 2]
    rise = np.where(np.abs(rise) < 1e-6, 1e-6, rise)
    one, two = (z - reach - start[:, 2]) / rise, (z + reach - start[:, 2]) / rise
    low, high = np.maximum(np.minimum(one, two), 0), np.minimum(np.maximum(one, two), 1)
    seen = np.flatnonzero(low < high)
    layer = pen.fine_layer()
    if not len(seen):
        return layer
    at, along = start[seen, :2], (end - start)[seen, :2]
    paths = np.stack([at + along * low[seen, None], at + along * high[seen, None]], axis=1)
    width = 2 * (radius[seen] * scale + grow)
    group = np.floor(np.log(width) / np.log(1.22)).astype(int)
    for value in np.unique(group):  # thick ones last
        mine = group == value
        pen.line(layer, paths[mine], float(width[mine].mean()))
    return layer
