"""Bilinear resizing with aligned corners, as PyTorch's `align_corners=True` does it."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def _weights(size_in: int, size_out: int) -> np.ndarray:
    """[size_out, size_in]: output i samples the input at i (size_in - 1) / (size_out - 1)."""
    # A single output has no corners to align: it samples index 0, PyTorch's choice.
    positions = np.arange(size_out) * (size_in - 1) / max(size_out - 1, 1)
    distance = np.abs(positions[:, None] - np.arange(size_in))
    return np.maximum(1.0 - distance, 0.0).astype(np.float32)


def resize_aligned(x: Array, size: tuple[int, int]) -> Array:
    """Bilinear, aligned corners, no antialiasing, which `jax.image.resize` does not offer.

    Output row i samples the input at row i (h - 1) / (H - 1), likewise the columns. Two matrix
    products, one an axis.

    Args:
      x: [B, h, w, C].
      size: (H, W) of the result.

    Returns:
      [B, H, W, C] float32.

    Raises:
      ValueError: a side of the input or of `size` is below 1.
    """
    if min(*x.shape[1:3], *size) < 1:
        raise ValueError(f"cannot resize {x.shape[1:3]} to {size}: every side must be at least 1.")
    x = x.astype(jnp.float32)
    highest = jax.lax.Precision.HIGHEST
    if x.shape[1] != size[0]:
        x = jnp.einsum("Yy,byxc->bYxc", _weights(x.shape[1], size[0]), x, precision=highest)
    if x.shape[2] != size[1]:
        x = jnp.einsum("Xx,byxc->byXc", _weights(x.shape[2], size[1]), x, precision=highest)
    return x
