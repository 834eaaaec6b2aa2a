"""Does a heat map find a lesion that is known? Rows, one an example, and their means.

`share_of_highest` is the pointing game that `lesion_hits` and `findings` play too, each with its
own idea of where the map may point and of what is a hit.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from cxr_jax.metrics import regression
from cxr_jax.metrics.bootstrap import Value

Array = jax.Array
Rows = Mapping[str, np.ndarray]


def share_of_highest(heat: Array, target: Array, *, inside: Array | None = None) -> Array:
    """1 if the highest cell of a map lies on the target, else 0: [B, h, w, ...] -> [B, ...].

    Where several cells share the highest value, the part of them that does, so that a flat map
    scores what a blind guess would. 0 where there is no highest cell.

    Args:
      heat: only its order counts; cells that are NaN are not the highest.
      target: bool, of the map's shape.
      inside: bool; the other cells take no part. None is all.
    """
    counted = ~jnp.isnan(heat) if inside is None else inside & ~jnp.isnan(heat)
    top = jnp.max(heat, axis=(1, 2), keepdims=True, where=counted, initial=-jnp.inf)
    highest = counted & (heat == top)
    count = jnp.sum(highest, axis=(1, 2))
    return jnp.sum(highest & target, axis=(1, 2)) / jnp.maximum(count, 1)


def pointing(heat: Array, lesion: Array) -> dict[str, Array]:
    """The pointing game (Zhang et al., ECCV 2016): is the highest point of the map on the lesion?

    The point is the middle of the highest cell (where that lies between pixels, the one after it),
    which is also where the map has its maximum after bilinear enlargement. A lesion that holds no
    cell's middle cannot be hit; it counts all the same, here and in chance.

    Args:
      heat: [B, h, w]; only its order counts.
      lesion: [B, H, W], bool or 0/1; cells divide it.

    Returns:
      [B] each: `pointing_hit`, see `share_of_highest`; `pointing_chance`, the share of all cells
      whose middle lies on the lesion: what a blind guess hits; `pointing_valid` bool, there is a
      lesion. The others are 0 where there is none.

    Raises:
      ValueError: the cells do not divide the mask.
    """
    pixels = _cells_of(lesion, heat.shape)
    middles = pixels[:, :, pixels.shape[2] // 2, :, pixels.shape[4] // 2]
    return {
        "pointing_hit": share_of_highest(heat, middles),
        "pointing_chance": jnp.mean(middles, axis=(1, 2)),
        "pointing_valid": jnp.any(pixels, axis=(1, 2, 3, 4)),
    }


def energy(heat: Array, lesion: Array) -> dict[str, Array]:
    """The share of the map's positive heat on the lesion (Wang et al., Score-CAM, CVPRW 2020).

    A cell's heat is spread evenly over its pixels. Unlike the pointing game, this asks for the rest
    of the map too.

    Args:
      heat: [B, h, w], finite; negative heat is none.
      lesion: [B, H, W], bool or 0/1; cells divide it.

    Returns:
      [B] each: `energy_inside`, 0..1, and chance where a map has no positive heat, since it says as
      much as a flat one; `energy_chance`, the lesion's share of the film, which a flat map scores;
      `energy_valid` bool, there is a lesion. The others are 0 where there is none.

    Raises:
      ValueError: the cells do not divide the mask.
    """
    covered = jnp.mean(_cells_of(lesion, heat.shape), axis=(2, 4), dtype=jnp.float32)
    heat = jnp.maximum(jnp.asarray(heat, jnp.float32), 0)
    top = jnp.max(heat, axis=(1, 2), keepdims=True)
    # As shares of the highest, whose sums neither overflow nor vanish.
    heat = heat / jnp.where(top > 0, top, 1.0)
    total = jnp.sum(heat, axis=(1, 2))
    chance = jnp.mean(covered, axis=(1, 2))
    inside = jnp.sum(heat * covered, axis=(1, 2)) / jnp.where(total > 0, total, 1.0)
    return {
        "energy_inside": jnp.where(total > 0, inside, chance),
        "energy_chance": chance,
        "energy_valid": chance > 0,
    }


def means(rows: Rows) -> dict[str, Value]:
    """Means of what `explain.measured` made of each map, if anything: over films that have
    something to point at (`_hit`, `_chance`, `_share`), over all films (`_deletion`,
    `_insertion`)."""
    report = {}
    for name in (row.removesuffix("_deletion") for row in rows if row.endswith("_deletion")):
        valid = np.asarray(rows[f"{name}_valid"]).astype(bool)
        reason = "" if valid.any() else "no film has a lesion to point at"
        for what in ("hit", "chance", "share"):
            found = np.asarray(rows[f"{name}_{what}"], np.float64)[valid]
            report[f"{name}_{what}"] = Value(regression.mean(found), int(valid.sum()), reason)
        for what in ("deletion", "insertion"):
            found = np.asarray(rows[f"{name}_{what}"], np.float64)
            report[f"{name}_{what}"] = Value(regression.mean(found), len(found))
    return report


def _cells_of(lesion: Array, shape: tuple[int, ...]) -> Array:
    """A mask [B, H, W] by the cells of a map [B, h, w]: bool [B, h, H / h, w, W / w]."""
    batch, h, w = shape
    height, width = lesion.shape[1:]
    if len(lesion) != batch or height % h or width % w:
        raise ValueError(
            f"heat is {tuple(shape)}, lesion {lesion.shape}; as many films, and the cells must "
            "divide the mask."
        )
    return (jnp.asarray(lesion) > 0).reshape(batch, h, height // h, w, width // w)
