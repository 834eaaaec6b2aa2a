"""The task of boxes from class activation maps: its losses by hand, boxes, what it trains on."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import adpd as adpd_config
from configs import cam_detector as config_file
from cxr_jax.data import sources
from cxr_jax.data.records import FINDINGS, REGIONS, blank
from cxr_jax.data.sources.combine import Hidden
from cxr_jax.errors import InputError
from cxr_jax.metrics.bootstrap import numbers
from cxr_jax.models.cam_detector import stretched
from cxr_jax.tasks import make_task
from cxr_jax.tasks.cam_detector import METHODS

A, SIDE, K = len(REGIONS), 64, 9
LOG2 = float(np.log(2))


def make(method="gap", **changes):
    config = config_file.get_config(f"smoke,method={method}").copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    return make_task(config)


class Says:
    """A network that says what it is told to, and keeps what it is told."""

    def __init__(self, **out):
        self.out, self.told = out, {}

    def apply(self, variables, images, *, train, mutable=None, rngs=None, **told):
        self.told = told
        out = self.out | variables  # what is differentiated
        return (out, {}) if mutable else out


def saying(task, **out):
    return dataclasses.replace(task, model=Says(**out))


def batch_of(films=2):
    return {
        "image": np.zeros((films, SIDE, SIDE), np.float32),
        "findings": np.zeros((films, K), np.float32),
        "region_present": np.ones((films, A), bool),
        "region_findings": np.zeros((films, A, K), np.float32),
    }


def loss_of(task, batch, *, step=0, **out):
    """(loss, terms) of a network that says `out`, and the loss's gradient by it."""
    out = {name: jnp.asarray(value, jnp.float32) for name, value in out.items()}

    def total(out):
        loss, (_, terms) = saying(task).loss(out, batch, rng=None, step=jnp.asarray(step))
        return loss, terms

    return jax.value_and_grad(total, has_aux=True)(out)


# The loss.


def test_the_loss_is_the_cross_entropy_of_what_is_known_and_trained():
    task = make(balanced=False, untrained=("edema",))
    batch, edema = batch_of(), FINDINGS.index("edema") - 1
    batch["findings"][0, :2] = 1
    batch["findings"][0, 3:] = np.nan
    batch["findings"][1] = np.nan
    logits = np.full((2, K), 2.0)
    (loss, terms), grads = loss_of(task, batch, logits=logits)
    assert edema == 2  # the third known label does not count
    assert float(loss) == pytest.approx(np.log1p(np.exp(-2.0)) / 2, rel=1e-5)
    assert terms.keys() == {"findings"}
    assert np.flatnonzero(grads["logits"]).tolist() == [0, 1]


def test_rare_labels_weigh_more():
    task, batch = make(), batch_of(4)
    batch["findings"][0, 0] = 1
    _, grads = loss_of(task, batch, logits=np.zeros((4, K)))
    # One of four is positive: (4 + 1) / (1 + 1) and (4 + 1) / (3 + 1), of K findings and 4 films.
    want = np.array([-2.5, 1.25, 1.25, 1.25]) / 2 / K / 4
    np.testing.assert_allclose(grads["logits"][:, 0], want, rtol=1e-5)


@pytest.mark.parametrize("step, alpha", [(0, 0.1), (5, 0.5), (10, 0.9), (99, 0.9)])
def test_self_transfer_moves_to_the_localisation(step, alpha):
    task = make("stl", **{"stl.steps": 10}, balanced=False)
    logits = {"logits": np.zeros((2, K)), "class_logits": np.full((2, K), 3.0)}
    (loss, terms), grads = loss_of(task, batch_of(), step=step, **logits)
    place, classified = LOG2, float(np.log1p(np.exp(3.0)))
    assert float(terms["findings"]) == pytest.approx(place, rel=1e-5)
    assert float(terms["classified"]) == pytest.approx(classified, rel=1e-5)
    assert float(loss) == pytest.approx(alpha * place + (1 - alpha) * classified, rel=1e-5)
    assert np.all(grads["logits"]) and np.all(grads["class_logits"])  # noqa: PT018


def test_agxnet_learns_which_regions_are_abnormal():
    task, batch = make("agxnet", balanced=False, untrained=("edema",)), batch_of()
    batch["region_findings"][0, 3, 1] = 1  # holds a finding
    batch["region_findings"][0, 4, 2] = 1  # one that is not trained
    batch["region_findings"][0, 5] = np.nan  # nobody knows
    batch["region_present"][0, 6] = False
    batch["region_present"][1] = False
    logits = {"logits": np.zeros((2, K)), "region_logits": np.full((2, A), 2.0)}
    (loss, terms), grads = loss_of(task, batch, **logits)
    positive, negative = np.log1p(np.exp(-2.0)), np.log1p(np.exp(2.0))
    want = (positive + (A - 3) * negative) / (A - 2) / 2
    assert float(terms["regions"]) == pytest.approx(want, rel=1e-5)
    assert float(loss) == pytest.approx(want + LOG2, rel=1e-5)
    silent = np.flatnonzero(np.asarray(grads["region_logits"][0]) == 0)
    assert silent.tolist() == [5, 6]
    assert not np.any(grads["region_logits"][1])
    # What the attention is told: nothing of what is unknown, absent or not trained.
    network = saying(task, **{name: jnp.asarray(value) for name, value in logits.items()})
    network.loss({}, batch, rng=None, step=0)
    told = np.asarray(network.model.told["region_findings"])
    assert told[0, 3, 1] == 1
    assert np.nansum(told) == 1
    assert np.isnan(told[0, [5, 6]]).all()
    assert np.isnan(told[..., 2]).all()


@pytest.mark.parametrize("method", METHODS)
def test_films_of_nothing_known_have_finite_gradients(method):
    task, batch = make(method), batch_of()
    batch["findings"][:] = batch["region_findings"][:] = np.nan
    said = {"logits": np.full((2, K), 40.0), "class_logits": np.full((2, K), -40.0)}
    (loss, _), grads = loss_of(task, batch, **said, region_logits=np.full((2, A), 40.0))
    assert float(loss) == 0
    assert not any(np.any(np.nan_to_num(grad, nan=1.0)) for grad in grads.values())


# Networks.


@pytest.mark.parametrize("method", ["weldon", "stl", "gradcam", "agxnet"])
def test_a_method_trains_all_of_its_weights_and_predicts(method):
    task = make(method)
    rng = np.random.default_rng(0)
    batch = batch_of()
    batch["image"] = rng.normal(size=batch["image"].shape).astype(np.float32)
    batch["findings"][0, ::2] = batch["region_findings"][0, 3, ::2] = 1

    @jax.jit
    def run(batch):
        variables = task.init(jax.random.key(0), batch)

        def loss(params):
            found = task.loss(variables | {"params": params}, batch, rng=jax.random.key(1), step=0)
            return found[0]

        return task.predict(variables, {"image": batch["image"]}), jax.grad(loss)(
            variables["params"]
        )

    outputs, grads = jax.device_get(run(batch))
    dead = {
        jax.tree_util.keystr(path)
        for path, grad in jax.tree_util.tree_leaves_with_path(grads)
        if not np.any(grad) or not np.isfinite(grad).all()
    }
    assert not dead
    assert outputs["probs"].shape == (2, K)
    assert outputs["maps"].shape == (2, 8, 8, K)
    assert outputs["maps"].min() == 0 < 0.99 < outputs["maps"].max() <= 1
    found = task.combine([outputs])
    assert found["boxes"].shape == (2, K, 1, 4)
    assert not np.isnan(found["scores"]).all()


# Boxes.


def spots():
    """Two films' outputs: of finding 0 a cell in the right upper corner, of 1 the lower half."""
    maps = np.zeros((2, 4, 4, K), np.float32)
    maps[:, 0, 3, 0] = 1.0
    maps[:, 2:, :, 1] = 1.0
    probs = np.full((2, K), 0.2, np.float32)
    probs[0, 0], probs[1, 0], probs[0, 1] = 0.9, 0.5, 0.7
    return {"probs": probs, "maps": maps}


def test_findings_above_the_threshold_have_a_box_and_their_probability():
    found = make(threshold=0.5).combine([spots()])
    assert np.argwhere(~np.isnan(found["scores"][..., 0])).tolist() == [[0, 0], [0, 1]]
    np.testing.assert_allclose(found["scores"][0, :2, 0], [0.9, 0.7])
    np.testing.assert_allclose(found["boxes"][0, :2, 0], [[0.75, 0, 1, 0.25], [0, 0.5, 1, 1]])
    assert np.isnan(found["boxes"][1]).all()
    lower = make(threshold=0.1).combine([spots()])
    # A flat map says of no place.
    assert (~np.isnan(lower["scores"][..., 0])).sum(axis=1).tolist() == [2, 2]
    wider = make(threshold=0.5, map_threshold=0.1).combine([spots()])["boxes"][0, 0, 0]
    assert wider[0] < 0.75 and wider[3] > 0.25  # noqa: PT018


def test_one_member_gives_itself_and_several_their_mean():
    task, one = make(), spots()
    found = task.combine([one])
    again = task.combine([found])
    assert again.keys() == one.keys() | {"boxes", "scores"}
    for name, value in found.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    other = {"probs": one["probs"] / 2, "maps": one["maps"][:, ::-1]}
    both = task.combine([one, other])
    np.testing.assert_allclose(both["probs"], 0.75 * one["probs"])
    np.testing.assert_allclose(both["maps"], (one["maps"] + other["maps"]) / 2)
    assert both["scores"][0, 0, 0] == pytest.approx(0.675)


def test_findings_of_another_set_are_means_of_those_that_stand_for_them():
    table = (("gout", ("cardiomegaly", "lung opacity")), ("edema", ("edema",)))
    task = make(class_mapping=table, component="largest", threshold=0.5)
    found = task.combine([spots()])
    assert found["boxes"].shape == (2, 2, 1, 4)
    assert found["scores"][0, 0, 0] == pytest.approx(0.8)
    # Of the mean of both maps the corner and the half are left, as high as each other.
    np.testing.assert_allclose(found["boxes"][0, 0, 0], [0, 0.5, 1, 1])
    film = {"image": np.zeros((40, 80), np.uint8), "id": "a"}
    said = task.describe(film, {name: value[0] for name, value in found.items()})
    assert [box["finding"] for box in said["boxes"]] == ["gout"]
    assert task.figure(film, {name: value[0] for name, value in found.items()})


# Records.


def phantoms(split="test"):
    return sources.open_source(sources.block("phantom_cxr", size=128, test=4, train=4), split)


@pytest.fixture(scope="module")
def record():
    """A film with boxes of several findings, by the task's classes."""
    source = make().data.adapt(phantoms(), training=False)
    return next(r for r in map(source.__getitem__, range(4)) if len(r["boxes"]) > 2)


def true_outputs(task, record):
    """What a network that knows a record's boxes would say."""
    maps = np.zeros((1, 64, 64, K), np.float32)
    scale = 64 / np.tile(record["image"].shape[::-1], 2)
    for (x0, y0, x1, y1), label in zip(record["boxes"] * scale, record["box_label"]):
        if label >= 0 and not maps[0, ..., label].any():
            maps[0, round(y0) : round(y1), round(x0) : round(x1), label] = 1.0
    probs = np.where(record["findings"] == 1, 0.9, 0.1)[None].astype(np.float32)
    return task.combine([{"probs": probs, "maps": maps}])


def scored(task, record, outputs):
    example = task.data.transforms.finish(task.data.transforms.example(record), None)
    batch = {name: np.asarray(value)[None] for name, value in example.items()}
    rows = jax.device_get(jax.jit(task.score)(outputs, batch))
    return {**rows, "id": np.array(["a"]), "group": np.array(["a"])}


def test_true_boxes_are_found(record):
    task = make()
    rows = scored(task, record, true_outputs(task, record))
    labels = sorted(set(record["box_label"].tolist()) - {-1})
    assert len(labels) > 1
    assert rows["hits"][0, labels, 0, :4].all()  # up to an IoU of 0.4: boxes of few pixels
    report = task.evaluation.report(rows)
    assert set(task.evaluation.columns) <= report.keys()
    assert numbers(report)["ap_iou10"] > 0


def test_boxes_never_reach_training(record):
    task = make("agxnet")
    source = task.data.adapt(phantoms("train"), training=True)
    seen = task.data.transforms.finish(
        task.data.transforms.example(source[0]), np.random.default_rng(0)
    )
    assert seen.keys() == {"image", "findings", "region_present", "region_findings"}
    seen = make().data.transforms.example(record)
    assert seen["boxes"].shape == (64, 4)
    assert "region_findings" not in seen
    bare = task.data.transforms.example(blank(task.data.inputs))
    assert bare["region_findings"].shape == (A, K)


@pytest.mark.parametrize(
    "method, hidden", [("gap", "findings"), ("agxnet", "region_findings"), ("stl", "findings")]
)
def test_a_training_set_without_labels_is_one_line(method, hidden):
    task = make(method)
    with pytest.raises(InputError, match=f"no field '{hidden}'"):
        task.data.adapt(Hidden(phantoms(), frozenset({hidden})), training=True)
    task.data.adapt(Hidden(phantoms(), frozenset({hidden})), training=False)
    if method == "gap":
        make().data.adapt(Hidden(phantoms(), frozenset({"region_findings"})), training=True)


def test_a_film_is_told_and_drawn_with_the_map_of_its_best_finding(record):
    task = make()
    outputs = {name: value[0] for name, value in true_outputs(task, record).items()}
    said = task.describe(record, outputs)
    assert json.loads(json.dumps(said)) == said
    labels = set(record["box_label"].tolist()) - {-1}
    assert {box["finding"] for box in said["boxes"]} == {task.classes[k] for k in labels}
    drawn = task.figure(record, outputs)
    texts = {text.get_text() for ax in drawn.axes for text in ax.texts}
    assert f"map of the {said['boxes'][0]['finding']}" in texts
    solid = [p for p in drawn.axes[0].patches if p.get_linestyle() == "solid"]
    assert len(solid) == len(labels)
    outputs["scores"] = outputs["scores"] / 2  # none is likely: the best is drawn
    drawn = task.figure(record, outputs)
    assert len([p for p in drawn.axes[0].patches if p.get_linestyle() == "solid"]) == 1
    outputs = {name: value[0] for name, value in task.combine([spots()]).items()}
    outputs["scores"] = np.full_like(outputs["scores"], np.nan)
    film = {"image": record["image"], "id": "a"}
    assert "no box" in {t.get_text() for ax in task.figure(film, outputs).axes for t in ax.texts}


# Settings.


@pytest.mark.parametrize(
    "method, changes, words",
    [
        ("gap", {"component": "all"}, "component='all'"),
        ("gap", {"map_threshold": 1.0}, "map_threshold=1.0"),
        ("gap", {"threshold": -0.1}, "threshold=-0.1"),
        ("gap", {"most_boxes": 2}, "a map gives one box"),
        ("gap", {"preprocess.size": 100}, "must divide it"),
        ("lse", {"model.head.sharpness": 0.0}, "sharpness=0.0"),
        ("weldon", {"model.head.top_cells": 65}, "the map has 64 cells"),
        ("multimap", {"model.head.maps_each": 0}, "maps_each=0"),
        ("stl", {"stl.alpha": (0.1, 2.0)}, "config.stl has"),
        ("stl", {"stl.steps": 0}, "config.stl has"),
        ("agxnet", {"model.head.drop_channels": 1.0}, "drop_channels=1.0"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_one_line(method, changes, words):
    with pytest.raises(InputError, match=words):
        make(method, **changes)


def test_another_methods_head_is_one_line():
    config = config_file.get_config("smoke,method=lse").copy_and_resolve_references()
    config.method = "weldon"
    with pytest.raises(InputError, match="makes no task 'cam_detector'"):
        make_task(config)
    config.method = "cam"
    with pytest.raises(InputError, match="method='cam'; expected gap, lse"):
        make_task(config)
    with pytest.raises(InputError, match="cxr_3class labels no regions"):
        config_file.get_config("cxr3,method=agxnet")


@pytest.mark.parametrize("variant", ["quick", "quick,cells=14", "cxr3"])
def test_films_steps_and_encoder_are_those_of_adpd(variant):
    """Or their rows could not stand in one table."""
    ours = config_file.get_config(variant)
    theirs = adpd_config.get_config(f"{variant},method=mil")
    same = ("data", "second", "seed", "preprocess", "augment", "optimizer", "total_steps")
    same += ("batch_size", "eval_steps", "classes", "precision", "bootstrap")
    for name in same:
        assert ours[name] == theirs[name], name
    assert ours.model.backbone == theirs.model.backbone


def test_the_methods_of_the_config_are_those_of_the_task():
    assert tuple(config_file.METHODS) == METHODS
    assert float(stretched(jnp.zeros((1, 2, 2, 1))).max()) == 0
