"""Lesions of one CT volume: where they lie, their opacity at each height and their exact masks.

Each lesion is an ellipsoid with a ragged edge (a smooth random field in space), clipped to the
lungs, more often low, at the back and near the pleura. COVID-19 has one to six, most of them ground
glass; another infection is one large consolidation without ground glass, as in lobar pneumonia.
"""

import dataclasses
from typing import NamedTuple

import cv2
import numpy as np

from cxr_jax.data.phantoms.ct_anatomy import HEIGHT, LATTICE, Thorax
from cxr_jax.data.phantoms.drawing import smoothstep

# A lesion ends where its opacity falls under this share of its peak.
LESION_CUT = 0.35
# A slice has a lesion where this square of cells fits in. It holds the four neighbours of some
# pixel centre at every size from MIN_SIZE on.
_BLOCK = np.ones((5, 5), np.uint8)
_COARSE = 64  # cells a side, for placing lesions

GROUND_GLASS, CONSOLIDATION = 1, 2

_NOISE_Z, _NOISE = 7, 9
_RAGGED, _MOST_RAGGED = 0.42, 1.3  # by how much noise moves a lesion's edge, in radii and sigmas
_FAR = 1 + _RAGGED * _MOST_RAGGED + 0.01  # beyond this many radii a lesion has no opacity
_RIMS = {GROUND_GLASS: 0.45, CONSOLIDATION: 0.38}  # how wide they are, in radii


@dataclasses.dataclass
class Lesion:
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


class Opacity(NamedTuple):
    """The lesions of one slice, float32 [LATTICE, LATTICE] each."""

    haze: np.ndarray  # opacity of ground glass, 1 at its peak
    solid: np.ndarray  # opacity of consolidation, 1 at its peak
    filled: np.ndarray  # share of the air that is filled
    net: np.ndarray  # opacity of crazy paving
    bronchograms: np.ndarray  # opacity of consolidation with open airways


def choose_lesions(thorax: Thorax, rng: np.random.Generator, disease_extent: float) -> list[Lesion]:
    """One to six lesions; at least the first is seen in its slice."""
    count = 1 + int(rng.choice(6, p=[0.16, 0.20, 0.22, 0.18, 0.14, 0.10]))
    lesions = []
    for k in range(count):
        lesion, halo = _choose_lesion(
            thorax, rng, most=0.095 if k else np.inf, disease_extent=disease_extent
        )
        lesions += [halo, lesion] if halo else [lesion]
        if not k:  # the first one is seen for certain
            _grow_until_seen(lesions, lesion, thorax)
    return lesions


def choose_lobar(thorax: Thorax, rng: np.random.Generator, disease_extent: float) -> list[Lesion]:
    """One consolidation of a large part of a lung, its airways open; seen in its slice."""
    centre, z, angle = _place(thorax, rng)
    size = rng.uniform(0.085, 0.15) * (1 + disease_extent)
    stretch = rng.uniform(1.0, 1.5)
    lesion = Lesion(
        kind=CONSOLIDATION,
        centre=centre,
        z=z,
        radii=size * np.array([stretch, 1 / stretch]),
        reach=float(size * rng.uniform(0.9, 1.7) / HEIGHT),
        angle=angle,
        strength=rng.uniform(0.86, 0.99),
        noise=rng.standard_normal((_NOISE_Z, _NOISE, _NOISE)).astype(np.float32),
        bronchograms=True,
    )
    _grow_until_seen([lesion], lesion, thorax)
    return [lesion]


def _grow_until_seen(lesions: list[Lesion], lesion: Lesion, thorax: Thorax) -> None:
    """At the size that was drawn it nearly always is."""
    while opacity_at(lesions, thorax, lesion.z) is None:
        lesion.radii, lesion.reach = 1.15 * lesion.radii, 1.15 * lesion.reach


def _choose_lesion(
    thorax: Thorax, rng: np.random.Generator, *, most: float, disease_extent: float
) -> tuple[Lesion, Lesion | None]:
    """A lesion of a size up to `most`, and a halo of ground glass or None."""
    kind, large = rng.random(2)
    grown = rng.uniform([0.030, 0.048, 0.080], [0.048, 0.080, 0.190])
    size = min(float(grown[np.searchsorted([0.45, 0.86], large)]), most)
    size *= 1 + disease_extent
    centre, z, angle = _place(thorax, rng)
    stretch = rng.uniform(1.0, 1.5)
    noise = rng.standard_normal((2, _NOISE_Z, _NOISE, _NOISE)).astype(np.float32)
    lesion = Lesion(
        kind=CONSOLIDATION if kind > 0.68 else GROUND_GLASS,
        centre=centre,
        z=z,
        radii=size * np.array([stretch, 1 / stretch]),
        reach=float(size * rng.uniform(0.9, 1.7) / HEIGHT),
        angle=angle,
        strength=rng.uniform(0.20, 0.36),
        noise=noise[0],
        net=bool(0.42 < kind <= 0.68),
        bronchograms=bool(rng.random() < 0.5 and size > 0.04),
    )
    has_halo = rng.random() < 0.6
    if lesion.kind == GROUND_GLASS:
        if lesion.net:
            lesion.strength *= 0.9
        return lesion, None
    halo = dataclasses.replace(
        lesion,
        kind=GROUND_GLASS,
        radii=1.35 * lesion.radii,
        reach=1.25 * lesion.reach,
        noise=noise[1],
        bronchograms=False,
    )
    lesion.radii = 0.85 * lesion.radii
    lesion.strength = 0.86 + 0.8 * (lesion.strength - 0.20)
    return lesion, halo if has_halo else None


def _place(thorax: Thorax, rng: np.random.Generator) -> tuple[np.ndarray, float, float]:
    """Where a lesion lies: low, at the back, near the pleura, for the most part.

    Returns:
      Centre in the film's frame, its slice's z, and the angle along the pleura.
    """
    at = thorax.z[(thorax.z > 0.10) & (thorax.z < 0.95)]
    weights = (at - 0.02) ** 1.3 * (1.05 - at) ** 0.5
    for z in rng.choice(at, len(at), replace=False, p=weights / weights.sum()):
        layer = thorax.lung_layer(z, _COARSE)
        mask = (layer > 200).astype(np.uint8)
        depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
        if depth.max() >= 2.5:
            break
    rows = np.arange(_COARSE)[:, None] / _COARSE
    share = np.exp(-depth / 2.2) + 0.12
    share = share * mask * (0.25 + smoothstep((rows - 0.40) / 0.25)) * (depth > 0.9)
    total = np.cumsum(share.ravel())
    cell = int(np.searchsorted(total, rng.random() * total[-1]))
    row, column = divmod(min(cell, total.size - 1), _COARSE)
    centre = (np.array([column, row]) + 0.5) / _COARSE
    half = np.arange(_COARSE) // (_COARSE // 2)
    x, y, w, h = cv2.boundingRect(mask * (half == half[column]).astype(np.uint8))  # this lung
    out = centre * _COARSE - [x + w / 2, y + h / 2]
    return centre, float(z), float(np.arctan2(out[0] * h, -out[1] * w))


def opacity_at(lesions: list[Lesion], thorax: Thorax, z: float) -> Opacity | None:
    """Opacity of the lesions that cut z; None where the lattice holds no full block of one."""
    near = [lesion for lesion in lesions if abs(z - lesion.z) < _FAR * lesion.reach]
    if not near:
        return None
    fields = Opacity(*np.zeros((5, LATTICE, LATTICE), np.float32))
    for lesion in near:
        _add(lesion, z, fields)
    most = np.maximum(fields.haze, fields.solid)
    mask = (most > LESION_CUT + 1e-3) & (thorax.lung_layer(z) > 128)
    if not cv2.erode(mask.view(np.uint8), _BLOCK, borderValue=0).any():
        return None
    return fields


def _add(lesion: Lesion, z: float, fields: Opacity) -> None:
    """Draws one lesion's cut at z into the lattice fields."""
    reach = _FAR * lesion.radii.max()
    low = np.clip(np.floor((lesion.centre - reach) * LATTICE), 0, LATTICE).astype(int)
    high = np.clip(np.ceil((lesion.centre + reach) * LATTICE), 0, LATTICE).astype(int)
    x, y = (
        (np.arange(low[i], high[i], dtype=np.float32) + 0.5) / LATTICE - np.float32(centre)
        for i, centre in enumerate(lesion.centre)
    )
    cos, sin = np.cos(lesion.angle), np.sin(lesion.angle)
    along, across = lesion.radii
    u = (x * np.float32(cos / along))[None] + (y * np.float32(sin / along))[:, None]
    v = (y * np.float32(cos / across))[:, None] - (x * np.float32(sin / across))[None]
    up = (z - lesion.z) / lesion.reach
    distance = cv2.sqrt(u * u + v * v + np.float32(up * up))
    noise = _edge_noise(lesion, up, x=x + np.float32(reach), y=y + np.float32(reach), reach=reach)
    noise = np.clip(noise, -_MOST_RAGGED, _MOST_RAGGED) * np.minimum(2 * distance, 1)
    edge = 1 - distance + np.float32(_RAGGED) * noise
    opacity = smoothstep(edge / np.float32(_RIMS[lesion.kind]))
    box = (slice(low[1], high[1]), slice(low[0], high[0]))
    solid = lesion.kind == CONSOLIDATION
    chosen = [fields.solid if solid else fields.haze]
    chosen += [fields.net] if lesion.net else []
    chosen += [fields.bronchograms] if solid and lesion.bronchograms else []
    for field in chosen:
        np.maximum(field[box], opacity, out=field[box])
    np.maximum(fields.filled[box], lesion.strength * opacity, out=fields.filled[box])


def _edge_noise(
    lesion: Lesion, up: float, *, x: np.ndarray, y: np.ndarray, reach: float
) -> np.ndarray:
    """The lesion's noise float32 [y, x] at `up` radii above its middle.

    `x` and `y` run from 0 to 2 * reach over the whole box of the lesion, to which the noise
    belongs, also where the film's border cuts it.
    """
    at = np.clip((up / _FAR + 1) / 2 * (_NOISE_Z - 1), 0, _NOISE_Z - 1.001)
    k, part = int(at), np.float32(at - int(at))
    plane = (1 - part) * lesion.noise[k] + part * lesion.noise[k + 1]
    step, shape = np.float32((_NOISE - 1) / (2 * reach)), (len(y), len(x))
    return cv2.remap(
        plane,
        np.ascontiguousarray(np.broadcast_to(x * step, shape)),
        np.ascontiguousarray(np.broadcast_to((y * step)[:, None], shape)),
        cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )


def lesion_truth(
    sick: Opacity | None, lungs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """opacity float32, lesion and lesion_type uint8, [size, size] as the mask of the lungs."""
    if sick is None:
        return np.zeros(lungs.shape, np.float32), *np.zeros((2, *lungs.shape), np.uint8)
    linear = cv2.INTER_LINEAR
    most = cv2.resize(np.maximum(sick.haze, sick.solid), lungs.shape, interpolation=linear)
    solid = cv2.resize(sick.solid, lungs.shape, interpolation=linear)
    most *= lungs > 0
    lesion = (most >= LESION_CUT).astype(np.uint8)
    return most, lesion, lesion * (1 + (solid >= LESION_CUT).astype(np.uint8))
