"""Support devices: tubes, lines, electrodes and pacemakers on their usual courses."""

import numpy as np

from cxr_jax.data.phantoms.anatomy import Chest
from cxr_jax.data.phantoms.drawing import Pen, band_edges, circle, curve, ellipse, xy


def device_layers(pen: Pen, chest: Chest) -> list[np.ndarray]:
    """A uint8 layer for each device of the visit that shows on the film."""
    drawn = []
    for name, seed in chest.visit.devices:
        canvas = _Canvas(pen)
        _DRAWERS[name](canvas, chest, np.random.default_rng(seed))
        if canvas.layer.any():
            drawn.append(canvas.layer)
    return drawn


class _Canvas:
    """A fine layer and the pen that draws on it."""

    def __init__(self, pen: Pen):
        self.pen, self.layer = pen, pen.fine_layer()

    def fill(self, outlines: np.ndarray, value: float) -> None:
        self.pen.fill(self.layer, outlines, value)

    def line(self, paths: np.ndarray, width: float, value: float) -> None:
        self.pen.line(self.layer, paths, width, value)


def _draw_tube(canvas: _Canvas, chest: Chest, rng: np.random.Generator) -> None:
    """Endotracheal: its tip lies above the carina."""
    tip = chest.carina[1] - rng.uniform(0.035, 0.08)
    path = chest.trachea[chest.trachea[:, 1] < tip]
    for edge in band_edges(path, 0.0075):
        canvas.line(edge, 0.0028, 150)
    canvas.line(path, 0.0025, 90)


def _draw_line(canvas: _Canvas, chest: Chest, rng: np.random.Generator) -> None:
    """Central venous: from the neck or the shoulder to the cavoatrial junction."""
    end = chest.cavoatrial + [0.004, rng.uniform(-0.05, 0.03)]
    neck = xy([-0.115, -0.085, -0.055], [-0.05, 0.08, 0.17])
    shoulder = xy([-0.30, -0.25, -0.14, -0.07], [0.02, 0.13, 0.185, 0.20])
    start = neck if rng.random() < 0.5 else shoulder
    canvas.line(curve(np.concatenate([start, chest.svc[2:3], end[None]])), 0.0042, 190)


def _draw_gastric(canvas: _Canvas, chest: Chest, rng: np.random.Generator) -> None:
    low = chest.diaphragm[1][:, 1].min()
    x = np.array([0.012, 0.010, 0.016, 0.022, 0.07, 0.13]) + rng.normal(0, 0.005, 6)
    canvas.line(curve(xy(x, [-0.05, 0.2, 0.45, low, low + 0.09, low + 0.10])), 0.0038, 150)


def _draw_leads(canvas: _Canvas, chest: Chest, rng: np.random.Generator) -> None:
    """Electrodes on the skin, with wires that meet below the film."""
    spots = xy([-0.26, 0.25, -0.25, 0.29, 0.06], [0.20, 0.19, 0.66, 0.64, 0.52])
    spots = spots + rng.normal(0, 0.025, spots.shape)
    hub = np.array([rng.choice([-0.1, 0.12]), 1.08])
    for spot in spots[: rng.integers(3, 6)]:
        bend = (spot + hub) / 2 + rng.normal(0, 0.06, 2)
        canvas.line(curve([spot, (spot + bend) / 2 + [0.02, 0], bend, hub]), 0.0026, 130)
        canvas.fill(ellipse(spot, (0.0125, 0.0125), 14), 110)
        canvas.fill(ellipse(spot, (0.006, 0.006), 10), 255)


def _draw_pacemaker(canvas: _Canvas, chest: Chest, rng: np.random.Generator) -> None:
    centre = np.array([rng.uniform(0.22, 0.27), rng.uniform(0.20, 0.25)])
    body = np.sign(circle(24)) * np.abs(circle(24)) ** 0.6 * [0.042, 0.036]
    canvas.fill(body + centre, 255)
    low = chest.diaphragm[1][:, 1].min()
    for end in ((0.085, low - 0.03), (-0.035, low - 0.14))[: rng.integers(1, 3)]:
        x = [centre[0] - 0.02, 0.12, 0.01, chest.svc[4, 0], -0.045, end[0]]
        y = [centre[1] - 0.03, 0.165, 0.21, chest.svc[4, 1], low - 0.22, end[1]]
        canvas.line(curve(xy(x, y)), 0.0038, 200)


_DRAWERS = {
    "tube": _draw_tube,
    "line": _draw_line,
    "gastric": _draw_gastric,
    "leads": _draw_leads,
    "pacemaker": _draw_pacemaker,
}
