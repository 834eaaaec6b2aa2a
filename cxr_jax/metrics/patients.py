"""Segmentation per patient (Tang et al. 2021, Sec. 3.2): counts per slice, numbers per patient."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from cxr_jax.errors import InputError
from cxr_jax.metrics.bootstrap import Value

Array = jax.Array
Rows = dict[str, np.ndarray]

# 0.01 .. 0.04, then 0.05 .. 0.95: a map may be low on all of a small lesion.
THRESHOLDS = np.round(np.append(np.arange(1, 5) * 0.01, np.arange(1, 20) * 0.05), 2)
BINS = 50  # of the histogram of the lesion map, 0..1
LOGIT_BINS = 400  # of the slices' own probability, by its logit: float32 saturates beyond 17
MAX_LOGIT = 20.0


def slice_rows(
    lesion_map: Array, lesion: Array, pixel_area: Array, threshold: float
) -> dict[str, Array]:
    """What a slice adds to the counts of its patient, whatever its own probability (`gated`).

    Args:
        lesion_map: [B, H, W] 0..1.
        lesion: [B, H, W] truth, 0/1.
        pixel_area: [B] what a pixel counts for.
        threshold: pixels above it are found.

    Returns:
        Rows: `found`, `true`, `both` [B], areas of what was found, of the truth and of
        where they meet; `found_at`, `both_at` [B, T] the same at THRESHOLDS; `histogram`
        [B, 50, 2] pixels of the map outside and inside the truth, by its value.
    """
    lesion = jnp.asarray(lesion) > 0
    found, both = areas_above(lesion_map, lesion, pixel_area, thresholds=(threshold,))
    found_at, both_at = areas_above(lesion_map, lesion, pixel_area, thresholds=THRESHOLDS)
    bins = jnp.clip((lesion_map * BINS).astype(jnp.int32), 0, BINS - 1)
    bins = (bins * 2 + lesion).reshape(len(lesion), -1)
    counts = jax.vmap(lambda b: jnp.zeros(2 * BINS, jnp.int32).at[b].add(1))(bins)
    return {
        "found": found[:, 0],
        "true": area(lesion, pixel_area),
        "both": both[:, 0],
        "found_at": found_at,
        "both_at": both_at,
        "histogram": counts.reshape(-1, BINS, 2),
    }


def area(mask: Array, pixel_area: Array) -> Array:
    """Masks [B, H, W] and what a pixel counts for [B] -> [B]."""
    # int32 first: float32 would lose pixels of large sums.
    return jnp.sum(mask, axis=(1, 2), dtype=jnp.int32).astype(jnp.float32) * pixel_area


def areas_above(
    values: Array, lesion: Array, pixel_area: Array, *, thresholds: Sequence[float]
) -> tuple[Array, Array]:
    """Areas [B, T] of where `values` [B, H, W] are above each threshold, and of what of it lies in
    the lesion, bool [B, H, W]."""

    def above(threshold: Array) -> tuple[Array, Array]:
        found = values > threshold
        return area(found, pixel_area), area(found & lesion, pixel_area)

    found, both = jax.lax.map(above, jnp.asarray(thresholds, jnp.float32))
    return found.T, both.T


def gated(rows: Rows) -> Rows:
    """The rows with nothing found in slices whose own probability is below the row's `gate` [N];
    as they are where there is none."""
    if "gate" not in rows:  # of a version that gated them before they were written
        return rows
    shown = np.asarray(rows["slice_prob"]) >= rows["gate"]
    found = {
        name: np.asarray(rows[name]) * (shown if np.ndim(rows[name]) == 1 else shown[:, None])
        for name in ("found", "both", "found_at", "both_at")
    }
    return {**rows, **found}


def best_gate(rows: Rows, levels: Sequence[float]) -> float:
    """Of some probabilities that a slice may need, the one that tells slices with a lesion from
    those without best: sensitivity + specificity, of the slices of known label. The first of
    several that do; the first of all where there is only one kind of slice.

    Not the one with the highest Dice: of positive patients alone it would let every slice through,
    of all patients often none.
    """
    prob, label = np.asarray(rows["slice_prob"]), np.asarray(rows["label"])
    ill, free = prob[label == 1], prob[label == 0]
    if not len(ill) or not len(free):
        return levels[0]
    apart = [(ill >= level).mean() - (free >= level).mean() for level in levels]
    return levels[int(np.argmax(apart))]


def best_threshold(rows: Rows) -> int:
    """The number in THRESHOLDS of the threshold with the highest mean Dice of positive patients.

    Of all where none is positive. With the others the best threshold of a weak map would often be
    one that finds nothing in anybody.

    Raises:
        InputError: the truth of no patient is known, or the rows have other thresholds.
    """
    if np.shape(rows["found_at"])[1] != len(THRESHOLDS):
        raise InputError(
            f"the rows have {np.shape(rows['found_at'])[1]} thresholds and not {len(THRESHOLDS)}: "
            "they are of another version of cxr_jax; evaluate the run again (--mode=eval)"
        )
    return best_column(rows)


def best_column(rows: Rows) -> int:
    """As `best_threshold`, of whatever `found_at` and `both_at` [N, T] are the areas.

    Raises:
        InputError: the truth of no patient is known.
    """
    units = per_patient(rows)
    of = parts(units)
    if not of["all"].any():
        raise InputError("no patient of the split has a known mask to choose a threshold by")
    chosen = of["positive"] if of["positive"].any() else of["all"]
    return int(np.argmax(units["dice_at"][chosen].mean(0)))


def at_threshold(rows: Rows, index: int) -> Rows:
    """The rows as if THRESHOLDS[index] had been `slice_rows`' threshold."""
    return rows | {"found": rows["found_at"][:, index], "both": rows["both_at"][:, index]}


def per_patient(rows: Rows) -> Rows:
    """Rows of slices -> one row a patient, in order of name.

    dice = 2 both / (found + true), recall = both / true, precision = both / found, of the sums over
    all slices of the patient; `gated` has been applied. A patient without a lesion has dice 1 if
    nothing is found, else 0 [paper, Table 1]. Precision is 0 where a lesion is there and nothing is
    found: leaving these patients out of the mean would reward silence. The areas are of the slices
    whose mask is known. A patient with lesions of which none is drawn, or in whom nobody knows of
    any while some slices are unknown, has no such number; patients without a labelled slice are
    left out.

    Args:
        rows: of `slice_rows`, with `group` [N]; `known` bool [N], the mask of the slice is known;
            `label` [N] 1 there is a lesion in it, 0 there is none, NaN unknown; `slice_prob` [N]
            0..1 that there is one; perhaps `gate` [N], see `gated`.

    Returns:
        Rows [P]: `id` and `group` (both the patient), `positive` bool, `dice`; `recall` and
        `precision`, NaN for patients without a lesion; `dice_at` [P, T]; `slices` [P, 2, 400], how
        many slices without and with a lesion have which probability, by its logit -20..20.
    """
    rows = gated(_of_labelled_patients(rows))
    patients, member = np.unique(rows["group"], return_inverse=True)
    known, label = np.asarray(rows["known"], bool), rows["label"]

    def total(values: np.ndarray) -> np.ndarray:
        sums = np.zeros((len(patients), *values.shape[1:]))
        np.add.at(sums, member, values)
        return sums

    found, true, both = (total(rows[name] * known) for name in ("found", "true", "both"))
    found_at, both_at = (total(rows[name] * known[:, None]) for name in ("found_at", "both_at"))
    slices = _slice_histograms(rows, member, len(patients))
    positive = slices[:, 1].sum(-1) > 0
    scored = np.where(positive, total(known & (label == 1)) > 0, total(np.isnan(label)) == 0)

    def dice(both: np.ndarray, found: np.ndarray) -> np.ndarray:
        """[..., P]; of a patient without a lesion 1 if nothing is found, else 0."""
        value = np.where(positive, 2 * both / np.maximum(found + true, 1e-30), found == 0)
        return np.where(scored, value, np.nan)

    drawn = positive & scored
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "id": patients,
            "group": patients,
            "positive": positive,
            "dice": dice(both, found),
            # A lesion of a pixel or two may be gone from the mask at the model's size.
            "recall": np.where(drawn, np.where(true > 0, both / true, 0.0), np.nan),
            "precision": np.where(drawn, np.where(found > 0, both / found, 0.0), np.nan),
            "dice_at": dice(both_at.T, found_at.T).T,
            "slices": slices,
        }


def _of_labelled_patients(rows: Rows) -> Rows:
    """The rows of the patients of whom a slice is labelled."""
    rows = {name: np.asarray(values) for name, values in rows.items()}
    labelled = rows["group"][~np.isnan(rows["label"])]
    kept = np.isin(rows["group"], labelled)
    return {name: values[kept] for name, values in rows.items()}


def _slice_histograms(rows: Rows, member: np.ndarray, count: int) -> np.ndarray:
    """[count, 2, 400]: of each patient the slices without and with a lesion, by their logit."""
    logit = scipy.special.logit(np.asarray(rows["slice_prob"], np.float64))
    bins = np.floor((logit + MAX_LOGIT) * LOGIT_BINS / (2 * MAX_LOGIT))
    bins = bins.clip(0, LOGIT_BINS - 1).astype(int)
    slices = np.zeros((count, 2, LOGIT_BINS))
    for value in (0, 1):
        of_value = rows["label"] == value
        np.add.at(slices, (member[of_value], value, bins[of_value]), 1)
    return slices


def parts(units: Rows) -> dict[str, np.ndarray]:
    """Which of the patients of `per_patient` have a Dice: bool [P] of `positive` ones (with
    lesions), `negative` ones and `all`."""
    scored = ~np.isnan(units["dice"])
    positive = np.asarray(units["positive"], bool)
    return {"positive": scored & positive, "negative": scored & ~positive, "all": scored}


def patients_report(units: Rows) -> dict[str, Value]:
    """Table 1 of Tang et al. 2021: mean and standard deviation over patients, and their number.

    Args:
        units: of `per_patient`.

    Returns:
        `positive_dice`, `positive_recall`, `positive_precision`, `negative_dice`, `all_dice` and
        the same with `_sd` (n - 1 in the denominator); `slice_sensitivity` and
        `slice_specificity` of the slices' own probability at 0.5, and `slice_auc` of it, to a
        logit of 0.1. NaN where there is no such patient or slice, `_sd` also where there is one.
    """
    of = parts(units)
    values = {
        "positive_dice": units["dice"][of["positive"]],
        "positive_recall": units["recall"][of["positive"]],
        "positive_precision": units["precision"][of["positive"]],
        "negative_dice": units["dice"][of["negative"]],
        "all_dice": units["dice"][of["all"]],
    }
    report = {
        name: Value(float(np.mean(v)) if len(v) else np.nan, len(v)) for name, v in values.items()
    }
    report |= {
        f"{name}_sd": Value(float(np.std(v, ddof=1)) if len(v) > 1 else np.nan, len(v))
        for name, v in values.items()
    }
    return report | _of_slices(units["slices"].sum(0))


def _of_slices(slices: np.ndarray) -> dict[str, Value]:
    """How well the slices' own probability tells them apart, from their histogram [2, 400]."""
    negative, positive = slices
    called = slice(LOGIT_BINS // 2, None)
    below = np.cumsum(negative) - negative / 2  # ties count one half
    with np.errstate(invalid="ignore"):
        sensitivity = positive[called].sum() / positive.sum()
        specificity = 1 - negative[called].sum() / negative.sum()
        auc = positive @ below / (positive.sum() * negative.sum())
    return {
        "slice_sensitivity": Value(float(sensitivity), int(positive.sum())),
        "slice_specificity": Value(float(specificity), int(negative.sum())),
        "slice_auc": Value(float(auc), int(slices.sum())),
    }
