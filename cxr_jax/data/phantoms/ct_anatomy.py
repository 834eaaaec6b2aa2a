"""The chest of one CT volume: numbers of the patient and the scan, and the outlines at each height.

Lengths are in units of the field of view; x = 0 is the midline, positive towards the patient's left
(the image's right), y runs from front to back, and z runs from 0 at the apex of the lungs to about
1 below the diaphragm. All outlines change smoothly with z.
"""

import functools

import numpy as np
from scipy.interpolate import PchipInterpolator

from cxr_jax.data.phantoms.drawing import Pen, closed_curve, ellipse, smoothstep

# Lungs and lesions are laid out on this many cells whatever the size.
LATTICE = 256

HEIGHT = 0.78  # of the lungs: z = 1 in units of the field of view
SIDES = (-1.0, 1.0)  # sign of x on the patient's right, left


def _along_z(heights, values) -> PchipInterpolator:
    return PchipInterpolator(heights, np.asarray(values, float), axis=0, extrapolate=True)


# Of the standard chest. Lateral centre and radius, sagittal centre and radius of either lung.
# fmt: off
_LUNG = _along_z(
    [-0.15, 0.0, 0.08, 0.18, 0.32, 0.45, 0.60, 0.80, 1.00, 1.20],
    [[0.105, 0.085, 0.030, 0.080], [0.105, 0.090, 0.030, 0.090], [0.113, 0.100, 0.025, 0.108],
     [0.135, 0.124, 0.015, 0.145], [0.158, 0.148, 0.005, 0.175], [0.166, 0.157, 0.002, 0.190],
     [0.172, 0.163, 0.000, 0.199], [0.176, 0.167, 0.000, 0.204], [0.176, 0.167, 0.004, 0.202],
     [0.174, 0.165, 0.006, 0.198]],
)
LUNG_POWER = 2.15  # of the superellipse that a lung is: |x|^p + |y|^p = 1
# Half width, half depth and centre of the skin.
_SKIN = _along_z(
    [-0.15, 0.05, 0.20, 0.40, 0.60, 0.85, 1.20],
    [[0.440, 0.190, 0.050], [0.440, 0.222, 0.035], [0.428, 0.248, 0.024], [0.412, 0.268, 0.022],
     [0.402, 0.278, 0.022], [0.396, 0.280, 0.020], [0.392, 0.272, 0.018]],
)
# Outline of the mediastinum with the spine, thousandths: from its front, round the patient's left,
# behind the vertebrae, and back up the right.
_MEDIASTINUM_AT = [-0.15, 0.02, 0.18, 0.30, 0.42, 0.52, 0.66, 0.82, 0.95, 1.20]
_MEDIASTINUM_POINTS = np.array(
    [[-50, -140, 50, -140, 75, -60, 70, 0, 65, 70, 55, 140, 70, 240,
      -70, 240, -55, 140, -65, 70, -70, 0, -75, -60],
     [-40, -140, 40, -140, 68, -60, 66, 0, 62, 70, 53, 140, 68, 240,
      -68, 240, -53, 140, -62, 70, -66, 0, -68, -60],
     [-30, -140, 30, -140, 55, -85, 62, -15, 58, 60, 50, 130, 66, 240,
      -66, 240, -50, 130, -46, 60, -54, -15, -50, -85],
     [-12, -160, 14, -160, 42, -105, 74, -30, 80, 60, 54, 130, 64, 240,
      -64, 240, -46, 130, -38, 60, -54, -20, -45, -95],
     [-9, -175, 11, -175, 46, -105, 72, -40, 76, 70, 58, 130, 64, 240,
      -64, 240, -44, 130, -36, 70, -64, -10, -50, -100],
     [-10, -180, 14, -180, 64, -115, 92, -30, 80, 72, 58, 132, 64, 240,
      -64, 240, -42, 130, -46, 62, -90, 0, -66, -95],
     [-14, -186, 22, -186, 110, -142, 150, -48, 84, 72, 58, 134, 64, 240,
      -64, 240, -40, 130, -42, 56, -84, -12, -62, -112],
     [-18, -190, 32, -190, 148, -150, 172, -66, 84, 64, 57, 134, 64, 240,
      -64, 240, -40, 130, -42, 58, -74, -14, -56, -118],
     [-22, -190, 32, -190, 126, -156, 146, -78, 80, 55, 56, 134, 64, 240,
      -64, 240, -40, 130, -46, 52, -66, -16, -52, -126],
     [-22, -190, 32, -190, 110, -156, 120, -78, 76, 55, 56, 134, 64, 240,
      -64, 240, -40, 130, -46, 52, -66, -20, -60, -138]]
).reshape(10, 12, 2) / 1000
# fmt: on
_MEDIASTINUM = _along_z(_MEDIASTINUM_AT, _MEDIASTINUM_POINTS)
# Its half width at the level of the hila, right and left.
_INNER = _along_z(_MEDIASTINUM_AT, np.abs(_MEDIASTINUM_POINTS[:, [10, 3], 0]))
_VERTEBRA_Y = _along_z([-0.15, 0.1, 0.5, 0.9, 1.2], [0.125, 0.138, 0.156, 0.150, 0.140])


def lung_axes(z) -> np.ndarray:
    """[..., 4] of the standard chest at heights z [...]: lateral centre and radius, sagittal centre
    and radius of either lung."""
    return _LUNG(z)


def skin_axes(z: float) -> np.ndarray:
    """[3] of the standard chest at z: half width, half depth and sagittal centre of the skin."""
    return _SKIN(z)


def mediastinum_half_widths(z: np.ndarray) -> np.ndarray:
    """[..., 2] of the standard chest at z: half width at the level of the hila, right and left."""
    return _INNER(z)


def vertebra_y(z: float) -> np.ndarray:
    """[] of the standard chest at z: sagittal centre of the bodies of the vertebrae."""
    return _VERTEBRA_Y(z)


def superellipse(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the unit superellipse of a lung at angles t."""
    c, s = np.cos(t), np.sin(t)
    power = 2 / LUNG_POWER
    return np.sign(c) * np.abs(c) ** power, np.sign(s) * np.abs(s) ** power


@functools.cache
def unit_lung(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """n angles, and x and y of the unit superellipse at them. Shared: not to be written to."""
    t = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return t, *superellipse(t)


class Thorax:
    """The numbers of one patient and scan. Not changed after construction: threads may share it.

    Attributes:
      z: [slices], heights of the slices; `slab` is half the thickness of one.
      pose: affine map [2, 3] from the patient's frame to the film's (0..1), which `pen` draws by.
      apex, dome, dome_centre, dome_slope, wobble, wobble_z: of the lungs' shape.
      heart, shift, aorta: of the mediastinum's.
      rib_start, rib_drop, rib_width, scapula, disc: of the bones'.
      female, fat, breast, stomach, table: of what lies around.
      air_hu, gradient_hu, mosaic_hu, dependent_hu, dependent_depth: of healthy parenchyma.
      fissure, fissure_at: how bright the great fissures are and where.
      vessels: scales the radii of the vessels.
      fields, grain, seeds: random fields behind `field`, the grain and the septa of lesions.
      noise_hu, kernel, sharpen, round_view: of the scanner.
    """

    def __init__(self, rng: np.random.Generator, slices: int):
        self.female = bool(rng.random() < 0.5)
        self.fat = rng.uniform(0, 1) ** 1.3
        self.breast = self.female * rng.uniform(0.3, 1.0)
        first, last = rng.uniform(-0.05, 0.03), rng.uniform(0.93, 1.03)
        self.z = first + (last - first) * (np.arange(slices) + 0.5) / slices
        self.slab = rng.uniform(0.004, 0.009)  # half the thickness of a slice, in z
        self.pose = _pose(rng)
        self.apex = rng.uniform(-0.02, 0.03) + rng.normal(0, 0.008, 2)
        self.wobble = rng.normal(0, 0.012, (2, 3, 2)) * np.array([1.2, 1.0, 0.6])[:, None]
        self.wobble_z = rng.uniform(-2, 2, (2, 3))
        self.heart = rng.uniform(0.86, 1.10)
        self.shift = rng.normal(0, 0.004, (12, 2))
        self.shift[[0, 1, 5, 6, 7, 8]] = 0
        dome = rng.uniform(0.76, 0.86)
        self.dome = np.array([dome, dome + rng.uniform(0.015, 0.06)])
        self.dome_centre = rng.uniform([-0.07, 0.15], [-0.03, 0.185], (2, 2))
        self.dome_slope = rng.uniform(0.19, 0.25)
        self.rib_start = -0.10 + 0.086 * np.arange(13) + rng.normal(0, 0.004, (2, 13))
        self.rib_drop = rng.uniform(0.28, 0.42)
        self.rib_width = rng.uniform(0.0085, 0.0115)
        self.disc = rng.uniform(0, 2 * np.pi)
        self.aorta = rng.uniform(0.85, 1.2)
        self.scapula = rng.uniform(-0.02, 0.03, 2)
        self.air_hu = rng.uniform(-885, -815)
        self.gradient_hu = rng.uniform(20, 80)  # back minus front
        dense = rng.random() < 0.3  # as hazy as ground glass at the back
        self.dependent_hu = rng.uniform(30, 90) + dense * rng.uniform(120, 270)
        self.dependent_depth = rng.uniform(0.016, 0.026) + dense * rng.uniform(0.006, 0.020)
        self.mosaic_hu = rng.uniform(8, 28)
        self.fissure = rng.uniform(0.35, 1.0) * (rng.random((2,)) < 0.8)
        self.fissure_at = rng.normal(0, 0.015, 2)
        self.stomach = rng.uniform([0.03, -0.10, 0.4], [0.08, -0.05, 1.0])
        self.fields = rng.standard_normal((4, 9, 9), np.float32)
        self.grain = rng.standard_normal((2, 48, 48), np.float32)
        self.seeds = rng.uniform(0, 2 * np.pi, (2, 38, 38))
        self.noise_hu = rng.uniform(14, 42)
        self.kernel = rng.uniform(0.35, 0.75)  # of the reconstruction, px at 256
        self.sharpen = rng.uniform(0, 0.6)
        self.round_view = bool(rng.random() < 0.35)
        self.table = rng.uniform(0.004, 0.03)
        self.vessels = rng.uniform(0.85, 1.15)
        self.pen = Pen(LATTICE, self.pose)

    def lung(
        self, side: int, z: float, *, grow: float = 0.0, least: float = 0.0
    ) -> np.ndarray | None:
        """Outline of the pleural cavity, `grow` wider; None above the apex, which `least` lifts."""
        t = (z - self.apex[side]) / 0.20
        share = max(least, np.sqrt(1 - (1 - min(t, 1)) ** 2) if t > 0 else 0.0)
        if share <= 0.05:
            return None
        angle, x, y = unit_lung(80)
        cx, rx, cy, ry = lung_axes(z)
        order = np.arange(2, 5)[:, None]
        turn = order * angle + self.wobble_z[side][:, None] * z
        a, b = self.wobble[side].T[..., None]
        wave = 1 + np.sum(a * np.cos(turn) + b * np.sin(turn), axis=0) * share
        # The front falls back towards the side, so that both lungs make one oval chest.
        y = y * (1 - np.where(y < 0, 0.15, 0.07) * x)
        x = cx + x * wave * (rx * share + grow)
        y = cy + y * wave * (ry * share + grow)
        return np.stack([SIDES[side] * np.maximum(x, 0.008 - grow), y], axis=1)

    def mediastinum(self, z: float) -> np.ndarray:
        """[12, 2] points of its outline."""
        points = _MEDIASTINUM(z) + self.shift
        grow = 1 + (self.heart - 1) * smoothstep(np.float64((z - 0.45) / 0.2))
        points[[2, 3, 10, 11], 0] *= grow
        return points

    def diaphragm(self, side: int, z: float) -> np.ndarray | None:
        """Outline of what the dome has under it; None above it."""
        height = (z - self.dome[side]) / self.dome_slope
        if height <= 0:
            return None
        share = np.sqrt(height)
        _, rx, cy, ry = lung_axes(z)
        y, x = self.dome_centre[side]
        centre = np.array([SIDES[side] * x, cy + y * (1 - 0.6 * min(share, 1))])
        return ellipse(centre, np.array([1.10 * rx, 1.12 * ry]) * share, 48)

    def lung_layer(self, z: float, n: int = LATTICE) -> np.ndarray:
        """uint8 [n, n]: share of each cell that is lung, 255 all of it."""
        layer = self.pen.layer(n)
        for side in range(2):
            outline = self.lung(side, z)
            if outline is not None:
                self.pen.fill(layer, outline)
        self.pen.fill(layer, closed_curve(self.mediastinum(z)), 0)
        for side in range(2):
            dome = self.diaphragm(side, z)
            if dome is not None:
                self.pen.fill(layer, dome, 0)
        return layer

    def field(self, k: int, z: float, speed: float) -> np.ndarray:
        """A slow random field [9, 9] of mean 0 and variance 1 that changes smoothly with z."""
        return np.cos(speed * z) * self.fields[2 * k] + np.sin(speed * z) * self.fields[2 * k + 1]

    @functools.cached_property
    def inverse_pose(self) -> np.ndarray:
        """Affine map [3, 3] from the film's frame (0..1) to the patient's."""
        return np.linalg.inv(np.concatenate([self.pose, [[0, 0, 1]]]))


def _pose(rng: np.random.Generator) -> np.ndarray:
    """Affine map [2, 3] from the patient's frame to the film's."""
    angle, scale = np.deg2rad(rng.normal(0, 1.8)), rng.uniform(0.90, 1.06)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]]) @ np.diag(rng.uniform(0.94, 1.06, 2) * scale)
    offset = np.array([0.5, 0.5]) + rng.normal(0, 0.012, 2) - turn @ np.array([0.0, 0.02])
    return np.concatenate([turn, offset[:, None]], axis=1)


def label_sides(inside: np.ndarray, thorax: Thorax) -> np.ndarray:
    """uint8 of a square mask: 0 outside, 1 on the patient's right of the midline, 2 on the left."""
    n = len(inside)
    back = thorax.inverse_pose[0]
    at = (np.arange(n) + 0.5) / n
    left = (back[0] * at)[None] + (back[1] * at)[:, None] + back[2] > 0
    return (1 + left.astype(np.uint8)) * inside
