"""Relevance against the reference, its forward pass against the ViT's, and what must hold."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.explain import attention, relevance
from cxr_jax.models.vit import ViT

CLASSES = 3
VIT = ViT(num_layers=2, num_heads=2, width=8, mlp_dim=16)
MAPS = ("relevance", "rollout_relevance", "last_layer", "rollout", "attention")


@functools.partial(jax.jit, static_argnames=("vit", "grid", "norm_epsilon", "return_layers"))
def explain(vit, params, features, head, classes, **options):
    return relevance.relevance_maps(vit, params, features, head=head, classes=classes, **options)


def dense(weights, name):
    return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}


def norm(weights, name):
    return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}


def vit_of(arrays):
    """The module, its parameters and the head of a golden file in torch's layout."""
    weights = {key[6:]: arrays[key] for key in arrays if key.startswith("param_")}
    _, num_layers, num_heads, _, _ = arrays["out_attn"].shape
    patches = weights["patch_embed.proj.weight"]  # [D, C, size, size]
    width, _, size, _ = patches.shape
    kernel = patches.transpose(2, 3, 1, 0).reshape(-1, width)
    params = {
        "embedding": {"kernel": kernel, "bias": weights["patch_embed.proj.bias"]},
        "cls": weights["cls_token"],
        "position": weights["pos_embed"],
        "norm": norm(weights, "norm"),
    }
    for index in range(num_layers):
        name = f"blocks.{index}"
        params[f"block{index}"] = {
            "norm1": norm(weights, f"{name}.norm1"),
            "norm2": norm(weights, f"{name}.norm2"),
            "attn": {key: dense(weights, f"{name}.attn.{key}") for key in ("qkv", "proj")},
            "mlp": {key: dense(weights, f"{name}.mlp.{key}") for key in ("fc1", "fc2")},
        }
    hidden = weights["blocks.0.mlp.fc1.bias"].size
    vit = ViT(num_layers, num_heads, width, hidden, patch_size=size)
    return vit, params, dense(weights, "head")


@pytest.fixture(scope="module")
def reference(golden):
    """The golden arrays, and ours of the same names."""
    arrays = golden("relevance")
    vit, params, head = vit_of(arrays)
    classes = arrays["in_classes"].astype(np.int32)
    ours = explain(
        vit, params, arrays["in_image"], head, classes, norm_epsilon=1e-5, return_layers=True
    )
    return arrays, ours


OUTPUTS = {
    "logits": ("logits", 1e-5),
    "attn": ("attn", 1e-5),
    "attn_grad": ("attn_grad", 1e-5),
    "attn_relevance": ("attn_relevance", 1e-3),
    "relevance": ("relevance", 1e-3),
    "rollout_relevance": ("rollout_relevance", 1e-3),
    "last_layer": ("last_layer", 1e-3),
    "rollout_attention": ("rollout", 1e-5),
}


def test_every_golden_output_is_compared(golden):
    assert {f"out_{name}" for name in OUTPUTS} == {
        k for k in golden("relevance") if k[:4] == "out_"
    }


@pytest.mark.parametrize("name", OUTPUTS)
def test_matches_reference(name, reference, assert_golden):
    arrays, ours = reference
    ours_name, rtol = OUTPUTS[name]
    got = np.asarray(ours[ours_name])
    if ours_name in MAPS:  # theirs are rows of patches
        got = got.reshape(*got.shape[:-2], -1)
    assert_golden(got, arrays[f"out_{name}"], rtol=rtol, what=name)


def make(vit, shape, grid=None):
    """Random parameters, a head and features for a ViT."""
    rng = np.random.default_rng(0)
    init = functools.partial(vit.init, train=False, grid=grid)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros(shape))["params"]
    draw = lambda x: jnp.asarray(rng.normal(size=x.shape) / max(x.shape) ** 0.5, jnp.float32)  # noqa: E731
    kernel = rng.normal(size=(vit.width, CLASSES)).astype(np.float32)
    head = {"kernel": kernel, "bias": np.arange(CLASSES, dtype=np.float32) / 10}
    return jax.tree.map(draw, shapes), head, rng.normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def small():
    """Parameters, head and features [4, 2, 3, 5] of VIT."""
    return make(VIT, (4, 2, 3, 5))


@pytest.mark.parametrize(
    ("vit", "shape", "grid"),
    [
        (dataclasses.replace(VIT, stride=2, num_heads=4), (2, 3, 5, 4), None),
        (dataclasses.replace(VIT, patch_size=4, num_layers=1), (2, 8, 12, 3), None),
        (dataclasses.replace(VIT, dropout=0.5, dtype=jnp.bfloat16), (2, 2, 3, 5), (4, 2)),
    ],
)
def test_the_forward_pass_is_the_vits(vit, shape, grid):
    """With its strides, patches and resampled positions, in float32 and without dropout."""
    params, head, features = make(vit, shape, grid)
    features = features.astype(vit.dtype)
    ours = explain(vit, params, features, head, np.zeros(2, int), grid=grid, return_layers=True)
    full = dataclasses.replace(vit, dtype=jnp.float32)
    apply = functools.partial(full.apply, train=False, return_attention=True, grid=grid)
    theirs = jax.jit(apply)({"params": params}, features)
    logits = theirs["cls"] @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(ours["logits"], logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours["attn"], np.stack(theirs["attention"], 1), rtol=1e-5)
    for name in MAPS:
        assert ours[name].shape == (2, 2, 3), name
        assert ours[name].dtype == jnp.float32, name


def test_the_last_norms_epsilon_is_an_argument():
    vit = dataclasses.replace(VIT, num_layers=1)
    params, head, features = make(vit, (1, 1, 2, 3))
    ours = explain(vit, params, features, head, np.zeros(1, int), norm_epsilon=0.5)
    before_the_norm = lambda module, _: module.name == "block0"  # noqa: E731
    apply = functools.partial(vit.apply, train=False, capture_intermediates=before_the_norm)
    _, kept = jax.jit(apply)({"params": params}, features)
    cls = np.asarray(kept["intermediates"]["block0"]["__call__"][0][0])[:, 0]
    cls = (cls - cls.mean()) / np.sqrt(cls.var() + 0.5)
    cls = cls * params["norm"]["scale"] + params["norm"]["bias"]
    logits = cls @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(ours["logits"], logits, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_of_the_logit(small):
    """Against finite differences of the logit along what the attention's gradient says: moving the
    last layer's values moves the class token by attention times values, so scaling them all by
    (1 + t) has the derivative sum(A * dlogit/dA)."""
    params, head, features = small
    classes = jnp.array([0, 1, 2, 0])
    out = explain(VIT, params, features, head, classes, return_layers=True)
    got = jnp.sum(out["attn_grad"][:, -1] * out["attn"][:, -1], axis=(1, 2, 3))

    apply = jax.jit(functools.partial(VIT.apply, train=False))

    def logit(scale):
        kernel = params["block1"]["attn"]["qkv"]["kernel"].at[:, 16:].multiply(scale)
        bias = params["block1"]["attn"]["qkv"]["bias"].at[16:].multiply(scale)
        block = params["block1"] | {
            "attn": params["block1"]["attn"] | {"qkv": {"kernel": kernel, "bias": bias}}
        }
        cls = apply({"params": params | {"block1": block}}, features)["cls"]
        return (cls @ head["kernel"])[jnp.arange(4), classes]

    want = (logit(1.01) - logit(0.99)) / 0.02
    np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-3)


def test_every_product_is_a_full_float32_one(small):
    """What a CPU does anyway; a GPU's own choice has errors near 1e-3."""
    params, head, features = small
    run = functools.partial(explain, VIT, return_layers=True)
    program = str(jax.make_jaxpr(run)(params, features, head, np.zeros(4, int)))
    products = program.count("dot_general[")
    assert products > 50
    assert program.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == products


def test_an_image_is_explained_alone(small):
    """In another order, and beside an image that is not even finite."""
    params, head, features = small
    classes = jnp.array([0, 1, 2, 1])
    together = explain(VIT, params, features, head, classes)
    order = np.array([2, 0, 3, 1])
    shuffled = explain(VIT, params, features[order], head, classes[order])
    broken = explain(VIT, params, jnp.asarray(features).at[3].set(jnp.nan), head, classes)
    for name in MAPS:
        scale = np.abs(together[name]).max()
        close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5 * scale)
        close(shuffled[name], together[name][order])
        close(broken[name][:3], together[name][:3])
    assert np.isnan(broken["relevance"][3]).all()


def test_several_classes_are_several_explanations(small):
    params, head, features = small
    classes = jnp.array([[0, 1], [1, 2], [2, 0], [0, -1]])
    both = explain(VIT, params, features, head, classes)
    for n in range(2):
        one = explain(VIT, params, features, head, classes[:, n])
        for name in ("relevance", "rollout_relevance", "last_layer"):
            np.testing.assert_allclose(both[name][:, n], one[name], rtol=1e-4, atol=1e-7)
        for name in ("rollout", "attention", "logits"):
            np.testing.assert_array_equal(both[name], one[name])
    assert np.abs(both["relevance"][:, 0] - both["relevance"][:, 1]).max() > 1e-3
    assert not both["relevance"][3, 1].any()  # no such class


def test_without_positions_a_mirrored_map_is_explained_mirrored(small):
    params, head, features = small
    params = params | {"position": params["position"].at[:, 1:].set(0.0)}
    classes = jnp.array([0, 1, 2, 1])
    plain = explain(VIT, params, features, head, classes)
    mirrored = explain(VIT, params, features[:, :, ::-1], head, classes)
    for name in MAPS:
        scale = np.abs(plain[name]).max()
        np.testing.assert_allclose(mirrored[name][:, :, ::-1], plain[name], atol=1e-4 * scale)
        assert np.abs(mirrored[name] - plain[name]).max() > 1e-2 * scale, name


def change(params, function):
    return jax.tree.map(function, params)


@pytest.mark.parametrize(
    "case", ["zero features", "equal cells", "zero weights", "logits of 40", "huge", "tiny"]
)
def test_extremes_are_finite(case, small):
    params, head, features = small
    match case:
        case "zero features":
            features = jnp.zeros_like(features)
        case "equal cells":
            features = jnp.ones_like(features)
        case "zero weights":
            params = change(params, jnp.zeros_like)
        case "logits of 40":
            head = {"kernel": head["kernel"] * 40, "bias": jnp.array([40.0, -40.0, 0.0])}
        case "huge":
            features, params = features * 1e6, change(params, lambda x: x * 100)
        case "tiny":
            features, params = features * 1e-20, change(params, lambda x: x * 1e-10)
    out = explain(VIT, params, features, head, jnp.tile(jnp.arange(2), (4, 1)))
    for name, array in out.items():
        assert np.isfinite(array).all(), name
    if case == "logits of 40":
        assert np.abs(out["logits"]).max() > 40


NEAR_ZERO = np.float32([0, -0.0, 1e-9, -1e-9, -1.0000001e-9, -5e-10, 5e-10, -2e-9, 1e-45, 1e-20])


def test_division_has_no_pole():
    """a / b would be inf; b times the quotient is at most 2 a, whatever b is."""
    quotient = relevance.divide(jnp.ones(len(NEAR_ZERO)), NEAR_ZERO)
    assert np.isfinite(quotient).all()
    assert np.abs(quotient * NEAR_ZERO).max() <= 2.0001
    assert not quotient[:2].any()
    np.testing.assert_allclose(relevance.divide(3.0, np.float32([2, -2])), [1.5, -1.5])


def test_sums_that_cancel_stay_finite_however_deep():
    """Two elements of x + y are a millionth of x and have opposite R, so that the totals do not see
    them: they grow a millionfold a layer."""
    x = jnp.array([[[1.0, 1.0, 1.0]]])
    y = jnp.array([[[-1 + 2.0**-20, -1 + 2.0**-20, 1.0]]])
    r = jnp.array([[[1.0, -1.0, 1.0]]])
    for _ in range(12):
        r, other = relevance.sum_rule(x, y, r)
        assert np.isfinite(r).all()
        assert np.isfinite(other).all()
    assert np.abs(r).max() == relevance.LIMIT
    factors = relevance.product_rule(
        x[0], y[0], jnp.full((1, 1), 1e-9), equation="qd,kd->qk", relevance=r[0, :, :1]
    )
    assert all(np.isfinite(factor).all() for factor in factors)


def test_the_rules_keep_the_relevance():
    """A linear layer and a branching keep the total of R; the two factors of a product get half of
    it each."""
    rng = np.random.default_rng(0)
    x, y, r = (jnp.asarray(rng.normal(size=(2, 4, 32)), jnp.float32) for _ in range(3))
    kernel = jnp.asarray(rng.normal(size=(32, 32)), jnp.float32)
    total = r.sum((1, 2))
    near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    near(relevance.linear_rule(x, kernel, r).sum((1, 2)), total)
    near(relevance.branch_rule(x, r, 2 * r).sum((1, 2)), 3 * total)
    product = jnp.einsum("bqd,bkd->bqk", x, y)
    r = jnp.asarray(rng.normal(size=product.shape), jnp.float32)
    parts = relevance.product_rule(x, y, product, equation="bqd,bkd->bqk", relevance=r)
    for part in parts:
        near(part.sum((1, 2)), r.sum((1, 2)) / 2)


def test_a_sum_shares_relevance_out_by_its_terms_totals():
    """By the rule as it is written, for totals of either sign."""
    rng = np.random.default_rng(0)
    x, y, r = rng.normal(size=(3, 40, 4, 6))
    parts = relevance.sum_rule(*(jnp.asarray(array, jnp.float32) for array in (x, y, r)))
    totals = [(term * r / (x + y)).sum((1, 2)) for term in (x, y)]
    assert all((total < 0).any() for total in totals)
    for term, total, part in zip((x, y), totals, parts):
        want = np.abs(total) / sum(np.abs(totals)) * r.sum((1, 2))
        # What terms that nearly cancel leave of float32.
        np.testing.assert_allclose(part.sum((1, 2)), want, rtol=1e-2, atol=1e-3)
        elements = (term * r / (x + y))[0] * (want / total)[0]
        np.testing.assert_allclose(part[0], elements, rtol=1e-2, atol=1e-3)


def test_rollout_is_the_product_of_the_layers():
    rng = np.random.default_rng(0)
    layers = rng.dirichlet(np.ones(5), size=(3, 2, 4, 5)).astype(np.float32)  # L, B, heads, N
    for b in range(2):
        product = np.eye(5)
        for layer in layers[:, b]:
            mixing = layer.mean(0) + np.eye(5)
            product = mixing / mixing.sum(1, keepdims=True) @ product
        np.testing.assert_allclose(attention.rollout(layers)[b], product[0, 1:], rtol=1e-5)
    last = attention.last_layer(layers)
    np.testing.assert_allclose(last, layers[-1].mean(1)[:, 0, 1:], rtol=1e-6)
