"""The severity report: global score, zones and localisation (Kim et al. 2021, Tables 2 and 3).

`severity_report` takes the rows of a whole split, and goes into
`bootstrap.bootstrap(severity_report, rows, groups)`. Rows that it knows:

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
| `NAME_hit`, ... | [N] | optional: of an explanation, `explanations.means` |
| `lung_dice`, `lung_dice_right`, `lung_dice_left` | [N] | optional: `segmentation.lung_rows` |

Other rows are ignored.
"""

from collections.abc import Mapping

import numpy as np

from cxr_jax.data.records import ZONE_NAMES
from cxr_jax.metrics import classification, explanations, regression
from cxr_jax.metrics.bootstrap import Value

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


def severity_report(rows: Rows) -> dict[str, Value]:
    """Every metric of the severity task over one split, and how many films or zones it is of. NaN
    where undefined.

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
    report = _global_scores(rows, valid) | _zones(rows, valid)
    if "labelled" in rows:
        labelled = np.asarray(rows["labelled"]).astype(bool)
        lost = regression.mean(~valid[labelled])
        report["zones_lost"] = Value(lost, int(np.asarray(rows["labelled"]).sum()))
    if "scores" in rows and "score_pred" in rows:
        report |= _levels(rows, valid)
    if "lesion_dice" in rows:
        report |= _localisation(rows)
    if "pointing_hit" in rows:
        positive = np.asarray(rows["pointing_valid"]).astype(bool)
        hits = regression.mean(rows["pointing_hit"][positive])
        report["pointing"] = Value(hits, int(np.asarray(rows["pointing_valid"]).sum()))
    report |= {name: regression.mean_of_known(rows[name]) for name in _LUNGS if name in rows}
    return report | explanations.means(rows)


def _truth(rows: Rows, valid: np.ndarray) -> np.ndarray:
    """float64 [N, 3, 2] 0/1; 0 where a zone is invalid."""
    return np.where(valid, np.asarray(rows["labels"], np.float64), 0.0)


def _global_scores(rows: Rows, valid: np.ndarray) -> dict[str, Value]:
    """The global score 0..6, soft and hard, over the films with a valid zone."""
    films = int(valid.any(axis=(1, 2)).sum())
    probs = np.asarray(rows["probs"], np.float64)
    hard = (probs >= HARD_THRESHOLD).astype(np.float64)
    truth = _sums(_truth(rows, valid), valid)
    report = {}
    for prefix, predicted in (("", _sums(probs, valid)), ("hard_", _sums(hard, valid))):
        for metric in (regression.mse, regression.mae, regression.cc, regression.r2):
            report[f"{prefix}{metric.__name__}"] = Value(metric(predicted, truth), films)
    return report


def _zones(rows: Rows, valid: np.ndarray) -> dict[str, Value]:
    """AUC of each zone and their mean; agreement over all valid zones at 0.5."""
    films, zones = int(valid.any(axis=(1, 2)).sum()), int(valid.sum())
    probs, labels = np.asarray(rows["probs"], np.float64), _truth(rows, valid)
    aucs = {}
    for name, row, column in _zone_columns():
        scored = valid[:, row, column]
        auc = classification.auroc(probs[scored, row, column], labels[scored, row, column])
        aucs[name] = Value(auc, int(scored.sum()))
    defined = [auc.value for auc in aucs.values()]
    hard = (probs >= HARD_THRESHOLD).astype(np.float64)[valid]
    kappa = classification.cohen_kappa(hard, labels[valid], num_classes=2)
    return {
        "mean_auc": Value(regression.mean(defined), films),
        "zones_with_auc": Value(float(sum(not np.isnan(auc) for auc in defined)), films),
        **aucs,
        "zone_accuracy": Value(regression.mean(hard == labels[valid]), zones),
        "zone_kappa": Value(kappa, zones),
    }


def _levels(rows: Rows, valid: np.ndarray) -> dict[str, Value]:
    """The zone scores 0..3, and their sum 0..18 over the films with a valid zone."""
    films, zones = int(valid.any(axis=(1, 2)).sum()), int(valid.sum())
    scores = np.where(valid, np.asarray(rows["scores"], np.float64), 0.0)
    predicted = np.where(valid, np.asarray(rows["score_pred"], np.float64), 0.0)
    rounded = np.clip(np.rint(predicted), 0, 3)
    kappa = classification.cohen_kappa(rounded[valid], scores[valid], num_classes=4, quadratic=True)
    total, total_predicted = _sums(scores, valid), _sums(predicted, valid)
    return {
        "region_mae": Value(regression.mae(predicted[valid], scores[valid]), zones),
        "region_kappa": Value(kappa, zones),
        "global_mae_18": Value(regression.mae(total_predicted, total), films),
        "global_mse_18": Value(regression.mse(total_predicted, total), films),
        "global_cc_18": Value(regression.cc(total_predicted, total), films),
    }


def _localisation(rows: Rows) -> dict[str, Value]:
    """Overlap over the films with a lesion; the area that is marked on films without one."""
    nonempty = np.asarray(rows["lesion_nonempty"]).astype(bool)
    names = [f"lesion_{name}" for name in _LESION]
    return {name: regression.mean_of_known(rows[name][nonempty]) for name in names} | {
        "lesion_false_area": regression.mean_of_known(rows["lesion_false_area"][~nonempty])
    }
