"""From the attenuation map to the displayed film: light, detector, display, borders, markers.

I = (exp(-A) + f * scatter(exp(-A))) / (1 + f) + noise,      v = curve(-log I).
"""

import cv2
import numpy as np

from cxr_jax.data.phantoms.drawing import blur, grain, smoothstep
from cxr_jax.data.phantoms.patient import Technique, Visit


def expose(attenuation: np.ndarray, technique: Technique, rng: np.random.Generator) -> np.ndarray:
    """Attenuation float32 [size, size] to the displayed film, uint8 [size, size]."""
    return _displayed(_recorded(attenuation, technique, rng), technique)


def _recorded(
    attenuation: np.ndarray, technique: Technique, rng: np.random.Generator
) -> np.ndarray:
    """-log I, float32 [size, size], with scatter, blur, noise, heel effect and grid lines."""
    size, f = len(attenuation), technique.scatter
    light = cv2.exp(cv2.subtract(0.0, attenuation))
    light = cv2.addWeighted(light, 1 / (1 + f), blur(light, 0.09), f / (1 + f), 0)
    light = blur(light, technique.blur)
    noise = grain(rng, size)
    noise *= 0.6 * technique.noise * size / 256
    noise *= np.sqrt(light)
    light += noise
    density = cv2.log(np.maximum(light, 0.004, out=light), dst=light)
    span = np.linspace(-1, 1, size, dtype=np.float32)
    across, down = technique.heel
    density *= -1 - np.float32(across) * span
    density *= (1 + np.float32(down) * span)[:, None]
    if technique.grid:
        wave = np.cos(np.arange(size, dtype=np.float32) * 2.2)
        density += (np.float32(technique.grid) * wave)[:, None]
    return density


def _displayed(density: np.ndarray, technique: Technique) -> np.ndarray:
    """Sharpened, windowed and put through the display's curve: uint8 [size, size]."""
    f, low, sharpen = technique.scatter, technique.low, technique.detail
    white = -np.log((np.exp(-technique.thickness) + f * 0.10) / (1 + f)) * technique.high
    # The display curve is a table, finer than the greys it gives.
    steps = 2047
    gain = steps / (white - low)
    local = blur(density, 0.05)
    v = cv2.addWeighted(
        density, (1 + sharpen) * gain, local, -sharpen * gain, -low * gain, dtype=cv2.CV_32F
    )
    shade = np.linspace(0, 1, steps + 1, dtype=np.float32) ** np.float32(technique.gamma)
    shade = shade + technique.curve * (smoothstep(shade) - shade)
    table = (12 + 236 * shade).astype(np.uint8)
    return np.take(table, np.clip(v, 0, steps, out=v).astype(np.int32))


def draw_borders(image: np.ndarray, lungs: np.ndarray, technique: Technique) -> None:
    """Collimation: unexposed margins, black as readers see them, now and then white. In place.

    They never cover a lung.
    """
    if technique.border > 0.55:
        return
    size = len(image)
    value = 0 if technique.border < 0.45 else 250
    x, y, w, h = cv2.boundingRect(lungs)
    free = (y, size - y - h, x, size - x - w)
    top, bottom, left, right = (
        min(int(margin * size), room) for margin, room in zip(technique.field, free)
    )
    image[:top] = value
    image[size - bottom :] = value
    image[:, :left] = value
    image[:, size - right :] = value


def draw_markers(image: np.ndarray, visit: Visit) -> None:
    """Side marker and view stamp, in place."""
    size = len(image)
    there, side, x, y = visit.technique.marker
    if there > 0.75:
        return
    letter, column = ("R", 0.05 + 0.05 * x) if side < 0.4 else ("L", 0.87 + 0.05 * x)
    at = (int(column * size), int((0.10 + 0.06 * y) * size))
    scale, thick = size / 256 * 0.45, max(1, round(size / 256))
    cv2.putText(image, letter, at, cv2.FONT_HERSHEY_DUPLEX, scale, 245, thick, cv2.LINE_AA)
    if visit.view == "AP" and side > 0.6:
        at = (at[0] - int(0.02 * size), at[1] + int(0.05 * size))
        cv2.putText(image, "AP", at, cv2.FONT_HERSHEY_SIMPLEX, 0.6 * scale, 235, thick, cv2.LINE_AA)
