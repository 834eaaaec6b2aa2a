"""Does the map point at the lesion? Rows per lung zone."""

import jax
import jax.numpy as jnp

from cxr_jax.metrics.explanations import share_of_highest

Array = jax.Array


def pointing(prob: Array, zones: Array, lesion: Array, severity: Array) -> dict[str, Array]:
    """Whether the highest pixel of each truly positive zone lies on a lesion.

    Args:
        prob: [B, H, W] lesion map; only its order counts, so logits do as well, and are better
            where float32 probabilities saturate.
        zones: [B, H, W] integers, 0 outside, 1..6 row by row (upper right, upper left, ...).
        lesion: [B, H, W] true lesion mask, bool or 0/1.
        severity: [B, 3, 2] true zone scores; positive where > 0 (invalid zones: 0 or NaN).

    Returns:
        `pointing_hit` [B, 3, 2] float32: 1 if the zone's highest pixel lies on the lesion, else 0;
        where several pixels share the highest value, the part of them that does (so that a flat map
        scores what a blind guess would). `pointing_valid` [B, 3, 2] bool: the zone is truly
        positive and has a pixel. The metric is the mean of the hits over the valid zones.

    Raises:
        ValueError: the three maps differ in size.
    """
    if not prob.shape == zones.shape == lesion.shape or prob.ndim != 3:
        raise ValueError(
            f"map is {prob.shape}, zones {zones.shape}, lesion {lesion.shape}; "
            "must be equal, [B, H, W]: resize the map first."
        )
    prob, lesion = jnp.asarray(prob, jnp.float32), jnp.asarray(lesion) > 0
    hits, filled = [], []
    for zone in range(1, 7):
        inside = jnp.asarray(zones) == zone
        hits.append(share_of_highest(prob, lesion, inside=inside))
        filled.append(jnp.any(inside, axis=(1, 2)))
    hit = jnp.stack(hits, axis=-1).reshape(-1, 3, 2)
    valid = jnp.stack(filled, axis=-1).reshape(-1, 3, 2) & (jnp.asarray(severity) > 0)
    return {"pointing_hit": jnp.where(valid, hit, 0.0), "pointing_valid": valid}
