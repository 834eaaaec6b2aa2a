"""Names and layouts of other packages: round trips, values, and what is refused."""

import zlib

import jax
import numpy as np
import pytest
from flax import traverse_util

from cxr_jax.errors import InputError
from cxr_jax.models import convert, densenet, resnet, vit


def weights_from_names(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """The recipe of golden/README.md, 'Weights made from names'."""
    state = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        w = rng.standard_normal(shape).astype(np.float32)
        if name.endswith((".running_mean", ".bias")):
            w = np.float32(0.1) * w
        elif name.endswith(".running_var"):
            w = 1 + np.float32(0.1) * np.abs(w)
        elif w.ndim >= 2:
            w = w * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        else:
            w = 1 + np.float32(0.1) * w
        state[name] = w
    return state


def test_weights_are_made_as_the_recipe_says():
    name = "backbone.features.conv0.weight"
    state = weights_from_names({name: [64, 3, 7, 7]})
    np.testing.assert_allclose(  # the README's check of the recipe, to its printed digits
        state[name].ravel()[:3], [0.02349294, 0.1056538, -0.02470772], rtol=1e-6
    )


def template_of(model, size: int):
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)


def random_variables(model, image_shape):
    """A model's variables, every number another."""
    image = jax.ShapeDtypeStruct(image_shape, np.float32)
    template = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), template)


@pytest.fixture(scope="module")
def small():
    """A two-block network, its variables and the same as a PyTorch state."""
    model = densenet.DenseNet(growth_rate=4, block_sizes=(1, 2), init_features=8)
    template = template_of(model, 32)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), template)
    return template, variables, convert.to_torch(variables)


def test_round_trip_keeps_every_bit(small):
    template, variables, state = small
    again = traverse_util.flatten_dict(convert.from_torch(state, template))
    for path, array in traverse_util.flatten_dict(variables).items():
        np.testing.assert_array_equal(again[path], array, err_msg="/".join(path))
    assert state["features.conv0.weight"].shape == (8, 3, 7, 7)
    assert state["features.denseblock1.denselayer1.conv1.weight"].shape == (16, 8, 1, 1)


def test_names_of_published_torchvision_files_and_counters_are_read(small):
    template, variables, state = small
    published = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.")
        if "denselayer" in name
        else name: array
        for name, array in state.items()
    }
    assert published.keys() != state.keys()
    published["features.norm0.num_batches_tracked"] = np.array(7)
    got = convert.from_torch(published, template)
    jax.tree.map(np.testing.assert_array_equal, got, variables)


def test_what_does_not_fit_is_named(small):
    template, _, state = small
    name = "features.denseblock2.denselayer1.conv1.weight"
    lacking = {key: value for key, value in state.items() if key != name}
    with pytest.raises(InputError, match=rf"lack '{name}' \(1 of {len(state)} names"):
        convert.from_torch(lacking, template)
    extra = state | {"classifier.weight": np.zeros((2, 2)), "classifier.bias": np.zeros(2)}
    with pytest.raises(InputError, match=r"'classifier.weight'.*\(2 such names\)"):
        convert.from_torch(extra, template)
    convert.from_torch(extra, template, ignore=("classifier.",))
    with pytest.raises(InputError, match=rf"'{name}' has the shape \(3,\).*\(1 such names\)"):
        convert.from_torch(state | {name: np.zeros(3)}, template)


def test_resnet_names_are_torchvisions():
    model = resnet.ResNet((1, 2), bottleneck=True, init_features=4, stop_at="layer2")
    variables = random_variables(model, (1, 32, 32, 3))
    state = convert.to_torch(variables)
    for name, shape in {
        "conv1.weight": (4, 3, 7, 7),
        "bn1.running_var": (4,),
        "layer1.0.conv1.weight": (4, 4, 1, 1),
        "layer1.0.downsample.0.weight": (16, 4, 1, 1),
        "layer1.0.downsample.1.running_mean": (16,),
        "layer2.1.conv2.weight": (8, 8, 3, 3),
        "layer2.1.bn3.weight": (32,),
    }.items():
        assert state[name].shape == shape, name
    assert not any("downsample" in name for name in state if name.startswith("layer2.1."))
    kernel = variables["params"]["layer2"]["1"]["conv2"]["kernel"]
    np.testing.assert_array_equal(state["layer2.1.conv2.weight"][5, 2, 0, 1], kernel[0, 1, 2, 5])
    again = convert.import_state(state)
    assert again.kind == "resnet"
    jax.tree.map(np.testing.assert_array_equal, again.variables, variables)
    assert convert.import_state(state | {"fc.bias": np.zeros(2)}).unused == ["fc.bias"]


@pytest.fixture(scope="module")
def small_vit():
    """A transformer on raw patches, its variables and the same as the published arrays."""
    model = vit.ViT(num_layers=2, num_heads=2, width=8, mlp_dim=12, patch_size=4)
    variables = random_variables(model, (1, 12, 8, 3))
    return model, variables, convert.to_vit_npz(variables, model)


def test_vit_round_trip_keeps_every_bit(small_vit):
    _, variables, arrays = small_vit
    again = convert.import_state(arrays | {"head/bias": np.zeros(3)})
    assert again.kind == "vit"
    assert again.network.startswith("ViT(num_layers=2, num_heads=2, width=8, mlp_dim=12,")
    assert again.unused == ["head/bias"]
    jax.tree.map(np.testing.assert_array_equal, again.variables, variables)


def test_vit_arrays_mean_what_they_mean_there(small_vit):
    """The published layouts, used as their names say, give the model's own numbers."""
    _, variables, arrays = small_vit
    rng = np.random.default_rng(1)
    params = variables["params"]
    # The patches: a convolution of stride p with the kernel [p, p, C, D].
    image = rng.normal(size=(1, 12, 8, 3))
    kernel = arrays["embedding/kernel"]
    assert kernel.shape == (4, 4, 3, 8)
    want = np.einsum("bhiwjc,ijcd->bhwd", image.reshape(1, 3, 4, 2, 4, 3), kernel)
    got = np.asarray(vit.extract_patches(image, 4)) @ params["embedding"]["kernel"]
    # 1e-5: sums of 48 float32 products in another order.
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    # Attention with a kernel [D, heads, d] each for query, key and value, and [heads, d, D] out.
    x = rng.normal(size=(1, 5, 8)).astype(np.float32)
    mha = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1"
    query, key, value = (
        np.einsum("bnd,dhe->bhne", x, arrays[f"{mha}/{part}/kernel"])
        + arrays[f"{mha}/{part}/bias"][:, None]
        for part in ("query", "key", "value")
    )
    scores = np.einsum("bhqe,bhke->bhqk", query, key) / np.sqrt(4)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed = np.einsum("bhqk,bhke->bhqe", weights, value)
    want = np.einsum("bhqe,hed->bqd", mixed, arrays[f"{mha}/out/kernel"])
    want = want + arrays[f"{mha}/out/bias"]
    attn = vit.SelfAttention(num_heads=2)
    got, _ = attn.apply({"params": params["block1"]["attn"]}, x, train=False)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_vit_names_do_not_collide_with_densenets(small_vit):
    """A norm of a transformer is no part of `features`."""
    _, variables, _ = small_vit
    names = convert.to_torch({"params": {"vit": variables["params"]}})
    assert "vit.block0.norm1.weight" in names
    assert names["vit.block0.attn.qkv.weight"].shape == (24, 8)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"Transformer/encoder_norm/bias": None}, "lack 'Transformer/encoder_norm/bias'"),
        ({"Transformer/encoderblock_7/LayerNorm_0/scale": np.zeros(8)}, "lack 'Transformer"),
        ({"conv_root/kernel": np.zeros((7, 7, 3, 4))}, "hold 'conv_root/kernel'"),
        ({"cls": np.zeros((1, 1, 9))}, r"'cls' has the shape \(1, 1, 9\)"),
        (
            {"Transformer/posembed_input/pos_embedding": np.zeros((1, 1, 8))},
            "no entry beside",
        ),
    ],
    ids=["missing", "gap", "hybrid", "shape", "no cells"],
)
def test_what_does_not_fit_a_vit_is_named(small_vit, change, words):
    _, _, arrays = small_vit
    arrays = {key: array for key, array in (arrays | change).items() if array is not None}
    with pytest.raises(InputError, match=words):
        convert.import_state(arrays)
