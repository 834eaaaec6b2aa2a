"""The task of anatomy-driven detection: its loss, its boxes, and what never reaches training."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.text import Text

from configs import adpd as config_file
from cxr_jax import losses
from cxr_jax.data import records, sources
from cxr_jax.data.augment import Augment
from cxr_jax.data.records import FINDINGS, REGIONS
from cxr_jax.data.sources.combine import Hidden
from cxr_jax.data.zone_regions import LUNG_ROWS, ZONE_ROWS, zone_regions
from cxr_jax.errors import InputError
from cxr_jax.figures import DrawnBoxes, Region, boxes_panel
from cxr_jax.figures.boxes import color_of
from cxr_jax.metrics.bootstrap import numbers
from cxr_jax.ops.boxes import iou
from cxr_jax.tasks import make_task
from cxr_jax.tasks.adpd import PRESENT

A = len(REGIONS)
SIDE = 64
LOG2 = float(np.log(2))
# ASL of a logit of 0: of a positive, and of a negative, whose probability is 0.05 less.
POSITIVE, NEGATIVE = 0.5 * LOG2, 0.45**4 * -np.log(0.55)


def make(method="loc", **changes):
    config = config_file.get_config(f"smoke,method={method}").copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    return make_task(config)


class Says:
    """A network that says what it is told to."""

    def __init__(self, **out):
        self.out = out

    def apply(self, variables, images, *, train, mutable=None, rngs=None):
        out = self.out | variables  # what is differentiated
        return (out, {}) if mutable else out


def saying(task, **out):
    return dataclasses.replace(task, model=Says(**out))


def batch_of(task, films=2):
    """Films with one region each, the fourth: a fifth of the film around its middle."""
    count = len(task.classes)
    regions = np.full((films, A, 4), np.nan, np.float32)
    regions[:, 3] = np.array([0.4, 0.4, 0.6, 0.6]) * SIDE
    return {
        "image": np.zeros((films, SIDE, SIDE), np.float32),
        "regions": regions,
        "region_present": ~np.isnan(regions[..., 0]),
        "regions_known": np.ones(films, bool),
        "region_findings": np.zeros((films, A, count), np.float32),
        "findings": np.zeros((films, count), np.float32),
    }


def flat(films=2, findings=9):
    """Boxes of two fifths around the middle, everything else undecided."""
    return {
        "boxes": np.tile(np.float32([0.5, 0.5, 0.4, 0.4]), (films, A, 1)),
        "presence": np.zeros((films, A), np.float32),
        "findings": np.zeros((films, A, findings), np.float32),
    }


def loss_of(task, batch, **out):
    """(loss, terms) of a network that says `out`, and the loss's gradient by it."""
    out = {name: jnp.asarray(value) for name, value in out.items()}

    def total(out):
        total, (_, terms) = saying(task).loss(out, batch, rng=None, step=None)
        return total, terms

    return jax.value_and_grad(total, has_aux=True)(out)


# The loss.


@pytest.mark.parametrize("method", ["loc", "mil", "loc+mil"])
@pytest.mark.parametrize("asl", ["mean", "sum"])
def test_the_loss_is_that_of_the_paper(method, asl):
    """By hand: 0.4 of L1; an IoU of 1/4 and no hull beyond; a film without a region has none of
    them, and its labels count for nothing."""
    task = make(method, asl_reduction=asl, **{"asl_weight.loc": 3.0, "asl_weight.mil": 7.0})
    batch = batch_of(task)
    batch["region_present"][1] = False
    batch["regions"][1] = np.nan
    batch["region_findings"][:, :, 0] = batch["findings"][:, 0] = 1
    batch["region_findings"][0, 3, 2:] = batch["findings"][0, 2:] = np.nan
    batch["region_findings"][1] = batch["findings"][1] = 1
    (total, terms), grads = loss_of(task, batch, **flat())
    # The one box is all boxes of the batch; the other film's share of ASL is 0.
    asl_of_film = (POSITIVE + NEGATIVE) / (2 if asl == "mean" else 1) / 2
    wanted = {"l1": 0.4, "giou": 0.75, "presence": LOG2}
    wanted |= {part: asl_of_film for part in method.split("+")}
    assert terms.keys() == wanted.keys()
    for name, value in wanted.items():
        assert float(terms[name]) == pytest.approx(value, rel=1e-5), name
    weights = {"l1": 5, "giou": 2, "presence": 1, "loc": 3, "mil": 7}
    assert float(total) == pytest.approx(sum(weights[n] * v for n, v in wanted.items()), rel=1e-5)
    assert all(np.isfinite(grad).all() for grad in grads.values())
    for name in ("boxes", "findings"):
        assert not np.any(grads[name][1]), name
        assert not np.any(grads[name][0, 4]), name
        assert np.any(grads[name][0, 3]), name


def test_asl_without_exponents_and_clip_is_cross_entropy():
    asl = {"asl.gamma_neg": 0.0, "asl.gamma_pos": 0.0, "asl.clip": 0.0}
    task = make("loc+mil", **asl)
    (_, terms), _ = loss_of(task, batch_of(task), **flat())
    assert float(terms["loc"]) == pytest.approx(LOG2, rel=1e-5)
    assert float(terms["mil"]) == pytest.approx(LOG2, rel=1e-5)


def test_a_sharper_pooling_is_nearer_to_the_maximum():
    """One region of 29 is sure of a finding, the others of none."""
    out, pooled = flat(), []
    out["findings"] = out["findings"] - 40
    out["findings"][:, 3] = 40
    out["presence"] = out["presence"] + 40
    for r in (5.0, 10.0):
        task = make("mil", mil_sharpness=r)
        pooled.append(float(saying(task).predict(out, batch_of(task))["probs"][0, 0]))
    wanted = [np.log((np.exp(r) + A - 1) / A) / r for r in (5.0, 10.0)]
    np.testing.assert_allclose(pooled, wanted, rtol=1e-5)


def test_films_of_nothing_known_have_finite_gradients():
    task = make("loc+mil")
    batch = batch_of(task)
    batch["regions_known"][:] = False
    batch["region_findings"][:] = batch["findings"][:] = np.nan
    (total, terms), grads = loss_of(task, batch, **flat())
    assert float(total) == 0 == sum(map(float, terms.values()))
    assert not any(np.any(np.nan_to_num(grad, nan=1.0)) for grad in grads.values())


def test_the_order_of_regions_and_of_findings_does_not_matter():
    rng = np.random.default_rng(0)
    task = make("loc+mil")
    batch, out = batch_of(task), flat()
    batch["regions"] = np.sort(rng.random((2, A, 2, 2)), axis=2).reshape(2, A, 4) * SIDE
    batch["region_present"] = rng.random((2, A)) < 0.7
    batch["region_findings"] = (rng.random((2, A, 9)) < 0.3).astype(np.float32)
    batch["findings"] = batch["region_findings"].max(axis=1)
    out |= {k: v + rng.normal(0, 0.1, v.shape).astype(np.float32) for k, v in out.items()}
    before, _ = loss_of(task, batch, **out)
    rows, columns = rng.permutation(A), rng.permutation(9)
    for name in ("regions", "region_present", "region_findings"):
        batch[name] = batch[name][:, rows]
    out = {name: value[:, rows] for name, value in out.items()}
    batch["region_findings"] = batch["region_findings"][..., columns]
    batch["findings"] = batch["findings"][:, columns]
    out["findings"] = out["findings"][..., columns]
    after, _ = loss_of(task, batch, **out)
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after)):
        assert float(one) == pytest.approx(float(other), rel=1e-5)


def test_regions_and_findings_that_are_left_out_are_neither_trained_nor_predicted():
    task = make("loc+mil", regions=("left upper lung zone", "spine"), untrained=("edema",))
    batch, edema = batch_of(task), task.classes.index("edema")
    batch["region_present"][:] = True
    batch["regions"][:] = np.array([0.4, 0.4, 0.6, 0.6]) * SIDE
    _, grads = loss_of(task, batch, **flat())
    kept = [REGIONS.index("left upper lung zone"), REGIONS.index("spine")]
    for name, grad in grads.items():
        moved = np.any(np.asarray(grad).reshape(2, A, -1), axis=(0, 2))
        assert np.flatnonzero(moved).tolist() == sorted(kept), name
    assert not np.any(grads["findings"][..., edema])
    said = flat() | {"presence": np.full((2, A), 3.0), "findings": np.full((2, A, 9), 3.0)}
    outputs = saying(task, **said).predict({}, {"image": batch["image"]})
    assert np.flatnonzero(outputs["presence"][0] > PRESENT).tolist() == sorted(kept)
    found = task.combine([outputs])
    assert np.isnan(found["scores"][0, :, 0]).tolist() == [k == edema for k in range(9)]
    found = task.describe({"image": np.zeros((8, 8))}, {k: v[0] for k, v in found.items()})
    assert found["findings"]["edema"] is None
    assert found["regions"].keys() == {"left upper lung zone", "spine"}


@pytest.mark.parametrize("part", ["loc", "mil"])
def test_both_reductions_are_a_hundredth_of_the_sum_at_the_papers_batch(part):
    rng = np.random.default_rng(1)
    shape = (128, A, 53) if part == "loc" else (128, 53)
    logits, labels = rng.normal(size=shape), (rng.random(shape) < 0.1).astype(np.float32)
    total = 0.01 * float(jnp.sum(losses.asymmetric_loss(logits, labels, reduction="sum")))
    for reduction in ("mean", "sum"):
        weight = config_file.weights_of(reduction, 53)[part]
        ours = weight * jnp.mean(losses.asymmetric_loss(logits, labels, reduction=reduction))
        assert float(ours) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("over", ["present", "all"])
def test_a_film_is_pooled_as_in_training(over):
    """Of two regions with one probability p the log-sum-exp is p, or p + log(2 / 29) / 5."""
    task = make("mil", mil_over=over)
    out = flat()
    out["presence"][:] = -1.0
    out["presence"][0, [3, 7]] = 1.0  # the other film has none
    out["findings"][0, :, 0], out["findings"][0, :, 1] = 2.0, -4.0
    found = saying(task, **out).predict({}, {"image": np.zeros((2, SIDE, SIDE), np.float32)})
    probs = 1 / (1 + np.exp(-out["findings"][0, 0]))
    shift = np.log(2 / A) / 5 if over == "all" else 0.0
    np.testing.assert_allclose(found["probs"][0], np.maximum(probs + shift, 0), rtol=1e-5)
    assert not np.any(found["probs"][1])


# Records.


def phantoms(split="test"):
    return sources.open_source(sources.block("phantom_cxr", size=128, test=4, train=4), split)


@pytest.fixture(scope="module")
def record():
    """A film with boxes of several findings."""
    source = phantoms()
    return next(r for r in map(source.__getitem__, range(4)) if len(r["boxes"]) > 2)


def test_boxes_of_findings_never_reach_training(record):
    task = make()
    source = task.data.adapt(phantoms("train"), training=True)
    example = task.data.transforms.example(source[0])
    seen = task.data.transforms.finish(example, np.random.default_rng(0))
    assert not {"boxes", "box_label", "boxes_known"} & seen.keys()
    # Neither do they hold the window that is cut out of the film.
    other = example | {"boxes": np.full_like(example["boxes"], np.nan)}
    other["boxes"][0] = [0, 0, SIDE, SIDE]
    again = task.data.transforms.finish(other, np.random.default_rng(0))
    assert seen.keys() == again.keys()
    for name in seen:
        np.testing.assert_array_equal(seen[name], again[name], err_msg=name)
    evaluated = task.data.transforms.finish(example, None)
    assert evaluated["boxes"].shape == (64, 4)


def test_a_flip_exchanges_sides_with_their_findings(record):
    task = dataclasses.replace(make("loc+mil"), augment=Augment(flip=True))
    example = task.data.transforms.example(task.data.adapt(phantoms(), training=False)[0])
    straight = task.data.transforms.finish(example, None)
    flips = [task.data.transforms.finish(example, np.random.default_rng(s)) for s in range(6)]
    flip = next(f for f in flips if (f["image"] != straight["image"]).any())
    right, left = REGIONS.index("right lower lung zone"), REGIONS.index("left lower lung zone")
    np.testing.assert_array_equal(flip["region_findings"][right], straight["region_findings"][left])
    np.testing.assert_allclose(flip["regions"][right, 0], SIDE - straight["regions"][left, 2])
    np.testing.assert_array_equal(flip["findings"], straight["findings"])


def test_findings_go_by_their_names():
    source = phantoms()
    task = make(classes=("pneumonia", "no such finding", "lung opacity"))
    adapted = task.data.adapt(source, training=False)
    assert adapted.findings == task.classes
    theirs = [FINDINGS.index("pneumonia"), FINDINGS.index("lung opacity")]
    for index in range(len(source)):
        before, after = source[index], adapted[index]
        assert np.isnan(after["findings"][1])
        np.testing.assert_array_equal(after["findings"][[0, 2]], before["findings"][theirs])
        assert np.isnan(after["region_findings"][:, 1]).all()
        table = before["region_findings"][:, theirs]
        np.testing.assert_array_equal(after["region_findings"][:, [0, 2]], table)
        names = [FINDINGS[k] for k in before["box_label"]]
        wanted = [task.classes.index(n) if n in task.classes else -1 for n in names]
        assert after["box_label"].tolist() == wanted
        np.testing.assert_array_equal(adapted.peek(index, "findings"), after["findings"])
        # What nobody knows takes no part in the scores.
        known = task.data.transforms.example(after)["boxes_known"]
        assert known.tolist() == [True, False, True]
    assert adapted.version != source.version
    assert task.data.unlabelled(adapted) == ("no such finding",)
    same = make(classes=FINDINGS).data.adapt(source, training=False)
    assert same.version == source.version
    np.testing.assert_array_equal(same[0]["region_findings"], source[0]["region_findings"])


def test_another_set_is_scored_by_the_classes_that_stand_for_its_findings(oracle):
    """Opacities are the mean of two classes; what the table does not have is not scored."""
    table = (("lung opacity", ("haze", "shadow")), ("edema", ("water",)))
    task = make(classes=("shadow", "water", "haze"), class_mapping=table)
    adapted = task.data.adapt(phantoms(), training=False)
    assert adapted.findings == ("lung opacity", "edema")
    with pytest.raises(InputError, match=r"none of the findings of config\.classes"):
        task.data.adapt(phantoms(), training=True)
    outputs = random_outputs(0, findings=3)
    found = task.combine([outputs])
    assert found["boxes"].shape == (3, 2, 1, 4)
    assert found["region_probs"].shape == (3, A, 3)
    there = outputs["presence"] > PRESENT
    probs = np.where(there, outputs["region_probs"][:, :, [0, 2]].mean(-1), 0)
    positive = (outputs["region_probs"][:, :, [0, 2]] > 0.5).any(-1)
    best = np.where(positive, probs, 0).max(axis=1)
    np.testing.assert_allclose(np.nan_to_num(found["scores"][:, 0, 0]), best, rtol=1e-6)
    films = [adapted[i] for i in range(3)]
    batch = jax.tree.map(
        lambda *x: np.stack(x),
        *[task.unboxed(task.data.transforms.example(f), None) for f in films],
    )
    rows = jax.device_get(task.score(found, batch))
    assert rows["probs"].shape == rows["labels"].shape == rows["targets"].shape == (3, 2)
    assert rows["region_labels"].shape == rows["region_probs"].shape == (3, A, 2)
    assert {"map_edema", "map_lung_opacity"} <= numbers(task.evaluation.report(rows)).keys()
    line = task.describe(films[0], {name: value[0] for name, value in found.items()})
    assert set(line["findings"]) == set(task.classes)
    assert {box["finding"] for box in line["boxes"]} <= set(adapted.findings)


@pytest.mark.parametrize(
    "table, words",
    [
        ((("edema", ("lump",)),), "no trained finding is called 'lump'"),
        ((("edema", ("edema",)), ("edema", ("pneumonia",))), "has a finding twice"),
        ((("edema",),), "expected pairs"),
    ],
)
def test_tables_that_cannot_be_meant_are_one_line(table, words):
    with pytest.raises(InputError, match=words):
        make(class_mapping=table)


def test_a_table_of_findings_that_the_set_lacks_is_one_line():
    task = make(class_mapping=(("gout", ("edema",)),))
    with pytest.raises(InputError, match=r"class_mapping: .*'phantom_cxr' .* no finding 'gout'"):
        task.data.adapt(phantoms(), training=False)


@pytest.mark.parametrize(
    "method, hidden, words",
    [
        ("loc", {"regions"}, "no field 'regions'"),
        ("loc", {"region_findings"}, "no field 'region_findings'"),
        ("mil", {"findings"}, "no field 'findings'"),
    ],
)
def test_a_training_set_without_labels_is_one_line(method, hidden, words):
    task = make(method)
    with pytest.raises(InputError, match=words):
        task.data.adapt(Hidden(phantoms(), frozenset(hidden)), training=True)
    task.data.adapt(Hidden(phantoms(), frozenset({"regions"})), training=False)


def test_a_set_of_other_findings_is_one_line():
    with pytest.raises(InputError, match=r"has none of the findings of config\.classes"):
        make(classes=("one", "two")).data.adapt(phantoms(), training=False)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"mil_over": "some"}, "mil_over='some'"),
        ({"classes": ("edema", "edema")}, "each once"),
        ({"classes": ()}, "at least one name"),
        ({"untrained": ("gout",)}, "untrained has 'gout'"),
        ({"regions": ("liver",)}, "regions has 'liver'"),
        ({"fusion": 1.5}, "fusion=1.5"),
        ({"most_boxes": 0}, "most_boxes=0"),
        ({"asl_weight.loc": 0.0}, "asl_weight.loc=0.0"),
        ({"asl.gamma_neg": 0.5}, "asl.gamma_neg=0.5"),
        ({"asl.clip": 0.6}, "asl.clip=0.6"),
        ({"mil_sharpness": 11.0}, "mil_sharpness=11.0"),
        ({"asl_reduction": "median"}, "asl_reduction='median'"),
        ({"preprocess.size": 100}, "must divide it"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_one_line(changes, words):
    with pytest.raises(InputError, match=words):
        make(**changes)


# Regions of lung masks.


def test_lungs_are_eight_regions_with_their_scores_as_labels():
    task = make("loc+mil", regions_from="lungs")
    assert "lungs" in task.data.fields
    assert "lungs" not in task.data.inputs
    source = Hidden(phantoms(), frozenset({"regions", "region_present", "region_findings"}))
    adapted = task.data.adapt(source, training=True)
    lesions = 0
    for index in range(len(source)):
        record = source[index]
        example = task.data.transforms.example(adapted[index])
        boxes, present = zone_regions(record["lungs"])
        assert example["region_present"].tolist() == present.tolist()
        scale = SIDE / record["image"].shape[0]
        np.testing.assert_allclose(example["regions"][LUNG_ROWS], boxes[LUNG_ROWS] * scale)
        labels = example["region_findings"]
        assert np.isnan(np.delete(labels, LUNG_ROWS, axis=0)).all()
        column = task.classes.index("lung opacity")
        zones = labels[ZONE_ROWS, column]
        np.testing.assert_array_equal(zones, record["severity"] > 0)
        assert np.isnan(np.delete(labels, column, axis=1)).all()
        # The film's own findings stay.
        np.testing.assert_array_equal(example["findings"], adapted[index]["findings"])
        lesions += zones.sum()
    assert lesions
    others = np.delete(np.arange(A), LUNG_ROWS)
    out = {k: jnp.asarray(v) for k, v in flat(1).items()}
    batch = {k: np.asarray(v)[None] for k, v in task.unboxed(example, None).items()}
    _, grads = loss_of(task, batch, **out)
    assert all(not np.any(grad[:, others]) for grad in grads.values())
    assert np.any(grads["presence"][:, LUNG_ROWS])


def test_scores_are_the_films_findings_where_those_are_unknown():
    task = make("loc", regions_from="lungs", classes=("lung opacity",))
    source = Hidden(phantoms(), frozenset({"findings"}))
    adapted = task.data.adapt(source, training=True)
    for index in range(len(source)):
        example = task.data.transforms.example(adapted[index])
        assert example["findings"].tolist() == [float(source[index]["severity"].max() > 0)]
    assert task.data.unlabelled(adapted) == ()
    more = make("loc", regions_from="lungs", classes=("lung opacity", "edema"))
    assert more.data.unlabelled(more.data.adapt(source, training=True)) == ("edema",)


def test_a_film_without_lungs_is_read_as_one_without_regions():
    task = make(regions_from="lungs")
    record = {"image": np.zeros((80, 80), np.uint8), "id": "a", "group": "a"}
    example = task.data.transforms.example(record)
    assert not example["regions_known"]
    assert np.isnan(example["region_findings"]).all()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"classes": ("edema",)}, "which config.classes has not; add it"),
        ({"class_mapping": (("edema", ("edema",)),)}, "cannot be used with config.regions_from"),
        ({"regions_from": "atlas"}, "regions_from='atlas'"),
    ],
    ids=str,
)
def test_what_regions_of_lungs_cannot_do_is_one_line(changes, words):
    with pytest.raises(InputError, match=words):
        make(**({"regions_from": "lungs"} | changes))


# Boxes.


def random_outputs(seed, films=3, findings=9):
    rng = np.random.default_rng(seed)
    low, size = rng.uniform(0, 0.7, (films, A, 2)), rng.uniform(0.05, 0.3, (films, A, 2))
    return {
        "presence": rng.random((films, A)).astype(np.float32),
        "regions": np.concatenate([low + size / 2, size], -1).astype(np.float32),
        "region_probs": rng.random((films, A, findings)).astype(np.float32),
        "probs": rng.random((films, findings)).astype(np.float32),
    }


def test_one_member_gives_exactly_itself():
    task, outputs = make(), random_outputs(0)
    outputs["presence"][0] = 0
    found = task.combine([outputs])
    for name, value in outputs.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    again = task.combine([found])
    assert found.keys() == again.keys() == outputs.keys() | {"boxes", "scores"}
    for name, value in found.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    assert found["boxes"].shape == (3, 9, 1, 4)


def test_members_are_weighted_by_their_presence():
    task, one, other = make(), random_outputs(0), random_outputs(1)
    one["presence"][:, 0], other["presence"][:, 0] = 0.9, 0.1
    one["presence"][:, 1] = other["presence"][:, 1] = 0
    found = task.combine([one, other])
    mixed = 0.9 * one["regions"][:, 0] + 0.1 * other["regions"][:, 0]
    np.testing.assert_allclose(found["regions"][:, 0], mixed, rtol=1e-5)
    mean = (one["regions"][:, 1] + other["regions"][:, 1]) / 2
    np.testing.assert_allclose(found["regions"][:, 1], mean, rtol=1e-5)
    mean = (one["region_probs"] + other["region_probs"]) / 2
    np.testing.assert_allclose(found["region_probs"], mean, rtol=1e-6)
    fused = task.combine([found])  # of the members together, not of each
    np.testing.assert_array_equal(found["boxes"], fused["boxes"])
    back = task.combine([other, one])
    np.testing.assert_allclose(found["regions"], back["regions"], rtol=1e-6)


@pytest.mark.parametrize("threshold, rows", [(0.5, "top1"), (0.3, "top1_thr30")])
def test_boxes_of_findings_match_the_reference(golden, threshold, rows):
    arrays = golden("adpd_postprocess")
    probs = arrays["in_probs"]
    task = make(classes=tuple("abcdefgh"), threshold=threshold)
    outputs = {
        "presence": arrays["in_mask"].astype(np.float32),
        "regions": arrays["in_boxes"],
        "region_probs": probs,
        "probs": probs.max(axis=1),
    }
    found = task.combine([outputs])
    films, labels = np.nonzero(~np.isnan(found["scores"][..., 0]))
    box = found["boxes"][films, labels, 0]
    centres = np.concatenate([(box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]], axis=1)
    scores = found["scores"][films, labels, 0]
    ours = np.column_stack([films, centres, labels, scores])
    np.testing.assert_allclose(
        ours, arrays[f"out_boxes_{rows}"], atol=1e-5
    )  # the README's tolerance


def test_without_fusion_the_best_region_is_the_box():
    task, outputs = make(fusion=0.0), random_outputs(2)
    found = task.combine([outputs])
    there = outputs["presence"] > PRESENT
    probs = np.where(there[..., None], outputs["region_probs"], 0)
    best = probs.argmax(axis=1)  # [B, K]
    assert (probs.max(axis=1) > 0.5).all()
    np.testing.assert_allclose(found["scores"][..., 0], probs.max(axis=1))
    region = np.take_along_axis(outputs["regions"], best[..., None], axis=1)
    np.testing.assert_allclose(found["boxes"][:, :, 0, :2], region[..., :2] - region[..., 2:] / 2)
    fused = make().combine([outputs])
    assert (found["boxes"] != fused["boxes"]).any()
    assert make(most_boxes=5).combine([outputs])["boxes"].shape == (3, 9, 5, 4)


def true_outputs(task, record):
    """What a network that knows a record would say."""
    shares = record["regions"] / np.tile(record["image"].shape[::-1], 2)
    present = ~np.isnan(shares[:, 0])
    shares = np.nan_to_num(shares)
    low, high = shares[:, :2], shares[:, 2:]
    probs = np.where(record["region_findings"] == 1, 0.9, 0.1)
    out = {
        "presence": present,
        "regions": np.concatenate([(low + high) / 2, high - low], axis=1),
        "region_probs": probs,
        "probs": record["findings"],
    }
    return {name: np.asarray(value, np.float32)[None] for name, value in out.items()}


@pytest.fixture(scope="module")
def oracle():
    """A task, a record by its classes, and the true answer, combined."""
    task = make()
    source = task.data.adapt(phantoms(), training=False)
    record = next(r for r in map(source.__getitem__, range(4)) if len(r["boxes"]) > 2)
    return task, record, task.combine([true_outputs(task, record)])


def scored(task, record, outputs):
    example = task.data.transforms.finish(task.data.transforms.example(record), None)
    batch = {name: np.asarray(value)[None] for name, value in example.items()}
    rows = jax.device_get(jax.jit(task.score)(outputs, batch))
    return {**rows, "id": np.array(["a"]), "group": np.array(["a"])}


def test_true_regions_are_placed_and_told_perfectly(oracle):
    task, record, outputs = oracle
    found = numbers(task.evaluation.report(scored(task, record, outputs)))
    assert found["region_iou"] == pytest.approx(1, abs=1e-4)
    assert found["presence_precision"] == found["presence_recall"] == 1
    assert found["region_auc"] == 1
    assert found["ap_iou10"] > 0.3  # the regions that have a finding lie near it
    assert set(task.evaluation.columns) <= found.keys()


def test_a_film_without_regions_or_boxes_is_scored_by_what_it_has(oracle):
    task, record, outputs = oracle
    some = {k: v for k, v in record.items() if k not in ("regions", "region_present")}
    some = {k: v for k, v in some.items() if k != "region_findings"}
    report = task.evaluation.report(scored(task, some, outputs))
    assert report["region_iou"].count == report["presence_recall"].count == 0
    assert report["map"].count == len(record["boxes"])
    # Nobody drew: what is predicted there is neither right nor wrong.
    undrawn = {k: v for k, v in record.items() if k not in ("boxes", "box_label")}
    rows = scored(task, undrawn, outputs)
    assert not rows["known"].any()
    assert np.isnan(rows["scores"]).all()
    bare = {name: record[name] for name in ("image", "id", "group")}
    report = task.evaluation.report(scored(task, bare, outputs))
    assert not any(value.count for value in report.values())


def test_references_of_true_regions_stand_between_chance_and_perfection(oracle):
    task, record, outputs = oracle
    rows = scored(task, record, outputs)
    found = task.evaluation.references(rows, phantoms())
    assert list(found) == [
        "chance: random boxes",
        "constant: mean training box",
        "bound: the largest true box of a finding",
        "constant: mean training regions",
        "chance: a random region",
        "constant: all regions, fused",
        "true regions of true findings, fused",
        "the nearest of these, not fused",
    ]
    told = {name: numbers(task.evaluation.report(r)) for name, r in found.items()}
    constant = told.pop("constant: mean training regions")
    assert not any("mean_auc" in line or "region_iou" in line for line in told.values())
    assert 0.3 < constant["region_iou"] < 1
    # The mean regions, by hand.
    films = [phantoms()[i] for i in range(len(phantoms()))]
    mean = np.nanmean([f["regions"] / f["image"].shape[0] for f in films], axis=0)
    own = iou(np.float32(mean), rows["region_xyxy"][0])
    assert constant["region_iou"] == pytest.approx(float(np.nanmean(own)), rel=1e-4)
    fused, nearest = (told[name] for name in list(found)[-2:])
    # The true answer's boxes are these.
    assert fused["map"] == pytest.approx(numbers(task.evaluation.report(rows))["map"])
    largest = told["bound: the largest true box of a finding"]["map"]
    assert 0 < fused["map"] < nearest["map"] < largest <= 1
    # Of a finding with n boxes one is found: precision 1 up to a recall of 1 / n.
    counts = np.bincount(record["box_label"][record["box_label"] >= 0])
    wanted = [np.mean(np.arange(101) <= 100 // n) for n in counts[counts > 0]]
    assert largest == pytest.approx(np.mean(wanted), abs=0.006)
    # The nearest true region, by hand.
    scale = np.array([*record["image"].shape[::-1]] * 2)
    regions, boxes = record["regions"] / scale, record["boxes"] / scale
    k = record["box_label"][0]
    own = boxes[record["box_label"] == k]
    overlap = [
        max(float(iou(regions[a], box)) for box in own)
        for a in np.flatnonzero(record["region_findings"][:, k] == 1)
    ]
    score = found["the nearest of these, not fused"]["scores"][0, k, 0]
    assert score == pytest.approx(max(overlap), rel=1e-5)


def test_without_boxes_in_training_there_is_no_mean_box(oracle):
    task, record, outputs = oracle
    training = Hidden(phantoms(), frozenset({"boxes", "box_label"}))
    found = task.evaluation.references(scored(task, record, outputs), training)
    assert "constant: mean training box" not in found
    assert "chance: random boxes" in found


def test_boxes_are_told_in_the_films_own_pixels():
    task = make()
    outputs = {
        "presence": np.zeros((1, A), np.float32),
        "regions": np.tile(np.float32([0.5, 0.5, 0.2, 0.2]), (1, A, 1)),
        "region_probs": np.zeros((1, A, 9), np.float32),
        "probs": np.full((1, 9), 0.25, np.float32),
    }
    heart = REGIONS.index("cardiac silhouette")
    outputs["presence"][0, heart], outputs["region_probs"][0, heart, 0] = 0.8, 0.7
    outputs["regions"][0, heart] = [0.5, 0.25, 0.4, 0.5]
    film = {"image": np.zeros((300, 200), np.uint8), "id": "a"}  # stretched to the square
    found = {name: value[0] for name, value in task.combine([outputs]).items()}
    said = task.describe(film, found)
    assert json.loads(json.dumps(said)) == said
    box = [60.0, 0.0, 140.0, 150.0]
    assert said["boxes"] == [{"finding": "cardiomegaly", "score": 0.7, "xyxy_px": box}]
    assert said["regions"] == {"cardiac silhouette": {"probability": 0.8, "xyxy_px": box}}
    assert said["findings"]["edema"] == 0.25


# Pictures.


def styles(ax):
    """Of each box, whether it is dashed, and its colour."""
    return [(p.get_linestyle() != "solid", p.get_edgecolor()) for p in ax.patches]


def test_predicted_boxes_are_solid_true_ones_dashed_each_in_its_colour():
    film = np.full((200, 150), 90, np.uint8)
    predicted = DrawnBoxes([[10, 10, 90, 90], [12, 9, 80, 70]], [2, 0], np.array([0.9, 0.6]))
    true = DrawnBoxes(np.array([[20, 20, 80, 80], [np.nan] * 4]), np.array([2, -1]))
    attention = np.zeros((4, 4))
    attention[1, 2] = 0.2
    chosen = Region("spine", np.array([70, 0, 90, 200]), attention)
    fig = boxes_panel(
        film, predicted, names="abc", true=true, regions=np.ones((5, 4)), chosen=chosen, title="t"
    )
    found = styles(fig.axes[0])
    assert [dashed for dashed, _ in found] == [True, False, False]
    assert found[0][1] == found[1][1] != found[2][1]
    assert len(fig.axes[1].patches) == 6
    texts = {text.get_text() for ax in fig.axes for text in ax.texts}
    assert {"c 0.90", "a 0.60", "spine", "0.90"} <= texts
    corners = [ann.xy for ann in fig.axes[0].texts if ann.get_text()[:2] in ("c ", "a ")]
    assert abs(corners[0][1] - corners[1][1]) > 4  # names do not hide each other
    bare = boxes_panel(film, DrawnBoxes(np.zeros((0, 4)), [], np.zeros(0)), names="abc")
    assert len(bare.axes) == 2  # the film and the list
    lost = boxes_panel(
        film, DrawnBoxes(np.zeros((0, 4)), [], np.zeros(0)), names="abc", regions=np.zeros((0, 4))
    )
    assert any("no region found" in text.get_text() for text in lost.findobj(Text))


def test_colours_can_be_told_apart():
    colors = {color_of(k) for k in range(9)}
    assert len(colors) == 9
    assert color_of(9) == color_of(0)


def test_a_film_is_drawn_with_and_without_truth(oracle):
    task, record, outputs = oracle
    outputs = {name: value[0] for name, value in outputs.items()}
    outputs["attention"] = np.random.default_rng(0).random((A, 4, 4))
    with_truth = task.figure(record, outputs)
    dashed = [dashed for dashed, _ in styles(with_truth.axes[0])]
    assert sum(dashed) == len(record["boxes"])
    assert len(dashed) - sum(dashed) == np.count_nonzero(~np.isnan(outputs["scores"]))
    bare = task.combine([{k: v[None] for k, v in outputs.items()} | {"presence": np.zeros((1, A))}])
    drawn = task.figure(
        {"image": record["image"], "id": "a"}, {name: value[0] for name, value in bare.items()}
    )
    assert not drawn.axes[0].patches
    assert "no box" in {text.get_text() for ax in drawn.axes for text in ax.texts}


def test_blank_records_are_enough_to_know_the_shapes():
    task = make()
    blank = records.blank(task.data.inputs)
    example = task.data.transforms.finish(task.data.transforms.example(blank), None)
    assert example["region_findings"].shape == (A, 9)
