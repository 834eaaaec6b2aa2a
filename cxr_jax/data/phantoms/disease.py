"""Opacities of the lungs, by infection and edema: where they lie, their exact masks and severity.

An opacity is a smooth field 0..1 on the lattice: the threshold of a random field that says where
the disease prefers to lie. It is brought to the film's size, kept to the zones it was meant for,
and cut to a mask.
"""

import dataclasses

import cv2
import numpy as np

from cxr_jax.data.phantoms.anatomy import SIDES, Chest, lung_labels, lung_zones
from cxr_jax.data.phantoms.drawing import Pen, smoothstep
from cxr_jax.data.phantoms.lattice import LATTICE, Texture, resized
from cxr_jax.data.phantoms.signs import pleural_air

# Burdens from which a zone scores 2 and 3.
SEVERITY_CUTS = (0.3, 0.6)
# A lesion ends where its opacity falls under this share of its peak.
LESION_CUT = 0.35
# A positive zone whose lesion covers less than this share of it is cleared: no spill, no doubt.
LEAST_COVER = 0.04

GROUND_GLASS, CONSOLIDATION = 1, 2


@dataclasses.dataclass
class Opacities:
    """Opacity of the lungs of one film: `haze`, `solid` are the shares of the air that are filled.

    Attributes:
      haze, solid: float32 [size, size], of ground glass and of consolidation.
      kind: uint8 [size, size], index into LESION_TYPES.
      infection, edema: bool [size, size], masks by cause.
      severity: int8 [3, 2].
    """

    haze: np.ndarray
    solid: np.ndarray
    kind: np.ndarray
    infection: np.ndarray
    edema: np.ndarray
    severity: np.ndarray


def lung_opacities(
    pen: Pen, chest: Chest, *, wall: np.ndarray, zones: np.ndarray, texture: Texture
) -> Opacities:
    """Opacity fields and their exact masks at the film's size.

    Args:
      pen: of the film.
      chest: what is filmed.
      wall: distance to the chest wall on the lattice, of `wall_distance`.
      zones: of `lung_zones`, uint8 [size, size].
      texture: random fields of the film.
    """
    shape, visit = zones.shape, chest.visit
    haze = solid = np.zeros(shape, np.float32)
    kind, infection = np.zeros(shape, np.uint8), np.zeros(shape, bool)
    edema, severity = infection, np.zeros((3, 2), np.int8)
    infected = visit.infection.positive.any()
    if infected or visit.edema:
        lungs = _Lungs(pen, chest, zones=zones, texture=texture)
        if infected:
            liking = _infection_liking(pen, chest, wall=wall, texture=texture)
            haze, solid, kind = _infect(lungs, chest, liking)
            infection = kind > 0
        if visit.edema:
            field, edema = _edema(lungs, chest, _edema_liking(pen, chest, texture))
            haze = np.maximum(haze, 0.34 * field)
            kind = np.maximum(kind, edema.astype(np.uint8))
        severity = lungs.severity(kind)
    return Opacities(
        haze=haze, solid=solid, kind=kind, infection=infection, edema=edema, severity=severity
    )


class _Lungs:
    """Where opacities can lie on one film: its zones, at the film's size and on the lattice."""

    def __init__(self, pen: Pen, chest: Chest, *, zones: np.ndarray, texture: Texture):
        self.zones, self.texture = zones, texture
        self.pixels = np.maximum(_count(zones, 7), 1)
        # Not by resizing: the same for any size.
        self.small = lung_zones(lung_labels(pen, chest, LATTICE))
        self.barred = np.zeros((LATTICE, LATTICE), bool)
        if chest.visit.pneumothorax is not None:  # there is no lung in the pleural air
            layer = pen.layer(LATTICE)
            pen.fill(layer, pleural_air(chest)[0])
            self.barred = layer > 60

    def opacities(self, liking: np.ndarray, covers: list[np.ndarray], soft: float) -> list:
        """Opacities 0..1 on the lattice, one for each of `covers`.

        The threshold of each positive zone is the quantile of `liking` that covers the wanted
        share, covers[i][z, s], of it; between neighbouring positive zones it runs smoothly.
        Towards a zone that is to stay free the opacity is tapered to exactly 0.
        """
        zones = self.small
        free = np.append(False, covers[0].ravel() == 0)[zones]
        gap = cv2.distanceTransform((~free).astype(np.uint8), cv2.DIST_L2, 3) / np.float32(LATTICE)
        taper = smoothstep((gap - 0.012 - 0.012 * np.abs(self.texture.mid)) / 0.05) * ~self.barred
        liking = liking - 4.0 * (1 - taper)
        left = np.flatnonzero(((zones > 0) & (zones % 2 == 0)).any(axis=0))
        right = np.flatnonzero((zones % 2 == 1).any(axis=0))
        middle = (right[-1] + left[0] + 1) // 2
        fields = []
        for cover in covers:
            field = np.zeros_like(liking)
            for s, columns in enumerate((slice(0, middle), slice(middle, None))):
                level = _threshold(liking, zones, cover=cover[:, s], side=s)
                if level is not None:
                    # smoothstep(0.4) is 0.352: LESION_CUT covers what was asked for.
                    rise = (liking[:, columns] - level) / np.float32(soft)
                    field[:, columns] = smoothstep(rise + 0.4)
            fields.append(cv2.GaussianBlur(field, (0, 0), 1.0) * taper)
        return fields

    def within(self, field: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Brings `field` to the film's size, keeps it to the `wanted` [3, 2] zones that it covers
        well, and cuts its mask."""
        field = resized(field, len(self.zones))
        mask = (field >= LESION_CUT) & self._in_zones(wanted)
        cover = _count(self.zones, 7, mask)[1:] / self.pixels[1:]
        kept = self._in_zones(cover >= LEAST_COVER)
        return field * kept, mask & kept

    def _in_zones(self, chosen: np.ndarray) -> np.ndarray:
        """bool [size, size]: the pixel's zone is among `chosen`, bool [3, 2] or [6]."""
        table = np.zeros(256, np.uint8)
        table[1:7] = chosen.ravel()
        return cv2.LUT(self.zones, table).view(bool)

    def severity(self, kind: np.ndarray) -> np.ndarray:
        """int8 [3, 2]: scores of the zones from the mask of lesion types."""
        counts = _count(self.zones + 8 * kind, 24)
        burden = (counts[9:15] + 2 * counts[17:23]) / self.pixels[1:7]
        score = 1 + np.searchsorted(SEVERITY_CUTS, burden, side="right")
        return np.where(burden > 0, score, 0).reshape(3, 2).astype(np.int8)


def _count(field: np.ndarray, n: int, mask: np.ndarray | None = None) -> np.ndarray:
    """How often each of 0..n-1 occurs in a uint8 field (under a mask); float32 [n], exact."""
    mask = None if mask is None else mask.view(np.uint8)
    return cv2.calcHist([field], [0], mask, [n], [0, n]).ravel()


def _threshold(
    liking: np.ndarray, zones: np.ndarray, *, cover: np.ndarray, side: int
) -> np.ndarray | None:
    """float32 [LATTICE, 1]: of each row, the liking from which the share `cover` [3] of one lung's
    zones is taken; None where that is nothing."""
    rows = np.full(LATTICE, np.nan, np.float32)
    for z in np.flatnonzero(cover > 0):
        inside = zones == 1 + 2 * z + side
        values = liking[inside]
        if len(values):
            rank = int((1 - cover[z]) * (len(values) - 1))
            rows[inside.any(axis=1)] = np.partition(values, rank)[rank]
    known = np.flatnonzero(~np.isnan(rows))
    if not len(known):
        return None
    level = np.interp(np.arange(LATTICE), known, rows[known])
    level = np.convolve(np.pad(level, 4, mode="edge"), np.full(9, 1 / 9), "valid")
    return level.astype(np.float32)[:, None]


def _infect(lungs: _Lungs, chest: Chest, liking: np.ndarray) -> tuple:
    """(haze, solid, kind) of the infection, each [size, size]."""
    infection = chest.visit.infection
    cover = infection.cover
    field, core = lungs.opacities(liking, [cover, cover * infection.dense], infection.soft)
    field, mask = lungs.within(field, cover > 0)
    core = resized(core, len(mask)) * mask
    consolidated = core >= 0.5
    if np.count_nonzero(consolidated) < 0.0008 * mask.size:
        core = core * 0  # too little to be called so
        consolidated = core > 0
    kind = mask.astype(np.uint8) + consolidated
    return infection.filling * field, infection.solid_filling * core, kind


def _edema(lungs: _Lungs, chest: Chest, liking: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(opacity 0..1, mask) of the edema, each [size, size]."""
    visit = chest.visit
    amount = np.array([[0.5 * visit.edema_upper], [1.0], [0.8]]) * visit.edema_amount
    cover = np.repeat(amount, 2, axis=1)
    return lungs.within(lungs.opacities(liking, [cover], 1.3)[0], cover > 0)


def _infection_liking(pen: Pen, chest: Chest, *, wall: np.ndarray, texture: Texture) -> np.ndarray:
    """Where the infection prefers to lie, on the lattice; higher is likelier.

    It seldom lies behind the heart, where no reader could see it.
    """
    heart = pen.layer(LATTICE)
    pen.fill(heart, chest.heart)
    hidden = -1.5 * pen.shadow(heart, 0.02)
    infection = chest.visit.infection
    if infection.style == "patchy":
        periphery = np.exp(-((wall / 0.085) ** 2))
        return (
            hidden
            + 1.5 * periphery
            + 0.9 * texture.patch
            + 0.25 * texture.mid
            + 0.4 * texture.broad
        )
    centres = []
    for s, (_, sign) in enumerate(SIDES):
        rows = np.flatnonzero(infection.positive[:, s])
        if len(rows):
            lateral, lean = infection.place[s]
            height = np.array([0.24, 0.46, 0.63])[rows].mean() + 0.05 * lean
            centres.append(chest.place(np.array([lateral, height]), sign))
    near = _nearness(pen, centres, reach=0.11, tall=1.1)
    return hidden + near + 0.45 * texture.patch + 0.25 * texture.mid + 0.2 * texture.broad


def _edema_liking(pen: Pen, chest: Chest, texture: Texture) -> np.ndarray:
    centres = [hilum + [0.0, 0.05] for hilum in chest.hilum]
    near = _nearness(pen, centres, reach=0.10, tall=0.75)
    return near + 0.3 * texture.patch + 0.2 * texture.mid


def _nearness(pen: Pen, centres: list[np.ndarray], *, reach: float, tall: float) -> np.ndarray:
    """-1.5 x the distance to the nearest of the centres in units of `reach`, on the lattice."""
    nearest = np.full((LATTICE, LATTICE), 9.0, np.float32)
    at = np.arange(LATTICE, dtype=np.float32)
    for x, y in (pen.film(centre) * LATTICE for centre in centres):
        squared = ((at - x) ** 2)[None, :] + ((at - y) ** 2)[:, None] * np.float32(tall**2)
        np.minimum(nearest, np.sqrt(squared) / np.float32(reach * LATTICE), out=nearest)
    return -1.5 * nearest
