"""Every backbone: its parameters, taps and values; DenseNet's are in test_networks.py too."""

import json
import zlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import traverse_util

from cxr_jax.errors import InputError
from cxr_jax.models import (
    backbones,
    convert,
    covidnet_ct,
    densenet,
    map_head,
    nasnet,
    resnet,
    resnet38,
    sizes,
    vgg,
    vit,
    xception,
)
from tests.conftest import ROOT

F32 = jnp.float32


def shapes_of(model, *shape: int):
    """The shapes of a model's variables and of its outputs, nothing computed."""
    x = jax.ShapeDtypeStruct(shape, F32)
    out, variables = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False), x
    )
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


def config_of(**fields) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict({"model": {"backbone": fields}})


SMALL = {
    "densenet": densenet.DenseNet(4, (1, 2, 1), 8, stop_at="block3"),
    "basic": resnet.ResNet((1, 2, 1), bottleneck=False, init_features=4, stop_at="layer3"),
    "bottleneck": resnet.ResNet((1, 2, 1), init_features=4, stop_at="layer3"),
    "nasnet": nasnet.NASNet(cells=1, filters=4, stem_filters=4, stop_at="stage3"),
    "vgg": vgg.VGG((1, 2, 1), 4, norm=True, stop_at="block3"),
    "xception": xception.Xception((4, 6, 8, 10), 1, (12, 14), stop_at="exit"),
    "covidnet_ct": covidnet_ct.COVIDNetCT((1, 2), 4, stop_at="stage2"),
}
small = pytest.mark.parametrize("model", SMALL.values(), ids=SMALL)


# torchvision's counts less its classifier; Keras' of NASNet, without one, and of Xception, less its
# own, both less the running means and variances, which it counts.
@pytest.mark.parametrize(
    "make, parameters, channels",
    [
        (resnet.resnet18, 11_689_512 - 513 * 1000, 512),
        (resnet.resnet34, 21_797_672 - 513 * 1000, 512),
        (resnet.resnet50, 25_557_032 - 2049 * 1000, 2048),
        (resnet.resnet101, 44_549_160 - 2049 * 1000, 2048),
        (resnet.resnet152, 60_192_808 - 2049 * 1000, 2048),
        (nasnet.nasnet_large, 84_916_818 - 196_668, 4032),
        (vgg.vgg16, 138_357_544 - (25_089 + 4097) * 4096 - 4097 * 1000, 512),
        (xception.xception, 22_910_480 - 54_528 - 2049 * 1000, 2048),
    ],
)
def test_networks_have_their_published_parameters(make, parameters, channels):
    side = 331 if make is nasnet.nasnet_large else 224
    variables, taps = shapes_of(make(), 1, side, side, 3)
    assert count(variables) == parameters
    last = 11 if side == 331 else 7
    assert taps[make().stop_at].shape == (1, last, last, channels)


# Millions, Table 2 of Kim et al. 2021: the backbone cut at stride 16 with the map head.
@pytest.mark.parametrize(
    "name, paper, tolerance",
    [
        ("resnet18", 3.4, 0.01),
        ("densenet121", 13.6, 0.01),
        ("densenet201", 38.0, 0.01),
        ("resnet152", 52.5, 0.01),
        ("nasnet_large", 56.1, 0.01),
    ],
)
def test_baseline_has_the_parameters_of_table_2(name, paper, tolerance):
    config = config_of(**sizes.BACKBONES[name])
    assert backbones.stride_of(config) == 16
    backbone = backbones.make_backbone(config)
    variables, taps = shapes_of(backbone, 1, 256, 256, 3)
    features = taps[backbone.stop_at]
    assert features.shape[1:3] == (16, 16)
    head, logits = shapes_of(map_head.SeverityMapHead(), *features.shape)
    assert (count(variables) + count(head)) / 1e6 == pytest.approx(paper, rel=tolerance)
    assert logits.shape == (1, 256, 256, 1)


def test_hybrid_vit_has_the_parameters_of_the_published_one():
    backbone = backbones.make_backbone(config_of(**sizes.BACKBONES["resnet50_hybrid"]))
    variables, taps = shapes_of(backbone, 1, 384, 384, 3)
    encoder, _ = shapes_of(vit.vit_b16(), *taps["layer3"].shape)
    # 98.95 M in timm's list (vit_base_r50_s16_384), to its printed digits, less its classifier.
    published = 98.95e6 - 769 * 1000
    assert count(variables) + count(encoder) == pytest.approx(published, abs=5000)


def test_vit_on_raw_patches_has_the_parameters_of_the_published_one():
    variables, out = shapes_of(vit.vit_b16(patch_size=16), 1, 224, 224, 3)
    assert count(variables) == 86_567_656 - 769 * 1000  # torchvision's vit_b_16, no classifier
    assert out["map"].shape == (1, 14, 14, 768)


@pytest.mark.parametrize(
    "name, make",
    [
        ("densenet121", densenet.densenet121),
        ("densenet169", densenet.densenet169),
        ("densenet201", densenet.densenet201),
        ("resnet18", resnet.resnet18),
        ("resnet50", resnet.resnet50),
        ("resnet152", resnet.resnet152),
        ("nasnet_large", nasnet.nasnet_large),
    ],
)
def test_a_config_gives_the_named_network(name, make):
    fields = sizes.BACKBONES[name]
    got = backbones.make_backbone(config_of(**fields), jnp.bfloat16)
    assert got == make(stop_at=fields["tap"], dtype=jnp.bfloat16)


def test_a_config_without_a_name_is_a_densenet():
    fields = {k: v for k, v in sizes.BACKBONES["densenet121"].items() if k != "name"}
    fields["block_sizes"] = list(fields["block_sizes"])  # as a saved config has it
    got = backbones.make_backbone(config_of(**fields))
    assert got == densenet.densenet121(stop_at="block3")


@pytest.mark.parametrize(
    "base, change, message",
    [
        (
            "resnet18",
            {"name": "lenet"},
            r"name='lenet'; expected one of densenet, resnet, resnet38, nasnet",
        ),
        ("resnet18", {"tap": "block3"}, r"tap='block3'; this resnet has stem, layer1, layer2"),
        ("nasnet_large", {"tap": "stem"}, r"tap='stem'; this nasnet has stage2, stage3, stage4"),
        ("densenet121", {"tap": "block5"}, r"tap='block5'; this densenet has stem, block1"),
        ("densenet121", {"name": "resnet"}, r"a resnet, has the fields .*; expected block_sizes, "),
        ("resnet18", {"growth_rate": 1}, r"a resnet, has the fields .*growth_rate, init_features;"),
        ("resnet18", {"block_sizes": (2, 0)}, r"block_sizes=\(2, 0\); expected whole numbers"),
        ("resnet18", {"block_sizes": ()}, r"block_sizes=\(\); expected whole numbers above 0"),
        ("nasnet_large", {"filters": 6}, r"filters=6; expected a multiple of 4"),
    ],
)
def test_a_wrong_config_is_one_line(base, change, message):
    with pytest.raises(InputError, match=rf"^config\.model\.backbone.*{message}") as error:
        backbones.make_backbone(config_of(**{**sizes.BACKBONES[base], **change}))
    assert "\n" not in str(error.value)


def tap_side(model, side: int, stride: int) -> int:
    """The side of a tap of an image of that side, by each family's own rounding."""
    if isinstance(model, nasnet.NASNet):  # 'VALID', then 'SAME'
        return -(-((side - 1) // 2) // (stride // 2))
    if isinstance(model, vgg.VGG):  # its pools drop an odd border
        return side // stride
    if isinstance(model, densenet.DenseNet):  # its transitions drop an odd border
        return -(-side // 4) // (stride // 4)
    return -(-side // stride)


@small
@pytest.mark.parametrize("size", [(64, 96), (50, 37)])
def test_taps_lie_at_their_strides(model, size):
    _, taps = shapes_of(model, 2, *size, 3)
    names = list(model.strides)
    assert set(taps) == set(names[: names.index(model.stop_at) + 1])
    for name, tap in taps.items():
        stride = model.strides[name]
        assert tap.shape[1:3] == tuple(tap_side(model, side, stride) for side in size), name
        if size == (64, 96):
            assert tap.shape[1:3] == (64 // stride, 96 // stride), name


@small
def test_stop_at_owns_and_computes_no_more(model):
    first = next(iter(model.strides))
    assert first != model.stop_at
    cut = model.clone(stop_at=first)
    variables, taps = shapes_of(cut, 1, 64, 64, 3)
    assert list(taps) == [first]
    whole, _ = shapes_of(model, 1, 64, 64, 3)
    assert set(variables["params"]) < set(whole["params"])
    with pytest.raises(ValueError, match=r"stop_at='top'; this \w+ has the taps \["):
        shapes_of(model.clone(stop_at="top"), 1, 64, 64, 3)


@small
def test_evaluation_does_not_depend_on_the_rest_of_the_batch(model):
    image = np.random.default_rng(1).normal(size=(3, 32, 32, 3)).astype(np.float32)
    variables = random_variables(model, *image.shape)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False)[model.stop_at])
    other = image.copy()
    other[1:] = -5.0
    got = np.asarray(apply(variables, image)[0])
    np.testing.assert_array_equal(got, apply(variables, other)[0])
    assert np.isfinite(got).all()
    assert got.std() > 0


@small
def test_bfloat16_computes_low_and_keeps_float32_parameters(model):
    variables, taps = shapes_of(model.clone(dtype=jnp.bfloat16), 2, 32, 32, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(F32)}
    assert {tap.dtype for tap in taps.values()} == {jnp.dtype(jnp.bfloat16)}


@small
def test_training_moves_every_statistic_and_evaluation_none(model):
    variables, _ = shapes_of(model, 2, 32, 32, 3)
    image = jax.ShapeDtypeStruct((2, 32, 32, 3), F32)
    stats = variables["batch_stats"]
    for train in (True, False):

        def moved(stats, params, image, train=train):
            variables = {"params": params, "batch_stats": stats}
            return model.apply(variables, image, train=train, mutable=["batch_stats"])[1]

        # Only traced: a statistic that nothing moves comes out as the very variable that went in.
        program = jax.make_jaxpr(moved)(stats, variables["params"], image).jaxpr
        same = [out is given for out, given in zip(program.outvars, program.invars)]
        assert len(same) == len(jax.tree.leaves(stats))
        assert not any(same) if train else all(same)


def plain_conv(x, kernel, stride: int = 1, dilation: int = 1):
    """A k x k convolution as sums over its taps, float64: x padded by k // 2 * dilation zeros."""
    kernel = np.asarray(kernel, np.float64)
    kernel = kernel[None, None] if kernel.ndim == 2 else kernel
    size = kernel.shape[0]
    pad = size // 2 * dilation
    height, width = (-(-side // stride) for side in x.shape[1:3])
    x = np.pad(np.asarray(x, np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    out = 0
    for i, j in np.ndindex(size, size):
        rows = slice(i * dilation, i * dilation + (height - 1) * stride + 1, stride)
        columns = slice(j * dilation, j * dilation + (width - 1) * stride + 1, stride)
        out = out + x[:, rows, columns] @ kernel[i, j]
    return out


def plain_norm(x, variables, name: str, epsilon: float = 1e-5):
    params, stats = variables["params"][name], variables["batch_stats"][name]
    x = (x - stats["mean"]) / np.sqrt(np.asarray(stats["var"], np.float64) + epsilon)
    return x * params["scale"] + params["bias"]


@pytest.mark.parametrize("stride, dilation, size", [(2, 1, (6, 7)), (1, 4, (5, 9)), (2, 2, (8, 5))])
def test_conv3x3_pads_as_pytorch_does(stride, dilation, size):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    layer = resnet.layers.Conv3x3(5, stride=stride, dilation=dilation)
    variables = layer.init(jax.random.key(0), x)
    want = plain_conv(x, variables["params"]["kernel"], stride, dilation)
    # 27 float32 terms.
    np.testing.assert_allclose(layer.apply(variables, x), want, atol=1e-5)


@pytest.mark.parametrize("channels, stride", [(4, 1), (3, 1), (4, 2)])
def test_basic_block_equals_a_plain_computation(channels, stride):
    block = resnet.BasicBlock(4, stride)
    x = np.random.default_rng(1).normal(size=(2, 6, 7, channels)).astype(np.float32)
    variables = random_variables(block, *x.shape)
    kernels = {k: v["kernel"] for k, v in variables["params"].items() if "kernel" in v}
    y = plain_norm(plain_conv(x, kernels["conv1"], stride), variables, "bn1")
    y = plain_norm(plain_conv(np.maximum(y, 0), kernels["conv2"]), variables, "bn2")
    assert ("downsample_conv" in kernels) == ((channels, stride) != (4, 1))
    short = x
    if "downsample_conv" in kernels:
        short = plain_conv(x, kernels["downsample_conv"], stride)
        short = plain_norm(short, variables, "downsample_norm")
    got = block.apply(variables, x, train=False)
    # float32 against float64, sums of at most 36 terms.
    np.testing.assert_allclose(got, np.maximum(y + short, 0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels, stride", [(16, 1), (4, 1), (16, 2)])
def test_bottleneck_equals_a_plain_computation(channels, stride):
    block = resnet.Bottleneck(4, stride)
    x = np.random.default_rng(1).normal(size=(2, 6, 7, channels)).astype(np.float32)
    variables = random_variables(block, *x.shape)
    kernels = {k: v["kernel"] for k, v in variables["params"].items() if "kernel" in v}
    y = np.maximum(plain_norm(plain_conv(x, kernels["conv1"]), variables, "bn1"), 0)
    y = np.maximum(plain_norm(plain_conv(y, kernels["conv2"], stride), variables, "bn2"), 0)
    y = plain_norm(plain_conv(y, kernels["conv3"]), variables, "bn3")
    assert ("downsample_conv" in kernels) == ((channels, stride) != (16, 1))
    short = x
    if "downsample_conv" in kernels:
        short = plain_conv(x, kernels["downsample_conv"], stride)
        short = plain_norm(short, variables, "downsample_norm")
    got = block.apply(variables, x, train=False)
    # float32 against float64, sums of at most 36 terms.
    np.testing.assert_allclose(got, np.maximum(y + short, 0), rtol=1e-5, atol=1e-5)


def weights_from_names(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """The recipe of golden/README.md, 'Weights made from names'."""
    state = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        w = rng.standard_normal(shape).astype(np.float32)
        if name.endswith((".running_mean", ".bias")):
            w *= np.float32(0.1)
        elif name.endswith(".running_var"):
            w = 1 + np.float32(0.1) * np.abs(w)
        elif w.ndim >= 2:
            w *= np.float32(np.sqrt(2 / np.prod(shape[1:])))
        else:
            w = 1 + np.float32(0.1) * w
        state[name] = w
    return state


def torchvision_name(path: tuple[str, ...]) -> str:
    """params/layer2/0/downsample_conv/kernel -> layer2.0.downsample.0.weight"""
    leaves = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    name = ".".join([*path[1:-1], leaves.get(path[-1], path[-1])])
    return name.replace("downsample_conv", "downsample.0").replace(
        "downsample_norm", "downsample.1"
    )


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_resnet_matches_torchvisions(kind, assert_golden):
    with np.load(ROOT / "tests" / "fixtures" / "resnet_torchvision.npz") as file:
        arrays = dict(file)
    model, image = resnet.ResNet((2, 1, 1, 1), bottleneck=kind == "bottleneck"), arrays["in_image"]
    flat = traverse_util.flatten_dict(shapes_of(model, *image.shape)[0])
    for path, leaf in flat.items():
        shape = leaf.shape
        if path[-1] == "kernel":  # [in, out] or HWIO here, OIHW there
            shape = (shape[-1], shape[-2], *(shape[:2] if len(shape) == 4 else (1, 1)))
        name = torchvision_name(path)
        array = weights_from_names({name: shape})[name]
        flat[path] = array.transpose(2, 3, 1, 0).reshape(leaf.shape) if array.ndim > 1 else array
    variables = traverse_util.unflatten_dict(flat)
    out = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, image)
    assert {f"{kind}_{name}" for name in out} < set(arrays)
    for name, tap in out.items():
        tap = np.asarray(tap)
        # 1e-5: float32 against float64, convolutions of up to 4,608 terms in every block.
        assert_golden(tap[..., ::16], arrays[f"{kind}_{name}"], rtol=1e-5, what=name)
        mean = arrays[f"{kind}_{name}_mean"]
        assert_golden(tap.mean(axis=(1, 2)), mean, rtol=1e-5, what=f"{name}, mean")


def test_resnet_has_torchvisions_names():
    variables, _ = shapes_of(resnet.resnet50(), 1, 64, 64, 3)
    params = variables["params"]
    assert set(params) == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}
    assert set(params["layer2"]) == {"0", "1", "2", "3"}
    block = {"conv1", "bn1", "conv2", "bn2", "conv3", "bn3"}
    assert set(params["layer2"]["1"]) == block
    assert set(params["layer2"]["0"]) == block | {"downsample_conv", "downsample_norm"}
    assert params["layer2"]["0"]["conv2"]["kernel"].shape == (3, 3, 128, 128)
    assert params["layer2"]["0"]["downsample_conv"]["kernel"].shape == (256, 512)


def plain_window(x, reduce, stride: int):
    """`reduce` of the pixels of every 3x3 window that exist, placed as TensorFlow's 'SAME'."""
    height, width = (-(-side // stride) for side in x.shape[1:3])
    before = [
        max((out - 1) * stride + 3 - side, 0) // 2
        for out, side in zip((height, width), x.shape[1:3])
    ]
    out = np.empty((x.shape[0], height, width, x.shape[3]))
    for i, j in np.ndindex(height, width):
        rows, columns = (
            slice(max(k * stride - b, 0), k * stride - b + 3) for k, b in zip((i, j), before)
        )
        out[:, i, j] = reduce(x[:, rows, columns], axis=(1, 2))
    return out


@pytest.mark.parametrize("size", [(6, 7), (5, 4)])
def test_nasnet_pools_see_only_pixels_that_exist(size):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    for stride in (1, 2):
        want = plain_window(x, np.mean, stride)
        # Nine float32 terms.
        np.testing.assert_allclose(nasnet.average_pool_3x3(x, stride), want, atol=1e-6)
    np.testing.assert_array_equal(nasnet.max_pool_3x3(x), plain_window(x, np.max, 2))


def test_separable_is_one_kernel_a_channel_and_then_a_mixture():
    block = nasnet.Separable(5, size=3, stride=1)
    x = np.random.default_rng(1).normal(size=(2, 4, 6, 3)).astype(np.float32)
    variables = random_variables(block, *x.shape)
    want = np.asarray(x, np.float64)
    for index in (1, 2):
        own = np.asarray(variables["params"][f"depthwise{index}"]["kernel"])  # [3, 3, 1, C]
        full = np.zeros((3, 3, own.shape[3], own.shape[3]))
        for channel in range(own.shape[3]):
            full[:, :, channel, channel] = own[:, :, 0, channel]
        want = plain_conv(np.maximum(want, 0), full)
        want = want @ np.asarray(variables["params"][f"pointwise{index}"]["kernel"])
        want = plain_norm(want, variables, f"norm{index}", epsilon=1e-3)
    # float32 against float64, sums of at most 45 terms.
    np.testing.assert_allclose(block.apply(variables, x, train=False), want, rtol=1e-5, atol=1e-5)


def one_kernel_a_channel(own, copies: int = 1):
    """A grouped kernel [3, 3, 1, C copies] as a full one [3, 3, C, C copies]."""
    own = np.asarray(own)
    full = np.zeros((3, 3, own.shape[3] // copies, own.shape[3]))
    for out in range(own.shape[3]):
        full[:, :, out // copies, out] = own[:, :, 0, out]
    return full


@pytest.mark.parametrize("halve", [False, True])
def test_xception_block_equals_a_plain_computation(halve):
    block = xception.Block((4, 4), halve=halve)
    x = np.random.default_rng(1).normal(size=(2, 6, 8, 4)).astype(np.float32)
    variables = random_variables(block, *x.shape)
    y = np.float64(x)
    for name in ("separable1", "separable2"):
        inner = {key: tree[name] for key, tree in variables.items()}
        y = plain_conv(
            np.maximum(y, 0), one_kernel_a_channel(inner["params"]["depthwise"]["kernel"])
        )
        y = plain_norm(y @ np.asarray(inner["params"]["pointwise"]["kernel"]), inner, "norm")
    short = x
    if halve:
        short = plain_conv(x, variables["params"]["shortcut_conv"]["kernel"], 2)
        short = plain_norm(short, variables, "shortcut_norm")
        wide = np.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
        parts = [wide[:, i : i + 6 : 2, j : j + 8 : 2] for i, j in np.ndindex(3, 3)]
        y = np.max(parts, axis=0)
    got = block.apply(variables, x, train=False)
    # float32 against float64, sums of at most 36 terms.
    np.testing.assert_allclose(got, short + y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels, stride", [(6, 1), (4, 1), (6, 2)])
def test_prpe_equals_a_plain_computation(channels, stride):
    block = covidnet_ct.PRPE(6, stride)
    x = np.random.default_rng(1).normal(size=(2, 6, 7, channels)).astype(np.float32)
    variables = random_variables(block, *x.shape)
    kernels = {k: v["kernel"] for k, v in variables["params"].items() if "kernel" in v}

    def step(y, name, relu=True):
        y = plain_norm(y, variables, f"{name}_norm")
        return np.maximum(y, 0) if relu else y

    y = step(plain_conv(x, kernels["project1_conv"]), "project1")
    replicate = one_kernel_a_channel(kernels["replicate_conv"], copies=2)
    y = step(plain_conv(y, replicate, stride), "replicate")
    y = step(plain_conv(y, kernels["project2_conv"]), "project2")
    y = step(plain_conv(y, kernels["expand_conv"]), "expand", relu=False)
    assert ("shortcut_conv" in kernels) == ((channels, stride) != (6, 1))
    short = x
    if "shortcut_conv" in kernels:
        short = step(plain_conv(x, kernels["shortcut_conv"], stride), "shortcut", relu=False)
    got = block.apply(variables, x, train=False)
    # float32 against float64, sums of at most 27 terms.
    np.testing.assert_allclose(got, np.maximum(y + short, 0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", [False, True])
def test_vgg_equals_a_plain_computation(norm):
    model = vgg.VGG((2,), 4, norm=norm, stop_at="block1")
    x = np.random.default_rng(1).normal(size=(2, 7, 6, 3)).astype(np.float32)
    variables = random_variables(model, *x.shape)
    y = x
    for k in ("1_1", "1_2"):
        layer = variables["params"][f"conv{k}"]
        y = plain_conv(y, layer["kernel"]) + np.asarray(layer.get("bias", 0))
        assert ("bias" in layer) != norm
        y = np.maximum(plain_norm(y, variables, f"norm{k}") if norm else y, 0)
    parts = [y[:, i:6:2, j:6:2] for i, j in np.ndindex(2, 2)]
    got = model.apply(variables, x, train=False)["block1"]
    # float32 against float64, sums of at most 36 terms.
    np.testing.assert_allclose(got, np.max(parts, axis=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_halving_squeeze_sees_the_diagonal_pixels(size):
    block = nasnet.HalvingSqueeze(4)
    x = np.random.default_rng(1).normal(size=(1, *size, 3)).astype(np.float32)
    variables = random_variables(block, *x.shape)
    kernels = [np.asarray(variables["params"][name]["kernel"]) for name in ("conv1", "conv2")]
    relu = np.maximum(x, 0)
    even = relu[:, ::2, ::2]
    odd = np.zeros_like(even)
    inside = relu[:, 1::2, 1::2]
    odd[:, : inside.shape[1], : inside.shape[2]] = inside
    want = np.concatenate([even @ kernels[0], odd @ kernels[1]], axis=-1)
    want = plain_norm(want, variables, "norm", epsilon=1e-3)
    got = block.apply(variables, x, train=False)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)  # three float32 terms


def test_nasnet_refuses_filters_its_stem_cannot_quarter():
    with pytest.raises(ValueError, match="filters=6; expected a multiple of 4"):
        shapes_of(nasnet.NASNet(1, 6, 4), 1, 32, 32, 3)


def test_resnet38_matches_reference(golden, assert_golden):
    arrays = golden("resnet38")
    shapes = json.loads((golden.folder / "resnet38.json").read_text())["used"]
    model, image = resnet38.ResNet38(), arrays["in_image"]
    template, _ = shapes_of(model, *image.shape)
    variables = convert.from_torch(weights_from_names(shapes), template)
    out = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, image)
    out = {name: np.asarray(value) for name, value in out.items()}
    got = {
        "out_conv3_chanmean": out["conv3"].mean(axis=(1, 2)),
        "out_conv3_slice": out["conv3"][:, ::2, ::2, ::32],
        "out_conv4": out["conv4"],
        "out_conv5_chanmean": out["conv5"].mean(axis=(1, 2)),
        "out_conv5_slice": out["conv5"][..., :256],
        "out_conv6_chanmean": out["conv6"].mean(axis=(1, 2)),
        "out_conv6_slice": out["conv6"][..., :64],
    }
    assert set(got) == {name for name in arrays if name.startswith("out_")}
    for name, value in got.items():
        # 1e-4: the README's tolerance; 38 layers of float32 sums in another order.
        assert_golden(value, arrays[name], rtol=1e-4, what=name)


@pytest.fixture(scope="module")
def small_resnet38():
    model = resnet38.ResNet38(width=1 / 16)
    image = np.random.default_rng(1).normal(size=(2, 24, 40, 3)).astype(np.float32)
    return model, random_variables(model, *image.shape), image


def test_resnet38_width_scales_every_channel(small_resnet38):
    model, variables, image = small_resnet38
    _, out = shapes_of(model, *image.shape)
    assert {name: tap.shape for name, tap in out.items()} == {
        "conv3": (2, 6, 10, 16),
        "conv4": (2, 3, 5, 32),
        "conv5": (2, 3, 5, 64),
        "conv6": (2, 3, 5, 256),
    }
    assert variables["params"]["b7"]["conv_branch2b1"]["kernel"].shape == (3, 3, 64, 128)
    for width in (0.0, 0.01, -1.0):
        with pytest.raises(ValueError, match=rf"width={width}; expected a positive multiple of"):
            shapes_of(model.clone(width=width), *image.shape)


@pytest.mark.parametrize(("stride", "cells"), [(2, 20), (4, 10), (8, 5)])
def test_resnet38_has_one_set_of_weights_for_every_stride(stride, cells, small_resnet38):
    model, variables, image = small_resnet38
    finer = model.clone(stride=stride, dilations=(1, 1, 1))
    template, out = shapes_of(finer, *image.shape)
    assert jax.tree.map(lambda x: x.shape, template) == jax.tree.map(lambda x: x.shape, variables)
    assert {name: tap.shape[2] for name, tap in out.items()} == {
        "conv3": max(cells, 10), "conv4": cells, "conv5": cells, "conv6": cells,
    }  # fmt: skip
    assert {name: 40 // tap.shape[2] for name, tap in out.items()} == finer.strides


def test_resnet38_reaches_as_far_as_its_dilations(small_resnet38):
    """How many rows of the map before b6 one pixel changes."""
    model, variables, _ = small_resnet38
    image = np.zeros((2, 1024, 8, 3), np.float32)
    image[1, 512, 4] = 9
    reached = []
    for dilations in ((1, 1, 1), (4, 1, 1)):
        model = model.clone(dilations=dilations)
        out = jax.jit(lambda v, x, m=model: m.apply(v, x, train=False)["conv5"])(variables, image)
        reached.append(int((abs(out[0] - out[1]).max(axis=(1, 2)) > 0).sum()))
    assert 0 < reached[0] < reached[1]
    for wrong in (dict(stride=3), dict(dilations=(1, 1)), dict(dilations=(0, 1, 1))):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            shapes_of(model.clone(**wrong), 1, 16, 16, 3)


def test_resnet38_is_a_backbone_whose_norms_follow_the_training(small_resnet38):
    _, variables, image = small_resnet38
    config = ml_collections.ConfigDict({"model": {"backbone": dict(sizes.SMALL_RESNET38)}})
    model = backbones.make_backbone(config)
    assert (model.stride, model.strides[model.stop_at]) == (4, 4)
    shape = jax.ShapeDtypeStruct(image.shape, F32)
    moved = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])[1], variables, shape
    )
    assert moved["batch_stats"]
    del config.model.backbone["dilations"]
    with pytest.raises(InputError, match="the fields"):
        backbones.make_backbone(config)


def test_resnet38_trains_dropout_and_norms_each_by_its_own_argument(small_resnet38):
    model, variables, image = small_resnet38

    @jax.jit
    def run(seed):
        return model.apply(
            variables,
            image,
            train=True,
            train_norms=False,
            rngs={"dropout": jax.random.key(seed)},
            mutable=True,
        )

    clean = jax.jit(lambda: model.apply(variables, image, train=False))()
    (first, moved), (again, _), (other, _) = run(0), run(0), run(1)
    jax.tree.map(np.testing.assert_array_equal, moved["batch_stats"], variables["batch_stats"])
    for name in ("conv3", "conv4", "conv5"):  # below the first dropout
        # 1e-5: the two programs may order float32 sums differently.
        np.testing.assert_allclose(first[name], clean[name], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(first["conv6"], again["conv6"])
    assert not np.array_equal(first["conv6"], other["conv6"])
    assert not np.allclose(first["conv6"], clean["conv6"], atol=0.01)

    shape = jax.ShapeDtypeStruct(image.shape, F32)
    moved = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=False, train_norms=True, mutable=["batch_stats"])[1],
        variables,
        shape,
    )
    assert jax.tree.structure(moved["batch_stats"]) == jax.tree.structure(variables["batch_stats"])


def test_resnet38_drops_whole_channels():
    # Identity kernels and a constant map: what comes out differs only by the channels dropped.
    block = resnet38.BottleneckUnit(16, dropout=0.5)
    x = np.ones((4, 6, 6, 3), np.float32)
    template = jax.eval_shape(
        lambda: block.init(jax.random.key(0), x, train=False, train_norms=False)
    )
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), template)
    ones["params"]["conv_branch2b1"]["kernel"][:] = 0
    ones["params"]["conv_branch2b1"]["kernel"][1, 1] = 1  # the centre tap: no effect of the border
    rngs = {"dropout": jax.random.key(0)}
    run = jax.jit(lambda v, x: block.apply(v, x, train=True, train_norms=False, rngs=rngs)[0])
    y = np.asarray(run(ones, x))
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1, :1], y.shape))
    assert len(np.unique(y[:, 0, 0, 0])) > 1  # the films of a batch drop different channels
