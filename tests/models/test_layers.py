"""Each fast form of a layer equals the plain one it replaces, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cxr_jax.models import layers

NHWC = ("NHWC", "HWIO", "NHWC")


def normal(seed: int, *shape: int):
    return jax.random.normal(jax.random.key(seed), shape)


def assert_same_with_gradients(got, want, *args, tolerance=2e-5):
    """Both functions give the same values and the same gradients with respect to `args`."""
    numbers = tuple(range(len(args)))

    def run(function):
        def weighted(*args):
            value = function(*args)
            return jnp.sum(value * jnp.cos(jnp.arange(value.size)).reshape(value.shape)), value

        grads, value = jax.jit(jax.grad(weighted, argnums=numbers, has_aux=True))(*args)
        return [value, *grads]

    for ours, plain in zip(run(got), run(want)):
        # Float32 sums of a few hundred terms in another order.
        np.testing.assert_allclose(ours, plain, rtol=0, atol=tolerance * np.abs(plain).max())


@pytest.mark.parametrize("height, width", [(16, 16), (9, 13), (8, 7)])
def test_stem_is_the_padded_strided_convolution(height, width):
    def plain(x, kernel):
        return lax.conv_general_dilated(x, kernel, (2, 2), ((3, 3), (3, 3)), dimension_numbers=NHWC)

    def stem(x, kernel):
        return layers.StemConv(4).apply({"params": {"kernel": kernel}}, x)

    assert_same_with_gradients(
        stem, plain, normal(0, 2, height, width, 3), normal(1, 7, 7, 3, 4), tolerance=1e-4
    )


@pytest.mark.parametrize("stride, size", [(1, (4, 5)), (2, (4, 3))])
def test_conv1x1_is_a_convolution(stride, size):
    def plain(x, kernel):
        return lax.conv_general_dilated(
            x, kernel[None, None], (stride, stride), "VALID", dimension_numbers=NHWC
        )

    def product(x, kernel):
        layer = layers.Conv1x1(7, stride=stride, use_bias=False)
        return layer.apply({"params": {"kernel": kernel}}, x)

    assert_same_with_gradients(product, plain, normal(0, 2, *size, 3), normal(1, 3, 7))


@pytest.mark.parametrize("height, width", [(8, 6), (7, 9), (1, 2)])
def test_max_pool_is_the_windowed_maximum(height, width):
    def plain(x):
        return lax.reduce_window(
            x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
        )

    assert_same_with_gradients(layers.max_pool_3x3, plain, normal(0, 2, height, width, 3))


@pytest.mark.parametrize("height, width", [(4, 6), (3, 1)])
def test_upsampling_is_bilinear_with_half_pixel_centres(height, width):
    def plain(x):
        shape = (x.shape[0], 2 * height, 2 * width, x.shape[3])
        return jax.image.resize(x, shape, "bilinear")

    assert_same_with_gradients(layers.upsample_2x, plain, normal(0, 2, height, width, 3))


def test_upsampling_commutes_with_flips_and_keeps_constants():
    upsample = jax.jit(layers.upsample_2x)
    x = normal(0, 2, 3, 5, 2)
    # 1e-6: a weighted sum of two float32, whose order a flip exchanges.
    np.testing.assert_allclose(upsample(x[:, ::-1, ::-1]), upsample(x)[:, ::-1, ::-1], atol=1e-6)
    np.testing.assert_array_equal(upsample(jnp.ones_like(x)), jnp.ones((2, 6, 10, 2)))


def test_average_pool_drops_an_odd_border():
    x = normal(0, 1, 5, 4, 2)
    want = np.asarray(x)[:, :4].reshape(1, 2, 2, 2, 2, 2).mean((2, 4))
    np.testing.assert_allclose(layers.average_pool_2x2(x), want, atol=1e-6)  # four float32 terms


def test_batch_norm_is_the_textbook_one():
    x = normal(0, 3, 4, 5, 6) * 3 + 10
    scale, bias = normal(1, 6), normal(2, 6)
    stats = {"batch_stats": {"mean": jnp.zeros(6), "var": jnp.ones(6)}}

    def ours(x, scale, bias):
        variables = {"params": {"scale": scale, "bias": bias}} | stats
        return layers.BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])[0]

    def plain(x, scale, bias):
        mean = x.mean((0, 1, 2))
        variance = jnp.square(x - mean).mean((0, 1, 2))
        return (x - mean) / jnp.sqrt(variance + 1e-5) * scale + bias

    # 2e-4: E[x^2] - E[x]^2 cancels a factor of ten here.
    assert_same_with_gradients(ours, plain, x, scale, bias, tolerance=2e-4)


def test_batch_norm_of_a_constant_channel_is_its_bias():
    variables = layers.BatchNorm().init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)), train=False)
    x = jnp.full((2, 8, 8, 1), 1000.1)

    @jax.jit
    def total(x):
        return layers.BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])[0].sum()

    assert np.isfinite(total(x))
    assert np.isfinite(jax.grad(total)(x)).all()
