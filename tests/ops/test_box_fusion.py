"""Weighted boxes fusion against the package that defines it, and from regions to boxes."""

import numpy as np
import pytest

from cxr_jax.ops import boxes
from cxr_jax.ops.box_fusion import finding_boxes, weighted_boxes_fusion
from tests.conftest import ROOT

TOLERANCE = 1e-5  # absolute: the README's, for wbf and adpd_postprocess
PACKAGE = np.load(ROOT / "tests" / "fixtures" / "wbf.npz")


@pytest.mark.parametrize("threshold", ["03", "55"])
@pytest.mark.parametrize("rule, score", [("max", "max"), ("avg", "mean")])
def test_fusion_matches_reference(golden, assert_golden, threshold, rule, score):
    arrays = golden("wbf")
    rows, want = arrays["in_boxes"], arrays[f"out_fused_thr{threshold}_{rule}"]
    for case in np.unique(rows[:, 0]):
        mine = rows[rows[:, 0] == case]
        labels = np.unique(mine[:, 5])
        scores = np.where(mine[:, 5] == labels[:, None], mine[:, 6], np.nan)
        groups = np.broadcast_to(mine[None, :, 1:5], (len(labels), *mine[:, 1:5].shape))
        limit = int(threshold) / 100
        found = weighted_boxes_fusion(groups, scores, threshold=limit, score=score)
        label, place = np.nonzero(~np.isnan(found.scores))
        got = np.column_stack([found.xyxy[label, place], labels[label], found.scores[label, place]])
        got = got[np.argsort(-got[:, 5], kind="stable")]
        assert_golden(got, want[want[:, 0] == case][:, 1:], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("score", ["max", "mean"])
def test_fusion_equals_the_package_on_many_groups(score):
    half = slice(None, 60) if score == "max" else slice(60, None)
    group = {name: PACKAGE[name][half] for name in PACKAGE.files}
    for limit in np.unique(group["in_thresholds"]):
        mine = {k: v[group["in_thresholds"] == limit] for k, v in group.items()}
        found = weighted_boxes_fusion(
            mine["in_boxes"], mine["in_scores"], threshold=limit, score=score
        )
        # NaN must be where it is there: as many clusters in every group.
        np.testing.assert_allclose(found.scores, mine["out_scores"], atol=TOLERANCE)
        np.testing.assert_allclose(found.xyxy, mine["out_boxes"], atol=TOLERANCE)
    clusters, members = ((~np.isnan(group[f"{k}_scores"])).sum() for k in ("out", "in"))
    assert 0.2 * members < clusters < 0.9 * members  # boxes are fused, and are not


@pytest.mark.parametrize("threshold, name", [(0.5, ""), (0.3, "_thr30")])
def test_from_regions_to_the_best_boxes_matches_reference(golden, assert_golden, threshold, name):
    arrays = golden("adpd_postprocess")
    positive = (arrays["in_probs"] > threshold) & (arrays["in_mask"][..., None] > 0)
    found = finding_boxes(arrays["in_boxes"], arrays["in_probs"], positive)
    film, finding = np.nonzero(~np.isnan(found.scores[:, :, 0]))
    best = found.xyxy[film, finding, 0]
    got = np.column_stack([film, boxes.to_centres(best), finding, found.scores[film, finding, 0]])
    assert_golden(got, arrays[f"out_boxes_top1{name}"], rtol=0, atol=TOLERANCE)


def test_all_boxes_match_reference(golden, assert_golden):
    arrays = golden("adpd_postprocess")
    positive = (arrays["in_logits"] > 0) & (arrays["in_mask"][..., None] > 0)
    found = finding_boxes(arrays["in_boxes"], arrays["in_probs"], positive)
    film, finding, place = np.nonzero(~np.isnan(found.scores))
    scores = found.scores[film, finding, place]
    centres = boxes.to_centres(found.xyxy[film, finding, place])
    got = np.column_stack([film, centres, finding, scores])[np.lexsort([-scores, film])]
    assert_golden(got, arrays["out_boxes_all"], rtol=0, atol=TOLERANCE)


def regions(seed, films=3, count=29, findings=5, rate=0.4):
    rng = np.random.default_rng(seed)
    xywh = np.concatenate(
        [rng.uniform(0, 1, (films, count, 2)), rng.uniform(0.05, 0.4, (films, count, 2))], -1
    )
    probs = rng.uniform(0.5, 1, (films, count, findings))
    return xywh, probs, rng.random(probs.shape) < rate


def test_the_order_of_regions_films_and_findings_does_not_matter():
    xywh, probs, positive = regions(0)
    rng = np.random.default_rng(1)
    films, order, names = rng.permutation(3), rng.permutation(29), rng.permutation(5)
    plain = finding_boxes(xywh, probs, positive)
    moved = finding_boxes(
        xywh[films][:, order],
        probs[films][:, order][:, :, names],
        positive[films][:, order][:, :, names],
    )
    for got, want in zip(moved, plain):
        np.testing.assert_allclose(got, want[films][:, names], atol=1e-6)  # sums of 29


def test_a_mirrored_film_has_mirrored_boxes():
    xywh, probs, positive = regions(2)
    plain = finding_boxes(xywh, probs, positive)
    mirrored = xywh * [-1, 1, 1, 1] + [1, 0, 0, 0]
    got = finding_boxes(mirrored, probs, positive)
    np.testing.assert_allclose(got.scores, plain.scores)
    want = plain.xyxy[..., [2, 1, 0, 3]] * [-1, 1, -1, 1] + [1, 0, 1, 0]
    np.testing.assert_allclose(got.xyxy, want, atol=1e-6)


def test_without_fusion_the_regions_are_the_boxes():
    xywh, probs, positive = regions(3)
    found = finding_boxes(xywh, probs, positive, fusion=None)
    scores = np.sort(np.where(positive, probs, -1).swapaxes(1, 2), axis=-1)[..., ::-1]
    np.testing.assert_allclose(np.nan_to_num(found.scores, nan=-1), scores, atol=1e-6)
    best = np.where(positive, probs, -1).argmax(axis=1)  # [B, K]
    chosen = np.take_along_axis(xywh[:, :, None], best[:, None, :, None], axis=1)[:, 0]
    want = np.clip(boxes.to_corners(chosen), 0, 1)
    np.testing.assert_allclose(found.xyxy[:, :, 0], want, atol=1e-6)
    # Fusion at an IoU that nothing reaches is the same.
    same = finding_boxes(xywh, probs, positive, fusion=1.0)
    for a, b in zip(same, found):
        np.testing.assert_array_equal(a, b)


def test_nothing_positive_gives_nothing():
    xywh, probs, positive = regions(4)
    for fusion in (0.03, None):
        found = finding_boxes(xywh, probs, positive & False, fusion=fusion)
        assert found.xyxy.shape == (3, 5, 29, 4)
        assert np.isnan(found.xyxy).all()
        assert np.isnan(found.scores).all()
        one = np.zeros_like(positive)
        one[1, 7, 2] = True
        found = finding_boxes(xywh, probs, one, fusion=fusion)
        assert np.argwhere(~np.isnan(found.scores)).tolist() == [[1, 2, 0]]


def test_boxes_off_the_film_or_without_area_are_left_out():
    xywh = np.array([[[0.5, 0.5, 0.0, 0.2], [1.4, 0.5, 0.2, 0.2], [0.95, 0.5, 0.2, 0.2]]])
    probs, positive = np.full((1, 3, 1), 0.9), np.ones((1, 3, 1), bool)
    for fusion in (0.03, None):
        found = finding_boxes(xywh, probs, positive, fusion=fusion)
        assert (~np.isnan(found.scores)).sum() == 1
        np.testing.assert_allclose(found.xyxy[0, 0, 0], [0.85, 0.4, 1.0, 0.6], atol=1e-6)


def test_another_rule_is_refused():
    with pytest.raises(ValueError, match="'max' or 'mean'"):
        weighted_boxes_fusion(np.zeros((1, 4)), np.zeros(1), threshold=0.5, score="avg")
