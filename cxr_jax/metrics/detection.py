"""Detection of findings: AP, mAP, localisation accuracy, FROC; and how regions are placed.

The reports take the rows of a whole split (`metrics.box_matches` makes those of boxes) and go into
`bootstrap.bootstrap`. Rows that they know, K findings, up to M boxes each:

| row | shape | meaning |
| --- | --- | --- |
| `scores` | [N, K, M] | of the predicted boxes, NaN where there is none |
| `hits`, `coco_hits` | [N, K, M, 7], [N, K, M, 10] | the box finds a true one at an IoU |
| `targets` | [N, K] | number of true boxes |
| `known` | [N, K] | the true boxes of the finding are known |
| `called`, `located` | [N, K], [N, K, 7] | for localisation accuracy |
| `region_iou`, `region_called`, `region_present` | [N, A] | of the regions |
| `probs`, `labels` | [N, K] | of a film: a finding's probability; 1, 0 or NaN (unknown) |
| `region_probs`, `region_labels` | [N, A, K] | the same of its regions |

Other rows are ignored.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from cxr_jax.metrics.bootstrap import Value
from cxr_jax.metrics.box_matches import COCO_THRESHOLDS, THRESHOLDS
from cxr_jax.metrics.classification import auroc
from cxr_jax.metrics.regression import mean

Rows = Mapping[str, np.ndarray]

RECALL_LEVELS = np.arange(0.0, 1.01, 0.01)  # as the reference has them
COCO_LEVELS = np.linspace(0.0, 1.0, 101)  # the last digits differ, and with them a level or two
# With one box a finding there can be no more than one false box a film.
FALSE_BOXES = (0.125, 0.25, 0.5, 1.0)
SHOWN = (0.1, 0.3, 0.5)  # the IoU thresholds that Table 1 prints [paper]


class _Curves:
    """True and false positives of each finding along all predicted boxes, by falling score.

    Boxes of one score come in together, at the last of them: their order cannot matter then, and a
    film that was drawn several times counts as often.
    """

    def __init__(self, scores: np.ndarray, hits: np.ndarray):
        """`scores` [N, K, M], `hits` [N, K, M, T]."""
        films, findings, most, thresholds = hits.shape
        flat = np.asarray(scores, np.float64).swapaxes(0, 1).reshape(findings, films * most)
        order = np.argsort(-flat, axis=1, kind="stable")  # NaN last
        there = np.take_along_axis(~np.isnan(flat), order, axis=1)
        length = int(there.sum(axis=1).max(initial=0))
        order, there = order[:, :length], there[:, :length]
        flat = np.take_along_axis(flat, order, axis=1)
        hit = np.moveaxis(hits, (1, 3), (0, 1)).reshape(findings, thresholds, films * most)
        hit = np.take_along_axis(hit, order[:, None], axis=2) & there[:, None]
        last = np.ones_like(there)
        last[:, :-1] = flat[:, :-1] != flat[:, 1:]
        self.last = there & last  # [K, P]
        self.found = np.cumsum(hit, axis=2)  # [K, T, P]
        self.false = np.cumsum(there, axis=1)[:, None] - self.found


def average_precision(
    scores: np.ndarray,
    hits: np.ndarray,
    targets: np.ndarray,
    *,
    levels: np.ndarray = RECALL_LEVELS,
) -> np.ndarray:
    """Interpolated average precision of each finding at each IoU threshold.

    The mean over the recall levels of the largest precision at that recall or more, 0 where it is
    not reached. Equal scores come in together.

    Args:
        scores: [N, K, M]; NaN where there is no box.
        hits: bool [N, K, M, T].
        targets: [N, K].
        levels: [R] of recall, rising.

    Returns:
        float64 [K, T], 0..1; NaN where a finding has no target.
    """
    curves = _Curves(scores, hits)
    total = np.sum(targets, axis=0, dtype=np.int64)  # [K]
    findings, thresholds, length = curves.found.shape
    precision = curves.found / np.maximum(curves.found + curves.false, 1)
    precision = np.where(curves.last[:, None], precision, 0.0)
    best = np.maximum.accumulate(precision[..., ::-1], axis=2)[..., ::-1]
    # How many must be found to reach each level: [K, R].
    recalls = [np.arange(n + 1) / max(n, 1) for n in total]
    needed = np.stack([np.searchsorted(recall, levels) for recall in recalls])
    # Where along its list each row has found so many: one search of all rows, laid end to end.
    step = int(max(total.max(initial=0), curves.found.max(initial=0))) + 2
    rows = np.arange(findings * thresholds).reshape(findings, thresholds, 1) * step
    keys = (curves.found + rows).reshape(-1)
    place = np.searchsorted(keys, needed[:, None] + rows)
    place -= np.arange(findings * thresholds).reshape(findings, thresholds, 1) * length
    reached = np.concatenate([best, np.zeros((findings, thresholds, 1))], axis=2)
    at_levels = np.take_along_axis(reached, place, axis=2)  # [K, T, R]
    return np.where(total[:, None] > 0, at_levels.mean(axis=2), np.nan)


def localisation(rows: Rows) -> dict[str, np.ndarray]:
    """Localisation accuracy (Wang et al., CVPR 2017, as ADPD's code has it), of each finding.

    A true box is located at a threshold where a called prediction overlaps it more; one prediction
    may serve two. tp = located boxes, fp = called - tp (which can then fall below 0),
    fn = targets - tp, tn = films with neither.

    Args:
        rows: `called`, `located`, `targets`, `known`.

    Returns:
        `accuracy` [K, 7], (tp + tn) / (tp + tn + fp + fn), and `false_boxes` [K, 7], fp a film;
        both NaN where nothing is known of a finding. `tp` [K, 7] and `tn` [K].
    """
    known = np.asarray(rows["known"], bool)
    called, targets = (np.asarray(rows[name], np.int64) for name in ("called", "targets"))
    films, tn = known.sum(axis=0), np.sum(known & (called == 0) & (targets == 0), axis=0)
    tp = np.sum(rows["located"], axis=0, dtype=np.int64)
    fp, fn = (np.sum(values, axis=0)[:, None] - tp for values in (called, targets))
    cases = np.where(films[:, None] > 0, tp + tn[:, None] + fp + fn, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = np.where(cases > 0, (tp + tn[:, None]) / cases, np.nan)
        false_boxes = np.where(films[:, None] > 0, fp / films[:, None], np.nan)
    return {"accuracy": accuracy, "false_boxes": false_boxes, "tp": tp, "tn": tn}


def froc(rows: Rows, rates: Sequence[float] = FALSE_BOXES) -> np.ndarray:
    """Free-response ROC: the share of true boxes found at so many false boxes a film.

    Args:
        rows: `scores`, `hits` [N, K, M, T], `targets`, `known`.
        rates: [R] false boxes of the finding a film, at most.

    Returns:
        float64 [K, T, R], each the highest along the curve that keeps to the rate, nothing
        interpolated; NaN where a finding has no target.
    """
    curves = _Curves(rows["scores"], rows["hits"])
    films = np.asarray(rows["known"], bool).sum(axis=0)[:, None, None, None]
    total = np.sum(rows["targets"], axis=0, dtype=np.int64)[:, None, None]
    allowed = curves.last[:, None, None] & (
        curves.false[:, :, None] <= films * np.asarray(rates)[:, None]
    )
    found = np.max(np.where(allowed, curves.found[:, :, None], 0), axis=3, initial=0)
    return np.where(total > 0, found / np.maximum(total, 1), np.nan)


def detection_report(rows: Rows, findings: Sequence[str]) -> dict[str, Value]:
    """Every number of detection over one split, and of how many true boxes or films it is.

    Args:
        rows: see the module's table.
        findings: the K names.

    Returns:
        `map`, the mean of AP over IoU 0.1 .. 0.7 and findings, and `map_<finding>`; `ap_iou10`,
        `ap_iou30`, `ap_iou50`, means over findings; `loc_acc_iou10`, ... and `false_boxes_iou10`,
        ..., localisation accuracy and false boxes a film at a score above 0.7; `froc_iou30`, the
        mean of `froc` over its rates; `coco_map` and `coco_ap50`, as COCO counts them. A finding
        without a true box takes no part in the means of AP and FROC (the released code counts it
        as 0).
    """
    targets = np.asarray(rows["targets"])
    boxes, films = int(targets.sum()), int(np.asarray(rows["known"], bool).any(axis=1).sum())
    ap = average_precision(rows["scores"], rows["hits"], targets)
    coco = average_precision(rows["scores"], rows["coco_hits"], targets, levels=COCO_LEVELS)
    found = froc({**rows, "hits": rows["hits"][..., THRESHOLDS.tolist().index(0.3), None]})
    located = localisation(rows)
    report = {"map": Value(mean(ap), boxes)}
    for limit in SHOWN:
        at, name = THRESHOLDS.tolist().index(limit), f"iou{100 * limit:.0f}"
        report[f"ap_{name}"] = Value(mean(ap[:, at]), boxes)
        report[f"loc_acc_{name}"] = Value(mean(located["accuracy"][:, at]), films)
        report[f"false_boxes_{name}"] = Value(mean(located["false_boxes"][:, at]), films)
    report["froc_iou30"] = Value(mean(found), boxes)
    report["coco_map"] = Value(mean(coco), boxes)
    report["coco_ap50"] = Value(mean(coco[:, COCO_THRESHOLDS == 0.5]), boxes)
    for k, finding in enumerate(findings):
        report[f"map_{_key(finding)}"] = Value(mean(ap[k]), int(targets[:, k].sum()))
    return report


def region_report(rows: Rows, regions: Sequence[str]) -> dict[str, Value]:
    """How well regions are placed and said to be there, and of how many regions that is.

    Args:
        rows: see the module's table.
        regions: the A names.

    Returns:
        `region_iou`, the mean over the regions of `region_iou_<region>`, the mean over films;
        `presence_precision` and `presence_recall`, over all films and regions of which it is known.
    """
    iou = np.asarray(rows["region_iou"], np.float64)
    each = {
        f"region_iou_{_key(region)}": Value(mean(iou[:, a]), int((~np.isnan(iou[:, a])).sum()))
        for a, region in enumerate(regions)
    }
    called = np.asarray(rows["region_called"], np.float64) == 1
    present = np.asarray(rows["region_present"], np.float64) == 1
    return {
        "region_iou": Value(mean([v.value for v in each.values()]), int((~np.isnan(iou)).sum())),
        "presence_precision": Value(mean(present[called]), int(called.sum())),
        "presence_recall": Value(mean(called[present]), int(present.sum())),
        **each,
    }


def film_report(rows: Rows) -> dict[str, Value]:
    """`mean_auc`, how well findings are told of films, their places apart: the mean over the
    findings of which there are both kinds, and of how many films.

    Args:
        rows: see the module's table.
    """
    return {"mean_auc": _mean_auc(rows["probs"], rows["labels"])}


def region_label_report(rows: Rows) -> dict[str, Value]:
    """`region_auc`, the same of regions, of all places together.

    Args:
        rows: see the module's table.
    """
    return {"region_auc": _mean_auc(rows["region_probs"], rows["region_labels"])}


def _mean_auc(probs: np.ndarray, labels: np.ndarray) -> Value:
    """Of [..., K] each; NaN labels take no part."""
    labels = np.asarray(labels, np.float64)
    probs, labels = (x.reshape(-1, labels.shape[-1]) for x in (probs, labels))
    known = ~np.isnan(labels)
    aucs = [auroc(probs[known[:, k], k], labels[known[:, k], k]) for k in range(known.shape[1])]
    return Value(mean(aucs), int(known.any(axis=1).sum()))


def _key(name: str) -> str:
    """'pleural effusion' -> 'pleural_effusion'."""
    return name.replace(" ", "_").replace("/", "_")
