"""Detection against the reference, COCO's own code and plain loops, and at its edges."""

import contextlib
import io
import time

import jax
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cxr_jax.metrics import detection
from cxr_jax.metrics.bootstrap import bootstrap, numbers
from cxr_jax.metrics.box_matches import CALLED, THRESHOLDS, detection_rows, region_rows
from cxr_jax.ops import boxes

TOLERANCE = 1e-5  # absolute: the README's, for detection_ap
NAMES = [f"finding {k}" for k in range(8)]
match = jax.jit(detection_rows)


def rows_of(predicted, true, *, known=None):
    """Lists of boxes (film, x0, y0, x1, y1, finding[, score]) as fixed shapes, matched."""
    films = int(max(predicted[:, 0].max(), true[:, 0].max())) + 1
    findings = int(max(predicted[:, 5].max(), true[:, 5].max())) + 1
    lists = {(i, k): [] for i in range(films) for k in range(findings)}
    for row in predicted:
        lists[int(row[0]), int(row[5])].append(row)
    most = max(map(len, lists.values()))
    xyxy, scores = (
        np.full((films, findings, most, 4), np.nan),
        np.full((films, findings, most), np.nan),
    )
    for (i, k), found in lists.items():
        for m, row in enumerate(found):
            xyxy[i, k, m], scores[i, k, m] = row[1:5], row[6]
    length = int(np.bincount(true[:, 0].astype(int)).max()) + 2
    targets, finding = np.full((films, length, 4), np.nan), np.full((films, length), -1)
    for i in range(films):
        mine = true[true[:, 0] == i]
        targets[i, : len(mine)], finding[i, : len(mine)] = mine[:, 1:5], mine[:, 5]
    found = match(
        np.float32(xyxy),
        np.float32(scores),
        true_xyxy=np.float32(targets),
        true_finding=finding,
        known=known,
    )
    return {name: np.asarray(value) for name, value in found.items()}


def corners(rows):
    rows = np.asarray(rows, np.float64).copy()
    rows[:, 1:5] = boxes.to_corners(rows[:, 1:5])
    return rows


@pytest.fixture(scope="module", params=["top1", "many"])
def case(request, golden):
    """A case of the reference: its outputs, our rows."""
    arrays, name = golden("detection_ap"), request.param
    rows = rows_of(corners(arrays[f"in_{name}_pred"]), corners(arrays[f"in_{name}_gt"]))
    prefix = f"out_{name}_"
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}, rows


def test_average_precision_matches_reference(case, assert_golden):
    want, rows = case
    ap = detection.average_precision(rows["scores"], rows["hits"], rows["targets"])
    # The reference counts a finding without a box as 0; here it takes no part.
    np.testing.assert_array_equal(np.isnan(ap).all(1), want["counts_gt"] == 0)
    filled = np.nan_to_num(ap)
    assert_golden(filled.T, want["ap"], rtol=0, atol=TOLERANCE)
    assert_golden(filled.mean(), want["map"], rtol=0, atol=TOLERANCE)
    at = filled.mean(0)[[0, 2, 4, 6]]
    assert_golden(at, want["map_at"], rtol=0, atol=TOLERANCE)


def test_localisation_accuracy_matches_reference(case, assert_golden):
    want, rows = case
    found = detection.localisation(rows)
    np.testing.assert_array_equal(rows["targets"].sum(0), want["counts_gt"])
    np.testing.assert_array_equal(rows["called"].sum(0), want["counts_pred"])
    np.testing.assert_array_equal(found["tp"], want["counts_tp"])
    np.testing.assert_array_equal(found["tn"], want["counts_tn"])
    assert_golden(found["accuracy"].mean(0), want["acc_at"], rtol=0, atol=TOLERANCE)
    assert_golden(found["false_boxes"].mean(0), want["afp_at"], rtol=0, atol=TOLERANCE)


def test_the_report_says_what_the_reference_says(case):
    want, rows = case
    report = detection.detection_report(rows, NAMES)
    occurring = want["counts_gt"] > 0
    ap = want["ap"][:, occurring]
    assert report["map"].value == pytest.approx(ap.mean(), abs=TOLERANCE)
    assert report["map"].count == want["counts_gt"].sum()
    for place, name in ((0, "iou10"), (2, "iou30"), (4, "iou50")):
        assert report[f"ap_{name}"].value == pytest.approx(ap[place].mean(), abs=TOLERANCE)
        assert report[f"loc_acc_{name}"].value == pytest.approx(want["acc_at"][place], abs=1e-5)
        assert report[f"false_boxes_{name}"].value == pytest.approx(want["afp_at"][place], abs=1e-5)
    each = [report[f"map_finding_{k}"].value for k in np.flatnonzero(occurring)]
    np.testing.assert_allclose(each, ap.mean(0), atol=TOLERANCE)


def draw(seed, *, films=30, findings=4, most=3, spread=0.08):
    """Some boxes on films, and guesses at them: good ones, bad ones, too many, too few."""
    rng = np.random.default_rng(seed)
    true, predicted = [], []
    for i in range(films):
        for k in range(findings):
            for _ in range(rng.integers(0, 3)):
                size, low = rng.uniform(0.1, 0.4, 2), rng.uniform(0, 0.5, 2)
                true.append([i, *low, *(low + size), k])
                if rng.random() < 0.7:
                    box = np.array(true[-1][1:5]) + rng.normal(0, spread, 4)
                    box = np.concatenate([box[:2], np.maximum(box[2:], box[:2] + 0.02)])
                    predicted.append([i, *box, k, rng.uniform(0.3, 1)])
            while rng.random() < 0.3:
                low = rng.uniform(0, 0.5, 2)
                predicted.append([i, *low, *(low + rng.uniform(0.1, 0.4, 2)), k, rng.uniform(0, 1)])
    return np.float32(predicted), np.float32(true)


def coco_says(predicted, true):
    """mAP and AP at 0.5 by pycocotools; boxes in units of a thousandth of the film."""

    def box(row):
        x0, y0, x1, y1 = (1000 * row[1:5].astype(np.float64)).tolist()
        return {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}

    both = [
        [{"id": n + 1, "image_id": int(r[0]), "category_id": int(r[5]), "iscrowd": 0, **box(r)}
         for n, r in enumerate(rows)]
        for rows in (true, predicted)
    ]  # fmt: skip
    for annotation, row in zip(both[1], predicted):
        annotation["score"] = float(row[6])
    images = [{"id": i} for i in range(int(max(true[:, 0].max(), predicted[:, 0].max())) + 1)]
    names = [{"id": k} for k in range(int(max(true[:, 5].max(), predicted[:, 5].max())) + 1)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        for coco, annotations in zip((truth, found), both):
            coco.dataset = {"images": images, "annotations": annotations, "categories": names}
            coco.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:2]


@pytest.mark.parametrize("seed", range(6))
def test_coco_numbers_are_those_of_cocos_own_code(seed):
    predicted, true = draw(seed, spread=0.02 + 0.01 * seed)
    report = detection.detection_report(rows_of(predicted, true), NAMES[:4])
    ours = [report[name].value for name in ("coco_map", "coco_ap50")]
    # 1e-9: both are float64; a box on the edge of a threshold would move more than 1e-4.
    np.testing.assert_allclose(ours, coco_says(predicted, true), atol=1e-9)
    assert 0.02 < ours[0] < ours[1] < 1


def test_cocos_code_agrees_on_the_reference(golden):
    arrays = golden("detection_ap")
    pair = [corners(arrays[f"in_many_{name}"]) for name in ("pred", "gt")]
    report = detection.detection_report(rows_of(*pair), NAMES)
    ours = [report[name].value for name in ("coco_map", "coco_ap50")]
    np.testing.assert_allclose(ours, coco_says(*pair), atol=1e-9)


def plain_froc(predicted, true, *, finding, limit, rate, films):
    """The curve, threshold by threshold, by plain loops."""
    mine = predicted[predicted[:, 5] == finding]
    target = true[true[:, 5] == finding]
    best = 0.0
    for cut in np.unique(mine[:, 6]):
        free, hits, false = list(target), 0, 0
        for row in sorted(mine[mine[:, 6] >= cut], key=lambda r: -r[6]):
            ious = [boxes.iou(row[1:5], t[1:5]) if t[0] == row[0] else -1 for t in free]
            if ious and max(ious) > limit:
                free.pop(int(np.argmax(ious)))
                hits += 1
            else:
                false += 1
        if false <= rate * films:
            best = max(best, hits / len(target))
    return best


def test_froc_equals_plain_loops():
    predicted, true = draw(1, films=6, findings=2)
    found = detection.froc(rows_of(predicted, true))
    for k in range(2):
        for place, limit in ((0, 0.1), (4, 0.5)):
            for r, rate in enumerate(detection.FALSE_BOXES):
                want = plain_froc(predicted, true, finding=k, limit=limit, rate=rate, films=6)
                assert found[k, place, r] == pytest.approx(want)
    assert (np.diff(found, axis=2) >= 0).all()
    assert found[:, 0, 0].max() < found[:, 0, -1].max()


def test_perfect_boxes_score_one_and_none_score_zero():
    _, true = draw(2)
    perfect = np.column_stack([true, np.linspace(0.75, 0.99, len(true))])
    report = numbers(detection.detection_report(rows_of(perfect, true), NAMES[:4]))
    wanted = {name: 0.0 if name.startswith("false") else 1.0 for name in report}
    assert report == wanted
    nothing = perfect.copy()
    nothing[:, 6] = np.nan
    report = numbers(detection.detection_report(rows_of(nothing, true), NAMES[:4]))
    assert {report[name] for name in report if "ap" in name or "froc" in name} == {0.0}


def test_a_split_without_boxes_has_no_number():
    predicted, true = draw(3)
    true[:, 5] = -1
    rows = rows_of(predicted, true)
    report = numbers(detection.detection_report(rows, NAMES[:4]))
    undefined = {name for name, value in report.items() if np.isnan(value)}
    assert undefined == {name for name in report if not name.startswith(("loc", "false"))}
    films, findings = rows["targets"].shape
    blind = match(
        np.zeros((films, findings, 1, 4), np.float32),
        np.full((films, findings, 1), np.nan, np.float32),
        true_xyxy=np.full((films, 1, 4), np.nan, np.float32),
        true_finding=np.full((films, 1), -1),
        known=np.zeros((films, findings), bool),
    )
    report = numbers(detection.detection_report(jax.device_get(blind), NAMES[:4]))
    assert np.isnan(list(report.values())).all()


def test_what_is_not_known_takes_no_part():
    predicted, true = draw(4)
    known = np.ones((30, 4), bool)
    known[:10, 1] = False
    some = rows_of(predicted, true, known=known)
    kept = [~((rows[:, 0] < 10) & (rows[:, 5] == 1)) for rows in (predicted, true)]
    less = rows_of(predicted[kept[0]], true[kept[1]])
    everything = rows_of(predicted, true)
    name = "map_finding_1"
    values = [detection.detection_report(r, NAMES[:4])[name] for r in (some, less, everything)]
    assert values[0] == values[1] != values[2]
    # Ten films are not ten true negatives.
    tn = [detection.localisation(rows)["tn"][1] for rows in (some, less)]
    assert tn[1] - tn[0] == 10


def test_the_order_of_films_boxes_and_findings_does_not_matter():
    predicted, true = draw(5)
    predicted[:, 6] = np.round(predicted[:, 6], 1)  # many equal scores, in other films
    _, first = np.unique(predicted[:, [0, 5, 6]], axis=0, return_index=True)
    predicted = predicted[np.sort(first)]
    plain = numbers(detection.detection_report(rows_of(predicted, true), NAMES[:4]))
    rng = np.random.default_rng(0)
    films, shuffled = rng.permutation(30), [rng.permutation(len(r)) for r in (predicted, true)]
    moved = [rows[order] for rows, order in zip((predicted, true), shuffled)]
    for rows in moved:
        rows[:, 0] = films[rows[:, 0].astype(int)]
    again = numbers(detection.detection_report(rows_of(*moved), NAMES[:4]))
    assert again == pytest.approx(plain, abs=1e-12)
    for rows in moved:
        rows[:, [1, 3]] = 1 - rows[:, [3, 1]]  # and a mirrored film scores alike
    mirrored = numbers(detection.detection_report(rows_of(*moved), NAMES[:4]))
    assert mirrored == pytest.approx(plain, abs=1e-12)


def test_films_drawn_twice_change_nothing():
    rows = rows_of(*draw(6))
    twice = {name: np.concatenate([value, value]) for name, value in rows.items()}
    plain = numbers(detection.detection_report(rows, NAMES[:4]))
    again = numbers(detection.detection_report(twice, NAMES[:4]))
    assert again == pytest.approx(plain, abs=1e-12)


def test_padding_takes_no_part():
    predicted, true = draw(7)
    rows = rows_of(predicted, true)
    films, findings, most = rows["scores"].shape
    wide = {
        "scores": np.full((films, findings, most + 5), np.nan, np.float32),
        "hits": np.zeros((films, findings, most + 5, 7), bool),
        "coco_hits": np.zeros((films, findings, most + 5, 10), bool),
    }
    for name, value in wide.items():
        value[:, :, :most] = rows[name]
    plain = detection.detection_report(rows, NAMES[:4])
    assert detection.detection_report(rows | wide, NAMES[:4]) == plain


def test_a_thousand_resamples_take_seconds():
    """One box a finding, as ADPD has it: 441 films, 8 findings; here 100 of them."""
    rng = np.random.default_rng(8)
    scores = rng.random((441, 8, 1)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.5] = np.nan
    targets = (rng.random((441, 8)) < 0.2).astype(np.int32)
    hits = (rng.random((441, 8, 1, 17)) < 0.5) & (targets[..., None, None] > 0)
    rows = {
        "scores": scores,
        "hits": hits[..., :7] & ~np.isnan(scores)[..., None],
        "coco_hits": hits[..., 7:] & ~np.isnan(scores)[..., None],
        "targets": targets,
        "known": np.ones((441, 8), bool),
        "called": (np.nan_to_num(scores[..., 0]) > CALLED).astype(np.int32),
        "located": hits[:, :, 0, :7].astype(np.int32),
    }
    start = time.process_time()
    found = bootstrap(
        lambda rows: detection.detection_report(rows, NAMES), rows, np.arange(441), resamples=100
    )
    assert time.process_time() - start < 5  # it takes about half a second
    assert found["map"].low < found["map"].value < found["map"].high


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3, 1, 4\) and what belongs to them \(2, 3, 2\)"):
        detection_rows(
            np.zeros((2, 3, 1, 4)),
            np.zeros((2, 3, 2)),
            true_xyxy=np.zeros((2, 5, 4)),
            true_finding=np.zeros((2, 5), int),
        )


def test_thresholds_are_the_papers():
    np.testing.assert_array_equal(THRESHOLDS, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])


def test_regions_are_scored_where_they_are_known():
    square = np.float32([0.0, 0.0, 1.0, 1.0])
    true = np.stack([np.stack([square, square * np.nan]), np.stack([square, square])])
    predicted = np.stack([np.stack([square, square]), np.stack([square * [1, 1, 0.5, 1], square])])
    present = np.float32([[1, 0], [1, np.nan]])
    presence = np.array([[True, True], [False, True]])
    rows = jax.device_get(region_rows(predicted, presence, true_xyxy=true, present=present))
    report = detection.region_report(rows, ["right lung", "spine"])
    assert report["region_iou_right_lung"] == (0.75, 2, "")
    assert report["region_iou_spine"] == (1.0, 1, "")
    assert report["region_iou"] == (0.875, 3, "")
    # Called: lung and spine of the first film; of the second's spine nobody knows.
    assert report["presence_precision"] == (0.5, 2, "")
    assert report["presence_recall"] == (0.5, 2, "")


def test_regions_of_which_nothing_is_known_have_no_number():
    rows = region_rows(
        np.zeros((2, 1, 4), np.float32),
        np.zeros((2, 1), bool),
        true_xyxy=np.full((2, 1, 4), np.nan, np.float32),
        present=np.full((2, 1), np.nan),
    )
    report = detection.region_report(jax.device_get(rows), ["spine"])
    assert all(np.isnan(value.value) and value.count == 0 for value in report.values())
