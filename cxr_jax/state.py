"""Everything a training run changes, in one pytree, and the one train step of every paper."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from cxr_jax import batch_statistics, teacher
from cxr_jax.tasks.base import Batch, Task

Scalars = dict[str, jax.Array]


class TrainState(flax.struct.PyTreeNode):
    """Parameters, model state (batch statistics), optimizer state, step and random key.

    `rng` never changes: the key of a step is folded from (seed, step, device), so a resumed run
    draws the same numbers.
    """

    step: jax.Array  # int32 []
    params: Any
    model_state: Any
    opt_state: Any
    rng: jax.Array  # uint32 [2]

    @property
    def variables(self) -> dict[str, Any]:
        """What `Task.predict` takes."""
        return {"params": self.params, **self.model_state}


def create(task: Task, tx: optax.GradientTransformation, batch: Batch, seed: int) -> TrainState:
    """A fresh state; `batch` gives shapes only. Jit it: initialisation op by op is slow."""
    init_rng, rng = jax.random.split(jax.random.PRNGKey(seed))
    variables = dict(task.init(init_rng, batch))
    params = variables.pop("params")
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=variables,
        opt_state=tx.init(params),
        rng=rng,
    )


def make_train_step(
    task: Task, tx: optax.GradientTransformation, trainable: Any, *, axis_name: str | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, Scalars]]:
    """One update: (state, batch) -> (state, scalars). Pure; `parallel.py` jits it.

    Args:
      trainable: bool pytree like params. Frozen leaves are constants to the gradient, so that XLA
        never computes the backward pass below them.
      axis_name: the axis to average over where each device sees its own part of the batch (pmap);
        None where the batch is global and sharded (jit).
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Scalars]:
        rng = jax.random.fold_in(state.rng, state.step)
        if axis_name is not None:
            rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))

        def loss_fn(params):
            params = jax.tree.map(
                lambda p, t: p if t else jax.lax.stop_gradient(p), params, trainable
            )
            variables = {"params": params, **state.model_state}
            return task.loss(variables, batch, rng=rng, step=state.step)

        (loss, (model_state, terms)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params
        )
        scalars = {"loss": loss, **terms}
        if axis_name is not None:
            grads, model_state, scalars = jax.lax.pmean(
                (grads, model_state, scalars), axis_name=axis_name
            )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            model_state=model_state,
            opt_state=opt_state,
        )
        return state, scalars | {"grad_norm": optax.tree.norm(grads)}

    return train_step


def make_refresh_step(
    task: Task, *, axis_name: str | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, Scalars]]:
    """(state, batch) -> (state, {}): the batch statistics one batch further, weights and all else
    held: those of the network that the next teacher is copied of. Pure, as a train step is.

    Args:
      axis_name: as `make_train_step`.
    """

    def refresh_step(state: TrainState, batch: Batch) -> tuple[TrainState, Scalars]:
        rng = batch_statistics.step_key(state.rng, state.step, batch)
        variables, source = state.variables, teacher.source(state.variables)
        of = [name for name in batch_statistics.networks(variables) if name == source]
        variables = batch_statistics.refresh(
            task, variables, batch, rng=rng, step=state.step, of=of, axis_name=axis_name
        )
        del variables["params"]
        return state.replace(model_state=variables), {}

    return refresh_step
