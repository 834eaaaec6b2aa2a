"""Sizes, taps and properties of the networks; values against references are in test_convert.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from cxr_jax.models import densenet, map_head, pcam, unet, vit

F32 = jnp.float32


def shapes_of(model, *shape: int, **kwargs):
    """The shapes of a model's variables and of its outputs, nothing computed."""
    x = jax.ShapeDtypeStruct(shape, F32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False, **kwargs), x)
    out = jax.eval_shape(lambda v, x: model.apply(v, x, train=False, **kwargs), variables, x)
    return variables, out


def random_variables(model, *shape: int):
    """Variables from NumPy: a compiled `init` of so many small arrays would take seconds."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        values = rng.normal(size=leaf.shape).astype(np.float32)
        if path[-1].key in ("var", "scale"):
            return 1 + 0.1 * np.abs(values)
        return values * np.float32(np.sqrt(2 / max(1, np.prod(leaf.shape[:-1]))))

    return jax.tree_util.tree_map_with_path(draw, shapes_of(model, *shape)[0])


def count(variables) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.fixture(scope="module")
def small_densenet():
    model = densenet.DenseNet(growth_rate=4, block_sizes=(2, 2), init_features=8)
    image = np.random.default_rng(1).normal(size=(3, 32, 32, 3)).astype(np.float32)
    return model, random_variables(model, *image.shape), image


# The other rows of the table: test_backbones.py.
def test_main_model_has_the_parameters_of_table_2():
    backbone, taps = shapes_of(densenet.densenet121(stop_at="block3"), 1, 256, 256, 3)
    encoder, out = shapes_of(vit.vit_b16(), *taps["block3"].shape)
    head, logits = shapes_of(map_head.SeverityMapHead(), *out["map"].shape)
    assert (count(backbone) + count(encoder) + count(head)) / 1e6 == pytest.approx(95.5, rel=0.01)
    assert logits.shape == (1, 256, 256, 1)


@pytest.mark.parametrize(
    "make, parameters",  # torchvision's counts less the 1000-class layer
    [
        (densenet.densenet121, 7_978_856 - 1025 * 1000),
        (densenet.densenet169, 14_149_480 - 1665 * 1000),
        (densenet.densenet201, 20_013_928 - 1921 * 1000),
    ],
)
def test_densenets_have_torchvisions_parameters(make, parameters):
    variables, taps = shapes_of(make(), 1, 224, 224, 3)
    assert count(variables) == parameters
    sides = {name: tap.shape[1] for name, tap in taps.items()}
    assert sides == {
        "stem": 56, "block1": 56, "block2": 28, "block3": 14, "block4": 7, "final": 7,
    }  # fmt: skip


def test_stop_at_owns_and_computes_no_more(small_densenet):
    model, variables, image = small_densenet
    cut = model.clone(stop_at="block1")
    kept = jax.eval_shape(lambda x: cut.init(jax.random.key(0), x, train=False), image)
    assert set(kept["params"]) == {"conv0", "norm0", "denseblock1"}
    whole = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, image)
    taps = jax.jit(lambda v, x: cut.apply(v, x, train=False))(variables, image)
    assert set(taps) == {"stem", "block1"}
    # 1e-5: the two programs may order float32 sums differently.
    np.testing.assert_allclose(taps["block1"], whole["block1"], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"stop_at='block3'.*'block2', 'final'"):
        model.clone(stop_at="block3").init(jax.random.key(0), image, train=False)


def test_evaluation_does_not_depend_on_the_rest_of_the_batch(small_densenet):
    model, variables, image = small_densenet
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False)["final"])
    other = image.copy()
    other[1:] = -5.0
    np.testing.assert_array_equal(apply(variables, image)[0], apply(variables, other)[0])


def test_training_moves_the_statistics_and_evaluation_does_not(small_densenet):
    model, variables, image = small_densenet

    @jax.jit
    def train(variables, image):
        return model.apply(variables, image, train=True, mutable=["batch_stats"])

    taps, moved = train(variables, image)
    mean = np.asarray(taps["final"]).mean()
    assert 0.2 < mean < 0.8  # of ReLU(N(0, 1)): 0.4; scales and biases move it a little
    old = variables["batch_stats"]["denseblock2"]["denselayer2"]["norm1"]
    new = moved["batch_stats"]["denseblock2"]["denselayer2"]["norm1"]
    inputs = np.asarray(taps["block2"])[..., :-4]  # what the block's last layer was given
    # 1e-4: E[x^2] - E[x]^2 in float32 against float64.
    np.testing.assert_allclose(
        new["mean"], 0.9 * old["mean"] + 0.1 * inputs.mean((0, 1, 2)), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        new["var"], 0.9 * old["var"] + 0.1 * inputs.var((0, 1, 2), dtype=np.float64), rtol=1e-4
    )


def test_mlp_uses_the_exact_gelu():
    mlp = vit.Mlp(hidden=4)
    eye = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
    x = np.linspace(-4, 4, 40, dtype=np.float32).reshape(1, 10, 4)
    got = mlp.apply({"params": {"fc1": eye, "fc2": eye}}, x, train=False)
    want = x * 0.5 * (1 + scipy.special.erf(x / np.sqrt(2)))
    # 2e-6 is float32's; the tanh form is off by up to 5e-4.
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_vit_sees_the_map_as_a_set_of_cells_when_position_is_zero():
    model = vit.ViT(num_layers=2, num_heads=2, width=8, mlp_dim=16)
    features = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    variables = random_variables(model, *features.shape)
    variables["params"]["position"] *= 0

    @jax.jit
    def run(x):
        return model.apply(variables, x, train=False, return_attention=True)

    out, flipped = run(features), run(features[:, :, ::-1])
    # 1e-5: float32 sums over the tokens in another order.
    np.testing.assert_allclose(flipped["cls"], out["cls"], atol=1e-5)
    np.testing.assert_allclose(flipped["map"], out["map"][:, :, ::-1], atol=1e-5)
    assert out["tokens"].shape == (2, 13, 8)
    np.testing.assert_array_equal(out["tokens"][:, 1:].reshape(out["map"].shape), out["map"])
    assert [a.shape for a in out["attention"]] == [(2, 2, 13, 13)] * 2
    np.testing.assert_allclose(out["attention"][1].sum(-1), 1, rtol=1e-6)  # 13 float32 terms


def test_vit_attention_equals_a_plain_computation():
    layer = vit.SelfAttention(num_heads=2)
    x = np.random.default_rng(0).normal(size=(1, 5, 6)).astype(np.float32)
    variables = layer.init(jax.random.key(0), x, train=False)
    out, attention = layer.apply(variables, x, train=False)
    qkv, proj = (variables["params"][name] for name in ("qkv", "proj"))
    rows = np.asarray(x[0] @ qkv["kernel"] + qkv["bias"], np.float64)
    query, key, value = rows[:, :6], rows[:, 6:12], rows[:, 12:]
    mixed = []
    for head in (slice(0, 3), slice(3, 6)):
        weights = scipy.special.softmax(query[:, head] @ key[:, head].T / np.sqrt(3), axis=-1)
        np.testing.assert_allclose(attention[0, head.start // 3], weights, atol=1e-6)  # float32
        mixed.append(weights @ value[:, head])
    want = np.concatenate(mixed, axis=1) @ np.asarray(proj["kernel"]) + np.asarray(proj["bias"])
    np.testing.assert_allclose(out[0], want, atol=1e-5)  # float32


def test_patches_times_a_kernel_are_a_strided_convolution():
    image = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    kernel = jax.random.normal(jax.random.key(1), (4, 4, 3, 5))
    want = jax.lax.conv_general_dilated(
        image, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    got = vit.extract_patches(image, 4) @ kernel.reshape(-1, 5)
    np.testing.assert_allclose(got, want, atol=1e-5)  # 48 float32 terms
    with pytest.raises(ValueError, match="8x12 px; both sides must be multiples of 5"):
        vit.extract_patches(image, 5)


def test_position_embedding_is_resampled_as_a_map():
    row, column = np.mgrid[0:4, 0:6].astype(np.float32)
    cells = np.stack([row, column], axis=-1).reshape(1, 24, 2)
    position = np.concatenate([np.full((1, 1, 2), 7, np.float32), cells], axis=1)
    assert vit.resample_position(position, (4, 6), (4, 6)) is position
    finer = np.asarray(vit.resample_position(position, (4, 6), (8, 12)))
    np.testing.assert_array_equal(finer[:, :1], position[:, :1])
    # Half-pixel centres: new cell i lies at (i + 0.5) / 2 - 0.5 old cells, held at the border.
    want = np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3)
    np.testing.assert_allclose(finer[0, 1:, 0].reshape(8, 12)[:, 5], want, atol=1e-6)  # float32
    with pytest.raises(ValueError, match="has 25 entries; a 5x5 grid"):
        vit.resample_position(position, (5, 5), (4, 4))


def test_vit_runs_on_another_grid_than_it_was_made_for():
    model = vit.ViT(num_layers=1, num_heads=1, width=4, mlp_dim=4, stride=2)
    variables, _ = shapes_of(model, 1, 8, 8, 3, grid=(4, 4))
    assert variables["params"]["position"].shape == (1, 17, 4)
    x = jax.ShapeDtypeStruct((1, 12, 16, 3), F32)
    out = jax.eval_shape(lambda v, x: model.apply(v, x, train=False, grid=(4, 4)), variables, x)
    assert out["map"].shape == (1, 6, 8, 4)


def test_unet_keeps_the_size_and_refuses_what_it_cannot_halve():
    model = unet.UNet(features=(4, 8, 16), out_channels=2)
    _, logits = shapes_of(model, 2, 24, 32, 1)
    assert (logits.shape, logits.dtype) == ((2, 24, 32, 2), F32)
    with pytest.raises(ValueError, match="30x32 px; both sides must be multiples of 4"):
        shapes_of(model, 2, 30, 32, 1)


def test_map_head_refuses_channels_it_cannot_halve():
    with pytest.raises(ValueError, match=r"24 channels; 4 blocks .* multiple of 16"):
        shapes_of(map_head.SeverityMapHead(), 1, 4, 4, 24)


@pytest.mark.parametrize(
    "model",
    [
        densenet.DenseNet(4, (1, 1), 8, dtype=jnp.bfloat16),
        unet.UNet((4, 8), dtype=jnp.bfloat16),
        vit.ViT(1, 2, 8, 8, patch_size=8, dtype=jnp.bfloat16),
        map_head.SeverityMapHead(1, dtype=jnp.bfloat16),
    ],
    ids=lambda model: type(model).__name__,
)
def test_bfloat16_computes_low_and_keeps_float32_parameters(model):
    channels = 8 if isinstance(model, map_head.SeverityMapHead) else 3
    variables, out = shapes_of(model, 2, 32, 32, channels)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(F32)}
    logits = isinstance(model, (unet.UNet, map_head.SeverityMapHead))
    want = F32 if logits else jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype(want)}


@pytest.mark.parametrize("pool", ["pcam", "avg", "max", "lse", "exp", "linear"])
def test_every_pooling_of_a_constant_map_is_the_pixels_own_logit(pool):
    # A map that is the same everywhere has one answer, whatever the pooling.
    heads = pcam.PCAMHeads(num_findings=3, pool=pool)
    features = jnp.broadcast_to(jnp.array([0.5, 1.0, 2.0, 0.25]), (2, 4, 5, 4))
    variables = heads.init(jax.random.key(0), features)
    out = heads.apply(variables, features)
    # 1e-5: the epsilon 1e-7 of 'exp' and 'linear', and float32 sums of 20 pixels.
    np.testing.assert_allclose(out["logits"], out["logit_maps"][:, 0, 0], rtol=1e-5, atol=1e-5)


def test_pooling_before_the_head_equals_the_head_of_pooled_features():
    heads = pcam.PCAMHeads(num_findings=3)
    features = jax.random.normal(jax.random.key(0), (2, 4, 5, 6))
    variables = heads.init(jax.random.key(1), features)
    out = heads.apply(variables, features)
    weights = jax.nn.sigmoid(out["logit_maps"])
    weights = weights / weights.sum((1, 2), keepdims=True)
    pooled = jnp.einsum("bhwk,bhwc->bkc", weights, features)
    kernel, bias = (variables["params"]["fc"][name] for name in ("kernel", "bias"))
    want = jnp.einsum("bkc,ck->bk", pooled, kernel) + bias
    np.testing.assert_allclose(out["logits"], want, atol=1e-5)  # float32 sums in another order
    with pytest.raises(ValueError, match="pool='sum'"):
        heads.clone(pool="sum").apply(variables, features)
