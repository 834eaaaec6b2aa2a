"""The severity report: global score, zones and localisation (Kim et al. 2021, Tables 2 and 3).

`severity_report` and `severity_counts` take the rows of a whole split, and go into
`bootstrap.bootstrap(severity_report, rows, groups, counts=severity_counts)`. Rows that they know:

| row | shape | meaning |
| --- | --- | --- |
| `probs` | [N, 3, 2] | predicted zone probability |
| `labels` | [N, 3, 2] | 0/1; anything where invalid |
| `valid` | [N, 3, 2] | the zone takes part |
| `labelled` | [N, 3, 2] | optional: the zone was scored, whether or not the mask has it |
| `scores`, `score_pred` | [N, 3, 2] | optional: true and predicted zone score, 0..3 |
| `lesion_dice`, `lesion_iou`, `lesion_precision`, `lesion_recall`, `lesion_false_area`, \
`lesion_nonempty` | [N] | optional: `segmentation.overlap_rows`, NaN where a film has no mask |
| `pointing_hit`, `pointing_valid` | [N, 3, 2] | optional: `lesion_hits.pointing` |
| `lung_dice`, `lung_dice_right`, `lung_dice_left` | [N] | optional: `segmentation.lung_rows` |

Other rows are ignored.
"""

from collections.abc import Mapping

import numpy as np

from cxr_jax.data.records import ZONE_NAMES
from cxr_jax.metrics import classification, regression

Rows = Mapping[str, np.ndarray]

HARD_THRESHOLD = 0.5  # PAPERS section 1: the hard score counts zones with p >= 0.5

_LESION = ("dice", "iou", "precision", "recall")
_LUNGS = ("lung_dice", "lung_dice_right", "lung_dice_left")


def _sums(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Global score of each film with a valid zone: [N, 3, 2] -> [M], the sum over valid zones."""
    sums = np.sum(np.where(valid, values, 0.0), axis=(1, 2), dtype=np.float64)
    return sums[valid.any(axis=(1, 2))]


def _zone_columns() -> list[tuple[str, int, int]]:
    """(`auc_<zone>`, row, column) of the six zones."""
    return [
        (f"auc_{name.replace(' ', '_')}", row, column)
        for row, pair in enumerate(ZONE_NAMES)
        for column, name in enumerate(pair)
    ]


def severity_report(rows: Rows) -> dict[str, float]:
    """Every metric of the severity task over one split. NaN where undefined.

    Args:
        rows: see the module's table.

    Returns:
        Global score, the sum over a film's valid zones (0..6), films without a valid zone left out:
        `mse`, `mae`, `cc`, `r2` of the sum of probabilities (soft); `hard_mse`, `hard_mae`,
        `hard_cc`, `hard_r2` of the number of zones with p >= 0.5.
        Zones: `auc_<zone>` for the six, `mean_auc` over those that have both classes and
        `zones_with_auc`, how many these are; `zone_accuracy` and `zone_kappa` (Cohen) over all
        valid zones at 0.5.
        With `labelled`: `zones_lost`, the share of scored zones that the lung mask does not have.
        With `scores`: `region_mae` (0..3), `region_kappa` (quadratic, scores rounded), and of the
        sum (0..18) `global_mae_18`, `global_mse_18`, `global_cc_18`.
        With lesion rows: `lesion_dice`, `lesion_iou`, `lesion_precision`, `lesion_recall`, means
        over films with a lesion pixel; `lesion_false_area`, the mean predicted share of the image
        over films whose mask is empty. With pointing rows: `pointing`, hits per truly positive
        zone. With lung rows: their means.
    """
    valid = np.asarray(rows["valid"]).astype(bool)
    probs = np.asarray(rows["probs"], np.float64)
    labels = np.where(valid, np.asarray(rows["labels"], np.float64), 0.0)
    hard = (probs >= HARD_THRESHOLD).astype(np.float64)

    report = {}
    truth = _sums(labels, valid)
    for prefix, predicted in (("", _sums(probs, valid)), ("hard_", _sums(hard, valid))):
        report[f"{prefix}mse"] = regression.mse(predicted, truth)
        report[f"{prefix}mae"] = regression.mae(predicted, truth)
        report[f"{prefix}cc"] = regression.cc(predicted, truth)
        report[f"{prefix}r2"] = regression.r2(predicted, truth)

    aucs = {}
    for name, row, column in _zone_columns():
        scored = valid[:, row, column]
        aucs[name] = classification.auroc(probs[scored, row, column], labels[scored, row, column])
    report["mean_auc"] = regression.mean(list(aucs.values()))
    report["zones_with_auc"] = float(sum(not np.isnan(auc) for auc in aucs.values()))
    report |= aucs
    report["zone_accuracy"] = regression.mean(hard[valid] == labels[valid])
    report["zone_kappa"] = classification.cohen_kappa(hard[valid], labels[valid], num_classes=2)

    if "labelled" in rows:
        labelled = np.asarray(rows["labelled"]).astype(bool)
        report["zones_lost"] = regression.mean(~valid[labelled])
    if "scores" in rows and "score_pred" in rows:
        scores = np.where(valid, np.asarray(rows["scores"], np.float64), 0.0)
        score_pred = np.where(valid, np.asarray(rows["score_pred"], np.float64), 0.0)
        rounded = np.clip(np.rint(score_pred), 0, 3)
        total, total_pred = _sums(scores, valid), _sums(score_pred, valid)
        report["region_mae"] = regression.mae(score_pred[valid], scores[valid])
        report["region_kappa"] = classification.cohen_kappa(
            rounded[valid], scores[valid], num_classes=4, quadratic=True
        )
        report["global_mae_18"] = regression.mae(total_pred, total)
        report["global_mse_18"] = regression.mse(total_pred, total)
        report["global_cc_18"] = regression.cc(total_pred, total)

    if "lesion_dice" in rows:
        nonempty = np.asarray(rows["lesion_nonempty"]).astype(bool)
        for name in _LESION:
            report[f"lesion_{name}"] = regression.mean(rows[f"lesion_{name}"][nonempty])
        report["lesion_false_area"] = regression.mean(rows["lesion_false_area"][~nonempty])
    if "pointing_hit" in rows:
        positive = np.asarray(rows["pointing_valid"]).astype(bool)
        report["pointing"] = regression.mean(rows["pointing_hit"][positive])
    for name in _LUNGS:
        if name in rows:
            report[name] = regression.mean(rows[name])
    return report


def severity_counts(rows: Rows) -> dict[str, int]:
    """How many films or zones each metric of `severity_report` is computed from.

    Films for the global scores, AUCs, lesion and lung metrics; zones for `zone_*`, `region_*` and
    `pointing`.
    """
    valid = np.asarray(rows["valid"]).astype(bool)
    films, zones = int(valid.any(axis=(1, 2)).sum()), int(valid.sum())
    counts = {name: films for name in severity_report(rows)}
    counts |= {name: int(valid[:, row, column].sum()) for name, row, column in _zone_columns()}
    counts |= {"zone_accuracy": zones, "zone_kappa": zones}
    if "labelled" in rows:
        counts["zones_lost"] = int(np.asarray(rows["labelled"]).sum())
    if "region_mae" in counts:
        counts |= {"region_mae": zones, "region_kappa": zones}
    if "lesion_dice" in rows:
        nonempty = np.asarray(rows["lesion_nonempty"]).astype(bool)
        for name in _LESION:
            counts[f"lesion_{name}"] = int((~np.isnan(rows[f"lesion_{name}"][nonempty])).sum())
        empty = np.asarray(rows["lesion_false_area"], np.float64)[~nonempty]
        counts["lesion_false_area"] = int((~np.isnan(empty)).sum())
    if "pointing_hit" in rows:
        counts["pointing"] = int(np.asarray(rows["pointing_valid"]).sum())
    for name in _LUNGS:
        if name in rows:
            counts[name] = int((~np.isnan(np.asarray(rows[name], np.float64))).sum())
    return counts
