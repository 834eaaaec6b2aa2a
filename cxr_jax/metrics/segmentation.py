"""Overlap of masks, one row an example: Dice, IoU, precision, recall, area."""

import jax
import jax.numpy as jnp

Array = jax.Array


def _ratio(top: Array, bottom: Array, empty: float) -> Array:
    """top / bottom, and `empty` where bottom is 0; float32."""
    return jnp.where(bottom > 0, top / jnp.maximum(bottom, 1), empty)


def overlap_rows(pred: Array, true: Array) -> dict[str, Array]:
    """How one mask covers another, per example.

    With P and T the two sets of pixels: dice = 2 |P and T| / (|P| + |T|),
    iou = |P and T| / |P or T|, precision = |P and T| / |P|, recall = |P and T| / |T|.

    Args:
        pred: [B, H, W] predicted mask, bool or 0/1 (threshold probabilities first).
        true: [B, H, W] true mask, bool or 0/1.

    Returns:
        Rows [B], float32 but for `nonempty`:
        `dice`, `iou`: 0..1; 1 where both masks are empty.
        `precision`: 0..1; NaN where nothing is predicted. `recall`: 0..1; NaN where truth is empty.
        `false_area`: share of the image's pixels that are predicted and not true.
        `nonempty`: bool, truth has a pixel. Averages of dice should be taken over these, and
        `false_area` reported for the others.

    Raises:
        ValueError: the shapes are not one and the same [B, H, W].
    """
    if pred.shape != true.shape or pred.ndim != 3:
        raise ValueError(f"masks are {pred.shape} and {true.shape}; must be equal, [B, H, W].")
    pred, true = jnp.asarray(pred) > 0, jnp.asarray(true) > 0
    pixels = pred.shape[1] * pred.shape[2]

    def count(mask: Array) -> Array:
        # int32: float32 would lose pixels of masks beyond 4096 x 4096.
        return jnp.sum(mask, axis=(1, 2), dtype=jnp.int32)

    both, in_pred, in_true = count(pred & true), count(pred), count(true)
    return {
        "dice": _ratio(2 * both, in_pred + in_true, 1.0),
        "iou": _ratio(both, in_pred + in_true - both, 1.0),
        "precision": _ratio(both, in_pred, jnp.nan),
        "recall": _ratio(both, in_true, jnp.nan),
        "false_area": (in_pred - both) / pixels,
        "nonempty": in_true > 0,
    }


def lung_rows(pred: Array, true: Array) -> dict[str, Array]:
    """Dice of each lung, per example.

    Args:
        pred: [B, H, W] predicted labels, 0 outside, 1 right lung, 2 left lung.
        true: [B, H, W] true labels, likewise.

    Returns:
        Rows [B] float32: `lung_dice_right`, `lung_dice_left` in 0..1, NaN where a lung is absent
        from both masks (a lung found where there is none scores 0); `lung_dice`, the mean of the
        defined ones, NaN where both masks are empty.
    """
    pred, true = jnp.asarray(pred), jnp.asarray(true)
    dice = []
    for label in (1, 2):
        rows = overlap_rows(pred == label, true == label)
        seen = jnp.any((pred == label) | (true == label), axis=(1, 2))
        dice.append(jnp.where(seen, rows["dice"], jnp.nan))
    right, left = dice
    defined = (~jnp.isnan(right)).astype(jnp.float32) + (~jnp.isnan(left)).astype(jnp.float32)
    total = jnp.nan_to_num(right) + jnp.nan_to_num(left)
    return {
        "lung_dice_right": right,
        "lung_dice_left": left,
        "lung_dice": jnp.where(defined > 0, total / jnp.maximum(defined, 1), jnp.nan),
    }


def lung_area_rows(pred: Array, true: Array) -> dict[str, Array]:
    """How much of the lungs is found, both lungs taken together, per example.

    With P and T the predicted and the true lungs: lung_area_ratio = |P| / |T|, below 1 where lungs
    are under-segmented; lung_recall = |P and T| / |T|.

    Args:
        pred: [B, H, W] predicted labels, 0 outside.
        true: [B, H, W] true labels, likewise.

    Returns:
        Rows [B] float32; NaN where there is no true lung.
    """
    pred, true = jnp.asarray(pred) > 0, jnp.asarray(true) > 0
    in_pred, in_true = (jnp.sum(m, axis=(1, 2), dtype=jnp.int32) for m in (pred, true))
    return {
        "lung_area_ratio": _ratio(in_pred, in_true, jnp.nan),
        "lung_recall": overlap_rows(pred, true)["recall"],
    }
