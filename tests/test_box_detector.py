"""The detector on boxed films: its loss, what augmentation does to boxes, and its own boxes."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import scipy.special

from configs import box_detector as config_file
from cxr_jax.data import sources
from cxr_jax.data.augment import Augment
from cxr_jax.data.records import FINDINGS
from cxr_jax.data.sources.combine import Hidden
from cxr_jax.errors import InputError
from cxr_jax.metrics.bootstrap import numbers
from cxr_jax.ops import anchors
from cxr_jax.tasks import make_task

SIDE = 64
OPACITY, EDEMA = (config_file.adpd.PLACED.index(name) for name in ("lung opacity", "edema"))


def make(**changes):
    config = config_file.get_config("smoke").copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    return make_task(config)


TASK = make()
A, K = len(TASK.anchors), len(TASK.classes)


class Says:
    """A network that says what it is told to."""

    strides = TASK.model.strides

    def apply(self, variables, images, *, train, mutable=None):
        return (variables, {}) if mutable else variables


SAYS = dataclasses.replace(TASK, model=Says())


def batch_of(*films):
    """Films with (box in shares, finding) pairs each; all findings are known."""
    boxes = np.full((len(films), 64, 4), np.nan, np.float32)
    labels = np.full((len(films), 64), -1, np.int32)
    for row, pairs in enumerate(films):
        for column, (box, finding) in enumerate(pairs):
            boxes[row, column], labels[row, column] = np.array(box) * SIDE, finding
    return {
        "image": np.zeros((len(films), SIDE, SIDE), np.float32),
        "findings": np.zeros((len(films), K), np.float32),
        "boxes": boxes,
        "box_label": labels,
        "boxes_known": np.ones((len(films), K), bool),
    }


@pytest.fixture(scope="module")
def loss_of():
    """(loss, terms) of a network that says `out`, and the loss's gradient by it."""

    @jax.jit
    def run(out, batch):
        def total(out):
            total, (_, terms) = SAYS.loss(out, batch, rng=None, step=None)
            return total, terms

        return jax.value_and_grad(total, has_aux=True)(out)

    return run


def undecided(films):
    return {"logits": np.zeros((films, A, K), np.float32),
            "deltas": np.zeros((films, A, 4), np.float32)}  # fmt: skip


BOX = [0.3, 0.3, 0.6, 0.7]


# The loss.


def test_the_loss_is_the_mean_over_films_of_their_own_anchors(loss_of):
    batch = batch_of([(BOX, OPACITY), (BOX, EDEMA)], [])
    batch["boxes_known"][0, 0] = False
    (total, terms), grads = loss_of(undecided(2), batch)
    one = anchors.match(TASK.anchors, np.float32([BOX]), np.array([0]), findings=1)
    positive = np.asarray(one.positive)
    count, unsure = positive.sum(), int(np.isnan(one.labels).sum())
    assert count > 1
    assert unsure > 1
    # Of a logit of 0: -w 0.5^2 log 0.5. Two findings have the box; one is unknown.
    pull, push = 0.25 * np.log(2) / 4, 0.75 * np.log(2) / 4
    away = 2 * (A - count - unsure) + (K - 3) * A
    first = (2 * count * pull + away * push) / count
    assert float(terms["focal"]) == pytest.approx((first + A * K * push) / 2, rel=1e-5)
    off = np.abs(np.asarray(anchors.encode(np.float32(BOX), TASK.anchors[positive])))
    smooth = np.where(off < 1 / 9, off**2 * 4.5, off - 1 / 18).sum() / count
    assert float(terms["box"]) == pytest.approx(smooth / 2, rel=1e-4)
    assert float(total) == pytest.approx(float(terms["focal"] + terms["box"]), rel=1e-6)
    pulled = np.asarray(grads["logits"][0]) < 0
    np.testing.assert_array_equal(np.flatnonzero(pulled.any(axis=0)), [OPACITY, EDEMA])
    np.testing.assert_array_equal(pulled[:, EDEMA], positive)
    assert not np.any(grads["logits"][0, :, 0])  # nobody knows where it is
    np.testing.assert_array_equal(np.any(grads["deltas"][0], axis=-1), positive)
    assert not np.any(grads["deltas"][1])


@pytest.mark.parametrize("logit", [-40.0, 40.0])
def test_films_without_boxes_and_extreme_answers_have_finite_gradients(loss_of, logit):
    out = undecided(2)
    out["logits"][:] = logit
    out["deltas"][:] = 1e3
    for batch in (batch_of([], []), batch_of([([0, 0, 1, 1], OPACITY)], [(BOX, EDEMA)])):
        (total, _), grads = loss_of(out, batch)
        assert np.isfinite(total)
        assert all(np.isfinite(grad).all() for grad in grads.values())


def test_a_film_of_which_nothing_is_known_costs_nothing(loss_of):
    batch = batch_of([], [])
    batch["boxes_known"][:] = False
    (total, _), grads = loss_of(undecided(2), batch)
    assert float(total) == 0
    assert not any(np.any(grad) for grad in grads.values())


def test_findings_that_are_left_out_are_neither_learned_nor_told():
    task = dataclasses.replace(SAYS, untrained=("edema",))
    batch = batch_of([(BOX, EDEMA)])

    def total(logits):
        return task.loss(undecided(1) | {"logits": logits}, batch, rng=None, step=None)[0]

    moved = np.any(jax.jit(jax.grad(total))(undecided(1)["logits"]), axis=(0, 1))
    assert moved.tolist() == [k != EDEMA for k in range(K)]
    found = task.combine([random_outputs(0, films=1)])
    assert np.isnan(found["scores"][0, :, 0]).tolist() == [k == EDEMA for k in range(K)]
    film = {"image": np.zeros((8, 8), np.uint8)}
    said = task.describe(film, {name: value[0] for name, value in found.items()})
    assert said["findings"]["edema"] is None


# Records.


def phantoms(split="train", count=6):
    block = sources.block("phantom_cxr", size=128, test=count, train=count)
    return sources.open_source(block, split)


def test_augmentation_moves_boxes_with_the_film_and_drops_those_that_left_it():
    """A bright box on a black film: the box follows it, whatever is drawn."""
    task = dataclasses.replace(TASK, augment=Augment(shift=0.45, shrink=0.2))
    film = np.zeros((128, 128), np.uint8)
    film[20:60, 70:120] = 200
    record = {
        "image": film,
        "findings": np.zeros(K, np.float32),
        "boxes": np.float32([[70, 20, 120, 60], [0, 0, 4, 4]]),
        "box_label": np.int32([EDEMA, OPACITY]),
    }
    example = task.data.transforms.example(record)
    gone = 0
    for seed in range(20):
        seen = task.data.transforms.finish(example, np.random.default_rng(seed))
        lit = seen["image"] > task.preprocess.normalize(100)
        rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
        if len(rows):
            around = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(seen["boxes"][0], around, atol=1)
        left = np.isnan(seen["boxes"][:2]).all(axis=1)
        np.testing.assert_array_equal(seen["box_label"][:2], np.where(left, -1, [EDEMA, OPACITY]))
        assert np.isnan(seen["boxes"][2:]).all()
        gone += left[1]
    assert 0 < gone < 20
    plain = task.data.transforms.finish(example, None)
    np.testing.assert_array_equal(plain["boxes"][:2], record["boxes"] / 2)


def test_only_films_on_which_somebody_drew_are_trained_on():
    class Some(Hidden):
        """Every other film lacks its boxes."""

        def __init__(self, source):
            super().__init__(source, frozenset())
            self.partial = frozenset({"boxes", "box_label"})

        def __getitem__(self, index):
            record = super().__getitem__(index)
            return record if index % 2 else {k: v for k, v in record.items() if k[:3] != "box"}

        def peek(self, index, field):
            return self[index].get(field)

    source = Some(phantoms())
    adapted = TASK.data.adapt(source, training=True)
    assert [adapted[i]["id"] for i in range(len(adapted))] == [source[i]["id"] for i in (1, 3, 5)]
    assert len(TASK.data.adapt(source, training=False)) == 6
    # Findings go by their names; boxes of others are nobody's.
    fewer = make(classes=("edema", "lung opacity"))
    adapted = fewer.data.adapt(phantoms(), training=True)
    for index in range(len(adapted)):
        names = [FINDINGS[k] for k in phantoms()[index]["box_label"]]
        wanted = [fewer.classes.index(n) if n in fewer.classes else -1 for n in names]
        assert adapted[index]["box_label"].tolist() == wanted


def test_training_films_that_teach_nothing_are_one_line():
    hidden = Hidden(phantoms(), frozenset({"boxes", "box_label"}))
    with pytest.raises(InputError, match="no field 'box"):
        TASK.data.adapt(hidden, training=True)
    healthy = sources.open_source(
        sources.block("phantom_cxr", size=128, train=2, diseased=0.0), "train"
    )
    task = make(classes=("edema",))
    with pytest.raises(InputError, match=r"no film has a box of config\.classes \(edema\)"):
        task.data.unlabelled(task.data.adapt(healthy, training=True))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"threshold": -0.1}, r"threshold=-0\.1; it must lie in 0..1"),
        ({"most_boxes": 1001}, "most_boxes=1001"),
        ({"most_boxes": 0}, "most_boxes=0"),
        ({"anchor_scale": 0.0}, r"anchor_scale=0\.0"),
        ({"model.width": 0}, r"model\.width=0"),
        ({"preprocess.size": 100}, "the backbone's stride 8 must divide it"),
        ({"second.name": "phantom_cxr"}, "set it to given"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_one_line(changes, words):
    with pytest.raises(InputError, match=words):
        make(**changes)


def test_films_are_an_option_of_quick():
    assert config_file.get_config("quick,films=7").data.train == 7
    for variant in ("films=7", "smoke,films=7", "quick,films=0"):
        with pytest.raises(InputError, match="films="):
            config_file.get_config(variant)


# Boxes.


def random_outputs(seed, films=2):
    rng = np.random.default_rng(seed)
    return {
        "anchor_probs": (rng.random((films, A, K)) ** 4).astype(np.float32),
        "deltas": rng.normal(0, 0.1, (films, A, 4)).astype(np.float32),
        "probs": rng.random((films, K)).astype(np.float32),
    }


def true_outputs(task, batch, confidence=0.9):
    """What a network that knows the boxes would say."""
    probs = np.full((len(batch["boxes"]), A, K), 0.01, np.float32)
    deltas = np.zeros((*probs.shape[:2], 4), np.float32)
    for row, (boxes, labels) in enumerate(zip(batch["boxes"], batch["box_label"])):
        found = anchors.match(task.anchors, boxes / SIDE, labels, findings=K)
        probs[row][np.asarray(found.labels) == 1] = confidence
        deltas[row] = anchors.encode(found.boxes, task.anchors)
    return {"anchor_probs": probs, "deltas": deltas, "probs": probs.max(axis=1)}


def test_one_member_gives_exactly_itself():
    outputs = random_outputs(0)
    found = TASK.combine([outputs])
    assert found.keys() == outputs.keys() | {"boxes", "scores"}
    assert found["boxes"].shape == (2, K, 1, 4)
    again = TASK.combine([found])
    for name, value in found.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    for name, value in outputs.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    # One box a finding is the best anchor's.
    best = outputs["anchor_probs"].argmax(axis=1)
    np.testing.assert_array_equal(found["scores"][..., 0], outputs["anchor_probs"].max(axis=1))
    decoded = np.asarray(anchors.decode(outputs["deltas"], TASK.anchors))
    wanted = np.take_along_axis(decoded, best[..., None], axis=1)
    np.testing.assert_allclose(found["boxes"][:, :, 0], wanted, atol=1e-6)


def test_members_agree_on_anchors_before_boxes_are_chosen():
    one, other = random_outputs(0), random_outputs(1)
    found = TASK.combine([one, other])
    middle = {name: (one[name] + other[name]) / 2 for name in one}
    for name, value in TASK.combine([middle]).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)


def test_a_score_below_the_threshold_is_no_box():
    outputs = random_outputs(0)
    outputs["anchor_probs"][:, :, EDEMA] = 0.049
    scores = TASK.combine([outputs])["scores"][..., 0]
    assert np.isnan(scores).all(axis=0).tolist() == [k == EDEMA for k in range(K)]
    assert not np.isnan(make(threshold=0.04).combine([outputs])["scores"]).any()


def scored(task, batch, outputs):
    rows = jax.device_get(jax.jit(task.score)(outputs, batch))
    return {**rows, "id": np.arange(len(batch["boxes"])), "group": np.arange(len(batch["boxes"]))}


def test_a_network_that_knows_the_boxes_finds_them_all():
    other, small = [0.05, 0.55, 0.25, 0.95], [0.8, 0.1, 0.84, 0.13]
    whole = [0, 0, 1, 1]
    first = [(BOX, OPACITY), (other, OPACITY), (small, EDEMA)]
    batch = batch_of(first, [(BOX, EDEMA), (whole, OPACITY)], [])
    batch["findings"][[0, 0, 1, 1], [OPACITY, EDEMA] * 2] = 1
    task = make(most_boxes=5)
    outputs = task.combine([true_outputs(task, batch)])
    report = numbers(task.evaluation.report(scored(task, batch, outputs)))
    assert report["map"] == report["coco_map"] == pytest.approx(1)
    assert report["loc_acc_iou50"] == pytest.approx(1)
    assert report["mean_auc"] == 1
    count = (~np.isnan(outputs["scores"])).sum(axis=-1)
    assert count[:, [OPACITY, EDEMA]].tolist() == [[2, 1], [1, 1], [0, 0]]
    # With one box a finding, one of two is found.
    single = TASK.combine([true_outputs(TASK, batch)])
    assert numbers(TASK.evaluation.report(scored(TASK, batch, single)))["map_lung_opacity"] < 1


def test_another_sets_findings_are_scored_by_the_classes_that_stand_for_them():
    task = make(class_mapping=(("haze", ("lung opacity", "edema")),), most_boxes=2)
    outputs = random_outputs(3)
    found = task.combine([outputs])
    assert found["boxes"].shape == (2, 1, 2, 4)
    mixed = outputs["anchor_probs"][..., [OPACITY, EDEMA]].mean(axis=-1)
    np.testing.assert_allclose(found["scores"][:, 0, 0], mixed.max(axis=1), rtol=1e-6)
    rows = scored(task, batch_of([], []) | {
        "findings": np.zeros((2, 1), np.float32), "boxes_known": np.ones((2, 1), bool)
    }, found)  # fmt: skip
    assert rows["probs"].shape == rows["targets"].shape == (2, 1)


def test_predict_gives_probabilities_of_anchors_and_film():
    out = undecided(1)
    out["logits"][0, 7, EDEMA] = 3.0
    found = SAYS.predict(out, {"image": np.zeros((1, SIDE, SIDE), np.float32)})
    high = scipy.special.expit(3.0)
    assert found["anchor_probs"][0, 7, EDEMA] == pytest.approx(high)
    assert found["probs"][0].tolist() == pytest.approx(
        [high if k == EDEMA else 0.5 for k in range(K)]
    )


def test_boxes_are_told_and_drawn_in_the_films_own_pixels():
    batch = batch_of([([0.25, 0.5, 0.5, 1.0], OPACITY)])
    outputs = {name: x[0] for name, x in TASK.combine([true_outputs(TASK, batch)]).items()}
    film = {"image": np.zeros((300, 200), np.uint8), "id": "a"}  # stretched to the square
    said = TASK.describe(film, outputs)
    assert json.loads(json.dumps(said)) == said
    (box,) = said["boxes"]
    assert (box["finding"], box["score"]) == ("lung opacity", 0.9)
    np.testing.assert_allclose(box["xyxy_px"], [50, 150, 100, 300], atol=0.1)
    assert said["findings"]["edema"] == 0.01
    drawn = TASK.figure(film, outputs)
    assert len(drawn.axes[0].patches) == 1
    nothing = {**outputs, "scores": np.full_like(outputs["scores"], np.nan)}
    assert not TASK.figure(film, nothing).axes[0].patches
