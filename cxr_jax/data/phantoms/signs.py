"""Signs of findings that are no opacity of the lung: plate atelectasis and pneumothorax.

(An effusion takes lung away: `anatomy` draws it.)
"""

import numpy as np

from cxr_jax.data.phantoms.anatomy import SIDES, Chest
from cxr_jax.data.phantoms.drawing import Pen, band
from cxr_jax.data.phantoms.patient import Band


def pleural_air(chest: Chest) -> tuple[np.ndarray, np.ndarray]:
    """Pneumothorax: (outline of the air [n, 2], the visceral pleural line [m, 2])."""
    visit = chest.visit
    s = visit.pneumothorax
    edge = chest.lateral[s][8:]
    edge = edge[: max(12, int(len(edge) * visit.air_end))]
    t = np.linspace(0, 1, len(edge))
    # Widest over the apex, closing downwards.
    inward = visit.air * np.sin(np.pi * (0.18 + 0.82 * t)) ** 0.8
    line = edge + inward[:, None] * (chest.hilum[s] + [0.0, 0.05] - edge)
    return np.concatenate([edge, line[::-1]]), line


class Signs:
    """Layers of plate atelectasis (`bands`) and pneumothorax (`air`, `pleura`); None where absent.

    All are float32 [size, size] in 0..1.
    """

    def __init__(self, pen: Pen, chest: Chest):
        visit = chest.visit
        self.bands = self.air = self.pleura = None
        if visit.atelectasis is not None:
            layer = pen.fine_layer()
            for plate in visit.bands:
                pen.fill(layer, _plate_outline(chest, visit.atelectasis, plate))
            self.bands = pen.shadow(layer, 0.002)
        if visit.pneumothorax is not None:
            outline, line = pleural_air(chest)
            layer = pen.layer()
            pen.fill(layer, outline)
            self.air = pen.shadow(layer)
            layer = pen.fine_layer()
            pen.line(layer, line, 0.0046)
            self.pleura = pen.shadow(layer)


def _plate_outline(chest: Chest, side: int, plate: Band) -> np.ndarray:
    """[n, 2]: a spindle above the diaphragm."""
    sign = SIDES[side][1]
    base = chest.diaphragm[side][:: -int(sign)]  # left to right
    x = sign * plate.lateral
    centre = np.array([x, np.interp(x, base[:, 0], base[:, 1]) - plate.above])
    t = np.linspace(-0.5, 0.5, 9)[:, None]
    path = centre + t * plate.length * [sign, plate.slope] + [0, 0.04] * t**2
    return band(path, 0.5 * plate.thick * np.cos(2.7 * t[:, 0]))
