"""How good explanations are where the lesion is known: does a map point at it, and does the network
need what the map shows?"""

from collections.abc import Callable, Mapping

import jax

from cxr_jax.explain import faithfulness
from cxr_jax.metrics import explanations

Array = jax.Array

_STEPS = 8  # of a deletion: as many forward passes, and one more
_BLURRED = 8  # cells of a film of which nothing but the exposure is left
_ROWS = ("_hit", "_chance", "_share", "_valid", "_deletion", "_insertion")


def measured(
    maps: Mapping[str, Array],
    probability: Callable[[Array], Array],
    *,
    images: Array,
    lesion: Array,
) -> dict[str, Array]:
    """Rows of `metrics.explanations.means`, [B] each, six of every map.

    Args:
      maps: name -> [B, h, w], see `explanations.pointing`. No name may end as a row does.
      probability: [B, H, W] -> [B], of what is explained; each film on its own.
      images: [B, H, W], as the network sees them.
      lesion: [B, H, W], 0 where there is none.
    """
    blurred = resized(resized(images, (_BLURRED, _BLURRED)), images.shape[1:])
    rows = {}
    for name, heat in maps.items():
        hits = explanations.pointing(heat, lesion)
        rows |= {f"{name}_{what}": hits[f"pointing_{what}"] for what in ("hit", "chance", "valid")}
        rows[f"{name}_share"] = explanations.energy(heat, lesion)["energy_inside"]
        for curve in (faithfulness.deletion, faithfulness.insertion):
            found = curve(probability, images, blurred, heat=heat, steps=_STEPS)
            rows[f"{name}_{curve.__name__}"] = found["score"]
    return rows


def rows_of(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Those of a task's outputs that `measured` made, if any."""
    names = [name.removesuffix("_deletion") for name in outputs if name.endswith("_deletion")]
    return {name + what: outputs[name + what] for name in names for what in _ROWS}


def resized(images: Array, side: tuple[int, int]) -> Array:
    """[B, H, W] -> [B, h, w]: means where it shrinks, else bilinear."""
    return jax.image.resize(images, (len(images), *side), "linear", antialias=True)
