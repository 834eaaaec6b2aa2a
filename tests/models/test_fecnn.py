"""FeCNN: fusion by hand in NumPy, the running error rates, and what must hold for any row of Table
4."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from cxr_jax.explain import lesion_maps
from cxr_jax.models import fecnn
from cxr_jax.models.resnet import ResNet
from cxr_jax.models.slices import SliceClassifier

SIDE, B, WIDTH = 32, 4, 6
TINY = ResNet((1, 1, 1), init_features=4, stop_at="layer3")
ROWS = [(True, True), (True, False), (False, True), (False, False)]
rows = pytest.mark.parametrize("pyramid, fusion", ROWS)
LABELS = np.array([0, 1, 1, 0])


def make(pyramid=True, fusion=True, **changes):
    options = dict(pyramid=pyramid, fusion=fusion, width=WIDTH, dropout=0.0)
    return SliceClassifier(TINY, fecnn.LevelHead(**options | changes))


def slices(count=B, seed=0):
    return np.random.default_rng(seed).normal(size=(count, SIDE, SIDE)).astype(np.float32)


def started(model, seed=0):
    """Variables drawn at random, so that every bias and statistic takes part."""
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE)), train=False)
    )
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        values = rng.normal(size=leaf.shape).astype(np.float32)
        if path[-1].key in ("var", "scale"):
            return 1 + 0.1 * np.abs(values)
        if path[-1].key == "errors":
            return np.float32([0.1, 0.6, 0.3, 0.2, 0.45][: len(values)])
        return values * np.float32(np.sqrt(1 / max(1, np.prod(leaf.shape[:-1]))))

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def full():
    """The tiny FeCNN with its variables, compiled in inference and in training."""
    model = make()
    test = jax.jit(lambda v, x: model.apply(v, x, train=False))
    train = jax.jit(
        lambda v, x, labels: model.apply(v, x, train=True, labels=labels, mutable=["batch_stats"])
    )
    return model, started(model), test, train


def test_the_full_size_has_the_sum_of_its_parts():
    """ResNet-50 as torchvision counts it, the pyramid (test_pyramid.py), five levels of 256, and
    what Eq. 1 and 4 need."""
    for classes in (2, 3):
        model = fecnn.fecnn(num_classes=classes)
        x = jax.ShapeDtypeStruct((1, 512, 512), np.float32)
        out, variables = jax.eval_shape(
            lambda x, model=model: model.init_with_output(jax.random.key(0), x, train=False), x
        )
        resnet, pyramid = 25_557_032 - 2049 * 1000, 7_998_208
        levels = 5 * (256 * 256 + 2 * 256)
        fusion = 5 * (256 + 1) * classes + 5 * classes * classes
        total = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        assert total == resnet + pyramid + levels + fusion
        assert total / 1e6 == pytest.approx(31.84, abs=0.01)
        assert out["cells"].shape == (1, 16, 16, 2048)  # the map that Eq. 6 explains
        assert out["level_scores"].shape == (1, 5, classes)


@rows
def test_the_rows_of_table_4_read_what_they_say(pyramid, fusion):
    model = make(pyramid, fusion)
    params = started(model)["params"]["head"]
    levels = {(True, True): 5, (True, False): 5, (False, True): 3, (False, False): 0}
    count = levels[pyramid, fusion]
    assert {name for name in params if name.startswith("level")} == {
        f"level{i}_{part}" for i in range(count) for part in ("conv", "norm")
    }
    assert ("pyramid" in params, "fusion" in params) == (pyramid, fusion)
    if not fusion:
        read = count * WIDTH if count else 64  # channels of the last block
        assert params["classes"]["kernel"].shape == (read, 2)


def test_fusion_by_hand(full):
    """From the levels' vectors on, in float64."""
    model, variables, test, _ = full
    out = test(variables, slices())
    head = variables["params"]["head"]
    maps = model.apply(variables, slices(), train=False, method="maps")
    levels = fecnn.Pyramid(WIDTH).apply(
        {
            "params": head["pyramid"],
            "batch_stats": variables["batch_stats"]["head"]["pyramid"],
        },
        list(maps),
        train=False,
    )
    scores, fused = [], []
    errors = np.float64(variables["batch_stats"]["head"]["fusion"]["errors"])
    weights = 0.5 * np.log((1 - np.clip(errors, 1e-3, 0.5)) / np.clip(errors, 1e-3, 0.5))
    for i, x in enumerate(levels):
        norm = head[f"level{i}_norm"]
        stats = variables["batch_stats"]["head"][f"level{i}_norm"]
        x = np.float64(x) @ np.float64(head[f"level{i}_conv"]["kernel"])
        x = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * norm["scale"] + norm["bias"]
        vector = x.mean((1, 2))
        fusion = head["fusion"]
        score = vector @ fusion["level_kernel"][i] + fusion["level_bias"][i]
        scores.append(np.maximum(score, 0))  # Eq. 1
        fused.append(weights[i] * scores[-1])  # Eq. 2, 3
    logits = np.concatenate(fused, axis=1) @ head["fusion"]["classes"]["kernel"]  # Eq. 4
    np.testing.assert_allclose(out["level_scores"], np.stack(scores, axis=1), atol=1e-5)
    np.testing.assert_allclose(out["level_weights"], weights, rtol=1e-5)
    np.testing.assert_allclose(out["logits"], logits, atol=1e-5)
    assert weights[1] == 0  # an error rate above one half
    assert np.abs(logits).max() > 0.05


def test_weights_are_those_of_eq_2_and_finite_at_the_ends():
    errors = np.array([0.0, 1e-3, 0.1, 0.25, 0.5, 1.0], np.float32)
    want = [0.5 * np.log(999), 0.5 * np.log(999), 0.5 * np.log(9), 0.5 * np.log(3), 0, 0]
    np.testing.assert_allclose(fecnn.level_weights(errors), want, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(fecnn.level_weights(fecnn.FIRST_ERROR), 1, rtol=1e-6)
    assert np.isfinite(jax.vmap(jax.grad(fecnn.level_weights))(errors)).all()


def test_error_rates_move_by_hand():
    """Two levels, four slices of which one has no label: 1 and 3 of three are wrong."""
    scores = np.zeros((4, 2, 3), np.float32)
    scores[0] = [[0, 2, 1], [3, 2, 1]]  # 1, 0; true 1
    scores[1] = [[0, 0, 0], [0, 0, 1]]  # 0 where all are equal, 2; true 0
    scores[2] = [[1, 0, 0], [0, 1, 0]]  # 0, 1; true 2
    scores[3] = [[1, 0, 0], [1, 0, 0]]  # nobody knows
    labels = np.array([1, 0, 2, -1])
    got = fecnn.updated_errors(np.float32([0.5, 0.2]), scores, labels, momentum=0.9)
    np.testing.assert_allclose(got, [0.45 + 0.1 / 3, 0.18 + 0.1], rtol=1e-6)


@pytest.mark.parametrize("labels", [np.full(4, -1), np.zeros(0, int)])
def test_without_a_known_label_error_rates_stay(labels):
    errors = np.float32([0.3, 0.7])
    scores = np.ones((len(labels), 2, 2), np.float32)
    got = fecnn.updated_errors(errors, scores, labels, momentum=0.9)
    np.testing.assert_array_equal(got, errors)


def test_training_moves_the_error_rates_and_inference_does_not(full):
    model, variables, _, train = full
    before = variables["batch_stats"]["head"]["fusion"]["errors"]
    out, moved = train(variables, slices(), LABELS)
    after = moved["batch_stats"]["head"]["fusion"]["errors"]
    wrong = np.asarray(out["level_scores"]).argmax(-1) != LABELS[:, None]
    np.testing.assert_allclose(after, 0.99 * before + 0.01 * wrong.mean(0), rtol=1e-5)
    assert np.abs(after - before).min() > 1e-4
    # This step was weighed by the rates from before it.
    np.testing.assert_allclose(out["level_weights"], fecnn.level_weights(before), rtol=1e-6)
    for options in (dict(train=False, labels=LABELS), dict(train=True)):

        def moved(errors, options=options):
            stats = jax.tree.map(lambda x: x, variables["batch_stats"])
            stats["head"]["fusion"]["errors"] = errors
            given = {**variables, "batch_stats": stats}
            _, new = model.apply(given, slices(), mutable=["batch_stats"], **options)
            return new["batch_stats"]["head"]["fusion"]["errors"]

        # Only traced: what nothing moves comes out as the very variable that went in.
        program = jax.make_jaxpr(moved)(before).jaxpr
        assert program.outvars == program.invars


def test_error_rates_are_measured_without_dropout():
    vectors = np.ones((64, 2, 8), np.float32)
    model = fecnn.Fusion(2, dropout=0.5)
    kernel = np.stack([np.eye(8, 2)[::-1], np.eye(8, 2)[::-1]]).astype(np.float32)
    kernel[..., 1] += 1e-3  # class 1 by a hair; with units dropped, often class 0
    params = {
        "level_kernel": kernel,
        "level_bias": np.zeros((2, 2), np.float32),
        "classes": {"kernel": np.ones((4, 2), np.float32)},
    }
    variables = {"params": params, "batch_stats": {"errors": np.float32([0.2, 0.2])}}
    options = dict(labels=np.ones(64, int), rngs={"dropout": jax.random.key(0)})
    out, moved = jax.jit(
        lambda v: model.apply(v, vectors, train=True, mutable=["batch_stats"], **options)
    )(variables)
    assert (np.asarray(out["level_scores"]).argmax(-1) == 0).any()
    np.testing.assert_allclose(moved["batch_stats"]["errors"], 0.99 * 0.2, rtol=1e-5)


def test_it_starts_as_the_plain_vote():
    model = fecnn.Fusion(3)
    vectors = np.random.default_rng(0).normal(size=(5, 4, 8)).astype(np.float32)
    out, variables = jax.jit(
        lambda: model.init_with_output(jax.random.key(0), vectors, train=False)
    )()
    np.testing.assert_allclose(out["level_weights"], np.ones(4), rtol=1e-5)
    np.testing.assert_allclose(out["logits"], out["level_scores"].sum(1), rtol=1e-5, atol=1e-6)
    spread = np.std(variables["params"]["level_kernel"])
    np.testing.assert_allclose(spread, np.sqrt(1 / 8), rtol=0.2)  # of one level's 8 inputs


def test_a_silent_level_has_no_say_but_goes_on_learning():
    model = fecnn.Fusion(3)
    vectors = np.abs(np.random.default_rng(0).normal(size=(5, 2, 8))).astype(np.float32)
    params = jax.jit(lambda: model.init(jax.random.key(1), vectors, train=False))()["params"]
    params["level_bias"] += 1  # so that ReLU lets something of every score through

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(params, errors):
        variables = {"params": params, "batch_stats": {"errors": errors}}
        out = model.apply(variables, vectors, train=False)
        return out["logits"][:, 1].sum(), out

    for errors, silent in (([0.9, 0.9], True), ([0.2, 0.2], False)):
        grads, out = gradient(params, np.float32(errors))
        assert np.all(out["logits"] == 0) == silent
        weight = max(float(out["level_weights"][0]), fecnn.LEAST)
        open_ = np.asarray(out["level_scores"]) > 0
        want = weight * open_.sum(0)[:, 1]
        np.testing.assert_allclose(grads["level_bias"][:, 1], want, rtol=1e-5)
        assert want.min() > 0


@pytest.mark.parametrize("pyramid, fusion", [ROWS[0], ROWS[3]])
def test_gradients_are_finite_and_reach_every_parameter(pyramid, fusion):
    model = make(pyramid, fusion)
    variables = started(model)

    def loss(params):
        out, _ = model.apply(
            {**variables, "params": params},
            slices(),
            train=True,
            labels=LABELS,
            mutable=["batch_stats"],
        )
        rows = optax.softmax_cross_entropy_with_integer_labels(out["logits"], LABELS)
        return rows.mean()

    grads = jax.jit(jax.grad(loss))(variables["params"])
    assert all(np.isfinite(grad).all() for grad in jax.tree.leaves(grads))
    nothing = [
        jax.tree_util.keystr(path)
        for path, grad in jax.tree_util.tree_leaves_with_path(grads)
        if not np.any(grad)
    ]
    assert not nothing


def test_slices_do_not_mix(full):
    _, variables, test, _ = full
    x, turned = slices(), slices()[::-1].copy()
    out, back = test(variables, x), test(variables, turned)
    for name in ("logits", "level_scores", "cells"):
        np.testing.assert_allclose(back[name][::-1], out[name], atol=1e-5)
    assert np.ptp(out["logits"][:, 0]) > 1e-3


def test_a_batch_in_another_order_trains_the_same(full):
    _, variables, _, train = full
    x, order = slices(), [2, 0, 3, 1]
    _, moved = train(variables, x, LABELS)
    _, again = train(variables, x[order], LABELS[order])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), moved, again)


def test_the_last_block_is_explained_with_the_levels_below_it_held(full):
    """Eq. 6 of a network whose classes depend on three maps: the gradient at the last one alone."""
    model, variables, _, _ = full
    maps = model.apply(variables, slices(), train=False, method="maps")

    def logits(cells):
        held = (*maps[:-1], cells)
        return model.apply(variables, held, train=False, method="classify")["logits"]

    heat = jax.jit(lambda cells: lesion_maps.lesion_heat(logits, cells, positive=1))(maps[-1])
    odds = jax.jit(jax.grad(lambda x: (logits(x)[:, 1] - logits(x)[:, 0]).sum()))(maps[-1])
    want = np.maximum((odds.mean((1, 2), keepdims=True) * maps[-1]).sum(-1), 0)
    np.testing.assert_allclose(heat, lesion_maps.scaled(want), atol=1e-4)
    assert heat.shape == (B, 2, 2)
    assert float(heat.max()) == 1


def test_classify_is_what_follows_the_maps(full):
    model, variables, test, _ = full
    maps = model.apply(variables, slices(), train=False, method="maps")
    assert [x.shape[1:] for x in maps] == [(8, 8, 16), (4, 4, 32), (2, 2, 64)]
    out = model.apply(variables, maps, train=False, method="classify")
    np.testing.assert_allclose(out["logits"], test(variables, slices())["logits"], atol=1e-5)


@rows
def test_bfloat16_returns_float32(pyramid, fusion):
    half = SliceClassifier(
        TINY.clone(dtype=jnp.bfloat16), make(pyramid, fusion).head.clone(dtype=jnp.bfloat16)
    )
    out = jax.eval_shape(lambda v: half.apply(v, slices(), train=False), started(half))
    cells = out.pop("cells")
    assert cells.dtype == jnp.bfloat16
    assert {x.dtype for x in out.values()} == {jnp.dtype(jnp.float32)}


def test_saturated_slices_stay_finite(full):
    _, variables, test, _ = full
    for scale in (0.0, 1e4):
        out = test(variables, scale * slices())
        probs = scipy.special.softmax(np.asarray(out["logits"]), axis=1)
        assert np.isfinite(probs).all()
