"""Batch norm's running statistics, brought up to the weights that they stand beside.

They lag behind: with a high or constant learning rate and small batches they are at times far from
what the network as it is now would see, and then a single checkpoint answers wrongly in inference
mode though the same weights are right on statistics of a batch. Here they are carried on over
further training batches with the weights held, by the very rule of the training (with a momentum of
0.9 what was there counts 0.9^40 = 1.5% after 40 batches).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cxr_jax import teacher
from cxr_jax.tasks.base import Batch, Task, Variables

COLLECTION = "batch_stats"


def networks(variables: Variables) -> tuple[str, ...]:
    """The networks that have batch statistics: '' the one itself, and its copies by name."""
    names = [name for name in teacher.COPIES if COLLECTION in variables.get(name, {})]
    return ("", *names) if COLLECTION in variables else ()


def refresh(
    task: Task,
    variables: Variables,
    batch: Batch,
    *,
    rng: jax.Array,
    step: jax.Array,
    of: Sequence[str],
    axis_name: str | None = None,
) -> Variables:
    """The variables with the statistics of the networks `of` one batch further, nothing else moved.

    Pure. What the loss computes beside them is not part of the compiled program.

    Args:
      of: some of `networks`.
      axis_name: the axis to average over where each device sees its own part of the batch.
    """
    moved = dict(variables)
    for name in of:
        network = variables[name] if name else {}
        _, (state, _) = task.loss({**variables, **network}, batch, rng=rng, step=step)
        new = state[COLLECTION]
        if axis_name is not None:
            new = jax.lax.pmean(new, axis_name=axis_name)
        moved |= {name: {**network, COLLECTION: new}} if name else {COLLECTION: new}
    return moved


def shift(before: Variables, after: Variables) -> float:
    """How far running means lay from the batches', in the batches' standard deviations: the root
    mean square over the channels of all norms; 0 where there is none, or none moved.

    Args:
      before, after: the collection of statistics, with the leaves `mean` and `var` of each norm.
    """
    squares = [
        np.square(np.asarray(old) - np.asarray(new)) / (np.asarray(variance) + 1e-5)
        for old, new, variance in zip(
            *map(_leaves, (before, after, after), ("mean", "mean", "var"))
        )
    ]
    return float(np.sqrt(np.mean(np.concatenate(squares)))) if squares else 0.0


def _leaves(statistics: Variables, name: str) -> list[jax.Array]:
    """The leaves of that name, in the order of their paths."""
    found = jax.tree_util.tree_leaves_with_path(statistics)
    return [leaf for path, leaf in found if path[-1] == jax.tree_util.DictKey(name)]


def step_key(rng: jax.Array, step: jax.Array, batch: Batch) -> jax.Array:
    """The random key of one batch: of dropout, where there is any."""
    return jax.random.fold_in(jax.random.fold_in(rng, step), jnp.ravel(batch["index"])[0])
