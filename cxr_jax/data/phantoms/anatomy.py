"""Outlines of one chest in the patient's frame: lungs, mediastinum, clavicles, spine; lung zones.

x = 0 is the midline, positive towards the patient's left; y runs down; the film is one unit wide.
"""

import cv2
import numpy as np

from cxr_jax.data.phantoms.drawing import Pen, curve, ellipse, xy
from cxr_jax.data.phantoms.lattice import LATTICE, depth
from cxr_jax.data.phantoms.patient import HILUM, Patient, Visit

SIDES = (("right", -1.0), ("left", 1.0))  # of the patient, with the sign of x there

# Cuts between the lung zones, as shares of each lung's top to bottom extent (PAPERS: zones).
ZONE_CUTS = (5 / 12, 2 / 3)

# A right lung, lateral distance from the midline and height: from the mediastinum over the apex
# to the costophrenic angle, along the diaphragm to the midline, and up the mediastinum.
_LATERAL = xy(
    [0.056, 0.060, 0.083, 0.130, 0.188, 0.247, 0.296, 0.325, 0.341, 0.347, 0.343],
    [0.300, 0.200, 0.137, 0.110, 0.135, 0.210, 0.335, 0.470, 0.600, 0.700, 0.785],
)
_DIAPHRAGM = xy(
    [0.343, 0.325, 0.275, 0.205, 0.135, 0.072], [0.785, 0.748, 0.706, 0.688, 0.699, 0.728]
)
_MEDIAL = xy([0.072, 0.060, 0.054, 0.056], [0.728, 0.620, 0.460, 0.300])


class Chest:
    """The outlines of one film in the patient's frame; pairs are right, left.

    Attributes:
      lateral, diaphragm: edges of the lungs, before any fluid; `tip` is where they meet.
      lung: outlines of the lungs; over a pleural effusion they end at its meniscus.
      fluid: outline of a pleural effusion, or None.
      thorax_width: inner width of the ribcage.
      hilum, clavicle, heart, right_atrium, knob, great_vessels, prevertebral, svc, cavoatrial,
        carina, trachea, spine: points, paths or outlines of these.
    """

    def __init__(self, patient: Patient, visit: Visit):
        self.patient, self.visit = patient, visit
        self.lateral, self.diaphragm, self.lung, self.tip = [], [], [], []
        self.fluid: np.ndarray | None = None
        for s, (_, sign) in enumerate(SIDES):
            self._add_lung(s, sign)
        self.thorax_width = self.lateral[1][:, 0].max() - self.lateral[0][:, 0].min()
        self.hilum = [self.place(HILUM[s : s + 1], g)[0] for s, (_, g) in enumerate(SIDES)]
        self.clavicle = [self._clavicle(sign) for _, sign in SIDES]
        self._add_mediastinum()

    def place(self, points: np.ndarray, sign: float) -> np.ndarray:
        """(lateral distance, height) of the standard chest -> this body, at this breath."""
        x, y = points[..., 0], points[..., 1]
        # Breathing moves what lies below the hila.
        y = np.where(y > 0.30, 0.30 + (y - 0.30) * self.visit.inspiration, y)
        x = sign * x * self.patient.width + self.visit.turned * np.maximum(0, 1 - x / 0.2)
        return np.stack([x, 0.46 + (y - 0.46) * self.patient.height], axis=-1)

    def wall(self, y: np.ndarray, side: int) -> np.ndarray:
        """|x| of the inner chest wall at heights `y`; below the lung it runs straight down."""
        edge = self.lateral[side][18:]
        return np.interp(y, edge[:, 1], np.abs(edge[:, 0]))

    def _add_lung(self, s: int, sign: float) -> None:
        patient = self.patient
        lateral, diaphragm, medial = (
            self.place(part, sign) for part in (_LATERAL, _DIAPHRAGM, _MEDIAL)
        )
        jitter = patient.lung_jitter[s]
        lateral[3:-1] += jitter[:7]
        diaphragm[1:-1] += jitter[8:12] * [0.3, 0.8]
        foot = diaphragm[0, 1]
        diaphragm[1:, 1] = foot + (diaphragm[1:, 1] - foot) * patient.dome_arch
        if s == 0:  # the liver
            diaphragm[1:, 1] -= patient.dome
            diaphragm[0, 1] -= 0.5 * patient.dome
        lateral[-1], medial[0] = diaphragm[0], diaphragm[-1]
        side, base = curve(lateral), curve(diaphragm)
        self.lateral.append(side)
        self.diaphragm.append(base)
        self.tip.append(base[0])
        if self.visit.effusion == s:
            side, base, self.fluid = self._meniscus(s, sign)
        self.lung.append(np.concatenate([side, base[1:], curve(medial)[1:-1]]))

    def _meniscus(self, s: int, sign: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A pleural effusion: (lateral edge cut short, lung base over the fluid, fluid outline)."""
        lateral, base = self.lateral[s], self.diaphragm[s]
        top = base[:, 1].min() + 0.045 - self.visit.fluid
        last = max(20, 20 + int(np.argmax(lateral[20:, 1] > top)))
        side = lateral[:last]
        foot = min(int(len(base) * (0.45 + 1.6 * self.visit.fluid)), len(base) - 4)
        start, end = side[-1], base[foot]
        # Steep beside the wall, then flat: the fluid climbs the chest wall.
        bend = np.array([start[0] - sign * 0.035, end[1] - 0.010])
        t = np.linspace(0, 1, 12)[:, None]
        edge = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
        fluid = np.concatenate([lateral[last:], base[:foot], edge[::-1]])
        return side, np.concatenate([edge, base[foot + 1 :]]), fluid

    def _clavicle(self, sign: float) -> np.ndarray:
        tilt = self.patient.clavicle_tilt - (0.02 if self.visit.view == "AP" else 0.0)
        x = np.array([0.030, 0.075, 0.15, 0.24, 0.32, 0.40]) * self.patient.width
        y = np.array([0.205, 0.190, 0.168, 0.138, 0.118, 0.122])
        y = y - tilt * np.array([0.0, 0.0, 0.4, 0.8, 1.0, 1.0])
        return curve(xy(sign * x + self.visit.turned, y))

    def _add_mediastinum(self) -> None:
        top = 0.30 + 0.10 * self.visit.inspiration
        high = float(self.diaphragm[1][20, 1]) - top
        self._add_heart(top, high)
        self._add_great_vessels(top, high)
        turned = self.visit.turned
        low = float(self.diaphragm[1].max(axis=0)[1])
        self.prevertebral = xy(
            np.array([-0.040, -0.052, 0.068, 0.050]) + turned, [top, low, low, top]
        )
        self.carina = np.array([-0.004 + turned, 0.30 + 0.045 * self.visit.inspiration])
        x = np.array([0.0, 0.001, -0.006, -0.004]) + turned
        self.trachea = curve(xy(x, [-0.06, 0.10, 0.24, self.carina[1]]))
        x = self.patient.scoliosis * np.array([0, 1, -1, 0, 0.5])
        self.spine = curve(xy(x, [-0.1, 0.2, 0.5, 0.8, 1.1]))

    def _add_heart(self, top: float, high: float) -> None:
        width = self.thorax_width * self.visit.heart_share
        right = max(0.076, 0.30 * width) + 0.006 * self.patient.heart_tilt
        left = width - right

        def line(x, share) -> np.ndarray:
            return xy(np.asarray(x) + 0.5 * self.visit.turned, top + np.asarray(share) * high)

        x = [-0.048, -0.060, -0.92 * right, -right, -0.99 * right, -0.04, 0.42 * left, 0.82 * left,
             0.97 * left, left, 0.91 * left, 0.67 * left, 0.42 * left, 0.050]  # fmt: skip
        y = [-0.02, 0.18, 0.42, 0.66, 0.97, 1.14, 1.16, 1.11, 0.98, 0.82, 0.55, 0.26, 0.05, -0.10]
        self.heart = curve(line(x, y))
        self.right_atrium = np.concatenate([self.heart[6:26], line([-0.005], [0.92])])

    def _add_great_vessels(self, top: float, high: float) -> None:
        turned, k = self.visit.turned, self.patient.knob
        self.knob = ellipse(np.array([0.036 + turned, 0.287]), (0.030 * k + 0.005, 0.034))
        x = [-0.050, -0.047, -0.050, -0.054, -0.052, 0.0, 0.060, 0.058, 0.048, 0.040 + 0.026 * k,
             0.040 + 0.024 * k, 0.045, 0.043, 0.050]  # fmt: skip
        y = [0.02, 0.12, 0.22, 0.32, top + 0.1 * high, top + 0.3 * high, top + 0.14 * high,
             top + 0.01, 0.345, 0.295, 0.262, 0.225, 0.14, 0.02]  # fmt: skip
        self.great_vessels = curve(xy(np.asarray(x) + turned, y))
        x = np.array([-0.040, -0.043, -0.043]) + turned
        self.svc = curve(xy(x, [0.235, 0.32, top + 0.08]))
        self.cavoatrial = np.array([-0.050 + turned, top + 0.12 * high])


def lung_labels(pen: Pen, chest: Chest, n: int) -> np.ndarray:
    """uint8 [n, n]: 0 outside, 1 right lung, 2 left lung; each is one component."""
    labels = pen.layer(n)
    for s in range(2):
        cv2.fillPoly(labels, pen.fixed(chest.lung[s], n), s + 1, cv2.LINE_8, 4)
    return labels


def lung_zones(labels: np.ndarray) -> np.ndarray:
    """Zone map uint8: 0 outside, 1..6 row by row, right before left, as the record's severity."""
    zones = np.zeros_like(labels)
    for s in range(2):
        lung = labels == s + 1
        rows = np.flatnonzero(lung.any(axis=1))
        if len(rows):
            share = (np.arange(len(labels)) - rows[0]) / (rows[-1] + 1 - rows[0])
            number = 1 + s + 2 * np.searchsorted(ZONE_CUTS, share, side="right")
            zones += lung * number.astype(np.uint8)[:, None]
    return zones


def wall_distance(pen: Pen, chest: Chest) -> np.ndarray:
    """float32 [LATTICE, LATTICE]: distance to the inner chest wall and apex, in units."""
    right, left = chest.lateral[0][12:], chest.lateral[1][12:]
    low = np.array([[0.0, 0.6]])
    layer = pen.layer(LATTICE)
    pen.fill(layer, np.concatenate([right, right[-1:] + low, left[-1:] + low, left[::-1]]))
    return depth(layer)
