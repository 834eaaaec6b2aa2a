"""Deletion and insertion (Petsiuk, Das and Saenko, RISE, BMVC 2018, arXiv:1806.07421).

Does the network need what a heat map points at? Deletion takes the hottest cells from the film
first: the smaller the area under the probability, the better. Insertion puts them into a baseline
first, usually the blurred film: the larger, the better. A flat map gives what a blind order does.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Probability = Callable[[Array], Array]


def ranks(heat: Array) -> Array:
    """The place of each cell in the order from hot to cold: [B, h, w] -> int [B, h, w], from 0.

    Equal cells, of a flat map all of them, stand in one shuffled order, always the same for a
    number of cells: never in rows from the top. NaN comes last.
    """
    batch, h, w = heat.shape
    shuffled = np.random.default_rng(0).permutation(h * w)
    keys = heat.reshape(batch, h * w)[:, shuffled]
    order = jnp.argsort(-keys, axis=1)  # stable: equal cells stay shuffled
    place = jnp.argsort(order, axis=1)
    return place[:, np.argsort(shuffled)].reshape(batch, h, w)


def deletion(
    probability: Probability, images: Array, baseline: Array, *, heat: Array, steps: int = 16
) -> dict[str, Array]:
    """The probability as the hottest cells of the images are replaced by the baseline.

    Args:
      probability: [B, H, W] -> [B], of the class that is explained; each image on its own.
      images: [B, H, W].
      baseline: [B, H, W], what takes the place of a cell that is deleted.
      heat: [B, h, w]; only its order counts. Ties: see `ranks`. Its cells must divide the film.
      steps: of equal size, from no cell to all cells; one forward pass each, and one more.

    Returns:
      'score' [B], the area under the curve over the share of cells replaced, by trapezia: between
      the smallest and the largest probability of the curve; 'curve' [B, steps + 1].

    Raises:
      ValueError: the cells do not divide the film.
    """
    place = _on_pixels(ranks(heat), images.shape)
    size = heat.shape[1] * heat.shape[2]
    counts = np.round(np.linspace(0, size, steps + 1)).astype(np.int32)
    curve = jax.lax.map(
        lambda count: probability(jnp.where(place < count, baseline, images)),
        jnp.asarray(counts),
    )
    curve = curve.astype(jnp.float32).T
    widths = np.diff(counts / size).astype(np.float32)
    score = jnp.sum((curve[:, 1:] + curve[:, :-1]) / 2 * widths, axis=1)
    return {"score": score, "curve": curve}


def insertion(
    probability: Probability, images: Array, baseline: Array, *, heat: Array, steps: int = 16
) -> dict[str, Array]:
    """The probability as the hottest cells of the images are put into the baseline.

    It is the deletion of the baseline's cells by the images', and takes and gives the same.
    """
    return deletion(probability, baseline, images, heat=heat, steps=steps)


def _on_pixels(cells: Array, shape: tuple[int, ...]) -> Array:
    """[B, h, w] -> [B, H, W], each cell over its pixels."""
    (height, width), (h, w) = shape[1:], cells.shape[1:]
    if height % h or width % w:
        raise ValueError(
            f"heat is {h}x{w} cells, the film {height}x{width} px; the cells must divide it."
        )
    return jnp.repeat(jnp.repeat(cells, height // h, axis=1), width // w, axis=2)
