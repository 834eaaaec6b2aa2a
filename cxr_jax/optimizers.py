"""Optimizers, schedules, clipping, frozen parts and learning-rate factors from a config."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import optax

from cxr_jax.errors import InputError


def path_of(key_path: tuple) -> str:
    """('backbone', 'conv0', 'kernel') -> 'backbone/conv0/kernel'."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def match_paths(params: Any, patterns: Sequence[str]) -> Any:
    """Bool pytree: does any pattern match the whole path of the leaf?

    Raises:
      InputError: no regular expression, or one that matches nothing: a typing error in a config.
    """
    paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise InputError(f"parameter pattern {pattern!r}: {error}") from error
        if not any(re.fullmatch(pattern, path) for path in paths):
            tops = sorted({path.split("/")[0] for path in paths})
            raise InputError(
                f"parameter pattern {pattern!r} matches no parameter; the top-level parts are "
                f"{', '.join(tops)} (a pattern must match a whole path, e.g. {tops[0]}/.*)"
            )
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(re.fullmatch(p, path_of(path)) for p in patterns), params
    )


def make_schedule(config: ml_collections.ConfigDict, total_steps: int) -> optax.Schedule:
    """Learning rate by step, from `config.optimizer`.

    `schedule`: 'constant', 'linear' (to 0 at total_steps), 'cosine' (to 0) or 'step' (times
    `decay_rate` every `decay_steps`); all after `warmup_steps` of linear warm-up from 0.
    """
    c = config
    rest = max(total_steps - c.warmup_steps, 1)
    if c.schedule == "constant":
        schedule = optax.constant_schedule(c.lr)
    elif c.schedule == "linear":
        schedule = optax.linear_schedule(c.lr, 0.0, rest)
    elif c.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(c.lr, rest)
    elif c.schedule == "step":
        schedule = optax.exponential_decay(c.lr, c.decay_steps, c.decay_rate, staircase=True)
    else:
        raise InputError(
            f"config.optimizer.schedule={c.schedule!r}; expected constant, linear, cosine or step"
        )
    if c.warmup_steps:
        # (step + 1): a first update with learning rate 0 would be a wasted batch.
        warmup = lambda step: c.lr * (step + 1) / c.warmup_steps  # noqa: E731
        schedule = optax.join_schedules([warmup, schedule], [c.warmup_steps])
    return schedule


def make_optimizer(
    config: ml_collections.ConfigDict,
    params: Any,
    *,
    total_steps: int,
    frozen: Sequence[str] = (),
) -> tuple[optax.GradientTransformation, Any]:
    """The gradient transformation of `config` (= config.optimizer), and what it trains.

    Order: global-norm clipping over the trainable part, the optimizer, weight decay (coupled for
    SGD and Adam as in PyTorch, decoupled for AdamW; never on biases and norms, which have one
    axis), the per-part factor, the schedule. With `accumulate` k the mean gradient of k steps makes
    one update, after the k-th; steps left over at the end make none.

    Args:
      params: parameter pytree or its shapes.
      frozen: patterns of the task, beside those of `config.frozen`. They stop parameters only:
        batch statistics of such a part go on unless the task runs it in inference mode.

    Returns:
      (tx, trainable): `trainable` is a bool pytree like params.
    """
    frozen_mask = match_paths(params, (*frozen, *config.frozen))
    trainable = jax.tree.map(lambda f: not f, frozen_mask)
    if not any(jax.tree.leaves(trainable)):
        raise InputError("every parameter is frozen; nothing is left to train")

    def decay_mask(p):
        return jax.tree.map(lambda x: x.ndim > 1, p)

    schedule = make_schedule(config, total_steps)
    decay = (
        [optax.add_decayed_weights(config.weight_decay, mask=decay_mask)]
        if config.weight_decay
        else []
    )
    if config.name == "sgd":
        parts = [*decay, optax.trace(decay=config.momentum, nesterov=config.nesterov)]
    elif config.name == "adam":
        parts = [*decay, optax.scale_by_adam(config.b1, config.b2, config.eps)]
    elif config.name == "adamw":
        parts = [optax.scale_by_adam(config.b1, config.b2, config.eps), *decay]
    else:
        raise InputError(f"config.optimizer.name={config.name!r}; expected sgd, adam or adamw")
    if config.clip_norm:
        parts.insert(0, optax.clip_by_global_norm(config.clip_norm))
    if config.lr_factors:
        parts.append(_scale_by_path(config.lr_factors, params))
    every = config.accumulate
    parts.append(optax.scale_by_learning_rate(lambda update: schedule(update * every)))
    chain = optax.chain(*parts)
    if every > 1:
        # Inside the partition: no sum is kept for what is frozen.
        chain = optax.MultiSteps(chain, every).gradient_transformation()
    tx = optax.partition({True: chain, False: optax.set_to_zero()}, param_labels=trainable)
    return tx, trainable


def _scale_by_path(
    factors: Sequence[tuple[str, float]], params: Any
) -> optax.GradientTransformation:
    """Multiplies each update by the factor of the first pattern that matches its path, else 1."""
    for pair in factors:
        is_pair = isinstance(pair, list | tuple) and len(pair) == 2
        if not is_pair or type(pair[1]) not in (int, float):
            raise InputError(
                f"config.optimizer.lr_factors={tuple(factors)}; expected (pattern, factor) pairs"
            )
    match_paths(params, [pattern for pattern, _ in factors])  # a pattern without a match is a typo

    def factor(path) -> float:
        hits = (float(f) for pattern, f in factors if re.fullmatch(pattern, path_of(path)))
        return next(hits, 1.0)

    def update(updates, params=None):
        del params
        return jax.tree_util.tree_map_with_path(lambda path, u: u * factor(path), updates)

    return optax.stateless(update)
