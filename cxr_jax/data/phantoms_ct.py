"""Chest CT phantoms: drawn axial slices with exact truth for every lesion.

`ct_slice(seed, number, index)` draws one slice of one volume, alone. A volume is a patient: a few
hundred numbers, from which every slice cuts its own picture. Lengths are in units of the field of
view; x = 0 is the midline, positive towards the patient's left (the image's right), y runs from
front to back, and z runs from 0 at the apex of the lungs to about 1 below the diaphragm. The trees
of arteries, veins and airways are curves in space that are cut by a slab, ribs are bands along the
chest wall, the domes of the diaphragm are paraboloids, all else is outlines that change smoothly
with z. The slice is drawn in approximate Hounsfield units and windowed,

    hu = tissue + lung * (air - tissue), then the walls and lumina of the airways upon it,
    air = parenchyma, then opacity, then fissures and vessels upon it,
    image = 255 * clip((hu + noise - centre) / width + 1/2, 0, 1).

Exact truth. Masks are taken from the very fields that are drawn:

* `lungs`: inside the pleura, less the mediastinum and what lies under the diaphragm. Vessels,
  airways and lesions in a lung belong to it, as a reader outlines it.
* `lesion`: pixels of the lungs where a lesion's opacity is at least 35% of its peak, which is what
  its middle has before a slice or the edge of the lung cuts it. Around that lies its rim, where the
  opacity falls to exactly 0; elsewhere it is 0. Vessels, airways, fissures, the dense dependent
  lung and the blurred dome of the diaphragm are drawn in positive and negative volumes alike and
  are never lesion; a vessel inside a lesion belongs to it.
* `lesion_type`: 1 ground glass, 2 consolidation. Crazy paving is ground glass with a net of septa
  and has type 1. Where both overlap, consolidation.
* A slice has a lesion if and only if the mask on a fixed lattice of 256 x 256 holds a full square
  of 5 x 5 cells; a slice with less is cleared of opacity. So the label of a slice can be had
  without its picture, and agrees with its mask at every size.

A positive volume has one to six lesions: plain ground glass, crazy paving or consolidation (some
with a halo of ground glass, some with air bronchograms). Each is an ellipsoid with a ragged edge
(a smooth random field in space), clipped to the lungs, from about 1 cm to a third of a lung, more
often low, at the back and near the pleura. At least one of them is seen in some slice.

What is not true to life: the shapes are simple, the noise is not a scanner's, lesions stand at
slices that were taken and do not follow lobes, there is no other disease of the lungs.

Phantoms are not patients. They serve to test code and to see whether a model can learn at all;
a number measured on them claims nothing about any patient or any reader.
"""

import dataclasses
import functools
from typing import NamedTuple

import cv2
import numpy as np
from scipy.interpolate import PchipInterpolator

from cxr_jax.data.phantoms import _ellipse, _grain, _Pen, _ring, _smooth
from cxr_jax.data.records import Record
from cxr_jax.errors import InputError

MIN_SIZE, MAX_SIZE = 64, 512
MIN_SLICES, MAX_SLICES = 8, 512
WINDOW_HU = (-600.0, 1500.0)  # centre and width: the usual lung window

# A lesion ends where its opacity falls under this share of its peak.
LESION_CUT = 0.35
# Lungs and lesions are laid out on this many cells whatever the size. A square of BLOCK cells holds
# the four neighbours of some pixel centre at every size from MIN_SIZE on.
_LATTICE = 256
_BLOCK = np.ones((5, 5), np.uint8)
_COARSE = 64  # cells of the slow changes of density, and for placing lesions

GROUND_GLASS, CONSOLIDATION = 1, 2

_HEIGHT = 0.78  # of the lungs: z = 1 in units of the field of view
_SIDES = (-1.0, 1.0)  # right, left

# Tissue is drawn in 8 bits, 6 HU a step, from -1050 HU.
_STEP_HU, _LOW_HU = 6.0, -1050.0
_AIR, _FAT, _MUSCLE, _BLOOD, _LIVER, _BONE = -1000.0, -95.0, 45.0, 42.0, 58.0, 380.0


class Slice(NamedTuple):
    """One slice as drawn.

    Attributes:
      hu: float32 [size, size], with noise, before the window.
      opacity: float32 [size, size], of the lesions as a share of their peak; exactly 0 off them.
      lungs, lesion, lesion_type: uint8 [size, size], as in the record.
    """

    hu: np.ndarray
    opacity: np.ndarray
    lungs: np.ndarray
    lesion: np.ndarray
    lesion_type: np.ndarray


def ct_slice(
    seed: int,
    number: int,
    index: int,
    size: int = 256,
    *,
    slices: int = 32,
    positive: bool = True,
    heavy: float = 0.0,
    window_hu: tuple[float, float] = WINDOW_HU,
) -> Record:
    """Draws slice `index` of volume `number` of the phantom data set `seed`.

    The record depends on the arguments only, and anatomy and label not on `size`: pictures of
    another size are the same slices, sampled finer or coarser (their noise grains differ). The
    anatomy does not depend on `positive` either.

    Args:
      seed: the data set, >= 0.
      number: the volume, which is one patient, >= 0.
      index: the slice, 0 (apex) .. slices - 1.
      size: height and width, 64..512 px.
      slices: of the volume, 8..512; they span the same chest, so more lie closer together.
      positive: whether the volume has lesions: then at least one slice has.
      heavy: 0..1, how much wider and longer lesions are: at 1 twice.
      window_hu: centre and width of the window.

    Returns:
      A record: image, lungs, lesion, lesion_type uint8 [size, size]; slice int32, slice_label
      float32 (0 or 1, exact), pixel_area float32 (1); id, group, volume str.

    Raises:
      InputError: an argument outside its range.
    """
    if min(seed, number) < 0:
        raise InputError(f"phantom seed={seed}, volume={number} must not be negative")
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise InputError(f"CT phantom size={size} px must lie in {MIN_SIZE}..{MAX_SIZE}")
    _check_slices(slices)
    if not 0 <= heavy <= 1:
        raise InputError(f"heavy={heavy}; expected 0..1")
    if not 0 <= index < slices:
        raise InputError(f"slice {index} of a volume of {slices}; expected 0..{slices - 1}")
    centre, width = window_hu
    if not width > 0:
        raise InputError(f"window_hu={window_hu}: the width must be positive")
    drawn = draw_slice(seed, number, index, size, slices=slices, positive=positive, heavy=heavy)
    scale = 255 / width
    image = cv2.addWeighted(drawn.hu, scale, drawn.hu, 0, 127.5 - centre * scale)
    volume = f"ct-{seed}-{number:07d}"
    return {
        "image": np.clip(image, 0, 255).astype(np.uint8),
        "id": f"{volume}-{index:03d}",
        "group": volume,
        "volume": volume,
        "slice": np.int32(index),
        "slice_label": np.float32(drawn.lesion.any()),
        "pixel_area": np.float32(1),
        "lungs": drawn.lungs,
        "lesion": drawn.lesion,
        "lesion_type": drawn.lesion_type,
    }


def lesion_slices(
    seed: int, number: int, *, slices: int = 32, positive: bool = True, heavy: float = 0.0
) -> np.ndarray:
    """bool [slices]: which slices of the volume have a lesion. Draws no picture."""
    _check_slices(slices)
    if not positive:
        return np.zeros(slices, bool)
    volume = _volume(seed, number, slices, positive, heavy)
    return np.array([volume.lesions_at(volume.z[k]) is not None for k in range(slices)])


def _check_slices(slices: int) -> None:
    if not MIN_SLICES <= slices <= MAX_SLICES:
        raise InputError(f"{slices} slices a volume; expected {MIN_SLICES}..{MAX_SLICES}")


def draw_slice(
    seed: int,
    number: int,
    index: int,
    size: int,
    *,
    slices: int = 32,
    positive: bool = True,
    heavy: float = 0.0,
    show_lesions: bool = True,
) -> Slice:
    """The slice in HU; with `show_lesions` False its picture lacks them, all else equal."""
    volume = _volume(seed, number, slices, positive, heavy)
    return _draw(volume, index, size, show_lesions)


# A volume is some 300 kB and takes milliseconds; neighbouring slices are mostly read in a row.
@functools.lru_cache(maxsize=8)
def _volume(seed: int, number: int, slices: int, positive: bool, heavy: float) -> "_Volume":
    return _Volume(seed, number, slices, positive, heavy)


# ---------------------------------------------------------------------------------------------
# Shape of the standard chest along z.
# ---------------------------------------------------------------------------------------------


def _along_z(heights, values) -> PchipInterpolator:
    return PchipInterpolator(heights, np.asarray(values, float), axis=0, extrapolate=True)


# Lateral centre and radius, sagittal centre and radius of either lung (superellipses).
# fmt: off
_LUNG = _along_z(
    [-0.15, 0.0, 0.08, 0.18, 0.32, 0.45, 0.60, 0.80, 1.00, 1.20],
    [[0.105, 0.085, 0.030, 0.080], [0.105, 0.090, 0.030, 0.090], [0.113, 0.100, 0.025, 0.108],
     [0.135, 0.124, 0.015, 0.145], [0.158, 0.148, 0.005, 0.175], [0.166, 0.157, 0.002, 0.190],
     [0.172, 0.163, 0.000, 0.199], [0.176, 0.167, 0.000, 0.204], [0.176, 0.167, 0.004, 0.202],
     [0.174, 0.165, 0.006, 0.198]],
)
_LUNG_POWER = 2.15
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
_TRACHEA = np.array([[0.0, 0.028, -0.25], [0.0, 0.030, 0.10], [-0.004, 0.022, 0.39]])
_ROOTS = np.array([[-0.078, 0.005, 0.50], [0.086, 0.012, 0.475]])  # of arteries and bronchi
_VEIN_ROOTS = np.array([[-0.070, 0.030, 0.585], [0.082, 0.038, 0.570]])
_CARINA = np.array([-0.004, 0.022, 0.39])


@functools.cache
def _angles(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Angles and the unit superellipse at them."""
    t = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return t, *_superellipse(t)


def _superellipse(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    c, s = np.cos(t), np.sin(t)
    power = 2 / _LUNG_POWER
    return np.sign(c) * np.abs(c) ** power, np.sign(s) * np.abs(s) ** power


def _closed(points: np.ndarray, n: int = 5) -> np.ndarray:
    """Closed Catmull-Rom curve through [k, 2] points: [k * n, 2]."""
    t = np.arange(n)[:, None] / n
    p0, p1, p2, p3 = (np.roll(points, s, axis=0)[:, None] for s in (1, 0, -1, -2))
    curve = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2
    curve = curve + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    return 0.5 * curve.reshape(-1, 2)


# ---------------------------------------------------------------------------------------------
# Chance: one patient.
# ---------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Lesion:
    """One opacity, in the film's frame (0..1); `radii` along and across `angle`, `reach` in z."""

    kind: int
    centre: np.ndarray
    z: float
    radii: np.ndarray
    reach: float
    angle: float
    strength: float  # share of the air that is filled at its peak
    noise: np.ndarray  # [_NOISE_Z, _NOISE, _NOISE], shapes its edge
    net: bool = False  # crazy paving
    bronchograms: bool = False


_NOISE_Z, _NOISE = 7, 9
_RAGGED, _MOST_RAGGED = 0.42, 1.3  # by how much noise moves a lesion's edge, in radii and sigmas
_FAR = 1 + _RAGGED * _MOST_RAGGED + 0.01  # beyond this many radii a lesion has no opacity
_RIMS = {GROUND_GLASS: 0.45, CONSOLIDATION: 0.38}  # how wide they are, in radii


class _Tubes(NamedTuple):
    """Straight pieces of tubes in the patient's frame, thick ones last."""

    start: np.ndarray  # [k, 3]
    end: np.ndarray  # [k, 3]
    radius: np.ndarray  # [k]


class _Opacity(NamedTuple):
    """The lesions of one slice, float32 [_LATTICE, _LATTICE] each."""

    haze: np.ndarray  # opacity of ground glass, 1 at its peak
    solid: np.ndarray  # opacity of consolidation, 1 at its peak
    filled: np.ndarray  # share of the air that is filled
    net: np.ndarray  # opacity of crazy paving
    bronchograms: np.ndarray  # opacity of consolidation with open airways


class _Volume:
    """The numbers of one patient and scan. Not changed after construction: threads may share it."""

    def __init__(self, seed: int, number: int, slices: int, positive: bool, heavy: float):
        self.seed, self.number, self.heavy = seed, number, heavy
        rng = np.random.default_rng([seed, number, 0])
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
        self.pen = _Pen(_LATTICE, self.pose)
        self.lesions: list[_Lesion] = []
        if positive:
            self._fall_ill(np.random.default_rng([seed, number, 1]))

    # Outlines ---------------------------------------------------------------------------------

    def lung(self, side: int, z: float, grow: float = 0.0, least: float = 0.0) -> np.ndarray | None:
        """Outline of the pleural cavity, `grow` wider; None above the apex, which `least` lifts."""
        t = (z - self.apex[side]) / 0.20
        share = max(least, np.sqrt(1 - (1 - min(t, 1)) ** 2) if t > 0 else 0.0)
        if share <= 0.05:
            return None
        angle, x, y = _angles(80)
        cx, rx, cy, ry = _LUNG(z)
        order = np.arange(2, 5)[:, None]
        turn = order * angle + self.wobble_z[side][:, None] * z
        a, b = self.wobble[side].T[..., None]
        wave = 1 + np.sum(a * np.cos(turn) + b * np.sin(turn), axis=0) * share
        # The front falls back towards the side, so that both lungs make one oval chest.
        y = y * (1 - np.where(y < 0, 0.15, 0.07) * x)
        x = cx + x * wave * (rx * share + grow)
        y = cy + y * wave * (ry * share + grow)
        return np.stack([_SIDES[side] * np.maximum(x, 0.008 - grow), y], axis=1)

    def mediastinum(self, z: float) -> np.ndarray:
        """[12, 2] points of its outline."""
        points = _MEDIASTINUM(z) + self.shift
        grow = 1 + (self.heart - 1) * _smooth(np.float64((z - 0.45) / 0.2))
        points[[2, 3, 10, 11], 0] *= grow
        return points

    def diaphragm(self, side: int, z: float) -> np.ndarray | None:
        """Outline of what the dome has under it; None above it."""
        height = (z - self.dome[side]) / self.dome_slope
        if height <= 0:
            return None
        share = np.sqrt(height)
        _, rx, cy, ry = _LUNG(z)
        y, x = self.dome_centre[side]
        centre = np.array([_SIDES[side] * x, cy + y * (1 - 0.6 * min(share, 1))])
        return _ellipse(centre, np.array([1.10 * rx, 1.12 * ry]) * share, 48)

    def lung_layer(self, z: float, n: int = _LATTICE) -> np.ndarray:
        """uint8 [n, n]: share of each cell that is lung, 255 all of it."""
        layer = self.pen.layer(n)
        for side in range(2):
            outline = self.lung(side, z)
            if outline is not None:
                self.pen.fill(layer, outline)
        self.pen.fill(layer, _closed(self.mediastinum(z)), 0)
        for side in range(2):
            dome = self.diaphragm(side, z)
            if dome is not None:
                self.pen.fill(layer, dome, 0)
        return layer

    def field(self, k: int, z: float, speed: float) -> np.ndarray:
        """A slow random field [9, 9] of mean 0 and variance 1 that changes smoothly with z."""
        return np.cos(speed * z) * self.fields[2 * k] + np.sin(speed * z) * self.fields[2 * k + 1]

    # Trees ------------------------------------------------------------------------------------

    # Trees are grown when a picture needs them: labels do not. Two threads would grow the same.

    @functools.cached_property
    def blood(self) -> "_Tubes":
        """Arteries and veins."""
        arteries, veins = self._trees
        rng = np.random.default_rng([self.seed, self.number, 4])
        return _pieces(rng, [(a, b, 0.00088 * n**0.43) for a, b, n in arteries + veins])

    @functools.cached_property
    def airways(self) -> tuple["_Tubes", "_Tubes"]:
        """Main bronchi and the bronchi that show; those that show in consolidation only."""
        beside = np.array([0.8, -0.6, 0.0])  # beside the artery, by about the sum of the radii
        bronchi = []
        for level, (start, end, n) in enumerate(self._trees[0][:8]):
            before = 0.0024 * (2 * n) ** 0.36 if level else 0.0
            bronchi.append(
                (start + before * beside, end + 0.0024 * n**0.36 * beside, 0.0009 * n**0.4)
            )
        main = (np.repeat(_CARINA[None], 2, axis=0), _ROOTS, np.array([0.0150, 0.0135]))
        rng = np.random.default_rng([self.seed, self.number, 5])
        return _pieces(rng, [main, *bronchi[:6]], 0.02), _pieces(rng, bronchi[4:], 0.03)

    @functools.cached_property
    def _trees(self) -> tuple[list, list]:
        rng = np.random.default_rng([self.seed, self.number, 3])
        ends = self._inside(rng, 512 + 256)
        return _tree(_ROOTS, ends[:, :512], 0.42), _tree(_VEIN_ROOTS, ends[:, 512:], 0.42)

    def _inside(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """[2, count, 3] points in the lungs, where the smallest vessels end."""
        n = 2 * count
        z = rng.uniform(0.03, 1.0, (2, n))
        angle, out = rng.uniform(0, 2 * np.pi, (2, n)), np.sqrt(rng.random((2, n))) * 0.95
        cx, rx, cy, ry = np.moveaxis(_LUNG(z), -1, 0)
        t = np.clip((z - self.apex[:, None]) / 0.20, 0.05, 1)
        share = np.sqrt(1 - (1 - t) ** 2)
        ux, uy = _superellipse(angle)
        x, y = cx + rx * share * out * ux, cy + ry * share * out * uy
        inner = np.stack([_INNER(z[side])[:, side] for side in range(2)])
        inner = np.where((y > 0.08) | (y < -0.12), 0.055, inner)
        height = np.maximum((z - self.dome[:, None]) / self.dome_slope, 0)
        dx = (x - self.dome_centre[:, 1:]) / (1.1 * rx)
        dy = (y - cy - 0.6 * self.dome_centre[:, :1]) / (1.12 * ry)
        good = (x > inner + 0.006) & (dx**2 + dy**2 > 1.05 * height)
        good &= rng.random((2, n)) < share**2
        order = np.argsort(~good, axis=1, kind="stable")[:, :count]
        points = np.stack([x * np.array(_SIDES)[:, None], y, z], axis=-1)
        return np.take_along_axis(points, order[..., None], axis=1)

    # Lesions ----------------------------------------------------------------------------------

    def _fall_ill(self, rng: np.random.Generator) -> None:
        count = 1 + int(rng.choice(6, p=[0.16, 0.20, 0.22, 0.18, 0.14, 0.10]))
        for k in range(count):
            kind, large = rng.random(2)
            grown = rng.uniform([0.030, 0.048, 0.080], [0.048, 0.080, 0.190])
            size = float(grown[np.searchsorted([0.45, 0.86], large)])
            if k:  # one large lesion is enough
                size = min(size, 0.095)
            size *= 1 + self.heavy
            centre, z, angle = self._place(rng)
            stretch = rng.uniform(1.0, 1.5)
            noise = rng.standard_normal((2, _NOISE_Z, _NOISE, _NOISE)).astype(np.float32)
            lesion = _Lesion(
                kind=CONSOLIDATION if kind > 0.68 else GROUND_GLASS,
                centre=centre,
                z=z,
                radii=size * np.array([stretch, 1 / stretch]),
                reach=float(size * rng.uniform(0.9, 1.7) / _HEIGHT),
                angle=angle,
                strength=rng.uniform(0.20, 0.36),
                noise=noise[0],
                net=bool(0.42 < kind <= 0.68),
                bronchograms=bool(rng.random() < 0.5 and size > 0.04),
            )
            halo = rng.random() < 0.6
            if lesion.kind == CONSOLIDATION:
                if halo:
                    around = dataclasses.replace(
                        lesion,
                        kind=GROUND_GLASS,
                        radii=1.35 * lesion.radii,
                        reach=1.25 * lesion.reach,
                        noise=noise[1],
                        bronchograms=False,
                    )
                    self.lesions.append(around)
                lesion.radii = 0.85 * lesion.radii
                lesion.strength = 0.86 + 0.8 * (lesion.strength - 0.20)
            elif lesion.net:
                lesion.strength *= 0.9
            self.lesions.append(lesion)
            # The first one is seen for certain; at this size it nearly always is.
            while not k and self.lesions_at(lesion.z) is None:
                lesion.radii, lesion.reach = 1.15 * lesion.radii, 1.15 * lesion.reach

    def _place(self, rng: np.random.Generator) -> tuple[np.ndarray, float, float]:
        """Where a lesion lies: low, at the back, near the pleura, for the most part.

        Returns:
          Centre in the film's frame, its slice's z, and the angle along the pleura.
        """
        at = self.z[(self.z > 0.10) & (self.z < 0.95)]
        weights = (at - 0.02) ** 1.3 * (1.05 - at) ** 0.5
        for z in rng.choice(at, len(at), replace=False, p=weights / weights.sum()):
            layer = self.lung_layer(z, _COARSE)
            mask = (layer > 200).astype(np.uint8)
            depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
            if depth.max() >= 2.5:
                break
        rows = np.arange(_COARSE)[:, None] / _COARSE
        share = np.exp(-depth / 2.2) + 0.12
        share = share * mask * (0.25 + _smooth((rows - 0.40) / 0.25)) * (depth > 0.9)
        total = np.cumsum(share.ravel())
        cell = int(np.searchsorted(total, rng.random() * total[-1]))
        row, column = divmod(min(cell, total.size - 1), _COARSE)
        centre = (np.array([column, row]) + 0.5) / _COARSE
        half = np.arange(_COARSE) // (_COARSE // 2)
        x, y, w, h = cv2.boundingRect(mask * (half == half[column]).astype(np.uint8))  # this lung
        out = centre * _COARSE - [x + w / 2, y + h / 2]
        return centre, float(z), float(np.arctan2(out[0] * h, -out[1] * w))

    def lesions_at(self, z: float) -> "_Opacity | None":
        """Opacity of the lesions that cut z; None where the lattice holds no full block of one."""
        near = [lesion for lesion in self.lesions if abs(z - lesion.z) < _FAR * lesion.reach]
        if not near:
            return None
        fields = _Opacity(*np.zeros((5, _LATTICE, _LATTICE), np.float32))
        for lesion in near:
            _add(lesion, z, fields)
        most = np.maximum(fields.haze, fields.solid)
        mask = (most > LESION_CUT + 1e-3) & (self.lung_layer(z) > 128)
        if not cv2.erode(mask.view(np.uint8), _BLOCK, borderValue=0).any():
            return None
        return fields


def _pose(rng: np.random.Generator) -> np.ndarray:
    """Affine map [2, 3] from the patient's frame to the film's."""
    angle, scale = np.deg2rad(rng.normal(0, 1.8)), rng.uniform(0.90, 1.06)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]]) @ np.diag(rng.uniform(0.94, 1.06, 2) * scale)
    offset = np.array([0.5, 0.5]) + rng.normal(0, 0.012, 2) - turn @ np.array([0.0, 0.02])
    return np.concatenate([turn, offset[:, None]], axis=1)


def _tree(roots: np.ndarray, ends: np.ndarray, pull: float) -> list[tuple]:
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
        axis = np.argmax(np.ptp(clusters, axis=2) * [1, 1, _HEIGHT], axis=-1)
        value = np.take_along_axis(clusters, axis[..., None, None], axis=-1)[..., 0]
        order = np.argsort(value, axis=-1)
        clusters = np.take_along_axis(clusters, order[..., None], axis=2)
        clusters = clusters.reshape(m, 2 * k, left // 2, 3)
        parent = np.repeat(node, 2, axis=1)


def _pieces(rng: np.random.Generator, generations: list[tuple], bend: float = 0.05) -> _Tubes:
    """Bends branches (starts [n, 3], ends [n, 3], radius) into three pieces each."""
    start = np.concatenate([a for a, _, _ in generations])
    end = np.concatenate([b for _, b, _ in generations])
    radius = np.concatenate([np.broadcast_to(r, len(a)) for a, _, r in generations])
    length = np.linalg.norm(end - start, axis=1)[:, None]
    off = np.clip(rng.standard_normal((2, len(start), 3)), -2, 2) * (bend * length)
    one, two = start + (end - start) / 3 + off[0], start + (end - start) * 2 / 3 + off[1]
    starts, ends = np.concatenate([start, one, two]), np.concatenate([one, two, end])
    order = np.argsort(np.tile(radius, 3), kind="stable")
    return _Tubes(starts[order], ends[order], np.tile(radius, 3)[order])


def _add(lesion: _Lesion, z: float, fields: _Opacity) -> None:
    """Draws one lesion's cut at z into the lattice fields."""
    reach = _FAR * lesion.radii.max()
    low = np.clip(np.floor((lesion.centre - reach) * _LATTICE), 0, _LATTICE).astype(int)
    high = np.clip(np.ceil((lesion.centre + reach) * _LATTICE), 0, _LATTICE).astype(int)
    x, y = (
        (np.arange(low[i], high[i], dtype=np.float32) + 0.5) / _LATTICE - np.float32(centre)
        for i, centre in enumerate(lesion.centre)
    )
    cos, sin = np.cos(lesion.angle), np.sin(lesion.angle)
    u = (x * np.float32(cos / lesion.radii[0]))[None] + (y * np.float32(sin / lesion.radii[0]))[
        :, None
    ]
    v = (y * np.float32(cos / lesion.radii[1]))[:, None] - (x * np.float32(sin / lesion.radii[1]))[
        None
    ]
    up = (z - lesion.z) / lesion.reach
    distance = cv2.sqrt(u * u + v * v + np.float32(up * up))
    at = np.clip((up / _FAR + 1) / 2 * (_NOISE_Z - 1), 0, _NOISE_Z - 1.001)
    k, part = int(at), np.float32(at - int(at))
    plane = (1 - part) * lesion.noise[k] + part * lesion.noise[k + 1]
    # The noise belongs to the whole box, also where the film's border cuts it.
    step = np.float32((_NOISE - 1) / (2 * reach))
    map_x = np.broadcast_to((x + np.float32(reach)) * step, distance.shape)
    map_y = np.broadcast_to(((y + np.float32(reach)) * step)[:, None], distance.shape)
    noise = cv2.remap(
        plane,
        np.ascontiguousarray(map_x),
        np.ascontiguousarray(map_y),
        cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )
    noise = np.clip(noise, -_MOST_RAGGED, _MOST_RAGGED) * np.minimum(2 * distance, 1)
    opacity = _smooth((1 - distance + np.float32(_RAGGED) * noise) / np.float32(_RIMS[lesion.kind]))
    box = (slice(low[1], high[1]), slice(low[0], high[0]))
    solid = lesion.kind == CONSOLIDATION
    chosen = [fields.solid if solid else fields.haze]
    chosen += [fields.net] if lesion.net else []
    chosen += [fields.bronchograms] if solid and lesion.bronchograms else []
    for field in chosen:
        np.maximum(field[box], opacity, out=field[box])
    np.maximum(fields.filled[box], lesion.strength * opacity, out=fields.filled[box])


# ---------------------------------------------------------------------------------------------
# Drawing.
# ---------------------------------------------------------------------------------------------


def _draw(volume: _Volume, index: int, size: int, show_lesions: bool) -> Slice:
    z = float(volume.z[index])
    pen = _Pen(size, volume.pose)
    layer = volume.lung_layer(z)
    at_size = cv2.resize(layer, (size, size), interpolation=cv2.INTER_LINEAR)
    lungs = _sides(at_size >= 128, volume.pose)
    sick = volume.lesions_at(z)
    if sick is not None:
        opacity, lesion, kind = _truth(sick, lungs, size)
    else:
        opacity = np.zeros((size, size), np.float32)
        lesion, kind = np.zeros((2, size, size), np.uint8)

    hu = _tissue(pen, volume, z)
    air = _parenchyma(pen, volume, z, sick if show_lesions else None)
    # An enlarged lattice has wide edges: they are made as sharp as the picture can show.
    sharp = max(1.0, size / _LATTICE)
    share = cv2.LUT(at_size, _edge_table(sharp))
    air -= hu
    air *= share
    hu += air
    _airways(pen, volume, z, hu, share, sick if show_lesions else None)
    _outside(volume, hu, size)
    hu = _reconstruct(hu, volume, index, size)
    return Slice(hu, opacity, lungs, lesion, kind)


@functools.lru_cache(maxsize=64)
def _edge_table(sharp: float) -> np.ndarray:
    share = (np.arange(256, dtype=np.float32) - 127.5) / 255 * np.float32(sharp) + 0.5
    return np.clip(share, 0, 1)


def _sides(inside: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """uint8: 0 outside, 1 on the patient's right of the midline, 2 on the left."""
    n = len(inside)
    back = np.linalg.inv(np.concatenate([pose, [[0, 0, 1]]]))[0]
    at = (np.arange(n) + 0.5) / n
    left = (back[0] * at)[None] + (back[1] * at)[:, None] + back[2] > 0
    return (1 + left.astype(np.uint8)) * inside


def _truth(sick: _Opacity, lungs: np.ndarray, size: int):
    """opacity float32, lesion and lesion_type uint8 at the picture's size."""
    linear = cv2.INTER_LINEAR
    most = cv2.resize(np.maximum(sick.haze, sick.solid), (size, size), interpolation=linear)
    solid = cv2.resize(sick.solid, (size, size), interpolation=linear)
    most *= lungs > 0
    lesion = (most >= LESION_CUT).astype(np.uint8)
    return most, lesion, lesion * (1 + (solid >= LESION_CUT).astype(np.uint8))


def _code(hu: float) -> float:
    return (hu - _LOW_HU) / _STEP_HU


def _tissue(pen: _Pen, volume: _Volume, z: float) -> np.ndarray:
    """All that is not lung, HU float32 [size, size]."""
    layer = np.full((pen.size, pen.size), round(_code(_AIR)), np.uint8)

    def fill(outline, hu):
        pen.fill(layer, outline, _code(hu))

    width, depth, middle = _SKIN(z)
    _, _, cy, ry = _LUNG(z)
    front = min(cy - ry + 0.012, -0.13)
    _table(pen, volume, layer)
    _, sx, sy = _angles(80)
    extra = 0.030 * volume.fat
    skin = np.array([width + extra, depth + 0.8 * extra])
    background, body = layer.copy(), pen.layer()
    if volume.breast:
        b = volume.breast * float(_smooth((z - 0.22) / 0.2) * _smooth((0.85 - z) / 0.2))
        if b > 0.05:
            for sign in _SIDES:
                centre = np.array([sign * (0.19 + 0.02 * b), middle - depth + 0.060])
                breast = _ellipse(centre, (0.150, 0.055 + 0.055 * b), 48)
                pen.fill(body, breast)
                fill(breast, _FAT)
                fill(_ellipse(centre - [0, 0.03], (0.06 * b, 0.04 * b), 20), -20)
    round_skin = np.stack([skin[0] * sx, middle + skin[1] * sy], axis=1)
    pen.fill(body, round_skin)
    fill(round_skin, -10)
    fill(round_skin * (1 - 0.006 / skin), _FAT)
    _muscles(pen, volume, z, layer)
    for side in range(2):
        fill(volume.lung(side, z, grow=0.030, least=0.55), _MUSCLE)
    fill(_xy4(-0.10, 0.10, cy - 0.8 * ry, cy + ry + 0.03), _MUSCLE)
    for side in range(2):  # seen only where no lung covers it: under the diaphragm
        fill(volume.lung(side, z, grow=0.002, least=0.2), _LIVER if not side else _FAT)
    if z > volume.dome[1]:
        _left_abdomen(pen, volume, z, layer)
    outline = _closed(volume.mediastinum(z))
    fill(outline, _FAT)
    _great_vessels(pen, volume, z, layer)
    if z > volume.dome[0] + 0.04:
        share = float(_smooth((z - volume.dome[0] - 0.04) / 0.16))
        fill(_ellipse(np.array([-0.02, -0.085]), np.array([0.13, 0.10]) * share, 32), _LIVER)
    _bones(pen, volume, z, layer, front)
    np.copyto(layer, background, where=body < 128)  # nothing sticks out of the skin
    return cv2.LUT(layer, _HU_TABLE)


_HU_TABLE = np.arange(256, dtype=np.float32) * np.float32(_STEP_HU) + np.float32(_LOW_HU)


def _xy4(x0, x1, y0, y1) -> np.ndarray:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def _table(pen: _Pen, volume: _Volume, layer: np.ndarray) -> None:
    """The couch, two thin shells under the back; the same in every slice."""
    x = np.linspace(-0.62, 0.62, 24)
    top = 0.315 + 0.024 * volume.fat + volume.table - 0.20 * x**2
    shell = np.stack([x, top], axis=1)
    below = np.stack([x[::-1], top[::-1] + 0.055 * (1 - (x / 0.64) ** 2)], axis=1)
    pen.fill(layer, np.concatenate([shell, below]), _code(-925))
    pen.line(layer, shell, 0.006, _code(-420))
    pen.line(layer, below, 0.006, _code(-480))


def _muscles(pen: _Pen, volume: _Volume, z: float, layer: np.ndarray) -> None:
    """Muscles outside the ribs."""
    cx, rx, cy, ry = _LUNG(z)
    wall = cx + rx
    high = float(1 - _smooth((z - 0.30) / 0.30))
    chest = float(_smooth((z + 0.05) / 0.15) * (1 - _smooth((z - 0.45) / 0.2)))
    for side, sign in enumerate(_SIDES):

        def ellipse(x, y, a, b, degrees, sign=sign):
            t = np.deg2rad(degrees) * sign
            turn = np.array([[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]])
            shape = _ellipse(np.zeros(2), (a, b), 28) @ turn
            pen.fill(layer, shape + [sign * x, y], _code(_MUSCLE))

        ellipse(0.050, cy + ry + 0.035, 0.060, 0.032, 8)  # beside the spine
        if chest > 0.1:  # pectorals
            ellipse(0.62 * wall, cy - 0.93 * ry - 0.022, 0.135, 0.024 * chest, 22)
            ellipse(0.80 * wall, cy - 0.66 * ry - 0.020, 0.085, 0.016 * chest, 38)
        if high > 0.05:  # around the scapula
            x = 0.84 * wall + 0.035
            ellipse(x, cy + 0.80 * ry + 0.035, 0.105, 0.020 + 0.030 * high, -36)
            ellipse(x - 0.06, cy + ry + 0.042, 0.10, 0.016 + 0.012 * high, -20)
        # Serratus and latissimus follow the ribs.
        path = volume.lung(side, z, grow=0.041, least=0.6)[np.arange(-12, 15)]
        bulk = np.sin(np.linspace(0.1, np.pi - 0.1, 27)) ** 0.5
        pen.fill(layer, _ring(path, (0.006 + 0.005 * high) * bulk), _code(_MUSCLE))
        if z < 0.14:  # shoulder girdle
            share = float(_smooth((0.14 - z) / 0.12))
            ellipse(0.30, 0.04, 0.11 * share, 0.07 * share, -12)


def _great_vessels(pen: _Pen, volume: _Volume, z: float, layer: np.ndarray) -> None:
    """Heart, great vessels and oesophagus in the fat of the mediastinum."""

    def blob(x, y, a, b=None, hu=_BLOOD):
        if min(a, b or a) > 0.002:
            radii = (a, b or a)
            pen.fill(layer, _ellipse(np.array([x, y]), radii, 28), _code(hu))

    def rise(low, high, ramp=0.04):
        """0 outside low..high, 1 well inside."""
        return float(np.sqrt(_smooth((z - low) / ramp) * _smooth((high - z) / ramp)))

    r = volume.aorta
    blob(0.012, 0.075 + 0.02 * z, 0.013, 0.010, 38)  # oesophagus
    up = rise(-0.6, 0.28, 0.05)
    blob(-0.030, -0.045 + 0.1 * (z - 0.2), 0.016 * up, hu=_BLOOD)
    blob(0.032, -0.035 + 0.1 * (z - 0.2), 0.012 * up)
    blob(0.052 - 0.06 * z, 0.030, 0.012 * up)
    blob(-0.052 + 0.05 * z, -0.065, 0.016 * up, 0.013 * up)
    blob(0.044 - 0.1 * z, -0.082, 0.016 * up, 0.012 * up)
    arch = rise(0.24, 0.36, 0.035)
    if arch > 0.1:
        path = np.array([[-0.018, -0.075], [0.018, -0.055], [0.046, -0.01], [0.054, 0.06]])
        pen.fill(layer, _ring(path, 0.027 * r * arch), _code(_BLOOD))
    ascending = rise(0.30, 0.66, 0.05)
    blob(-0.022, -0.078 + 0.03 * (z - 0.3), 0.034 * r * ascending)
    if z > 0.28:
        down = rise(0.28, 9.0, 0.03)
        x = 0.054 - 0.035 * float(_smooth((z - 0.5) / 0.5))
        blob(x, 0.085 + 0.02 * z, 0.026 * r * down)
    cava = rise(0.16, 0.62, 0.04)
    blob(-0.045, -0.050 + 0.02 * z, 0.019 * cava, 0.016 * cava)
    trunk = rise(0.40, 0.60, 0.05)
    blob(0.040, -0.080, 0.032 * trunk)
    right = rise(0.44, 0.545, 0.03)
    if right > 0.1:
        path = np.array([[0.035, -0.065], [0.0, -0.030], [-0.045, -0.018], [-0.092, -0.004]])
        pen.fill(layer, _ring(path, 0.020 * right), _code(_BLOOD))
    left = rise(0.41, 0.515, 0.03)
    if left > 0.1:
        path = np.array([[0.040, -0.070], [0.070, -0.030], [0.090, 0.020]])
        pen.fill(layer, _ring(path, 0.019 * left), _code(_BLOOD))
    heart = rise(0.54, 1.10, 0.05)
    if heart > 0.2:
        points = volume.mediastinum(z)[[0, 1, 2, 3, 4, 9, 10, 11]]
        points[[0, 1], 1] += 0.030
        points[[4, 5], 1] = np.minimum(points[[4, 5], 1], 0.062)
        points[4, 0] -= 0.020
        middle = points.mean(axis=0)
        pen.fill(layer, _closed(middle + (points - middle) * 0.95 * heart), _code(_BLOOD))


def _left_abdomen(pen: _Pen, volume: _Volume, z: float, layer: np.ndarray) -> None:
    """Spleen and stomach, with its gas on top, where the left dome is open."""
    share = float(_smooth((z - volume.dome[1]) / 0.14))
    x, y, gas = volume.stomach
    cx = _LUNG(z)[0]
    pen.fill(
        layer,
        _ellipse(np.array([cx + 0.075, 0.075]), np.array([0.075, 0.10]) * share, 32),
        _code(48),
    )
    centre = np.array([cx - 0.02 + 0.3 * x, y + 0.02])
    radii = np.array([0.095, 0.085]) * share
    pen.fill(layer, _ellipse(centre, radii, 32), _code(35))
    if gas > 0.5 and share > 0.2:
        stomach = _ellipse(centre, radii * 0.90, 48)
        level = centre[1] - radii[1] * (0.9 - 1.1 * (gas - 0.5))
        stomach[:, 1] = np.minimum(stomach[:, 1], level)
        pen.fill(layer, stomach, _code(-960))


def _bones(pen: _Pen, volume: _Volume, z: float, layer: np.ndarray, front: float) -> None:
    bone = _code(_BONE)
    y = float(_VERTEBRA_Y(z))
    # Vertebra: bodies and discs in turn, canal, arch.
    phase = np.cos(2 * np.pi * 13 * z + volume.disc)
    pen.fill(
        layer, _ellipse(np.array([0, y]), (0.043, 0.034), 28), _code(150 + 160 * max(phase, 0))
    )
    pen.line(layer, np.concatenate([_ellipse(np.array([0, y]), (0.043, 0.034), 28)]), 0.006, bone)
    for sign in _SIDES:
        pen.fill(
            layer,
            _ring(np.array([[sign * 0.03, y + 0.025], [sign * 0.028, y + 0.065]]), 0.009),
            bone,
        )
        tip = np.array([sign * 0.088, y + 0.072])
        pen.fill(layer, _ring(np.array([[sign * 0.022, y + 0.058], tip]), [0.012, 0.007]), bone)
        pen.fill(layer, _ring(np.array([[sign * 0.024, y + 0.060], [0, y + 0.082]]), 0.008), bone)
    pen.fill(layer, _ring(np.array([[0, y + 0.075], [0, y + 0.122]]), [0.009, 0.006]), bone)
    pen.fill(layer, _ellipse(np.array([0, y + 0.050]), (0.020, 0.017), 20), _code(25))
    # Sternum and the medial ends of the clavicles.
    high = float(_smooth((z - 0.10) / 0.05) * _smooth((0.72 - z) / 0.06))
    if high > 0.1:
        wide = 0.052 - 0.020 * float(_smooth((z - 0.15) / 0.15))
        pen.fill(
            layer, _ellipse(np.array([0, front - 0.020]), (wide * high, 0.015 * high), 24), bone
        )
        pen.fill(
            layer,
            _ellipse(np.array([0, front - 0.020]), (0.75 * wide * high, 0.009), 24),
            _code(120),
        )
    if z < 0.15:
        at = (0.13 - z) / 0.16
        for sign in _SIDES:
            start = np.array([sign * (0.045 + 0.10 * at), -0.155 + 0.02 * at])
            pen.fill(layer, _ring(np.stack([start, start + [sign * 0.11, 0.045]]), 0.014), bone)
    # Ribs: bands that fall from back to front; a slice cuts each of them aslant.
    u = np.linspace(0, 1, 72)
    cx, rx, cy, ry = _LUNG(z)
    x, yy = _superellipse(np.deg2rad(118 - 200 * u))
    for side, sign in enumerate(_SIDES):
        share = max(0.62, np.sqrt(1 - (1 - np.clip((z - volume.apex[side]) / 0.2, 0, 1)) ** 2))
        wall = np.stack(
            [sign * (cx + (rx * share + 0.015) * x), cy + (ry * share + 0.015) * yy], axis=1
        )
        height = volume.rib_start[side][:, None] + volume.rib_drop * (1 - np.cos(np.pi * u)) / 2
        off = np.abs(z - height) / 0.0165
        end = 0.95 - 0.06 * np.maximum(np.arange(13) - 7, 0)[:, None]
        seen = (off < 1) & (u < end)
        segments = np.stack([wall[:-1], wall[1:]], axis=1)
        for least, value in ((0.8, 0.55), (0.5, 0.8), (0.0, 1.0)):
            chosen = (seen[:, :-1] & (off[:, :-1] >= least)).any(axis=0)
            if chosen.any():
                thick = 2 * volume.rib_width * (0.6 + 0.4 * value)
                pen.line(layer, segments[chosen], thick, _code(_MUSCLE + value * (_BONE - _MUSCLE)))
        _scapula(pen, volume, z, layer, side)


def _scapula(pen: _Pen, volume: _Volume, z: float, layer: np.ndarray, side: int) -> None:
    if z > 0.56:
        return
    sign, bone = _SIDES[side], _code(_BONE)
    cx, rx, cy, ry = _LUNG(max(z, 0.1))
    t = float(np.clip(z / 0.55, 0, 1))
    inner = np.array(
        [0.70 * (cx + rx) + 0.05 * t, cy + 0.93 * ry + 0.038 + volume.scapula[0] * 0.4]
    )
    outer = np.array([0.385 - 0.05 * t, cy + 0.30 * ry + 0.06 * t + volume.scapula[1] * 0.5])
    end = inner + (outer - inner) * (1 - 0.7 * t**2)
    path = np.stack([inner, (inner + end) / 2 + [0.008, 0.006], end]) * [sign, 1]
    pen.fill(layer, _ring(path, np.array([0.006, 0.007, 0.012]) * (1 - 0.35 * t)), bone)
    if z < 0.16:  # spine of the scapula, head of the humerus
        root = (inner + end) / 2
        tip = root + [0.03, 0.062]
        pen.fill(layer, _ring(np.stack([root, tip]) * [sign, 1], [0.009, 0.006]), bone)


def _parenchyma(pen: _Pen, volume: _Volume, z: float, sick: _Opacity | None) -> np.ndarray:
    """What the lungs would look like if they filled the picture, HU float32 [size, size]."""
    size = pen.size
    at = (np.arange(_COARSE, dtype=np.float32) + 0.5) / _COARSE
    back = np.linalg.inv(np.concatenate([volume.pose, [[0, 0, 1]]])).astype(np.float32)
    x = (back[0, 0] * at)[None] + (back[0, 1] * at)[:, None] + back[0, 2]
    y = (back[1, 0] * at)[None] + (back[1, 1] * at)[:, None] + back[1, 2]
    cx, rx, cy, ry = (np.float32(v) for v in _LUNG(z))
    across = np.clip(np.abs((np.abs(x) - cx) / rx), 0, 0.98)
    bottom = cy + ry * (1 - across**_LUNG_POWER) ** (1 / _LUNG_POWER)
    mosaic = cv2.resize(volume.field(0, z, 9.0), (_COARSE, _COARSE), interpolation=cv2.INTER_CUBIC)
    ragged = cv2.resize(volume.field(1, z, 16.0), (_COARSE, _COARSE), interpolation=cv2.INTER_CUBIC)
    near = np.exp(-np.maximum(bottom - y, 0) / np.float32(volume.dependent_depth))
    hu = volume.air_hu + volume.gradient_hu * (y / 0.4) + volume.mosaic_hu * mosaic
    hu += volume.dependent_hu * near * np.clip(0.75 + 0.45 * ragged, 0, 1.6)
    hu = cv2.resize(hu.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)

    dome = pen.layer(128)  # partial volume: the dome of the diaphragm is in part of the slab
    for part, value in ((1.0, 60), (0.5, 120)):
        for side in range(2):
            shape = volume.diaphragm(side, z + part * 1.4 * volume.slab)
            if shape is not None:
                pen.fill(dome, shape, value)
    if dome.any():
        _mix(hu, 40, cv2.resize(dome, (size, size)).astype(np.float32) / 255)

    if sick is not None:
        _mix(hu, 35, _filling(volume, z, sick, size))
    _fissures(pen, volume, z, hu)
    blood = _cut(pen, volume.blood, z, volume.slab, scale=volume.vessels)
    _mix(hu, 40, pen.shadow(blood))
    return hu


def _filling(volume: _Volume, z: float, sick: _Opacity, size: int) -> np.ndarray:
    """Share of the air that lesions fill, with their textures."""
    grain = np.cos(40 * z) * volume.grain[0] + np.sin(40 * z) * volume.grain[1]
    grain = cv2.resize(grain, (_LATTICE, _LATTICE), interpolation=cv2.INTER_CUBIC)
    filled = sick.filled * np.clip(1 + 0.22 * grain * (1 - sick.solid), 0.4, 1.6)
    filled = cv2.resize(np.minimum(filled, 1), (size, size), interpolation=cv2.INTER_LINEAR)
    if sick.net.any():
        net = cv2.resize(_net(volume, z), (size, size), interpolation=cv2.INTER_AREA)
        share = cv2.resize(sick.net, (size, size), interpolation=cv2.INTER_LINEAR)
        share *= net
        share *= 1 - filled
        filled += 0.48 * share
    return filled


def _net(volume: _Volume, z: float) -> np.ndarray:
    """Septa: the edges between the cells of points that drift with z, 0..1, [512, 512]."""
    n, count = 2 * _LATTICE, volume.seeds.shape[1]
    grid = (np.arange(count) + 0.5) * n / count
    drift = 0.42 * n / count * np.cos(volume.seeds + 30 * z)
    x = np.clip(np.rint(grid[None] + drift[0]), 0, n - 1).astype(int)
    y = np.clip(np.rint(grid[:, None] + drift[1]), 0, n - 1).astype(int)
    points = np.ones((n, n), np.uint8)
    points[y, x] = 0
    _, cell = cv2.distanceTransformWithLabels(points, cv2.DIST_L2, 3)
    cell = cell.astype(np.float32)
    edge = cv2.morphologyEx(cell, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0
    return cv2.GaussianBlur(edge.astype(np.float32), (0, 0), 0.6)


def _mix(hu: np.ndarray, target: float, share: np.ndarray) -> None:
    """Moves `hu` towards `target` by `share` of the way, in place."""
    hu += share * (np.float32(target) - hu)


def _fissures(pen: _Pen, volume: _Volume, z: float, hu: np.ndarray) -> None:
    """The great fissures, in place: faint lines that move forward from slice to slice."""
    cx, rx = _LUNG(z)[:2]
    layer = pen.fine_layer()
    for side, sign in enumerate(_SIDES):
        if not volume.fissure[side] or not 0.2 < z < 0.9:
            continue
        x = np.linspace(0.05, cx + rx, 12)
        y = (
            0.105
            - 0.40 * (z - 0.25)
            + volume.fissure_at[side]
            + 0.30 * (x - 0.2)
            - 1.1 * (x - 0.2) ** 2
        )
        pen.line(layer, np.stack([sign * x, y], axis=1), 0.0035, 110 * volume.fissure[side])
    if layer.any():
        _mix(hu, -300, pen.shadow(layer, 0.0012))


def _cut(pen: _Pen, tubes: _Tubes, z: float, slab: float, scale: float = 1.0, grow: float = 0.0):
    """Fine layer of the tubes between z - slab and z + slab; radii scaled, then `grow` wider."""
    start, end, radius = tubes
    reach = slab + 0.7 * radius / _HEIGHT
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


def _airways(
    pen: _Pen, volume: _Volume, z: float, hu: np.ndarray, lung: np.ndarray, sick: _Opacity | None
) -> None:
    """Trachea, bronchi and air bronchograms: bright walls, dark lumina; in place."""
    airways, small = volume.airways
    wall = pen.shadow(_cut(pen, airways, z, volume.slab, grow=0.0017))
    _mix(hu, 0, 0.8 * wall)
    lumen = pen.shadow(_cut(pen, airways, z, volume.slab))
    _mix(hu, -980, 0.97 * lumen)
    if z < 0.42:
        at = np.array([np.interp(z, _TRACHEA[:, 2], _TRACHEA[:, k]) for k in range(2)])
        open_ = float(_smooth((0.42 - z) / 0.03))
        wide = 0.021 + 0.012 * float(_smooth((z - 0.34) / 0.06))
        for grow, target in ((0.003, 30), (0.0, -990)):
            layer = pen.layer()
            pen.fill(layer, _ellipse(at, (wide + grow, (0.019 + grow) * open_), 28))
            _mix(hu, target, pen.shadow(layer))
    if sick is not None and sick.bronchograms.any():
        open_ = pen.shadow(_cut(pen, small, z, 1.5 * volume.slab, scale=1.5))
        solid = cv2.resize(sick.bronchograms, (pen.size, pen.size), interpolation=cv2.INTER_LINEAR)
        _mix(hu, -900, 0.85 * open_ * solid * lung)


def _outside(volume: _Volume, hu: np.ndarray, size: int) -> None:
    """Some scanners show a round field of view, black outside."""
    if volume.round_view:
        layer = np.zeros((size, size), np.uint8)
        cv2.circle(layer, (size * 8, size * 8), int(size * 8.1), 1, -1, cv2.LINE_8, 4)
        hu[layer == 0] = -2000


def _reconstruct(hu: np.ndarray, volume: _Volume, index: int, size: int) -> np.ndarray:
    """The kernel's blur or sharpness, and its noise."""
    hu = cv2.GaussianBlur(hu, (0, 0), max(volume.kernel * size / 256, 0.3))
    if volume.sharpen > 0.1:
        soft = cv2.GaussianBlur(hu, (0, 0), 1.6 * size / 256)
        hu = cv2.addWeighted(hu, 1 + volume.sharpen, soft, -volume.sharpen, 0)
    rng = np.random.default_rng([volume.seed, volume.number, 2, index])
    grain = _grain(rng, size)
    blur = 0.45 + 0.9 * volume.kernel * size / 256
    grain = cv2.GaussianBlur(grain, (0, 0), blur)
    grain *= np.float32(volume.noise_hu * 2 * np.sqrt(np.pi) * blur * np.sqrt(min(size / 256, 1.4)))
    hu += grain
    return hu
