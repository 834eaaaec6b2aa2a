"""The baselines of FeCNN's Table 3: published sizes, heads by hand, and what must hold for any."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from cxr_jax.models import backbones, sizes, slices
from cxr_jax.models.resnet import ResNet

K, SIDE = 2, 64
HEADS = {
    "resnet50": slices.DenseHead(K, (16, 8)),
    "vgg16": slices.DenseHead(K, (16, 8)),
    "xception": slices.DenseHead(K, (16, 8)),
    "wsnet": slices.ScoreMapHead(K),
    "decovnet": slices.ProgressiveHead(K, (16, 8, 8)),
    "covidnet_ct": slices.DenseHead(K),
}
names = pytest.mark.parametrize("name", HEADS)


def backbone(fields):
    return backbones.make_backbone(ml_collections.ConfigDict({"model": {"backbone": fields}}))


def small(name):
    return slices.SliceClassifier(backbone(sizes.SMALL_SLICE_CNNS[name]), HEADS[name])


def images(count=2, seed=0):
    return np.random.default_rng(seed).normal(size=(count, SIDE, SIDE)).astype(np.float32)


def shapes_of(model, side=SIDE):
    x = jax.ShapeDtypeStruct((1, side, side), np.float32)
    return jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, train=False), x)


def drawn(model):
    """Variables from NumPy, every bias and statistic among them."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        values = rng.normal(size=leaf.shape).astype(np.float32)
        if path[-1].key in ("var", "scale"):
            return 1 + 0.1 * np.abs(values)
        return values * np.float32(np.sqrt(2 / max(1, np.prod(leaf.shape[:-1]))))

    return jax.tree_util.tree_map_with_path(draw, shapes_of(model)[1])


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables.get("params", {})))


def test_every_baseline_has_a_small_and_a_full_size():
    assert set(sizes.SLICE_CNNS) == set(sizes.SMALL_SLICE_CNNS) == set(HEADS)


@pytest.mark.parametrize(
    "name, head, side, parameters",
    [
        # torchvision's vgg16; Keras' Xception less its 54,528 running statistics.
        ("vgg16", slices.DenseHead(1000, (4096, 4096), "flatten"), 224, 138_357_544),
        ("xception", slices.DenseHead(1000), 299, 22_910_480 - 54_528),
        ("resnet50", slices.DenseHead(1000), 224, 25_557_032),
    ],
)
def test_published_classifiers_have_their_parameters(name, head, side, parameters):
    model = slices.SliceClassifier(backbone(sizes.SLICE_CNNS[name]), head)
    out, variables = shapes_of(model, side)
    assert count(variables) == parameters
    assert out["logits"].shape == (1, 1000)


def test_covidnet_ct_is_as_large_as_the_published_one():
    """1399.38 K parameters (its repository's model A): the widths are ours, the sum is theirs."""
    model = slices.SliceClassifier(backbone(sizes.SLICE_CNNS["covidnet_ct"]), slices.DenseHead(3))
    out, variables = shapes_of(model, 512)
    assert count(variables) == pytest.approx(1_399_380, rel=0.01)
    assert out["cells"].shape[1:3] == (16, 16)


@names
def test_full_sizes_explain_maps_of_16_cells(name):
    """512 px, 16x16 cells as in Sec. 3.2.2; DeCoVNet stops at stride 8."""
    out, _ = shapes_of(slices.SliceClassifier(backbone(sizes.SLICE_CNNS[name]), HEADS[name]), 512)
    side = 64 if name == "decovnet" else 16
    assert out["cells"].shape[1:3] == (side, side)


@names
def test_a_slice_is_classified_alone_and_by_what_follows_its_maps(name):
    model = small(name)
    variables, x = drawn(model), images(3)
    run = jax.jit(lambda v, x: model.apply(v, x, train=False))
    out, turned = run(variables, x), run(variables, x[::-1].copy())
    np.testing.assert_allclose(turned["logits"][::-1], out["logits"], rtol=1e-4, atol=1e-5)
    assert np.ptp(out["logits"][:, 0]) > 1e-3

    @jax.jit
    def halves(variables, x):
        maps = model.apply(variables, x, train=False, method="maps")
        return maps[-1], model.apply(variables, maps, train=False, method="classify")["logits"]

    cells, logits = halves(variables, x)
    np.testing.assert_allclose(logits, out["logits"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(cells, out["cells"], rtol=1e-4, atol=1e-5)


def maps_of(*sides, channels=3):
    rng = np.random.default_rng(1)
    return tuple(rng.normal(size=(4, n, n, channels)).astype(np.float32) for n in sides)


def test_score_maps_by_hand():
    """The highest cell of each class on each level, added."""
    maps = maps_of(8, 4, 2)
    variables = slices.ScoreMapHead(K).init(jax.random.key(0), maps, train=False)
    want = 0
    for index, cells in enumerate(maps):
        layer = variables["params"][f"classes{index}"]
        want = want + (cells @ layer["kernel"] + layer["bias"]).max((1, 2))
    got = slices.ScoreMapHead(K).apply(variables, maps, train=False)["logits"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", ["mean", "flatten"])
def test_dense_layers_by_hand(pool):
    (cells,) = maps = maps_of(2)
    head = slices.DenseHead(K, (5,), pool)
    variables = head.init(jax.random.key(0), maps, train=False)
    x = cells.mean((1, 2)) if pool == "mean" else cells.reshape(4, -1)
    for name in ("hidden1", "classes"):
        layer = variables["params"][name]
        x = x @ layer["kernel"] + layer["bias"]
        x = np.maximum(x, 0) if name == "hidden1" else x
    got = head.apply(variables, maps, train=False)["logits"]
    np.testing.assert_allclose(got, x, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="pool='max'; expected 'mean' or 'flatten'"):
        head.clone(pool="max").init(jax.random.key(0), maps, train=False)


def test_the_progressive_classifier_is_blind_to_where():
    """With convolutions of their middle alone: the maximum over the cells is all there is."""
    (cells,) = maps_of(8)
    head = slices.ProgressiveHead(K, (3, 3, 3), dropout=0.0)
    variables = head.init(jax.random.key(0), (cells,), train=False)
    middle = np.zeros((3, 3, 3, 3), np.float32)
    middle[1, 1] = np.eye(3)
    params = dict(variables["params"])
    for index in (1, 2, 3):
        params[f"conv{index}"] = {"kernel": middle, "bias": np.zeros(3, np.float32)}
    x = np.maximum(cells, 0).max((1, 2))
    for name in ("dense", "classes"):
        x = x @ params[name]["kernel"] + params[name]["bias"]
    got = head.apply({"params": params}, (cells,), train=False)["logits"]
    np.testing.assert_allclose(got, x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "head, sides",
    [
        (slices.DenseHead(K, (16,)), (4,)),
        (slices.ScoreMapHead(K), (8, 4, 2)),
        (slices.ProgressiveHead(K, (8, 8, 8)), (9,)),
    ],
)
def test_gradients_of_heads_are_finite_and_dropout_is_in_training_only(head, sides):
    maps = maps_of(*sides)
    variables = head.init(jax.random.key(0), maps, train=False)

    @functools.partial(jax.jit, static_argnames="train")
    def logits(params, seed, train=True):
        rngs = {"dropout": jax.random.key(seed)}
        return head.apply({"params": params}, maps, train=train, rngs=rngs)["logits"]

    loss = jax.jit(jax.grad(lambda params: jnp.square(logits(params, 0) - 1).sum()))
    grads = loss(variables["params"])
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all()
        assert np.any(grad), jax.tree_util.keystr(path)
    drops = not isinstance(head, slices.ScoreMapHead)
    assert np.array_equal(logits(variables["params"], 0), logits(variables["params"], 1)) != drops
    np.testing.assert_array_equal(
        logits(variables["params"], 0, train=False), logits(variables["params"], 1, train=False)
    )


def test_bfloat16_returns_float32():
    for head, levels in ((slices.DenseHead(K, (4,)), 1), (slices.ScoreMapHead(K), 3)):
        net = ResNet((1, 1, 1), init_features=4, stop_at="layer3", dtype=jnp.bfloat16)
        model = slices.SliceClassifier(net, head.clone(dtype=jnp.bfloat16))
        out, variables = shapes_of(model)
        assert out["logits"].dtype == jnp.float32
        assert head.levels == levels
        assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
