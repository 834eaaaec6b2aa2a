"""The attenuation map of one film: what the rays pass through on their way.

    A = body * (1 - 0.64 * air) + bone + markings of the lungs - gas elsewhere,

where `air` is the share of the tissue that is air. What is filled with fluid takes the place of
air, so ribs and vessels still show through.
"""

import cv2
import numpy as np

from cxr_jax.data.phantoms.anatomy import SIDES, Chest
from cxr_jax.data.phantoms.disease import Opacities
from cxr_jax.data.phantoms.drawing import Pen, band, blur, curve, ellipse, smoothstep, xy
from cxr_jax.data.phantoms.lattice import LATTICE, Texture, depth, resized
from cxr_jax.data.phantoms.signs import Signs
from cxr_jax.data.phantoms.skeleton import bone_thickness

# How dark each generation of vessels is drawn, 0..255.
_VESSEL_SHADES = (220, 180, 130, 85)


def attenuation(
    pen: Pen,
    chest: Chest,
    *,
    wall: np.ndarray,
    sick: Opacities | None,
    texture: Texture,
    signs: Signs,
) -> np.ndarray:
    """A, float32 [size, size], without devices.

    Args:
      pen: of the film.
      chest: what is filmed.
      wall: distance to the chest wall on the lattice, of `wall_distance`.
      sick: opacities of the lungs; None leaves the lungs clear of them.
      texture: random fields of the film.
      signs: of atelectasis and pneumothorax.
    """
    lung, heart, middle = _silhouettes(pen, chest)
    air = _lung_air(wall, lung=lung, heart=heart, middle=middle)
    vessels = vessel_shadow(pen, chest)
    markings = _lung_markings(pen, chest, vessels=vessels, texture=texture)
    _add_signs(signs, air=air, markings=markings)
    if sick is not None and sick.kind.any():
        markings *= 1 - cv2.addWeighted(sick.solid, 1.1, sick.haze, 0.4, 0)
        air *= 1 - np.clip(_filled_air(sick, chest, vessels=vessels, texture=texture), 0, 0.92)
    body = _soft_tissue(pen, chest, texture)
    thickness = chest.visit.technique.thickness
    density = cv2.multiply(body, air, scale=-0.64 * thickness)
    density = cv2.scaleAdd(body, thickness, density, dst=density)

    # Scatter hides the ribs that lie over the abdomen and the spine behind the heart.
    bare = cv2.addWeighted(heart, -0.5, heart, 0, 1)
    y = np.linspace(0, 1, pen.size, dtype=np.float32)[:, None]
    shows = 1 - 0.65 * smoothstep((y - 0.30) / 0.35)
    bones = bone_thickness(pen, chest)
    bones *= (1 - shows) * lung + shows
    bones *= bare
    bones *= np.minimum(body * 4, 1)
    density = cv2.scaleAdd(bones, 0.30, density, dst=density)
    markings *= lung
    markings *= bare
    density = cv2.scaleAdd(markings, 0.50, density, dst=density)
    density -= _gas(pen, chest, lung)
    _add_breasts(pen, chest, density)
    _add_fissure(pen, chest, density=density, lung=lung)
    return np.maximum(density, 0, out=density)


def _silhouettes(pen: Pen, chest: Chest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shadows of the lungs, the heart and the rest of the mediastinum, float32 0..1."""
    lung, heart, middle = pen.layer(), pen.layer(), pen.layer()
    for outline in chest.lung:
        pen.fill(lung, outline)
    lung = pen.shadow(lung, 0.0035)
    pen.fill(heart, chest.heart)
    heart = pen.shadow(heart, 0.005)
    heart *= 0.62 + 0.38 * blur(heart, 0.045)
    pen.fill(middle, chest.great_vessels)
    pen.fill(middle, chest.knob)
    pen.fill(middle, chest.prevertebral, 215)
    return lung, heart, pen.shadow(middle, 0.006)


def _lung_air(
    wall: np.ndarray, *, lung: np.ndarray, heart: np.ndarray, middle: np.ndarray
) -> np.ndarray:
    """Share of the tissue that is air, in healthy lungs, float32 [size, size]."""
    t = np.minimum(wall / 0.10, 1)
    air = resized(0.50 + 0.50 * np.sqrt(t * (2 - t)), len(lung))
    air *= lung
    displaced = 0.5 * blur(middle, 0.03)
    np.maximum(displaced, 0.76 * middle, out=displaced)
    np.maximum(displaced, 0.86 * heart, out=displaced)
    cv2.subtract(1.0, displaced, dst=displaced)
    air *= displaced
    return air


def vessel_shadow(pen: Pen, chest: Chest) -> np.ndarray:
    """Vessel shadow float32 [size, size], 0..1, of both lungs."""
    layer = pen.fine_layer()
    for shade, (paths, widths) in zip(_VESSEL_SHADES, chest.patient.tree, strict=True):
        placed = []
        for half, (_, sign) in zip(np.split(paths, 2), SIDES):
            placed.append(chest.place(half, sign))
        moved = np.concatenate(placed)
        # Upright, the upper vessels are thinner; in edema they are as wide as the lower ones.
        upper = paths[:, 0, 1] < 0.40
        widths = widths * np.where(upper, 1.5 if chest.visit.edema else 0.9, 1.0)
        thick = np.maximum(1, np.rint(widths * pen.scale * len(layer))).astype(int)
        value = shade * chest.patient.vascularity
        for step in np.unique(thick):
            chosen = thick == step
            pen.line(layer, moved[chosen], float(widths[chosen].mean()), value)
    return pen.shadow(layer)


def _lung_markings(pen: Pen, chest: Chest, *, vessels: np.ndarray, texture: Texture) -> np.ndarray:
    """Vessels, hila and grain of healthy lungs, float32 [size, size]."""
    hila = pen.layer(LATTICE)
    pen.fill(hila, ellipse(np.stack(chest.hilum) + [0, 0.01], (0.022, 0.048)), 215)
    hila = pen.shadow(hila, 0.014) * (1 + 0.25 * texture.mid)
    grain = 0.045 * cv2.GaussianBlur(texture.fine, (0, 0), 0.7) + 0.020 * texture.mid
    return cv2.scaleAdd(vessels, 0.85, resized(0.8 * hila + grain, pen.size))


def _add_signs(signs: Signs, *, air: np.ndarray, markings: np.ndarray) -> None:
    """Pleural air has no markings but its edge; plates of atelectasis are markings. In place."""
    if signs.air is not None:
        markings *= 1 - signs.air
        markings += 1.2 * signs.pleura
        air *= 1 + 0.20 * signs.air
    if signs.bands is not None:
        markings += 0.75 * signs.bands


def _filled_air(
    sick: Opacities, chest: Chest, *, vessels: np.ndarray, texture: Texture
) -> np.ndarray:
    """Share of the air that opacities fill, with their grain and the airways left open in them."""
    grain = 0.13 * texture.mid + 0.13 * texture.fine + 0.08 * texture.patch
    filled = sick.haze + sick.solid
    filled *= resized(np.clip(1 + grain, 0.5, 1.5), len(filled))
    if chest.visit.infection.bronchograms and sick.solid.any():
        tubes = np.clip(blur(vessels, 0.002) - 0.25, 0, 0.6)
        filled -= 0.9 * sick.solid * tubes
    return filled


def _soft_tissue(pen: Pen, chest: Chest, texture: Texture) -> np.ndarray:
    """Thickness of body and arms, float32 [size, size], about 1 at the middle of the trunk."""
    trunk, arms, skin = pen.layer(LATTICE), pen.layer(LATTICE), pen.layer()
    for s in range(2):
        arm = _arm_outline(chest, s)
        pen.fill(arms, arm)
        pen.fill(skin, arm)
    outline = np.concatenate([_trunk_side(chest, 0), _trunk_side(chest, 1)[::-1]])
    pen.fill(trunk, outline)
    pen.fill(skin, outline)
    t = np.minimum(depth(trunk) / 0.17, 1)
    y = (np.arange(LATTICE, dtype=np.float32)[:, None] + 0.5) / LATTICE
    trunk = np.sqrt(t * (2 - t)) * (0.80 + 0.26 * smoothstep((y - 0.05) / 0.75))
    trunk *= 1 + 0.015 * texture.broad + 0.012 * texture.patch
    t = np.minimum(depth(arms) / 0.075, 1)
    thickness = np.maximum(trunk, 0.55 * np.sqrt(t * (2 - t)))
    # The skin line is crisp: it is cut at the film's size, not on the lattice.
    return resized(np.maximum(thickness, 0.12), pen.size) * pen.shadow(skin)


def _fat(chest: Chest) -> float:
    """Thickness of the fat under the skin."""
    return 0.034 + 0.080 * chest.patient.fat


def _trunk_side(chest: Chest, side: int) -> np.ndarray:
    """[n, 2]: the skin of one side of the trunk, from the neck down."""
    fat = _fat(chest)
    x = np.array([0.082, 0.088, 0.125, 0.25, 0.37, 0.47, 0.50, 0.45])
    x = x * chest.patient.width + 0.4 * fat
    top = xy(x, [-0.10, 0.02, 0.055, 0.075, 0.095, 0.15, 0.24, 0.35])
    y = np.array([0.46, 0.57, 0.68, 0.80, 0.95, 1.15])
    x = chest.wall(y, side) + fat
    x[3:] = np.maximum(x[3:], x[2] + np.array([0.0, 0.005, 0.01]))
    return curve(np.concatenate([top, xy(x, y)])) * [SIDES[side][1], 1]


def _arm_outline(chest: Chest, side: int) -> np.ndarray:
    fat, sign = _fat(chest), SIDES[side][1]
    x = np.array([0.44, 0.52, 0.56, 0.58]) + 0.8 * fat
    x += chest.patient.arms * np.array([0.30, 0.53, 0.77, 1.0])
    return band(curve(xy(sign * x, [0.17, 0.32, 0.55, 0.90])), 0.065 + 0.4 * fat)


def _gas(pen: Pen, chest: Chest, lung: np.ndarray) -> np.ndarray:
    """Trachea, bronchi and gas of stomach and bowel outside the lungs, float32 [size, size]."""
    visit, dark = chest.visit, pen.layer()
    pen.fill(dark, band(chest.trachea, 0.0125), 107)
    for s, (_, sign) in enumerate(SIDES):
        end = chest.hilum[s] - [sign * 0.02, 0.005]
        bronchus = np.linspace(chest.carina - [0, 0.006], end, 5)
        pen.fill(dark, band(bronchus, np.linspace(0.0095, 0.006, 5)), 75)
    dome = chest.diaphragm[1]
    top = dome[np.argmin(dome[:, 1])]
    if visit.stomach:
        dx, dy, a, b = visit.stomach_shape
        pen.fill(dark, ellipse(top + [dx - 0.03, dy], (a, b)), 170)
    for u in visit.bowel:
        centre = top + [(u[0] - 0.7) * 0.25, 0.10 + 0.12 * u[1]]
        pen.fill(dark, ellipse(centre, (0.02 + 0.03 * u[2], 0.015 + 0.015 * u[3]), 16), 90)
    dark = pen.shadow(dark, 0.0045)
    dark *= 1 - lung
    return dark


def _add_breasts(pen: Pen, chest: Chest, density: np.ndarray) -> None:
    b = chest.patient.breast
    if b:
        layer = pen.layer(LATTICE)
        for _, sign in SIDES:
            centre = np.array([sign * (0.235 + 0.02 * b), 0.60 + 0.05 * b])
            pen.fill(layer, ellipse(centre, np.array([1, 1.05]) * (0.11 + 0.05 * b), 28))
        breast = pen.shadow(layer, 0.006)
        breast *= 0.105 * b + 0.195 * b * blur(breast, 0.03)
        density += resized(breast, pen.size)


def _add_fissure(pen: Pen, chest: Chest, *, density: np.ndarray, lung: np.ndarray) -> None:
    """The minor fissure of the right lung, where it shows."""
    if chest.patient.fissure:
        layer = pen.fine_layer()
        pen.line(layer, chest.place(xy([0.09, 0.20, 0.32], [0.44, 0.435, 0.45]), -1.0), 0.0022)
        density += 0.07 * pen.shadow(layer) * lung
