"""Schedules, clipping, frozen parts and factors against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from cxr_jax import optimizers
from cxr_jax.errors import InputError

PARAMS = {
    "backbone": {"conv": {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.ones(3)}},
    "head": {"kernel": jnp.full((3, 1), -1.0)},
}
GRADS = jax.tree.map(lambda x: 0.5 * jnp.ones_like(x), PARAMS)


def config(**changes):
    values = common.get_config().optimizer
    values.update(lr=0.1, **changes)
    return values


def updates(steps=1, frozen=(), grads=GRADS, **changes):
    tx, trainable = optimizers.make_optimizer(
        config(**changes), PARAMS, total_steps=10, frozen=frozen
    )
    state, params = tx.init(PARAMS), PARAMS
    for _ in range(steps):
        change, state = tx.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, change)
    return jax.tree.map(jnp.subtract, params, PARAMS), trainable


def test_sgd_with_momentum_is_pytorchs():
    # v1 = g, v2 = 0.9 g + g; the change is -lr (v1 + v2).
    change, _ = updates(steps=2, name="sgd", momentum=0.9)
    np.testing.assert_allclose(change["head"]["kernel"], -0.1 * (0.5 + 0.95), rtol=1e-6)


def test_weight_decay_is_coupled_for_sgd_and_leaves_biases_alone():
    change, _ = updates(name="sgd", momentum=0.0, weight_decay=0.1)
    np.testing.assert_allclose(change["head"]["kernel"], -0.1 * (0.5 - 0.1), rtol=1e-6)
    np.testing.assert_allclose(change["backbone"]["conv"]["bias"], -0.1 * 0.5, rtol=1e-6)


def test_weight_decay_is_decoupled_for_adamw():
    # Adam's first update is -lr * sign(g) up to eps, whatever the decay; AdamW adds -lr * wd * p.
    change, _ = updates(name="adamw", weight_decay=0.1)
    np.testing.assert_allclose(change["head"]["kernel"], -0.1 * (1 - 0.1), rtol=1e-5)
    change, _ = updates(name="adam", weight_decay=0.1)
    np.testing.assert_allclose(change["head"]["kernel"], -0.1, rtol=1e-5)


def test_frozen_parts_stand_still_and_take_no_part_in_the_clipping():
    change, trainable = updates(name="sgd", momentum=0.0, clip_norm=0.1, frozen=("backbone/.*",))
    assert not any(jax.tree.leaves(trainable["backbone"]))
    assert all(np.all(x == 0) for x in jax.tree.leaves(change["backbone"]))
    # Norm of the head's gradient alone, clipped to 0.1: three equal numbers.
    np.testing.assert_allclose(change["head"]["kernel"], -0.1 * 0.1 / np.sqrt(3), rtol=1e-5)


def test_factor_of_the_first_matching_pattern():
    change, _ = updates(name="sgd", momentum=0.0, lr_factors=(("head/.*", 10.0), (".*/bias", 0.0)))
    np.testing.assert_allclose(change["head"]["kernel"], -0.5, rtol=1e-6)
    np.testing.assert_allclose(change["backbone"]["conv"]["bias"], 0.0)
    np.testing.assert_allclose(change["backbone"]["conv"]["kernel"], -0.05, rtol=1e-6)


@pytest.mark.parametrize("field", ["frozen", "lr_factors"])
def test_a_pattern_without_a_match_is_a_mistake(field):
    value = (("bakcbone/.*", 1.0),) if field == "lr_factors" else ("bakcbone/.*",)
    with pytest.raises(InputError, match="bakcbone"):
        updates(name="sgd", **{field: value})


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"frozen": ("[",)}, r"pattern '\[': "),
        ({"frozen": (1,)}, "pattern 1: "),
        ({"lr_factors": ("head/.*",)}, r"lr_factors=\('head/\.\*',\); expected \(pattern"),
        ({"lr_factors": (("head/.*", "fast"),)}, "'fast'.*; expected"),
    ],
)
def test_patterns_and_factors_of_another_kind_are_mistakes(settings, words):
    with pytest.raises(InputError, match=words):
        updates(name="sgd", **settings)


def test_all_frozen_is_a_mistake():
    with pytest.raises(InputError, match="frozen"):
        updates(name="sgd", frozen=(".*",))


@pytest.mark.parametrize(
    "changes, expected",
    [
        (dict(schedule="constant"), [0.1] * 4),
        (dict(schedule="linear"), [0.1, 0.075, 0.05, 0.025]),
        (dict(schedule="cosine"), [0.1 * (1 + np.cos(np.pi * t / 4)) / 2 for t in range(4)]),
        (dict(schedule="step", decay_steps=2, decay_rate=0.1), [0.1, 0.1, 0.01, 0.01]),
        (dict(schedule="linear", warmup_steps=2), [0.05, 0.1, 0.1, 0.05]),
    ],
    ids=["constant", "linear", "cosine", "step", "warmup"],
)
def test_schedules(changes, expected):
    schedule = optimizers.make_schedule(config(**changes), 4)
    np.testing.assert_allclose([float(schedule(t)) for t in range(4)], expected, rtol=1e-5)


@pytest.mark.parametrize("changes", [dict(name="lion"), dict(schedule="triangle")])
def test_unknown_names_are_mistakes(changes):
    with pytest.raises(InputError, match=next(iter(changes.values()))):
        updates(**{"name": "sgd", **changes})


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_accumulated_steps_are_one_update_of_their_mean(name):
    grads = [jax.tree.map(lambda x, k=k: k * jnp.ones_like(x), PARAMS) for k in (1.0, 3.0)]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *grads)
    settings = dict(name=name, schedule="linear", clip_norm=1.0)

    def run(gradients, total_steps, **changes):
        tx, _ = optimizers.make_optimizer(
            config(**settings, **changes), PARAMS, total_steps=total_steps
        )
        state, params, path = tx.init(PARAMS), PARAMS, []
        for g in gradients:
            change, state = tx.update(g, state, params)
            params = jax.tree.map(jnp.add, params, change)
            path.append(params)
        return path

    slow = run([*grads, *grads], 4, accumulate=2)
    fast = run([mean, mean], 2)
    np.testing.assert_array_equal(slow[0]["head"]["kernel"], PARAMS["head"]["kernel"])
    for a, b in zip(slow[1::2], fast):
        np.testing.assert_allclose(a["head"]["kernel"], b["head"]["kernel"], rtol=1e-6)
