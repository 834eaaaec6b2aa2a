"""All of a CT slice that is not lung: couch, skin, fat, muscles, mediastinum, abdomen, bones."""

import numpy as np

from cxr_jax.data.phantoms.ct_anatomy import SIDES, Thorax, lung_axes, skin_axes, unit_lung
from cxr_jax.data.phantoms.ct_drawing import BLOOD, FAT, LIVER, MUSCLE, TissueLayer
from cxr_jax.data.phantoms.ct_skeleton import draw_bones
from cxr_jax.data.phantoms.drawing import Pen, closed_curve, ellipse, smoothstep


def tissue_hu(pen: Pen, thorax: Thorax, z: float) -> np.ndarray:
    """All that is not lung at z, HU float32 [size, size]."""
    layer, body = TissueLayer(pen), pen.layer()
    _draw_table(layer, thorax)
    background = layer.codes.copy()
    _draw_breasts(layer, thorax, z=z, body=body)
    _draw_skin(layer, thorax, z=z, body=body)
    _draw_muscles(layer, thorax, z)
    _draw_chest_wall(layer, thorax, z)
    if z > thorax.dome[1]:
        _draw_left_abdomen(layer, thorax, z)
    layer.fill(closed_curve(thorax.mediastinum(z)), FAT)
    _draw_great_vessels(layer, thorax, z)
    _draw_heart(layer, thorax, z)
    if z > thorax.dome[0] + 0.04:
        share = float(smoothstep((z - thorax.dome[0] - 0.04) / 0.16))
        layer.ellipse((-0.02, -0.085), np.array([0.13, 0.10]) * share, hu=LIVER, n=32)
    draw_bones(layer, thorax, z)
    np.copyto(layer.codes, background, where=body < 128)  # nothing sticks out of the skin
    return layer.hu()


def _draw_table(layer: TissueLayer, thorax: Thorax) -> None:
    """The couch, two thin shells under the back; the same in every slice."""
    x = np.linspace(-0.62, 0.62, 24)
    top = 0.315 + 0.024 * thorax.fat + thorax.table - 0.20 * x**2
    shell = np.stack([x, top], axis=1)
    below = np.stack([x[::-1], top[::-1] + 0.055 * (1 - (x / 0.64) ** 2)], axis=1)
    layer.fill(np.concatenate([shell, below]), -925)
    layer.line(shell, 0.006, -420)
    layer.line(below, 0.006, -480)


def _draw_breasts(layer: TissueLayer, thorax: Thorax, *, z: float, body: np.ndarray) -> None:
    """Draws them on the layer and on the mask of the body."""
    if not thorax.breast:
        return
    _, depth, middle = skin_axes(z)
    b = thorax.breast * float(smoothstep((z - 0.22) / 0.2) * smoothstep((0.85 - z) / 0.2))
    if b > 0.05:
        for sign in SIDES:
            centre = np.array([sign * (0.19 + 0.02 * b), middle - depth + 0.060])
            breast = ellipse(centre, (0.150, 0.055 + 0.055 * b), 48)
            layer.pen.fill(body, breast)
            layer.fill(breast, FAT)
            layer.ellipse(centre - [0, 0.03], (0.06 * b, 0.04 * b), hu=-20, n=20)


def _draw_skin(layer: TissueLayer, thorax: Thorax, *, z: float, body: np.ndarray) -> None:
    """Skin and the fat under it, on the layer and on the mask of the body."""
    width, depth, middle = skin_axes(z)
    _, sx, sy = unit_lung(80)
    extra = 0.030 * thorax.fat
    skin = np.array([width + extra, depth + 0.8 * extra])
    outline = np.stack([skin[0] * sx, middle + skin[1] * sy], axis=1)
    layer.pen.fill(body, outline)
    layer.fill(outline, -10)
    layer.fill(outline * (1 - 0.006 / skin), FAT)


def _draw_muscles(layer: TissueLayer, thorax: Thorax, z: float) -> None:
    """Muscles outside the ribs."""
    cx, rx, cy, ry = lung_axes(z)
    wall = cx + rx
    high = float(1 - smoothstep((z - 0.30) / 0.30))
    chest = float(smoothstep((z + 0.05) / 0.15) * (1 - smoothstep((z - 0.45) / 0.2)))
    for side, sign in enumerate(SIDES):

        def muscle(x, y, *, radii, degrees, sign=sign):
            t = np.deg2rad(degrees) * sign
            turn = np.array([[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]])
            layer.fill(ellipse(np.zeros(2), radii, 28) @ turn + [sign * x, y], MUSCLE)

        muscle(0.050, cy + ry + 0.035, radii=(0.060, 0.032), degrees=8)  # beside the spine
        if chest > 0.1:  # pectorals
            y = cy - 0.93 * ry - 0.022
            muscle(0.62 * wall, y, radii=(0.135, 0.024 * chest), degrees=22)
            y = cy - 0.66 * ry - 0.020
            muscle(0.80 * wall, y, radii=(0.085, 0.016 * chest), degrees=38)
        if high > 0.05:  # around the scapula
            x = 0.84 * wall + 0.035
            muscle(x, cy + 0.80 * ry + 0.035, radii=(0.105, 0.020 + 0.030 * high), degrees=-36)
            muscle(x - 0.06, cy + ry + 0.042, radii=(0.10, 0.016 + 0.012 * high), degrees=-20)
        # Serratus and latissimus follow the ribs.
        path = thorax.lung(side, z, grow=0.041, least=0.6)[np.arange(-12, 15)]
        bulk = np.sin(np.linspace(0.1, np.pi - 0.1, 27)) ** 0.5
        layer.band(path, (0.006 + 0.005 * high) * bulk, MUSCLE)
        if z < 0.14:  # shoulder girdle
            share = float(smoothstep((0.14 - z) / 0.12))
            muscle(0.30, 0.04, radii=(0.11 * share, 0.07 * share), degrees=-12)


def _draw_chest_wall(layer: TissueLayer, thorax: Thorax, z: float) -> None:
    """The wall between the ribs, and what no lung covers: liver and fat under the diaphragm."""
    _, _, cy, ry = lung_axes(z)
    for side in range(2):
        layer.fill(thorax.lung(side, z, grow=0.030, least=0.55), MUSCLE)
    front, back = cy - 0.8 * ry, cy + ry + 0.03
    layer.fill(np.array([[-0.10, front], [0.10, front], [0.10, back], [-0.10, back]]), MUSCLE)
    for side, hu in enumerate((LIVER, FAT)):
        layer.fill(thorax.lung(side, z, grow=0.002, least=0.2), hu)


def _draw_left_abdomen(layer: TissueLayer, thorax: Thorax, z: float) -> None:
    """Spleen and stomach, with its gas on top, where the left dome is open."""
    share = float(smoothstep((z - thorax.dome[1]) / 0.14))
    x, y, gas = thorax.stomach
    cx = lung_axes(z)[0]
    layer.ellipse((cx + 0.075, 0.075), np.array([0.075, 0.10]) * share, hu=48, n=32)
    centre = np.array([cx - 0.02 + 0.3 * x, y + 0.02])
    radii = np.array([0.095, 0.085]) * share
    layer.ellipse(centre, radii, hu=35, n=32)
    if gas > 0.5 and share > 0.2:
        stomach = ellipse(centre, radii * 0.90, 48)
        level = centre[1] - radii[1] * (0.9 - 1.1 * (gas - 0.5))
        stomach[:, 1] = np.minimum(stomach[:, 1], level)
        layer.fill(stomach, -960)


def _rise(z: float, low: float, high: float, *, ramp: float = 0.04) -> float:
    """0 outside low..high, 1 well inside."""
    return float(np.sqrt(smoothstep((z - low) / ramp) * smoothstep((high - z) / ramp)))


def _draw_great_vessels(layer: TissueLayer, thorax: Thorax, z: float) -> None:
    """Great vessels and oesophagus in the fat of the mediastinum."""

    def blob(x, y, *radii, hu=BLOOD):
        if min(radii) > 0.002:
            layer.ellipse((x, y), radii if len(radii) == 2 else 2 * radii, hu=hu, n=28)

    r = thorax.aorta
    blob(0.012, 0.075 + 0.02 * z, 0.013, 0.010, hu=38)  # oesophagus
    up = _rise(z, -0.6, 0.28, ramp=0.05)
    blob(-0.030, -0.045 + 0.1 * (z - 0.2), 0.016 * up)
    blob(0.032, -0.035 + 0.1 * (z - 0.2), 0.012 * up)
    blob(0.052 - 0.06 * z, 0.030, 0.012 * up)
    blob(-0.052 + 0.05 * z, -0.065, 0.016 * up, 0.013 * up)
    blob(0.044 - 0.1 * z, -0.082, 0.016 * up, 0.012 * up)
    arch = _rise(z, 0.24, 0.36, ramp=0.035)
    if arch > 0.1:
        path = [[-0.018, -0.075], [0.018, -0.055], [0.046, -0.01], [0.054, 0.06]]
        layer.band(path, 0.027 * r * arch, BLOOD)
    ascending = _rise(z, 0.30, 0.66, ramp=0.05)
    blob(-0.022, -0.078 + 0.03 * (z - 0.3), 0.034 * r * ascending)
    if z > 0.28:
        down = _rise(z, 0.28, 9.0, ramp=0.03)
        x = 0.054 - 0.035 * float(smoothstep((z - 0.5) / 0.5))
        blob(x, 0.085 + 0.02 * z, 0.026 * r * down)
    cava = _rise(z, 0.16, 0.62)
    blob(-0.045, -0.050 + 0.02 * z, 0.019 * cava, 0.016 * cava)
    trunk = _rise(z, 0.40, 0.60, ramp=0.05)
    blob(0.040, -0.080, 0.032 * trunk)
    right = _rise(z, 0.44, 0.545, ramp=0.03)
    if right > 0.1:
        path = [[0.035, -0.065], [0.0, -0.030], [-0.045, -0.018], [-0.092, -0.004]]
        layer.band(path, 0.020 * right, BLOOD)
    left = _rise(z, 0.41, 0.515, ramp=0.03)
    if left > 0.1:
        layer.band([[0.040, -0.070], [0.070, -0.030], [0.090, 0.020]], 0.019 * left, BLOOD)


def _draw_heart(layer: TissueLayer, thorax: Thorax, z: float) -> None:
    share = _rise(z, 0.54, 1.10, ramp=0.05)
    if share > 0.2:
        points = thorax.mediastinum(z)[[0, 1, 2, 3, 4, 9, 10, 11]]
        points[[0, 1], 1] += 0.030
        points[[4, 5], 1] = np.minimum(points[[4, 5], 1], 0.062)
        points[4, 0] -= 0.020
        middle = points.mean(axis=0)
        layer.fill(closed_curve(middle + (points - middle) * 0.95 * share), BLOOD)
