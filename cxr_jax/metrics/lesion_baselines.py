"""What finds lesions of CT slices without having learned anything, and what a map could find.

| name | what is called lesion |
| --- | --- |
| lungs | all of both lungs, as morphology finds them |
| brightness | what is bright in these lungs, in the slightly blurred slice |
| brightness_true_lungs | the same in the lungs as they were drawn |
| bound | the lesion itself, seen through the cells of the network's map |

All but the first have one threshold for all patients, which `best_levels` chooses on another split.
No gate: a patient without a lesion, in whom lungs are never dark throughout, scores 0.
"""

import jax
import jax.numpy as jnp
import numpy as np

from cxr_jax.metrics import patients
from cxr_jax.ops.resize import resize_aligned

Array = jax.Array
Rows = dict[str, np.ndarray]

NAMES = ("lungs", "brightness", "brightness_true_lungs", "bound")
CUT = NAMES[1:]  # have a threshold
LEVELS = np.round(np.arange(1, 50) * 0.02, 2)  # 0.02 .. 0.98


def slice_rows(
    brightness: Array,
    *,
    lungs: Array,
    true_lungs: Array,
    lesion: Array,
    pixel_area: Array,
    cells: tuple[int, int] | None,
) -> dict[str, Array]:
    """What a slice adds to the counts of its patient, baseline by baseline.

    Args:
        brightness: [B, H, W] 0..1, of the blurred slices.
        lungs: [B, H, W] as found, above 0 inside.
        true_lungs: [B, H, W] as drawn; all 0 where nobody has.
        lesion: [B, H, W] truth, above 0 inside.
        pixel_area: [B] what a pixel counts for.
        cells: rows and columns of the network's map; None: it has no cells, and there is no bound.

    Returns:
        NAME_found_at and NAME_both_at, areas [B, T] as in `patients.slice_rows`, at LEVELS; of the
        lungs one column; `true_lungs` bool [B], there are some.
    """
    lesion = jnp.asarray(lesion) > 0

    def above(values: Array, thresholds) -> tuple[Array, Array]:
        return patients.areas_above(values, lesion, pixel_area, thresholds=thresholds)

    found = {
        "lungs": above(lungs > 0, (0.5,)),
        "brightness": above(brightness * (lungs > 0), LEVELS),
        "brightness_true_lungs": above(brightness * (true_lungs > 0), LEVELS),
    }
    if cells is not None:
        found["bound"] = above(through_cells(lesion, cells), LEVELS)
    rows = {f"{name}_found_at": areas[0] for name, areas in found.items()}
    rows |= {f"{name}_both_at": areas[1] for name, areas in found.items()}
    return rows | {"true_lungs": jnp.any(true_lungs > 0, axis=(1, 2))}


def through_cells(mask: Array, cells: tuple[int, int]) -> Array:
    """A mask as a map of that many cells shows it: [B, H, W] -> float32 [B, H, W], 0..1.

    A cell has the mean of the mask, weighted as `resize_aligned` spreads the cell over the pixels;
    then it is so enlarged. Cut at the best level, it is what a faultless map would find.
    """
    masks = jnp.asarray(mask, jnp.float32)[..., None]
    blank = jnp.zeros((len(masks), *cells, 1))
    spread = jax.linear_transpose(lambda x: resize_aligned(x, masks.shape[1:3]), blank)
    (total,), (weight,) = spread(masks), spread(jnp.ones_like(masks))
    return resize_aligned(total / jnp.maximum(weight, 1e-6), masks.shape[1:3])[..., 0]


def best_levels(rows: Rows) -> dict[str, float]:
    """NAME -> its threshold with the highest mean Dice of positive patients, of those of CUT that
    the rows have.

    Raises:
        InputError: the truth of no patient is known.
    """
    there = [name for name in CUT if _has(rows, name)]
    return {name: float(LEVELS[patients.best_column(of_baseline(rows, name))]) for name in there}


def at_levels(rows: Rows, levels: dict[str, float]) -> Rows:
    """The rows with the thresholds that were chosen: `NAME_level` [N]."""
    count = len(rows["group"])
    return rows | {f"{n}_level": np.full(count, levels[n]) for n in CUT if n in levels}


def found_by(rows: Rows) -> dict[str, Rows]:
    """Name -> rows as if that baseline had been the model, of those that can be scored: one with a
    threshold where that was chosen."""
    return {
        name: of_baseline(rows, name)
        for name in NAMES
        if _has(rows, name) and (name not in CUT or f"{name}_level" in rows)
    }


def of_baseline(rows: Rows, name: str) -> Rows:
    """The rows with the areas of a baseline in place of the model's, and without its gate; a slice
    is called ill where something is found."""
    own = ("id", "group", "index", "known", "label", "true", "histogram")
    kept = {key: np.asarray(rows[key]) for key in own if key in rows}
    found_at, both_at = (np.asarray(rows[f"{name}_{kind}_at"]) for kind in ("found", "both"))
    level = np.asarray(rows.get(f"{name}_level", [np.nan]))[:1]
    column = int(np.searchsorted(LEVELS, level[0] - 1e-6)) if np.isfinite(level).all() else 0
    found = found_at[:, column]
    return kept | {
        "found": found,
        "both": both_at[:, column],
        "found_at": found_at,
        "both_at": both_at,
        "slice_prob": (found > 0).astype(np.float64),
    }


def _has(rows: Rows, name: str) -> bool:
    """Whether the rows have a baseline; drawn lungs must be there in every slice of known truth
    that shows any."""
    if f"{name}_found_at" not in rows:
        return False
    return name != "brightness_true_lungs" or bool(np.any(rows["true_lungs"]))
