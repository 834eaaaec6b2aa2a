"""Resizing with aligned corners against a plain loop."""

import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.ops.resize import resize_aligned


def sample(row: np.ndarray, size: int, axis: int) -> np.ndarray:
    """One axis, output by output, as PyTorch documents align_corners=True."""
    last, out = row.shape[axis] - 1, []
    for i in range(size):
        at = i * last / (size - 1) if size > 1 else 0.0
        low = int(at)
        high = min(low + 1, last)
        fraction = at - low
        out.append((1 - fraction) * row.take(low, axis) + fraction * row.take(high, axis))
    return np.stack(out, axis)


@pytest.mark.parametrize(
    "size_in, size_out",
    [
        ((5, 7), (9, 14)),
        ((20, 16), (6, 5)),
        ((4, 9), (4, 3)),
        ((6, 6), (6, 6)),
        ((1, 3), (4, 1)),
        ((5, 1), (1, 2)),
        ((7, 2), (2, 9)),
    ],
)
def test_resize_equals_a_loop(size_in, size_out):
    x = np.random.default_rng(0).normal(size=(2, *size_in, 3)).astype(np.float32)
    want = sample(sample(x.astype(np.float64), size_out[0], 1), size_out[1], 2)
    got = resize_aligned(jnp.asarray(x), size_out)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=1e-6)  # float32 against float64, values near 1


def test_corners_stay_and_one_output_is_the_first_input():
    x = jnp.arange(12.0).reshape(1, 3, 4, 1)
    big = resize_aligned(x, (8, 9))[0, :, :, 0]
    np.testing.assert_allclose(big[[0, 0, -1, -1], [0, -1, 0, -1]], [0, 3, 8, 11], rtol=1e-6)
    np.testing.assert_array_equal(resize_aligned(x, (1, 1)).ravel(), [0.0])


@pytest.mark.parametrize("shape, size", [((1, 0, 3, 1), (2, 2)), ((1, 3, 3, 1), (0, 2))])
def test_empty_sides_are_refused(shape, size):
    with pytest.raises(ValueError, match="at least 1"):
        resize_aligned(jnp.zeros(shape), size)
