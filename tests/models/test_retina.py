"""The pyramid by hand, and how the network's numbers lie: levels, cells, anchors, films."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.models import retina
from cxr_jax.models.densenet import DenseNet, densenet121
from cxr_jax.models.resnet import ResNet
from cxr_jax.ops.anchors import PER_CELL, make_anchors

SIDE, K = 64, 3
TINY = DenseNet(growth_rate=4, block_sizes=(1, 1, 1), init_features=8)


def make(**changes):
    options = dict(backbone=TINY, num_findings=K, anchors=PER_CELL, width=8, depth=1)
    return retina.RetinaNet(**options | changes)


def films(count=2, seed=0):
    return np.random.default_rng(seed).normal(size=(count, SIDE, SIDE)).astype(np.float32)


def compiled(model):
    run = jax.jit(lambda v, x: model.apply(v, x, train=False))
    return lambda v, x: jax.device_get(run(v, x))


@pytest.fixture(scope="module")
def started():
    """A network, its first variables, and itself compiled."""
    model = make()
    init = jax.jit(lambda x: model.init(jax.random.PRNGKey(0), x, train=False))
    return model, init(films(1)), compiled(model)


def test_levels_are_the_last_three_strides_and_two_above():
    full = make(backbone=densenet121())
    assert full.strides == (8, 16, 32, 64, 128)
    assert full.taps == {8: "block2", 16: "block3", 32: "final"}
    assert make().strides == (4, 8, 16, 32, 64)
    assert make().taps == {4: "block1", 8: "block2", 16: "final"}
    shallow = make(backbone=DenseNet(growth_rate=4, block_sizes=(1, 1), init_features=8))
    assert shallow.strides == (4, 8, 16, 32)
    cut = make(backbone=densenet121(stop_at="block3"))
    assert cut.taps == {4: "block1", 8: "block2", 16: "block3"}
    other = make(backbone=ResNet(block_sizes=(2, 2, 2, 2), bottleneck=False, stop_at="layer4"))
    assert other.taps == {8: "layer2", 16: "layer3", 32: "layer4"}


def test_the_full_size_has_the_papers_heads_and_an_output_an_anchor():
    model = retina.RetinaNet(backbone=densenet121(), num_findings=8, anchors=PER_CELL)
    film = jnp.zeros((1, 224, 224))
    shapes = jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), film, train=False))
    out = jax.eval_shape(lambda v: model.apply(v, film, train=False), shapes)
    count = len(make_anchors(224, model.strides, scale=2.0))
    assert count == 9441
    assert out["logits"].shape == (1, count, 8)
    assert out["deltas"].shape == (1, count, 4)
    sizes = {k: sum(x.size for x in jax.tree.leaves(v)) for k, v in shapes["params"].items()}
    hidden = 4 * (9 * 256 * 256 + 256)  # once, whatever the number of levels
    assert sizes["logits"] == hidden + 9 * 256 * 72 + 72
    assert sizes["deltas"] == hidden + 9 * 256 * 36 + 36
    assert sizes["backbone"] == pytest.approx(6.95e6, rel=1e-3)


def test_every_finding_starts_as_rare(started):
    _, variables, run = started
    out = run(variables, films())
    assert np.median(jax.nn.sigmoid(out["logits"])) == pytest.approx(retina.PRIOR, rel=0.2)
    assert np.abs(np.median(out["deltas"])) < 0.1


@pytest.mark.parametrize("x, y", [(44, 12), (12, 44)])
def test_an_anchors_numbers_are_of_its_place(started, x, y):
    """What a spot changes most lies around it, on levels whose cells do not see the whole film."""
    model, variables, run = started
    pair = np.zeros((2, SIDE, SIDE), np.float32)
    pair[1, y - 2 : y + 2, x - 2 : x + 2] = 50
    anchors = make_anchors(SIDE, model.strides, scale=2.0) * SIDE
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    for name, value in run(variables, pair).items():
        change, start = np.square(value[1] - value[0]).sum(-1) ** 2, 0
        for stride in model.strides[:2]:
            level = slice(start, start := start + PER_CELL * (SIDE // stride) ** 2)
            place = (change[level, None] * centres[level]).sum(0) / change[level].sum()
            mirrored = np.hypot(*(place - [y, x]))
            assert np.hypot(*(place - [x, y])) < mirrored / 2, (name, stride)


def test_every_parameter_is_used(started):
    model, variables, _ = started

    def total(params):
        found, _ = model.apply(
            {**variables, "params": params}, films(), train=True, mutable=["batch_stats"]
        )
        return sum(jnp.sum(jnp.square(x)) for x in found.values())

    grads = jax.jit(jax.grad(total))(variables["params"])
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.any(grad), jax.tree_util.keystr(path)


def test_films_do_not_mix(started):
    _, variables, run = started
    both, turned = run(variables, films()), run(variables, films()[::-1])
    for name in both:
        assert np.abs(both[name][0] - both[name][1]).max() > 1e-3
        np.testing.assert_allclose(turned[name][::-1], both[name], atol=1e-5)


@pytest.mark.parametrize("freeze", [False, True])
def test_norms_of_the_backbone_can_be_frozen(started, freeze):
    _, variables, _ = started
    model = make(freeze_norms=freeze)
    run = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))
    _, state = run(variables, films())
    same = jax.tree.map(lambda a, b: bool((a == b).all()), variables["batch_stats"],
                        state["batch_stats"])  # fmt: skip
    assert all(jax.tree.leaves(same["backbone"])) == freeze
    assert not any(jax.tree.leaves(same["pyramid"]))


def test_bfloat16_stays_near_and_returns_float32(started):
    _, variables, run = started
    half = make(backbone=TINY.clone(dtype=jnp.bfloat16), dtype=jnp.bfloat16)
    want, got = run(variables, films()), compiled(half)(variables, films())
    for name, value in got.items():
        assert value.dtype == np.float32
        # 8 bits of a mantissa through a dozen layers.
        np.testing.assert_allclose(value, want[name], atol=0.05)
