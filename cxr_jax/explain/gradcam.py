"""Grad-CAM (Selvaraju et al., ICCV 2017, arXiv:1610.02391) for any map before any head."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array

HIGHEST = jax.lax.Precision.HIGHEST


def grad_cam(scores: Callable[[Array], Array], features: Array, classes: Array) -> Array:
    """ReLU(sum over channels of alpha_c F_c), alpha the mean of dscore/dF over the cells.

    Args:
      scores: [B, h, w, C] -> logits [B, K]. It must treat each image on its own, batch norm in
        inference mode; then no image's map depends on its neighbours. The score must depend on the
        cells: the cells of a ViT's last layer have no part in its [class] token, and their map
        would be 0.
      features: F [B, h, w, C], of any float dtype.
      classes: int [B] or [B, n]; outside 0..K-1 the map is 0.

    Returns:
      float32 [B, h, w], or [B, n, h, w] where the classes are [B, n]; not scaled.
    """
    classes = jnp.asarray(classes)
    logits, pullback = jax.vjp(scores, features)

    def heat(chosen: Array) -> Array:
        picked = jax.nn.one_hot(chosen, logits.shape[1], dtype=logits.dtype)
        (gradient,) = pullback(picked)
        alpha = jnp.mean(gradient.astype(jnp.float32), axis=(1, 2))
        weighted = jnp.einsum("bc,bhwc->bhw", alpha, features, precision=HIGHEST)
        return jnp.maximum(weighted, 0)

    columns = classes.reshape(len(classes), -1)
    heats = jax.vmap(heat, in_axes=1, out_axes=1)(columns)
    return heats if classes.ndim == 2 else heats[:, 0]
