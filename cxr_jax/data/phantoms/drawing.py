"""What films and CT slices are drawn with: a pen for outlines and lines, curves, blur, grain.

Outlines and paths are arrays [n, 2] of (x, y), or [m, n, 2] for many at once, in the patient's
frame: one unit is the width of the film (the field of view). A `Pen` knows where that frame lies
on the film and how many pixels the film has.
"""

import functools

import cv2
import numpy as np

_UNIT = np.arange(256, dtype=np.float32) / 255


class Pen:
    """Draws shapes of the patient's frame on square 8-bit layers of any resolution.

    Args:
      size: of the film, px.
      pose: affine map [2, 3] from the patient's frame to the film's (0..1).
    """

    def __init__(self, size: int, pose: np.ndarray):
        self.size, self.pose = size, pose
        self.scale = float(np.sqrt(abs(np.linalg.det(pose[:, :2]))))
        self._turn, self._offset = np.ascontiguousarray(pose[:, :2].T) * 16, pose[:, 2] * 16

    def layer(self, n: int | None = None) -> np.ndarray:
        """An empty layer of n x n px; default the film's size."""
        return np.zeros((n or self.size, n or self.size), np.uint8)

    def fine_layer(self) -> np.ndarray:
        """A layer for thin lines: at least 512 px wide or the film's size."""
        return self.layer(2 * self.size if self.size <= 384 else self.size)

    def film(self, points: np.ndarray) -> np.ndarray:
        """Patient's frame -> film, 0..1, [..., 2]."""
        return points @ self.pose[:, :2].T + self.pose[:, 2]

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Patient's frame -> pixels of the record's image, [..., 2]."""
        return self.film(points) * self.size

    def fixed(self, points: np.ndarray, n: int) -> list[np.ndarray]:
        """Patient's frame -> 1/16 px of an n x n layer, where pixel centres are whole numbers."""
        # One flat product: matmul takes stacks of small matrices one by one.
        flat = points.reshape(-1, 2) @ (self._turn * n)
        flat += self._offset * n - 8
        fixed = np.rint(flat, out=flat).astype(np.int32).reshape(points.shape)
        return [fixed] if fixed.ndim == 2 else list(fixed)

    def fill(self, layer: np.ndarray, outlines: np.ndarray, value: float = 255) -> None:
        """Fills one outline [n, 2], or many that do not overlap, [m, n, 2]."""
        points = self.fixed(outlines, len(layer))
        cv2.fillPoly(layer, points, int(min(value, 255)), cv2.LINE_AA, 4)

    def line(self, layer: np.ndarray, paths: np.ndarray, width: float, value: float = 255) -> None:
        """Strokes one path [n, 2] or many [m, n, 2]; `width` in units of the film's width."""
        pixels = width * self.scale * len(layer)
        thick = max(1, round(pixels))
        value = int(min(value, 255) * min(1.0, max(pixels / thick, 0.15)))
        # Supersampled layers need no smoothing of their own, which is slow for thick lines.
        kind = cv2.LINE_AA if len(layer) == self.size or thick == 1 else cv2.LINE_8
        cv2.polylines(layer, self.fixed(paths, len(layer)), False, value, thick, kind, 4)

    def down(self, layer: np.ndarray) -> np.ndarray:
        """A fine layer at the film's size; others as they are."""
        if len(layer) <= self.size:
            return layer
        return cv2.resize(layer, (self.size, self.size), interpolation=cv2.INTER_AREA)

    def shadow(self, layer: np.ndarray, sigma: float = 0.0) -> np.ndarray:
        """Layer -> float32 in 0..1, blurred, no finer than the film."""
        return cv2.LUT(blur(self.down(layer), sigma), _UNIT)


def xy(x, y) -> np.ndarray:
    """[n, 2] points from their coordinates [n] and [n]."""
    return np.stack([np.asarray(x, float), np.asarray(y, float)], axis=1)


def curve(points, n: int = 6) -> np.ndarray:
    """Catmull-Rom curve through [k, 2] points: [(k - 1) * n + 1, 2]."""
    points = np.asarray(points, float)
    k = len(points) - 1
    ends = np.concatenate([points[:1], points, points[-1:]])
    windows = np.stack([ends[i : i + k] for i in range(4)], axis=1)  # [k, 4, 2]
    body = _spline_basis(n) @ windows  # [k, n, 2]
    return np.concatenate([body.reshape(-1, 2), points[-1:]])


@functools.cache
def _spline_basis(n: int) -> np.ndarray:
    t = np.arange(n)[:, None] / n
    powers = np.concatenate([np.ones_like(t), t, t**2, t**3], axis=1)
    basis = 0.5 * np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]])
    return powers @ basis


def closed_curve(points: np.ndarray, n: int = 5) -> np.ndarray:
    """Closed Catmull-Rom curve through [k, 2] points: [k * n, 2]."""
    t = np.arange(n)[:, None] / n
    p0, p1, p2, p3 = (np.roll(points, s, axis=0)[:, None] for s in (1, 0, -1, -2))
    twice = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2
    twice = twice + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    return 0.5 * twice.reshape(-1, 2)


def bezier(controls: np.ndarray, n: int) -> np.ndarray:
    """Cubic Bezier curves: control points [..., 4, 2] -> n points each, [..., n, 2]."""
    return _bezier_basis(n) @ controls


@functools.cache
def _bezier_basis(n: int) -> np.ndarray:
    t = np.linspace(0, 1, n)[:, None]
    return np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1)


def band_edges(path: np.ndarray, half_width) -> tuple[np.ndarray, np.ndarray]:
    """Both edges of bands around `path` [..., n, 2]; `half_width` broadcasts to [..., n]."""
    along = np.empty_like(path)
    along[..., 1:-1, :] = path[..., 2:, :] - path[..., :-2, :]
    along[..., 0, :] = path[..., 1, :] - path[..., 0, :]
    along[..., -1, :] = path[..., -1, :] - path[..., -2, :]
    half = half_width / (np.hypot(along[..., 0], along[..., 1]) + 1e-9)
    across = np.stack([-along[..., 1] * half, along[..., 0] * half], axis=-1)
    return path + across, path - across


def band(path: np.ndarray, half_width) -> np.ndarray:
    """Outlines [..., 2n, 2] of bands around `path` [..., n, 2]."""
    one, other = band_edges(path, half_width)
    return np.concatenate([one, other[..., ::-1, :]], axis=-2)


@functools.cache
def circle(n: int) -> np.ndarray:
    """[n, 2] points of the unit circle. Shared: not to be written to."""
    t = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return xy(np.cos(t), np.sin(t))


def ellipse(centre, radii, n: int = 20) -> np.ndarray:
    """[..., n, 2] ellipses around [..., 2] centres."""
    return np.asarray(centre)[..., None, :] + circle(n) * radii


def blur(field: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur; `sigma` in units of the film's width. Wide blurs go by a small copy."""
    n, step = len(field), 1
    pixels = sigma * n
    while pixels / step > 3 and n // (2 * step) >= 16:
        step *= 2
    if step == 1:
        return cv2.GaussianBlur(field, (0, 0), pixels) if pixels > 0.2 else field
    small = cv2.resize(field, (n // step, n // step), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), pixels / step)
    return cv2.resize(small, (n, n), interpolation=cv2.INTER_LINEAR)


def smoothstep(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, and a smooth rise between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def grain(rng: np.random.Generator, size: int) -> np.ndarray:
    """Nearly normal noise float32 [size, size], mean 0, variance 1: sums of four random bytes."""
    raw = np.frombuffer(rng.bytes(4 * size * size), np.uint8).reshape(size, size, 4)
    scale = 1 / np.sqrt(4 * (256**2 - 1) / 12)
    return cv2.transform(raw.astype(np.float32), np.array([[scale] * 4 + [-510 * scale]]))
