"""Losses as pure functions: predictions and targets in, one number an example out.

Every function returns [B], never a mean over the batch, and an example's value depends on that
example alone. The mean over B is therefore the same number on one device and on many.
"""

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


def binary_cross_entropy_from_log_probs(
    log_p: Array, log_1mp: Array, labels: Array, valid: Array
) -> Array:
    """Binary cross-entropy of probabilities that are known by their logarithms.

    -mean over valid zones of y log p + (1 - y) log(1 - p). This is the severity loss (Kim et al.
    2021, the text after Eq. 9): p is a zone of the severity array a, the pooled probability, whose
    logarithms `ops.pooling.zone_log_probs` gives without ever forming p.

    Args:
        log_p: [B, ...] log p, finite where valid (e.g. [B, 3, 2]).
        log_1mp: [B, ...] log(1 - p), finite where valid.
        labels: [B, ...] in 0..1 (soft labels are allowed); anything where invalid, NaN included.
        valid: [B, ...] bool or 0/1; the zone takes part.

    Returns:
        [B] float32, nats per example averaged over its valid zones; 0 where none is valid.
    """
    valid = jnp.asarray(valid, bool)
    # Fill first: a non-finite value that is only masked out afterwards makes the gradient NaN.
    labels = jnp.where(valid, jnp.asarray(labels, jnp.float32), 0.0)
    log_p = jnp.where(valid, jnp.asarray(log_p, jnp.float32), 0.0)
    log_1mp = jnp.where(valid, jnp.asarray(log_1mp, jnp.float32), 0.0)
    bce = -(labels * log_p + (1.0 - labels) * log_1mp)
    axes = tuple(range(1, bce.ndim))
    return jnp.sum(bce, axis=axes) / jnp.maximum(jnp.sum(valid, axis=axes), 1)


def segmentation_loss(logits: Array, labels: Array) -> Array:
    """Pixel cross-entropy plus soft Dice loss for the right and the left lung.

    mean over pixels and lungs of BCE, plus mean over the lungs that the film has of
    1 - (2 sum p t + 1) / (sum p + sum t + 1). A lung that is absent from the truth is left to the
    cross-entropy: its Dice is 0 for any prediction, whatever the network does.

    Args:
        logits: [B, H, W, 2] before the sigmoid; channel 0 right lung, channel 1 left lung.
        labels: [B, H, W] integers, 0 outside, 1 right lung, 2 left lung.

    Returns:
        [B] float32, nats per pixel plus a Dice loss in 0..1.

    Raises:
        ValueError: `logits` is not [B, H, W, 2] or `labels` is not [B, H, W].
    """
    if logits.ndim != 4 or logits.shape != (*labels.shape, 2):
        raise ValueError(
            f"logits are {logits.shape} and labels {labels.shape}; "
            "expected [B, H, W, 2] (right, left) and [B, H, W]."
        )
    logits = jnp.asarray(logits, jnp.float32)
    target = jnp.stack([labels == 1, labels == 2], axis=-1).astype(jnp.float32)
    bce = jnp.mean(optax.sigmoid_binary_cross_entropy(logits, target), axis=(1, 2, 3))

    probs = jax.nn.sigmoid(logits)
    overlap = jnp.sum(probs * target, axis=(1, 2))  # [B, 2]
    total = jnp.sum(probs, axis=(1, 2)) + jnp.sum(target, axis=(1, 2))
    present = jnp.any(target > 0, axis=(1, 2))
    dice_loss = jnp.where(present, 1.0 - (2.0 * overlap + 1.0) / (total + 1.0), 0.0)
    return bce + jnp.sum(dice_loss, axis=-1) / jnp.maximum(jnp.sum(present, axis=-1), 1)


def pseudo_segmentation_loss(logits: Array, probs: Array, confidence: float) -> Array:
    """The loss of `segmentation_loss` against a teacher's lungs, over the pixels it is sure of.

    A pixel of a lung's map takes part where the teacher says p >= confidence (then it is lung) or
    p <= 1 - confidence (not lung). The Dice loss of a lung counts where the teacher is sure of
    some of it.

    Args:
        logits: [B, H, W, 2] of the student, before the sigmoid.
        probs: [B, H, W, 2] of the teacher, 0..1; a constant.
        confidence: 0.5 .. 1.

    Returns:
        [B] float32, nats per sure pixel plus a Dice loss in 0..1; 0 where no pixel is sure.
    """
    logits = jnp.asarray(logits, jnp.float32)
    target = (probs >= 0.5).astype(jnp.float32)
    sure = ((probs >= confidence) | (probs <= 1 - confidence)).astype(jnp.float32)
    bce = jnp.sum(sure * optax.sigmoid_binary_cross_entropy(logits, target), axis=(1, 2, 3))
    bce = bce / jnp.maximum(jnp.sum(sure, axis=(1, 2, 3)), 1.0)

    student, target = jax.nn.sigmoid(logits) * sure, target * sure
    overlap = jnp.sum(student * target, axis=(1, 2))  # [B, 2]
    total = jnp.sum(student, axis=(1, 2)) + jnp.sum(target, axis=(1, 2))
    present = jnp.any(target > 0, axis=(1, 2))
    dice_loss = jnp.where(present, 1.0 - (2.0 * overlap + 1.0) / (total + 1.0), 0.0)
    return bce + jnp.sum(dice_loss, axis=-1) / jnp.maximum(jnp.sum(present, axis=-1), 1)


def masked_bce(logits: Array, labels: Array, *, positive_weights: Array | None = None) -> Array:
    """Binary cross-entropy that ignores unknown findings.

    Args:
        logits: [B, K] finding logits, before the sigmoid.
        labels: [B, K] in 0..1; NaN where the finding is unknown.
        positive_weights: [K] factors w of -(w y log p + (1 - y) log(1 - p)); None: all one.

    Returns:
        [B] float32, nats per example averaged over its known findings; 0 where none is known.
    """
    labels = jnp.asarray(labels, jnp.float32)
    known = ~jnp.isnan(labels)
    # Fill first: a NaN that is only masked out afterwards makes the gradient NaN.
    labels = jnp.where(known, labels, 0.0)
    logits = jnp.asarray(logits, jnp.float32)
    bce = optax.sigmoid_binary_cross_entropy(logits, labels)
    if positive_weights is not None:
        bce += (1.0 - positive_weights) * labels * jax.nn.log_sigmoid(logits)
    return jnp.sum(jnp.where(known, bce, 0.0), axis=-1) / jnp.maximum(jnp.sum(known, axis=-1), 1)
