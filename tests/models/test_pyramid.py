"""The pyramid by hand."""

import jax
import numpy as np
import pytest

from cxr_jax.models import pyramid


def centre_kernel(width):
    kernel = np.zeros((3, 3, width, width), np.float32)
    kernel[1, 1] = np.eye(width)
    return {"kernel": kernel, "bias": np.zeros(width, np.float32)}


@pytest.mark.parametrize("sides", [(12, 6, 3), (9, 5, 3)])
def test_the_pyramid_adds_from_the_top_and_goes_on_above_the_backbone(sides):
    """With convolutions that copy: sums of repeated maps, and every second cell."""
    width = 2
    maps = [
        np.random.default_rng(n).normal(size=(1, n, n, width)).astype(np.float32) for n in sides
    ]
    names = [*(f"smooth{k}" for k in range(3)), "more0", "more1"]
    params = {name: centre_kernel(width) for name in names}
    unit = np.full(width, np.sqrt(1 + 1e-5), np.float32)
    for k in range(3):
        params[f"lateral{k}"] = {"kernel": np.eye(width, dtype=np.float32)}
        params[f"norm{k}"] = {"scale": unit, "bias": np.zeros(width, np.float32)}
    one = {"mean": np.zeros(width, np.float32), "var": np.ones(width, np.float32)}
    stats = {f"norm{k}": one for k in range(3)}
    found = pyramid.Pyramid(width).apply(
        {"params": params, "batch_stats": stats}, maps, train=False
    )
    twice = lambda x, side: x.repeat(2, axis=1).repeat(2, axis=2)[:, :side, :side]  # noqa: E731
    middle = maps[1] + twice(maps[2], sides[1])
    above = maps[2][:, ::2, ::2]
    wanted = [
        maps[0] + twice(middle, sides[0]),
        middle,
        maps[2],
        above,
        np.maximum(above, 0)[:, ::2, ::2],
    ]
    assert [x.shape[1] for x in wanted] == [*sides, 2, 1]
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_its_size_is_that_of_the_papers():
    """On C3, C4, C5 of a ResNet-50, 256 wide; batch norm's two numbers a channel are theirs too."""
    maps = [
        jax.ShapeDtypeStruct((1, side, side, channels), np.float32)
        for side, channels in ((64, 512), (32, 1024), (16, 2048))
    ]
    model = pyramid.Pyramid()
    out, variables = jax.eval_shape(
        lambda maps: model.init_with_output(jax.random.key(0), maps, train=False), maps
    )
    assert [x.shape for x in out] == [(1, side, side, 256) for side in (64, 32, 16, 8, 4)]
    lateral = (512 + 1024 + 2048) * 256 + 3 * 2 * 256
    rest = 3 * (9 * 256 + 1) * 256 + (9 * 2048 + 1) * 256 + (9 * 256 + 1) * 256
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == lateral + rest
