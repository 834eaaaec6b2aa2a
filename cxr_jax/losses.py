"""Losses as pure functions: predictions and targets in, one number an example out.

Every function returns [B], never a mean over the batch, and an example's value depends on that
example alone, but for `nt_xent`, whose negatives are the batch, and for the losses of boxes, which
the batch's numbers of regions weigh. The mean over B is therefore the same number on one device and
on many.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from cxr_jax.ops import boxes, pcm
from cxr_jax.ops.resize import resize_aligned

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
    """`mask_loss` of the right and the left lung.

    A lung that is absent from the truth is left to the cross-entropy: its Dice is 0 for any
    prediction, whatever the network does.

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
    return mask_loss(logits, jnp.stack([labels == 1, labels == 2], axis=-1))


def mask_loss(logits: Array, target: Array) -> Array:
    """Pixel cross-entropy plus soft Dice loss of K masks that may overlap.

    mean over pixels and masks of BCE, plus mean over the masks that are not empty of
    1 - (2 sum p t + 1) / (sum p + sum t + 1). An empty mask is left to the cross-entropy.

    Args:
        logits: [B, H, W, K] before the sigmoid.
        target: [B, H, W, K] bool or 0/1.

    Returns:
        [B] float32, nats per pixel plus a Dice loss in 0..1.
    """
    logits = jnp.asarray(logits, jnp.float32)
    target = jnp.asarray(target, jnp.float32)
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


def soft_margin(logits: Array, labels: Array) -> Array:
    """log(1 + exp(-y p)): a view's term of Eq. 1, Tang et al. 2021 (M-SEAM-NAM); of a bag, Eq. 7.

    Eq. 7 prints a minus before the logarithm, which would reward mistakes: a slip, not followed.

    Args:
        logits: p [B]; for Eq. 7 those of `ops.bags.bag_logit`.
        labels: y [B], -1 or +1.

    Returns:
        [B] float32, nats.
    """
    return jax.nn.softplus(-jnp.asarray(labels, jnp.float32) * jnp.asarray(logits, jnp.float32))


def _labelled(cam: Array, label: Array) -> Array:
    """Maps [B, h, w, 1 + K] times their label [B, K]; channel 0, the background, times 1."""
    if cam.ndim != 4 or label.shape != (cam.shape[0], cam.shape[-1] - 1):
        raise ValueError(
            f"maps are {cam.shape} and labels {label.shape}; expected [B, h, w, 1 + K] and [B, K]."
        )
    ones = jnp.ones((label.shape[0], 1))
    return cam * jnp.concatenate([ones, label], axis=1)[:, None, None, :]


def _hardest_mean(values: Array, hardest: float) -> Array:
    """Mean of the largest int(hardest * n) of the n values of each example: [B, ...] -> [B]."""
    values = values.reshape(values.shape[0], -1)
    if hardest < 1.0:
        values, _ = jax.lax.top_k(values, max(int(hardest * values.shape[1]), 1))
    return jnp.mean(values, axis=1)


def equivariance_losses(
    large: tuple[Array, Array],
    small: tuple[Array, Array],
    label: Array,
    *,
    hardest: float = 1.0,
) -> dict[str, Array]:
    """The terms of L_ER and L_ECR: Eq. 2 and 3 of Tang et al. 2021 (M-SEAM-NAM).

    Every map is stretched to 0..1 (`ops.pcm.min_max_normalize`), resized to the small view and
    multiplied by the label. L_ER = er_cam + er_revised compares like maps of the two views, over
    the foreground channels. L_ECR = ecr_large + ecr_small compares a revised map with the other
    view's CAM, all channels; that CAM is a target without gradient, its background made from its
    foreground and one class a pixel (`ops.pcm.strongest_class`).

    The equations leave the stretching and the targets unsaid: they are the released code's, and so
    is a mean over the channels too, where the equations divide by the number of pixels. The code
    has er_cam alone in L_ER, and hardest = 0.2.

    Args:
        large: C_l and D_l, the CAM and the revised CAM of the large view, [B, H, W, 1 + K] each.
        small: C_s and D_s of the small view, [B, h, w, 1 + K] each.
        label: [B, K], 1 or 0: an absent class has its maps cleared. (The released code multiplies
            by -1 instead; pass that to reproduce it.)
        hardest: the share of an image's values, the largest differences, that L_ECR averages.

    Returns:
        'er_cam' (C_l and C_s), 'er_revised' (D_l and D_s), 'ecr_large' (D_l and the target of C_s),
        'ecr_small' (D_s and the target of C_l), each [B] float32: a mean absolute difference.

    Raises:
        ValueError: `hardest` is not in (0, 1], or maps and labels do not fit.
    """
    if not 0.0 < hardest <= 1.0:
        raise ValueError(f"hardest={hardest}; expected a share above 0 and at most 1.")
    size = small[0].shape[1:3]
    (cam_l, revised_l), (cam_s, revised_s) = (
        [_labelled(resize_aligned(pcm.min_max_normalize(x), size), label) for x in view]
        for view in (large, small)
    )
    target_l, target_s = (jax.lax.stop_gradient(pcm.strongest_class(x)) for x in (cam_l, cam_s))
    return {
        "er_cam": jnp.mean(jnp.abs(cam_l - cam_s)[..., 1:], axis=(1, 2, 3)),
        "er_revised": jnp.mean(jnp.abs(revised_l - revised_s)[..., 1:], axis=(1, 2, 3)),
        "ecr_large": _hardest_mean(jnp.abs(target_s - revised_l), hardest),
        "ecr_small": _hardest_mean(jnp.abs(target_l - revised_s), hardest),
    }


def adaptive_min_pooling(revised: Array, label: Array) -> Array:
    """The released SEAM code's extra term: the quarter of the pixels that is least any class.

    Mean of ReLU over the floor(pixels / 4) smallest values of the largest labelled foreground
    channel. It is in none of M-SEAM-NAM's equations.

    Args:
        revised: [B, h, w, 1 + K], one view's revised CAM, not normalised.
        label: [B, K], as in `equivariance_losses`.

    Returns:
        [B] float32.

    Raises:
        ValueError: maps and labels do not fit.
    """
    strongest = jnp.max(_labelled(revised.astype(jnp.float32), label)[..., 1:], axis=-1)
    strongest = strongest.reshape(strongest.shape[0], -1)
    least, _ = jax.lax.top_k(-strongest, max(strongest.shape[1] // 4, 1))
    return jnp.mean(jax.nn.relu(-least), axis=1)


def nt_xent(first: Array, second: Array, *, temperature: float) -> Array:
    """Contrastive loss of two views of each example: Eq. 1 of Chen et al. 2020 (SimCLR).

    l(i, j) = -log(exp(s_ij / T) / sum over k != i of exp(s_ik / T)), s the cosine: a view must tell
    its partner from the other 2B - 2 views of the batch. An example's loss is the mean of l(i, j)
    and l(j, i). The batch is what the caller sees: under jit the global one, on any number of
    devices; under pmap the device's part, which then is all the negatives there are.

    Args:
        first: [B, D] one view's projection of each example; need not be normalised.
        second: [B, D] the other view's.
        temperature: T, above 0.

    Returns:
        [B] float32, nats; log(2B - 1) where nothing can be told apart. A vector of zeros has the
        cosine 0 with all, and a finite gradient.

    Raises:
        ValueError: the shapes differ, or B is 1: there is no negative.
    """
    if first.ndim != 2 or first.shape != second.shape or len(first) < 2:
        raise ValueError(
            f"views are {first.shape} and {second.shape}; expected twice [B, D] with B > 1"
        )
    count = len(first)
    views = unit_vectors(jnp.concatenate([first, second]))
    logits = jnp.matmul(views, views.T, precision="highest") / temperature
    same = jnp.eye(2 * count, dtype=bool)
    partner = jnp.roll(same, count, axis=1)
    # A large number, no infinity: its product with a zero gradient stays zero.
    others = jax.nn.logsumexp(jnp.where(same, -1e30, logits), axis=1)
    losses = others - jnp.sum(jnp.where(partner, logits, 0.0), axis=1)
    return (losses[:count] + losses[count:]) / 2


def unit_vectors(x: Array) -> Array:
    """[..., D] -> float32 [..., D] of length 1; zeros, with a finite gradient, where x is zero."""
    x = jnp.asarray(x, jnp.float32)
    # Scaled first, so that the squares neither overflow nor vanish.
    x = x / jnp.maximum(jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True)), 1e-12)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def fixed_box_losses(
    boxes_cxcywh: Array, targets_cxcywh: Array, present: Array
) -> dict[str, Array]:
    """DETR's box losses with a fixed assignment: prediction i is of target i (ADPD, Sec. 3.3).

    Sums over the targets that are there, divided by their number in the whole batch. That number is
    of what the caller sees: under jit of the global batch, under pmap of the device's part.

    Args:
        boxes_cxcywh: [B, A, 4] predictions, 0..1.
        targets_cxcywh: [B, A, 4]; anything where absent, NaN included.
        present: [B, A] bool or 0/1; the target is there.

    Returns:
        'l1', the summed absolute differences of the four numbers, and 'giou', 1 - generalised IoU,
        each [B] float32. An example has its share: the MEAN over B is the batch's sum divided by
        the batch's number of targets. All 0 where the batch has none.
    """
    present = jnp.asarray(present, bool)
    predicted = jnp.asarray(boxes_cxcywh, jnp.float32)
    # Filled first: a NaN that is only masked out afterwards makes the gradient NaN.
    targets = jnp.where(present[..., None], jnp.asarray(targets_cxcywh, jnp.float32), 0.0)
    l1 = jnp.sum(jnp.abs(predicted - targets), axis=-1)
    giou = 1.0 - boxes.generalized_iou(boxes.to_corners(predicted), boxes.to_corners(targets))
    scale = len(present) / jnp.maximum(jnp.sum(present), 1)
    both = {"l1": l1, "giou": giou}
    return {k: scale * jnp.sum(jnp.where(present, v, 0.0), axis=-1) for k, v in both.items()}


def presence_loss(logits: Array, present: Array, *, balanced: bool = False) -> Array:
    """Binary cross-entropy of whether a region is there (ADPD).

    Args:
        logits: [B, A] before the sigmoid.
        present: [B, A] 0 or 1, or bool; NaN where nobody knows.
        balanced: weighs each region by how often the batch has it: (N + 1) / (n + 1) where it is
            there and (N + 1) / (N - n + 1) where not, for n of N known ones. The released code
            means to, but its weights cancel, so that it is plain there.

    Returns:
        [B] float32, nats averaged over the example's known regions; 0 where none is known.
    """
    return balanced_bce(logits, present) if balanced else masked_bce(logits, present)


def balanced_bce(logits: Array, labels: Array) -> Array:
    """Binary cross-entropy that ignores unknown labels and weighs the known by how rare they are.

    A class's positives weigh (N + 1) / (n + 1) and its negatives (N + 1) / (N - n + 1), where the
    batch has n positives among N known ones. (Of what the caller sees: under jit the global batch.)

    Args:
        logits: [B, K] before the sigmoid.
        labels: [B, K] 0 or 1, or bool; NaN where unknown.

    Returns:
        [B] float32, nats averaged over the example's known labels; 0 where none is known.
    """
    labels = jnp.asarray(labels, jnp.float32)
    known = ~jnp.isnan(labels)
    labels = jnp.where(known, labels, 0.0)
    count, positive = jnp.sum(known, axis=0), jnp.sum(labels, axis=0)
    weights = jnp.where(labels > 0, 1.0 / (positive + 1.0), 1.0 / (count - positive + 1.0))
    bce = optax.sigmoid_binary_cross_entropy(jnp.asarray(logits, jnp.float32), labels)
    bce = jnp.where(known, (count + 1.0) * weights * bce, 0.0)
    return jnp.sum(bce, axis=-1) / jnp.maximum(jnp.sum(known, axis=-1), 1)


def asymmetric_loss(
    logits: Array,
    labels: Array,
    *,
    reduction: Literal["mean", "sum"],
    gamma_neg: float = 4.0,
    gamma_pos: float = 1.0,
    clip: float = 0.05,
) -> Array:
    """ASL, for many labels of which few are positive (Ridnik et al., ICCV 2021).

    p = sigmoid(logit), q = min(1 - p + clip, 1). A positive costs -(1 - p)^gamma_pos log p, a
    negative -(1 - q)^gamma_neg log q; the gradient goes through the weights too. As in timm neither
    p nor q falls below 1e-8 in the logarithm: a positive whose logit is under -18 hardly pulls.

    Args:
        logits: [B, ...] before the sigmoid.
        labels: [B, ...] 0 or 1; NaN where unknown.
        reduction: over the known labels of an example. ADPD's paper averages over regions and
            pathologies: 'mean'. Its code sums over those and over the batch: B times the mean over
            B of 'sum'. Its weight of 0.01 belongs to that sum.
        gamma_neg, gamma_pos: exponents, 0 or at least 1.
        clip: negatives with p below it cost nothing.

    Returns:
        [B] float32, nats; 0 where no label is known.

    Raises:
        ValueError: another reduction, or an exponent between 0 and 1: its gradient is infinite.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction={reduction!r}; expected 'mean' or 'sum'.")
    for gamma in (gamma_neg, gamma_pos):
        if gamma != 0 and gamma < 1:
            raise ValueError(f"an exponent of {gamma}; expected 0, or at least 1.")
    logits, labels = jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.float32)
    known = ~jnp.isnan(labels)
    absent = jax.nn.sigmoid(-logits)  # 1 - p, without cancellation
    positive = -_power(absent, gamma_pos) * _floored(jax.nn.log_sigmoid(logits))
    # 1 - q: what p has above the clip.
    excess = jnp.maximum(jax.nn.sigmoid(logits) - clip, 0.0)
    log_q = jnp.log1p(-excess) if clip > 0 else jax.nn.log_sigmoid(-logits)
    negative = -_power(excess, gamma_neg) * _floored(log_q)
    axes = tuple(range(1, logits.ndim))
    total = jnp.sum(jnp.where(known, jnp.where(labels > 0, positive, negative), 0.0), axis=axes)
    return total / jnp.maximum(jnp.sum(known, axis=axes), 1) if reduction == "mean" else total


def focal_loss(
    logits: Array, labels: Array, positive: Array, *, alpha: float = 0.25, gamma: float = 2.0
) -> Array:
    """Focal loss of the findings at a film's anchors (Lin et al., ICCV 2017, Sec. 3.2 and 4.1).

    The sum over anchors and findings, divided by the number of anchors that have a box: as in the
    paper a film's own, at least 1.

    Args:
        logits: [B, A, K] before the sigmoid.
        labels: [B, A, K] 0 or 1; NaN where unknown.
        positive: bool [B, A], the anchor has a box.
        alpha: weight of the positives; the negatives have 1 - alpha.
        gamma: exponent of 1 - p of the true answer.

    Returns:
        [B] float32, nats.
    """
    logits, labels = jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.float32)
    known = ~jnp.isnan(labels)
    # Filled first: a NaN that is only masked out afterwards makes the gradient NaN.
    each = optax.sigmoid_focal_loss(logits, jnp.where(known, labels, 0.0), alpha=alpha, gamma=gamma)
    return jnp.sum(jnp.where(known, each, 0.0), axis=(1, 2)) / _at_least_one(positive)


def anchor_box_loss(
    deltas: Array, targets: Array, positive: Array, *, beta: float = 1 / 9
) -> Array:
    """Smooth L1 of the boxes at a film's anchors: d^2 / (2 beta) up to beta, then d - beta / 2.

    Args:
        deltas: [B, A, 4] predictions, as `ops.anchors.encode` has them.
        targets: [B, A, 4]; anything where an anchor has no box, NaN included.
        positive: bool [B, A], the anchor has a box.
        beta: where it turns linear; Detectron's value. Lin et al. do not say.

    Returns:
        [B] float32: summed over the four numbers and the film's anchors that have a box, divided by
        how many these are; 0 where there is none.
    """
    there = jnp.asarray(positive, bool)[..., None]
    deltas = jnp.asarray(deltas, jnp.float32)
    each = optax.huber_loss(deltas, jnp.where(there, targets, 0.0), delta=beta) / beta
    return jnp.sum(jnp.where(there, each, 0.0), axis=(1, 2)) / _at_least_one(positive)


def _at_least_one(positive: Array) -> Array:
    """How many are True: [B, A] -> [B]; 1 where none is."""
    return jnp.maximum(jnp.sum(positive, axis=1), 1)


def _power(x: Array, exponent: float) -> Array:
    """x^exponent of x >= 0; an exponent of 0 has no gradient, at x = 0 neither."""
    return x**exponent if exponent else jnp.ones_like(x)


def _floored(log_prob: Array) -> Array:
    """max(log p, log 1e-8)."""
    return jnp.maximum(log_prob, jnp.log(jnp.float32(1e-8)))


def adversarial_loss(logits: Array, *, real: bool) -> Array:
    """How far a discriminator is from saying 'real', or 'made': the non-saturating form.

    Args:
        logits: [B] of being real.
        real: what it should say.

    Returns:
        [B] float32, nats: log(1 + exp(-z)) or log(1 + exp(z)).
    """
    logits = jnp.asarray(logits, jnp.float32)
    return jax.nn.softplus(-logits if real else logits)


def r1_penalty(judge: Callable[[Array], Array], films: Array) -> Array:
    """Half the squared length of the gradient of a judgement to the film (Mescheder et al.,
    arXiv:1801.04406, Eq. 9): a discriminator is to be flat at real films.

    Args:
        judge: films [B, ...] -> logits [B], each of its own film alone.
        films: real ones.

    Returns:
        [B] float32.
    """
    slope = jax.grad(lambda x: jnp.sum(judge(x)))(films)
    return 0.5 * jnp.sum(jnp.square(slope.astype(jnp.float32)).reshape(len(films), -1), axis=1)


def l1_distance(a: Array, b: Array) -> Array:
    """Mean absolute difference of each example: [B, ...] twice -> float32 [B]."""
    difference = jnp.asarray(a, jnp.float32) - jnp.asarray(b, jnp.float32)
    return jnp.mean(jnp.abs(difference).reshape(len(difference), -1), axis=1)
