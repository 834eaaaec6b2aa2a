"""The classifiers that point: each head by hand, in NumPy, and AGXNet's attention."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.explain.gradcam import grad_cam
from cxr_jax.models import cam_detector as models
from cxr_jax.models.densenet import DenseNet

K, C = 3, 6
CELLS = np.random.default_rng(0).normal(size=(2, 4, 5, C)).astype(np.float32)
CELLS = np.maximum(CELLS, 0)  # as behind a ReLU
HEADS = {
    "gap": models.GapHead(K),
    "lse": models.LseHead(K, sharpness=3.0),
    "transition": models.LseHead(K, sharpness=3.0, transition=4),
    "lse_map": models.LseMapHead(K),
    "weldon": models.WeldonHead(K, top_cells=2),
    "multimap": models.MultiMapHead(K, maps_each=4, alpha=0.7),
    "stl": models.TransferHead(K, hidden=7, sharpness=2.0),
    "gradcam": models.HiddenHead(K, hidden=7),
}


def lse(x, r):
    return np.log(np.exp(r * x.astype(np.float64)).mean(axis=(1, 2))) / r


def by_hand(name, params, cells):
    """What a head should say, from its weights."""

    def linear(x, layer):
        return x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])

    def hidden(params):
        units = np.maximum(linear(cells.mean(axis=(1, 2)), params["hidden"]), 0)
        return linear(units, params["findings"])

    if name == "gradcam":
        return {"logits": hidden(params)}
    if name == "transition":
        cells = np.maximum(linear(cells, params["transition"]), 0)
    maps = linear(cells, params["findings"])
    if name == "multimap":
        maps = np.stack([maps[..., 4 * k : 4 * k + 4].mean(axis=-1) for k in range(K)], axis=-1)
    ordered = np.sort(maps.reshape(2, 20, K), axis=1)
    logits = {
        "gap": lambda: linear(cells.mean(axis=(1, 2)), params["findings"]),
        "lse": lambda: linear(lse(cells, 3.0), params["findings"]),
        "transition": lambda: linear(lse(cells, 3.0), params["findings"]),
        "lse_map": lambda: lse(maps, 5.0),
        "weldon": lambda: ordered[:, -2:].mean(axis=1) + ordered[:, :2].mean(axis=1),
        "multimap": lambda: ordered[:, -1] + 0.7 * ordered[:, 0],
        "stl": lambda: lse(maps, 2.0),
    }[name]()
    out = {"logits": logits, "maps": maps}
    return out | ({"class_logits": hidden(params["classify"])} if name == "stl" else {})


@pytest.fixture(scope="module", params=HEADS)
def head(request):
    """(name, head, its weights, biases not zero)."""
    module = HEADS[request.param]
    params = jax.jit(lambda x: module.init(jax.random.key(0), x))(CELLS)["params"]
    params = jax.tree.map(lambda p: p + 0.1, params)
    return request.param, module, params


def test_a_head_is_what_its_docstring_says(head):
    name, module, params = head
    got = jax.jit(lambda p, x: module.apply({"params": p}, x))(params, CELLS)
    want = by_hand(name, params, CELLS)
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert got[key].dtype == jnp.float32
        np.testing.assert_allclose(got[key], value, atol=1e-5, err_msg=key)  # float32 sums


def test_cells_are_a_set_and_extremes_are_finite(head):
    _, module, params = head
    order = np.random.default_rng(1).permutation(20)
    moved = CELLS.reshape(2, 20, C)[:, order].reshape(CELLS.shape)

    @jax.jit
    def run(params, cells):
        def total(params):
            out = module.apply({"params": params}, cells)
            return sum(jnp.sum(v) for v in out.values()), out

        (_, out), grads = jax.value_and_grad(total, has_aux=True)(params)
        return out, grads

    before, _ = run(params, CELLS)
    after, _ = run(params, moved)
    np.testing.assert_allclose(after["logits"], before["logits"], atol=1e-5)
    if "maps" in before:
        flat = np.asarray(before["maps"]).reshape(2, 20, K)[:, order]
        np.testing.assert_allclose(after["maps"].reshape(2, 20, K), flat, atol=1e-5)
    for cells in (np.where(CELLS > 0.5, 40.0, -40.0), np.zeros_like(CELLS)):
        out, grads = run(params, cells.astype(np.float32))
        for leaf in jax.tree.leaves((out, grads)):
            assert np.isfinite(leaf).all()


def test_every_weight_of_a_head_learns(head):
    _, module, params = head

    def total(params):
        out = module.apply({"params": params}, CELLS)
        logits = [value for name, value in out.items() if name.endswith("logits")]
        return sum(jnp.sum(jnp.sin(value)) for value in logits)

    for path, grad in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(total))(params)):
        assert np.any(grad), path


@pytest.mark.parametrize("pool", ["gap", "lse"])
def test_without_a_hidden_layer_grad_cam_is_the_relu_of_the_map(pool):
    """What `HiddenHead` says of one linear layer, and why it has a second."""
    module = HEADS[pool]
    variables = module.init(jax.random.key(0), CELLS)
    every = np.tile(np.arange(K), (2, 1))
    explain = jax.jit(lambda x: grad_cam(lambda y: module.apply(variables, y)["logits"], x, every))
    heat = explain(CELLS)
    maps = np.moveaxis(module.apply(variables, CELLS)["maps"], -1, 1)
    np.testing.assert_allclose(heat * 20, np.maximum(maps, 0), atol=1e-5)


def test_a_map_is_stretched_by_its_own_range():
    maps = np.stack([CELLS[..., 0] * 40 - 20, np.full(CELLS.shape[:3], 7.0)], axis=-1)
    got = np.asarray(models.stretched(jnp.asarray(maps)))
    assert (got.min(axis=(1, 2)) == 0).all()
    np.testing.assert_allclose(got.max(axis=(1, 2)), [[1, 0], [1, 0]], atol=1e-4)
    grad = jax.grad(lambda x: models.stretched(x)[..., 1].sum())(jnp.asarray(maps))
    assert np.isfinite(grad).all()


# Networks.

A = 4
FILMS = np.random.default_rng(2).normal(size=(2, 32, 48)).astype(np.float32)
HOLDS = np.zeros((2, A, K), np.float32)
HOLDS[0, 1, 0] = HOLDS[0, 2, 0] = HOLDS[1, 3, 2] = 1
HOLDS[0, 0, 1] = np.nan


def backbone():
    return DenseNet(growth_rate=4, block_sizes=(1, 1), init_features=8, stop_at="final")


@pytest.fixture(scope="module")
def agxnet():
    """An AGXNet with a strong attention, its variables, and how it is run."""
    model = models.AGXNet(backbone(), backbone(), K, num_regions=A, beta=2.0, drop_channels=0.3)
    init = jax.jit(
        lambda x, holds: model.init(jax.random.key(0), x, train=False, region_findings=holds)
    )
    variables = init(FILMS, HOLDS)
    run = jax.jit(lambda v, x, holds: model.apply(v, x, train=False, region_findings=holds))
    return model, variables, run


def test_regions_guide_the_maps_of_what_they_hold(agxnet):
    _, variables, run = agxnet
    plain, guided = run(variables, FILMS, None), run(variables, FILMS, HOLDS)
    assert plain.keys() | {"region_logits"} == guided.keys()
    assert guided["region_logits"].shape == (2, A)
    params = variables["params"]
    anatomy = {"params": params["anatomy"], "batch_stats": variables["batch_stats"]["anatomy"]}
    films = np.repeat(FILMS[..., None], 3, axis=-1)
    cells = jax.jit(lambda v, x: backbone().apply(v, x, train=False))(anatomy, films)["final"]
    maps = np.asarray(cells) @ np.asarray(params["regions"]["kernel"])

    def unit(x):
        return (x - x.min()) / (np.ptp(x) + models.EPSILON)

    attention = np.zeros(plain["maps"].shape)
    attention[0, ..., 0] = unit(unit(maps[0, ..., 1]) + unit(maps[0, ..., 2]))
    attention[1, ..., 2] = unit(unit(maps[1, ..., 3]))
    assert attention.max() > 0.99
    want = (1 + 2.0 * attention) * np.asarray(plain["maps"])
    np.testing.assert_allclose(guided["maps"], want, atol=1e-4)
    np.testing.assert_allclose(guided["logits"], want.mean(axis=(1, 2)), atol=1e-4)
    logits = maps.mean(axis=(1, 2)) + np.asarray(params["regions"]["bias"])
    np.testing.assert_allclose(guided["region_logits"], logits, atol=1e-4)


def test_agxnet_learns_in_both_networks_and_drops_channels(agxnet):
    model, variables, _ = agxnet

    def total(params, key):
        out, _ = model.apply(
            variables | {"params": params},
            FILMS,
            train=True,
            region_findings=HOLDS,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        return jnp.sum(jnp.sin(out["logits"])), out

    run = jax.jit(jax.grad(total, has_aux=True))
    grads, one = run(variables["params"], jax.random.key(0))
    # The regions learn from the findings too: the attention has a gradient.
    for name in ("anatomy", "backbone", "regions", "findings"):
        leaves = jax.tree.leaves(grads[name])
        assert all(np.isfinite(leaf).all() for leaf in leaves), name
        assert any(np.any(leaf) for leaf in leaves), name
    _, other = run(variables["params"], jax.random.key(1))
    assert np.abs(one["region_logits"] - other["region_logits"]).max() > 1e-3


def test_a_film_does_not_depend_on_the_rest_of_the_batch():
    model = models.CamDetector(backbone(), models.TransferHead(K, hidden=7))
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(FILMS)
    assert variables["params"].keys() == {"backbone", "head"}
    apply = jax.jit(lambda x: model.apply(variables, x, train=False))
    other = FILMS.copy()
    other[1:] = -5.0
    for key, value in apply(FILMS).items():
        assert value.shape[:3] in ((2, K), (2, 4, 6)), key
        np.testing.assert_array_equal(apply(other)[key][0], value[0], key)


def test_bfloat16_products_give_float32():
    for name, head in HEADS.items():
        half = head.clone(dtype=jnp.bfloat16)
        assert isinstance(half, nn.Module)
        out = jax.eval_shape(
            lambda x, half=half: half.init_with_output(jax.random.key(0), x)[0], CELLS
        )
        assert {value.dtype for value in out.values()} == {jnp.dtype("float32")}, name
