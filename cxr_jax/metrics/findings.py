"""The findings report: discrimination of each finding, and whether its heat map points at it.

`findings_report` takes the rows of a whole split, and goes into
`bootstrap.bootstrap(findings_report, rows, groups)`. Rows that it knows, K findings in the order of
`records.FINDINGS`:

| row | shape | meaning |
| --- | --- | --- |
| `probs` | [N, K] | predicted probability |
| `log_odds` | [N, K] | by which films are ranked; `probs` where it is absent |
| `labels` | [N, K] | 0, 1 or NaN (unknown) |
| `pointing_hit`, `pointing_chance`, `pointing_valid` | [N, K] | `pointing`, below |
| `NAME_hit`, ... | [N] | of an explanation, where they were measured: `explanations.means` |

Other rows are ignored.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cxr_jax.data.records import FINDINGS
from cxr_jax.metrics import classification, explanations, regression
from cxr_jax.metrics.bootstrap import Value

Array = jax.Array
Rows = Mapping[str, np.ndarray]


def pointing(heat: Array, boxes: Array, box_label: Array) -> dict[str, Array]:
    """The pointing game: does the highest point of a finding's map lie in a box of that finding?

    The point is the middle of the highest cell, which is also where the map has its maximum after
    bilinear enlargement. A box that holds no cell's middle cannot be hit; it counts all the same.

    Args:
        heat: [B, h, w, K] one map a finding; only its order counts.
        boxes: [B, M, 4] xyxy as shares of the picture's width and height, 0..1; NaN where padded.
        box_label: int [B, M] finding of each box; outside 0..K-1 it takes no part.

    Returns:
        [B, K] each: `pointing_hit` 1 or 0; where several cells share the highest value, the part of
        them that lies in a box (so that a flat map scores what a blind guess would).
        `pointing_chance`, the share of all cells whose middle lies in a box: what a blind guess
        hits. `pointing_valid` bool: the film has a box of the finding; the others are 0 there.
    """
    height, width, num = heat.shape[1:]
    x = (jnp.arange(width) + 0.5) / width
    y = ((jnp.arange(height) + 0.5) / height)[:, None]
    left, top, right, bottom = jnp.moveaxis(boxes[:, :, None, None], -1, 0)  # [B, M, 1, 1] each
    # Half open, as the boxes' pixels are; NaN is inside nothing.
    inside = (left <= x) & (x < right) & (top <= y) & (y < bottom)  # [B, M, h, w]
    of_finding = box_label[..., None] == jnp.arange(num)  # [B, M, K]
    covered = jnp.einsum("bmhw,bmk->bhwk", inside.astype(jnp.int32), of_finding.astype(jnp.int32))
    covered = covered > 0
    hit = explanations.share_of_highest(heat, covered)
    valid = jnp.any(of_finding & ~jnp.isnan(boxes).any(-1, keepdims=True), axis=1)
    return {
        "pointing_hit": jnp.where(valid, hit, 0.0),
        "pointing_chance": jnp.where(valid, jnp.mean(covered, axis=(1, 2)), 0.0),
        "pointing_valid": valid,
    }


def finding_aucs(rows: Rows) -> dict[str, Value]:
    """`auc_<finding>` of each over the films where it is known; NaN without both classes."""
    labels = np.asarray(rows["labels"], np.float64)
    known = (~np.isnan(labels)).sum(axis=0)
    ranks = rows.get("log_odds", rows["probs"])
    return {
        f"auc_{_key(name)}": Value(classification.auroc(ranks[:, k], labels[:, k]), int(known[k]))
        for k, name in enumerate(FINDINGS)
    }


class Measured(NamedTuple):
    """Which findings means are taken over, bool [K] each: of AUCs, and of pointing."""

    auc: np.ndarray
    pointing: np.ndarray


def measured(rows: Rows) -> Measured:
    """The findings that can be measured on these rows: both classes, and a box."""
    aucs = [auc.value for auc in finding_aucs(rows).values()]
    boxed = np.zeros(len(FINDINGS), bool)
    if "pointing_hit" in rows:
        boxed = np.asarray(rows["pointing_valid"]).astype(bool).any(axis=0)
    return Measured(auc=~np.isnan(aucs), pointing=boxed)


def findings_report(rows: Rows, over: Measured | None = None) -> dict[str, Value]:
    """Every metric of the findings task over one split, and of how many films it is. NaN where
    undefined.

    Args:
        rows: see the module's table.
        over: the findings that the means are over, of the split that the rows are a resample of;
            a mean is NaN where the rows cannot measure one of them. By default those that they can:
            a bootstrap would then average another set of findings each time.

    Returns:
        `mean_auc` over the findings that have both classes, `findings_with_auc`, how many these
        are, and `auc_<finding>` of each. With pointing rows: `mean_pointing` over the findings that
        have a box, `mean_pointing_chance`, the same of a blind guess, and `pointing_<finding>`, the
        share of films with such a box whose map points into one.
        Counts: known labels for `auc_<finding>`, films with a box for `pointing_<finding>`; for
        the means, films with any known finding, and with any box.
    """
    over = measured(rows) if over is None else over
    aucs = finding_aucs(rows)
    values = np.array([auc.value for auc in aucs.values()])
    known = int((~np.isnan(np.asarray(rows["labels"], np.float64))).any(axis=1).sum())
    report = {
        "mean_auc": Value(_mean(values, over.auc), known),
        "findings_with_auc": Value(float(np.sum(~np.isnan(values))), known),
        **aucs,
    }
    report |= _pointing_report(rows, over.pointing) if "pointing_hit" in rows else {}
    return report | explanations.means(rows)


def _pointing_report(rows: Rows, over: np.ndarray) -> dict[str, Value]:
    valid = np.asarray(rows["pointing_valid"]).astype(bool)
    boxed = int(valid.any(axis=1).sum())
    hits = _per_finding(rows["pointing_hit"], valid)
    chances = _per_finding(rows["pointing_chance"], valid)
    return {
        "mean_pointing": Value(_mean([hit.value for hit in hits.values()], over), boxed),
        "mean_pointing_chance": Value(
            _mean([chance.value for chance in chances.values()], over), boxed
        ),
        **{f"pointing_{name}": hit for name, hit in hits.items()},
    }


def _mean(values: Sequence[float], over: np.ndarray) -> float:
    """Of the values [K] of these findings; NaN where one of them is, or there is none."""
    return float(np.mean(np.asarray(values)[over])) if over.any() else float("nan")


def _key(name: str) -> str:
    """'pleural effusion' -> 'pleural_effusion'."""
    return name.replace(" ", "_")


def _per_finding(values: np.ndarray, valid: np.ndarray) -> dict[str, Value]:
    """Finding -> mean of a pointing row [N, K] over the films that have a box of it."""
    values = np.asarray(values, np.float64)
    return {
        _key(finding): Value(regression.mean(values[valid[:, k], k]), int(valid[:, k].sum()))
        for k, finding in enumerate(FINDINGS)
    }
